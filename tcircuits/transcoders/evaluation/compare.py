"""Two families of dictionaries at equal sparsity: transcoders against SAEs, skip against plain, ...

A dictionary with more active features reconstructs better, so families are compared where their L0 is equal. Each
family is trained at several sparsities; between them the cross-entropy with a set of layers replaced is interpolated,
linear in log L0 (never beyond the ends). At a fixed L0 that is a fixed mixture of two dictionaries' losses, row by row,
so differences are paired by row, set of layers and seed, and intervals come from resampling rows, sets and seeds,
each where there are several of it (Owen 2007, the pigeonhole bootstrap).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.transcoders.evaluation.intervals import DRAWS, Interval, interval, resampled, weights
from tcircuits.transcoders.evaluation.results import Evaluation
from tcircuits.types import Float, InputError

Family = Mapping[int, Sequence[Evaluation]]  # by seed: one evaluation for each sparsity


@dataclass(frozen=True)
class Pair:
    """One set of layers and seed at one L0: both cross-entropies, and the first minus the second."""

    layers: tuple[int, ...]
    seed: int
    l0: float
    ce: tuple[float, float]
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """All pairs, their mean difference (negative: the first family loses less), and what could not be compared.

    `overall` resamples rows, and sets of layers and seeds where there are at least two of them.
    """

    pairs: tuple[Pair, ...]
    overall: Interval
    skipped: tuple[str, ...]


def mixture(l0s: Any, l0: float) -> Float[np.ndarray, " K"] | None:
    """How much of each point the linear interpolation in log L0 takes; None beyond the points.

    >>> mixture([1.0, 4.0, 16.0], 2.0).tolist()
    [0.5, 0.5, 0.0]
    """
    have = np.asarray(l0s, float)
    usable = np.flatnonzero(have > 0)
    order = usable[np.argsort(have[usable], kind="stable")]
    x, at = np.log(have[order]), np.log(l0)
    out = np.zeros(len(have))
    close = np.flatnonzero(np.isclose(x, at, rtol=0, atol=1e-9))
    if len(close):
        out[order[close]] = 1 / len(close)
        return out
    right = int(np.searchsorted(x, at))
    if right in (0, len(x)):
        return None
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    out[order[right - 1]], out[order[right]] = 1 - share, share
    return out


def sparsity(e: Evaluation, layers: tuple[int, ...]) -> float:
    """Mean L0 of a set of layers."""
    return float(np.mean([e.l0[e.cfg.layers.index(i)] for i in layers]))


def compare(
    first: Family, second: Family, *, l0: Sequence[float] | None = None, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """Cross-entropy of `first` minus that of `second` at equal L0, on the same rows.

    Args:
        first: evaluations by training seed, one for each sparsity.
        second: the other family, with the same seeds.
        l0: where to compare; None is the geometric middle of the L0 that both families reach, pair by pair.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: evaluations of different models or rows, no common seed or set of layers, or no L0 that both reach.
    """
    _check(first, second)
    if l0 is not None and (not l0 or min(l0) <= 0):
        raise InputError(f"l0={list(l0)}: give numbers above 0, or None")
    found: dict[tuple[tuple[int, ...], int], list[np.ndarray]] = {}
    pairs, skipped = [], []
    for layers, run in _common(first, second):
        sides = (_curve(first[run], layers), _curve(second[run], layers))
        for at in _where(sides, l0):
            rows = [None if at is None else _rows(side, at) for side in sides]
            if at is None or rows[0] is None or rows[1] is None:
                ranges = " and ".join(f"{s[0].min():.3g}..{s[0].max():.3g}" for s in sides)
                skipped.append(f"layers {list(layers)}, seed {run}, L0 {at}: the families reach {ranges}")
                continue
            gap = rows[0] - rows[1]
            found.setdefault((layers, run), []).append(gap)
            told = interval(gap.mean(), resampled(gap, draws, seed), len(gap))
            pairs.append(Pair(layers, run, float(at), (float(rows[0].mean()), float(rows[1].mean())), told))
    if not pairs:
        raise InputError("no L0 that both families reach: " + "; ".join(skipped))
    gaps = {key: np.mean(values, 0) for key, values in found.items()}
    return Comparison(tuple(pairs), _overall(gaps, draws, seed), tuple(skipped))


def _check(first: Family, second: Family) -> None:
    everything = [e for family in (first, second) for evaluations in family.values() for e in evaluations]
    if not everything:
        raise InputError("nothing to compare: give evaluations by seed")
    for name in ("corpus", "keep_first"):
        values = {str(e.about[name]) for e in everything}
        if len(values) > 1:
            raise InputError(f"the evaluations differ in {name} ({', '.join(sorted(values))}): use the same rows")
    if len({e.model for e in everything}) > 1:
        raise InputError(f"the evaluations are of different models: {sorted({e.model for e in everything})}")


def _common(first: Family, second: Family) -> Iterator[tuple[tuple[int, ...], int]]:
    """Sets of layers and seeds that every evaluation of both families has."""
    seeds = sorted(set(first) & set(second))
    seeds = [s for s in seeds if first[s] and second[s]]
    every = [set(e.sets) for s in seeds for e in (*first[s], *second[s])]
    sets = set.intersection(*every) if every else set()
    if not sets:
        raise InputError(f"no set of layers that all have; seeds {sorted(first)} and {sorted(second)}")
    yield from ((layers, s) for layers in sorted(sets, key=lambda x: (len(x), x)) for s in seeds)


def _curve(evaluations: Sequence[Evaluation], layers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """L0 [K] and cross-entropies by row [K, R] with the set replaced."""
    ce = [e.losses.ce[0, e.sets.index(layers)] for e in evaluations]
    return np.asarray([sparsity(e, layers) for e in evaluations]), np.stack(ce)


def _where(sides: Any, l0: Sequence[float] | None) -> Sequence[float | None]:
    if l0 is not None:
        return list(l0)
    low, high = max(s[0].min() for s in sides), min(s[0].max() for s in sides)
    return [float(np.sqrt(low * high)) if 0 < low <= high else None]


def _rows(side: tuple[np.ndarray, np.ndarray], at: float) -> np.ndarray | None:
    share = mixture(side[0], at)
    return None if share is None else share @ side[1]


def _overall(gaps: dict[Any, np.ndarray], draws: int, seed: int) -> Interval:
    """The mean over pairs, with rows, sets and seeds resampled independently of each other."""
    sets, seeds = (sorted({key[i] for key in gaps}) for i in (0, 1))
    n_rows = len(next(iter(gaps.values())))
    rows, have = np.zeros((len(sets), len(seeds), n_rows)), np.zeros((len(sets), len(seeds)))
    for (layers, run), gap in gaps.items():
        i, j = sets.index(layers), seeds.index(run)
        rows[i, j], have[i, j] = gap, 1
    by = [np.concatenate(list(weights(n, draws, seed + i))) for i, n in enumerate((n_rows, len(sets), len(seeds)))]
    means = np.einsum("ijr,kr->kij", rows, by[0])
    total = np.einsum("kij,ki,kj,ij->k", means, by[1], by[2], have)
    count = np.einsum("ki,kj,ij->k", by[1], by[2], have)
    drawn = total[count > 0] / count[count > 0]
    return interval(rows.mean(-1)[have > 0].mean(), drawn, max(n_rows, len(sets), len(seeds)))
