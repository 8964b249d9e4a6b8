"""How alike two nodes of a directed graph are, sparse and symmetric: what hierarchies are cut by.

    magnitude            (W + W^T) / 2
    degree_discounted    Do^-1/2 W Di^-1/2 W^T Do^-1/2 + Di^-1/2 W^T Do^-1/2 W Di^-1/2, without its diagonal: nodes that
                         share targets or sources, popular ones counting less (Satuluri and Parthasarathy 2011)

W are mean sizes, never signed sums: of a random signed graph half the degrees are not positive (HAGD's manuscript has
the signed form). Their tails are heavy, and clusters of one follow; hence log or rank.
"""

from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.stats import rankdata

from tcircuits.circuits.behaviour_graph import BehaviourGraph, check_graph
from tcircuits.circuits.spectral import rows_of
from tcircuits.types import Float, InputError

Kind = Literal["magnitude", "degree_discounted"]
Weights = Literal["log", "rank", "plain"]
HUB = 64  # of a node's sources (or targets): so many heaviest make pairs, so that pairs grow with edges
NEAREST = 32  # likest nodes of each that `degree_discounted` keeps
ROWS = 4096  # of its product at a time


def affinity(g: BehaviourGraph, kind: Kind = "magnitude", weights: Weights = "log") -> Any:
    """Affinities as a sparse symmetric matrix [n, n] without a diagonal.

    Raises:
        InputError: an unknown kind, and what `check_graph` refuses.
    """
    if kind not in get_args(Kind) or weights not in get_args(Weights):
        raise InputError(
            f"affinity {kind!r}, weights {weights!r}: there are {', '.join(get_args(Kind))}, "
            f"and {', '.join(get_args(Weights))}"
        )
    check_graph(g)
    w = g.matrix(transformed(g.weight, weights))
    return symmetric(w) if kind == "magnitude" else degree_discounted(w)


def transformed(w: Float[np.ndarray, " E"], how: Weights) -> Float[np.ndarray, " E"]:
    """log(1 + w / median), rank from 0 to 1, or as they are."""
    match how:
        case "log":
            positive = w[w > 0]
            return np.log1p(w / np.median(positive)) if len(positive) else w
        case "rank":
            return np.where(w > 0, rankdata(w) / max(len(w), 1), 0.0)
        case _:
            return w


def symmetric(w: Any) -> Any:
    """(W + W^T) / 2 without its diagonal."""
    return without_diagonal(csr_array((w + w.T) / 2))


def degree_discounted(w: Any) -> Any:
    """See the module; hubs count with their heaviest edges, each node keeps its likest ones (or is kept by them)."""
    out, into = (np.asarray(w.sum(axis)).ravel() for axis in (1, 0))
    a, b = (np.where(x > 0, 1 / np.sqrt(np.maximum(x, np.finfo(float).tiny)), 0.0) for x in (out, into))
    targets = diags_array(a) @ w @ diags_array(np.sqrt(b))
    sources = diags_array(b) @ w.T @ diags_array(np.sqrt(a))
    total = _products(csr_array(targets)) + _products(csr_array(sources))
    near = heaviest(without_diagonal(csr_array(total)), NEAREST)
    return csr_array(near.maximum(near.T))


def _products(x: Any) -> Any:
    """X X^T with the heaviest entries of each column, some rows at a time, each row's likest only."""
    x = rows_of(heaviest(rows_of(x.T), HUB).T)
    across, found = rows_of(x.T), []
    for at in range(0, x.shape[0], ROWS):
        found.append(heaviest(csr_array(x[at : at + ROWS] @ across), 4 * NEAREST))
    data = np.concatenate([m.data for m in found])
    column = np.concatenate([m.indices for m in found])
    row = np.repeat(np.arange(x.shape[0]), np.concatenate([np.diff(m.indptr) for m in found]))
    return csr_array((data, (row, column)), shape=(x.shape[0], x.shape[0]))


def heaviest(matrix: Any, k: int) -> Any:
    """Only the k greatest entries of each row."""
    count = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((-matrix.data, row))
    keep = order[(np.arange(len(order)) - matrix.indptr[:-1][row[order]]) < k]
    return csr_array((matrix.data[keep], (row[keep], matrix.indices[keep])), shape=matrix.shape)


def without_diagonal(matrix: Any) -> Any:
    """The same without its diagonal and without stored zeros."""
    coo = matrix.tocoo()
    keep = (coo.row != coo.col) & (coo.data != 0)
    return csr_array((coo.data[keep], (coo.row[keep], coo.col[keep])), shape=matrix.shape)
