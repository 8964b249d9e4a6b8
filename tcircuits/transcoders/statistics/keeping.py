"""What is kept of each feature while a corpus passes, how large that is, and how its samples are drawn.

Activations are counted in bins of fixed edges, a third of an octave wide: edge j is 2^(-10 + j/3). Bin 0 holds what
lies below the first edge (negative values too), the last bin what lies above the last.

Samples are drawn by a hash. Tokens have numbers (row x context + position); the priority of a token for a feature is a
bijection of 32-bit numbers applied to the token's number plus the feature's key, and the smallest priority wins. So
what is drawn depends on corpus and seed alone, not on batches or devices, and the token follows from its priority.

The bijection is the finaliser of MurmurHash3 (Appleby 2011).

>>> int(token_of(priority(np.uint32([7]), np.uint32([3])), np.uint32([3]))[0])
7
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tcircuits.types import Float, InputError, Int

EMPTY = np.uint32(2**32 - 1)  # no token; tokens have smaller numbers
N_BINS, LOWEST, PER_OCTAVE = 64, -10, 3
FIRST_FACTOR, SECOND_FACTOR = 0x85EBCA6B, 0xC2B2AE35
WHOLE = 2**32


@jax.tree_util.register_static
@dataclass(frozen=True)
class Keeping:
    """What is kept of a feature.

    Attributes:
        top: its strongest activations.
        drawn: a uniform sample of its activations: at most one from each of so many random parts of the corpus.
        seed: of what is drawn, there and in each bin of the histogram.

    Raises:
        InputError: nothing to keep, or a seed out of range.
    """

    top: int = 20
    drawn: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 1 or self.drawn < 1:
            raise InputError(f"top={self.top}, drawn={self.drawn}: keep at least 1 of each")
        if not 0 <= self.seed < WHOLE:
            raise InputError(f"seed={self.seed}: give a number in 0..2**32 - 1")

    def bytes_a_feature(self, itemsize: int = 4) -> int:
        """Size of the state for one feature: values of `itemsize` bytes, counts and token numbers of 4."""
        return self.top * (itemsize + 4) + 8 * N_BINS + 4 * self.drawn + 3 * itemsize


def edges(dtype: Any = np.float32) -> Float[np.ndarray, " 63"]:
    """The edges between bins; those of float32 in every dtype, so that bins do not depend on it."""
    return np.float32(2.0 ** (LOWEST + np.arange(N_BINS - 1) / PER_OCTAVE)).astype(dtype)


def feature_keys(layers: Any, n: int, seed: int) -> Int[np.ndarray, "S F"]:
    """A key for each feature of each layer (uint32)."""
    number = np.asarray(layers, np.uint64)[:, None] * np.uint64(n) + np.arange(n, dtype=np.uint64)
    return mixed((number + np.uint64(seed) * np.uint64(0x9E3779B9)).astype(np.uint32))


def mixed(x: Any) -> Any:
    """The bijection; NumPy's or JAX's uint32 [*]."""
    u = np.uint32
    x = (x ^ (x >> u(16))) * u(FIRST_FACTOR)
    x = (x ^ (x >> u(13))) * u(SECOND_FACTOR)
    return x ^ (x >> u(16))


def unmixed(x: np.ndarray) -> np.ndarray:
    """The inverse of `mixed`."""
    u = np.uint32
    x = (x ^ (x >> u(16))) * u(pow(SECOND_FACTOR, -1, WHOLE))
    x = (x ^ (x >> u(13)) ^ (x >> u(26))) * u(pow(FIRST_FACTOR, -1, WHOLE))
    return x ^ (x >> u(16))


def priority(token: Any, key: Any) -> Any:
    """What decides whether a token is drawn for the feature with this key: the smallest wins."""
    return mixed(token + key)


def token_of(found: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The token that has this priority; `EMPTY` where there is none."""
    return np.where(found == EMPTY, EMPTY, unmixed(found) - key)
