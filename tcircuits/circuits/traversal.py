"""HAGD's traversal (arXiv 2601.12879, stage 4b): down the levels by mean score, then one connected region.

    from the coarsest level down: a supernode scores the mean of its surviving members; the q best stay, the rest goes
    candidates are the survivors and the 4 strongest neighbours of each; from the best one grows a connected region,
    always by the neighbour of highest score, to 48 nodes

It pools scores that every node already has and measures nothing: the baseline.
"""

import heapq
from typing import Any

import numpy as np

from tcircuits.circuits.tree import Hierarchy
from tcircuits.types import Bool, Float, InputError, Int

KEPT, NEIGHBOURS, SIZE = 2, 4, 48


def survivors(h: Hierarchy, scores: Float[np.ndarray, " n"], q: int = KEPT) -> Bool[np.ndarray, " n"]:
    """Things left after keeping the q best sets of every level, from the coarsest down to the tree's leaves."""
    if scores.shape != (h.n,) or q < 1:
        raise InputError(f"scores {scores.shape}, q={q}: give {h.n} scores and keep at least 1 set")
    alive = np.ones(h.n, bool)
    for level in range(1, int(h.depth.max()) + 1):
        labels = h.labels(level)
        count = np.bincount(labels, alive)
        mean = np.bincount(labels, alive * scores) / np.maximum(count, 1)
        best = np.argsort(-np.where(count > 0, mean, -np.inf), kind="stable")[:q]
        alive &= np.isin(labels, best)
    return alive


def traverse(
    h: Hierarchy,
    affinity: Any,
    scores: Float[np.ndarray, " n"],
    *,
    q: int = KEPT,
    neighbours: int = NEIGHBOURS,
    size: int = SIZE,
) -> Int[np.ndarray, " s"]:
    """The region that the traversal grows, in the order in which nodes join.

    Args:
        h: a hierarchy of the nodes.
        affinity: of the nodes, sparse and symmetric [n, n].
        scores: of each node; the paper's are a network's, any will do.
        q: sets kept at each level.
        neighbours: strongest ones of each survivor that are candidates too.
        size: of the region at most.

    Raises:
        InputError: sizes that do not fit.
    """
    if affinity.shape != (h.n, h.n) or min(neighbours + 1, size) < 1:
        raise InputError(f"affinity {affinity.shape}, neighbours={neighbours}, size={size}: for {h.n} nodes, size >= 1")
    alive = survivors(h, scores, q)
    pool = alive.copy()
    for i in np.flatnonzero(alive):
        near = affinity.indices[affinity.indptr[i] : affinity.indptr[i + 1]]
        weight = affinity.data[affinity.indptr[i] : affinity.indptr[i + 1]]
        pool[near[np.argsort(-weight, kind="stable")[:neighbours]]] = True
    inside = np.flatnonzero(pool)
    best = int(inside[np.argmax(scores[inside])])
    region, seen, heap = [], {best}, [(-scores[best], best)]
    while heap and len(region) < size:
        _, i = heapq.heappop(heap)
        region.append(i)
        for j in affinity.indices[affinity.indptr[i] : affinity.indptr[i + 1]].tolist():
            if pool[j] and j not in seen:
                seen.add(j)
                heapq.heappush(heap, (-scores[j], j))
    return np.asarray(region)
