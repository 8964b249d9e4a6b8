"""Does coarsening a behaviour's graph keep its spectrum?

    python -m experiments.coarsening

Graphs of the embedded model's behaviours, units only (heads and transcoder features), affinity log1p of magnitudes. Of
every way to coarsen the level with the most clusters below half of the nodes is compared with the graph itself: errors
of the 30 smallest eigenvalues that are not zero, and of the spaces that they span (`circuits.coarse_quality`; Loukas
2019), beside the same clusters with members dealt out at random (the null).

The paper writes the affinity as the symmetric part of the signed A: `signed_degree_not_positive` is the share of nodes
whose degree is then 0 or below, where the normalised Laplacian does not exist.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, show
from tcircuits.circuits.affinity import affinity
from tcircuits.circuits.behaviour_graph import BehaviourGraph, most_edges
from tcircuits.circuits.coarse_quality import Quality, coarse_quality
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.tree import Hierarchy, shuffled

WAYS: dict[str, dict[str, Any]] = {
    "sound": {},
    "sound, degree-discounted": {"affinity": "degree_discounted"},
    "faithful": {"mode": "faithful"},
    "heavy edges": {"mode": "hem"},
    "local variation": {"mode": "variation"},
}


@dataclass(frozen=True)
class Config:
    """Which graphs."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "tiny-transcoders"
    """The dictionary of features."""
    tasks: tuple[str, ...] = ("ioi", "agreement")
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 16
    """Of each graph, of the most frequent length."""
    edges: int = 16
    """Out of each node, and as many into each."""
    seed: int = 0
    """Of prompts, trees and nulls."""


def graph(cfg: Config, model: tc.Model, d: tc.Transcoders, task: str) -> BehaviourGraph:
    """The graph of a behaviour's units; nodes without edges are left out (they have no part in the spectrum)."""
    behaviour = tc.make_behaviour(model, task, seed=cfg.seed)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    whole = tc.build_graph(model, behaviour, units, dictionary=d, prompts=cfg.prompts, lengths=1, method="gradient")
    thin = most_edges(whole.only_units(), cfg.edges, cfg.edges)
    return thin.with_nodes(thin.strength > 0)


def finest(h: Hierarchy) -> int:
    """The level with the most clusters that still is coarser than half of the nodes."""
    counts = [int(h.labels(level).max()) + 1 for level in range(int(h.depth.max()) + 1)]
    return max(level for level, count in enumerate(counts) if count <= max(1, h.n // 2))


def rows_of(cfg: Config, task: str, g: BehaviourGraph) -> list[dict[str, Any]]:
    """Every way, beside its null."""
    s, rows = affinity(g), []
    signed = g.matrix(g.signed)
    negative = float(np.mean((signed + signed.T).sum(0) <= 0))
    for name, options in WAYS.items():
        h = hierarchy(g, seed=cfg.seed, **options)
        level = finest(h)
        own = coarse_quality(s, h.labels(level), seed=cfg.seed)
        null = coarse_quality(s, shuffled(h, cfg.seed).labels(level), seed=cfg.seed)
        about: dict[str, Any] = {
            "task": task,
            "way": name,
            "nodes": g.n,
            "edges": len(g.source),
            "clusters": own.clusters,
        }
        about |= {"levels": int(h.depth.max()), "signed_degree_not_positive": negative}
        rows.append(about | _figures("", own) | _figures("null_", null))
    return rows


def _figures(prefix: str, q: Quality) -> dict[str, Any]:
    none = not len(q.eigenvalue)
    return {
        f"{prefix}eigenvalues": len(q.eigenvalue),
        f"{prefix}eigenvalue": None if none else float(np.median(q.eigenvalue)),
        f"{prefix}subspace": None if none else float(q.subspace[-1]),
        f"{prefix}cut": q.cut,
        f"{prefix}largest": q.largest,
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    d, rows = tc.load_transcoders(cfg.transcoders, model=model), []
    for task in cfg.tasks:
        rows += rows_of(cfg, task, graph(cfg, model, d, task))
    show("errors of eigenvalues (median) and spaces, and of the null", rows)
    save("coarsening", cfg, {"rows": rows})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
