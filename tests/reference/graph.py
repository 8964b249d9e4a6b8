"""Influence, pruning and scores of a graph with dense matrices and full sorts: the reference semantics, step by step.

Nodes stand in the order features, errors, tokens, targets; rows are targets, columns sources. `weights` are those of
the last nodes (probabilities of logits). Biases take no part. `mass [N,L,T]` is the absolute weight of features that
are not nodes; where it is given it enters a row's L1, and its share of influence counts as error.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass
class Sizes:
    """Numbers of nodes by kind; they add up to the matrix's width."""

    features: int
    errors: int
    tokens: int
    targets: int

    @property
    def inner(self) -> int:
        """Features and errors: the nodes that pruning may drop."""
        return self.features + self.errors


@dataclass
class Pruned:
    """Masks over nodes and edges; `cumulative[i]` is the share of influence of node i and all above it."""

    node_mask: Array
    edge_mask: Array
    cumulative: Array


@dataclass
class Scores:
    """Replacement, completeness (over all nodes; and over those that have inputs), influence of unexpanded features."""

    replacement: float
    completeness: float
    completeness_inputs: float
    unexpanded: float


def row_sizes(A: Array, mass: Array | None = None, floor: float = 1e-10) -> Array:
    """L1 of each row, not less than `floor`."""
    size = np.abs(A).sum(1)
    return np.maximum(size if mass is None else size + mass.reshape(len(A), -1).sum(1), floor)


def normalize(A: Array, mass: Array | None = None, floor: float = 1e-10) -> Array:
    """Absolute values, each row divided by its L1."""
    return np.abs(A) / row_sizes(A, mass, floor)[:, None]


def spread(weights: Array, n: int) -> Array:
    """The targets' weights in a vector over all n nodes."""
    out = np.zeros(n)
    out[n - len(weights) :] = weights
    return out


def influence(share: Array, start: Array, max_steps: int = 1000) -> Array:
    """start S + start S^2 + ... until a term is exactly zero."""
    term, total = start @ share, np.zeros_like(start)
    for _ in range(max_steps):
        if not term.any():
            return total
        total = total + term
        term = term @ share
    raise RuntimeError("the series does not end: the graph has a cycle")


def influence_dense(share: Array, start: Array) -> Array:
    """The same sum as start ((I - S)^-1 - I)."""
    return start @ (np.linalg.inv(np.eye(len(share)) - share) - np.eye(len(share)))


def node_influence(A: Array, weights: Array, mass: Array | None = None) -> Array:
    """Influence of every node on the weighted targets."""
    return influence(normalize(A, mass), spread(weights, len(A)))


def edge_influence(A: Array, weights: Array, mass: Array | None = None) -> Array:
    """Share of each edge in its row times the influence of the row's node, targets counted with their weights."""
    share, start = normalize(A, mass), spread(weights, len(A))
    return share * (influence(share, start) + start)[:, None]


def threshold(scores: Array, keep: float) -> float:
    """The score down to which the largest scores together reach the share `keep` of all."""
    ranked = np.sort(scores.ravel())[::-1]
    total = np.cumsum(ranked) / ranked.sum()
    return float(ranked[min(np.searchsorted(total, keep), len(ranked) - 1)])


def cumulative(scores: Array) -> Array:
    """For each score, the share of the total that it and all larger ones hold; ties by number."""
    order = np.argsort(-scores, kind="stable")
    out = np.zeros_like(scores)
    out[order] = np.cumsum(scores[order]) / scores.sum()
    return out


def prune(
    A: Array, weights: Array, sizes: Sizes, node_threshold: float = 0.8, edge_threshold: float = 0.98,
    mass: Array | None = None,
) -> Pruned:  # fmt: skip
    """Node mask, then edge mask on what is left, then nodes without edges, again and again.

    The first clean-up drops nodes without touching the edge mask; only if it dropped any do the rounds begin, which
    first remove the edges of dropped nodes. Unexpanded mass of a dropped node's row goes with the row.
    """
    strength = node_influence(A, weights, mass)
    nodes = strength >= threshold(strength, node_threshold)
    nodes[sizes.inner :] = True
    kept = np.where(nodes[:, None] & nodes[None], A, 0.0)
    kept_mass = None if mass is None else np.where(nodes[:, None, None], mass, 0.0)
    scores = edge_influence(kept, weights, kept_mass)
    edges = scores >= threshold(scores, edge_threshold)
    before = nodes.copy()
    nodes = clean(nodes, edges, sizes)
    while (nodes != before).any():
        before = nodes
        edges = edges & nodes[:, None] & nodes[None]
        nodes = clean(nodes, edges, sizes)
    return Pruned(nodes, edges, cumulative(strength))


def clean(nodes: Array, edges: Array, sizes: Sizes) -> Array:
    """Features and errors must reach something; features must be reached."""
    out = nodes.copy()
    for i in range(sizes.inner):
        out[i] = out[i] and edges[:, i].any()
    for i in range(sizes.features):
        out[i] = out[i] and edges[i].any()
    return out


def scores(A: Array, weights: Array, sizes: Sizes, mass: Array | None = None) -> Scores:
    """Of the unpruned graph: how much influence ends in tokens, and how much of all inputs is explained."""
    share, start = normalize(A, mass), spread(weights, len(A))
    strength = influence(share, start)
    unexpanded = np.zeros(len(A)) if mass is None else mass.reshape(len(A), -1).sum(1) / row_sizes(A, mass)
    first, last = sizes.features, sizes.inner
    through = strength + start
    to_leaves = float(through @ unexpanded)
    wrong = strength[first:last].sum() + to_leaves
    right = strength[last : last + sizes.tokens].sum()
    explained = (1 - share[:, first:last].sum(1) - unexpanded) * through
    fed = np.abs(A).sum(1) > 0 if mass is None else (np.abs(A).sum(1) + mass.reshape(len(A), -1).sum(1)) > 0
    return Scores(
        replacement=float(right / (right + wrong)),
        completeness=float(explained.sum() / through.sum()),
        completeness_inputs=float(explained[fed].sum() / through[fed].sum()),
        unexpanded=to_leaves,
    )


def partial_influence(A: Array, weights: Array, known: Array) -> Array:
    """Influence where only the rows in `known` (a mask) have been computed: the other features are sinks."""
    rows = np.where(known[:, None], A, 0.0)
    return influence(normalize(rows, floor=1e-8), spread(weights, len(A)))


def select(A: Array, weights: Array, sizes: Sizes, max_features: int, per_round: int) -> Array:
    """The features (ascending numbers) that the reference expands: each round the most influential of the rest.

    `A` holds every active feature. A round takes `per_round` features (its `update_interval` times its batch size).
    """
    known = np.zeros(len(A), bool)
    known[len(A) - sizes.targets :] = True
    if max_features >= sizes.features:
        return np.arange(sizes.features)
    while known[: sizes.features].sum() < max_features:
        order = np.argsort(-partial_influence(A, weights, known)[: sizes.features], kind="stable")
        pending = order[~known[order]]
        known[pending[: min(per_round, max_features - known[: sizes.features].sum())]] = True
    return np.flatnonzero(known[: sizes.features])


def restrict(A: Array, sizes: Sizes, keep: Array) -> tuple[Array, Sizes]:
    """The matrix without the features that are not in `keep`, as the reference stores it: their columns are dropped."""
    nodes = np.concatenate([keep, np.arange(sizes.features, len(A))])
    return A[np.ix_(nodes, nodes)], Sizes(len(keep), sizes.errors, sizes.tokens, sizes.targets)
