"""Does a hierarchy pay? Circuits of the embedded model's behaviours at an equal budget of model evaluations.

    python -m experiments.hierarchical_circuits

Units are heads and transcoder features, errors kept, ablation by resampling. One evaluation is one circuit on all
prompts of the attribution split; a forward pass counts 1, a backward pass 2, what a call runs beside its circuits too.
Every method may spend `budget` on the attribution split, and gives circuits of the same sizes:

    ig                flat top-K of integrated gradients (it cannot use the budget)
    ig, elimination   the best of ig, then backward elimination with the rest of the budget
    topk, pruning     learned masks, flat, as many steps as the budget buys
    gates on TREE     hard-concrete gates on the sound tree, coarse to fine, likewise; units' start from ig's ranks
    topk on TREE      masks summing to k likewise, a unit's score the sum of all above it; from ig's ranks, or from
                      nothing; on the sound tree and on the random one
    ..., long         learned masks with `long` steps, past the budget: what is left to gain
    groups on TREE    group ablations down a tree, then backward elimination; TREE is `sound` (magnitude), `discounted`
                      (degree-discounted affinity), `faithful` (the paper's levels) or `random` (the null: the sound
                      tree with its members dealt out at random); with ig as prior, or without

Figures are on the report split: faithfulness F (keeping nothing is 0 by definition), phi, KL; intervals by bootstrap
over prompts, differences of |1 - F| with the same draws. Nulls: nothing kept; the 95th percentile of random circuits
with as many units of each kind and layer, of all units and of live ones, at the largest size (smaller random circuits
do less). Building the graph is no evaluation: its
seconds are given.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import RESULTS, save, say, show
from tcircuits.circuits import metrics
from tcircuits.circuits.behaviour_graph import BehaviourGraph, capped, most_edges
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.group_search import How, group_search
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.learning import Kind, Learning, learned_scores
from tcircuits.circuits.meter import meter
from tcircuits.circuits.running import Answers, Runs
from tcircuits.circuits.tree import Hierarchy, shuffled
from tcircuits.circuits.tree_gates import tree_scores
from tcircuits.circuits.trimming import trim
from tcircuits.circuits.units import Units

POINTS = 8  # of integrated gradients


@dataclass(frozen=True)
class Config:
    """What is compared."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "tiny-transcoders"
    """The dictionary of features."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 16
    """Of the attribution split."""
    report: int = 64
    """Of the report split."""
    lengths: int = 2
    """Lengths of prompts that the graph is built from, the most frequent: each is compiled anew."""
    shares: tuple[float, ...] = (0.01, 0.02, 0.05)
    """Sizes of circuits, of all units."""
    budget: int = 250
    """Evaluations of each method."""
    long: int = 1000
    """Steps of learned masks past the budget."""
    least: float = 0.002
    """Effect of a set that matters, of what all units are worth."""
    nodes: int = 4000
    """Of the graph, by importance."""
    random: int = 100
    """Random circuits of each null."""
    seed: int = 0
    """Of prompts, trees and random circuits."""


@dataclass
class Case:
    """One behaviour: its parts, and the circuits found so far, [K, U] by method."""

    cfg: Config
    model: tc.Model
    behaviour: tc.Behaviour
    units: Units
    graph: BehaviourGraph
    how: Any
    sizes: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scores(self) -> np.ndarray:
        """Integrated gradients of all units."""
        found = np.zeros(self.units.n)
        found[self.graph.unit] = self.graph.importance
        return found

    def add(self, name: str, make: Callable[[], tuple[np.ndarray, float, Any]]) -> None:
        """A method: its circuits, its evaluations, what else there is to say."""
        start, cpu = time.perf_counter(), time.process_time()
        self.masks[name], spent, about = make()
        self.cost[name] = {"evaluations": spent, "seconds": time.perf_counter() - start, "about": about}
        self.cost[name]["cpu_seconds"] = time.process_time() - cpu
        say(f"{self.behaviour.name}: {name}, {spent:.0f} evaluations, {self.cost[name]['seconds']:.1f} s")


IG = 2 + POINTS + 2 * POINTS  # evaluations: clean, counterfactual, and a forward and a backward pass a point


def eliminated(case: Case, name: str) -> None:
    """The best by score, then backward elimination with the rest of the budget."""
    budget, scores = case.cfg.budget, case.scores

    def make() -> tuple[np.ndarray, float, Any]:
        measure = meter(case.model, case.behaviour, case.units, **case.how)
        measure.spent += IG
        best = np.argsort(-np.abs(scores), kind="stable")[: 2 * int(case.sizes.max())]
        out = trim(measure, best[scores[best] != 0], case.sizes.tolist(), budget=budget, values=np.abs(scores))
        return out.masks, out.spent, {"measured_to_the_end": out.measured}

    case.add(name, make)


def ranked(case: Case, name: str) -> None:
    """The best by score."""
    case.add(name, lambda: (metrics.nested(case.scores, case.sizes, signed=True), IG, None))


def flat(case: Case) -> None:
    """The methods without a tree."""
    ranked(case, "ig")
    eliminated(case, "ig, elimination")
    n, batch, budgeted = case.behaviour["attribution"].n, 16, _steps(case)

    def learned(kind: Kind, left_out: float, steps: int = budgeted) -> tuple[np.ndarray, float, Any]:
        learning = Learning(steps=steps, batch=batch, left_out=left_out)
        found = learned_scores(case.model, case.behaviour, case.units, kind=kind, how=learning, **_without_batch(case))
        spent = (found.forwards + 2 * found.backwards) / n
        return metrics.nested(found.values, case.sizes, signed=True), spent, {"steps": steps}

    case.add("topk", lambda: learned("topk", 0.95))
    case.add("topk, long", lambda: learned("topk", 0.95, case.cfg.long))
    few = 1 - float(np.median(case.cfg.shares))
    case.add("pruning", lambda: learned("pruning", few))
    case.add("pruning, long", lambda: learned("pruning", few, case.cfg.long))


def _without_batch(case: Case) -> Any:
    return {key: value for key, value in case.how.items() if key != "batch"}


def on_tree(case: Case, name: str, h: Hierarchy, steps: int, kind: Kind = "pruning", *, prior: bool = True) -> None:
    """Masks learned on a tree."""
    n, batch = case.behaviour["attribution"].n, 16
    how = Learning(steps=steps, batch=batch, left_out=1 - float(np.median(case.sizes)) / h.n)

    def make() -> tuple[np.ndarray, float, Any]:
        given: Any = _without_batch(case) | {"kind": kind, "how": how, "start": case.scores if prior else None}
        found = tree_scores(case.model, case.behaviour, case.units, h, case.graph.unit, **given)
        spent = IG * prior + (found.forwards + 2 * found.backwards) / n
        return metrics.nested(found.values, case.sizes, signed=True), spent, {"steps": how.steps}

    case.add(name, make)


def _steps(case: Case) -> int:
    """Steps of 16 prompts that the budget buys: a forward and a backward pass each."""
    n = case.behaviour["attribution"].n
    return int((case.cfg.budget - 2 - IG) * n / (3 * min(16, n)))


def grouped(case: Case, name: str, h: Hierarchy, *, prior: bool) -> None:
    """Group ablations down a tree with half of the budget, elimination with the other half; scores as prior or not."""
    cfg = case.cfg

    def make() -> tuple[np.ndarray, float, Any]:
        measure = meter(case.model, case.behaviour, case.units, **case.how)
        measure.spent += IG if prior else 0
        half = (cfg.budget + measure.spent) // 2
        scores = case.scores / measure.gap if prior else None
        found = group_search(measure, h, case.graph.unit, How(half, cfg.least), scores)
        searched, order = measure.spent, found.order
        most = 2 * int(case.sizes.max())
        if len(order) < case.sizes.max():  # too few were left: the others follow, by what is known of them
            rest = np.setdiff1d(case.graph.unit, order)
            order = np.concatenate([order, rest[np.argsort(-np.abs(case.scores[rest]) * prior, kind="stable")]])
        values = found.density
        out = trim(measure, order[:most], case.sizes.tolist(), budget=cfg.budget, values=values)
        about = {"searched": searched, "stopped": found.stopped, "left": len(found.order), "sets": len(found.sets)}
        return out.masks, out.spent, about | {"measured_to_the_end": out.measured}

    case.add(name, make)


def started(cfg: Config, model: tc.Model, d: tc.Transcoders, task: str) -> tuple[Case, dict[str, Any]]:
    """The behaviour, its graph, and how long that took."""
    behaviour = tc.make_behaviour(model, task, sizes={"attribution": cfg.prompts, "report": cfg.report}, seed=cfg.seed)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    start = time.perf_counter()
    whole = build_graph(model, behaviour, units, dictionary=d, lengths=cfg.lengths)
    seconds = time.perf_counter() - start
    graph = capped(most_edges(whole, 16, 16).only_units(), cfg.nodes, "importance")
    about = {"nodes": whole.n, "edges": len(whole.source), "units": graph.n, "unit_edges": len(graph.source)}
    about |= {"seconds": seconds, "live": int(np.sum(whole.importance != 0)), "prompts": whole.about["prompts"]}
    sizes = metrics.counts_of(cfg.shares, units.n)
    return Case(cfg, model, behaviour, units, graph, {"dictionary": d, "batch": 16}, sizes), about


def trees(cfg: Config, graph: BehaviourGraph) -> tuple[dict[str, Hierarchy], dict[str, Any]]:
    """The trees, and their sizes and seconds."""
    found: dict[str, Hierarchy] = {}
    about: dict[str, Any] = {}
    options: dict[str, Any] = {
        "sound": {},
        "discounted": {"affinity": "degree_discounted"},
        "faithful": {"mode": "faithful"},
    }
    for name, choice in options.items():
        start = time.perf_counter()
        h = found[name] = hierarchy(graph, seed=cfg.seed, **choice)
        seconds = time.perf_counter() - start
        leaf = int(h.size[h.leaves].max())
        about[name] = {"seconds": seconds, "depth": int(h.depth.max()), "leaves": len(h.leaves), "largest_leaf": leaf}
    found["random"] = shuffled(found["sound"], cfg.seed + 1)
    return found, about


def report(case: Case) -> dict[str, Any]:
    """Everything on the report split."""
    cfg, names = case.cfg, list(case.masks)
    groups, live = case.units.groups(), np.zeros(case.units.n, bool)
    live[case.graph.unit] = True
    nulls = {}
    last = len(case.sizes) - 1
    mask = case.masks["groups on sound, ig as prior"][last]
    nulls[last, "all"] = metrics.matched(mask, groups, cfg.random, cfg.seed)
    nulls[last, "live"] = metrics.matched(mask, np.where(live, groups, -1), cfg.random, cfg.seed + 1)
    stacked = np.concatenate([*(case.masks[n] for n in names), *nulls.values(), np.zeros((1, case.units.n), bool)])
    runs = tc.run_circuits(case.model, case.behaviour, stacked, case.units, **case.how, at_once=32)
    none = runs.circuits.metric[-1]
    metrics.check_range(runs.model.metric, none)
    rows, K = [], len(case.sizes)
    for i, name in enumerate(names):
        for k, size in enumerate(case.sizes):
            about = {"task": case.behaviour.name, "method": name, "units": int(size), "share": cfg.shares[k]}
            rows.append(about | case.cost[name] | _figures(runs, i * K + k, names.index("ig") * K + k, none))
    at, found = len(names) * K, []
    f = metrics.faithfulness(runs.circuits.metric, runs.model.metric, none)
    for k, kind in nulls:
        mine = slice(at, at + cfg.random)
        right = runs.circuits.right[mine].mean(1) / runs.model.right.mean()
        own = {"units": int(case.sizes[k]), "of": kind, "faithfulness_95": float(np.quantile(f[mine], 0.95))}
        found.append({"task": case.behaviour.name} | own | {"phi_95": float(np.quantile(right, 0.95))})
        at += cfg.random
    nothing = float(runs.circuits.right[-1].mean() / runs.model.right.mean())
    return {"rows": rows, "nulls": found, "nothing_phi": nothing, "accuracy": float(runs.model.right.mean())}


def _figures(runs: Runs, at: int, ig: int, none: np.ndarray) -> dict[str, Any]:
    found: Answers = runs.circuits
    full = runs.model.metric

    def further(c: Any, other: Any, m: Any, z: Any) -> Any:
        return np.abs(1 - (c - z) / (m - z)) - np.abs(1 - (other - z) / (m - z))

    return {
        "faithfulness": asdict(metrics.faithful(found.metric[at], full, none)),
        "phi": asdict(metrics.preserved(found.right[at], runs.model.right)),
        "kl": float(found.kl[at].mean()),
        "miss_beyond_ig": asdict(metrics.bootstrap(further, found.metric[at], found.metric[ig], full, none)),
    }


def case_of(cfg: Config, model: tc.Model, d: tc.Transcoders, task: str) -> dict[str, Any]:
    """One behaviour by all methods."""
    case, about = started(cfg, model, d, task)
    flat(case)
    found, shapes = trees(cfg, case.graph)
    for name, steps in (("", _steps(case)), (", long", cfg.long)):
        on_tree(case, "gates on sound" + name, found["sound"], steps)
        on_tree(case, "topk on sound, ig as prior" + name, found["sound"], steps, "topk")
        on_tree(case, "topk on sound" + name, found["sound"], steps, "topk", prior=False)
    on_tree(case, "topk on random", found["random"], _steps(case), "topk", prior=False)
    for name, h in found.items():
        for prior in (False, True):
            if prior or name != "discounted":
                grouped(case, f"groups on {name}" + (", ig as prior" if prior else ""), h, prior=prior)
    return {"task": task, "units": case.units.n, "graph": about, "trees": shapes} | report(case)


def kept(cfg: Config) -> list[dict[str, Any]]:
    """Other behaviours' cases of an earlier run with the same settings."""
    path = RESULTS / "hierarchical_circuits.json"
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text())
    mine = json.loads(json.dumps(asdict(cfg)))
    same = {key for key in mine if key != "tasks" and earlier["config"].get(key) != mine[key]} == set()
    return [c for c in earlier["figures"]["cases"] if c["task"] not in cfg.tasks] if same else []


def main(cfg: Config) -> None:
    """Measure, print, write after each behaviour."""
    model = tc.load_model(cfg.model)
    d, found = tc.load_transcoders(cfg.transcoders, model=model), kept(cfg)
    for task in cfg.tasks:
        found.append(case_of(cfg, model, d, task) | {"machine_load": os.getloadavg()[0]})
        save("hierarchical_circuits", cfg, {"cases": found})
        show(f"{task}: faithfulness", _table(found[-1]["rows"]))
        show("nulls", found[-1]["nulls"])


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for r in rows:
        line = found.setdefault(r["method"], {"method": r["method"]})
        line[f"{r['units']}"] = f"{r['faithfulness']['value']:.3f} ({r['phi']['value']:.2f})"
        line |= {"evaluations": r["evaluations"], "seconds": r["seconds"]}
    return list(found.values())


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
