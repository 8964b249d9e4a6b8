"""What fills a row of one of our arrays: a part of a tensor in a file, turned and scaled, or a computation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcircuits.files.tensor_file import TensorFile


@dataclass(frozen=True)
class Piece:
    """One row of one of our arrays.

    Attributes:
        path, tensor: where its numbers are.
        row: which row of our array it fills.
        transposed: whether the file has the axes the other way round.
        step: which step of the tensor's middle axis it is; None where there is none.
        start: the first of its features in a tensor that holds those of several layers, one behind the other.
        scale: factor on all of it.
        factors: factors on its features, of those of a slice; None for none.
        rule: computes the part of features instead (see `derived`).
    """

    path: Path
    tensor: str
    row: int
    transposed: bool = False
    step: int | None = None
    start: int = 0
    scale: float = 1.0
    factors: Callable[[slice], np.ndarray] | None = None
    rule: Callable[[slice], np.ndarray] | None = None


def read_piece(files: Mapping[Path, TensorFile], piece: Piece, index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` (of a row of our array) of a piece, in the dtype of the file; float64 where it is computed."""
    if piece.rule is not None:
        return piece.rule(index[0])
    read, tensor = files[piece.path].read, piece.tensor
    if piece.transposed:
        value = read(tensor, index[::-1]).T
    elif piece.step is not None:
        features, width = index
        value = read(tensor, (features, slice(piece.step, piece.step + 1), width))[:, 0]
    else:
        first, rest = index[0], index[1:]
        value = read(tensor, (slice(first.start + piece.start, first.stop + piece.start), *rest))
    return scaled(piece, value, None if piece.factors is None else piece.factors(index[0]))


def scaled(piece: Piece, value: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
    """A piece's rows times its scale and the `factors` of these rows."""
    value = value if piece.scale == 1.0 else value.astype(np.float64) * piece.scale
    return value if factors is None else value.astype(np.float64) * factors[:, None]
