"""How far a graph of the package is from the oracle's, and what rounding allows."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.rows import Rows, rows
from tcircuits.attribution.select import chunk_features, select_top
from tcircuits.attribution.targets import join, logit_vectors, output_targets, pad_targets
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.transcoders.dictionary import Transcoders

from .. import bridge
from ..reference import attribution as at
from ..reference import builders, dictionary
from ..reference import graph as gr

POLICY = {"attribute": "nodes", "constant": "constant"}
"""The oracle's name of a rule for position 0, and the package's."""


@dataclass
class Both:
    """One case as the oracle sees it."""

    case: builders.Case
    here: at.Local
    targets: list[at.Target]
    a: at.Attribution


@cache
def oracle(family: str, name: str, zero: str = "attribute", seed: int | None = None) -> Both:
    """A case with targets of every sort, and the oracle's graph of it."""
    case = builders.make_case(family, name, seed)
    here = at.localise(case.cfg, case.params, case.d, case.tokens, zero)
    targets = targets_of(case, here)
    return Both(case, here, targets, at.attribute(case.cfg, case.params, case.d, case.tokens, targets, zero))


@cache
def traced(family: str, name: str, zero: str = "attribute", dtype: str = "float64") -> Graph:
    """The package's graph of the same."""
    both = oracle(family, name, zero)
    return trace(both.case, both.targets, zero, dtype)


def trace(case: builders.Case, targets: list[at.Target], zero: str, dtype: str = "float64", **options) -> Graph:
    """`attribute` on an oracle's case. The chunks are wide, so one program sweeps all of them."""
    with jax.enable_x64(dtype == "float64"):
        m, d = bridge.both(case, dtype)
        named = bridge.specs(targets)
        return attribute(m, d, case.tokens, targets=named, position_zero=POLICY[zero], chunk=128, **options)


def targets_of(case: builders.Case, here: at.Local) -> list[at.Target]:
    """Top logits, a logit and a difference at a middle position, a direction, features at the last and a middle one.

    Features come by falling layer, as the package orders them.
    """
    rng, u = np.random.default_rng(3), model_unembedding(case)
    p = np.exp(here.run.logits[2] - here.run.logits[2].max())
    out = [
        *at.top_logits(here.run),
        at.Target("logit", 2, token=5, weight=float(p[5] / p.sum())),
        at.Target("direction", 3, vector=u[:, 7] - u[:, 4]),
        at.Target("direction", 5, vector=rng.normal(size=case.cfg.d_model)),
    ]
    chosen = [here.features[-1]]
    chosen += [f for f in here.features[::-1] if f[1] == 3 and f[0] < chosen[0][0]][:1]
    return out + [at.Target("feature", int(p), layer=int(layer), feature=int(f)) for layer, p, f in chosen]


def model_unembedding(case: builders.Case) -> np.ndarray:
    """[D, V]."""
    return case.params["embed"].T if case.params["unembed"] is None else case.params["unembed"]


def row_sizes(a: at.Attribution) -> np.ndarray:
    """L1 of each row with its bias; 1 for nodes without inputs."""
    size = np.abs(a.A).sum(1) + np.abs(a.bias)
    return np.where(size > 0, size, 1.0)


def gaps(graph: Graph, a: at.Attribution, size: np.ndarray) -> dict[str, float]:
    """Largest differences of edges, biases, values and activations, each relative to its row's `size`."""
    np.testing.assert_array_equal(graph.features, a.features)
    n = a.n_features
    found = {
        "edges": np.abs(graph.dense() - a.A).max(1) / size,
        "bias": np.abs(graph.bias - a.bias) / size,
        "values": np.abs(graph.values - a.values) / size,
        "activations": np.abs(graph.activations - a.activations) / size[:n],
    }
    return {name: float(x.max()) for name, x in found.items()}


def row_gaps(graph: Graph) -> np.ndarray:
    """[N]: |sum of the row + bias - value|."""
    out = np.zeros(graph.n_nodes)
    out[graph.row_nodes] = np.abs(graph.row_sums()[0] - graph.row_value)
    return out


def products(here: at.Local, targets: list[at.Target]) -> np.ndarray:
    """[N]: what the rounding of a row is relative to: absolute products inside the dot products that make its value.

    A neuron may be near zero because these nearly cancel *inside* a dot product; its edges and its frozen gate are then
    known to float32's 6e-8 times this number, not times their own size.
    """
    cfg, params, d, r = here.cfg, here.params, here.d, here.run
    out = np.zeros(at.n_sources(here) + len(targets))
    encoders = [dictionary.encoder(cfg, params, d, r, layer) for layer in range(cfg.n_layers)]

    def of_feature(layer: int, p: int, f: int) -> float:
        read = np.abs(r.sites[dictionary.reads(d, layer)][layer][p])
        rows, offsets = encoders[layer]
        if dictionary.kind(d, layer) != "neurons":
            return float(np.abs(rows[p, f]) @ read + abs(offsets[p, f]))
        mlp = params["blocks"]["mlp"]
        up = np.abs(mlp["w_in"][layer, :, f]) @ read
        gate = up if mlp["w_gate"] is None else np.abs(mlp["w_gate"][layer, :, f]) @ read
        return float(up * gate + abs(offsets[p, f]))

    for i, (layer, p, f) in enumerate(here.features):
        out[i] = of_feature(layer, p, f)
    for i, t in enumerate(targets, at.n_sources(here)):
        if t.kind == "feature":
            out[i] = of_feature(t.layer, t.position, t.feature)
        else:
            vector = t.vector if t.kind == "direction" else at.demeaned(here, t.token)[0]
            out[i] = np.abs(r.sites["final_norm"][t.position]) @ np.abs(vector)
    return out


def sizes_of(a: at.Attribution) -> gr.Sizes:
    """Numbers of the oracle's nodes by kind."""
    return gr.Sizes(a.n_features, a.n_errors, a.length, len(a.targets))


def dense_edges(graph: Graph) -> np.ndarray:
    """`edge_mask` as a matrix."""
    assert graph.edge_mask is not None
    out, kept = np.zeros((graph.n_nodes, graph.n_nodes), bool), graph.edge_mask
    out[graph.row_nodes[graph.edge_row[kept]], graph.source[kept]] = True
    return out


def mass_of(graph: Graph) -> np.ndarray:
    """`row_unexpanded_abs` by node, [N, L, T]."""
    out = np.zeros((graph.n_nodes, *graph.row_unexpanded_abs.shape[1:]))
    out[graph.row_nodes] = graph.row_unexpanded_abs
    return out


@partial(jax.jit, static_argnames=("cfg",))
def frozen_of(cfg: ModelConfig, params: Params, d: Transcoders, tokens: jax.Array) -> Frozen:
    return freeze(cfg, params, d, tokens)


@partial(jax.jit, static_argnames=("cfg", "n"))
def every_row(cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, ids: jax.Array, n: int) -> Rows:
    """Rows of logits at the last position and of all `n` active features, by the package's cores alone."""
    vec, const = logit_vectors(params, ids)
    p = jax.nn.softmax(frozen.logits[-1])[ids]
    outputs = output_targets(cfg, params, frozen, vec, const, jnp.full(len(ids), len(frozen.tokens) - 1), p)
    chosen = select_top(frozen.valid.astype(p.dtype), frozen.valid, n)
    features = chunk_features(cfg, params, d, frozen, chosen, 64, n // 64 + cfg.n_layers)
    return rows(cfg, params, d, frozen, join(pad_targets(outputs, 64), features), chosen)


def matrix(r: Rows, n_targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Device rows as adjacency [N, N], biases [N] and values [N] in the order of nodes."""
    W = r.weight.shape[-1]
    node, valid = np.asarray(r.node), np.asarray(r.valid)
    place = np.where(node >= 0, node, W + np.arange(node.shape[1]))[valid]
    A, bias, value = np.zeros((W + n_targets, W + n_targets)), *np.zeros((2, W + n_targets))
    A[place, :W] = np.asarray(r.weight)[valid]
    bias[place], value[place] = np.asarray(r.bias)[valid], np.asarray(r.value)[valid]
    return A, bias, value
