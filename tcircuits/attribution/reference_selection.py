"""The public tracer's way to choose `max_feature_nodes`, for comparison with it: rounds of partial influence.

Rows of all targets come first; then, as long as features are missing, all features are ranked by the influence that
the rows known so far give them, and the next `update_interval * batch` unvisited ones get their rows. Columns of
features never visited are dropped *before* rows are normalised. It needs every row, so it only serves graphs that can
be expanded whole.

Source: circuit-tracer 0.5.0, `attribute` with `max_feature_nodes` (re-implemented from its description).
"""

from dataclasses import replace

import numpy as np

from tcircuits.attribution.graph import Graph
from tcircuits.attribution.prune import with_influence

UPDATE_INTERVAL, BATCH = 4, 512


def partial_influence(adjacency: np.ndarray, weights: np.ndarray, known: np.ndarray, n: int, k: int) -> np.ndarray:
    """Influence [N] when only targets and `known` features have rows."""
    rows = np.zeros_like(adjacency)
    live = np.concatenate([np.flatnonzero(known), np.arange(len(adjacency) - k, len(adjacency))])
    rows[live] = adjacency[live]
    rows /= np.maximum(rows.sum(1, keepdims=True), 1e-8)
    step = np.zeros(len(adjacency))
    step[-k:] = weights
    total = np.zeros_like(step)
    while step.any():
        step = step @ rows
        total += step
    return total[:n]


def visited(graph: Graph, n_keep: int, queue: int = UPDATE_INTERVAL * BATCH) -> np.ndarray:
    """Mask [n] of the features that the rounds reach."""
    adjacency = np.abs(graph.dense()).astype(np.float64)
    n, k = graph.n_features, len(graph.targets)
    known = np.zeros(n, bool)
    while known.sum() < n_keep:
        score = partial_influence(adjacency, graph.target_weights, known, n, k)
        order = np.argsort(-score, kind="stable")
        fresh = order[~known[order]][: min(queue, n_keep - int(known.sum()))]
        known[fresh] = True
    return known


def restrict_like_reference(graph: Graph, n_keep: int | None, queue: int = UPDATE_INTERVAL * BATCH) -> Graph:
    """The graph with the visited features only; edges from the others go into the tail, outside a row's total."""
    if n_keep is None or n_keep >= graph.n_features:
        return graph
    keep = visited(graph, n_keep, queue)
    n, k = graph.n_features, len(graph.targets)
    number = np.full(graph.n_sources, -1, np.int64)
    number[np.concatenate([keep, np.ones(graph.n_sources - n, bool)])] = np.arange(
        graph.n_sources - n + int(keep.sum())
    )
    row = graph.edge_row
    row_kept = np.concatenate([keep, np.ones(k, bool)])
    edge_kept = row_kept[row] & (number[graph.source] >= 0)
    dropped = np.bincount(row[~edge_kept], graph.weight[~edge_kept].astype(np.float64), len(row_kept))
    counts = np.bincount(row[edge_kept], minlength=len(row_kept))[row_kept]
    per_row = ("row_bias", "row_origin", "row_value", "row_unexpanded", "row_unexpanded_abs", "row_tail_abs")
    return with_influence(
        replace(
            graph,
            features=graph.features[keep],
            activations=graph.activations[keep],
            row_start=np.concatenate([[0], np.cumsum(counts)]),
            source=number[graph.source[edge_kept]].astype(np.int32),
            weight=graph.weight[edge_kept],
            row_tail=(graph.row_tail + dropped)[row_kept],
            **{name: getattr(graph, name)[row_kept] for name in per_row},
        )
    )
