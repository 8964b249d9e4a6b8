"""safetensors, npz and npy: values, parts, rows and how many bytes are read; and all ways in which they are damaged."""

import gzip
import struct
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tcircuits.files import storage as storages
from tcircuits.files.opening import open_tensors
from tcircuits.files.tensor_file import Header
from tcircuits.types import InputError
from tests.files.crafted import archive, npy, read_all, safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "f4": RNG.normal(size=(40, 7)).astype(np.float32), "f8": RNG.normal(size=(3, 4, 5)), "one": np.array(2.5),
    "f2": RNG.normal(size=9).astype(np.float16), "i8": np.arange(12).reshape(4, 3), "none": np.zeros((0, 5), np.int32),
    "flags": np.array([True, False, True]), "u2": np.arange(5, dtype=np.uint16), "c8": np.array([1 + 2j], np.complex64),
}  # fmt: skip
NUMPY_ONLY = {
    "fortran": np.asfortranarray(ARRAYS["f4"]), "big": ARRAYS["f8"].astype(">f8"),
    "fortran3": np.asfortranarray(ARRAYS["f8"]),
}  # fmt: skip


@pytest.fixture(params=["safetensors", "stored", "deflated", "stored-64", "gzip", "npy"])
def written(request, tmp_path):
    """One file (or, of npy, several), and what it holds."""
    arrays = ARRAYS | (NUMPY_ONLY if request.param not in ("safetensors", "gzip") else {})
    if request.param in ("safetensors", "gzip"):
        arrays["bf"] = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
        save_file(arrays, tmp_path / "a.safetensors", metadata={"k": "v"})
        if request.param == "gzip":
            (tmp_path / "a.gz").write_bytes(gzip.compress((tmp_path / "a.safetensors").read_bytes()))
            return tmp_path / "a.gz", arrays
        return tmp_path / "a.safetensors", arrays
    path = tmp_path / "a.npz"
    match request.param:
        case "stored":
            np.savez(path, **arrays)
        case "deflated":
            np.savez_compressed(path, **arrays)
        case "stored-64":
            with zipfile.ZipFile(path, "w") as file:
                for name, x in arrays.items():
                    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, x, (2, 0))
        case "npy":
            np.save(tmp_path / "a.npy", ARRAYS["f8"])
            return tmp_path / "a.npy", {"": ARRAYS["f8"]}
    return path, arrays


def test_values_parts_and_rows(written):
    path, arrays = written
    file, rng = open_tensors(path), np.random.default_rng(1)
    assert file.path == path
    assert file.headers.keys() == arrays.keys()
    for name, right in arrays.items():
        found = file.read(name, None)
        assert found.dtype == right.dtype.newbyteorder("=")
        assert file.headers[name].shape == right.shape
        np.testing.assert_array_equal(found, right)
        for _ in range(10):
            part = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in right.shape)
            np.testing.assert_array_equal(file.read(name, part), right[part])
            if right.ndim:
                rows = np.flatnonzero(rng.random(len(right)) < rng.random())
                np.testing.assert_array_equal(file.read_rows(name, rows), right[rows])


def test_one_long_text_takes_no_more_than_three_times_its_bytes(tmp_path):
    for raw in ("a" * (1 << 20), b"a" * (1 << 22)):
        np.savez_compressed(tmp_path / "a.npz", text=np.array(raw))
        tracemalloc.start()
        about = open_tensors(tmp_path / "a.npz").about
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert about == {"text": raw if isinstance(raw, str) else raw.decode()}
        assert peak < 3 * (4 << 20) + (3 << 20)  # and what the decoder holds


def test_texts_and_metadata_are_beside_the_tensors(tmp_path):
    np.savez(
        tmp_path / "a.npz", w=np.ones(2), text=np.array("a \u00fc"), texts=np.array([["a", "bc"]]), raw=np.array(b"xy")
    )
    file = open_tensors(tmp_path / "a.npz")
    assert file.about == {"text": "a \u00fc", "texts": [["a", "bc"]], "raw": "xy"}
    assert file.headers == {"w": Header((2,), "F64")}
    save_file({"w": np.ones(2)}, tmp_path / "b.safetensors", metadata={"k": "v"})
    assert open_tensors(tmp_path / "b.safetensors").about == {"__metadata__": {"k": "v"}}
    (tmp_path / "c.npy").write_bytes(npy(np.array(["\u00fc", "b"], ">U1")))
    assert open_tensors(tmp_path / "c.npy").about == {"": ["\u00fc", "b"]}


@pytest.fixture
def counted(monkeypatch):
    """Bytes that are asked of files."""
    total = [0]
    real = storages.of_file

    def of_file(path):
        whole = real(path)

        def opened():
            context = whole.open()

            class Counting:
                def __enter__(self):
                    fetch = context.__enter__()

                    def counting(at, buffer):
                        total[0] += len(buffer)
                        fetch(at, buffer)

                    return counting

                def __exit__(self, *error):
                    return context.__exit__(*error)

            return Counting()

        return storages.Storage(whole.size, opened)

    monkeypatch.setattr("tcircuits.files.opening.of_file", of_file)
    return total


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_only_the_bytes_that_are_needed_are_read(kind, counted, tmp_path):
    rows, width = 3000, 2048  # rows of 8 KiB
    w = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    path, name = tmp_path / f"a.{kind}", "" if kind == "npy" else "w"
    match kind:
        case "safetensors":
            save_file({"w": w, "other": w}, path)
        case "npz":
            np.savez(path, w=w, other=w)
        case "npy":
            np.save(path, w)
    file = open_tensors(path)
    assert counted[0] < 80_000  # of an archive, the end
    counted[0], wanted = 0, np.array([0, 5, 6, 7, 1000, 2999])
    np.testing.assert_array_equal(file.read_rows(name, wanted), w[wanted])
    assert counted[0] == 6 * 4 * width
    counted[0] = 0
    np.testing.assert_array_equal(file.read(name, (slice(10, 14), slice(None))), w[10:14])
    assert counted[0] == 4 * 4 * width
    counted[0] = 0  # columns: a stretch of every row, the gap is more than a page
    np.testing.assert_array_equal(file.read(name, (slice(None), slice(4, 20))), w[:, 4:20])
    assert counted[0] == rows * 4 * 16
    counted[0] = 0  # gaps shorter than a page are read over
    np.testing.assert_array_equal(file.read(name, (slice(0, 100), slice(0, 1200))), w[:100, :1200])
    assert counted[0] <= 100 * 4 * width


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [-1], [40], [[1]], [0.5]])
def test_rows_must_ascend_inside(rows, tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS["f4"])
    with pytest.raises(InputError):
        open_tensors(tmp_path / "a.npy").read_rows("", np.array(rows))


@pytest.mark.parametrize("part", [(slice(None),), (slice(0, 4, 2), slice(None)), (slice(None),) * 3])
def test_a_part_is_one_slice_of_step_1_an_axis(part, tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS["f4"])
    file = open_tensors(tmp_path / "a.npy")
    with pytest.raises(InputError, match="one slice of step 1"):
        file.read("", part)
    with pytest.raises(InputError, match=r"a\.npy has no tensor 'x'"):
        file.read("x", None)


def test_a_file_that_changes_while_it_is_open(tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS["f4"])
    file = open_tensors(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    with pytest.raises(InputError, match="became shorter"):
        file.read("", None)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        file.read("", None)


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
ONES = np.ones((2, 2), np.float32)
BIG = 2**62
BAD_SAFETENSORS = {
    "cut off": (safetensors({"a": ENTRY}, bytes(15)), "asked for|end at byte"),
    "too long": (safetensors({"a": ENTRY}, bytes(17)), "end at byte 16 of 17"),
    "header beyond the file": (safetensors({"a": ENTRY}, bytes(16), length=200), "declares"),
    "header length of all ones": (b"\xff" * 8 + b"{}", "begins with"),
    "shape does not fit": (safetensors({"a": ENTRY | {"shape": [2, 3]}}, bytes(16)), "does not have bytes"),
    "huge shape": (safetensors({"a": ENTRY | {"shape": [BIG, BIG]}}, bytes(16)), "declares the shape"),
    "negative shape": (safetensors({"a": ENTRY | {"shape": [-2, -2]}}, bytes(16)), "declares the shape"),
    "shape of zeros": (safetensors({"a": ENTRY | {"shape": [0, 2**62]}}, bytes(16)), "declares the shape"),
    "shape of floats": (safetensors({"a": ENTRY | {"shape": [2.0, 2]}}, bytes(16)), "declares the shape"),
    "shape is a text": (safetensors({"a": ENTRY | {"shape": "22"}}, bytes(16)), "no place or shape"),
    "unknown type": (safetensors({"a": ENTRY | {"dtype": "F33"}}, bytes(16)), "type 'F33'"),
    "type is a list": (safetensors({"a": ENTRY | {"dtype": []}}, bytes(16)), "type"),
    "places turn back": (safetensors({"a": ENTRY | {"data_offsets": [16, 0]}}, bytes(16)), "does not have bytes"),
    "places are texts": (safetensors({"a": ENTRY | {"data_offsets": ["0", "16"]}}, bytes(16)), "no place"),
    "place is negative": (safetensors({"a": ENTRY | {"data_offsets": [-16, 0]}}, bytes(16)), "no place"),
    "overlap": (safetensors({"a": ENTRY, "b": ENTRY}, bytes(16)), "overlap"),
    "gap": (safetensors({"a": ENTRY, "b": ENTRY | {"data_offsets": [20, 36]}}, bytes(36)), "gaps at byte 16"),
    "more fields": (safetensors({"a": ENTRY | {"x": 1}}, bytes(16)), "something else"),
    "no object": (safetensors({"a": 3}, bytes(16)), "something else"),
    "name twice": (safetensors(b'{"a":{},"a":{}}'), "twice"),
    "metadata are numbers": (safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "long name": (safetensors({"a" * 2000: ENTRY}, bytes(16)), "2000 letters"),
    "no JSON": (safetensors(b"{]"), "no JSON"),
    "no UTF-8": (safetensors(b'{"\xff\xfe":1}'), "no JSON"),
    "nested": (safetensors(b'{"a":' * 100_000), "nested|more values"),
    "nested, closed": (safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested|values"),
    "many values": (safetensors(b'{"a":[' + b"[]," * 3_000_000 + b"[]]}"), "more values"),
    "huge integer": (safetensors(b'{"a":' + b"1" * 5000 + b"}"), "no JSON"),
}  # fmt: skip


def said(kind: str, shape: str) -> bytes:
    """An array of 16 bytes with a type and shape as a header writes them."""
    return npy(ONES, header=f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}")


BAD_NPY = {
    "objects": (said("'|O'", "(2, 2)"), "Python objects"),
    "records": (said("[('a', '<f4')]", "(4,)"), "records"),
    "void": (said("'|V4'", "(4,)"), "cannot name"),
    "dates": (said("'<M8'", "(2,)"), "not read"),
    "long doubles": (said("'<f16'", "(1,)"), "not read"),
    "code": (said("exit(3)", "(2, 2)"), "damaged"),
    "huge": (said("'<f4'", f"({BIG}, 9)"), "declares the shape"),
    "product wraps": (said("'<f4'", f"({2**62}, 4)"), "shape"),
    "more than there is": (said("'<f4'", "(5,)"), "it holds 16"),
    "less than there is": (said("'<f4'", "(3,)"), "it holds 16"),
    "key missing": (npy(ONES, header="{'descr': '<f4', 'shape': (4,), }"), "damaged"),
    "spaces": (npy(ONES, header="{" + " " * 60_000), "damaged"),
    "digits": (npy(ONES, header="{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 60_000), "damaged"),
    "version": (npy(ONES, version=(9, 0)), "version"),
    "long header": (npy(ONES, version=(2, 0))[:8] + b"\xff\xff\xff\x7f" + bytes(100), "declares"),
    "cut off": (npy(ONES)[:30], "cut off"),
    "long texts": (npy(np.array(["a" * 300_000])), "texts"),
    "too long a text": (npy(np.array("a" * (1 << 24) + "a")), "texts"),
    "no text": (npy(np.array([2**31 - 1], np.uint32)).replace(b"<u4", b"<U1"), "damaged"),
    "endless empty texts": (said("'<U1'", "(999999999, 0)"), "texts"),
}  # fmt: skip
A, B = ("a.npy", npy(ONES)), ("b.npy", npy(ONES))
N = len(A[1])
HALF = zlib.crc32(A[1]) ^ 1
BAD_ZIP = {
    "twice": (archive([A, A]), "stands twice"),
    "absolute": (archive([("/a.npy", A[1])]), "no plain relative path"),
    "upwards": (archive([("../a.npy", A[1])]), "no plain relative path"),
    "backslash": (archive([("x\\a.npy", A[1])]), "no plain relative path"),
    "drive": (archive([("c:a.npy", A[1])]), "no plain relative path"),
    "no name": (archive([("", A[1])]), "no plain relative path"),
    "encrypted": (archive([A], changes={0: {"flags": 1}}), "encrypted"),
    "method": (archive([A], method=12), "not read"),
    "method differs": (archive([A], changes={0: {"method": 8}}), "not where"),
    "name differs": (archive([A], changes={0: {"name": b"b.npy"}}), "another name"),
    "name is no text": (archive([A], changes={0: {"name": b"\xff.npy"}}), "no text"),
    "size differs": (archive([A], changes={0: {"size": N - 1}}), "damaged"),
    "place": (archive([A, B], changes={1: {"start": 0}}), "another name"),
    "place outside": (archive([A], changes={0: {"start": 2**31}}), "cut off"),
    "overlap": (archive([A, B], changes={0: {"packed": N + 9, "size": N + 9}}), "overlaps"),
    "beyond": (archive([A], changes={0: {"packed": 2**31, "size": 2**31}}), "overlaps|bytes"),
    "checksum": (archive([A], changes={0: {"crc": HALF}}), "checksum"),
    "checksum, deflated": (archive([A], method=8, changes={0: {"crc": HALF}}), "checksum"),
    "longer than declared": (archive([A], method=8, changes={0: {"size": N - 4}}), "holds 12"),
    "shorter than declared": (archive([A], method=8, changes={0: {"size": N + 4}}), "holds 20"),
    "no stream": (archive([A], method=8).replace(A[0].encode() + b"\x9b", A[0].encode() + b"\xff"), "deflate stream"),
    "too few members": (archive([A, B], end={"count": 1}), "longer than it declares"),
    "too many members": (archive([A], end={"count": 2}), "cut off"),
    "many members": (archive([A], end={"count": 65535}), "cut off"),
    "list elsewhere": (archive([A], end={"start": 0}), "not where its end says"),
    "list too long": (archive([A], end={"size": 2**32 - 1}), "not where|cut off|up to"),
    "other disks": (archive([A], end={"disk": 1}), "damaged"),
    "comment": (archive([A], end={"comment": 5}), "damaged"),
    "cut off": (archive([A])[:-10], "no list of members"),
    "something before": (archive([A], prefix=b"PK\3\4 and more"), None),
    "nothing in it": (b"PK\5\6" + bytes(18), "empty zip"),
    "no arrays": (archive([("a.txt", b"x")]), "neither"),
    "an array that is none": (archive([("a.npy", b"x")]), "member 'a.npy'"),
    "two pickles": (archive([("a/data.pkl", b"\x80\2N."), ("b/data.pkl", b"\x80\2N.")]), "2 files data.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_damaged_safetensors(name, tmp_path):
    refused(tmp_path / "a.safetensors", *BAD_SAFETENSORS[name])


@pytest.mark.parametrize("name", BAD_NPY)
def test_damaged_arrays(name, tmp_path):
    data, message = BAD_NPY[name]
    refused(tmp_path / "a.npy", data, message)
    refused(tmp_path / "a.npz", archive([("w.npy", data)]), message)


@pytest.mark.parametrize("name", BAD_ZIP)
def test_damaged_archives(name, tmp_path):
    refused(tmp_path / "a.npz", *BAD_ZIP[name])


def refused(path, data, message):
    """Opening and reading everything is refused in one line that names the file; or, without a message, works."""
    path.write_bytes(data)
    if message is None:
        read_all(path)
        return
    with pytest.raises(InputError, match=message) as error:
        read_all(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_other_files_are_told_apart(tmp_path):
    for data, message in (
        (b"", "empty"), (b"GGUF\3\0\0\0", "load_model"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs"),
        (b"<!DOCTYPE html>", "page of the web"), (b"hello", "begins with b'hello'"), (b"(lp0\n.", "begins with"),
    ):  # fmt: skip
        refused(tmp_path / "a.pt", data, message)
    with pytest.raises(InputError, match="no such file"):
        open_tensors(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="no file"):
        open_tensors(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read|no such file"):
        open_tensors("a\0b")


def deflated_zeros(n, wbits):
    stream, chunk = zlib.compressobj(9, wbits=wbits), bytes(1 << 20)
    return b"".join(stream.compress(chunk) for _ in range(n >> 20)) + stream.flush()


def test_bombs_need_an_option(tmp_path):
    n = 192 << 20
    head = npy(np.zeros(0), header=f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n},), }}")
    path = tmp_path / "a.npz"
    path.write_bytes(archive([("w.npy", head + bytes(n))], method=8))
    with pytest.raises(InputError, match="max_decoded="):
        open_tensors(path, max_decoded=n)
    assert not open_tensors(path, max_decoded=n + 1000).read("w", (slice(n - 5, n),)).any()
    path.write_bytes(archive([(f"{i}.npy", head + bytes(n)) for i in range(3)], method=8))
    with pytest.raises(InputError, match="max_decoded="):  # the sum over members counts
        open_tensors(path, max_decoded=2 * n)
    path = tmp_path / "a.gz"
    path.write_bytes(deflated_zeros(n, 31))
    with pytest.raises(InputError, match="begins with"):
        open_tensors(path)
    path.write_bytes(gzip.compress(head[:20], mtime=0) + deflated_zeros(n, 31))
    with pytest.raises(InputError, match="max_decoded="):
        open_tensors(path, max_decoded=n)


@pytest.mark.parametrize("change", ["cut", "tail", "checksum", "garbage"])
def test_damaged_gzip(change, tmp_path):
    data = gzip.compress(npy(RNG.normal(size=5000)), mtime=0)
    flipped = bytearray(data)
    flipped[-6] ^= 1
    damaged = {"cut": data[:-3], "tail": data + b"x", "checksum": bytes(flipped), "garbage": data[:20] + b"\xff" * 99}
    refused(tmp_path / "a.npy.gz", damaged[change], "gzip")


def test_gzip_of_gzip_is_refused_and_padding_allowed(tmp_path):
    data = gzip.compress(npy(ONES), mtime=0)
    refused(tmp_path / "a.gz", gzip.compress(data, mtime=0), "begins with")
    (tmp_path / "a.gz").write_bytes(data + bytes(600))
    np.testing.assert_array_equal(read_all(tmp_path / "a.gz")[""], ONES)
    half = npy(RNG.normal(size=70_000))
    (tmp_path / "b.gz").write_bytes(gzip.compress(half[:1000], mtime=0) + gzip.compress(half[1000:], mtime=0))
    assert read_all(tmp_path / "b.gz")[""].tobytes() == half[-560_000:]


def test_flags_of_other_bytes_than_0_and_1_are_true(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(np.array([0, 1, 2, 255], np.uint8)).replace(b"|u1", b"|b1"))
    found = read_all(tmp_path / "a.npy")[""]
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_64_bit_sizes_of_archives(tmp_path):
    """A list of members with 64-bit places, as archives beyond 4 GiB have it."""
    plain = archive([A])
    at, size = plain.index(b"PK\1\2"), 46 + len(A[0])
    entry = bytearray(plain[at : at + size])
    entry[20:28], entry[42:46], entry[30:32] = b"\xff" * 8, b"\xff" * 4, struct.pack("<H", 28)
    entry += struct.pack("<2H3Q", 1, 24, N, N, 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at + len(entry), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    path = tmp_path / "a.npz"
    path.write_bytes(plain[:at] + entry + record + locator + end)
    np.testing.assert_array_equal(read_all(path)["a"], ONES)
    for place, value in ((at + 46 + len(A[0]) + 4, 2**62), (at + len(entry) + 48, 0)):
        data = bytearray(path.read_bytes())
        data[place : place + 8] = struct.pack("<Q", value)
        refused(tmp_path / "b.npz", bytes(data), "zip|member")
