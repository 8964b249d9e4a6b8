"""Headers of GGUF files that were made to do harm: refused in one line, before memory is taken."""

import struct
import tracemalloc

import pytest

from tcircuits.models.gguf_header import read_header
from tcircuits.types import InputError


def text(x: str) -> bytes:
    return struct.pack("<Q", len(x)) + x.encode()


def header(fields=b"", n_fields=0, tensors=b"", n_tensors=0, version=3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_fields) + fields + tensors


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def array(key: str, kind: int, n: int, data: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, n) + data


def tensor(name: str, shape=(4,), kind=0, start=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


MANY = 700_000
BAD = {
    "empty": (b"", "empty"),
    "version": (header(version=9), "version 9"),
    "fields that are not there": (header(n_fields=2**63), ""),
    "tensors that are not there": (header(n_tensors=2**63), ""),
    "endless text": (header(struct.pack("<Q", 2**63), 1), "does not fit"),
    "endless array": (header(array("a", 4, 2**62), 1), "does not fit"),
    "endless array of texts": (header(array("a", 8, 2**62), 1), "does not fit"),
    "arrays in arrays": (header(array("a", 9, 1, struct.pack("<IQ", 9, 1) * 50_000), 1), "array of values"),
    "unknown type": (header(text("a") + struct.pack("<I", 77), 1), ""),
    "many numbers": (header(array("a", 0, 4 * MANY, bytes(4 * MANY)), 1), "more values"),
    "many texts": (header(array("a", 8, MANY, text("") * MANY), 1), "more values"),
    "many tensors": (header(tensors=tensor("") * 200_000, n_tensors=200_000), "more values"),
    "rank": (header(tensors=text("a") + struct.pack("<I", 2**31), n_tensors=1), "dimensions"),
    "huge tensor": (header(tensors=tensor("a", (2**60, 2**60)), n_tensors=1) + bytes(100), "ends before the end"),
    "tensor outside": (header(tensors=tensor("a", start=2**62), n_tensors=1) + bytes(100), "ends before the end"),
    "alignment of zero": (header(number("general.alignment", 0), 1), "alignment"),
    "alignment of text": (header(text("general.alignment") + struct.pack("<I", 8) + text("x"), 1), "alignment"),
    "alignment of a half": (header(text("general.alignment") + struct.pack("<If", 6, 0.5), 1), "alignment"),
    "no text": (header(struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1), 1), "utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_headers_that_are_refused(name, tmp_path):
    data, message = BAD[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message or None) as error:
            read_header(path, lambda t: 4 * _product(t.shape))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < (64 << 20) + 3 * len(data)


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def test_a_header_is_read(tmp_path):
    fields = (
        number("n", 7)
        + array("texts", 8, 2, text("x") + text("yz"))
        + array("numbers", 5, 2, struct.pack("<2i", -1, 2))
    )
    data = header(fields, 3, tensor("w", (2, 3)), 1)
    (tmp_path / "a.gguf").write_bytes(data + bytes(-len(data) % 32) + bytes(24))
    found, tensors = read_header(tmp_path / "a.gguf", lambda t: 4 * _product(t.shape))
    assert found == {"n": 7, "texts": ["x", "yz"], "numbers": [-1, 2]}
    assert (tensors["w"].shape, tensors["w"].start) == ((3, 2), len(data) + -len(data) % 32)
