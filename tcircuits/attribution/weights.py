"""Weights that no prompt enters: pullbacks, de-embeddings, direct logits, OV norms, feature-to-feature weights.

    edge of a prompt = activation * (product of patterns on the way) * weight

A covector [N, D] reads the stream that the MLP of layer `top` reads (L: the final norm), or, after `through_heads`,
the stream before layer `top`. Everything below descends from there through the residual stream and the affine skips of
skip transcoders, which are linear and the same for every prompt; heads are passed only where they are named.

Denominators of norms do depend on the prompt. Gains, mean subtraction and post-norms are in every weight; what stands
for the denominators is `hold`, one number a layer and norm: `unit_hold` (ones: weights in folded units, each a fixed
positive factor off), `corpus.mean_hold` (their harmonic mean over a corpus), or `hold_of` (those of one position of a
prompt: then the equation above is exact).

Source: Dunefsky et al. 2024 (arXiv 2406.11944), sections 3.2.3-3.2.4 and equations 7, 8, 18-28.

>>> import jax
>>> from tcircuits.models.config import ModelConfig
>>> from tcircuits.models.params import init
>>> from tcircuits.transcoders.dictionary import neurons
>>> cfg = ModelConfig("llama", 2, 8, 2, 1, 4, 16, 10, 32, rotary_dim=4)
>>> params, d, hold = init(cfg, jax.random.key(0)), neurons(2, 8, 16), unit_hold(cfg)
>>> u = feature_covectors(cfg, params, d, hold, jnp.array([1, 1]), jnp.array([3, 5]))
>>> pullback(cfg, params, d, hold, u, 1, 0).shape, deembed(cfg, params, d, hold, u, 1).shape
((2, 16), (2, 10))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import coverage
from tcircuits.attribution.linear import head_down, heads_down, norm_down, norm_up
from tcircuits.attribution.maps import Maps
from tcircuits.attribution.targets import covectors, encoder_rows
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.types import Array, Float, Int

Heads = Sequence[tuple[Any, Any]] | Int[Array, "N 2"]  # (layer, head) from the target down, layers falling


@dataclass(frozen=True)
class Still(Maps):
    """The maps with denominators of one place, [L, 1]."""

    place: Hold

    @property
    def hold(self) -> Hold:
        """The place's denominators."""
        return self.place


def unit_hold(cfg: ModelConfig, dtype: Any = jnp.float32) -> Hold:
    """Denominators that are one."""
    one = jnp.ones((cfg.n_layers, 1), dtype)
    return Hold(None, one, one, one, one, one[0])


def hold_of(hold: Hold, pos: Any) -> Hold:
    """Denominators of one position of a prompt (`Frozen.hold`)."""

    def at(x: Array | None) -> Array | None:
        return None if x is None else x[..., pos, None]

    return Hold(None, at(hold.norm1), at(hold.norm1_post), at(hold.norm2), at(hold.norm2_post), at(hold.final_norm))


def feature_covectors(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, layer: Int[Array, " N"], index: Int[Array, " N"]
) -> Float[Array, "N D"]:
    """What features read of the stream before their MLP's norm; a neuron without its slope or gate."""
    layer, index = jnp.asarray(layer), jnp.asarray(index)
    row, bias, reads = encoder_rows(params, d, layer, index)
    norm = params.blocks.norm2
    here = None if norm is None else jax.tree.map(lambda x: wide(x)[layer], norm)
    scale = None if hold.norm2 is None else hold.norm2[layer, 0]
    return covectors(cfg, here, scale, row, bias, reads, jnp.ones_like(bias))[0]


def output_covectors(cfg: ModelConfig, params: Params, hold: Hold, vec: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Covectors on the stream before the final norm, of those on its output (`logit_vectors`, any direction)."""
    return vec if hold.final_norm is None else norm_down(cfg, params.final_norm, hold.final_norm, vec)


def decoder_rows(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, source: Any, out: Any, index: Any = None
) -> Float[Array, "F D"]:
    """Decoder rows of a layer's features to an output layer at the site written; 0 where they do not write there.

    `source` and `out` are layers; `index` [M] chooses features, else there are all F of them (with neurons as fill as
    many as the wider kind of layer has).
    """
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    mlp = params.blocks.mlp
    here = (source <= out) & covered[source] if d.cfg.kind == "clt" else (source == out) & covered[source]
    neurons = None
    if d.cfg.kind == "neurons" or d.cfg.fill == "neurons":
        assert mlp is not None
        neurons = _rows(mlp.w_out[source], index, d.cfg.d_feature)
        if d.cfg.kind == "neurons":
            return jnp.where(source == out, neurons, 0.0)
        if d.cfg.writes == "mlp_out" and cfg.post_norm:
            norm, scale = jax.tree.map(lambda x: wide(x)[source], (params.blocks.norm2_post, hold.norm2_post))
            neurons = norm_up(cfg, norm, scale, neurons)
    assert d.w_dec is not None
    row = pair(d.cfg, source, jnp.maximum(source, out)) if d.cfg.kind == "clt" else slots[source]
    ours = _rows(d.w_dec[row], index, 0 if neurons is None else cfg.d_mlp)
    if neurons is None:
        return jnp.where(here, ours, 0.0)
    return jnp.where(source == out, jnp.where(covered[source], ours, neurons), 0.0)


def _rows(w: Float[Array, "F D"], index: Any, least: int) -> Array:
    """Rows of `w` by number, or all of them and zeros up to `least`."""
    if index is not None:
        return wide(w[jnp.minimum(index, len(w) - 1)])
    return wide(jnp.pad(w, [(0, max(0, least - len(w))), (0, 0)]))


def descend(maps: Maps, g: Float[Array, "N T D"], top: Any, to: Any) -> Float[Array, "N T D"]:
    """A covector carried from where layer `top` reads to where layer `to` reads: past affine skips, through no head."""
    if maps.d.w_skip is None:
        return g
    return jax.lax.fori_loop(0, top - to, lambda i, g: g + maps.skip(top - 1 - i, maps.written(top - 1 - i, g)), g)


def pullback(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    vec: Float[Array, "N D"],
    top: Any,
    source: Any,
    *,
    index: Int[Array, " M"] | None = None,
    output: Any = None,
) -> Float[Array, "N F"]:
    """<decoder rows, vec>: what one unit of each feature of layer `source` adds to what `vec` reads (equations 7, 18).

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: a set of dictionaries on it, or `neurons`.
        hold: see the module.
        vec: covectors at layer `top` (may be traced, like all layers).
        top: where they read.
        source: layer of the features, below `top`.
        index: some features (None: all).
        output: only through this decoder of a cross-layer transcoder (None: through all below `top`, summed).
    """
    maps, g = Still(cfg, params, d, hold), vec[:, None]

    def read(g: Array, m: Any) -> Array:
        rows = decoder_rows(cfg, params, d, hold, source, m, index)
        return jnp.einsum("ND,FD->NF", maps.written(m, g)[:, 0], rows)

    with jax.default_matmul_precision("highest"):
        if d.cfg.kind != "clt" or output is not None:
            m = source if output is None else output
            return jnp.where(m < top, read(descend(maps, g, top, m + 1), m), 0.0)

        def body(i: Array, carry: Any) -> Any:
            g, total = carry
            m = top - 1 - i
            return descend(maps, g, m + 1, m), total + read(g, m)

        start = jax.eval_shape(read, g, 0)
        return jax.lax.fori_loop(0, top - source, body, (g, jnp.zeros(start.shape, start.dtype)))[1]


def through_heads(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    vec: Float[Array, "N D"],
    top: Any,
    heads: Heads,
) -> Float[Array, "N D"]:
    """Covectors pulled back through a chain of heads, patterns left out (equations 8, 19-24, 27).

    What comes back reads the stream before the last head's layer: go on with `top=heads[-1][0]`. With sequential blocks
    a covector at layer `top` may pass a head of that same layer; after a head, and with parallel blocks, only of lower
    ones (`checks.check_heads`).
    """
    maps, g = Still(cfg, params, d, hold), vec[:, None]
    with jax.default_matmul_precision("highest"):
        for layer, head in heads:
            g = descend(maps, g, top, layer + 1 if cfg.parallel else layer)  # parallel: its MLP does not read it
            block, h = maps.at(layer)
            g = norm_down(cfg, block.norm1_post, h.norm1_post, g)
            g, top = norm_down(cfg, block.norm1, h.norm1, head_down(block.attn, head, g)), layer
    return g[:, 0]


def ov_norms(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, vec: Float[Array, "N D"], top: Any
) -> Float[Array, "L H N"]:
    """|vec O_h| of every head below: how strongly each could carry what `vec` reads; 0 for heads that come after it.

    In products of rank d_head, a layer at a time: no matrix [D, D] is made.
    """
    maps = Still(cfg, params, d, hold)
    last = top - 1 if cfg.parallel else top  # sequential blocks: attention of layer `top` stands before its MLP

    def step(g: Array, m: Array) -> tuple[Array, Array]:
        lower = jnp.where(m < top, g + maps.skip(m, maps.written(m, g)), g)
        at = g if cfg.parallel else lower
        block, h = maps.at(m)
        back = heads_down(block.attn, norm_down(cfg, block.norm1_post, h.norm1_post, at)[:, 0])
        norms = jnp.linalg.norm(norm_down(cfg, block.norm1, h.norm1, back), axis=-1)
        return lower, jnp.where(m <= last, norms.T, 0.0)

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, vec[:, None], jnp.arange(cfg.n_layers), reverse=True)[1]


def deembed(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, vec: Float[Array, "N D"], top: Any
) -> Float[Array, "N V"]:
    """<token embedding, vec> for every token; of what `through_heads` gave, the de-embedding through those heads."""
    with jax.default_matmul_precision("highest"):
        g = descend(Still(cfg, params, d, hold), vec[:, None], top, 0)[:, 0]
        return jnp.einsum("ND,VD->NV", g, wide(params.embed)) * cfg.embed_scale


def virtual_weights(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    targets: tuple[Any, Int[Array, " N"]],
    sources: tuple[Any, Int[Array, " M"]],
    *,
    heads: Heads = (),
) -> Float[Array, "N M"]:
    """Feature-to-feature weights between two layers, direct or through heads: [targets, sources] = dec . O . enc.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: a set of dictionaries on it, or `neurons`.
        hold: see the module.
        targets: their layer and numbers.
        sources: their layer and numbers.
        heads: pass these instead of going directly.
    """
    layer, index = targets
    top: Any = layer
    u = feature_covectors(cfg, params, d, hold, jnp.full(len(index), layer), index)
    if len(heads):
        u, top = through_heads(cfg, params, d, hold, u, layer, heads), heads[-1][0]
    return pullback(cfg, params, d, hold, u, top, sources[0], index=sources[1])
