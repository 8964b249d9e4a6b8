"""Memory that `attribute` takes on the host beside the devices: the edges, at their final size, and per-row numbers.

A graph of features that are spread evenly has one edge for each pair of a target and a source in an earlier layer and
no later position (of the last layer's, outputs read those at their own position alone). Rows are written to their place
as they come; influence is computed on one block of rows at a time, in float64. With parallel blocks, where a feature
reads what the layers before its own leave, those of the layer just below reach it at its own position alone. Beside all
that, one call on each of four models of a few kilobytes, nearly all of it compiling, took 0.18 to 0.22 GB.
"""

from dataclasses import dataclass

from tcircuits.planning.request import Request

EDGE = 8  # int32 source, float32 weight
COMPILER = 200_000_000  # what tracing and compiling leave in a process


@dataclass(frozen=True)
class Host:
    """Number of edges expected; bytes on each host of the rows, and of the work space of the graph made of them."""

    edges: int
    rows: int
    finishing: int

    @property
    def peak(self) -> int:
        """The most."""
        return self.rows + self.finishing + COMPILER


def pairs(r: Request) -> tuple[int, int]:
    """Edges from features, and from errors and tokens, of an evenly spread graph."""
    L, S, T, n, k = r.model.n_layers, len(r.dictionary.layers), r.tokens, r.features, r.targets
    causal = (T + 1) / (2 * T)
    features = n * n * (S - 1) / (2 * S) * causal + k * n * (1 - (T - 1) / (S * T))
    errors, tokens = n * T * causal * (L - 1) / 2 + k * (L * T - T + 1), n * T * causal + k * T
    if r.model.parallel:
        earlier = T * causal - 1  # positions before a feature's own, on the mean
        features -= n * n * (S - 1) / S**2 * earlier / T
        errors -= n * (L - 1) / L * earlier
        tokens -= n / S * earlier
    return int(features), int((0.0 if r.dictionary.kind == "neurons" else errors) + tokens)


def host_memory(r: Request) -> Host:
    """The model of the module's docstring."""
    L, T, rows = r.model.n_layers, r.tokens, r.features + r.targets
    edges, sums = sum(pairs(r)), 0 if r.features == r.n_active else 2 * rows * L * T * 4
    block = -(-r.features // (L * T)) * (r.features + L * T + T)
    return Host(edges, edges * EDGE + sums + 12 * rows, max(first_layer(r), block * 16))


def first_layer(r: Request) -> int:
    """Rows of layer 0 in float64: its values' and outputs' weights twice (host and device), patterns of 128 targets."""
    m = r.model
    weights = m.d_model * m.d_head * (m.n_heads + m.n_kv_heads)
    return 2 * 8 * weights + 2 * 8 * 128 * m.n_heads * (m.d_head + r.tokens)
