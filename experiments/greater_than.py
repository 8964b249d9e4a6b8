"""Greater-than: how few transcoder features of one MLP carry it, against neurons?

    python -m experiments.greater_than
    python -m experiments.greater_than --model openai-community/gpt2 --transcoders pchlenski/gpt2-transcoders

The paper's study (Dunefsky et al. 2024, section 5.2, Figure 5): the parts of one MLP are ranked by the variance of
their values, the first k are kept, and the probability difference (Hanna et al. 2023) is drawn against k, for features
and for neurons. The paper does it for one MLP at the last position, and what is not kept becomes zero. Which MLP a
model uses, and whether at the last position or at the start year's two digits, is not known beforehand: all are
measured, with what is not kept at zero (the paper's) and at its mean over other prompts. Further rankings are controls:
by mean size, and random among the parts that are on. Parts are ranked, means are taken, a harmful feature is looked for
and the headline's place is chosen on some start years; everything is measured on others (of the embedded model: on
years that it never saw).

The first command takes transcoders of all layers and several seeds (`experiments.lm.sweeps`, trained if they are not
there); intervals are over the seeds (Student's t). The second takes what it is given, with the paper's prompt.

- `cost`: what is lost where nothing is kept, of the model's own probability difference;
- `needed`: the least k from which a curve is at `share` of the probability difference with the full dictionary, the
  same target for features and neurons (for the paper's figures: about 13 against 47);
- `needed_of_gap`: where nothing kept costs at least `least_gap`: the least k that recovers `share` of that gap;
- `read`: the first `read` features by variance at the headline's place, by their weights (`experiments.years.reading`);
- `harmful`: of the first `harmful_of` features the one whose removal helps most where it was looked for, and what its
  removal does where it was not.

`headline` is where losing all neurons of an MLP costs most on the choosing half (`cost_where_chosen`): which MLP, which
position, zero or mean. Its figures, those of all places in the result too, are of the measuring half.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import sweeps
from experiments.years import kept, reading
from experiments.years.prompts import Prompts, difference, grammar_prompts, template_prompts
from tcircuits.types import InputError

RANKINGS = ("variance", "mean", "random")
PLACES = ("last", "start")
ABSENT = ("zero", "mean")
TEMPLATE = "The war lasted from 17{yy} to 17"
COUNTS = (*range(41), *range(45, 101, 5))
Halves = tuple[Prompts, Prompts]


@dataclass(frozen=True)
class Config:
    """The model, its dictionaries, and what is measured."""

    model: str = "tiny"
    """The embedded model, or any that the package loads."""
    transcoders: str | None = None
    """Per-layer transcoders; None takes those of `experiments.lm.sweeps` (embedded model only)."""
    layers: tuple[int, ...] = ()
    """Whose MLPs; () is all that have a dictionary."""
    template: str = TEMPLATE
    """The prompt of models other than the embedded one."""
    prompts: int = 60
    """Of each half."""
    share: float = 0.95
    """Of the full dictionary's probability difference, or of the gap."""
    least_gap: float = 0.05
    """From which a gap is worth recovering."""
    harmful_of: int = 50
    """First features by variance among which a harmful one is looked for."""
    read: int = 10
    """Features whose weights are read."""
    work: Path = ROOT / "build/studies"
    """The training run; what is there is used."""


@dataclass(frozen=True)
class Where:
    """An MLP, a position and what becomes of parts that are not kept."""

    layer: int
    place: str
    absent: str


def halves(cfg: Config, model: tc.Model) -> Halves:
    """Prompts to choose with, and prompts to measure on."""
    if cfg.model == "tiny":
        chosen, measured = (grammar_prompts(model, cfg.prompts, 0, held_out=h) for h in (False, True))
        return chosen, measured
    chosen, measured = (template_prompts(model, cfg.template, odd=odd) for odd in (True, False))
    return chosen, measured


def order_of(values: np.ndarray, ranking: str, seed: int) -> np.ndarray:
    """Parts by their values [N, F], best first; random among those that are on at all."""
    if ranking == "random":
        on = np.flatnonzero((values != 0).any(0))
        mixed = np.random.default_rng(seed).permutation(on)
        return np.concatenate([mixed, np.setdiff1d(np.arange(values.shape[1]), on)])
    score = values.var(0) if ranking == "variance" else np.abs(values).mean(0)
    return np.argsort(-score, kind="stable")


@dataclass(frozen=True)
class Side:
    """The parts of one MLP on both halves, and what is lost of them."""

    model: tc.Model
    chosen: kept.Parts
    measured: kept.Parts
    halves: Halves
    where: Where

    @property
    def values(self) -> np.ndarray:
        """On the choosing half, [N, F]."""
        return kept.at(self.chosen, self.halves[0], self.where.place)

    def differences(self, masks: np.ndarray, *, choosing: bool = False) -> np.ndarray:
        """Probability differences [N, K] with the parts of each mask."""
        parts, prompts = (self.chosen, self.halves[0]) if choosing else (self.measured, self.halves[1])
        gone = self.values.mean(0) if self.where.absent == "mean" else 0.0
        return difference(kept.logits(self.model, parts, prompts, self.where.place, masks, gone), prompts.yy)

    def curve(self, ranking: str, seed: int) -> np.ndarray:
        """Mean probability difference [K] with the first of `COUNTS` parts."""
        return self.differences(kept.prefixes(order_of(self.values, ranking, seed), COUNTS)).mean(0)

    def cost_where_chosen(self) -> float:
        """What is lost on the choosing half where nothing is kept."""
        n = self.chosen.rows.shape[0]
        none, full = self.differences(np.stack([np.zeros(n, bool), np.ones(n, bool)]), choosing=True).mean(0)
        return float(full - none)

    def full(self) -> float:
        """With all parts."""
        return float(self.differences(np.ones((1, self.chosen.rows.shape[0]), bool)).mean())


def needed(curve: np.ndarray, target: float) -> int | None:
    """The least of `COUNTS` at which a curve is at the target; None where it never is."""
    there = np.flatnonzero(curve >= target)
    return COUNTS[there[0]] if len(there) else None


def of_gap(cfg: Config, curve: np.ndarray, full: float) -> int | None:
    """The least count that recovers the share of the gap; None where there is none, or it never does."""
    gap = full - curve[0]
    return needed(curve, curve[0] + cfg.share * gap) if gap >= cfg.least_gap else None


def harmful(cfg: Config, side: Side) -> dict[str, Any]:
    """The feature whose removal helps most on the choosing half, and what its removal does on the other."""
    order = order_of(side.values, "variance", 0)
    first = order[: cfg.harmful_of]
    masks = np.ones((len(first) + 1, len(order)), bool)
    masks[np.arange(len(first)), first] = False  # the last keeps all
    gains = side.differences(masks, choosing=True).mean(0)
    best = int(np.argmax(gains[:-1]))
    both = side.differences(masks[[best, -1]])
    gain = told(both[:, 0] - both[:, 1])
    found = {"feature": int(first[best]), "rank": best + 1, "gain": gain}
    return found | {"gain_where_chosen": float(gains[best] - gains[-1])}


def told(values: Any) -> dict[str, Any]:
    """A mean with its 95 % interval (Student's t)."""
    x = np.asarray(values, np.float64)
    mean, n = float(x.mean()), len(x)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"value": mean, "low": low, "high": high, "n": n}


def measured(cfg: Config, model: tc.Model, sets: dict[int, tc.Transcoders], both: Halves, where: Where) -> Any:
    """One MLP and place: neurons, every dictionary, and how many parts each needs."""

    def side(make: Any) -> Side:
        return Side(model, make(both[0]), make(both[1]), both, where)

    neurons = side(lambda p: kept.neurons(model, where.layer, p))
    own, real = neurons.curve("variance", 0), neurons.full()
    rows, curves, sides = [], [], {}
    for seed, d in sets.items():
        sides[seed] = side(lambda p, d=d: kept.features(model, d, where.layer, p))
        curve, full = sides[seed].curve("variance", 0), sides[seed].full()
        curves.append(curve)
        rows.append({
            "seed": seed, "full": full,
            "features": needed(curve, cfg.share * full), "neurons": needed(own, cfg.share * full),
            "features_of_gap": of_gap(cfg, curve, full), "neurons_of_gap": of_gap(cfg, own, real),
        })  # fmt: skip
    found = {"where": vars(where), "neurons_full": real, "cost": real - float(own[0]), "rows": rows}
    found["cost_where_chosen"] = neurons.cost_where_chosen()
    found |= {"curves": {"features": np.stack(curves), "neurons": own}}
    return found, neurons, sides


def readings(cfg: Config, side: Side, d: tc.Transcoders) -> list[dict[str, Any]]:
    """The first features by variance: activation by start year, direct effects on years, what they answer to."""
    index = order_of(side.values, "variance", 0)[: cfg.read]
    prompts, where = side.halves[1], side.where
    found = reading.read(side.model, d, where.layer, index, prompts, where.place)
    return reading.told(found, kept.at(side.measured, prompts, where.place)[:, index], prompts.yy, index)


def controls(cfg: Config, neurons: Side, sides: dict[int, Side]) -> dict[str, Any]:
    """At one place: curves under the other rankings, and harmful features."""
    rankings = {
        ranking: {
            "features": np.mean([side.curve(ranking, seed) for seed, side in sides.items()], 0),
            "neurons": neurons.curve(ranking, 0),
        }
        for ranking in RANKINGS
    }
    return {"rankings": rankings, "harmful": [harmful(cfg, s) | {"seed": seed} for seed, s in sides.items()]}


def headline(found: Mapping[Where, dict[str, Any]]) -> Where:
    """Where neurons cost most on the choosing half; what was measured on the other half has no say."""
    return max(found, key=lambda where: found[where]["cost_where_chosen"])


def line(found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: means over the dictionaries."""

    def mean(name: str) -> float | None:
        values = [r[name] for r in found["rows"]]
        return None if None in values else float(np.mean(values))

    names = ("full", "features", "neurons", "features_of_gap", "neurons_of_gap")
    costs = {name: found[name] for name in ("cost_where_chosen", "cost")}
    return {**found["where"], **costs, **{name: mean(name) for name in names}}


def ratio(found: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Features against neurons, over the dictionaries; None where one of them never gets there or needs none."""
    pairs = [(r[f"features{name}"], r[f"neurons{name}"]) for r in found["rows"]]
    return None if any(f is None or not n for f, n in pairs) else told([f / n for f, n in pairs])


def main(cfg: Config) -> None:
    """Load or train, measure everywhere, look closer at the headline's place."""
    model = tc.load_model(cfg.model)
    if cfg.transcoders is None and cfg.model != "tiny":
        raise InputError("give --transcoders: only the embedded model's are trained here")
    both = halves(cfg, model)
    if cfg.transcoders is None:
        sets = {seed: d for (kind, seed), d in sweeps.standard(model, cfg.work).items() if kind == "transcoder"}
    else:
        sets = {0: tc.load_transcoders(cfg.transcoders, model=model)}
    layers = cfg.layers or next(iter(sets.values())).cfg.layers
    found = {}
    for where in (Where(*w) for w in product(layers, PLACES, ABSENT)):
        found[where] = measured(cfg, model, sets, both, where)
        print(line(found[where][0]), flush=True)
    best = headline({where: f for where, (f, *_) in found.items()})
    head, neurons, sides = found[best]
    show(f"{cfg.model}: parts needed for {cfg.share:.0%}", [line(f) for f, *_ in found.values()])
    figures = {
        "original": told(difference(kept.real(model, both[1]), both[1].yy)),
        "headline": line(head) | {"ratio": ratio(head, ""), "ratio_of_gap": ratio(head, "_of_gap")},
        "controls": controls(cfg, neurons, sides),
        "read": {seed: readings(cfg, side, sets[seed]) for seed, side in sides.items()},
        "counts": COUNTS,
        "places": [f for f, *_ in found.values()],
    }
    save("greater_than", cfg, figures)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
