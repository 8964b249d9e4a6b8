"""What is explained: logits, differences of logits, directions, and the features themselves, as vectors in the stream.

A target at layer l and position t is a covector u on the residual stream that the MLP of layer l reads (l = L: on the
stream before the final norm), plus a constant: value = <u, stream> + constant. Norms are already pulled back into u.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, coverage
from tcircuits.attribution.linear import norm_bias
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import unembed_matrix
from tcircuits.models.params import Norm, Params
from tcircuits.numerics import centre, wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Targets in chunks that are swept together.

    Attributes:
        layer: of each chunk's targets, L for logits and directions; with `enter`, the highest among them.
        pos: position of each target.
        vec: covector on the stream.
        const: constant part of the value that does not pass through the stream.
        value: what the row must sum to.
        weight: share in the influence that starts here: probabilities for logits, 0 for features as nodes.
        node: the target's own place among the nodes (for selected features), or -1.
        valid: padding is False.
        enter: layer of each target, where those of a chunk are not all at one.
    """

    layer: Int[Array, " Q"]
    pos: Int[Array, "Q B"]
    vec: Float[Array, "Q B D"]
    const: Float[Array, "Q B"]
    value: Float[Array, "Q B"]
    weight: Float[Array, "Q B"]
    node: Int[Array, "Q B"]
    valid: Array
    enter: Int[Array, "Q B"] | None = None


def join(first: Targets, second: Targets) -> Targets:
    """Chunks of both, in order."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def logit_vectors(params: Params, ids: Int[Array, " N"]) -> tuple[Float[Array, "N D"], Float[Array, " N"]]:
    """Unembedding columns minus the mean column, and unembedding biases minus their mean: the demeaned logit."""
    unembed = wide(unembed_matrix(params))
    vec = (unembed[:, ids] - unembed.mean(1, keepdims=True)).T
    if params.b_unembed is None:
        return vec, jnp.zeros(ids.shape, vec.dtype)
    bias = wide(params.b_unembed)
    return vec, bias[ids] - bias.mean()


def output_targets(
    cfg: ModelConfig,
    params: Params,
    frozen: Frozen,
    vec: Float[Array, "N D"],
    const: Float[Array, " N"],
    pos: Int[Array, " N"],
    weight: Float[Array, " N"],
) -> Targets:
    """One chunk of targets that are directions at the final norm's output, at any positions."""
    u, offset = _pull(
        cfg, params.final_norm, frozen.hold.final_norm[pos] if frozen.hold.final_norm is not None else 1.0, vec
    )
    value = jnp.einsum("ND,ND->N", vec, frozen.final[pos]) + const  # of the forward pass, so that a wrong `u` shows
    n = vec.shape[0]
    arrays = (pos, u, const + offset, value, weight, jnp.full(n, -1, jnp.int32), jnp.ones(n, bool))
    return Targets(jnp.full(1, cfg.n_layers, jnp.int32), *(x[None] for x in arrays))


def _pull(cfg: ModelConfig, p: Norm | None, scale: Any, vec: Float[Array, "N D"]) -> tuple[Array, Array]:
    """A covector after a norm, as a covector before it and a constant."""
    if p is None:
        return vec, jnp.zeros(vec.shape[0], vec.dtype)
    u = centre(cfg.norm, vec * wide(p.w)) / scale[:, None]
    return u, jnp.broadcast_to((vec * norm_bias(p)).sum(-1), vec.shape[:1])


def feature_vectors(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    frozen: Frozen,
    layer: Int[Array, " N"],
    pos: Int[Array, " N"],
    slot: Int[Array, " N"],
) -> tuple[Float[Array, "N D"], Float[Array, " N"], Float[Array, " N"]]:
    """Covectors on the stream, constants and activations of features given by layer, position and slot."""
    number, factor = frozen.index[layer, pos, slot], frozen.factor[layer, pos, slot]
    row, bias, reads = encoder_rows(params, d, layer, number)
    norm, scale = params.blocks.norm2, frozen.hold.norm2
    here = None if norm is None else jax.tree.map(lambda x: wide(x)[layer], norm)
    u, const = covectors(cfg, here, None if scale is None else scale[layer, pos], row, bias, reads, factor)
    return u, const, frozen.value[layer, pos, slot]


def covectors(
    cfg: ModelConfig,
    norm: Norm | None,
    scale: Float[Array, " N"] | None,
    row: Float[Array, "N D"],
    bias: Float[Array, " N"],
    reads: Int[Array, " N"],
    factor: Float[Array, " N"],
) -> tuple[Float[Array, "N D"], Float[Array, " N"]]:
    """Encoder rows times frozen gates, pulled back through the MLP's norm (gains and biases [N, D]), and constants."""
    row, bias = row * factor[:, None], bias * factor
    if norm is None or scale is None:
        return row, bias
    full = centre(cfg.norm, norm.w * row) / scale[:, None]
    bare = centre(cfg.norm, row) / scale[:, None]
    offset = 0.0 if norm.b is None else (row * norm.b).sum(-1)
    kind = reads[:, None]
    u = jnp.where(kind == 2, full, jnp.where(kind == 1, bare, row))
    return u, bias + jnp.where(reads == 2, offset, 0.0)


def encoder_rows(params: Params, d: Transcoders, layer: Array, number: Array) -> tuple[Array, Array, Array]:
    """Encoder rows [N, D], biases [N], and where each reads (0 resid_mid, 1 normalized, 2 mlp_in)."""
    code = {"resid_mid": 0, "normalized": 1, "mlp_in": 2}[d.cfg.reads]
    reads = jnp.full(layer.shape, code, jnp.int32)
    if d.cfg.kind == "neurons":
        return (*_neuron_rows(params, layer, number), reads)
    assert d.w_enc is not None
    assert d.b_enc is not None
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    row, bias = wide(d.w_enc[slots[layer], number]), wide(d.b_enc[slots[layer], number])
    if d.cfg.fill == "error":
        return row, bias, reads
    on, (neuron, neuron_bias) = covered[layer], _neuron_rows(params, layer, number)
    return jnp.where(on[:, None], row, neuron), jnp.where(on, bias, neuron_bias), jnp.where(on, reads, 2)


def _neuron_rows(params: Params, layer: Array, number: Array) -> tuple[Array, Array]:
    """Up-projections [N, D] and biases [N] of neurons; numbers beyond the last neuron are dictionary features'."""
    mlp = params.blocks.mlp
    assert mlp is not None
    column = jnp.minimum(number, mlp.w_in.shape[-1] - 1)
    row = wide(mlp.w_in[layer, :, column])
    return row, jnp.zeros(layer.shape, row.dtype) if mlp.b_in is None else wide(mlp.b_in[layer, column])


def feature_target(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    frozen: Frozen,
    layer: Array,
    pos: Array,
    slot: Array,
    weight: Array,
) -> Targets:
    """One feature, active or not selected, as a target of its own."""
    u, const, value = feature_vectors(cfg, params, d, frozen, layer[None], pos[None], slot[None])
    one = jnp.ones(1, bool)
    arrays = (pos[None], u, const, value, weight[None], jnp.full(1, -1, jnp.int32), one)
    return Targets(layer[None].astype(jnp.int32), *(x[None] for x in arrays))


def pad_targets(t: Targets, size: int) -> Targets:
    """The same chunks with lanes up to `size`; added lanes are not valid."""

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    node = jnp.pad(t.node, [(0, 0), (0, size - t.node.shape[1])], constant_values=-1)
    return Targets(t.layer, pad(t.pos), pad(t.vec), pad(t.const), pad(t.value), pad(t.weight), node, pad(t.valid))
