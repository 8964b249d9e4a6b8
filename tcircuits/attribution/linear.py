"""The local replacement model as a linear map, one layer at a time: each map and its transpose, written out.

On one prompt, attention patterns, norm denominators and MLP gates are frozen at their values. What is left between one
MLP's output and the next MLP's input is linear: mean subtraction, gains, value and output projections, post-norms,
affine skips. `down_*` are the transposes, applied to cotangents [B, T, D] of B targets; `up_*` are the maps
themselves, applied to one constant stream [T, D] with the biases that they add.

Source: Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs); Dunefsky et al. 2024, equations 12-28.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.blockwise import Scores, mix_down, mix_up
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import mix
from tcircuits.models.params import Attention, Block, Norm, Params
from tcircuits.numerics import centre, wide
from tcircuits.types import Array, Float


def layer(tree: Any, index: Any) -> Any:
    """One layer of a stacked tree, in at least float32."""
    return jax.tree.map(lambda x: wide(jax.lax.dynamic_index_in_dim(x, index, keepdims=False)), tree)


def norm_down(
    cfg: ModelConfig, p: Norm | None, scale: Float[Array, " T"] | None, g: Float[Array, "*B T D"]
) -> Float[Array, "*B T D"]:
    """Transpose of x -> w * centre(x) / scale; without a norm the identity."""
    if p is None or scale is None:
        return g
    return centre(cfg.norm, g * wide(p.w)) / scale[..., None]


def norm_up(cfg: ModelConfig, p: Norm | None, scale: Float[Array, " T"], x: Float[Array, "T D"]) -> Array:
    """X -> w * centre(x) / scale, without the bias."""
    if p is None:
        return x
    return wide(p.w) * centre(cfg.norm, x) / scale[..., None]


def norm_bias(p: Norm | None) -> Array | float:
    """The bias of a norm, or 0."""
    return 0.0 if p is None or p.b is None else wide(p.b)


def mixed(cfg: ModelConfig, pattern: Any, v: Float[Array, "S G K"]) -> Float[Array, "T H K"]:
    """`mix` with a pattern, or with the scores that make it."""
    if not isinstance(pattern, Scores):
        return mix(cfg, pattern, v)
    return mix_up(cfg, pattern, v.swapaxes(0, 1)).transpose(2, 0, 1, 3).reshape(len(v), cfg.n_heads, -1)


def attention_down(cfg: ModelConfig, p: Attention, pattern: Any, g: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Transpose of attention with a frozen pattern: from what it writes to what its values read."""
    heads, groups = p.w_o.shape[0], p.w_v.shape[1]
    if isinstance(pattern, Scores):
        read = jnp.einsum("BTD,HKD->HTBK", g, p.w_o)
        flat = read.reshape(groups, heads // groups, read.shape[1], -1)
        back = mix_down(cfg, pattern, flat).reshape(groups, *read.shape[1:])
        return jnp.einsum("GSBK,DGK->BSD", back, p.w_v)
    read = jnp.einsum("BTD,HKD->HBTK", g, p.w_o)
    moved = jnp.einsum("HTS,HBTK->HBSK", pattern, read)
    grouped = moved.reshape(groups, heads // groups, *moved.shape[1:]).sum(1)
    return jnp.einsum("GBSK,DGK->BSD", grouped, p.w_v)


def head_down(p: Attention, head: Any, g: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Transpose of one head's values and output, x -> x W_V W_O, without its pattern: g W_O^T W_V^T."""
    group = head * p.w_v.shape[1] // p.w_o.shape[0]
    return jnp.einsum("...K,DK->...D", jnp.einsum("...D,KD->...K", g, p.w_o[head]), p.w_v[:, group])


def heads_down(p: Attention, g: Float[Array, "B D"]) -> Float[Array, "B H D"]:
    """`head_down` of every head."""
    values = jnp.repeat(p.w_v, p.w_o.shape[0] // p.w_v.shape[1], 1)
    return jnp.einsum("BHK,DHK->BHD", jnp.einsum("BD,HKD->BHK", g, p.w_o), values)


def attention_up(cfg: ModelConfig, p: Attention, pattern: Any, x: Float[Array, "T D"]) -> Array:
    """Attention with a frozen pattern, without its biases."""
    return jnp.einsum("THK,HKD->TD", mixed(cfg, pattern, jnp.einsum("TD,DGK->TGK", x, p.w_v)), p.w_o)


def attention_bias(cfg: ModelConfig, p: Attention, pattern: Any) -> Array | float:
    """What attention writes by its biases alone: b_V through the pattern, and b_O."""
    total: Array | float = 0.0
    if p.b_v is not None:
        length = len(pattern.q) if isinstance(pattern, Scores) else pattern.shape[-1]
        values = jnp.broadcast_to(p.b_v, (length, *p.b_v.shape))
        total = total + jnp.einsum("THK,HKD->TD", mixed(cfg, pattern, values), p.w_o)
    return total if p.b_o is None else total + p.b_o


def block_down(
    cfg: ModelConfig, p: Block, pattern: Any, norm1: Array, norm1_post: Array, g: Float[Array, "B T D"]
) -> Array:
    """Transpose of a layer's attention with its norms: from `attn_out` to `resid_pre`."""
    g = norm_down(cfg, p.norm1_post, norm1_post, g)
    return norm_down(cfg, p.norm1, norm1, attention_down(cfg, p.attn, pattern, g))


def block_up(
    cfg: ModelConfig, p: Block, pattern: Any, norm1: Array, norm1_post: Array, x: Array, biases: bool
) -> Array:
    """A layer's attention with its norms, from `resid_pre` to `attn_out`; with or without what its biases add."""
    read = norm_up(cfg, p.norm1, norm1, x) + (norm_bias(p.norm1) if biases else 0.0)
    written = attention_up(cfg, p.attn, pattern, read) + (attention_bias(cfg, p.attn, pattern) if biases else 0.0)
    return norm_up(cfg, p.norm1_post, norm1_post, written) + (norm_bias(p.norm1_post) if biases else 0.0)


def token_vectors(cfg: ModelConfig, params: Params, tokens: Array) -> Float[Array, "T D"]:
    """What each token's embedding writes (position embeddings are constants, not sources)."""
    return wide(params.embed[tokens]) * cfg.embed_scale
