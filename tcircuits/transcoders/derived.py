"""Rows of our arrays that are no tensor of a file: computed from tensors, block by block, in float64.

    b_enc - W_enc p             a dictionary that subtracts p from its input, as one that does not
    theta / |decoder row|       a threshold on activations times the length of their decoder row, as one on activations
    b_0 + b_1 + ...             biases that several layers add to one output, as one

All leave every reconstruction as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Read = Callable[[tuple[slice, ...]], np.ndarray]  # a part of a row of one of our arrays
BLOCK = 32 << 20  # bytes of a matrix, in float64, that are held at once


@dataclass(frozen=True)
class WithoutPreBias:
    """The bias of an encoder that subtracts `pre` [D] from its input: what it is without."""

    bias: Read
    pre: Read
    encoder: Read
    d_model: int

    def __call__(self, features: slice) -> np.ndarray:
        """The features' biases, float64."""
        p = self.pre((slice(0, self.d_model),)).astype(np.float64)
        shift = [self.encoder(block).astype(np.float64) @ p for block in _blocks(features, self.d_model)]
        return self.bias((features,)).astype(np.float64) - np.concatenate(shift)


@dataclass(frozen=True)
class Sum:
    """The sum of rows."""

    terms: tuple[Read, ...]

    def __call__(self, part: slice) -> np.ndarray:
        """A part of the sum, float64."""
        return np.sum([term((part,)).astype(np.float64) for term in self.terms], axis=0)


@dataclass(frozen=True)
class Lengths:
    """How long the rows of a decoder are, as factors of their features."""

    decoder: Read
    d_model: int

    def __call__(self, features: slice) -> np.ndarray:
        """The features' lengths, float64."""
        rows = [self.decoder(block).astype(np.float64) for block in _blocks(features, self.d_model)]
        return np.concatenate([np.sqrt((r * r).sum(1)) for r in rows])

    def inverse(self, features: slice) -> np.ndarray:
        """1 over the lengths; 0 of a feature that writes nothing."""
        length = self(features)
        return np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)


@dataclass(frozen=True)
class Scaled:
    """Biases times factors of their features."""

    bias: Read
    factors: Callable[[slice], np.ndarray]

    def __call__(self, features: slice) -> np.ndarray:
        """The features' biases, float64."""
        return self.bias((features,)).astype(np.float64) * self.factors(features)


@dataclass(frozen=True)
class Threshold:
    """Thresholds: one for all or one a feature, perhaps its logarithm, perhaps to be divided by decoder lengths."""

    constant: float | None = None
    values: Read | None = None
    log: bool = False
    decoder: Read | None = None
    d_model: int = 0
    floor: bool = False

    def __call__(self, features: slice) -> np.ndarray:
        """The features' thresholds, float64; a feature that writes nothing never matters and gets none (0)."""
        if self.values is not None:
            theta = self.values((features,)).astype(np.float64)
        else:
            theta = np.full(features.stop - features.start, self.constant, np.float64)
        theta = np.exp(theta) if self.log else theta
        theta = np.maximum(theta, 0.0) if self.floor else theta
        if self.decoder is None:
            return theta
        return theta * Lengths(self.decoder, self.d_model).inverse(features)


def _blocks(features: slice, width: int) -> list[tuple[slice, slice]]:
    step = max(1, BLOCK // (8 * width))
    edges = range(features.start, features.stop, step)
    return [(slice(start, min(start + step, features.stop)), slice(0, width)) for start in edges]
