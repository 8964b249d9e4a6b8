"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), with the frequency scaling of Llama 3."""

import math

import jax.numpy as jnp

from tcircuits.models.config import ModelConfig, RopeScaling
from tcircuits.types import Array, Float


def _scaled(freq: Array, scaling: RopeScaling | None) -> Array:
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    wavelength = 2 * math.pi / freq
    low = scaling.original_n_ctx / scaling.low_freq_factor
    high = scaling.original_n_ctx / scaling.high_freq_factor
    smooth = (scaling.original_n_ctx / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    mixed = (1 - smooth) * freq / scaling.factor + smooth * freq
    return jnp.where(wavelength < high, freq, jnp.where(wavelength > low, freq / scaling.factor, mixed))


def rotary_table(cfg: ModelConfig, positions: Array, dtype: jnp.dtype, *, local: bool = False) -> tuple[Array, Array]:
    """Cosine and sine [T, rotary_dim / 2] of each position's angles; `local`: layers with a window and another base."""
    theta = cfg.rope_theta_local if local and cfg.rope_theta_local is not None else cfg.rope_theta
    wide_dtype = jnp.promote_types(dtype, jnp.float32)
    exponent = jnp.arange(0, cfg.rotary_dim, 2, dtype=wide_dtype) / cfg.rotary_dim
    freq = 1.0 / jnp.asarray(theta, wide_dtype) ** exponent
    if not (local and cfg.rope_theta_local is not None):
        freq = _scaled(freq, cfg.rope_scaling)
    angle = positions[:, None].astype(wide_dtype) * freq
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "T H K"], cos: Array, sin: Array) -> Float[Array, "T H K"]:
    """Rotary embedding of the leading `2 * cos.shape[-1]` dimensions, in half-split pairs (i, i + rotary_dim / 2)."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    return jnp.concatenate([a * c - b * s, b * c + a * s, rest], -1)
