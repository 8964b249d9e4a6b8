"""What circuits are worth, from their metric, choices and divergences by prompt: NumPy, no model.

    faithfulness   f(C) = (m(C) - m(none)) / (m(all) - m(none))            m: mean metric over prompts
    completeness   the same of the complement: how much is left without the circuit; lower is better (Marks et al. 2024)
    phi            share right of the circuit over that of the model
    A_ok, A_err    how often the circuit chooses what the model chooses, where the model is right, and where it is wrong
    CMD, CPR       areas of |1 - f| and of f over the share of units kept (MIB, Mueller et al. 2025, arXiv 2504.13151),
                   trapezoids over `SHARES`

Intervals are percentiles of a bootstrap over prompts; of a ratio both parts are drawn together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tcircuits.transcoders.evaluation.intervals import DRAWS, Interval, interval, weights
from tcircuits.types import Bool, Float, InputError, Int

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SMALL = 0.05  # of the metric's size: a smaller difference of all and none explains nothing
LEAST_ERRORS = 200


def check_range(full: Float[np.ndarray, " N"], none: Float[np.ndarray, " N"]) -> None:
    """Raise where the whole model and the empty circuit are too close to be told apart.

    Raises:
        InputError: see above; both are named.
    """
    gap, size = float(full.mean() - none.mean()), float(np.abs(full).mean() + np.abs(none).mean())
    if abs(gap) <= SMALL * size:
        raise InputError(
            f"the metric is {full.mean():.4g} for the whole model and {none.mean():.4g} with every unit ablated: their "
            "difference is too small to divide by; choose another ablation, other kinds of units or another metric"
        )


def faithfulness(circuit: Any, full: Any, none: Any) -> Float[np.ndarray, " C"]:
    """Of each circuit [C, N] against the model [N] and the empty circuit [N]."""
    return (np.mean(circuit, -1) - np.mean(none)) / (np.mean(full) - np.mean(none))


def bootstrap(value: Callable[..., Any], *rows: Float[np.ndarray, " N"], draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of `value(means)` over prompts, each array's mean drawn with the same prompts."""
    stacked = np.stack([np.asarray(r, float) for r in rows], 1)
    drawn = np.concatenate([w @ stacked for w in weights(len(stacked), draws, seed)])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = value(*drawn.T)
        return interval(float(value(*stacked.mean(0))), found[np.isfinite(found)], len(stacked))


def faithful(circuit: Any, full: Any, none: Any, **how: Any) -> Interval:
    """Of one circuit, with its interval."""
    return bootstrap(lambda c, m, z: (c - z) / (m - z), circuit, full, none, **how)


def preserved(right: Bool[np.ndarray, " N"], model_right: Bool[np.ndarray, " N"], **how: Any) -> Interval:
    """phi, with its interval.

    Raises:
        InputError: the model is never right.
    """
    if not np.any(model_right):
        raise InputError("the model is right on no prompt of this split: phi has no denominator")
    return bootstrap(lambda c, m: c / m, right, model_right, **how)


@dataclass(frozen=True)
class Agreement:
    """How often the circuit's choice is the model's, over `n` prompts; None where there are too few."""

    n: int
    share: Interval | None


def agreement(
    choice: Int[np.ndarray, " N"], model_choice: Int[np.ndarray, " N"], among: Bool[np.ndarray, " N"], least: int = 1
) -> Agreement:
    """Agreement of choices among some prompts: A_ok with the model's right ones, A_err with its wrong ones."""
    n = int(np.sum(among))
    if n < least:
        return Agreement(n, None)
    same = (choice == model_choice)[among]
    return Agreement(n, bootstrap(lambda s: s, same))


def area(values: Float[np.ndarray, "K"], shares: Float[np.ndarray, "K"]) -> float:
    """The trapezoid of values over shares."""
    v, x = np.asarray(values, float), np.asarray(shares, float)
    return float(np.sum(np.diff(x) * (v[1:] + v[:-1]) / 2))


def areas(f: Float[np.ndarray, "K"], shares: Float[np.ndarray, "K"]) -> dict[str, float]:
    """CPR and CMD of one ranking's circuits."""
    return {"CPR": area(f, shares), "CMD": area(np.abs(1 - np.asarray(f, float)), shares)}


def nested(scores: Float[np.ndarray, " U"], counts: Int[np.ndarray, " K"], *, signed: bool) -> Bool[np.ndarray, "K U"]:
    """Circuits of the best units by score (`signed`) or by its size; equal scores in the units' order."""
    rank = np.argsort(-(scores if signed else np.abs(scores)), kind="stable")
    masks = np.zeros((len(counts), len(scores)), bool)
    for row, count in zip(masks, counts, strict=True):
        row[rank[:count]] = True
    return masks


def counts_of(shares: Any, n: int) -> Int[np.ndarray, " K"]:
    """Units kept for each share of n: rounded, at least 1."""
    return np.maximum(1, np.round(np.asarray(shares, float) * n)).astype(int)


def matched(
    mask: Bool[np.ndarray, " U"], groups: Int[np.ndarray, " U"], n: int, seed: int = 0
) -> Bool[np.ndarray, "n U"]:
    """Random circuits with as many units of each group (kind and layer) as `mask` has."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n, len(mask)), bool)
    for group in np.unique(groups[mask]):
        members = np.flatnonzero(groups == group)
        count = int(mask[members].sum())
        for row in found:
            row[rng.choice(members, count, replace=False)] = True
    return found


def share_above(value: float, null: Float[np.ndarray, " n"]) -> float:
    """The p-value of a value against draws of a null: (1 + draws that reach it) / (1 + draws)."""
    return float((1 + np.sum(np.asarray(null) >= value)) / (1 + len(null)))


def equivalence(circuit: Float[np.ndarray, " N"], full: Float[np.ndarray, " N"]) -> float:
    """The p-value of a sign test that the circuit does better than the model as often as worse.

    Shi et al. 2024 (arXiv 2410.13032), section 3.1: a small one says that they are not equivalent.
    """
    apart = np.asarray(circuit) - np.asarray(full)
    wins, n = int(np.sum(apart > 0)), int(np.sum(apart != 0))
    return 1.0 if n == 0 else float(binomtest(wins, n, 0.5).pvalue)


def independence(
    rest: Float[np.ndarray, " N"], full: Float[np.ndarray, " N"], turns: int = 1000, seed: int = 0
) -> float:
    """The p-value of independence of what is left without the circuit from the model's output (HSIC, permutations).

    Gaussian kernels with the median distance as their width (Gretton et al. 2008); a small one says that the complement
    still knows about the task (Shi et al. 2024, section 3.2).
    """
    n = len(full)
    a, b = (_kernel(np.asarray(x, float)) for x in (rest, full))
    centred = a - a.mean(0) - a.mean(1)[:, None] + a.mean()
    observed = np.sum(centred * b)
    rng, above = np.random.default_rng(seed), 0
    for _ in range(turns):
        order = rng.permutation(n)
        above += np.sum(centred * b[np.ix_(order, order)]) >= observed
    return float((1 + above) / (1 + turns))


def _kernel(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N N"]:
    square = (x[:, None] - x[None]) ** 2
    apart = square[np.triu_indices(len(x), 1)]
    width = np.median(apart[apart > 0]) if (apart > 0).any() else 1.0
    return np.exp(-square / width)
