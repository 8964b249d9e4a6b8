"""Active features of a prompt in C slots a position, and the decoder rows that they write with.

A layer's slots hold its active features by ascending number; where a layer has no dictionary and neurons fill it, its
neurons.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.linear import norm_up
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Mlp
from tcircuits.numerics import act, act_slope, wide
from tcircuits.parallel import Spread
from tcircuits.transcoders.dictionary import Transcoders, encode_once, pair, sparse
from tcircuits.types import Array, Float, Int


def default_slots(d: Transcoders) -> int:
    """Slots that always suffice: every feature, or the k of TopK (and every neuron, where those fill layers)."""
    return d.cfg.k if d.cfg.activation == "topk" and d.cfg.k and d.cfg.fill == "error" else d.cfg.d_feature


def rows_of(d: Transcoders, number: Any, covered: Any, index: Int[Array, "n C"]) -> Float[Array, "n C D"]:
    """Rows of one decoder matrix; zeros where the layer has no dictionary."""
    assert d.w_dec is not None
    return jnp.where(covered, wide(d.w_dec[number, index]), 0.0)


def neuron_features(cfg: ModelConfig, p: Mlp, x: Float[Array, "T D"]) -> tuple[Array, Array]:
    """Neuron activations and factors: a = h s(h) with s frozen, or a = act(gate) h with the gate frozen."""
    h = jnp.einsum("TD,DM->TM", x, p.w_in) + (0.0 if p.b_in is None else p.b_in)
    if p.w_gate is None:
        factor = act_slope(cfg.activation, h)
    else:
        factor = act(cfg.activation, jnp.einsum("TD,DM->TM", x, p.w_gate) + (0.0 if p.b_gate is None else p.b_gate))
    return h * factor, factor


def _pad(x: Float[Array, "T M *X"], n_slots: int) -> Float[Array, "T C *X"]:
    """Empty slots behind those of `x`."""
    return jnp.pad(x, [(0, 0), (0, n_slots - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _layer_features(cfg: ModelConfig, d: Transcoders, n_slots: int, spread: Spread | None, inputs: Any) -> Any:
    """Slots of one layer, and decoder rows of features that write to their own layer alone.

    Where positions are spread and the rows are to be kept, every device looks up those of all positions: indices are
    much less to send than rows.
    """
    block, slot, covered, reads, post_scale = inputs
    if d.cfg.kind == "neurons":
        value, factor = neuron_features(cfg, block.mlp, reads["mlp_in"])
        T, M = value.shape
        index = jnp.broadcast_to(jnp.arange(M, dtype=jnp.int32), (T, M))
        return index, value, factor, value != 0, jnp.full(T, M, jnp.int32), None
    f = jnp.where(covered, encode_once(d, slot, reads[d.cfg.reads]), 0.0)
    index, value, valid = (_pad(x, n_slots) for x in sparse(f, min(n_slots, d.cfg.d_feature)))
    n_active = (f != 0).sum(-1).astype(jnp.int32)
    if spread is not None:
        index, value, valid = (spread.together(spread(x, 0)) for x in (index, value, valid))
    factor = jnp.ones_like(value)
    rows = None
    if d.cfg.kind == "transcoder":
        rows = rows_of(d, slot, covered, index)
    if d.cfg.fill == "neurons":
        return _filled(cfg, d, block, reads, post_scale, covered, (index, value, factor, valid, n_active, rows))
    return index, value, factor, valid, n_active, rows


def features_and_sum(
    cfg: ModelConfig, d: Transcoders, n_slots: int, drop: bool, spread: Spread | None, inputs: Any
) -> Any:
    """Slots of one layer, and what its features write to it; rows that nobody keeps are then those of a layer."""
    found = _layer_features(cfg, d, n_slots, None if drop else spread, inputs)
    total = None if found[-1] is None else jnp.einsum("TCD,TC->TD", found[-1], found[1])
    return (*found[:-1], None if drop else found[-1]), total


def _filled(
    cfg: ModelConfig, d: Transcoders, block: Any, reads: Any, post_scale: Array, covered: Array, ours: Any
) -> Any:
    """The layer's features, or its neurons where the layer has no dictionary."""
    index, value, factor, valid, n_active, rows = ours
    a, gate = neuron_features(cfg, block.mlp, reads["mlp_in"])
    T, C = index.shape
    M = a.shape[-1]
    neuron_rows = jnp.broadcast_to(block.mlp.w_out, (T, M, cfg.d_model))
    if d.cfg.writes == "mlp_out" and cfg.post_norm:
        neuron_rows = norm_up(cfg, block.norm2_post, post_scale[:, None], neuron_rows)

    def choose(own: Array, other: Array) -> Array:
        return jnp.where(covered, own, _pad(other, C))

    number = jnp.broadcast_to(jnp.arange(M, dtype=jnp.int32), (T, M))
    count = jnp.where(covered, n_active, jnp.full(T, M, jnp.int32))
    parts = [choose(o, x) for o, x in ((index, number), (value, a), (factor, gate), (valid, a != 0))]
    return (*parts, count, choose(rows, neuron_rows))


def cross_layer_rows(d: Transcoders, index: Int[Array, "L T C"]) -> Float[Array, "P T C D"]:
    """Decoder rows for every pair (i -> m), the sources of one output next to each other."""
    n = len(d.cfg.layers)
    sources = np.array([i for m in range(n) for i in range(m + 1)])

    def one(p: Array) -> Array:
        assert d.w_dec is not None
        return wide(d.w_dec[p, index[jnp.asarray(sources)[p]]])

    return jax.lax.map(one, jnp.arange(len(sources)))


def reconstruction(
    d: Transcoders,
    decoder: Float[Array, "P T C D"] | None,
    index: Int[Array, "L T C"],
    value: Float[Array, "L T C"],
) -> Float[Array, "L T D"]:
    """What cross-layer features in the slots write, summed from the very rows that attribution reads."""
    n = value.shape[0]
    if decoder is not None:
        kept = [[decoder[pair(d.cfg, i, m)] for i in range(m + 1)] for m in range(n)]
        out = [sum(jnp.einsum("TCD,TC->TD", rows, value[i]) for i, rows in enumerate(some)) for some in kept]
        return jnp.stack([jnp.asarray(x) for x in out])

    def layer_of(m: Array) -> Float[Array, "T D"]:
        def add(i: Array, total: Array) -> Array:
            return total + jnp.einsum("TCD,TC->TD", rows_of(d, pair(d.cfg, i, m), True, index[i]), value[i])

        assert d.w_dec is not None
        return jax.lax.fori_loop(0, m + 1, add, jnp.zeros((value.shape[1], d.w_dec.shape[-1]), value.dtype))

    return jax.lax.map(layer_of, jnp.arange(n))
