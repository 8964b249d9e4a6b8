"""Does the membership network know more than the score that it is given?

    python -m experiments.membership
    python -m experiments.membership --models tiny experiments/models/tiny-llama-1 ... --nodes 200 --seeds 1

For each of the embedded model's behaviours: its graph, the sound hierarchy, and the measured effect of ablating every
set of the tree and every node alone (on the attribution split). The network is trained on all behaviours but one and
ranks the nodes of that one, beside what needs no training (the score of integrated gradients, strength, degree),
logistic regression on the same features, the paper's network, and networks that see some of the nodes' measurements:
trained on those alone, or meta-trained by Reptile on the others and adapted to them (their nodes do not score it).

    AUROC      of telling the tenth of nodes whose ablation costs most from the rest
    recall     of those among as many nodes, the best by rank
    spearman   of rank and measured effect

The second holds out a model instead of a behaviour: networks are trained on all behaviours of the others, in their
neurons, and rank the nodes of every behaviour of a model that they have not seen (`membership_models`).

Means over what is held out, with a bootstrap over it (behaviours, or models); `gain` is paired against the score. The
rule: where the gain's interval reaches 0, searches use the score alone, which is their default.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr

import tcircuits as tc
from experiments.common import save, say, show
from tcircuits.circuits.behaviour_graph import capped, most_edges
from tcircuits.circuits.edge_effects import edge_effects
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.membership import Membership, Training, adapted, fit, predict
from tcircuits.circuits.membership_data import NODE_FEATURES, Sample, sample_of
from tcircuits.circuits.meter import meter
from tcircuits.transcoders.evaluation.intervals import interval, resampled
from tcircuits.types import InputError

TOP = 0.1  # of the nodes are members


@dataclass(frozen=True)
class Config:
    """What is learned from what."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "tiny-transcoders"
    """The dictionary of features."""
    models: tuple[str, ...] = ()
    """Names and folders: hold out one of these at a time, instead of a behaviour of `model`."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction", "pronoun", "agreement_across")
    """Of `tcircuits.tasks.TASKS`; of several models the first four."""
    prompts: int = 16
    """Of the attribution split."""
    nodes: int = 300
    """Of each graph, by importance."""
    support: int = 32
    """Measured nodes of a new behaviour that adaptation may see."""
    seeds: int = 3
    """Networks of each kind, averaged."""
    seed: int = 0
    """Of prompts and draws."""


@dataclass(frozen=True)
class Measured:
    """A behaviour's sample, and the place of its nodes (the last level) in it."""

    task: str
    sample: Sample
    first: int
    model: str = ""

    @property
    def effect(self) -> np.ndarray:
        """Of the nodes alone."""
        return self.sample.effect[self.first :]

    def feature(self, name: str) -> np.ndarray:
        """A feature of the nodes."""
        return self.sample.node[self.first :, NODE_FEATURES.index(name)]


def measured(cfg: Config, model: tc.Model, d: tc.Transcoders, task: str, *, edges: bool = False) -> Measured:
    """Graph, hierarchy, and effects of every set and node; of every edge between nodes too, if asked for."""
    sizes = {"attribution": cfg.prompts, "selection": 1, "report": 1}
    behaviour = tc.make_behaviour(model, task, sizes=sizes, seed=cfg.seed)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    graph = build_graph(model, behaviour, units, dictionary=d, lengths=1)
    g = capped(most_edges(graph.only_units(), 16, 16), cfg.nodes, "importance")
    h, m = hierarchy(g), meter(model, behaviour, units, dictionary=d)
    sets = [h.members(i) for i in range(1, len(h.parent))] + [np.array([i]) for i in range(g.n)]
    masks = np.ones((len(sets), units.n), bool)
    for row, members in zip(masks, sets, strict=True):
        row[g.unit[members]] = False
    lost, _ = m.lost(m.full, np.concatenate([m(part) for part in np.array_split(masks, -(-len(masks) // 128))]))
    effects = {i + 1: float(x) for i, x in enumerate(lost[: len(h.parent) - 1])}
    single = {i: float(x) for i, x in enumerate(lost[len(h.parent) - 1 :])}
    patched = None
    if edges:
        ends = list(zip(g.source.tolist(), g.target.tolist(), strict=True))
        values, own = edge_effects(model, behaviour, units, g.unit[np.array(ends)], dictionary=d, at_once=32)
        patched = dict(zip(ends, m.lost(own, values)[0].tolist(), strict=True))
    sample = sample_of(g, h, effects, single, edges=patched)
    return Measured(task, sample, len(sample.node) - g.n, model.name)


def logistic(train: list[Measured], test: Measured) -> np.ndarray:
    """Logistic regression of membership on the nodes' features, over the other behaviours."""
    x = [b.sample.node[b.first :] for b in train]
    return regressed(x, [members(b.effect) for b in train], test.sample.node[test.first :])


def regressed(rows: list[np.ndarray], labels: list[np.ndarray], test: np.ndarray) -> np.ndarray:
    """Scores of `test` by a logistic regression on rows [n, F] and labels of several behaviours."""
    x, y = np.concatenate(rows), np.concatenate(labels).astype(float)
    mean, sd = x.mean(0), x.std(0) + 1e-6
    x = np.c_[(x - mean) / sd, np.ones(len(x))]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        slope = x.T @ (1 / (1 + np.exp(-z)) - y) / len(y) + 1e-3 * w
        return float(np.mean(np.logaddexp(0, z) - y * z) + 5e-4 * w @ w), slope

    w = minimize(loss, np.zeros(x.shape[1]), jac=True).x
    return ((test - mean) / sd) @ w[:-1]


def members(effect: np.ndarray) -> np.ndarray:
    """The tenth whose ablation costs most."""
    return effect >= np.sort(effect)[-max(1, round(TOP * len(effect)))]


Nets = dict[str, list[Membership]]


def trained(cfg: Config, others: list[Measured]) -> Nets:
    """Networks of each kind, one a seed."""
    samples, seeds = [b.sample for b in others], range(cfg.seed, cfg.seed + cfg.seeds)
    meta = {"steps": 200, "inner": 10, "lr": 1e-2}
    return {
        "gat": [fit(samples, Training(seed=seed)) for seed in seeds],
        "paper": [fit(samples, Training(kind="paper", ranking=0.0, seed=seed)) for seed in seeds],
        "reptile": [fit(samples, Training(seed=seed, **meta)) for seed in seeds],
    }


def rankings(
    cfg: Config, nets: Nets, others: list[Measured], test: Measured, support: np.ndarray
) -> dict[str, np.ndarray]:
    """Every method's score of the held-out behaviour's nodes."""
    hidden = replace(test.sample, effect=np.where(np.arange(len(test.sample.node)) < 0, 0.0, np.nan))
    few = hidden.effect.copy()
    few[test.first + support] = test.effect[support]
    seen = replace(hidden, effect=few)

    def averaged(networks: list[Membership]) -> np.ndarray:
        return np.mean([predict(m, hidden)[test.first :] for m in networks], 0)

    signed = test.feature("|score|") * test.feature("score's sign")
    strength = test.feature("strength in") + test.feature("strength out")
    degree = test.feature("degree in") + test.feature("degree out")
    found = {"score": signed, "|score|": test.feature("|score|"), "strength": strength, "degree": degree}
    found["logistic"] = logistic(others, test)
    found |= {name: averaged(nets[name]) for name in ("gat", "paper")}
    alone = [fit([seen], Training(steps=150, seed=cfg.seed + i)) for i in range(cfg.seeds)]
    return found | {
        "support alone": averaged(alone),
        "reptile, adapted": averaged([adapted(m, seen) for m in nets["reptile"]]),
    }


def figures(effect: np.ndarray, rank: np.ndarray) -> dict[str, float]:
    """AUROC, average precision, recall and Spearman correlation."""
    member = members(effect)
    places, n = rankdata(rank), int(member.sum())
    auroc = (places[member].sum() - n * (n + 1) / 2) / (n * (len(effect) - n))
    right = member[np.argsort(-rank, kind="stable")]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    told = {"auroc": float(auroc), "ap": float(precision[right].mean()), "recall": float(right[:n].mean())}
    return told | {"spearman": float(spearmanr(rank, effect)[0])}


def main(cfg: Config) -> None:
    """Measure, train, print, write."""
    start, all_, refused = time.process_time(), [], []
    for name, transcoders in [(m, "neurons") for m in cfg.models] or [(cfg.model, cfg.transcoders)]:
        model = tc.load_model(name)
        d = tc.load_transcoders(transcoders, model=model)
        for task in cfg.tasks[:4] if cfg.models else cfg.tasks:
            try:
                found = measured(cfg, model, d, task)
            except InputError as problem:  # of a model's neurons: no edge joins the most important nodes
                if not cfg.models:
                    raise
                refused.append({"model": model.name, "task": task, "why": str(problem)})
                continue
            all_.append(found)
            say(f"{model.name}, {task}: {len(found.effect)} nodes, {np.isfinite(found.sample.effect).sum()} sets")
        jax.clear_caches()  # programs of six models would take more maps of memory than a process may have
    graphs, each = time.process_time() - start, []
    of = [b.model if cfg.models else b.task for b in all_]
    for held in dict.fromkeys(of):
        inside = [x == held for x in of]
        others, tests = ([b for b, x in zip(all_, inside, strict=True) if x == side] for side in (False, True))
        each += held_out(cfg, held, others, tests)
        if cfg.models:
            jax.clear_caches()
        say(f"{held} held out")
        rows = summary(each)
        cost = {"graphs_and_measuring": graphs, "training": time.process_time() - start - graphs}
        figures_ = {"rows": rows, "each": each, "refused": refused, "processor_seconds": cost}
        save("membership", cfg, figures_, variant="models" if cfg.models else "")
    show(f"nodes of {'models' if cfg.models else 'behaviours'} held out", rows)


def held_out(cfg: Config, held: str, others: list[Measured], tests: list[Measured]) -> list[dict[str, Any]]:
    """Figures of every method on what was held out, networks trained on the others."""
    nets, rows = trained(cfg, others), []
    for test in tests:
        support = np.random.default_rng(cfg.seed).permutation(len(test.effect))[: cfg.support]
        rest = np.setdiff1d(np.arange(len(test.effect)), support)
        found = rankings(cfg, nets, others, test, support)
        about: dict[str, Any] = {"held_out": held, "model": test.model, "task": test.task}
        rows += [about | {"by": k} | figures(test.effect[rest], v[rest]) for k, v in found.items()]
    return rows


def summary(
    each: list[dict[str, Any]], base: str = "score", names: tuple[str, ...] = ("auroc", "recall", "spearman")
) -> list[dict[str, Any]]:
    """Means over what was held out; gains over `base`, paired."""
    rows = []
    for by in dict.fromkeys(r["by"] for r in each):
        row: dict[str, Any] = {"by": by}
        for name in names:
            own, score = (_by_group([r for r in each if r["by"] == x], name) for x in (by, base))
            gain = interval(float((own - score).mean()), resampled(own - score), len(own))
            row |= {name: float(own.mean()), f"{name} gain": asdict(gain)}
        rows.append(row)
    return rows


def _by_group(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """The mean of a figure over each thing held out."""
    groups = list(dict.fromkeys(r["held_out"] for r in rows))
    return np.array([np.mean([r[name] for r in rows if r["held_out"] == g]) for g in groups])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
