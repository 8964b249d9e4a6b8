"""HAGD's ablation table: what is lost without the hierarchy, the network, cross-layer transcoders, interventions?

    python -m experiments.hagd_ablation

The framework whole, on each of the embedded model's behaviours: the graph of cross-layer transcoder features and heads,
its tree, the membership network's order as prior (trained on the other behaviours' measured effects, this one held
out), group ablations down the tree and backward elimination, within a budget of circuits on the attribution split.
Then without a part:

    no hierarchy         the budget goes to elimination among the network's best, flat
    no network           integrated gradients' scores are the prior: this package's default
    no cross-layer       all the same with per-layer transcoders; its own controls beside it
    no interventions     the network's best, nothing ablated ("no causal validation")
    no network either    integrated gradients' best

All circuits have the same share of the units, and are scored on the report split, ablation by resampling, errors kept.
Seconds: `search` is search and elimination; `total` has the graph, the tree and the network's answer too (its training,
which other behaviours share, is told apart). `random`: the 95th percentile of circuits of the same profile.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import tcircuits as tc
from experiments import hierarchical_circuits as circuits
from experiments import membership
from experiments.common import save, say, show
from tcircuits.circuits import metrics
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.membership import Membership, Training, fit, predict
from tcircuits.circuits.membership_data import sample_of
from tcircuits.circuits.tree import Hierarchy


@dataclass(frozen=True)
class Config:
    """What is taken away from what."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    cross_layer: str = "tiny-clt"
    """The whole framework's dictionary."""
    per_layer: str = "tiny-transcoders"
    """The dictionary of `no cross-layer`."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement")
    """Of `tcircuits.tasks.TASKS`; each is held out once."""
    share: float = 0.05
    """Of all units in each circuit."""
    budget: int = 250
    """Circuits on all prompts of the attribution split."""
    random: int = 100
    """Random circuits."""
    seed: int = 0
    """Of prompts, trees, networks and random circuits."""


def by_network(case: circuits.Case, h: Hierarchy, network: Membership) -> circuits.Case:
    """The same behaviour, its units in the network's order: the scores' sizes, dealt out by what it predicts."""
    graph, n = case.graph, case.graph.n
    found = predict(network, sample_of(graph, h, {}, {}))[-n:]
    sizes = np.zeros(n)
    sizes[np.argsort(-found, kind="stable")] = np.sort(np.abs(graph.importance))[::-1]
    return replace(case, graph=replace(graph, importance=sizes))


def framework(
    cfg: Config, model: tc.Model, name: str, task: str, networks: dict[str, Membership]
) -> list[dict[str, Any]]:
    """All rows of one behaviour with one dictionary."""
    own = circuits.Config(cfg.model, name, shares=(cfg.share,), budget=cfg.budget, random=cfg.random, seed=cfg.seed)
    d = tc.load_transcoders(name, model=model)
    case, about = circuits.started(own, model, d, task)
    start = time.perf_counter()
    h = hierarchy(case.graph, seed=cfg.seed)
    tree, start = time.perf_counter() - start, time.perf_counter()
    guided = by_network(case, h, networks[task])
    answer = time.perf_counter() - start
    circuits.grouped(guided, "whole", h, prior=True)
    circuits.eliminated(guided, "no hierarchy")
    circuits.grouped(case, "no network", h, prior=True)
    circuits.ranked(guided, "no interventions")
    circuits.ranked(case, "no network either")
    before = {"graph": about["seconds"], "tree": tree, "network": answer}
    used = {
        "whole": ("graph", "tree", "network"),
        "no hierarchy": ("graph", "network"),
        "no network": ("graph", "tree"),
    }
    used |= {"no interventions": ("graph", "network"), "no network either": ("graph",)}
    rows = scored(case, guided.masks | case.masks, cfg)
    for row in rows:
        spent = (guided.cost | case.cost)[row["without"]]
        row |= {"dictionary": name, "evaluations": spent["evaluations"], "search": spent["seconds"]}
        row["total"] = spent["seconds"] + sum(before[part] for part in used[row["without"]])
    return rows


def scored(case: circuits.Case, masks: dict[str, np.ndarray], cfg: Config) -> list[dict[str, Any]]:
    """Each circuit on the report split, beside random ones of its profile."""
    groups, n = case.units.groups(), cfg.random
    chance = [metrics.matched(mask[0], groups, n, cfg.seed) for mask in masks.values()]
    stacked = np.concatenate([*masks.values(), *chance, np.zeros((1, case.units.n), bool)])
    runs = tc.run_circuits(case.model, case.behaviour, stacked, case.units, **case.how, at_once=32)
    found, full, none = runs.circuits, runs.model, runs.circuits.metric[-1]
    metrics.check_range(full.metric, none)
    f, phi = metrics.faithfulness(found.metric, full.metric, none), found.right.mean(1) / full.right.mean()
    rows = []
    for i, (without, mask) in enumerate(masks.items()):
        at = slice(len(masks) + i * n, len(masks) + (i + 1) * n)
        figures = {
            "faithfulness": asdict(metrics.faithful(found.metric[i], full.metric, none)),
            "phi": asdict(metrics.preserved(found.right[i], full.right)),
            "random_faithfulness_95": float(np.quantile(f[at], 0.95)),
            "random_phi_95": float(np.quantile(phi[at], 0.95)),
        }
        rows.append({"task": case.behaviour.name, "without": without, "units": int(mask[0].sum())} | figures)
    return rows


def trained(cfg: Config, model: tc.Model, name: str) -> tuple[dict[str, Membership], float]:
    """A network for each behaviour, from the measured effects of all the others; seconds."""
    start, d = time.perf_counter(), tc.load_transcoders(name, model=model)
    own = membership.Config(model=cfg.model, transcoders=name, tasks=cfg.tasks, seed=cfg.seed)
    found = {task: membership.measured(own, model, d, task).sample for task in cfg.tasks}
    networks = {}
    for task in cfg.tasks:
        networks[task] = fit([s for other, s in found.items() if other != task], Training(seed=cfg.seed))
        say(f"{name}: a network without {task}")
    return networks, time.perf_counter() - start


def main(cfg: Config) -> None:
    """Measure, print, write after each behaviour."""
    model, rows, training = tc.load_model(cfg.model), [], {}
    for name in (cfg.cross_layer, cfg.per_layer):
        networks, training[name] = trained(cfg, model, name)
        for task in cfg.tasks:
            found = framework(cfg, model, name, task, networks)
            rows += found
            save("hagd_ablation", cfg, {"rows": rows, "training_seconds": training})
            show(f"{task}, {name}", [_line(r) for r in found])


def _line(r: dict[str, Any]) -> dict[str, Any]:
    short = {"without": r["without"], "units": r["units"], "F": r["faithfulness"]["value"], "phi": r["phi"]["value"]}
    nulls = {"random F": r["random_faithfulness_95"], "random phi": r["random_phi_95"]}
    return short | nulls | {key: r[key] for key in ("evaluations", "search", "total")}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
