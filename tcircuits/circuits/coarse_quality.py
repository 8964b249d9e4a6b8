"""What a coarser graph keeps of a graph's spectrum: the claim of spectral coarsening, tested.

With L the combinatorial Laplacian of an affinity, C [k, n] the clusters with rows of length 1, L_c = C L C^T and
Pi = C^T C:

    eigenvalue error_i   |lam_i - lam~_i| / lam_i           i-th smallest of L and of L_c
    subspace error_i     || S Pi U_i Lam_i^-1/2 ||_2 - 1     S^T S = L, U_i the eigenvectors of the i smallest

both over eigenvalues that are not zero (Loukas 2019, JMLR 20, section 4 and its published measure). A coarsening that
keeps the spectrum has errors near 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, diags_array

from tcircuits.circuits.matching import positive
from tcircuits.circuits.spectral import compact, laplacian, smallest
from tcircuits.types import Float, InputError, Int

EIGENVALUES = 30


@dataclass(frozen=True)
class Quality:
    """Errors of the smallest eigenvalues that are not zero, and of the spaces that they span so far.

    Attributes:
        clusters: in the coarser graph.
        values: the eigenvalues of the graph.
        eigenvalue, subspace: errors, see the module.
        cut: part of all affinity that lies between clusters.
        largest: part of all nodes that is in the largest cluster.
    """

    clusters: int
    values: Float[np.ndarray, " k"]
    eigenvalue: Float[np.ndarray, " k"]
    subspace: Float[np.ndarray, " k"]
    cut: float
    largest: float


def coarse_quality(affinity: Any, labels: Int[np.ndarray, " n"], k: int = EIGENVALUES, seed: int = 0) -> Quality:
    """Compare a graph with what clusters make of it, at the k smallest eigenvalues (fewer where there are not so many).

    Raises:
        InputError: labels of another size, no eigenvalue asked for, a graph without affinity.
    """
    n = affinity.shape[0]
    if labels.shape != (n,) or k < 1 or not affinity.nnz:
        raise InputError(f"{affinity.nnz} affinities of {n} nodes, labels {labels.shape}, k={k}: they do not fit")
    labels = compact(labels)
    size = np.bincount(labels)
    c = diags_array(1 / np.sqrt(size)) @ csr_array((np.ones(n), (labels, np.arange(n))), shape=(len(size), n))
    lap = laplacian(affinity)
    values, vectors = smallest(lap, min(k + 1, n), seed)
    count = min(len(values), len(size))
    coarse = smallest(csr_array(c @ lap @ c.T), count, seed)[0]
    real = np.flatnonzero(positive(values)[:count])
    between = affinity.tocoo()
    apart = float(between.data[labels[between.row] != labels[between.col]].sum() / between.data.sum())
    kept = c.T @ (c @ (vectors[:, real] / np.sqrt(values[real])))
    gram = kept.T @ (lap @ kept)
    spans = [np.sqrt(np.linalg.eigvalsh(gram[:i, :i])[-1]) - 1 for i in range(1, len(real) + 1)]
    errors = np.abs(values[real] - coarse[real]) / values[real]
    return Quality(len(size), values[real], errors, np.asarray(spans), apart, float(size.max() / n))
