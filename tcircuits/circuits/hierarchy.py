"""A hierarchy of a graph's nodes: a tree whose every node is a set, split among its children without rest.

    sound      top down: normalised cuts into b parts, pieces that do not hang together first, down to leaves of at most
               6; O(b E log n) with sparse Lanczos. A part with more than 80 % of its set is cut again, and where cuts
               stay lopsided, or the depth would run out, the set is cut evenly along its second eigenvector.
    faithful   HAGD's stage 3 as its authors ran it (arXiv 2601.12879): bottom up, k = b clusters at every level, so
               that 413 nodes become 4, 3 and 2; coarse edges are signed sums, which can cancel.

    hem, variation
             bottom up by matching pairs (`matching`), for comparison of what coarsening keeps.

`coarse_edges` sums sizes and signed values apart. `tree.shuffled` is the null: the same tree with other members.
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_array

from tcircuits.circuits import affinity as alike
from tcircuits.circuits.behaviour_graph import BehaviourGraph, check_graph
from tcircuits.circuits.matching import matched_levels
from tcircuits.circuits.spectral import along, components, cut, rows_of
from tcircuits.circuits.tree import Hierarchy, Parts, from_levels, grown
from tcircuits.types import InputError, Int

Mode = Literal["sound", "faithful", "hem", "variation"]
BRANCHES, LEAF, DEPTH, LOPSIDED = 4, 6, 12, 0.8


def hierarchy(
    g: BehaviourGraph,
    mode: Mode = "sound",
    *,
    b: int = BRANCHES,
    leaf: int = LEAF,
    depth: int = DEPTH,
    affinity: alike.Kind = "magnitude",
    weights: alike.Weights = "log",
    seed: int = 0,
) -> Hierarchy:
    """The hierarchy of a behaviour's graph.

    Args:
        g: its graph; `g.only_units()` where circuits are to be searched.
        mode: see the module; `faithful` takes signed mean weights as they are, and no leaf, depth or affinity.
        b: branches.
        leaf: most members of a leaf.
        depth: most levels below the root.
        affinity: of `affinity.Kind`.
        weights: of `affinity.Weights`.
        seed: of k-means and Lanczos.

    Raises:
        InputError: an unknown mode, sizes that do not fit each other, what `check_graph` refuses.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r} is unknown; there are {', '.join(get_args(Mode))}")
    check_graph(g)
    about = {"mode": mode, "b": b, "seed": seed}
    if mode == "faithful":
        return replace(paper_levels(g.matrix(g.signed), b, seed), about=about)
    matrix, about = alike.affinity(g, affinity, weights), about | {"affinity": affinity, "weights": weights}
    if mode == "sound":
        found = top_down(matrix, b=b, leaf=leaf, depth=depth, seed=seed)
        return replace(found, about=about | {"leaf": leaf, "depth": depth})
    return replace(from_levels(g.n, matched_levels(matrix, mode, b, seed)[::-1]), about=about)


def top_down(matrix: Any, *, b: int = BRANCHES, leaf: int = LEAF, depth: int = DEPTH, seed: int = 0) -> Hierarchy:
    """Cut a sparse symmetric affinity [n, n] into a tree; see the module.

    Raises:
        InputError: fewer than 2 branches, no leaf, a depth at which n things do not fit.
    """
    n = matrix.shape[0]
    if b < 2 or leaf < 1 or depth < 0 or n < 1:
        raise InputError(f"n={n}, b={b}, leaf={leaf}, depth={depth}: give b >= 2, the others >= 1 (depth >= 0)")
    if n > leaf * b**depth:
        raise InputError(f"{n} things do not fit {depth} levels of {b} branches with {leaf} a leaf: raise one of them")

    def split(part: Any, level: int) -> tuple[Parts, list[Any]]:
        if part.shape[0] <= leaf:
            return [], []
        parts = _parts(part, b, leaf * b ** (depth - level - 1), seed)
        return parts, [part[p][:, p] for p in parts]

    return grown(n, csr_array(matrix), split)


def _parts(part: Any, b: int, room: int, seed: int) -> Parts:
    """The children of one set, as places in it; none has more members than there is room for below it."""
    n, pieces = part.shape[0], components(part)
    if pieces.max() == n - 1:  # nothing hangs together
        return np.array_split(np.arange(n), min(b, n))
    found = _packed(pieces, b) if pieces.max() else _cuts(part, b, seed)
    if max(len(p) for p in found) > room:
        found = np.array_split(along(part, seed), b)
    return [p for p in found if len(p)]


def _packed(pieces: Int[np.ndarray, " n"], b: int) -> Parts:
    """Pieces as children; isolates are one, and where there are more than b, each goes to the emptiest of b."""
    count = np.bincount(pieces)
    alone = count[pieces] == 1
    groups = [np.flatnonzero(pieces == i) for i in range(len(count)) if count[i] > 1]
    groups += [np.flatnonzero(alone)] if alone.any() else []
    groups.sort(key=len, reverse=True)
    if len(groups) <= b:
        return groups
    bins: list[list[Any]] = [[] for _ in range(b)]
    for group in groups:
        min(bins, key=lambda x: sum(map(len, x))).append(group)
    return [np.concatenate(x) for x in bins]


def _cuts(part: Any, b: int, seed: int) -> Parts:
    """A connected set in about b parts, none with more than 80 % of it."""
    n, labels = part.shape[0], cut(part, b, seed)
    found = [np.flatnonzero(labels == i) for i in range(labels.max() + 1)]
    biggest = int(np.argmax([len(p) for p in found]))
    if len(found[biggest]) > LOPSIDED * n:
        whole = found.pop(biggest)
        inner = cut(part[whole][:, whole], b, seed + 1)
        found += [whole[inner == i] for i in range(inner.max() + 1)]
    while len(found) > b:  # the smallest go together
        found.sort(key=len, reverse=True)
        found[-2:] = [np.concatenate(found[-2:])]
    if max(len(p) for p in found) > LOPSIDED * n:
        return np.array_split(along(part, seed), b)
    return found


def paper_levels(signed: Any, b: int = BRANCHES, seed: int = 0) -> Hierarchy:
    """HAGD's stage 3: k = min(b, n - 1) clusters of |A| at each of ceil(log_b n) levels, until two are left."""
    n = signed.shape[0]
    if b < 2 or n < 1:
        raise InputError(f"n={n}, b={b}: give at least 1 thing and 2 branches")
    now, labels, levels = rows_of(signed), np.arange(n), []
    for _ in range(int(np.ceil(np.log(max(n, 2)) / np.log(b) - 1e-9))):
        if now.shape[0] <= 2:
            break
        found = cut(csr_array((abs(now) + abs(now).T) / 2), min(b, now.shape[0] - 1), seed)
        labels, now = found[labels], sums_between(now, found)
        levels.append(labels)
    return from_levels(n, levels[::-1])


def sums_between(matrix: Any, labels: Int[np.ndarray, " n"]) -> Any:
    """Sums over pairs of clusters, [k, k], sparse; what lies within a cluster is on the diagonal."""
    n, k = len(labels), int(labels.max()) + 1
    of = csr_array((np.ones(n), (np.arange(n), labels)), shape=(n, k))
    return csr_array(of.T @ matrix @ of)


def coarse_edges(g: BehaviourGraph, labels: Int[np.ndarray, " n"]) -> tuple[Any, Any]:
    """Sizes and signed values summed between clusters; signed sums alone may cancel. The result may have circles."""
    return sums_between(g.matrix(), labels), sums_between(g.matrix(g.signed), labels)
