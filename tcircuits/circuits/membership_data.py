"""What the membership network sees: every level of a hierarchy as one graph of sets, described free of scale.

Nodes of all levels lie in one array; edges join sets of one level (sums of the weights between their members). Features
of nodes are percentiles within their level or shares, so that they mean the same in other graphs and other models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from scipy.stats import rankdata

from tcircuits.circuits.behaviour_graph import NODE_KINDS, BehaviourGraph, influences
from tcircuits.circuits.hierarchy import sums_between
from tcircuits.circuits.tree import Hierarchy
from tcircuits.types import Float, InputError, Int

NODE_FEATURES = (
    "depth", "strength in", "strength out", "degree in", "degree out", "influence", "|score|", "score's sign",
    "stability", "size", "level", "inner weight", *(f"is {kind}" for kind in NODE_KINDS),
)  # fmt: skip
EDGE_FEATURES = ("weight", "sign", "stability", "layer gap", "backwards")
CUES = ("share of the target's edges", "share times the target's |score|", "sign times the score's sign")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """Levels of one hierarchy, padded: nodes without `real`, edges without `live` count for nothing.

    Attributes:
        node: features [n, F] in the order of `NODE_FEATURES`.
        edge: features [E, X] in the order of `EDGE_FEATURES`; each edge is there in both directions.
        source, target: nodes of each edge.
        effect: measured effects of sets, as parts of what all units are worth; NaN where none was measured, [n].
        family: which nodes are siblings (the same number), [n].
        real, live: 1, or 0 for padding.
        cue: what is known of single edges of the last level, [E, C] in the order of `CUES`; 0 of all others. None where
            edges are not asked for.
        edge_effect: measured effects of them; NaN where none was measured, [E].
    """

    node: Float[Any, "n F"]
    edge: Float[Any, "E X"]
    source: Int[Any, " E"]
    target: Int[Any, " E"]
    effect: Float[Any, " n"]
    family: Int[Any, " n"]
    real: Float[Any, " n"]
    live: Float[Any, " E"]
    cue: Float[Any, "E C"] | None = None
    edge_effect: Float[Any, " E"] | None = None


def sample_of(
    g: BehaviourGraph,
    h: Hierarchy,
    effects: dict[int, float],
    single: dict[int, float],
    *,
    edges: dict[tuple[int, int], float] | None = None,
    most_edges: int = 16,
) -> Sample:
    """One graph with its hierarchy as a sample.

    Args:
        g: of units only.
        h: over its nodes.
        effects: measured effect by tree node.
        single: measured effect by graph node, ablated alone.
        edges: measured effect by source and target, nodes of the graph.
        most_edges: of each node in each level, the heaviest.

    Raises:
        InputError: a hierarchy over other nodes.
    """
    if h.n != g.n:
        raise InputError(f"the hierarchy is over {h.n} things, the graph has {g.n} nodes")
    depth, importance = h.depth, np.abs(g.importance)
    influence = influences(g)[0] if g.start.any() else importance
    parts: dict[str, list[Any]] = {name: [] for name in ("node", "edge", "source", "target", "effect", "family")}
    at, levels = 0, [*range(1, int(depth.max()) + 1), None]
    for level in levels:
        labels = np.arange(g.n) if level is None else h.labels(level)
        names = None if level is None else _sets_at(h, level)
        measured = single if names is None else {i: effects[t] for i, t in enumerate(names) if t in effects}
        n = int(labels.max()) + 1
        joined = _edges(g, labels, most_edges)
        parts["node"].append(_nodes(g, labels, influence, 1.0 if level is None else level / len(levels)))
        parts["edge"].append(joined[2])
        parts["source"].append(joined[0] + at)
        parts["target"].append(joined[1] + at)
        parts["effect"].append(np.array([measured.get(i, np.nan) for i in range(n)]))
        above = h.parent[names] if names is not None else _leaf_of(h)
        parts["family"].append(above + 10_000_000 * len(parts["family"]))
        at += n
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    ones = {"real": np.ones(at, np.float32), "live": np.ones(len(arrays["source"]), np.float32)}
    found = Sample(**arrays, **ones)
    return found if edges is None else _with_edges(found, g, edges)


def _with_edges(s: Sample, g: BehaviourGraph, effects: dict[tuple[int, int], float]) -> Sample:
    """The sample with what is known of the graph's own edges; the last level's nodes are the graph's."""
    first = len(s.node) - g.n
    own = np.flatnonzero((s.source >= first) & (s.edge[:, EDGE_FEATURES.index("backwards")] == 0))
    pairs = np.stack([s.source[own], s.target[own]], 1) - first
    weight, signed = (np.asarray(g.matrix(v).tocsr()[pairs[:, 0], pairs[:, 1]]).ravel() for v in (g.weight, g.signed))
    share = weight / np.maximum(np.bincount(g.target, g.weight, g.n)[pairs[:, 1]], 1e-30)
    score = g.importance[pairs[:, 1]]
    cue, effect = np.zeros((len(s.source), len(CUES)), np.float32), np.full(len(s.source), np.nan)
    cue[own] = np.stack([_rank(share), _rank(share * np.abs(score)), np.sign(signed) * np.sign(score)], 1)
    effect[own] = [effects.get((int(a), int(b)), np.nan) for a, b in pairs]
    return replace(s, cue=cue, edge_effect=effect)


def _sets_at(h: Hierarchy, level: int) -> Int[np.ndarray, " k"]:
    """Tree nodes in the order of `Hierarchy.labels`."""
    depth = h.depth
    leaf = np.isin(np.arange(len(depth)), h.leaves)
    return np.flatnonzero((depth == level) | (leaf & (depth < level)))


def _leaf_of(h: Hierarchy) -> Int[np.ndarray, " n"]:
    found = np.zeros(h.n, np.int64)
    for leaf in h.leaves:
        found[h.members(int(leaf))] = leaf
    return found


def _rank(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Percentiles in 0..1; equal values share one."""
    return (rankdata(x) - 0.5) / len(x)


def _nodes(
    g: BehaviourGraph, labels: Int[np.ndarray, " n"], influence: Float[np.ndarray, " n"], level: float
) -> Float[np.ndarray, "k F"]:
    size = np.bincount(labels).astype(float)

    def total(x: Any) -> Float[np.ndarray, " k"]:
        return np.bincount(labels, x, len(size))

    weights, matrix = sums_between(g.matrix(), labels), sums_between(g.matrix(np.ones(len(g.source))), labels)
    inner = weights.diagonal()
    into, out = weights.sum(0) - inner, weights.sum(1) - inner
    score = total(g.importance)
    stable = np.bincount(labels[g.target], g.share, len(size)) / np.maximum(matrix.sum(0), 1)
    layers = g.nodes[:, 1] / max(int(g.nodes[:, 1].max()), 1)
    columns = [total(layers) / size, _rank(into), _rank(out), _rank(matrix.sum(0)), _rank(matrix.sum(1))]
    columns += [_rank(total(influence)), _rank(np.abs(score)), np.sign(score), stable, np.log1p(size)]
    columns += [np.full(len(size), level), inner / np.maximum(inner + into + out, 1e-30)]
    columns += [total(g.nodes[:, 0] == kind) / size for kind in range(len(NODE_KINDS))]
    return np.stack(columns, 1).astype(np.float32)


def _edges(g: BehaviourGraph, labels: Int[np.ndarray, " n"], most: int) -> tuple[Any, Any, Any]:
    """The heaviest edges between clusters in both directions, with their features."""
    sums = [sums_between(g.matrix(v), labels).tocoo() for v in (g.weight, g.signed, g.share, np.ones(len(g.source)))]
    weight, signed, share, count = (_dense_order(s) for s in sums)
    pairs = np.array(sorted(weight))
    if not len(pairs):
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, len(EDGE_FEATURES)), np.float32)
    value = np.array([weight[tuple(p)] for p in pairs])
    keep = (pairs[:, 0] != pairs[:, 1]) & (_place(pairs[:, 1], value) < most)
    pairs, value = pairs[keep], value[keep]
    layer = np.bincount(labels, g.nodes[:, 1]) / np.bincount(labels) / max(int(g.nodes[:, 1].max()), 1)
    names = [tuple(p) for p in pairs]
    sign = np.array([signed.get(p, 0.0) / max(weight[p], 1e-30) for p in names])
    stable = np.array([share.get(p, 0.0) / max(count.get(p, 1.0), 1.0) for p in names])
    gap = layer[pairs[:, 1]] - layer[pairs[:, 0]]
    rows = np.stack([_rank(value) if len(value) else value, sign, stable, gap, np.zeros(len(pairs))], 1)
    back = rows * np.array([1, 1, 1, -1, 1]) + np.array([0, 0, 0, 0, 1])
    source, target = np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]]
    return source, target, np.concatenate([rows, back]).astype(np.float32)


def _dense_order(matrix: Any) -> dict[tuple[int, int], float]:
    return {(int(i), int(j)): float(v) for i, j, v in zip(matrix.row, matrix.col, matrix.data, strict=True)}


def _place(group: Int[np.ndarray, " E"], value: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """The place of each edge among those into its target, the heaviest first."""
    order = np.lexsort((-value, group))
    first = np.searchsorted(group[order], group[order])
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - first
    return found


def padded(samples: Sequence[Sample]) -> Sample:
    """Samples of one size, stacked: [S, n, ...]. Padding edges join the last node to itself."""
    n, e = max(len(s.node) for s in samples), max(len(s.source) for s in samples)
    told = all(s.cue is not None for s in samples)  # of edges: what some do not have, none keeps

    def fill(x: np.ndarray, size: int, value: Any) -> np.ndarray:
        return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), value, x.dtype)])

    def one(s: Sample) -> Sample:
        ends = {"source": n - 1, "target": n - 1}
        edges = {name: fill(getattr(s, name), e, ends.get(name, 0)) for name in ("edge", "source", "target", "live")}
        nodes = {name: fill(getattr(s, name), n, np.nan if name == "effect" else 0) for name in ("node", "effect")}
        more = {"family": fill(s.family, n, -1), "real": fill(s.real, n, 0)}
        if told and s.cue is not None and s.edge_effect is not None:
            more |= {"cue": fill(s.cue, e, 0), "edge_effect": fill(s.edge_effect, e, np.nan)}
        return Sample(**nodes, **edges, **more)

    return jax.tree.map(lambda *x: np.stack(x), *[one(s) for s in samples])
