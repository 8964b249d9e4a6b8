"""The paths of a search, as a tree of prefixes and merged into a graph in which every node balances.

A path is the number of its last node in the tree; its `parent` is the path without that node, 0 the root alone. What a
path's last node reads balances (`search`), and so does a node of the merged graph, which is the sum of the paths that
end in the same component:

    value = sum of kept edges + error + bias + pruned

An embedding reads nothing: it is where paths end.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), algorithm 2.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.paths.filters import EMBED, ROOT
from tcircuits.attribution.paths.notation import component, written

Floats = np.ndarray
Ints = np.ndarray
PARTS = ("value", "error", "bias", "pruned", "size")


@dataclass(frozen=True)
class Merged:
    """Paths that end in the same component as one node each; node 0 is the root, others ascend by their key.

    Attributes:
        key: [N, 4] kind (of `filters.KINDS`), layer, position, feature number or head.
        value, kept, error, bias, pruned, size: [N], sums over the node's paths; `kept` of its edges' weights.
        source, target, weight: [E] edges.
    """

    key: Ints
    value: Floats
    kept: Floats
    error: Floats
    bias: Floats
    pruned: Floats
    size: Floats
    source: Ints
    target: Ints
    weight: Floats

    @property
    def gap(self) -> Floats:
        """[N]: |kept + error + bias + pruned - value| over the absolute sum of all that the node reads."""
        return _gap(self.key[:, 0], self.kept, self)


@dataclass(frozen=True)
class PathGraph:
    """The paths into one target.

    Attributes:
        level: [P] nodes below the root; `parent` the path that this one continues (-1 for the root).
        kind, layer, pos, index: the last node: a kind of `filters.KINDS`, the feature's number or the head. A head's
            position is its source. The root's index is a feature's number, or -1.
        listed: whether the filters want the path as it is; others are the beginnings of such.
        value: the contribution of the last node along this path to the root; `score` the same with the cap.
        error, bias, pruned: what the last node reads of errors, constants and everything that no path here follows.
        size: the absolute sum of all that it reads.
        wanted: [I + 1] how many continuations competed at each level.
    """

    model: str
    transcoders: str
    prompt: str
    n_layers: int
    tokens: Ints
    token_text: tuple[str, ...]
    target: TargetNode
    settings: dict[str, Any]
    level: Ints
    parent: Ints
    kind: Ints
    layer: Ints
    pos: Ints
    index: Ints
    listed: np.ndarray
    value: Floats
    score: Floats
    error: Floats
    bias: Floats
    pruned: Floats
    size: Floats
    wanted: Ints

    @property
    def n_paths(self) -> int:
        """Paths of at least one node below the root that the filters want."""
        return int((self.listed & (self.level > 0)).sum())

    @property
    def levels(self) -> list[list[int]]:
        """Listed paths by their number of nodes below the root, the largest scores first."""
        found = []
        for level in range(1, int(self.level.max(initial=0)) + 1):
            here = np.flatnonzero(self.listed & (self.level == level))
            found.append([int(i) for i in here[np.argsort(-np.abs(self.score[here]), kind="stable")]])
        return found

    @property
    def kept(self) -> Floats:
        """[P]: the sum of the contributions that go on from each path."""
        return np.bincount(self.parent[1:], self.value[1:], len(self.parent))

    @property
    def gap(self) -> Floats:
        """[P]: as of merged nodes, of each path's last node."""
        return _gap(self.kind, self.kept, self)

    @cached_property
    def merged(self) -> Merged:
        """Paths that end in the same component as one node."""
        own = np.stack([self.kind, self.layer, self.pos, self.index], 1)
        order = np.where(own[:, :1] == ROOT, -1, own[:, :1])  # so that the root, of whichever kind, stands first
        order[0] = -2
        _, first, node = np.unique(np.concatenate([order, own], 1), axis=0, return_index=True, return_inverse=True)
        node, n = node.ravel(), len(first)
        sums = {name: np.bincount(node, getattr(self, name), n) for name in PARTS}
        pairs, at = np.unique(np.stack([node[self.parent[1:]], node[1:]]), axis=1, return_inverse=True)
        weight = np.bincount(at.ravel(), self.value[1:], pairs.shape[1])
        kept = np.bincount(pairs[0], weight, n)
        return Merged(own[first], kept=kept, source=pairs[1], target=pairs[0], weight=weight, **sums)

    def chain(self, path: int) -> list[int]:
        """The path's prefixes: root first, itself last."""
        out = [path]
        while self.parent[out[-1]] >= 0:
            out.append(int(self.parent[out[-1]]))
        return out[::-1]

    def name(self, path: int) -> str:
        """The last node of a path in the paper's notation, such as `mlp8tc[355]@37`."""
        return component(self, (self.kind[path], self.layer[path], self.pos[path], self.index[path]))

    def node_name(self, node: int) -> str:
        """A merged node in the paper's notation."""
        return component(self, tuple(self.merged.key[node]))

    def path_text(self, path: int) -> str:
        """A path in the paper's notation, every node with its contribution along it."""
        return " <- ".join(f"{self.name(i)}: {written(self.value[i])}" for i in self.chain(path))

    @property
    def text(self) -> str:
        """All listed paths, level by level."""
        parts = []
        for level, paths in enumerate(self.levels, 1):
            parts.append(f"--- paths of {level} node{'s' if level > 1 else ''} below the root: {len(paths)}")
            parts += [self.path_text(i) for i in paths]
        return "\n".join(parts) + "\n"


def _gap(kind: Ints, kept: Floats, parts: Any) -> Floats:
    """How far nodes are from their balance; 0 of embeddings."""
    off = np.abs(kept + parts.error + parts.bias + parts.pruned - parts.value)
    return np.where(kind == EMBED, 0.0, off / np.maximum(parts.size, 1e-300))


def assemble(levels: Any, **about: Any) -> PathGraph:
    """The graph of what a search found (`search.Levels` as NumPy arrays).

    Beginnings of paths that came to nothing are left out, and their contributions are pruned remainder of where they
    began.
    """
    nodes, shown = levels.nodes, levels.satisfied & levels.nodes.alive
    shown[0, 0] = True
    for i in range(len(shown) - 1, 0, -1):
        shown[i - 1, nodes.parent[i][shown[i]]] = True
    pruned = levels.pruned.astype(np.float64)
    for i in range(1, len(shown)):
        lost = nodes.alive[i] & ~shown[i]
        np.add.at(pruned[i - 1], nodes.parent[i][lost], nodes.value[i][lost].astype(np.float64))
    level, lane = np.nonzero(shown)
    number = np.full(shown.shape, -1)
    number[level, lane] = np.arange(len(level))
    parent = np.where(level > 0, number[level - 1, nodes.parent[level, lane]], -1)

    def ints(x: np.ndarray) -> Ints:
        return x[level, lane].astype(np.int64)

    def floats(x: np.ndarray) -> Floats:
        return x[level, lane].astype(np.float64)

    places: dict[str, Any] = {name: ints(getattr(nodes, name)) for name in ("kind", "layer", "pos", "index")}
    parts: dict[str, Any] = {name: floats(getattr(levels, name)) for name in ("error", "bias", "size")}
    return PathGraph(
        level=level,
        parent=parent,
        listed=(levels.satisfied & nodes.alive)[level, lane],
        value=floats(nodes.value),
        score=floats(nodes.score),
        pruned=floats(pruned),
        wanted=levels.wanted.astype(np.int64),
        **places,
        **parts,
        **about,
    )
