"""Does a circuit carry over to another model, or to another dictionary of the same one?

Units are matched by how they correlate over the words of shared texts (`profiles`), then

    overlap      sum min(W1, W2) / sum max(W1, W2) over edges between matched units, weights as shares of their sum
    functional   faithfulness in model 2 of the circuit mapped from model 1, over that of model 2's own of equal size

`sound`: one-to-one assignment (Hungarian) by |r| among units of the same kind whose relative depths are within a band.
`paper`: HAGD's rule (arXiv 2601.12879; its authors' code), each unit to the best of the same layer by |r| at last
words, many to one; its edges count as present or absent. Overlap is no substitute for faithfulness (Hanna et al. 2024,
arXiv 2403.17806): the functional figure is the one that counts, and random circuits with as many units in every kind
and layer stand beside it. What two dictionaries of one model reach is the ceiling.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from tcircuits.circuits import metrics
from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.intervals import Interval
from tcircuits.types import Bool, Float, InputError, Int

Rule = Literal["sound", "paper"]
BAND, LEAST = 0.1, 0.3


@dataclass(frozen=True)
class Matching:
    """Units of model 1 and their counterparts in model 2.

    Attributes:
        pairs: numbers of units, [M, 2].
        r: their correlation, signed.
        live: units of each model that are on at all, and so could be matched.
        n: units of each model.
    """

    pairs: Int[np.ndarray, "M 2"]
    r: Float[np.ndarray, " M"]
    live: tuple[int, int]
    n: tuple[int, int]

    @property
    def coverage(self) -> float:
        """Share of the live units of model 1 that have a counterpart."""
        return len(self.pairs) / max(self.live[0], 1)

    def mapped(self, mask: Bool[np.ndarray, "*C U"]) -> Bool[np.ndarray, "*C V"]:
        """Circuits of model 1 as circuits of model 2; units without a counterpart are left out."""
        found = np.zeros((*mask.shape[:-1], self.n[1]), bool)
        for first, second in self.pairs:
            found[..., second] |= mask[..., first]
        return found


def match_units(
    units: tuple[Units, Units],
    profiles: tuple[Float[np.ndarray, "W U"], Float[np.ndarray, "W V"]],
    *,
    rule: Rule = "sound",
    band: float = BAND,
    least: float = LEAST,
    among: tuple[Any, Any] | None = None,
) -> Matching:
    """Match the units of two models.

    Args:
        units: of each.
        profiles: of `unit_profiles`, over the same words (for `paper`: last words alone).
        rule: see the module.
        band: relative depths may differ by so much (`sound`).
        least: smallest |r| of a pair.
        among: which units of each may be matched (numbers; None: all that are on).

    Raises:
        InputError: profiles over different words, an unknown rule, a band or bound outside 0..1.
    """
    first, second = (np.asarray(p, np.float64) for p in profiles)
    if rule not in get_args(Rule):
        raise InputError(f"rule {rule!r} is unknown; there are {', '.join(get_args(Rule))}")
    if len(first) != len(second) or len(first) < 3:
        raise InputError(
            f"profiles are over {len(first)} and {len(second)} words: give the same texts, three words or more"
        )
    if (first.shape[1], second.shape[1]) != (units[0].n, units[1].n):
        raise InputError(
            f"profiles are of {first.shape[1]} and {second.shape[1]} units, not {units[0].n}, {units[1].n}"
        )
    if not (0 <= band <= 1 and 0 <= least <= 1):
        raise InputError(f"band={band}, least={least}: give numbers in 0..1")
    live = [_live(p, None if among is None else among[i]) for i, p in enumerate((first, second))]
    places = [_places(u) for u in units]
    pairs, r = [], []
    for kind in set(places[0][0]) & set(places[1][0]):
        a, b = (x[p[0][x] == kind] for x, p in zip(live, places, strict=True))
        if not len(a) or not len(b):
            continue
        found = _standard(first[:, a]).T @ _standard(second[:, b])
        layers = (places[0][1][a], places[1][1][b])
        for i, j in _chosen(found, layers, (units[0].n_layers, units[1].n_layers), rule, band, least):
            pairs.append((a[i], b[j]))
            r.append(found[i, j])
    order = np.lexsort(np.array(pairs).T[::-1]) if pairs else []
    rows, values = np.array(pairs, int).reshape(-1, 2), np.array(r)
    return Matching(rows[order], values[order], (len(live[0]), len(live[1])), (units[0].n, units[1].n))


def _live(p: Float[np.ndarray, "W U"], among: Any) -> Int[np.ndarray, " u"]:
    on = np.flatnonzero(p.std(0) > 0)
    return on if among is None else np.intersect1d(on, among)


def _places(units: Units) -> tuple[np.ndarray, Int[np.ndarray, " U"]]:
    """Kind and layer of each unit."""
    kinds, layers = [], []
    for kind, shape in units.shapes.items():
        own = np.array(units.layers) if kind == "feature" else np.arange(shape[0])
        kinds += [kind] * int(np.prod(shape))
        layers.append(np.repeat(own, int(np.prod(shape[1:]))))
    return np.array(kinds), np.concatenate(layers)


def _standard(p: Float[np.ndarray, "W U"]) -> Float[np.ndarray, "W U"]:
    """Centred, of length 1: products are correlations."""
    centred = p - p.mean(0)
    return centred / np.linalg.norm(centred, axis=0)


def _chosen(
    r: Float[np.ndarray, "a b"], layers: Any, depth: tuple[int, int], rule: Rule, band: float, least: float
) -> list[tuple[int, int]]:
    """Rows and columns that belong together."""
    size = np.abs(r)
    if rule == "paper":
        size = np.where(layers[0][:, None] == layers[1][None], size, -1.0)
        rows, columns = np.arange(len(size)), size.argmax(1)
    else:
        at = [layer / max(n - 1, 1) for layer, n in zip(layers, depth, strict=True)]
        size = np.where(np.abs(at[0][:, None] - at[1][None]) <= band, size, -1.0)
        rows, columns = linear_sum_assignment(-np.where(size >= least, size, 0.0))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if size[i, j] >= max(least, 1e-12)]


def edge_overlap(first: BehaviourGraph, second: BehaviourGraph, matching: Matching, *, weighted: bool = True) -> float:
    """Overlap of the edges between matched units of two graphs, in 0..1 (see the module); NaN where there are none.

    Not weighted, it is HAGD's transfer coefficient: the Jaccard overlap of the mapped edges of the first with those of
    the second.
    """
    to = np.full(matching.n[0], -1)
    to[matching.pairs[:, 0]] = matching.pairs[:, 1]
    back = np.isin(np.arange(matching.n[1]), matching.pairs[:, 1])
    weights: list[dict[tuple[int, int], float]] = [{}, {}]
    for side, g in enumerate((first, second)):
        ends = g.unit[g.source], g.unit[g.target]
        for s, t, w in zip(*ends, g.weight, strict=True):
            if s < 0 or t < 0:
                continue
            pair = (int(to[s]), int(to[t])) if side == 0 else (int(s), int(t))
            if min(pair) >= 0 and (side == 0 or (back[pair[0]] and back[pair[1]])):
                weights[side][pair] = weights[side].get(pair, 0.0) + (float(w) if weighted else 1.0)
    if not weighted:
        both = weights[0].keys() & weights[1].keys()
        either = weights[0].keys() | weights[1].keys()
        return len(both) / len(either) if either else np.nan
    totals = [sum(w.values()) or 1.0 for w in weights]
    every = weights[0].keys() | weights[1].keys()
    shares = np.array([[w.get(pair, 0.0) / t for w, t in zip(weights, totals, strict=True)] for pair in every])
    return float(shares.min(1).sum() / shares.max(1).sum()) if len(shares) else np.nan


@dataclass(frozen=True)
class Transfer:
    """How a mapped circuit works in the second model.

    Attributes:
        kept: units of the circuit, of the mapped one.
        faithfulness: of the mapped circuit in model 2.
        own: of model 2's own circuit with as many units as the mapped one.
        ratio: the first over the second.
        random: faithfulness of random circuits of model 2 of the mapped one's profile.
        p: how often those reach the mapped one (`metrics.share_above`).
        z: how many of their standard deviations it lies above their mean.
    """

    kept: tuple[int, int]
    faithfulness: Interval
    own: Interval
    ratio: float
    random: Float[np.ndarray, " n"]
    p: float
    z: float


def transfer(
    model: Model,
    behaviour: Behaviour,
    units: tuple[Units, Units],
    matching: Matching,
    mask: Bool[np.ndarray, " U"],
    own_scores: Float[np.ndarray, " V"],
    *,
    dictionary: Transcoders | None = None,
    split: str = "report",
    random: int = 100,
    seed: int = 0,
    **how: Any,
) -> Transfer:
    """Run a circuit of model 1, mapped, in model 2.

    Args:
        model: the second.
        behaviour: in its tokens.
        units: of the first and the second model.
        matching: of `match_units`.
        mask: the circuit of model 1.
        own_scores: of model 2's units: its own circuit is the best of them by score, as many as the mapped one has.
        dictionary: of model 2.
        split: of the behaviour.
        random: random circuits of model 2 with as many units in every kind and layer as the mapped one.
        seed: of those.
        how: ablation, errors, batch, at_once of `run_circuits`.

    Raises:
        InputError: a circuit of which nothing is matched, what `run_circuits` refuses.
    """
    moved = matching.mapped(mask)
    if not moved.any():
        raise InputError(
            f"none of the circuit's {int(mask.sum())} units has a counterpart: lower `least` or widen `band`"
        )
    own = metrics.nested(np.asarray(own_scores, float), np.array([int(moved.sum())]), signed=True)
    chance = metrics.matched(moved, units[1].groups(), random, seed)
    masks = np.concatenate([moved[None], own, chance, np.zeros((1, units[1].n), bool)])
    runs = run_circuits(model, behaviour, masks, units[1], dictionary=dictionary, split=split, **how)
    found, full, none = runs.circuits.metric, runs.model.metric, runs.circuits.metric[-1]
    metrics.check_range(full, none)
    f = metrics.faithfulness(found, full, none)
    spread = float(f[2:-1].std()) or np.inf
    return Transfer(
        (int(mask.sum()), int(moved.sum())),
        metrics.faithful(found[0], full, none),
        metrics.faithful(found[1], full, none),
        float(f[0] / f[1]),
        f[2:-1],
        metrics.share_above(float(f[0]), f[2:-1]),
        float((f[0] - f[2:-1].mean()) / spread),
    )
