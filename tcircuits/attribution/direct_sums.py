"""Weighted sums over the positions of a prompt of all direct attributions to some features: one sweep, past all heads.

A direct attribution stands at one position: activation of the source there times the weight between the two, through
the residual stream and affine skips. So covectors of a target at all positions go down together, and each layer's
features are read by the maps that rows of a graph go through (`sweep.Sweep`).
"""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.sweep import Sweep, accumulator, source_reads
from tcircuits.attribution.targets import feature_vectors
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold
from tcircuits.models.params import Params
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int


def target_slots(frozen: Frozen, layer: Any, index: Int[Array, " N"]) -> tuple[Int[Array, "N T"], Array]:
    """Slots of some features of a layer at every position, and their activations [N, T] (0 where they are off)."""
    mine = (frozen.index[layer][None] == index[:, None, None]) & frozen.valid[layer][None]
    return mine.argmax(-1).astype(jnp.int32), (mine * frozen.value[layer]).sum(-1)


def direct_sums(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    frozen: Frozen,
    layer: Any,
    index: Int[Array, " N"],
    weight: Float[Array, "B N T"],
    hold: Hold | None = None,
) -> Float[Array, "L B N F"]:
    """Sum over positions of weight * (attribution of each feature of each earlier layer to each target). Pure.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: what `frozen` was made with.
        frozen: the frozen prompt.
        layer: of the targets (may be traced).
        index: their numbers.
        weight: B weightings of each target at each position; 0 where it is off.
        hold: denominators [L, 1] in place of the prompt's own.
    """
    L, T, C = frozen.index.shape
    (B, N, _), F = weight.shape, max(d.cfg.d_feature, cfg.d_mlp if d.cfg.fill == "neurons" else 0)
    if hold is not None:
        frozen = replace(frozen, hold=_held_at(frozen.hold, hold))
    slot, _ = target_slots(frozen, layer, index)
    pos = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (N, T))
    with jax.default_matmul_precision("highest"):
        u, _, _ = feature_vectors(cfg, params, d, frozen, jnp.full(N * T, layer), pos.ravel(), slot.ravel())
        g = (weight[..., None] * u.reshape(N, T, -1)).reshape(B * N, T, -1)
        sweep = Sweep(cfg, params, d, frozen)

        def body(i: Array, carry: Any) -> Any:
            g, acc, total = carry
            m = layer - 1 - i
            written = sweep.written(m, g)
            r, acc = source_reads(sweep, m, written, acc)
            sums = jnp.zeros((B * N, F), g.dtype).at[:, frozen.index[m].ravel()]
            flat = (r * frozen.value[m]).reshape(B * N, T * C)
            return g + sweep.skip(m, written), acc, total.at[m].set(sums.add(flat))

        start = (g, accumulator(sweep, B * N), jnp.zeros((L, B * N, F), g.dtype))
        return jax.lax.fori_loop(0, layer, body, start)[2].reshape(L, B, N, F)


def _held_at(own: Hold, other: Hold) -> Hold:
    """A prompt's hold with other denominators, the same at every position."""
    names = [f.name for f in fields(Hold) if f.name != "pattern" and getattr(own, f.name) is not None]
    return replace(own, **{k: jnp.broadcast_to(getattr(other, k), getattr(own, k).shape) for k in names})
