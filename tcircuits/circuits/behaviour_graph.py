"""The graph of a behaviour: which feature writes to which, on average over its prompts. Sparse; nothing is n x n.

With A_p[s, t] the direct effect of node s on node t on prompt p (summed over positions where nodes are pooled):

    weight = mean_p |A_p|        signed = mean_p A_p        share = part of the prompts in which the edge exists

Nodes are features, heads, errors, tokens and the output (what the behaviour's metric reads). `graph_build.build_graph`
makes it. Here: its files, and what thins it out: the most edges per node (HAGD's rule, arXiv 2601.12879, on outgoing
edges; with incoming ones too there is no sink of hundreds of edges), influence (the public tracer's rule, 0.8 and 0.98
of the cumulative influence), a cap on nodes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_array

from tcircuits.attribution.prune import TINY, threshold
from tcircuits.circuits.circuit import units_from
from tcircuits.circuits.units import Units
from tcircuits.files.archive import fitting, read_all
from tcircuits.files.record import read_record, write_record
from tcircuits.files.storage import MalformedError
from tcircuits.files.tensor_file import TensorFile
from tcircuits.files.typed import checked
from tcircuits.types import Bool, Float, InputError, Int

NODE_KINDS = ("token", "error", "feature", "head", "output")
ARRAYS = ("nodes", "source", "target", "weight", "signed", "share", "lost", "start", "unit", "importance")
EDGES = ("source", "target", "weight", "signed", "share")
HEAD: dict[str, Any] = {"model": str, "about": dict}
VERSION = 1
Rank = Literal["strength", "importance"]


@dataclass(frozen=True)
class BehaviourGraph:
    """Nodes and the edges between them, in the order of (source, target).

    Attributes:
        nodes: kind (of `NODE_KINDS`), layer, index (feature, head or token id), position (-1: pooled), [n, 4].
        source, target: of each edge, [E].
        weight, signed, share: of each edge, see the module.
        lost: mean size of what a node reads that is no edge here, [n].
        start: influence that begins at a node: 1 at the output, else 0.
        unit: the number of a node among `units`, -1 for nodes that are none.
        importance: its score as a unit (`unit_scores`), 0 for nodes that are none.
        units: what circuits are made of.
        model: its name.
        about: how it was made.
    """

    nodes: Int[np.ndarray, "n 4"]
    source: Int[np.ndarray, " E"]
    target: Int[np.ndarray, " E"]
    weight: Float[np.ndarray, " E"]
    signed: Float[np.ndarray, " E"]
    share: Float[np.ndarray, " E"]
    lost: Float[np.ndarray, " n"]
    start: Float[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    importance: Float[np.ndarray, " n"]
    units: Units
    model: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many nodes."""
        return len(self.nodes)

    @property
    def strength(self) -> Float[np.ndarray, " n"]:
        """Weights in and out of each node, summed: the paper's rank."""
        return np.bincount(self.source, self.weight, self.n) + np.bincount(self.target, self.weight, self.n)

    def matrix(self, values: Float[np.ndarray, " E"] | None = None) -> Any:
        """Weights, or other values of the edges, as a sparse matrix [n, n]: rows sources, columns targets."""
        values = self.weight if values is None else values
        return csr_array((values, (self.source, self.target)), shape=(self.n, self.n))

    def label(self, node: int) -> str:
        """How a node is written: `feature 0/417`, `head 1.3`, `error 2`, `token 95`, `output`; `@-1`: at the last."""
        kind, layer, index, position = (int(x) for x in self.nodes[node])
        names = (f"token {index}", f"error {layer}", f"feature {layer}/{index}", f"head {layer}.{index}", "output")
        return names[kind] if position < 0 else f"{names[kind]}@{position - (self.units.positions or 0)}"

    def with_edges(self, keep: Bool[np.ndarray, " E"]) -> "BehaviourGraph":
        """Only these edges; the size of the others is lost to their targets."""
        gone = np.bincount(self.target[~keep], self.weight[~keep], self.n)
        arrays = {name: getattr(self, name)[keep] for name in ("source", "target", "weight", "signed", "share")}
        return replace(self, **arrays, lost=self.lost + gone)

    def with_nodes(self, keep: Bool[np.ndarray, " n"]) -> "BehaviourGraph":
        """Only these nodes and the edges between them; nodes are numbered anew in the same order."""
        slim, number = self.with_edges(keep[self.source] & keep[self.target]), np.cumsum(keep) - 1
        arrays = {name: getattr(slim, name)[keep] for name in ("nodes", "lost", "start", "unit", "importance")}
        return replace(slim, **arrays, source=number[slim.source], target=number[slim.target])

    def only_units(self) -> "BehaviourGraph":
        """Only the nodes that a circuit may consist of."""
        return self.with_nodes(self.unit >= 0)


def check_graph(g: BehaviourGraph) -> None:
    """Raise for a graph without nodes or edges, or with arrays that do not fit; all problems at once.

    Raises:
        InputError: see above.
    """
    wrong, n, edges = [], g.n, len(g.source)
    if not n or not edges:
        wrong.append(f"it has {n} nodes and {edges} edges: nothing to group; take more prompts or keep more edges")
    sizes = {name: (n, edges)[name in ARRAYS[1:6]] for name in ARRAYS[1:]}
    wrong += [
        f"{name} has {getattr(g, name).shape}, not {size}"
        for name, size in sizes.items()
        if getattr(g, name).shape != (size,)
    ]
    if not wrong:
        for name in ("source", "target"):
            ends = getattr(g, name)
            if ends.min(initial=0) < 0 or ends.max(initial=0) >= n:
                wrong.append(f"{name} has nodes outside 0..{n - 1}")
        floats = ("weight", "signed", "share", "lost", "start", "importance")
        wrong += [f"{name} is not finite" for name in floats if not np.isfinite(getattr(g, name)).all()]
        if (g.weight < 0).any():
            wrong.append("a weight is negative: weights are mean sizes")
        if g.unit.max(initial=-1) >= g.units.n or g.unit.min(initial=0) < -1:
            wrong.append(f"units {g.unit.min()}..{g.unit.max()} are outside 0..{g.units.n - 1}, and -1 for none")
        if g.nodes[:, 0].min() < 0 or g.nodes[:, 0].max() >= len(NODE_KINDS):
            wrong.append(f"kinds of nodes are outside 0..{len(NODE_KINDS) - 1}")
    if wrong:
        raise InputError("the behaviour's graph cannot be used: " + "; ".join(wrong))


def most_edges(g: BehaviourGraph, out: int = 16, into: int = 0) -> BehaviourGraph:
    """The `out` heaviest edges out of each node, and beside them the `into` heaviest into each (0: none).

    Raises:
        InputError: no edges would be left.
    """
    if out < 0 or into < 0 or out + into < 1:
        raise InputError(f"out={out}, into={into}: keep at least one edge per node")
    return g.with_edges((_rank(g.source, g.weight) < out) | (_rank(g.target, g.weight) < into))


def _rank(group: Int[np.ndarray, " E"], weight: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """The place of each edge among those of its group, the heaviest first; equal ones in their order."""
    order = np.lexsort((-weight, group))
    sorted_group = group[order]
    first = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]]) if len(order) else np.zeros(0, int)
    sizes = np.diff(np.r_[first, len(order)])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, sizes)
    return rank


def influences(g: BehaviourGraph) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " E"]]:
    """Influence of nodes on the output, start + Ahat start + Ahat^2 start + ..., and of edges.

    Ahat[s, t] is the edge's part of all that t reads, `lost` included. Layers bound the number of steps.

    Raises:
        InputError: the edges go round in a circle.
    """
    total = np.bincount(g.target, g.weight, g.n) + g.lost
    part = g.weight / np.maximum(total[g.target], TINY)
    matrix, now = g.matrix(part), g.start.astype(float)
    found = now.copy()
    for _ in range(g.n + 1):
        now = matrix @ now
        if not now.any():
            return found, part * found[g.target]
        found += now
    raise InputError("the graph's edges go round in a circle: influence needs a graph without (pool no coarse nodes)")


def most_influential(g: BehaviourGraph, nodes: float = 0.8, edges: float = 0.98) -> BehaviourGraph:
    """Nodes with this share of all nodes' influence (the output always), then edges with this share of what remains.

    Raises:
        InputError: shares outside (0, 1], or no output to start from.
    """
    if not (0 < nodes <= 1 and 0 < edges <= 1):
        raise InputError(f"nodes={nodes}, edges={edges}: give shares of influence in (0, 1]")
    if not g.start.any():
        raise InputError("no node is an output: influence has nowhere to start")
    found, _ = influences(g)
    found = np.where(g.start > 0, 0, found)
    kept = g.with_nodes((found >= max(threshold(found, nodes), TINY)) | (g.start > 0))
    _, carried = influences(kept)
    return kept.with_edges(carried >= max(threshold(carried, edges), TINY)) if len(carried) else kept


def capped(g: BehaviourGraph, n: int, by: Rank = "strength") -> BehaviourGraph:
    """At most n nodes, the greatest by strength (the paper's) or by |importance|; outputs stay.

    Raises:
        InputError: no nodes, or an unknown rank.
    """
    if n < 1 or by not in get_args(Rank):
        raise InputError(f"n={n}, by={by!r}: keep at least 1 node, by {' or '.join(get_args(Rank))}")
    value = g.strength if by == "strength" else np.abs(g.importance)
    order = np.lexsort((-value, g.start <= 0))
    keep = np.zeros(g.n, bool)
    keep[order[:n]] = True
    return g.with_nodes(keep)


def graph_record(g: BehaviourGraph) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file keeps of a graph: facts and arrays."""
    check_graph(g)
    head = {"model": g.model, "units": asdict(g.units), "about": dict(g.about), "n": g.n, "edges": len(g.source)}
    return head, {name: getattr(g, name) for name in ARRAYS}


def graph_from(head: Mapping[str, Any], file: TensorFile, path: Any) -> BehaviourGraph:
    """The graph of a record, `path` in messages.

    Raises:
        InputError: the record is damaged.
    """
    try:
        said = checked({name: head[name] for name in HEAD if name in head}, HEAD, frozenset(HEAD))
        units = units_from(head.get("units"))
        if not isinstance(units, Units):
            raise MalformedError("its units are edges: nodes are units")
        kinds = dict.fromkeys(ARRAYS, "f") | dict.fromkeys(("nodes", "source", "target", "unit"), "iu")
        shapes = {name: ("E",) if name in EDGES else ("n",) for name in ARRAYS} | {"nodes": ("n", 4)}
        fitting(file, {name: (kinds[name], shapes[name]) for name in ARRAYS}, {})
        arrays: Any = read_all(file)
    except (InputError, MalformedError) as problem:
        raise InputError(f"the graph at {path} is damaged: {problem}") from None
    g = BehaviourGraph(**arrays, units=units, model=said.get("model", ""), about=said.get("about", {}))
    check_graph(g)
    return g


def save_behaviour_graph(g: BehaviourGraph, path: str | PathLike[str]) -> None:
    """Write PATH.json and PATH.npz; each appears whole or not at all."""
    write_record(path, "behaviour graph", VERSION, *graph_record(g))


def load_behaviour_graph(path: str | PathLike[str]) -> BehaviourGraph:
    """Read what `save_behaviour_graph` wrote.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    return graph_from(*read_record(path, "behaviour graph", VERSION), path)
