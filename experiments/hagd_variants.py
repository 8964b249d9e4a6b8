"""Choices of HAGD's that its authors vary or state: branching, the normal signal, heads, and tests by ablation alone.

    python -m experiments.hagd_variants

On the embedded model's behaviours, ablation by resampling, circuits of a share of all units, on the report split.

`branching`: trees of b = 2, 4, 8, 16 branches; the same search down each (group ablations with the scores of integrated
gradients as prior, half of the budget) and the same elimination with the rest. Seconds are of the tree and the search.

`blend`: everything outside a circuit is a mixture, `share` of its value on the prompt itself and the rest from the
counterfactual; for the circuit of the best units by integrated gradients and for no circuit at all. Where both answer
alike, the signal answers and not the circuit.

`heads`: circuits of features alone, heads not being units: on every prompt they compute as ever. What that hides stands
beside it: random circuits of equal profile and no circuit at all, under the same rule (`heads free`), and the same
features where all heads are ablated (`heads ablated`), and circuits in which heads compete (`heads as units`).

`moved`: a test that ablates nothing. A circuit's features, and no heads, take their values on another prompt; how often
does the model then answer as on that prompt, and how often do random features of the same layers make it do so?
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments import hierarchical_circuits as circuits
from experiments.common import save, show
from tcircuits.circuits import metrics
from tcircuits.circuits.discover import score
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.scores import POINTS


@dataclass(frozen=True)
class Config:
    """What is varied, on what."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "tiny-transcoders"
    """The dictionary of features."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement")
    """Of `tcircuits.tasks.TASKS`."""
    share: float = 0.02
    """Of all units in each circuit."""
    branches: tuple[int, ...] = (2, 4, 8, 16)
    """Of a tree."""
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
    """Of the normal signal outside the circuit."""
    moved: tuple[float, ...] = (0.02, 0.05, 0.2)
    """Of all features, that take their values on another prompt."""
    budget: int = 250
    """Circuits on all prompts of the attribution split, for each tree."""
    random: int = 100
    """Random circuits."""
    seed: int = 0
    """Of prompts, trees and random circuits."""


def figures(runs: Any, i: int) -> dict[str, Any]:
    """Faithfulness and phi of circuit i; the last one is the empty circuit."""
    found, full = runs.circuits, runs.model
    return {
        "faithfulness": asdict(metrics.faithful(found.metric[i], full.metric, found.metric[-1])),
        "phi": asdict(metrics.preserved(found.right[i], full.right)),
    }


def run(case: circuits.Case, masks: list[np.ndarray], units: Any = None) -> Any:
    """Circuits and then the empty one on the report split."""
    n = case.units.n if units is None else units.n
    stacked = np.concatenate([*masks, np.zeros((1, n))])
    return tc.run_circuits(case.model, case.behaviour, stacked, units or case.units, **case.how, at_once=32)


def branching(cfg: Config, case: circuits.Case) -> list[dict[str, Any]]:
    """One search for each number of branches."""
    seconds, shapes = {}, {}
    for b in cfg.branches:
        start = time.perf_counter()
        h = hierarchy(case.graph, b=b, seed=cfg.seed)
        seconds[b] = time.perf_counter() - start
        shapes[b] = {"depth": int(h.depth.max()), "leaves": len(h.leaves)}
        circuits.grouped(case, f"b = {b}", h, prior=True)
    runs = run(case, [case.masks[f"b = {b}"] for b in cfg.branches])
    rows = []
    for i, b in enumerate(cfg.branches):
        spent = case.cost[f"b = {b}"]
        about = {"task": case.behaviour.name, "b": b, "units": int(case.masks[f"b = {b}"].sum())} | shapes[b]
        about |= {"tree_seconds": seconds[b], "search_seconds": spent["seconds"], "evaluations": spent["evaluations"]}
        rows.append(about | {"sets_left": spent["about"]["left"]} | figures(runs, i))
    return rows


def blend(cfg: Config, case: circuits.Case) -> list[dict[str, Any]]:
    """The best units and nothing, with shares of the normal signal outside."""
    kept = metrics.nested(case.scores, case.sizes, signed=True)[:1].astype(float)
    both = {"circuit": kept, "nothing": np.zeros_like(kept)}
    runs = run(case, [np.maximum(mask, share) for mask in both.values() for share in cfg.shares])
    places = [(name, share) for name in both for share in cfg.shares]
    about = {"task": case.behaviour.name}
    return [about | {"kept": name, "share": share} | figures(runs, i) for i, (name, share) in enumerate(places)]


def heads(cfg: Config, case: circuits.Case) -> list[dict[str, Any]]:
    """Circuits of features alone, under both rules for heads, beside those in which heads compete."""
    d, size = case.how["dictionary"], int(case.sizes[0])
    features = tc.units_of(case.model.cfg, ("feature",), d.cfg)
    how: Any = {"dictionary": d, "ablation": "resample", "errors": "keep"}
    alone = score(case.model, case.behaviour, features, "ig", points=POINTS, seed=cfg.seed, **how).values
    kept = metrics.nested(alone, np.array([size]), signed=True)
    wide = np.zeros((1, case.units.n), bool)
    wide[:, case.units.starts["feature"] :][:, : features.n] = kept
    competing = metrics.nested(case.scores, case.sizes, signed=True)[:1]
    rows = []
    for rule, mask, units in (
        ("heads free", kept, features),
        ("heads ablated", wide, case.units),
        ("heads as units", competing, case.units),
    ):
        chance = metrics.matched(mask[0], units.groups(), cfg.random, cfg.seed)
        runs = run(case, [mask, chance], units)
        full, found = runs.model, runs.circuits
        f = metrics.faithfulness(found.metric, full.metric, found.metric[-1])
        phi = found.right.mean(1) / full.right.mean()
        about = {"task": case.behaviour.name, "rule": rule, "units": int(mask.sum()), "of": units.n}
        about |= figures(runs, 0) | {"random_faithfulness_95": float(np.quantile(f[1:-1], 0.95))}
        about |= {"random_phi_95": float(np.quantile(phi[1:-1], 0.95)), "nothing_phi": float(phi[-1])}
        # what all units of this rule are worth, as a share of the model's own metric
        rows.append(about | {"at_stake": float((full.metric.mean() - found.metric[-1].mean()) / full.metric.mean())})
    return rows


def moved(cfg: Config, case: circuits.Case) -> list[dict[str, Any]]:
    """Interchange interventions on circuits of features alone, of growing size."""
    d = case.how["dictionary"]
    features = tc.units_of(case.model.cfg, ("feature",), d.cfg)
    how: Any = {"dictionary": d, "ablation": "resample", "errors": "keep"}
    values = score(case.model, case.behaviour, features, "ig", points=POINTS, seed=cfg.seed, **how).values
    rows = []
    for mask in metrics.nested(values, metrics.counts_of(cfg.moved, features.n), signed=True):
        random: Any = {"random": cfg.random, "seed": cfg.seed}
        found = tc.interchange(case.model, case.behaviour, features, mask, dictionary=d, **random)
        about = {"task": case.behaviour.name, "units": int(mask.sum()), "of": features.n, "prompts": found.prompts}
        follows = {"follows": asdict(found.accuracy), "keeps": found.kept, "p": found.p}
        rows.append(about | follows | {"random_95": float(np.quantile(found.random, 0.95))})
    return rows


def main(cfg: Config) -> None:
    """Measure, print, write after each behaviour."""
    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders, model=model)
    own = circuits.Config(
        cfg.model, cfg.transcoders, shares=(cfg.share,), budget=cfg.budget, random=cfg.random, seed=cfg.seed
    )
    parts = {"branching": branching, "blend": blend, "heads": heads, "moved": moved}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    for task in cfg.tasks:
        case, _ = circuits.started(own, model, d, task)
        for name, part in parts.items():
            rows = part(cfg, case)
            found[name] += rows
            show(f"{task}: {name}", [_line(r) for r in rows])
        save("hagd_variants", cfg, found)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in row.items() if not isinstance(value, dict)}
    return plain | {name: row[name]["value"] for name in ("faithfulness", "phi", "follows") if name in row}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
