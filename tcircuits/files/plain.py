"""What a pickle holds, parted: tensors by name, and everything else as plain values.

A tensor's name is the path to it: keys and indices, joined by dots. So a state dict's tensors have their own names, and
those of {"state_dict": ...} begin with "state_dict.". A tensor that is all there is has the name "".
"""

import math
from typing import Any

import numpy as np

from tcircuits.files.limits import MAX_DEPTH, Budget
from tcircuits.files.pickle_machine import Global, Raw
from tcircuits.files.pickles import NUMPY_DTYPES, Instance, NumpyArray, NumpyType, Stored, Tensor
from tcircuits.files.storage import MalformedError
from tcircuits.files.strided import Strided, check_shape, placed, read, row_major

RECORD, VALUE, SMALL = 1000, 120, 4096  # bytes: of a tensor's entry, of a value; the longest byte string kept
MAX_NAME = 1000
_LEFT_OUT = object()


def parted(value: Any, budget: Budget, max_decoded: int | None) -> tuple[dict[str, Strided], Any]:
    """Tensors by name, and the other values: dicts, lists, numbers, texts; objects as dicts with their "__class__".

    Raises:
        MalformedError: values nested too deeply or too many, tensors that do not fit their storages or share a name.
    """
    walk = _Walk(budget, max_decoded)
    about = walk.plain(value, (), 0)
    return walk.tensors, {} if about is _LEFT_OUT else about


class _Walk:
    """One pass over a tree; values that stand in it several times are visited as often, so it is bounded."""

    def __init__(self, budget: Budget, max_decoded: int | None) -> None:
        self.budget, self.max_decoded = budget, max_decoded
        self.tensors: dict[str, Strided] = {}

    def plain(self, value: Any, path: tuple[Any, ...], depth: int) -> Any:
        """A value without tensors."""
        self.budget.spend(VALUE + (2 * len(value) if type(value) is str else 0))
        if depth > MAX_DEPTH:
            raise MalformedError(f"its values are nested more than {MAX_DEPTH} deep")
        match value:
            case Tensor() | NumpyArray():
                return self.array(value, path)
            case dict():
                return self.fields(value, path, depth)
            case list() | tuple() | set() | frozenset():
                items = [self.plain(x, (*path, i), depth + 1) for i, x in enumerate(value)]
                return [None if x is _LEFT_OUT else x for x in items]
            case Instance():
                more = {"__args__": value.arguments} if value.arguments else {}
                return {"__class__": str(value.cls)} | self.fields(value.state | more, path, depth)
            case complex():
                return [value.real, value.imag]
            case Raw():
                return value.read(SMALL).decode("latin-1") if value.storage.size <= SMALL else str(value.storage.size)
            case Global():
                return str(value)
            case NumpyType():
                return value.code
            case Stored():
                raise MalformedError("it holds a bare storage; tensors are read")
            case int() if not -(2**63) <= value < 2**64:
                raise MalformedError("it holds an integer of more than 64 bits")
        return value

    def fields(self, values: dict[Any, Any], path: tuple[Any, ...], depth: int) -> dict[Any, Any]:
        """The fields that are no tensors."""
        keys = {k: str(k) if isinstance(k, tuple | Global) else k for k in values}
        found = {keys[k]: self.plain(x, (*path, k), depth + 1) for k, x in values.items()}
        return {k: x for k, x in found.items() if x is not _LEFT_OUT}

    def array(self, value: Tensor | NumpyArray, path: tuple[Any, ...]) -> Any:
        """Notes a tensor under its name; a NumPy scalar is a number instead."""
        name = ".".join(map(str, path))
        self.budget.spend(RECORD + 2 * len(name))
        try:
            t = _numpy(value) if isinstance(value, NumpyArray) else _torch(value, self.max_decoded)
        except MalformedError as error:
            raise MalformedError(f"{name!r:.80}: {error}") from error
        if isinstance(value, NumpyArray) and not t.shape:
            number = read(t).item()
            return [number.real, number.imag] if isinstance(number, complex) else number
        if name in self.tensors or len(name) > MAX_NAME:
            raise MalformedError(f"two tensors have the name {name!r:.80}, or it is too long")
        self.tensors[name] = t
        return _LEFT_OUT


def _torch(t: Tensor, max_decoded: int | None) -> Strided:
    return placed(
        t.stored.bytes(), t.dtype, t.shape, t.strides, t.offset,
        swapped=t.stored.swapped, max_decoded=max_decoded,
    )  # fmt: skip


def _numpy(array: NumpyArray) -> Strided:
    if array.dtype is None or array.data is None:
        raise MalformedError("a NumPy array has no numbers")
    dtype = NUMPY_DTYPES[array.dtype.code]
    size = check_shape(array.shape, np.dtype(array.dtype.code).itemsize)
    if size != array.data.size:
        raise MalformedError(f"a NumPy array of {math.prod(array.shape)} values has {array.data.size} bytes")
    strides = row_major(array.shape[::-1])[::-1] if array.fortran else None
    return placed(array.data, dtype, array.shape, strides, swapped=array.dtype.order == ">")
