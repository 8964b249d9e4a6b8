"""Do group ablations down a tree find a planted circuit with fewer runs than single ablations?

    python -m experiments.group_search_synthetic

A graph of 480 nodes in eight communities; 40 of them are the circuit, drawn from two of the communities (or scattered
over all: the clusters then ignore the circuit). Edges of the circuit are stronger than others (1.5 + |N|, others |N|).
Effects add up, a node's is 0.5 + |N|; every leaf has a noisy score; a query of any set has a fifth of that noise. With
redundancy some circuit nodes are pairs whose effect is lost only with both: neither is necessary, and single ablation
sees 0. A pair lies within a community or in two of them. All methods keep 48 nodes.

Recall is over the circuit's nodes; of a redundant pair one is enough, as one keeps the effect. `effect` is the part of
the whole circuit's effect that the kept nodes have. Intervals: bootstrap over seeds. `left` drops jointly
(`tcircuits.circuits.group_search`), `whole` is the rule as published in the specification.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from experiments.common import save, show
from tcircuits.circuits.affinity import symmetric
from tcircuits.circuits.group_search import How, group_search, single_search
from tcircuits.circuits.hierarchy import paper_levels, top_down
from tcircuits.circuits.meter import Meter
from tcircuits.circuits.metrics import bootstrap
from tcircuits.circuits.traversal import survivors, traverse
from tcircuits.circuits.tree import Hierarchy, shuffled
from tcircuits.circuits.trimming import trim
from tcircuits.types import Float, Int

PROMPTS = 16  # a query's noise is that of a mean over so many


@dataclass(frozen=True)
class Config:
    """What is planted and how it is looked for."""

    n: int = 480
    """Nodes."""
    circuit: int = 40
    """Of them in the circuit."""
    kept: int = 48
    """By every method."""
    communities: int = 8
    """Of nodes."""
    noise: tuple[float, ...] = (0.25, 1.0, 2.0)
    """Of leaf scores; a query has a fifth."""
    budgets: tuple[int, ...] = (120, 240)
    """Queries."""
    layouts: tuple[str, ...] = ("two communities", "scattered")
    """Where the circuit is."""
    pairs: tuple[str, ...] = ("none", "within", "across")
    """Redundant ones."""
    n_pairs: int = 8
    """Of them, 16 of the circuit's 40 nodes."""
    seeds: int = 10
    """Worlds."""


@dataclass(frozen=True)
class World:
    """A graph, what its nodes do, and what is known of them beforehand."""

    weight: Any
    effect: Float[np.ndarray, " n"]
    pairs: Int[np.ndarray, "p 2"]
    score: Float[np.ndarray, " n"]

    @property
    def single(self) -> Int[np.ndarray, " s"]:
        """Circuit nodes without a stand-in."""
        return np.setdiff1d(np.flatnonzero(self.effect), self.pairs)

    def worth(self, masks: np.ndarray) -> np.ndarray:
        """The metric of circuits without noise: a pair counts once, with the effect of its first."""
        a, b = self.pairs.T if len(self.pairs) else (np.zeros(0, int), np.zeros(0, int))
        own = self.single
        return masks[:, own] @ self.effect[own] + (masks[:, a] | masks[:, b]) @ self.effect[a]


def world(cfg: Config, noise: float, layout: str, pairs: str, rng: np.random.Generator) -> World:
    """Draw one."""
    n, label = cfg.n, rng.permutation(np.arange(cfg.n) % cfg.communities)
    pool = np.flatnonzero(label < 2) if layout == "two communities" else np.arange(n)
    inside = rng.choice(pool, cfg.circuit, replace=False)
    effect = np.zeros(n)
    effect[inside] = 0.5 + np.abs(rng.normal(size=cfg.circuit))
    same, both = label[:, None] == label, np.isin(np.arange(n), inside)
    both = both[:, None] & both
    there = rng.uniform(size=(n, n)) < np.where(same, 0.1, 0.01)
    weight = there * (np.abs(rng.normal(size=(n, n))) + 1.5 * both)
    np.fill_diagonal(weight, 0)
    twins = _pairs(inside, label, cfg.n_pairs, pairs, rng)
    if len(twins):
        effect[twins[:, 1]] = effect[twins[:, 0]]
    seen = effect.copy()
    seen[twins.ravel()] = 0  # a leaf's score is a local one: it sees no effect where another stands in
    return World(csr_array(weight), effect, twins, seen + noise * rng.normal(size=n))


def _pairs(inside: np.ndarray, label: np.ndarray, n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Pairs of circuit nodes of one community, or of two."""
    found: list[tuple[int, int]] = []
    free = list(rng.permutation(inside))
    while free and len(found) < n and kind != "none":
        a = free.pop()
        other = next((b for b in free if (label[a] == label[b]) == (kind == "within")), None)
        if other is not None:
            free.remove(other)
            found.append((int(a), int(other)))
    return np.array(found, int).reshape(-1, 2)


def recall(w: World, kept: Int[np.ndarray, " k"]) -> dict[str, float]:
    """Of the circuit's parts (nodes, or pairs), of redundant pairs alone, and of the effect."""
    mask = np.zeros((1, len(w.effect)), bool)
    mask[0, kept] = True
    own, twins = mask[0, w.single], mask[0, w.pairs].any(1) if len(w.pairs) else np.zeros(0, bool)
    whole = w.worth(np.ones_like(mask))[0]
    return {
        "recall": float(np.concatenate([own, twins]).mean()),
        "pairs": float(twins.mean()) if len(twins) else 0.0,
        "effect": float(w.worth(mask)[0] / whole),
    }


def measured(cfg: Config, w: World, noise: float, budget: int, tree: Hierarchy, seed: int) -> dict[str, Any]:
    """What the methods that query keep, and what they spent."""

    def meter(salt: int) -> Meter:
        rng = np.random.default_rng([seed, salt])
        sd = 0.2 * noise * np.sqrt(PROMPTS)

        def run(masks: np.ndarray) -> np.ndarray:
            return w.worth(masks)[:, None] + sd * rng.normal(size=(len(masks), PROMPTS))

        found = Meter(run, cfg.n)
        found.spent = 0  # the whole and nothing are known to all methods alike
        return found

    found: dict[str, Any] = {}
    strength = np.asarray(w.weight.sum(0) + w.weight.sum(1)).ravel()
    for name, order in (("strength", strength), ("score", w.score)):
        single = single_search(meter(1), np.argsort(-order, kind="stable"), budget=budget, batch=budget)
        found[f"single ablations, by {name}"] = single.order, single.spent
    for base in ("whole", "left"):
        for prior, about in ((None, ""), (np.maximum(w.score, 0), ", score as prior")):
            how = How(budget, least=0.2 / max(cfg.circuit, 1), base=base, signed=True)
            groups = group_search(meter(2), tree, np.arange(cfg.n), how, prior)
            found[f"group ablations, {base}{about}"] = groups.order, groups.spent
    measure = meter(3)
    groups = group_search(measure, tree, np.arange(cfg.n), How(int(0.7 * budget), 0.2 / cfg.circuit, "left", True))
    if len(groups.order) > cfg.kept:
        out = trim(measure, groups.order[: 2 * cfg.kept], [cfg.kept], budget=budget, pieces=24)
        found["group ablations, left, then elimination"] = np.flatnonzero(out.masks[0]), measure.spent
    else:
        found["group ablations, left, then elimination"] = groups.order, measure.spent
    null = group_search(meter(4), shuffled(tree, seed), np.arange(cfg.n), How(budget, 0.2 / cfg.circuit, "left", True))
    found["group ablations, left, random tree"] = null.order, null.spent
    return found


def scored(cfg: Config, w: World, tree: Hierarchy, seed: int) -> dict[str, Any]:
    """What the methods that only look at scores keep."""
    s = symmetric(w.weight)
    degree = np.asarray(s.sum(1)).ravel()
    smooth = (w.score + (s @ w.score) / np.maximum(degree, 1e-12)) / 2
    leaf = tree.labels(int(tree.depth.max()))
    mean = np.bincount(leaf, w.score) / np.bincount(leaf)
    top = np.full(len(mean), -np.inf)
    np.maximum.at(top, leaf, w.score)
    papers = paper_levels(w.weight, seed=seed)
    alive = survivors(papers, w.score)
    return {
        "flat top-K of scores": (np.argsort(-w.score, kind="stable"), 0),
        "flat top-K, one smoothing step": (np.argsort(-smooth, kind="stable"), 0),
        "sets of leaves by mean score": (np.lexsort((-w.score, -mean[leaf])), 0),
        "sets of leaves by best score": (np.lexsort((-w.score, -top[leaf])), 0),
        "paper's levels, keep 2": (np.argsort(-np.where(alive, w.score, -np.inf), kind="stable"), 0),
        "paper's traversal": (traverse(papers, s, w.score, size=cfg.kept), 0),
    }


def case(cfg: Config, noise: float, layout: str, pairs: str) -> list[dict[str, Any]]:
    """All methods on all seeds of one kind of world."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(cfg.seeds):
        w = world(cfg, noise, layout, pairs, np.random.default_rng([seed, int(100 * noise)]))
        tree = top_down(symmetric(w.weight), seed=seed)
        kept = scored(cfg, w, tree, seed)
        for budget in cfg.budgets:
            own = measured(cfg, w, noise, budget, tree, seed)
            kept |= {f"{budget} {name}": value for name, value in own.items()}
        for name, (order, spent) in kept.items():
            found.setdefault(name, []).append(recall(w, order[: cfg.kept]) | {"queries": float(spent)})
    rows = []
    for name, each in found.items():
        row: dict[str, Any] = {"method": name, "noise": noise, "layout": layout, "redundancy": pairs}
        for key in ("recall", "pairs", "effect"):
            row[key] = asdict(bootstrap(lambda m: m, np.array([e[key] for e in each])))
        rows.append(row | {"queries": float(np.mean([e["queries"] for e in each]))})
    return rows


def runs_to(cfg: Config, noise: float, pairs: str, share: float = 0.9) -> dict[str, Any]:
    """The smallest budget at which each way keeps this part of the effect on average; None: not with n queries."""
    names = ("single ablations, by strength", "group ablations, left", "group ablations, left, score as prior")
    found: dict[str, Any] = {"noise": noise, "redundancy": pairs, "share": share} | dict.fromkeys(names)
    for budget in (40, 60, 85, 120, 170, 240, 340, cfg.n):
        each: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(cfg.seeds):
            w = world(cfg, noise, "two communities", pairs, np.random.default_rng([seed, int(100 * noise)]))
            own = measured(cfg, w, noise, budget, top_down(symmetric(w.weight), seed=seed), seed)
            for name in names:
                each[name].append(recall(w, own[name][0][: cfg.kept])["effect"])
        for name in names:
            if found[name] is None and np.mean(each[name]) >= share:
                found[name] = budget
        if all(found[name] is not None for name in names):
            break
    return found


def main(cfg: Config) -> None:
    """Measure, print, write."""
    rows: list[dict[str, Any]] = []
    for layout in cfg.layouts:
        for pairs in cfg.pairs:
            for noise in cfg.noise:
                rows += case(cfg, noise, layout, pairs)
            here = [r for r in rows if (r["layout"], r["redundancy"]) == (layout, pairs)]
            show(f"{layout}, pairs {pairs}: recall (effect)", _table(here))
    reach = [runs_to(cfg, noise, pairs) for noise in cfg.noise for pairs in ("none", "within")]
    show("queries for nine tenths of the effect", reach)
    save("group_search_synthetic", cfg, {"rows": rows, "queries_to_nine_tenths": reach})


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for r in rows:
        line = found.setdefault(r["method"], {"method": r["method"]})
        more = "" if r["redundancy"] == "none" else f" pairs {r['pairs']['value']:.2f}"
        line[f"noise {r['noise']}"] = f"{r['recall']['value']:.2f} ({r['effect']['value']:.2f}){more}"
    return list(found.values())


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
