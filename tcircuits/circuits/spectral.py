"""Spectral cuts of a sparse graph: Lanczos on the normalised affinity, k-means of row-normalised eigenvectors.

With S the affinity and D its degrees, the largest eigenvectors of D^-1/2 S D^-1/2 are the smallest of the normalised
Laplacian I - D^-1/2 S D^-1/2 (Ng, Jordan and Weiss 2001; von Luxburg 2007, section 4). A few Lanczos steps cost O(E).
"""

from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh, lobpcg

from tcircuits.types import Float, Int

DENSE = 64  # nodes up to which the whole spectrum is computed: faster, and exact
WHOLE = 1500  # the same where the smallest eigenvalues are wanted
TOLERANCE = 1e-3  # of eigenvalues; clusters do not need more
STEPS = 300
RESTARTS, TURNS = 3, 50  # of k-means


def rows_of(matrix: Any) -> Any:
    """Any sparse matrix in compressed rows."""
    return csr_array(matrix)


def normalised(affinity: Any) -> Any:
    """D^-1/2 S D^-1/2, sparse; rows of nodes without neighbours are zero."""
    degree = np.asarray(affinity.sum(1)).ravel()
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, np.finfo(float).tiny)), 0.0)
    return csr_array(diags_array(scale) @ affinity @ diags_array(scale))


def leading(matrix: Any, k: int, seed: int = 0) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n k"]]:
    """The k largest eigenvalues of a sparse symmetric matrix, the largest first, and their vectors."""
    n = matrix.shape[0]
    k = min(k, n)
    if n <= max(DENSE, 2 * k + 2):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[::-1][:k], vectors[:, ::-1][:, :k]
    rng = np.random.default_rng(seed)
    try:
        start = rng.normal(size=n)
        values, vectors = eigsh(matrix, k, which="LA", v0=start, tol=TOLERANCE, maxiter=STEPS, ncv=max(4 * k, 20))
    except ArpackNoConvergence:
        values, vectors = lobpcg(matrix, rng.normal(size=(n, k)), tol=TOLERANCE, maxiter=50, largest=True)
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def laplacian(affinity: Any) -> Any:
    """The combinatorial Laplacian D - S, sparse."""
    return csr_array(diags_array(np.asarray(affinity.sum(1)).ravel()) - affinity)


def smallest(lap: Any, k: int, seed: int = 0) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n k"]]:
    """The k smallest eigenvalues of a Laplacian and their vectors: all for small graphs, else shifted and inverted."""
    n = lap.shape[0]
    if n <= max(WHOLE, k + 2):
        values, vectors = np.linalg.eigh(lap.toarray())
        return values[:k], vectors[:, :k]
    shift = 1e-4 * lap.diagonal().mean()
    start = np.random.default_rng(seed).normal(size=n)
    values, vectors = eigsh(csc_array(lap), k, sigma=-shift, which="LM", v0=start)
    order = np.argsort(values, kind="stable")
    return values[order], vectors[:, order]


def cut(affinity: Any, b: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Clusters 0.. of a graph's nodes, at most b, by normalised cut; none is empty."""
    _, vectors = leading(normalised(affinity), b, seed)
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return compact(k_means(vectors / np.maximum(size, np.finfo(float).tiny), b, seed))


def along(affinity: Any, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Nodes in the order of the second eigenvector: neighbours lie near each other (ties in their order)."""
    degree = np.asarray(affinity.sum(1)).ravel()
    _, vectors = leading(normalised(affinity), 2, seed)
    if vectors.shape[1] < 2:
        return np.arange(len(vectors))
    place = vectors[:, 1] / np.sqrt(np.maximum(degree, np.finfo(float).tiny))
    return np.argsort(np.where(degree > 0, place, np.inf), kind="stable")


def components(affinity: Any) -> Int[np.ndarray, " n"]:
    """Which connected piece each node is in, the greatest first, equal ones in the order of their first nodes."""
    count, labels = connected_components(affinity, directed=False)
    rank = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    place = np.empty(count, np.int64)
    place[rank] = np.arange(count)
    return place[labels]


def k_means(x: Float[np.ndarray, "n d"], k: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The best of a few runs of Lloyd's algorithm from k-means++ centres."""
    rng, best, least = np.random.default_rng(seed), np.zeros(len(x), np.int64), np.inf
    for _ in range(RESTARTS):
        labels, cost = _lloyd(x, _spread(x, k, rng))
        if cost < least:
            best, least = labels, cost
    return best


def _spread(x: Float[np.ndarray, "n d"], k: int, rng: np.random.Generator) -> Float[np.ndarray, "k d"]:
    """Centres, each drawn with probability of its squared distance to those before it."""
    centres = [x[rng.integers(len(x))]]
    apart = np.sum((x - centres[0]) ** 2, 1)
    for _ in range(k - 1):
        total = apart.sum()
        if total <= 0:
            break
        centres.append(x[min(np.searchsorted(np.cumsum(apart), rng.uniform() * total), len(x) - 1)])
        apart = np.minimum(apart, np.sum((x - centres[-1]) ** 2, 1))
    return np.stack(centres)


def _lloyd(x: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]) -> tuple[Int[np.ndarray, " n"], float]:
    labels, size = np.full(len(x), -1), np.sum(x**2, 1)
    for _ in range(TURNS):
        apart = size[:, None] - 2 * x @ centres.T + np.sum(centres**2, 1)
        new = apart.argmin(1)
        if (new == labels).all():
            break
        labels = new
        count = np.bincount(labels, minlength=len(centres))
        sums = np.stack([np.bincount(labels, column, len(centres)) for column in x.T], 1)
        centres = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centres)
    apart = size - 2 * np.sum(x * centres[labels], 1) + np.sum(centres[labels] ** 2, 1)
    return labels, float(apart.sum())


def compact(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same clusters numbered 0.. without gaps."""
    return np.unique(labels, return_inverse=True)[1]
