"""The arrays in an Orbax checkpoint's folder `state`: which there are, checked before any is read, and their parts.

The library below Orbax takes sizes at their word: an array of 2^40 values without a single stored piece is allocated
and filled. So every array's `zarr.json` is read here first, its pieces must all be there, and what they decode to must
be plausible for the bytes that the folder has. Orbax's own reading is left out: where one array cannot be read, it
leaves the reads of the others running, which now and then end the process.

Source: Zarr's specification, version 3, with the codec `sharding_indexed`; the key-value store is OCDBT (TensorStore).
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import Budget, parse_json, read_json
from tcircuits.files.storage import MalformedError, check_decoded
from tcircuits.files.tensor_file import Part
from tcircuits.types import InputError

DTYPES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4,
    "float32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8,
}  # fmt: skip
CODECS = ("bytes", "zstd", "crc32c", "transpose", "sharding_indexed")
JSON, ARRAY = "zarr.json", "/zarr.json"
MAX_ARRAYS, MAX_PIECES = 10_000, 1 << 20


def stored_shapes(state: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array by its name; reads no values.

    Args:
        state: the folder `state` of a checkpoint.

    Raises:
        MalformedError: damaged, pieces missing, or more than its bytes can hold.
    """
    files = [state / "_METADATA", state / "_sharding", *(state / "array_metadatas").glob("*")]
    try:
        for file in files:
            if file.is_file():
                read_json(file)
        about = read_json(state / "_METADATA")
    except InputError as problem:
        raise MalformedError(str(problem)) from None
    if about.get("use_ocdbt") is not True or about.get("use_zarr3") is not True:
        raise MalformedError("its arrays are stored in another way than Zarr 3 in OCDBT")
    pieces, found, total = _keys(state), {}, 0
    for name, raw in pieces.pop(JSON).items():
        shape, grid, size = _array(name, raw)
        here = pieces.get(name, set())
        if math.prod(grid) != len(here) or not all("/".join(("c", *map(str, at))) in here for at in _places(grid)):
            raise MalformedError(f"{name!r:.80} has {len(here)} pieces of {math.prod(grid)}")
        found[name], total = shape, total + size
    check_decoded(total, sum(file.stat().st_size for file in state.rglob("*") if file.is_file()), None)
    return found


def open_array(state: Path, name: str) -> Any:
    """One array, to be read with `read_parts`.

    Raises:
        MalformedError: it is damaged.
    """
    tensorstore = importlib.import_module("tensorstore")
    store = {"driver": "ocdbt", "base": f"file://{state.absolute()}/", "path": f"{name}/"}
    try:
        return tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True, read=True).result()
    except (ValueError, OSError, KeyError) as problem:
        raise MalformedError(f"{name!r:.80} cannot be opened: {problem!s:.300}") from None


def read_parts(array: Any, parts: Sequence[Part]) -> list[np.ndarray]:
    """Parts of an array, read side by side, in its own dtype.

    Raises:
        MalformedError: it is damaged.
    """
    try:
        return [np.asarray(reading.result()) for reading in [array[part].read() for part in parts]]
    except (ValueError, OSError, KeyError) as problem:
        raise MalformedError(f"an array cannot be read: {problem!s:.300}") from None


def _keys(state: Path) -> dict[str, Any]:
    """The pieces of each array by its name, and under `JSON` the text of each array's `zarr.json`.

    Raises:
        MalformedError: the store is damaged, or holds too much.
    """
    tensorstore = importlib.import_module("tensorstore")
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{state.absolute()}/"}).result()
        keys = [key.decode("utf-8") for key in store.list().result()]
        names = [key.removesuffix(ARRAY) for key in keys if key.endswith(ARRAY)]
        if len(names) > MAX_ARRAYS or len(keys) > MAX_PIECES:
            raise MalformedError(f"it holds {len(names)} arrays in {len(keys)} pieces")
        texts = {name: store.read(name + ARRAY).result().value for name in names}
    except (ValueError, OSError, KeyError, UnicodeDecodeError) as problem:
        raise MalformedError(f"its store cannot be read: {problem!s:.300}") from None
    found: dict[str, Any] = {JSON: texts}
    for key in keys:
        name, _, rest = key.partition("/")
        if not key.endswith(ARRAY):
            found.setdefault(name, set()).add(rest)
    return found


def _places(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*map(range, grid))


def _array(name: str, raw: bytes) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape of an array, how many pieces it has along each axis, and its bytes.

    Raises:
        MalformedError: a text that is no description of such an array.
    """
    try:
        about = parse_json(raw, Budget())
        shape, grid = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
        item = DTYPES[about["data_type"]]
        _sizes(shape, shape)
        _sizes(grid, shape)
        _codecs(about["codecs"], grid)
    except (MalformedError, KeyError, TypeError, IndexError) as problem:
        raise MalformedError(f"what describes {name!r:.80} is damaged: {problem!s:.200}") from None
    return tuple(shape), tuple(-(-n // step) for n, step in zip(shape, grid, strict=True)), math.prod(shape) * item


def _sizes(given: Any, shape: list[int]) -> None:
    """Raise unless `given` are sizes of pieces of an array of this shape."""
    if not isinstance(given, list) or len(given) != len(shape) or len(given) > 32:
        raise MalformedError(f"sizes {given!s:.80}")
    if not all(type(n) is int and 0 <= n <= max(size, 1) for n, size in zip(given, shape, strict=True)):
        raise MalformedError(f"sizes {given!s:.80} for an array of {shape!s:.80}")
    if given is not shape and 0 in given:
        raise MalformedError(f"pieces of sizes {given!s:.80}")


def _codecs(given: Any, outer: list[int], depth: int = 0) -> None:
    """Raise unless codecs are those that checkpoints have, with pieces inside of pieces."""
    if not isinstance(given, list) or not 1 <= len(given) <= 8 or depth > 1:
        raise MalformedError("codecs that are not known")
    for codec in given:
        if not isinstance(codec, dict):
            raise MalformedError(f"codec {codec!r:.40}")
        settings = codec.get("configuration", {})
        if codec["name"] not in CODECS or not isinstance(settings, dict):
            raise MalformedError(f"codec {codec['name']!r:.40}")
        if codec["name"] == "sharding_indexed":
            _sizes(settings["chunk_shape"], outer)
            _codecs(settings["codecs"], settings["chunk_shape"], depth + 1)
            _codecs(settings["index_codecs"], settings["chunk_shape"], depth + 1)
