"""Coarsening by matching: pairs of neighbours become one, the best first, until the wanted share is left.

    hem         the heaviest edge first, w / max(heaviest edge of i, of j)
    variation   the least local variation first: with V = U_K Lambda_K^-1/2 of the combinatorial Laplacian's K smallest
                non-zero eigenpairs, cost = || B^T L_ij B ||_F for the pair's own Laplacian L_ij and B = (I - 11^T/2) V
                at i and j, which is (d_i + d_j) |V_i - V_j|^2 / 2

Loukas 2019 (JMLR 20, graph reduction with spectral and cut guarantees); costs as in its published code.
"""

from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from tcircuits.circuits.spectral import laplacian, rows_of, smallest
from tcircuits.types import Bool, Float, InputError, Int

Rule = Literal["hem", "variation"]
MOST = 40  # eigenpairs that local variation looks at


def matched_levels(matrix: Any, rule: Rule, b: int = 4, seed: int = 0) -> list[Int[np.ndarray, " n"]]:
    """Nested clusterings of a symmetric affinity, the finest first: each level has about 1/b of the one before.

    Raises:
        InputError: fewer than 2 branches.
    """
    if b < 2:
        raise InputError(f"b={b}: give at least 2 branches")
    now, labels, levels = rows_of(matrix), np.arange(matrix.shape[0]), []
    while now.shape[0] > b:
        left, wanted = np.arange(now.shape[0]), max(1, -(-now.shape[0] // b))
        while left.max() + 1 > wanted:
            pairs = _pairs(now, rule, left.max() + 1 - wanted, seed)
            left, now = pairs[left], _merged(now, pairs)
        labels = left[labels]
        levels.append(labels)
    return levels


def _pairs(matrix: Any, rule: Rule, most: int, seed: int) -> Int[np.ndarray, " n"]:
    """Clusters of one or two, with at most `most` pairs; where no edge is left, those side by side are matched."""
    n, coo = matrix.shape[0], matrix.tocoo()
    upper = coo.row < coo.col
    i, j, w = coo.row[upper], coo.col[upper], coo.data[upper]
    order = np.argsort(costs(matrix, i, j, w, rule, seed), kind="stable")
    free, labels, made = np.ones(n, bool), np.arange(n), 0
    for a, c in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if made < most and free[a] and free[c]:
            free[a] = free[c] = False
            labels[c] = a
            made += 1
    if not made:
        labels[1 : 2 * most : 2] = labels[: 2 * most - 1 : 2][: len(labels[1 : 2 * most : 2])]
    return np.unique(labels, return_inverse=True)[1]


def costs(
    matrix: Any,
    i: Int[np.ndarray, " E"],
    j: Int[np.ndarray, " E"],
    w: Float[np.ndarray, " E"],
    rule: Rule,
    seed: int = 0,
) -> Float[np.ndarray, " E"]:
    """What it costs to make one of each pair of neighbours (i, j)."""
    if rule == "hem":
        heaviest = np.zeros(matrix.shape[0])
        np.maximum.at(heaviest, i, w)
        np.maximum.at(heaviest, j, w)
        return -w / np.maximum(heaviest[i], heaviest[j])
    values, vectors = smallest(laplacian(matrix), min(MOST, max(2, matrix.shape[0] // 4)), seed)
    real = positive(values)
    v = vectors[:, real] / np.sqrt(values[real])
    degree = np.asarray(matrix.sum(1)).ravel()
    return (degree[i] + degree[j]) * np.sum((v[i] - v[j]) ** 2, 1) / 2


def positive(values: Float[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Which eigenvalues of a Laplacian are told from zero."""
    return values > 1e-8 * max(float(np.max(values, initial=0.0)), 1e-300)


def _merged(matrix: Any, labels: Int[np.ndarray, " n"]) -> Any:
    n, k = len(labels), int(labels.max()) + 1
    of = csr_array((np.ones(n), (np.arange(n), labels)), shape=(n, k))
    merged = (of.T @ matrix @ of).tocoo()
    apart = merged.row != merged.col
    return csr_array((merged.data[apart], (merged.row[apart], merged.col[apart])), shape=(k, k))
