"""Products of training in a smaller dtype than the weights', backward as well as forward.

Differentiated as it stands, a product of bfloat16 arrays that is summed in float32 has cotangents in float32, and its
two backward products run in float32 at half the speed or less. Here they are rounded first, as both factors were.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.types import Array


def product(spec: str, a: Array, b: Array, kind: Any) -> Array:
    """`einsum(spec, a, b)` of factors rounded to `kind`, summed in and returned as `b.dtype`, that of the weights.

    In `spec` every index stands in two of the three terms.
    """
    if jnp.dtype(kind) == b.dtype:
        return jnp.einsum(spec, a.astype(kind), b, preferred_element_type=b.dtype)
    return _rounded(spec, jnp.dtype(kind).name, b.dtype.name, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rounded(spec: str, kind: str, out: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a.astype(kind), b.astype(kind), preferred_element_type=out)


def _forward(spec: str, kind: str, out: str, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    empty = jnp.zeros(0, a.dtype)  # the cotangent's dtype
    return _rounded(spec, kind, out, a, b), (a.astype(kind), b.astype(kind), empty)


def _backward(spec: str, kind: str, out: str, kept: tuple[Array, ...], g: Array) -> tuple[Array, Array]:
    a, b, empty = kept
    terms, whole = spec.split("->")
    first, second = terms.split(",")
    g = g.astype(kind)
    by_a = jnp.einsum(f"{whole},{second}->{first}", g, b, preferred_element_type=out)
    by_b = jnp.einsum(f"{first},{whole}->{second}", a, g, preferred_element_type=out)
    return by_a.astype(empty.dtype), by_b


_rounded.defvjp(_forward, _backward)
