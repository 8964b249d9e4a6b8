"""Influence, scores and pruning of a graph on the host: float64, compressed rows, memory grows with edges, not N^2.

All edges are read once, block by block (`Graph.blocks`), for influence and scores together; pruning then works on the
edges between kept nodes alone.

The same definitions as `influence.py` (which runs on devices); one test holds both to one oracle. Order of operations
and ties are the reference's (circuit-tracer `prune_graph`): the node threshold keeps every node whose influence is at
least that of the node at which the sorted cumulative share first reaches it, so nodes that tie with it are kept; edges
likewise.
"""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from tcircuits.attribution.graph import Graph, leaf_mass
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
    """Influence of columns [W], unexpanded leaves [L, T], and rows [R] (with the weight that starts there).

    `totals` [R] are the rows' absolute totals with leaves and tail; `from_error` [R] what of them comes from errors.
    """

    columns: np.ndarray
    unexpanded: np.ndarray
    rows: np.ndarray
    totals: np.ndarray
    from_error: np.ndarray


@dataclass(frozen=True)
class Part:
    """Some edges in the order of the graph: their number, row, source and absolute weight."""

    index: np.ndarray
    row: np.ndarray
    source: np.ndarray
    weight: np.ndarray


def _rest(g: Graph) -> np.ndarray:
    """Absolute mass [R] of each row that is no edge: leaves and tail."""
    return leaf_mass(g.row_unexpanded_abs) + g.row_tail_abs


def row_totals(g: Graph) -> np.ndarray:
    """Absolute total [R] of every row, with leaves and tail, in float64."""
    edges = np.zeros(len(g.row_start) - 1)
    for b in g.blocks:
        edges[b.lo : b.hi] = np.abs(b.weight).sum(1, dtype=np.float64)
    return edges + _rest(g)


def _leaves(g: Graph, per_total: np.ndarray) -> np.ndarray:
    """Influence [L, T] of the leaves, from rows' influence over their total."""
    if not any(g.row_unexpanded_abs.strides):  # one number for all of them
        return per_total.sum() * g.row_unexpanded_abs[0].astype(np.float64)
    return np.einsum("r,rlt->lt", per_total, g.row_unexpanded_abs)


def series(g: Graph, known: np.ndarray | None = None) -> Series:
    """W Ahat + w Ahat^2 + ... in one pass from the top: targets first, then features layer by layer.

    Only rows that are `known` [R] (None: all) pass influence on; all have their place in the totals.
    """
    n, E, R = g.n_features, g.n_errors, len(g.row_start) - 1
    columns, rows, totals, from_error = np.zeros(g.n_sources), np.zeros(R), _rest(g), np.zeros(R)
    rows[n:] = g.target_weights
    for b in reversed(g.blocks):
        here, weight = slice(b.lo, b.hi), np.abs(b.weight).astype(np.float64)
        totals[here] += weight.sum(1)
        from_error[here] = weight @ ((b.columns >= n) & (b.columns < n + E)).astype(np.float64)
        if b.lo < n:
            rows[here] = columns[here]
        scale = rows[here] / np.maximum(totals[here], TINY)
        np.add.at(columns, b.columns, (scale if known is None else scale * known[here]) @ weight)
    return Series(columns, _leaves(g, rows / np.maximum(totals, TINY)), rows, totals, from_error)


def with_influence(g: Graph) -> Graph:
    """The graph with its influence and scores filled in, from all its edges."""
    s = series(g)
    settings = {**g.settings, "scores": asdict(_scores(g, s))}
    return replace(g, influence=s.columns, influence_unexpanded=s.unexpanded, settings=settings)


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

    They are in the settings of a graph that has its influence: a compacted one no longer has the edges for it.
    """
    return GraphScores(**g.settings["scores"]) if "scores" in g.settings else _scores(g, series(g))


def _scores(g: Graph, s: Series) -> GraphScores:
    n, E, totals = g.n_features, g.n_errors, s.totals
    errors, tokens, leaves = s.columns[n : n + E].sum(), s.columns[n + E :].sum(), s.unexpanded.sum()
    lost = (s.from_error + leaf_mass(g.row_unexpanded_abs)) / np.maximum(totals, TINY)
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
    columns, edges = _edges(graph, columns, edge_threshold)
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


def _between(g: Graph, columns: np.ndarray) -> Part:
    """The edges between kept nodes."""
    alive = _row_kept(g, columns)
    index, row, source, weight = ([np.zeros(0, kind)] for kind in (np.int64, np.int64, np.int64, np.float64))
    for b in g.blocks:
        rows, some = np.flatnonzero(alive[b.lo : b.hi]), np.flatnonzero(columns[b.columns])
        if len(rows) and len(some):
            index.append((b.edge + rows[:, None] * len(b.columns) + some).ravel())
            row.append(np.repeat(b.lo + rows, len(some)))
            source.append(np.tile(b.columns[some], len(rows)))
            weight.append(np.abs(b.weight[rows[:, None], some]).ravel())
    return Part(*(np.concatenate(x) for x in (index, row, source, weight)))


def _part_scores(g: Graph, columns: np.ndarray, p: Part) -> np.ndarray:
    """What each edge of the part between kept columns carries: its share of its row times the row's influence."""
    n, W, R = g.n_features, g.n_sources, len(g.row_start) - 1
    totals = np.maximum(np.bincount(p.row, p.weight, R) + _rest(g) * _row_kept(g, columns), TINY)
    reached, scale = np.zeros(W), np.zeros(R)
    scale[n:] = g.target_weights / totals[n:]
    bounds = [R, n, *np.searchsorted(g.features[:, 0], np.arange(g.n_layers - 1, -1, -1))]
    for hi, lo in pairwise(bounds):
        if lo < n:
            scale[lo:hi] = reached[lo:hi] / totals[lo:hi]
        edges = slice(*np.searchsorted(p.row, [lo, hi]))
        reached += np.bincount(p.source[edges], scale[p.row[edges]] * p.weight[edges], W)
    return p.weight * scale[p.row]


def edge_scores(g: Graph, columns: np.ndarray) -> np.ndarray:
    """What each edge carries [edges]: its share of its row times the row's influence, among the kept columns [W].

    Edges from or to other nodes have 0. Pruning cuts on these scores; they also rank edges where only some are shown.
    """
    p, out = _between(g, columns), np.zeros(len(g.weight))
    out[p.index] = _part_scores(g, columns, p)
    return out


def _edges(g: Graph, columns: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The nodes [W] and edges that are kept: edges that carry `share` of the score, and no dead ends."""
    p, mask = _between(g, columns), np.zeros(len(g.weight), bool)
    score = _part_scores(g, columns, p)
    some = (score >= threshold(score, share)) & (score > 0) if len(score) else np.zeros(0, bool)
    index, row, source = p.index[some], p.row[some], p.source[some]
    n, leaf = g.n_features, g.n_features + g.n_errors
    while True:
        used = np.bincount(source, minlength=g.n_sources) > 0
        fed = np.bincount(row, minlength=len(g.row_start) - 1) > 0
        kept = columns.copy()
        kept[:leaf] &= used[:leaf]
        kept[:n] &= fed[:n]
        if (kept == columns).all():
            mask[index] = True
            return columns, mask
        columns = kept
        some = _row_kept(g, columns)[row] & columns[source]
        index, row, source = index[some], row[some], source[some]
