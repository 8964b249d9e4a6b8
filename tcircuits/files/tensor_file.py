"""An open file of named arrays: what is in it is known, nothing of it is read yet.

Every container (safetensors, npz, PyTorch's zip and its older stream, pickles) becomes a `TensorFile`, so that formats
of models and dictionaries deal with names and shapes only. `opening.open_tensors` tells the container by its first
bytes, never by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Part = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """Shape and dtype (as safetensors names it: F32, BF16 ...) of one tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class TensorFile:
    """A file whose headers were checked against its length.

    Attributes:
        path: the file.
        headers: all tensors in it, by name.
        read: one tensor, or the part of it that slices (step 1, one an axis) name, in the dtype of the file.
        read_rows: rows (ascending indices of the first axis) of a tensor; reads no other bytes of it where the
            container keeps rows apart.
        about: what the file holds beside tensors: plain dicts, lists, numbers and texts, tensors left out; {} where
            the container has nothing else.
    """

    path: Path
    headers: Mapping[str, Header]
    read: Callable[[str, Part | None], np.ndarray]
    read_rows: Callable[[str, np.ndarray], np.ndarray]
    about: Any
