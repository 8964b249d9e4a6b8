"""How well a dictionary recovers known features: SynthSAEBench's measures, from counts and matrices.

F is the dictionary's features, N the true ones. A feature's match is the true direction of the largest |cos| with its
decoder row; as a detector of its match it has a precision, a recall and an F1, and 0 where one is undefined.
"""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

Array = Any


def cosines(decoder: Array, directions: Array) -> Array:
    """|cos| between decoder rows [F, D] and true directions [N, D]: [F, N]; a row of zeros has 0."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) for x in (decoder, directions))
    return np.abs(a @ b.T)


def mean_correlation(cos: Array) -> float:
    """MCC: the mean |cos| [F, N] over the assignment of features to true ones, one to one, that makes it largest."""
    rows, columns = linear_sum_assignment(cos, maximize=True)
    return float(cos[rows, columns].mean())


def uniqueness(match: Array) -> float:
    """Different matches [F] as a share of features."""
    return len(np.unique(match)) / len(match)


def detection(both: Array, fired: Array, active: Array) -> dict[str, float]:
    """Means over features of precision, recall and F1.

    Args:
        both: tokens where a feature and its match are active [F].
        fired: tokens where the feature is [F].
        active: tokens where the match is [F].
    """
    both, fired, active = (np.asarray(x, float) for x in (both, fired, active))
    precision, recall = both / np.maximum(fired, 1), both / np.maximum(active, 1)
    f1 = 2 * both / np.maximum(fired + active, 1)
    return {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}
