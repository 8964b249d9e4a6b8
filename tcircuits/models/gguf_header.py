"""The header of a GGUF file: metadata and the list of tensors, read without touching the weights.

The layout is little-endian: magic, version, number of tensors, number of metadata pairs; the pairs (key, type, value);
for each tensor its name, dimensions (fastest first), type and offset; then, aligned, the data. One pass over a buffer
is an order of magnitude faster than the package's general reader where a vocabulary is in the file, and a file that was
cut off is found out by comparing every tensor's end with its size.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import MEMORY, Budget
from tcircuits.files.storage import MalformedError
from tcircuits.types import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBER, TEXT, ENTRY = 40, 80, 800  # bytes of memory that a number in a list, a text, an entry of the header may take
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape (slowest axis first), number of the quantisation type, and where the data begin in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


class _Cursor:
    """A place in the buffer that moves as values are read."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.budget = Budget(MEMORY + 2 * len(data))

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        n = self.scalar("<Q")
        if n > len(self.data) - self.at:
            raise ValueError(f"a text of {n} bytes does not fit")
        self.budget.spend(TEXT + 5 * n)
        value = str(self.data[self.at : self.at + n], "utf-8")
        self.at += n
        return value

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        kind, n = self.scalar("<I"), self.scalar("<Q")
        if n > len(self.data) - self.at:
            raise ValueError(f"an array of {n} values does not fit")
        if kind == STRING:
            return [self.text() for _ in range(n)]
        if kind not in SCALARS:
            raise ValueError(f"an array of values of type {kind}")
        self.budget.spend(NUMBER * n)
        values = np.frombuffer(self.data, SCALARS[kind], n, self.at)
        self.at += values.nbytes
        return values.tolist()


def _tensors(cursor: _Cursor, n: int) -> list[TensorInfo]:
    infos = []
    for _ in range(n):
        cursor.budget.spend(ENTRY)
        name, rank = cursor.text(), cursor.scalar("<I")
        if rank > 8:
            raise ValueError(f"tensor {name} has {rank} dimensions")
        shape = tuple(cursor.scalar("<Q") for _ in range(rank))[::-1]
        infos.append(TensorInfo(name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
    return infos


def read_header(path: Path, n_bytes: Callable[[TensorInfo], int]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Metadata by key, and tensors by name.

    Args:
        path: the file.
        n_bytes: how many bytes a tensor takes in the file.

    Raises:
        InputError: not a GGUF file, another version, or a file that is damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            cursor = _Cursor(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        if bytes(cursor.data[:4]) != MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        cursor.at = 4
        version = cursor.scalar("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}; versions {VERSIONS} (little-endian) are read")
        n_tensors, n_fields = cursor.scalar("<Q"), cursor.scalar("<Q")
        fields = {}
        for _ in range(n_fields):
            cursor.budget.spend(ENTRY)
            key = cursor.text()
            fields[key] = cursor.value(cursor.scalar("<I"))
        infos = _tensors(cursor, n_tensors)
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment is {alignment!s:.40}")
        data = -(-cursor.at // alignment) * alignment
        placed = {t.name: TensorInfo(t.name, t.shape, t.kind, data + t.start) for t in infos}
        short = [t.name for t in placed.values() if t.start + n_bytes(t) > len(cursor.data)]
        if short:
            raise ValueError(f"it ends before the end of {len(short)} tensors, first {short[0]}")
    except (OSError, ValueError, KeyError, struct.error, MalformedError) as error:
        raise InputError(f"{path} is no complete GGUF file (cut off or damaged): {error!s:.300}") from error
    return fields, placed
