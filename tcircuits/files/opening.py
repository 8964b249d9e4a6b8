"""Open a file of tensors; which container it is, its first bytes say.

    file = open_tensors("model.safetensors")
    file.headers["W_enc"], file.read("W_enc"), file.read_rows("W_dec", [3, 17])

Nothing from a file is run, imported or evaluated, and no memory is asked for that the file's length does not justify.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcircuits.files import npz_file, safetensors_file, torch_stream, torch_zip, zip_archive
from tcircuits.files.storage import MalformedError, Storage, first_gunzipped, gunzipped, of_file, read_bytes
from tcircuits.files.strided import Strided, opened
from tcircuits.files.tensor_file import TensorFile
from tcircuits.types import InputError

GZIP, START = b"\x1f\x8b", 32
READ = "safetensors, .npz and .npy of NumPy, .pt, .bin and .pkl of PyTorch, also packed by gzip"
KNOWN = (
    (b"GGUF", "a GGUF file, which holds a model: give it to load_model"),
    (b"version https://git-lfs", "a pointer of git LFS: the file itself was not downloaded (git lfs pull)"),
    (b"<", "a page of the web or XML: was the download refused?"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\5\6", "an empty zip archive"),
)

Opened = tuple[dict[str, Strided], Any]


def open_tensors(path: str | Path, *, max_decoded: int | None = None) -> TensorFile:
    """Open a file of tensors: headers are checked against its length, nothing is read yet.

    Memory: 64 MiB and up to three times the bytes of the tensor that is read; files packed by gzip are held decoded.

    Args:
        path: the file.
        max_decoded: how many bytes compressed parts may decode to; None: 1000 times the packed bytes and 64 MiB, but at
            most 8 GiB.

    Raises:
        InputError: no such file, another container, a damaged or cut-off file, or one that holds more than tensors and
            plain values; one line that says which.
    """
    path = Path(path)
    try:
        storage = of_file(path)
        tensors, about = _open(storage, max_decoded)
    except MalformedError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return opened(path, tensors, about)


def _open(storage: Storage, max_decoded: int | None) -> Opened:
    with storage.open() as fetch:
        start = read_bytes(fetch, storage, 0, min(START, storage.size))
    # The length that safetensors begins with may look like any other container's first bytes.
    if start[:2] != GZIP or safetensors_file.begins(start):
        return _reader(start)(storage, max_decoded)
    reader = _reader(first_gunzipped(storage, START))  # before all of it is decoded
    return reader(gunzipped(storage, max_decoded), max_decoded)


def _reader(start: bytes) -> Callable[[Storage, int | None], Opened]:
    """What reads a file with these first bytes."""
    if safetensors_file.begins(start):
        return lambda storage, _: safetensors_file.open_safetensors(storage)
    if start[:4] == b"PK\3\4":
        return _open_zip
    if start[:6] == npz_file.MAGIC:
        return lambda storage, _: _open_npy(storage)
    if start[:1] == b"\x80":
        return torch_stream.open_pickle
    unknown = f"no file of tensors: it begins with {start[:8]!r}" if start else "empty"
    what = next((what for mark, what in KNOWN if start.startswith(mark)), unknown)
    raise MalformedError(f"it is {what}; read are {READ}")


def _open_zip(storage: Storage, max_decoded: int | None) -> Opened:
    members = zip_archive.members(storage, max_decoded)
    if torch_zip.is_torch(members):
        return torch_zip.open_torch_zip(members, storage.size, max_decoded)
    if npz_file.is_npz(members):
        return npz_file.open_npz(members)
    raise MalformedError("it is a zip archive, but holds neither NumPy arrays (.npy) nor a file of PyTorch (data.pkl)")


def _open_npy(storage: Storage) -> Opened:
    array = npz_file.open_array(storage)
    return ({"": array}, {}) if isinstance(array, Strided) else ({}, {"": array})
