"""Would other prompts have given the same circuit? Overlap of circuits over resampled prompts, or of any circuits.

    J(A, B) = |A and B| / |A or B|

The bar that has been proposed is a mean of 0.8 over at least 100 resamples (arXiv 2510.00845); two random circuits of k
of n units share k / (2 n - k) on average or a little less.
"""

from dataclasses import dataclass

import numpy as np

from tcircuits.circuits.metrics import nested
from tcircuits.transcoders.evaluation.intervals import weights
from tcircuits.types import Bool, Float, InputError

DRAWS = 100
BAR = 0.8


@dataclass(frozen=True)
class Stability:
    """Jaccard overlap of circuits that resampled prompts choose: mean and 5th percentile over pairs of resamples.

    `chance` is what random circuits of the same size share.
    """

    mean: float
    low: float
    chance: float
    draws: int


def overlaps(masks: Bool[np.ndarray, "C U"]) -> Float[np.ndarray, " P"]:
    """Jaccard overlap of every pair of circuits; two empty ones are the same."""
    kept = np.asarray(masks, float)
    both = kept @ kept.T
    either = kept.sum(1)[:, None] + kept.sum(1) - both
    first, second = np.triu_indices(len(kept), 1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)[first, second]


def stability(
    by_prompt: Float[np.ndarray, "N U"], size: int, *, signed: bool = True, draws: int = DRAWS, seed: int = 0
) -> Stability:
    """Of the circuits of the `size` best units by mean score, over bootstrap draws of the prompts.

    Raises:
        InputError: fewer than two prompts or draws, a size outside 1..U.
    """
    scores = np.asarray(by_prompt, float)
    if scores.ndim != 2 or len(scores) < 2 or draws < 2 or not 1 <= size <= scores.shape[-1]:
        raise InputError(
            f"stability of {size} units from scores of shape {scores.shape} over {draws} draws: give [prompts, units] "
            f"with two prompts or more, a size within the units, and two draws or more"
        )
    means = np.concatenate([w @ scores for w in weights(len(scores), draws, seed)])
    masks = np.concatenate([nested(row, np.array([size]), signed=signed) for row in means])
    found = overlaps(masks)
    chance = size / (2 * scores.shape[1] - size)
    return Stability(float(found.mean()), float(np.quantile(found, 0.05)), chance, draws)
