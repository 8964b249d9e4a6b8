"""Intervals by bootstrap over rows: a corpus is a sample of rows, and what is said of it should say how sure it is.

Rows are drawn with replacement, the same draws for every figure, so differences and ratios are paired. Intervals are
percentiles (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tcircuits.types import Float

LEVEL = 0.95
DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; the bounds are None where there is one row only."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def weights(n: int, draws: int, seed: int, block: int = 100) -> Iterator[Float[np.ndarray, "K n"]]:
    """How often each of `n` rows is drawn, divided by n, in blocks of draws."""
    rng = np.random.default_rng(seed)
    for first in range(0, draws, block):
        count = min(block, draws - first)
        drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n) / n


def resampled(rows: Float[np.ndarray, "n *X"], draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "K *X"]:
    """Means over rows, of each draw."""
    flat = rows.reshape(len(rows), -1)
    means = np.concatenate([w @ flat for w in weights(len(rows), draws, seed)])
    return means.reshape(draws, *rows.shape[1:])


def interval(value: float, drawn: Float[np.ndarray, " K"], n_rows: int) -> Interval:
    """The interval that draws give; none from a single row."""
    if n_rows < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(value), float(low), float(high))
