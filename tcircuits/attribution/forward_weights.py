"""Input-invariant weights from a feature upwards: what it writes, the logits that this makes, the features it meets.

The transposes of `weights`: one feature is pushed up through the residual stream and affine skips, through no head.
Denominators of norms are `hold`'s, see there.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), section 3.2.4 (direct logit attribution).
"""

from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import coverage, read_up, skip_up
from tcircuits.attribution.linear import norm_up
from tcircuits.attribution.maps import Maps
from tcircuits.attribution.weights import Still, decoder_rows
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold, unembed_matrix
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int


def written_streams(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, layer: Int[Array, " N"], index: Int[Array, " N"]
) -> Float[Array, "L+1 N D"]:
    """What one unit of each feature adds to the stream that the MLP of each layer reads; last: the final norm."""
    maps, index = Still(cfg, params, d, hold), jnp.asarray(index)
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    each = jax.vmap(lambda i, f, m: decoder_rows(cfg, params, d, hold, i, m, f[None])[0], (0, 0, None))

    def step(x: Array, m: Array) -> tuple[Array, Array]:
        block, h = maps.at(m)
        out = skip_up(d, slots[m], covered[m], read_up(cfg, d, block.norm2, h.norm2, x, False))
        out = out + each(jnp.asarray(layer), index, m)
        if d.cfg.writes == "mlp_raw" and cfg.post_norm:
            out = norm_up(cfg, block.norm2_post, h.norm2_post, out)
        return x + out, x

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros((len(index), cfg.d_model), wide(params.embed).dtype)
        x, below = jax.lax.scan(step, start, jnp.arange(cfg.n_layers))
    return jnp.concatenate([below, x[None]])


def stream_logits(
    cfg: ModelConfig, params: Params, hold: Hold, x: Float[Array, "N D"], *, demeaned: bool = True
) -> Float[Array, "N V"]:
    """Logits that a part of the last stream adds: final norm (gain and mean in, `hold`'s denominator), W_U."""
    if params.final_norm is not None and hold.final_norm is not None:
        x = norm_up(cfg, params.final_norm, hold.final_norm, x)
    with jax.default_matmul_precision("highest"):
        logits = jnp.einsum("ND,DV->NV", x, wide(unembed_matrix(params)))
    return logits - logits.mean(-1, keepdims=True) if demeaned else logits


def direct_logits(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    layer: Int[Array, " N"],
    index: Int[Array, " N"],
    *,
    demeaned: bool = True,
) -> Float[Array, "N V"]:
    """Direct logit attribution: what one unit of each feature adds to every logit (less the mean logit: `demeaned`).

    With `unit_hold` the gain of the final norm is in it and its denominator is not; the paper's has neither, which is
    the same on a model whose norms are folded (`fold`).
    """
    streams = written_streams(cfg, params, d, hold, layer, index)
    return stream_logits(cfg, params, hold, streams[-1], demeaned=demeaned)


def feature_reads(
    cfg: ModelConfig, params: Params, d: Transcoders, hold: Hold, layer: Any, x: Float[Array, "N D"]
) -> Float[Array, "N F"]:
    """What every feature of a layer reads of a part of the stream before its MLP's norm (neurons: the gated-in part).

    Of `written_streams(...)[layer]`: the weights from those features to all features of a later layer.
    """
    maps: Maps = Still(cfg, params, d, hold)
    block, h = maps.at(layer)
    with jax.default_matmul_precision("highest"):
        neurons = None
        if d.cfg.kind == "neurons" or d.cfg.fill == "neurons":
            full = norm_up(cfg, block.norm2, h.norm2, x) if block.norm2 is not None else x
            neurons = jnp.einsum("ND,DF->NF", full, block.mlp.w_in)
            if d.cfg.kind == "neurons":
                return neurons
        assert d.w_enc is not None
        slots, covered = (jnp.asarray(y)[layer] for y in coverage(d.cfg))
        ours = jnp.einsum("ND,FD->NF", read_up(cfg, d, block.norm2, h.norm2, x, False), wide(d.w_enc[slots]))
        if neurons is None:
            return jnp.where(covered, ours, 0.0)
        width = max(ours.shape[1], neurons.shape[1])
        ours, neurons = (jnp.pad(y, [(0, 0), (0, width - y.shape[1])]) for y in (ours, neurons))
        return jnp.where(covered, ours, neurons)
