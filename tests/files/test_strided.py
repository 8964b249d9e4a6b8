"""Views of a storage, against NumPy's own views: every stride, offset and part, from a file and from a stream."""

import zlib

import numpy as np
import pytest

from tcircuits.files import storage as storages
from tcircuits.files.storage import MalformedError
from tcircuits.files.strided import placed, read, read_rows

KINDS = {"F32": "<f4", "F64": "<f8", "I16": "<i2", "U8": "u1"}


def packed_storage(data):
    stream = zlib.compressobj(wbits=-15)
    packed = stream.compress(data) + stream.flush()
    return storages.inflated(storages.of_bytes(packed), len(data), zlib.crc32(data), "it")


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_random_views(kind, seed, monkeypatch):
    monkeypatch.setattr("tcircuits.files.strided.BUFFER", 600)  # so that small views take all ways
    monkeypatch.setattr("tcircuits.files.strided.PAGE", 40)
    rng = np.random.default_rng(seed)
    name = list(KINDS)[seed % 4]
    base = rng.integers(0, 200, 3000).astype(KINDS[name])
    data = base.tobytes()
    storage = storages.of_bytes(data) if kind == "plain" else packed_storage(data)
    shape = tuple(int(n) for n in rng.integers(1, 9, rng.integers(0, 5)))
    if seed % 3:  # axes one inside the other, with gaps, in any order
        strides, inside = [], 1
        for n in shape:
            strides.append(inside + int(rng.integers(0, 4)))
            inside = strides[-1] * n
        order = rng.permutation(len(shape))
        shape, strides = tuple(shape[i] for i in order), tuple(strides[i] for i in order)
    else:  # repeated and overlapping axes
        strides = tuple(int(s) for s in rng.integers(0, 30, len(shape)))
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if extent > len(base):
        shape = shape[:1]
        strides, extent = (1,) * len(shape), shape[0] if shape else 1
    offset = int(rng.integers(0, len(base) - extent + 1))
    item = base.itemsize
    right = np.lib.stride_tricks.as_strided(base[offset:], shape, [s * item for s in strides])
    t = placed(storage, name, shape, strides, offset)
    np.testing.assert_array_equal(read(t), right)
    for _ in range(5):
        part = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in shape)
        np.testing.assert_array_equal(read(t, part), right[part])
        if shape:
            rows = np.flatnonzero(rng.random(shape[0]) < 0.5)
            np.testing.assert_array_equal(read_rows(t, rows), right[rows])


def test_overlapping_rows_that_lie_far_apart_are_refused():
    """Bytes from the first to the last value would be many times those of the tensor."""
    t = placed(storages.of_bytes(bytes(40 << 20)), "U8", (2, 2, 2), (20 << 20, 1, 1), 0)
    with pytest.raises(MalformedError, match="overlap"):
        read(t)


def test_chunks_are_seamless():
    data = np.random.default_rng(0).integers(0, 256, 3 * storages.CHUNK + 17, np.uint8)
    t = placed(storages.of_bytes(data.tobytes()), "U8", data.shape)
    np.testing.assert_array_equal(read(t), data)
    part = (slice(storages.CHUNK - 5, 2 * storages.CHUNK + 5),)
    np.testing.assert_array_equal(read(t, part), data[part])


def test_sizes_that_are_nested_without_end_are_told_in_a_word():
    """Written out, this has 2**80 brackets: pickles can make it of 160 bytes."""
    nested = ()
    for _ in range(80):
        nested = (nested, nested)
    storage = storages.of_bytes(bytes(8))
    for shape, strides, offset in (((nested,), None, 0), ((1,), (nested,), 0), ((1,), (1,), nested)):
        with pytest.raises(MalformedError, match=r"large or wrong tuple|offset|shape") as found:
            placed(storage, "U8", shape, strides, offset)
        assert len(str(found.value)) < 300
