"""Norms and activation functions: the numerical pieces that forward pass and attribution share.

Norms and softmax work in at least float32: lower precisions are promoted, float64 is kept.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from tcircuits.types import Array, Float

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


def bucket(n: int, step: int = 16) -> int:
    """`n` rounded up to one of few sizes (at most 12.5 % above), so that few programs are compiled."""
    if n <= step:
        return step
    grain = max(step, 1 << max(0, n.bit_length() - 4))
    return -(-n // grain) * grain


def wide(x: Array) -> Array:
    """`x` in float32, or in float64 if it is that already; uint16 is the bits of bfloat16 (`transcoders.scratch`)."""
    if x.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def centre(kind: str, x: Float[Array, "*X D"]) -> Float[Array, "*X D"]:
    """Subtract the mean over D for layer norms; the linear part of a norm, its own transpose."""
    return x - x.mean(-1, keepdims=True) if kind == "layer" else x


def norm_scale(kind: str, eps: float, x: Float[Array, "*X D"]) -> Float[Array, "*X"]:
    """The denominator of a norm: the standard deviation, or the root mean square, of `x`; 1 without a norm."""
    if kind == "none":
        return jnp.ones(x.shape[:-1], wide(x).dtype)
    return jnp.sqrt(jnp.mean(jnp.square(centre(kind, wide(x))), -1) + eps)


def act(kind: Activation, h: Array) -> Array:
    """The MLP's activation function, a(h) = h s(h)."""
    return h * act_slope(kind, h)


def act_slope(kind: Activation, h: Array) -> Array:
    """s(h) with a(h) = h s(h), computed directly and never as a(h) / h: finite and exact at h = 0."""
    match kind:
        case "gelu":
            return 0.5 * jax.lax.erfc(-h * math.sqrt(0.5))
        case "gelu_tanh":
            return jax.nn.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (h + 0.044715 * h**3))
        case "silu":
            return jax.nn.sigmoid(h)
        case "relu":
            return (h > 0).astype(h.dtype)
