"""Features of a batch while training: dense, or as slots of the active ones, with the gradients that training needs.

`L` is the layers of a group: all of them where layers are coupled, else one. TopK gives slots
[L, B, C]. The gradient reaches the pre-activations that were kept. JumpReLU's threshold gets a gradient through a
kernel of width `bandwidth` around it (Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.transcoders.training.largest import keep_largest, largest_of_batch, spread
from tcircuits.transcoders.training.products import product
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.weights import Weights, decoder_norms
from tcircuits.types import Array, Float, Int

FEW = 64  # one feature in so many on: about where summed rows and a product cost the same on 2 cores
ROWS = 256  # tokens whose decoder rows are gathered at once: they stay in the processor's cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Code:
    """Feature values of a batch: `dense` [L, B, F], or the slots `index` and `value` [L, B, C] (value 0: empty).

    `smallest` [L] is the value at which BatchTopK cut this batch, `on` [L, F] the number of tokens where each is on.
    """

    pre: Float[Array, "L B F"]
    dense: Float[Array, "L B F"] | None
    index: Int[Array, "L B C"] | None
    value: Float[Array, "L B C"] | None
    smallest: Float[Array, " L"]
    on: Float[Array, "L F"]


def sums_rows(recipe: Recipe) -> bool:
    """Whether outputs are summed from the rows of active features.

    `auto` does so on the CPU where a feature has one decoder and at most one in `FEW` is on: a gathered row costs as
    much there as some 64 rows of a product.
    """
    if recipe.dictionary.activation != "topk" or recipe.objective.nested or recipe.objective.prediction:
        return False
    c = recipe.dictionary
    pays = c.kind != "clt" and c.k is not None and FEW * c.k <= c.d_feature and jax.default_backend() == "cpu"
    return recipe.decode == "sparse" or (recipe.decode == "auto" and pays)


def biases(w: Weights) -> Float[Array, "L F"]:
    """b_enc - W_enc b_in: the vector that is subtracted from the input, taken off the bias."""
    return w.b_enc if w.b_in is None else w.b_enc - jnp.einsum("LFD,LD->LF", w.w_enc, w.b_in)


def preactivations(recipe: Recipe, w: Weights, x: Float[Array, "L B D"]) -> Float[Array, "L B F"]:
    """W_enc (x - b_in) + b_enc; with the vector in the bias the gradient by x is never formed."""
    b, kind = biases(w), jnp.dtype(recipe.compute)
    return product("LBD,LFD->LBF", x, w.w_enc, kind) + b[:, None]


def encode_batch(recipe: Recipe, w: Weights, x: Float[Array, "L B D"]) -> Code:
    """The features of a batch."""
    pre = preactivations(recipe, w, x)
    nothing = jnp.zeros(len(pre), pre.dtype)
    if not recipe.chooses:
        f = jax.nn.relu(pre)
        if w.log_threshold is not None:
            f = jumprelu(pre, jnp.exp(w.log_threshold), recipe.objective.bandwidth)
        return Code(pre, f, None, None, nothing, _on(f))
    if recipe.objective.k is not None:
        kept = max(1, round(recipe.objective.k * pre.shape[1]))
        if recipe.objective.by_norm:
            wrote, smallest = largest_of_batch(pre * jax.lax.stop_gradient(decoder_norms(recipe, w))[:, None], kept)
            f = jnp.where(wrote > 0, pre, 0.0)
        else:
            f, smallest = largest_of_batch(pre, kept)
        return Code(pre, f, None, None, smallest, _on(f))
    if not sums_rows(recipe):
        f = keep_largest(pre, recipe.dictionary.k or 1)
        return Code(pre, f, None, None, nothing, _on(f))
    index, value = slots(recipe, pre)
    return Code(pre, None, index, value, nothing, _count(index, value, pre.shape[-1]))


def slots(recipe: Recipe, pre: Float[Array, "L B F"]) -> tuple[Array, Array]:
    """TopK's choice: index, and value (0 where the slot is empty)."""
    assert recipe.dictionary.k is not None
    value, index = jax.lax.top_k(jax.nn.relu(pre), recipe.dictionary.k)
    return index, value


def _on(f: Array) -> Array:
    return jnp.sum(jax.lax.stop_gradient(f) > 0, 1).astype(f.dtype)


def _count(index: Array, value: Array, n: int) -> Array:
    layers = jnp.arange(len(index))[:, None, None]
    return jnp.zeros((len(index), n), value.dtype).at[layers, index].add(jax.lax.stop_gradient(value > 0))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def jumprelu(pre: Float[Array, "L B F"], threshold: Float[Array, "L F"], bandwidth: float) -> Float[Array, "L B F"]:
    """The pre-activation where it is above its threshold, else 0."""
    return jnp.where(pre > threshold[:, None], pre, 0.0)


def near(pre: Array, threshold: Array, bandwidth: float) -> Array:
    """The kernel: 1 / bandwidth within half of it around the threshold."""
    return (jnp.abs(pre - threshold) < bandwidth / 2) / bandwidth


def _jumprelu_backward(bandwidth: float, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    pre, threshold = kept
    d_threshold = -threshold * jnp.sum(g * near(pre, threshold[:, None], bandwidth), 1)
    return jnp.where(pre > threshold[:, None], g, 0.0), d_threshold.astype(threshold.dtype)


jumprelu.defvjp(lambda pre, t, bandwidth: (jumprelu(pre, t, bandwidth), (pre, t)), _jumprelu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def gate(pre: Float[Array, "L B F"], threshold: Float[Array, "L F"], bandwidth: float) -> Float[Array, "L B F"]:
    """1 where a feature is on, else 0; only the threshold gets a gradient."""
    return (pre > threshold[:, None]).astype(pre.dtype)


def _gate_backward(bandwidth: float, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    pre, threshold = kept
    return jnp.zeros_like(pre), -jnp.sum(g * near(pre, threshold[:, None], bandwidth), 1).astype(threshold.dtype)


gate.defvjp(lambda pre, t, bandwidth: (gate(pre, t, bandwidth), (pre, t)), _gate_backward)


@jax.custom_vjp
def sum_rows(index: Int[Array, "B C"], value: Float[Array, "B C"], w: Float[Array, "F D"]) -> Float[Array, "B D"]:
    """sum_c value_c w[index_c]: the product with a matrix of which few rows count, gathered in blocks.

    The indices of a token must be distinct, as those of `top_k` are.
    """
    return _by_blocks(lambda i, v: jnp.einsum("bc,bcd->bd", v, w[i], preferred_element_type=v.dtype), index, value)


def _by_blocks(f: Any, *arrays: Array) -> Array:
    n = arrays[0].shape[0]
    rows = next(r for r in range(min(n, ROWS), 0, -1) if n % r == 0)
    blocks = jax.lax.map(lambda block: f(*block), tuple(a.reshape(n // rows, rows, *a.shape[1:]) for a in arrays))
    return blocks.reshape(n, *blocks.shape[2:])


def _sum_rows_backward(kept: tuple[Array, Array, Array], g: Array) -> tuple[None, Array, Array]:
    """The values' gradient from the same rows; the matrix's as one dense product, which needs no scattered sums."""
    index, value, w = kept
    d_value = _by_blocks(lambda i, h: jnp.einsum("bd,bcd->bc", h, w[i], preferred_element_type=h.dtype), index, g)
    f = spread(index, value, w.shape[0])
    d_w = jnp.einsum("bf,bd->fd", f.astype(w.dtype), g.astype(w.dtype), preferred_element_type=g.dtype)
    return None, d_value, d_w.astype(w.dtype)


sum_rows.defvjp(lambda index, value, w: (sum_rows(index, value, w), (index, value, w)), _sum_rows_backward)
