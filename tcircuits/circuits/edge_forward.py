"""A forward pass in which every reader hears its own selection of writers.

A reader's input is the sum of all writers before it, so

    input = sum_w out_w' + sum_w m_w (out_w - out_w')           m: 1 in the circuit, 0 outside; ': the reference run

gives every edge a mask of its own, and all-ones is the model. An edge's ablation is exact: only that reader hears the
reference. Norms stand in every reader: each normalises its own input. Writers must add to the stream, so post-norms are
refused (`edges_of`).

What a run's writers wrote is kept as `Written`, in the heads' own width: [L, T, H, K] instead of a vector as wide as
the model for every head.

On its way back a run keeps what its writers added beyond the reference once, [W, T, D], not once a layer: what a layer
heard are the rows of the writers before it. Each layer is computed anew there, one third more work (`swept`).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import read_out
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import (
    LayerKind,
    View,
    attention_pattern,
    embed,
    forward_one,
    head_norm,
    layer_kinds,
    layer_rope,
    mix,
    mlp,
    normalise,
    rope_tables,
)
from tcircuits.models.params import Block, Params
from tcircuits.models.rotary import rotate
from tcircuits.types import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What writers are worth in one run: the embedding, heads before their output matrices, MLPs.

    `bias` is the share of the heads' output biases that is written too: 1, or 0 where zeros stand for the writers.
    """

    embed: Float[Array, "1 T D"]
    z: Float[Array, "L T H K"]
    mlp: Float[Array, "L T D"] | None
    bias: Float[Array, "1 T"]


def record(
    cfg: ModelConfig, params: Params, tokens: Int[Array, " T"], valid: Bool[Array, " T"]
) -> tuple[Float[Array, "T V"], Written]:
    """Logits of the model itself on one sequence, and what its writers wrote."""
    sites = ("z",) if cfg.attn_only else ("z", "mlp_out")
    out, _, _ = forward_one(cfg, params, tokens, mask=valid, sites=sites)
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    first = embed(cfg, params, tokens, positions)[None]
    return out.logits, Written(first, out.acts["z"], out.acts.get("mlp_out"), jnp.ones((1, len(tokens)), first.dtype))


def layer_vectors(
    block: Block, z: Float[Array, "T H K"], wrote: Float[Array, "T D"] | None, bias: Float[Array, " T"]
) -> Float[Array, "P T D"]:
    """What one layer's writers add to the stream, heads first; an output bias is shared out among the heads."""
    heads = jnp.einsum("THK,HKD->HTD", z, block.attn.w_o.astype(z.dtype))
    if block.attn.b_o is not None:
        heads = heads + bias[:, None].astype(z.dtype) * block.attn.b_o.astype(z.dtype) / z.shape[1]
    return heads if wrote is None else jnp.concatenate([heads, wrote[None]])


def vectors(params: Params, w: Written) -> Float[Array, "W T D"]:
    """What every writer adds to the stream."""

    def layer(carry: None, item: Any) -> tuple[None, Array]:
        block, z, wrote = item
        return carry, layer_vectors(block, z, wrote, w.bias[0])

    _, each = jax.lax.scan(layer, None, (params.blocks, w.z, w.mlp))
    return jnp.concatenate([w.embed, each.reshape(-1, *w.embed.shape[1:])])


def run(
    cfg: ModelConfig,
    params: Params,
    edges: Edges,
    tokens: Int[Array, " T"],
    valid: Bool[Array, " T"],
    mask: dict[str, Array],
    reference: Written,
    at: Int[Array, ""] | None = None,
) -> Float[Array, "*T V"]:
    """Logits of one sequence under a mask of edges, with derivatives by the mask alone.

    Args:
        cfg: sizes and switches (static).
        params: weights.
        edges: of this model (static).
        tokens: padded on the left where `valid` is False.
        valid: which are tokens.
        mask: of `Edges.split`.
        reference: what a reader hears of a writer outside.
        at: the only position whose logits are wanted, [V].
    """
    params, reference = jax.lax.stop_gradient((params, reference))
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    view, rope = View(positions, positions, valid), rope_tables(cfg, positions, params.embed.dtype)
    x = embed(cfg, params, tokens, positions)
    other = vectors(params, reference).astype(x.dtype)
    own = other[1:].reshape(cfg.n_layers, edges.per_layer, *x.shape)
    total = other[0] + jnp.cumsum(own.sum(1), 0)  # the reference stream after each layer
    layers = Layers(
        params.blocks, layer_kinds(cfg), own, jnp.concatenate([other[:1], total[:-1]]), jnp.arange(cfg.n_layers)
    )
    gap = swept(cfg, edges, mask["layers"].astype(x.dtype), layers, rope, view, x - other[0])
    stream = total[-1] + jnp.einsum("W,WTD->TD", mask["logits"].astype(x.dtype), gap)
    return read_out(cfg, params, stream, positions, at)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    """The layers, stacked, as a pass under a mask takes them.

    Attributes:
        block: their weights.
        kind: in what they differ.
        own: what the P writers of each add to the stream in the reference run.
        total: the reference stream before each.
        number: of each.
    """

    block: Block
    kind: LayerKind
    own: Float[Array, "L P T D"]
    total: Float[Array, "L T D"]
    number: Int[Array, " L"]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def swept(
    cfg: ModelConfig,
    edges: Edges,
    mask: Float[Array, "L R W"],
    layers: Layers,
    rope: Any,
    view: View,
    first: Float[Array, "T D"],
) -> Float[Array, "W T D"]:
    """What each writer adds beyond its reference, under a mask; `first` is that of the embedding."""

    def step(gap: Array, item: tuple[Array, Layers]) -> tuple[Array, None]:
        rows = _written(cfg, edges, item[0], gap, item[1], rope, view)
        return jax.lax.dynamic_update_slice_in_dim(gap, rows, 1 + item[1].number * edges.per_layer, 0), None

    begun = jnp.zeros((edges.n_writers, *first.shape), first.dtype).at[0].set(first)  # the rest count as zero so far
    return jax.lax.scan(step, begun, (mask, layers))[0]


def _swept(cfg: ModelConfig, edges: Edges, mask: Array, layers: Layers, rope: Any, view: View, first: Array) -> Any:
    gap = swept(cfg, edges, mask, layers, rope, view, first)
    return gap, (gap, mask, layers, rope, view)


def _back(cfg: ModelConfig, edges: Edges, kept: Any, slope: Float[Array, "W T D"]) -> Any:
    """Derivatives by the mask, layer by layer from the last; `slope` gathers those by each writer."""
    gap, mask, layers, rope, view = kept
    writer = jnp.arange(edges.n_writers)[:, None, None]

    def step(slope: Array, item: tuple[Array, Layers]) -> tuple[Array, Array]:
        place = 1 + item[1].number * edges.per_layer

        def written(mask: Array, gap: Array) -> Array:
            return _written(cfg, edges, mask, gap, item[1], rope, view)

        _, back = jax.vjp(written, item[0], jnp.where(writer < place, gap, 0))
        by_mask, by_gap = back(jax.lax.dynamic_slice_in_dim(slope, place, edges.per_layer))
        return slope + by_gap, by_mask

    return jax.lax.scan(step, slope, (mask, layers), reverse=True)[1], None, None, None, None


swept.defvjp(_swept, _back)


def _written(
    cfg: ModelConfig,
    edges: Edges,
    mask: Float[Array, "R W"],
    gap: Float[Array, "W T D"],
    at: Layers,
    rope: Any,
    view: View,
) -> Float[Array, "P T D"]:
    """What one layer's writers add beyond their reference, of the gaps of those before it."""
    H, G, p = cfg.n_heads, cfg.n_kv_heads, at.block
    q, k, v = projections(cfg, p, at.total + jnp.einsum("RW,WTD->RTD", mask[: H + 2 * G], gap))
    if rope is not None:
        cos, sin = layer_rope(cfg, at.kind, rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    z = mix(cfg, attention_pattern(cfg, q, k, view.allowed(cfg, at.kind.window)), v)
    heads = (layer_vectors(p, z, None, jnp.ones(len(at.total), z.dtype)) - at.own[:H]).astype(gap.dtype)
    if edges.attn_only or p.mlp is None:
        return heads
    heard = at.total + jnp.einsum("W,WTD->TD", mask[-1], gap)
    if not cfg.parallel:
        mine = jax.lax.dynamic_slice_in_dim(mask[-1], 1 + at.number * edges.per_layer, H)
        heard = heard + at.own[:H].sum(0) + jnp.einsum("H,HTD->TD", mine, heads)
    wrote = mlp(cfg, p.mlp, normalise(cfg, p.norm2, heard, None)) - at.own[H]
    return jnp.concatenate([heads, wrote.astype(gap.dtype)[None]])


def projections(cfg: ModelConfig, p: Block, heard: Float[Array, "R T D"]) -> tuple[Array, Array, Array]:
    """Queries [T, H, K], keys and values [T, G, K] of one layer, each from an input of its own, before rotary."""
    H, G, attn = cfg.n_heads, cfg.n_kv_heads, p.attn
    x = normalise(cfg, p.norm1, heard, None)

    def projected(x: Float[Array, "H T D"], w: Float[Array, "D H K"], b: Any) -> Float[Array, "T H K"]:
        h = jnp.einsum("HTD,DHK->THK", x, w)
        return h if b is None else h + b

    q = head_norm(cfg, projected(x[:H], attn.w_q, attn.b_q), attn.q_norm)
    k = head_norm(cfg, projected(x[H : H + G], attn.w_k, attn.b_k), attn.k_norm)
    return q, k, projected(x[H + G :], attn.w_v, attn.b_v)
