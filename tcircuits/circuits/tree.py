"""A tree over n things whose every node is a set, split among its children without rest; its checks and its files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np

from tcircuits.files.archive import fitting, read_all
from tcircuits.files.record import read_record, write_record
from tcircuits.files.storage import MalformedError
from tcircuits.files.tensor_file import TensorFile
from tcircuits.files.typed import checked
from tcircuits.types import InputError, Int

VERSION = 1
Parts = list[Int[np.ndarray, " s"]]


@dataclass(frozen=True)
class Hierarchy:
    """A tree over n things. Tree nodes are numbered level by level, the root is 0.

    Attributes:
        order: the n things, so that every set is a stretch of it, [n].
        start, stop: of each tree node's stretch, [m].
        parent: of each tree node, -1 of the root, [m].
        about: how it was made.
    """

    order: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " m"]
    stop: Int[np.ndarray, " m"]
    parent: Int[np.ndarray, " m"]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many things."""
        return len(self.order)

    @property
    def size(self) -> Int[np.ndarray, " m"]:
        """How many things each tree node holds."""
        return self.stop - self.start

    @property
    def depth(self) -> Int[np.ndarray, " m"]:
        """How far each tree node is from the root."""
        found = np.zeros(len(self.parent), np.int64)
        for i in range(1, len(found)):
            found[i] = found[self.parent[i]] + 1
        return found

    @property
    def leaves(self) -> Int[np.ndarray, " l"]:
        """Tree nodes without children."""
        return np.setdiff1d(np.arange(len(self.parent)), self.parent)

    def members(self, i: int) -> Int[np.ndarray, " s"]:
        """The things of a tree node."""
        return self.order[self.start[i] : self.stop[i]]

    def kids(self, i: int) -> Int[np.ndarray, " k"]:
        """The children of a tree node; level-by-level numbers put them side by side."""
        return np.arange(*np.searchsorted(self.parent, [i, i + 1]))

    def labels(self, level: int) -> Int[np.ndarray, " n"]:
        """The cluster of each thing at a depth: the tree nodes there, and leaves above it, numbered from 0."""
        depth, found = self.depth, np.zeros(self.n, np.int64)
        leaf = np.isin(np.arange(len(depth)), self.leaves)
        here = np.flatnonzero((depth == level) | (leaf & (depth < level)))
        for number, i in enumerate(here):
            found[self.members(int(i))] = number
        return found


def check_hierarchy(h: Hierarchy) -> None:
    """Raise where a set is not the disjoint union of its children, or the root is not everything.

    Raises:
        InputError: see above.
    """
    wrong, m = [], len(h.parent)
    if h.n < 1 or not np.array_equal(np.sort(h.order), np.arange(h.n)):
        wrong.append("its order is no permutation")
    if not (m and len(h.start) == len(h.stop) == m and h.parent[0] == -1 and (h.start[0], h.stop[0]) == (0, h.n)):
        wrong.append("its first node is not a root of everything")
    elif (h.parent[1:] < 0).any() or (h.parent[1:] >= np.arange(1, m)).any() or (np.diff(h.parent) < 0).any():
        wrong.append("its nodes are not numbered level by level")
    else:
        for i in range(m):
            kids = h.kids(i)
            ends = [h.start[i], *h.stop[kids]]
            if len(kids) and (ends[-1] != h.stop[i] or not np.array_equal(h.start[kids], ends[:-1])):
                wrong.append(f"node {i} is not the union of its children")
                break
        if (h.size < 1).any():
            wrong.append("a node is empty")
    if wrong:
        raise InputError("the hierarchy cannot be used: " + "; ".join(wrong))


def from_levels(n: int, levels: list[Int[np.ndarray, " n"]]) -> Hierarchy:
    """The tree of nested clusterings, the coarsest first; a level that changes nothing below a node is left out."""

    def split(part: tuple[Any, int], _: int) -> tuple[Parts, list[Any]]:
        things, level = part
        while level < len(levels):
            own = levels[level][things]
            level += 1
            if (own != own[0]).any():
                places = [np.flatnonzero(own == i) for i in np.unique(own)]
                return places, [(things[p], level) for p in places]
        return [], []

    return grown(n, (np.arange(n), 0), split)


def grown(n: int, whole: Any, split: Callable[[Any, int], tuple[Parts, list[Any]]]) -> Hierarchy:
    """Grow a tree from its root: `split` says of a set which places in it its children take, and what they carry."""
    order, start, stop, parent = np.arange(n), [0], [n], [-1]
    queue = [(whole, 0)]
    for i, (carried, level) in enumerate(queue):
        places, below = split(carried, level)
        queue[i] = (None, level)  # what a set carried is not needed again
        if len(places) < 2:
            continue
        at, mine = start[i], order[start[i] : stop[i]].copy()
        for p, own in zip(places, below, strict=True):
            order[at : at + len(p)] = mine[p]
            start.append(at)
            stop.append(at + len(p))
            parent.append(i)
            queue.append((own, level + 1))
            at += len(p)
    return Hierarchy(order, np.array(start), np.array(stop), np.array(parent))


def shuffled(h: Hierarchy, seed: int = 0) -> Hierarchy:
    """The null hierarchy: a tree of the same shape over the same things, dealt out at random."""
    return replace(h, order=np.random.default_rng(seed).permutation(h.order), about=dict(h.about) | {"shuffled": seed})


def hierarchy_record(h: Hierarchy) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file keeps of a hierarchy: facts and arrays."""
    check_hierarchy(h)
    arrays = {name: getattr(h, name) for name in ("order", "start", "stop", "parent")}
    return {"about": dict(h.about), "n": h.n, "sets": len(h.parent)}, arrays


def hierarchy_from(head: Mapping[str, Any], file: TensorFile, path: Any) -> Hierarchy:
    """The hierarchy of a record, `path` in messages.

    Raises:
        InputError: the record is damaged.
    """
    try:
        said = checked({name: head[name] for name in ("about",) if name in head}, {"about": dict}, frozenset({"about"}))
        shapes = {"order": ("n",), "start": ("m",), "stop": ("m",), "parent": ("m",)}
        fitting(file, {name: ("iu", shape) for name, shape in shapes.items()}, {})
        arrays = read_all(file)
    except (InputError, MalformedError) as problem:
        raise InputError(f"the hierarchy at {path} is damaged: {problem}") from None
    h = Hierarchy(*[arrays[name] for name in shapes], about=said.get("about", {}))
    check_hierarchy(h)
    return h


def save_hierarchy(h: Hierarchy, path: str | PathLike[str]) -> None:
    """Write PATH.json and PATH.npz; each appears whole or not at all."""
    write_record(path, "hierarchy", VERSION, *hierarchy_record(h))


def load_hierarchy(path: str | PathLike[str]) -> Hierarchy:
    """Read what `save_hierarchy` wrote.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    return hierarchy_from(*read_record(path, "hierarchy", VERSION), path)
