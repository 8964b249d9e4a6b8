"""Several sources of rows in fixed proportions, and still reached by number.

Rows come in blocks of `BLOCK`; each block holds the same number of rows of every source, as near to its weight as whole
numbers allow, in an order of its own. Each source's rows are used one after the other, none twice and none left out.

    Mixture((prose, sampled), (0.7, 0.3)).rows(0, 32)
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from tcircuits.data.permute import key_of, permuted
from tcircuits.data.rows import RowSource, check_seed, checked, in_order
from tcircuits.types import InputError

BLOCK = 4096
MIX = 3  # what the key is for


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several sources.

    Args:
        sources: of the same context, vocabulary and BOS token.
        weights: what share of the rows each gives; their sum may be anything.
        seed: of the order.

    Raises:
        InputError: sources that do not fit together, weights that are not positive or below 1 / `BLOCK` of the sum.
    """

    sources: tuple[RowSource, ...]
    weights: tuple[float, ...]
    seed: int = 0
    _ends: np.ndarray = field(init=False, repr=False)  # [sources]: one past each one's places in a block

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if not self.sources or len(self.sources) != len(self.weights):
            raise InputError(f"{len(self.sources)} sources with {len(self.weights)} weights; give one for each")
        for name in ("context", "vocab_size", "first_token"):
            values = [getattr(source, name) for source in self.sources]
            if len(set(values)) > 1:
                raise InputError(f"the sources differ in {name}: {', '.join(map(str, values))}")
        if not all(isfinite(w) and w > 0 for w in self.weights):
            raise InputError(f"weights {self.weights}: give positive numbers")
        counts = _whole(self.weights, BLOCK)
        if min(counts) == 0:
            raise InputError(f"weights {self.weights}: the smallest is below 1/{BLOCK} of their sum; leave it out")
        object.__setattr__(self, "_ends", np.cumsum(counts))

    @property
    def context(self) -> int:
        """Tokens in a row."""
        return self.sources[0].context

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""
        return self.sources[0].vocab_size

    @property
    def first_token(self) -> int | None:
        """The BOS token that every row begins with; None where rows begin with text."""
        return self.sources[0].first_token

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For row numbers int64 [n], the source of each, int64 [n], and its number there, int64 [n].

        Raises:
            InputError: a number below 0.
        """
        block, place = np.divmod(checked(numbers), BLOCK)
        place = permuted(place, BLOCK, key_of(MIX, self.seed, block))
        source = np.searchsorted(self._ends, place, side="right")
        counts = np.diff(self._ends, prepend=0)
        return source, block * counts[source] + place - (self._ends - counts)[source]

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows `first` to `first + n - 1`: int32 [n, context].

        Raises:
            InputError: as `take`.
        """
        return self.take(in_order(first, n))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of any numbers, int64 [n]: int32 [n, context].

        Raises:
            InputError: a number below 0, and what the sources raise.
        """
        source, number = self.places(numbers)
        out = np.empty((len(source), self.context), np.int32)
        for i, rows in enumerate(self.sources):
            out[source == i] = rows.take(number[source == i])
        return out

    def describe(self) -> dict[str, Any]:
        """All that decides what rows hold, as plain values: a run that resumes compares it."""
        weights = [float(w) for w in self.weights]
        return {"sources": [source.describe() for source in self.sources], "weights": weights, "seed": self.seed}


def _whole(weights: tuple[float, ...], total: int) -> list[int]:
    """Whole numbers with this sum, as near to the weights as can be (largest remainders)."""
    shares = [total * w / sum(weights) for w in weights]
    counts = [int(s) for s in shares]
    by_rest = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts
