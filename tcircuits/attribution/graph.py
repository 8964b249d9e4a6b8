"""The attribution graph of one prompt: nodes, edges in compressed rows, and what each row sums to.

Nodes stand in one order everywhere: selected features by (layer, position, feature), errors layer by layer, tokens,
targets. Rows are targets of edges, columns their sources. Nothing here has N x N entries except `dense()`, which is for
small graphs.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from tcircuits.types import InputError

Floats = np.ndarray
Ints = np.ndarray


def segment_sums(values: Floats, row_start: Ints) -> Floats:
    """Sum of each row's stretch of `values`, in float64; 0 for empty rows."""
    out = np.zeros(len(row_start) - 1)
    filled = np.flatnonzero(np.diff(row_start))
    if len(filled):
        out[filled] = np.add.reduceat(values, row_start[filled], dtype=np.float64)
    return out


def leaf_mass(unexpanded: Floats) -> Floats:
    """[R] sums over the leaves [R, L, T] of each row, in float64; at no cost where one 0 stands for all of them."""
    if not any(unexpanded.strides) and not unexpanded[:1].any():
        return np.zeros(len(unexpanded))
    return unexpanded.sum((1, 2), dtype=np.float64)


@dataclass(frozen=True)
class Block:
    """Consecutive rows lo..hi with the same sources: weights [hi - lo, k] (a view), the k columns, the first edge."""

    lo: int
    hi: int
    weight: Floats
    columns: Ints
    edge: int


@dataclass(frozen=True)
class TargetNode:
    """One explained output.

    Attributes:
        label: what to show.
        kind: logit, difference, direction or feature.
        token: vocabulary id of a logit, else None.
        prob: its probability, else None.
        weight: the influence that starts at it.
        layer, pos: where it is read (layer L: after the last block).
    """

    label: str
    kind: str
    token: int | None
    prob: float | None
    weight: float
    layer: int
    pos: int


@dataclass(frozen=True)
class Graph:
    """An attribution graph. R = n + k rows: n selected features and k targets; W = n + L T + T columns.

    Attributes:
        features: [n, 3] layer, position, feature; `activations` [n].
        row_start, source, weight: edges of row r are source[row_start[r]:row_start[r + 1]] with their weights.
        row_bias: what parameters' constants add to each row; `row_origin` the part of it from position 0's MLPs where
            those are not nodes.
        row_value: activation of a feature, demeaned logit of a logit: edges + tail + unexpanded + bias.
        row_unexpanded, row_unexpanded_abs: [R, L, T] signed and absolute sums over features that were not selected.
        row_tail, row_tail_abs: signed and absolute sum of edges that were left out of this file (see `compact`).
        influence: [W] of all columns; `influence_unexpanded` [L, T] of the leaves.
        n_active: active features before selection.
        settings: how the graph was made; plain JSON values.
        node_mask, edge_mask, cumulative: set by `prune`: [N], [edges], [N].
    """

    model: str
    transcoders: str
    prompt: str
    tokens: Ints
    token_text: tuple[str, ...]
    n_layers: int
    d_vocab: int
    features: Ints
    activations: Floats
    targets: tuple[TargetNode, ...]
    row_start: Ints
    source: Ints
    weight: Floats
    row_bias: Floats
    row_origin: Floats
    row_value: Floats
    row_unexpanded: Floats
    row_unexpanded_abs: Floats
    row_tail: Floats
    row_tail_abs: Floats
    influence: Floats
    influence_unexpanded: Floats
    n_active: int
    settings: dict[str, Any] = field(default_factory=dict)
    node_mask: np.ndarray | None = None
    edge_mask: np.ndarray | None = None
    cumulative: Floats | None = None

    @property
    def n_features(self) -> int:
        """Selected features."""
        return len(self.features)

    @property
    def n_errors(self) -> int:
        """Error nodes, one a layer and position."""
        return self.n_layers * len(self.tokens)

    @property
    def n_sources(self) -> int:
        """Columns: features, errors, tokens."""
        return self.n_features + self.n_errors + len(self.tokens)

    @property
    def n_nodes(self) -> int:
        """All nodes N."""
        return self.n_sources + len(self.targets)

    @property
    def row_nodes(self) -> Ints:
        """Node number of each row."""
        return np.concatenate([np.arange(self.n_features), self.n_sources + np.arange(len(self.targets))])

    @property
    def edge_row(self) -> Ints:
        """Row of each edge."""
        return np.repeat(np.arange(len(self.row_start) - 1), np.diff(self.row_start))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rows in order, those of one layer and position together where they have the same sources.

        A graph that is not pruned is a few dense blocks; each edge is then read as part of a matrix.
        """
        counts = np.diff(self.row_start)
        pos = np.concatenate([self.features[:, 1], [t.pos for t in self.targets]])
        key = np.stack([np.arange(len(counts)) >= self.n_features, self.row_layer, pos, counts])
        ends = [*(np.flatnonzero((np.diff(key) != 0).any(0)) + 1).tolist(), len(counts)]
        out: list[Block] = []
        for lo, hi in pairwise([0, *ends]):
            start, k = int(self.row_start[lo]), int(counts[lo])
            edges = slice(start, start + (hi - lo) * k)
            source, weight = (x[edges].reshape(hi - lo, k) for x in (self.source, self.weight))
            if (source == source[0]).all():
                out.append(Block(lo, hi, weight, source[0], start))
            else:
                out += [Block(lo + i, lo + i + 1, weight[i : i + 1], source[i], start + i * k) for i in range(hi - lo)]
        return tuple(out)

    def _by_node(self, x: Floats) -> Floats:
        out = np.zeros((self.n_nodes, *x.shape[1:]), x.dtype)
        out[self.row_nodes] = x
        return out

    @property
    def bias(self) -> Floats:
        """[N] constants of every node's row; 0 for nodes without inputs."""
        return self._by_node(self.row_bias)

    @property
    def values(self) -> Floats:
        """[N] what every row sums to; 0 for nodes without inputs."""
        return self._by_node(self.row_value)

    @property
    def unexpanded(self) -> Floats:
        """[N, L, T] input from features that were not selected."""
        return self._by_node(self.row_unexpanded)

    @property
    def target_weights(self) -> Floats:
        """[k] influence that starts at each target."""
        return np.array([t.weight for t in self.targets], np.float64)

    @property
    def row_layer(self) -> Ints:
        """Layer of each row; a target's is the layer it is read at."""
        return np.concatenate([self.features[:, 0], [t.layer for t in self.targets]]).astype(np.int32)

    def dense(self) -> Floats:
        """The adjacency matrix [N, N], rows targets, columns sources, of all stored edges.

        Raises:
            InputError: more than 30,000 nodes (the matrix would take several GB): read `row_start, source, weight`.
        """
        if self.n_nodes > 30_000:
            raise InputError(
                f"{self.n_nodes} nodes: a dense matrix takes {4e-9 * self.n_nodes**2:.1f} GB; "
                "use row_start, source, weight"
            )
        out = np.zeros((self.n_nodes, self.n_nodes), self.weight.dtype)
        node = self.row_nodes
        for b in self.blocks:
            out[node[b.lo] : node[b.lo] + b.hi - b.lo, b.columns] = b.weight
        return out

    def row_sums(self) -> tuple[Floats, Floats]:
        """Signed sum of each row with its bias, and its absolute total (L1 + |bias|), in float64."""
        signed = segment_sums(self.weight, self.row_start) + self.row_tail
        signed = signed + leaf_mass(self.row_unexpanded)
        mass = segment_sums(np.abs(self.weight), self.row_start) + self.row_tail_abs
        mass = mass + leaf_mass(self.row_unexpanded_abs)
        return signed + self.row_bias, mass + np.abs(self.row_bias)

    @property
    def max_row_gap(self) -> float:
        """Largest |sum + bias - value| / (row L1 + |bias|) over all rows."""
        signed, mass = self.row_sums()
        return float(np.max(np.abs(signed - self.row_value) / np.maximum(mass, 1e-30), initial=0.0))

    def compact(self) -> "Graph":
        """The same graph with only the edges that pruning kept; the others go into the tail, so rows still balance.

        The scores need all edges; `prune` has kept them in the settings.

        Raises:
            InputError: the graph is not pruned.
        """
        if self.edge_mask is None:
            raise InputError("this graph is not pruned: call prune(graph) first")
        lost = np.where(self.edge_mask, self.weight.dtype.type(0), self.weight)
        kept = segment_sums(self.edge_mask, self.row_start).astype(np.int64)
        return replace(
            self,
            row_start=np.concatenate([[0], np.cumsum(kept)]),
            source=self.source[self.edge_mask],
            weight=self.weight[self.edge_mask],
            row_tail=self.row_tail + segment_sums(lost, self.row_start),
            row_tail_abs=self.row_tail_abs + segment_sums(np.abs(lost), self.row_start),
            edge_mask=np.ones(int(kept.sum()), bool),
        )

    def to_viewer_json(self, path: Any, **options: Any) -> dict[str, Any]:
        """Write the graph JSON that the public viewers read; see `graph_io.viewer_json` for `options`."""
        from tcircuits.attribution.graph_io import write_viewer_json

        return write_viewer_json(self, path, **options)

    def _repr_html_(self) -> str:
        """The page of this graph, inline (notebooks)."""
        from tcircuits.attribution.graph_io import viewer_json
        from tcircuits.attribution.prune import prune

        render = HTML.get("fragment")
        graph = self if self.node_mask is not None else prune(self)
        if render is None:
            return f"<pre>{graph.n_features} features, {len(graph.weight)} edges</pre>"
        return render(viewer_json(graph, max_edges=40_000))


HTML: dict[str, Any] = {}  # `tcircuits` puts the page's renderer here: the graph must not import the page above it
