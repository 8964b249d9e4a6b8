"""Memory that `attribute` takes on the host beside the devices: rows as they are packed, and the graph made of them.

A graph of features that are spread evenly has one edge for each pair of a target and a source in an earlier layer and
no later position. What is alive at once when the graph is finished, in bytes of an edge: source and weight in the
pieces (8), joined (8), joined once more with the first layer in float64 precision (8), and the weights as float64 (8)
beside the float32 that they are made of (4) or the work space of the widest layer.
"""

from dataclasses import dataclass

from tcircuits.planning.request import Request

EDGE = 8  # int32 source, float32 weight


@dataclass(frozen=True)
class Host:
    """Bytes on each host: edges expected, rows when all are packed, work space of packing, all of it at the end."""

    edges: int
    packed: int
    packing: int
    finishing: int

    @property
    def peak(self) -> int:
        """The most."""
        return max(self.packed + self.packing, self.finishing)


def pairs(r: Request) -> tuple[int, int]:
    """Edges from features, and from errors and tokens, of an evenly spread graph."""
    L, S, T, n, k = r.model.n_layers, len(r.dictionary.layers), r.tokens, r.features, r.targets
    causal = (T + 1) / (2 * T)
    features = n * n * (S - 1) / (2 * S) * causal + k * n
    errors = 0.0 if r.dictionary.kind == "neurons" else n * T * causal * (L - 1) / 2 + k * L * T
    return int(features), int(errors + n * T * causal + k * T)


def host_memory(r: Request, chunk: int) -> Host:
    """The model of the module's docstring."""
    L, T, rows = r.model.n_layers, r.tokens, r.features + r.targets
    edges = sum(pairs(r))
    per_row = rows * (2 * L * T + 3) * 4
    packed = edges * EDGE + per_row
    # The last layer's rows are the fullest: their weights, which of them are not zero, and the pairs' numbers.
    widest = min(edges, chunk * (r.features + L * T + T))
    packing = chunk * (r.features + L * T + T) * 5 + widest * 24 // 2
    layer = 2 * edges // max(L, 1)
    work = max(4 * edges, 24 * layer)
    finishing = edges * (3 * EDGE + 8) + work + 2 * per_row + first_layer(r)
    return Host(edges, packed, packing, finishing)


def first_layer(r: Request) -> int:
    """Rows of layer 0 in float64: its attention's weights twice (host and device), and cotangents of 128 targets."""
    m = r.model
    weights = m.d_model * m.d_head * 2 * (m.n_heads + m.n_kv_heads)
    return 2 * 8 * weights + 5 * 128 * r.tokens * m.d_model * 8
