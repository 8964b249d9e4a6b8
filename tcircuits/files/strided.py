"""Tensors as they lie in a storage: dtype, offset and strides, checked once, read in whole, in part or by rows.

Only the bytes that are needed are read, in ascending order. Stretches that are not needed are read over where they are
shorter than a page, which the machine would read anyway.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tcircuits.files.storage import Fetch, MalformedError, Storage, check_decoded
from tcircuits.files.tensor_file import Header, Part, TensorFile
from tcircuits.types import InputError

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype(bool),
}  # fmt: skip
PAGE, BUFFER, OVERLAP, MAX_RANK, MAX_BYTES = 4096, 4 << 20, 4 << 20, 32, 1 << 60


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor in a storage; offset and strides count bytes. Make it with `placed`, which checks that it fits."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    swapped: bool = False  # the bytes of a value stand in big-endian order

    @property
    def item(self) -> int:
        """Bytes of one value."""
        return DTYPES[self.dtype].itemsize


def _extent(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> int:
    """Bytes from the first value's beginning to the last value's end."""
    return item + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in values, of an array whose last axis runs fastest."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def check_shape(shape: tuple[Any, ...], item: int) -> int:
    """Bytes of an array of this shape.

    Raises:
        MalformedError: sizes that are no whole numbers from 0 on, too many axes, or more bytes than any machine has.
    """
    if len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in shape):
        raise MalformedError(f"a tensor declares the shape {_short(shape)}")
    if math.prod(max(n, 1) for n in shape) * item > MAX_BYTES:
        raise MalformedError(f"a tensor declares the shape {_short(shape)}, more than any file holds")
    return math.prod(shape) * item


def placed(
    storage: Storage,
    dtype: str,
    shape: tuple[Any, ...],
    strides: tuple[Any, ...] | None = None,
    offset: Any = 0,
    *,
    swapped: bool = False,
    max_decoded: int | None = None,
) -> Strided:
    """A tensor whose offset and strides (None: row-major) count values, checked against the storage's bytes.

    Raises:
        MalformedError: it does not lie within the storage, or unfolds to much more than that holds.
    """
    item = DTYPES[dtype].itemsize
    size = check_shape(shape, item)
    strides = row_major(shape) if strides is None else strides
    whole = all(type(n) is int and 0 <= n <= MAX_BYTES for n in (*strides, offset))
    if not whole or len(strides) != len(shape):
        raise MalformedError(
            f"a tensor of shape {_short(shape)} declares offset {_short(offset)}, strides {_short(strides)}"
        )
    if swapped and dtype == "C64":
        raise MalformedError("it holds complex numbers in big-endian order, which are not read")
    in_bytes = tuple(s * item for s in strides)
    end = offset * item + (_extent(shape, in_bytes, item) if size else 0)
    if end > storage.size:
        raise MalformedError(
            f"a tensor of shape {_short(shape)} and type {dtype} ends at byte {end} of a storage of {storage.size}"
        )
    if size > storage.size:  # strides of 0 or overlapping rows
        check_decoded(size, storage.size, max_decoded)
    return Strided(storage, dtype, tuple(shape), in_bytes, offset * item, swapped)


def _short(x: Any) -> str:
    """Sizes for a message. Only whole numbers are written out: other values may be nested without end."""
    if not isinstance(x, tuple | list):
        return _size(x)
    return f"({', '.join(map(_size, x))})" if len(x) <= 8 else f"of {len(x)} axes"


def _size(n: Any) -> str:
    return str(n) if type(n) is int and abs(n) <= MAX_BYTES else f"a large or wrong {type(n).__name__}"


def narrowed(t: Strided, part: Part | None) -> Strided:
    """The part of a tensor that slices name.

    Raises:
        InputError: not one slice of step 1 an axis.
    """
    if part is None:
        return t
    if len(part) != len(t.shape) or any(s.step not in (None, 1) for s in part):
        raise InputError(f"{part} must be one slice of step 1 for each axis of {t.shape}")
    ranges = [range(*s.indices(n)) for s, n in zip(part, t.shape, strict=True)]
    offset = t.offset + sum(r.start * s for r, s in zip(ranges, t.strides, strict=True) if len(r))
    return replace(t, shape=tuple(map(len, ranges)), offset=offset)


def read(t: Strided, part: Part | None = None) -> np.ndarray:
    """The tensor, or the part of it that slices name."""
    with t.storage.open() as fetch:
        return _finished(_gathered(fetch, narrowed(t, part)), t)


def read_rows(t: Strided, rows: np.ndarray) -> np.ndarray:
    """Rows of a tensor, by ascending indices of its first axis.

    Raises:
        InputError: indices that do not ascend or are outside the tensor.
    """
    rows = np.asarray(rows)
    if not t.shape or rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise InputError(f"rows of a tensor of shape {t.shape} are asked for by an array of shape {rows.shape}")
    if len(rows) and (rows[0] < 0 or rows[-1] >= t.shape[0] or (rows[1:] <= rows[:-1]).any()):
        raise InputError(f"rows must ascend within 0..{t.shape[0] - 1}")
    out = np.empty((len(rows), *t.shape[1:]), _raw(t))
    with t.storage.open() as fetch:
        for lo, hi in _groups(rows, t):
            first = int(rows[lo])
            near = replace(
                t, shape=(int(rows[hi - 1]) - first + 1, *t.shape[1:]), offset=t.offset + first * t.strides[0]
            )
            if near.shape[0] == hi - lo and _dense(near.shape, near.strides, t.item):
                _fetch(fetch, near.offset, out[lo:hi])
            else:
                out[lo:hi] = _gathered(fetch, near)[rows[lo:hi] - first]
    return _finished(out, t)


def _groups(rows: np.ndarray, t: Strided) -> list[tuple[int, int]]:
    """Stretches of `rows` to read at once: neighbours with less than a page between them, one if rows interlock."""
    if not len(rows) or 0 in t.shape:
        return []
    row, stride = _extent(t.shape[1:], t.strides[1:], t.item), t.strides[0]
    if stride < row:
        return [(0, len(rows))]
    steps = np.diff(rows.astype(np.int64))
    near = (steps == 1) | (steps * stride - row < (PAGE if row < PAGE else 1))
    cuts = [0, *(np.flatnonzero(~near) + 1).tolist(), len(rows)]
    groups = []
    for lo, hi in pairwise(cuts):
        whole = int(rows[hi - 1] - rows[lo]) + 1 == hi - lo
        step = hi - lo if whole else max(1, BUFFER // (PAGE + 2 * stride))
        groups += [(i, min(i + step, hi)) for i in range(lo, hi, step)]
    return groups


def _raw(t: Strided) -> np.dtype:
    return np.dtype(f"u{t.item}")


def _finished(raw: np.ndarray, t: Strided) -> np.ndarray:
    """Raw values in the tensor's dtype and this machine's byte order, contiguous."""
    if not (raw.flags.c_contiguous and raw.flags.writeable):
        raw = np.array(raw, order="C")
    if t.swapped and t.item > 1:
        raw.byteswap(inplace=True)
    if t.dtype == "BOOL":
        return raw != 0  # a byte other than 0 and 1 would be no valid NumPy bool
    return raw.view(DTYPES[t.dtype])


def _dense(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> bool:
    """Whether the values stand in row-major order without gaps."""
    expected = item
    for n, s in zip(shape[::-1], strides[::-1], strict=True):
        if n != 1 and s != expected:
            return False
        expected *= n
    return True


def _fetch(fetch: Fetch, at: int, out: np.ndarray) -> None:
    """Fill a contiguous array with the bytes from a place on."""
    if out.size:
        fetch(at, out.reshape(-1).view(np.uint8).data)


def _gathered(fetch: Fetch, t: Strided) -> np.ndarray:
    """Raw values of a tensor; repeated and permuted axes are views of what was read."""
    if 0 in t.shape:
        return np.empty(t.shape, _raw(t))
    kept = [i for i, (n, s) in enumerate(zip(t.shape, t.strides, strict=True)) if n != 1 and s != 0]
    order = sorted(kept, key=lambda i: -t.strides[i])
    shape, strides = tuple(t.shape[i] for i in order), tuple(t.strides[i] for i in order)
    apart = all(s >= _extent(shape[i + 1 :], strides[i + 1 :], t.item) for i, s in enumerate(strides))
    if apart:
        out = np.empty(shape, _raw(t))
        _gather(fetch, t.offset, strides, out)
    else:
        out = _overlapping(fetch, t, shape, strides)
    sizes = tuple(n if i in kept else 1 for i, n in enumerate(t.shape))
    back = out.transpose([order.index(i) for i in kept]).reshape(sizes)
    return back if sizes == t.shape else np.broadcast_to(back, t.shape)


def _overlapping(fetch: Fetch, t: Strided, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Values that share bytes, such as sliding windows: all bytes from the first to the last are read."""
    extent = _extent(shape, strides, t.item)
    if extent > max(OVERLAP, 2 * math.prod(shape) * t.item):
        raise MalformedError(f"a tensor of shape {_short(t.shape)} has rows that overlap and lie far apart")
    stretch = np.empty(extent // t.item, _raw(t))
    _fetch(fetch, t.offset, stretch)
    return np.lib.stride_tricks.as_strided(stretch, shape, strides, writeable=False)


def _gather(fetch: Fetch, at: int, strides: tuple[int, ...], out: np.ndarray) -> None:
    """Fill `out` with values whose strides descend and do not interlock."""
    shape, item = out.shape, out.itemsize
    if _dense(shape, strides, item):
        return _fetch(fetch, at, out)
    rows = [_extent(shape[i + 1 :], strides[i + 1 :], item) for i in range(len(shape))]
    near = all(s - row < PAGE for s, row in zip(strides, rows, strict=True))
    if near and rows[0] + strides[0] <= BUFFER:
        step = max(1, BUFFER // strides[0] - 1)
        for i in range(0, shape[0], step):
            some = out[i : i + step]
            stretch = np.empty(_extent(some.shape, strides, item) // item, out.dtype)
            _fetch(fetch, at + i * strides[0], stretch)
            some[...] = np.lib.stride_tricks.as_strided(stretch, some.shape, strides, writeable=False)
    else:
        for i in range(shape[0]):
            _gather(fetch, at + i * strides[0], strides[1:], out[i, ...])


def opened(path: Path, tensors: Mapping[str, Strided], about: Any) -> TensorFile:
    """The tensors of a file behind the common interface; what is found wrong while reading names the file."""

    def find(name: str) -> Strided:
        if name not in tensors:
            raise InputError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(tensors)[:20])}")
        return tensors[name]

    def safely(action: Any, name: str, *arguments: Any) -> np.ndarray:
        t = find(name)
        try:
            return action(t, *arguments)
        except MalformedError as error:
            raise InputError(f"{path}: tensor {name!r}: {error}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        except MemoryError as error:
            raise InputError(f"{path}: tensor {name!r} of shape {t.shape} does not fit into memory") from error

    return TensorFile(
        path,
        {name: Header(t.shape, t.dtype) for name, t in tensors.items()},
        lambda name, part=None: safely(read, name, part),
        lambda name, rows: safely(read_rows, name, rows),
        about,
    )
