"""Influence, scores and pruning of a graph on the host: float64, compressed rows, memory grows with edges, not N^2.

The same definitions as `influence.py` (which runs on devices); one test holds both to one oracle. Order of operations
and ties are the reference's (circuit-tracer `prune_graph`): the node threshold keeps every node whose influence is at
least that of the node at which the sorted cumulative share first reaches it, so nodes that tie with it are kept; edges
likewise.
"""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from tcircuits.attribution.graph import Graph, segment_sums
from tcircuits.types import InputError

TINY = 1e-30


@dataclass(frozen=True)
class GraphScores:
    """What the graph explains, each in [0, 1].

    Attributes:
        replacement: influence of tokens over that of tokens, errors and unexpanded leaves.
        completeness: share of input that is not error, over all nodes (reference form: errors and tokens count as
            complete; unexpanded leaves are no nodes).
        completeness_inputs: the same over nodes that have inputs.
        unexpanded_share: influence of unexpanded leaves over that of all leaves.
        error_share: the same for errors.
        bias_share: influence-weighted share of constants in |row| + |bias| (constants have no part in the influence).
        origin_share: the part of it from position 0 where its MLPs are no nodes.
    """

    replacement: float
    completeness: float
    completeness_inputs: float
    unexpanded_share: float
    error_share: float
    bias_share: float
    origin_share: float


@dataclass(frozen=True)
class Series:
    """Influence of columns [W], unexpanded leaves [L, T], and rows [R] (with the weight that starts there)."""

    columns: np.ndarray
    unexpanded: np.ndarray
    rows: np.ndarray


def row_totals(g: Graph, weight: np.ndarray, alive: np.ndarray | None = None) -> np.ndarray:
    """Absolute total [R] of every row, with leaves and tail (of `alive` rows), in float64."""
    total = segment_sums(weight, g.row_start)
    rest = g.row_unexpanded_abs.sum((1, 2), dtype=np.float64) + g.row_tail_abs
    return total + (rest if alive is None else rest * alive)


def series(g: Graph, weight: np.ndarray, totals: np.ndarray) -> Series:
    """W Ahat + w Ahat^2 + ... in one pass from the top: targets first, then features layer by layer."""
    n, W = g.n_features, g.n_sources
    columns, rows = np.zeros(W), np.zeros(n + len(g.targets))
    rows[n:] = g.target_weights
    bounds = [n + len(g.targets), n, *np.searchsorted(g.features[:, 0], np.arange(g.n_layers - 1, -1, -1))]
    for hi, lo in pairwise(bounds):
        if lo < n:
            rows[lo:hi] = columns[lo:hi]
        scale = rows[lo:hi] / np.maximum(totals[lo:hi], TINY)
        edges = slice(g.row_start[lo], g.row_start[hi])
        per_edge = np.repeat(scale, np.diff(g.row_start[lo : hi + 1]))
        columns += np.bincount(g.source[edges], per_edge * weight[edges], W)
    leaves = np.einsum("r,rlt->lt", rows / np.maximum(totals, TINY), g.row_unexpanded_abs)
    return Series(columns, leaves, rows)


def absolute(g: Graph) -> np.ndarray:
    """|weights| in float64."""
    return np.abs(g.weight).astype(np.float64)


def with_influence(g: Graph) -> Graph:
    """The graph with its influence filled in, from all its edges."""
    weight = absolute(g)
    s = series(g, weight, row_totals(g, weight))
    return replace(g, influence=s.columns, influence_unexpanded=s.unexpanded)


def threshold(values: np.ndarray, share: float) -> float:
    """The value of the sorted entry at which the cumulative share first reaches `share`; no sort of everything.

    Non-negative floats are ordered like their bit patterns: a histogram of the leading bits finds the bin, and only
    that bin is sorted.
    """
    values = np.ascontiguousarray(values, np.float64)
    goal = share * values.sum()
    key = (values.view(np.uint64) >> np.uint64(44)).astype(np.int64)
    first = int(key.min())
    sums = np.bincount(key - first, values)
    above = np.concatenate([np.cumsum(sums[::-1])[::-1][1:], [0.0]])
    candidates = np.flatnonzero(above + sums >= goal)
    if not len(candidates):
        return float(values.min())
    best = candidates[-1]
    inside = np.sort(values[key == best + first])[::-1]
    reached = np.searchsorted(above[best] + np.cumsum(inside), goal)
    return float(inside[min(reached, len(inside) - 1)])


def scores(g: Graph) -> GraphScores:
    """Replacement and completeness scores and the shares of what is not explained, on the unpruned graph.

    `prune` keeps them in the settings: a compacted graph no longer has the edges for it.
    """
    if "scores" in g.settings:
        return GraphScores(**g.settings["scores"])
    weight = absolute(g)
    totals = row_totals(g, weight)
    s = series(g, weight, totals)
    n, E = g.n_features, g.n_errors
    errors, tokens, leaves = s.columns[n : n + E].sum(), s.columns[n + E :].sum(), s.unexpanded.sum()
    from_error = segment_sums(weight * ((g.source >= n) & (g.source < n + E)), g.row_start)
    lost = (from_error + g.row_unexpanded_abs.sum((1, 2), dtype=np.float64)) / np.maximum(totals, TINY)
    complete, through, fed = (1 - lost) * s.rows, s.rows.sum(), totals > 0
    ends, nodes = errors + tokens + leaves, errors + tokens
    mass = np.maximum(totals + np.abs(g.row_bias), TINY)
    return GraphScores(
        replacement=float(tokens / max(ends, TINY)),
        completeness=float((complete.sum() + nodes) / max(through + nodes, TINY)),
        completeness_inputs=float(complete[fed].sum() / max(s.rows[fed].sum(), TINY)),
        unexpanded_share=float(leaves / max(ends, TINY)),
        error_share=float(errors / max(ends, TINY)),
        bias_share=float((s.rows * np.abs(g.row_bias) / mass).sum() / max(through, TINY)),
        origin_share=float((s.rows * np.abs(g.row_origin) / mass).sum() / max(through, TINY)),
    )


def prune(graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Graph:
    """The same graph with `node_mask` [N], `edge_mask` [edges] and `cumulative` [N].

    Nodes are kept until they carry `node_threshold` of the nodes' influence (tokens and targets always; unexpanded
    leaves are no nodes, but their mass stays in the totals of kept rows), edges until they carry `edge_threshold` of
    what remains, weighted by their target's influence in the pruned graph. Then features and errors without an
    outgoing edge, and features without an incoming one, go, until none is left.

    Raises:
        InputError: a threshold outside 0..1.
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name}={value} is outside 0..1: it is the share of influence to keep")
    inf = graph.influence.astype(np.float64)
    columns = inf >= threshold(inf, node_threshold)
    columns[graph.n_features + graph.n_errors :] = True
    order = np.argsort(-inf, kind="stable")
    cumulative = np.empty_like(inf)
    cumulative[order] = np.cumsum(inf[order]) / max(inf.sum(), TINY)
    edges = _edges(graph, columns, edge_threshold)
    columns, edges = _clean(graph, columns, edges)
    k, thresholds = len(graph.targets), {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    return replace(
        graph,
        node_mask=np.concatenate([columns, np.ones(k, bool)]),
        edge_mask=edges,
        cumulative=np.concatenate([cumulative, np.zeros(k)]),
        settings={**graph.settings, **thresholds, "scores": asdict(scores(graph))},
    )


def _row_kept(g: Graph, columns: np.ndarray) -> np.ndarray:
    return np.concatenate([columns[: g.n_features], np.ones(len(g.targets), bool)])


def edge_scores(g: Graph, columns: np.ndarray) -> np.ndarray:
    """What each edge carries [edges]: its share of its row times the row's influence, among the kept columns [W].

    Edges from or to other nodes have 0. Pruning cuts on these scores; they also rank edges where only some are shown.
    """
    alive, row = _row_kept(g, columns), g.edge_row
    weight = absolute(g) * (alive[row] & columns[g.source])
    totals = row_totals(g, weight, alive)
    own = series(g, weight, totals).rows
    return weight * (own / np.maximum(totals, TINY))[row]


def _edges(g: Graph, columns: np.ndarray, share: float) -> np.ndarray:
    """Edges that carry `share` of the score among those between kept nodes."""
    score = edge_scores(g, columns)
    return (score >= threshold(score, share)) & (score > 0) if len(score) else np.zeros(0, bool)


def _clean(g: Graph, columns: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop dead ends until none is left."""
    n, leaf = g.n_features, g.n_features + g.n_errors
    row = g.edge_row
    while True:
        edges = edges & _row_kept(g, columns)[row] & columns[g.source]
        used = np.bincount(g.source[edges], minlength=g.n_sources) > 0
        fed = np.bincount(row[edges], minlength=len(g.row_start) - 1) > 0
        kept = columns.copy()
        kept[:leaf] &= used[:leaf]
        kept[:n] &= fed[:n]
        if (kept == columns).all():
            return columns, edges
        columns = kept
