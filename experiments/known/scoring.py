"""The best F1 of a feature against known variables, chosen on some examples and measured on others.

A feature says "yes" where its value is above a threshold: zero, or a quantile of its positive values. Threshold and
variable are those of the highest F1 on the choosing examples; the figure is their F1 on the measuring ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

Sparse = Any  # a scipy array of 2 axes: its types know neither their number nor what slices are
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Scored:
    """Of each feature: the variable, its threshold, F1 where they were chosen and where they were not."""

    variable: tuple[str, ...]
    threshold: np.ndarray
    chosen: np.ndarray
    f1: np.ndarray


def thresholds(values: Sparse) -> np.ndarray:
    """[F, Q]: zero, then quantiles of each feature's positive values; [tokens, F] values are nowhere negative."""
    out = np.zeros((values.shape[1], len(QUANTILES)))
    for f in range(values.shape[1]):
        own = values.data[values.indptr[f] : values.indptr[f + 1]]
        if len(own):
            out[f, 1:] = np.quantile(own, QUANTILES[1:])
    return out


def above(values: Sparse, limits: np.ndarray) -> Sparse:
    """Whether each value is above each of its feature's limits [F, Q]: sparse [tokens, F Q]."""
    n, parts = values.shape[0], []
    for q in range(limits.shape[1]):
        part = values.copy()
        part.data = (part.data > np.repeat(limits[:, q], np.diff(values.indptr))).astype(np.int32)
        part.eliminate_zeros()
        parts.append(part)
    stacked: Sparse = scipy.sparse.hstack(parts, format="csc")  # by quantile, then by feature
    order = np.arange(stacked.shape[1]).reshape(limits.shape[1], -1).T.ravel()
    return scipy.sparse.csr_array(stacked[:, order], shape=(n, limits.size))


def f1(yes: Sparse, true: Sparse) -> np.ndarray:
    """2 TP / (said + true) of every answer [tokens, A] with every variable [tokens, V]: [A, V]."""
    both = np.asarray((yes.T @ true).todense(), np.float64)
    said, there = np.asarray(yes.sum(0), np.float64), np.asarray(true.sum(0), np.float64)
    return 2 * both / np.maximum(said[:, None] + there, 1)


def score(
    choosing: tuple[Sparse, Sparse],
    measuring: tuple[Sparse, Sparse],
    names: tuple[str, ...],
) -> Scored:
    """Of features' values [tokens, F] with variables [tokens, V], on both halves, with the same columns."""
    limits = thresholds(choosing[0])
    n, q = limits.shape
    found = f1(above(choosing[0], limits), choosing[1])
    best = found.max(1).reshape(n, q)
    pick = best.argmax(1)
    answer = np.arange(n) * q + pick
    variable = found[answer].argmax(1)
    again = f1(scipy.sparse.csr_array(above(measuring[0], limits)[:, answer]), measuring[1])
    limit = limits[np.arange(n), pick]
    return Scored(tuple(names[v] for v in variable), limit, best.max(1), again[np.arange(n), variable])
