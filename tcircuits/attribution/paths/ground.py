"""What a frozen prompt offers to a path: features, heads and embeddings below a point, errors and constants.

A path stands at a *point*: a covector `vec` on the stream at one position, above `top` MLPs and `attn` attention
layers. What it reads is linear in the stream there:

    <vec, stream> + const = sum over features, heads x sources and the embedding below + errors + constants

Here is that sum, each part from its own definition, for one path. Nothing has a destination axis: all that is read
directly stands at the path's own position, and a head moves it from its sources.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), equations 17-28; norms, gates and patterns frozen.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, coverage, mlp_constant, skip_up
from tcircuits.attribution.linear import norm_bias, norm_down, norm_up
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import embed
from tcircuits.models.params import Norm, Params
from tcircuits.numerics import centre, wide
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.types import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ground:
    """What paths can end in, beside the features of `Frozen`.

    Attributes:
        embed: token and position embeddings, the stream before layer 0.
        attn_constant: what each attention layer writes by b_O and its post-norm's bias.
        mlp_constant: what each MLP's stand-in writes by biases (with a skip also by what it reads of the norm's bias),
            where the dictionary writes; `post_bias` what a post-norm after that adds.
    """

    embed: Float[Array, "T D"]
    attn_constant: Float[Array, "L T D"]
    mlp_constant: Float[Array, "L T D"]
    post_bias: Float[Array, "L D"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point:
    """Where a path stands; with a leading axis, where several do.

    Attributes:
        vec: covector on the stream.
        const: the constant part of what is read there.
        top, attn: MLPs and attention layers of numbers below these write what is read.
        pos: the position.
    """

    vec: Float[Array, "*B D"]
    const: Float[Array, "*B"]
    top: Int[Array, "*B"]
    attn: Int[Array, "*B"]
    pos: Int[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Below:
    """All that a point reads: contributions, the reads that the next points are made of, and what no path follows.

    Attributes:
        reads: <decoders, cotangent> of each feature at the position; `features` times the activation.
        head_reads: what each head's output is read with; `heads` is each head's contribution by source position.
        embed: the embedding's contribution.
        error: of the transcoders below; `bias` of all constants; `size` the absolute sum of every term here.
    """

    reads: Float[Array, "*B L C"]
    features: Float[Array, "*B L C"]
    head_reads: Float[Array, "*B L H K"]
    heads: Float[Array, "*B L H S"]
    embed: Float[Array, "*B"]
    error: Float[Array, "*B"]
    bias: Float[Array, "*B"]
    size: Float[Array, "*B"]


def ground(cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen) -> Ground:
    """Embeddings, and what layers write by their biases."""
    T = frozen.tokens.shape[0]
    params = jax.tree.map(wide, params)
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    h, nothing = frozen.hold, jnp.zeros((T, cfg.d_model), frozen.value.dtype)
    unit = jnp.ones((cfg.n_layers, T), nothing.dtype)
    post1, post2 = (unit if x is None else x for x in (h.norm1_post, h.norm2_post))

    def constants(inputs: Any) -> tuple[Array, Array, Array]:
        block, slot, on, scale1, scale2 = inputs
        b_o = nothing if block.attn.b_o is None else nothing + block.attn.b_o
        attn = norm_up(cfg, block.norm1_post, scale1, b_o) + norm_bias(block.norm1_post)
        mlp = nothing + mlp_constant(cfg, d, block, slot, on, scale2)
        if d.cfg.reads == "mlp_in":
            mlp = mlp + skip_up(d, slot, on, nothing + norm_bias(block.norm2))
        after = norm_bias(block.norm2_post) if d.cfg.writes == "mlp_raw" else 0.0
        return attn, mlp, nothing[0] + after

    attn, mlp, after = jax.lax.map(constants, (params.blocks, slots, covered, post1, post2))
    return Ground(embed(cfg, params, frozen.tokens, jnp.arange(T)), attn, mlp, after)


@dataclass(frozen=True)
class Place:
    """The maps of one layer at one position; lives for one trace."""

    cfg: ModelConfig
    d: Transcoders
    block: Any
    norm2: Float[Array, ""]
    post1: Float[Array, ""]
    post2: Float[Array, ""]
    slot: Int[Array, ""]
    on: Any

    def written(self, g: Float[Array, " D"]) -> Float[Array, " D"]:
        """Cotangent where the dictionary writes, from that at the MLP's output."""
        if self.d.cfg.writes == "mlp_out" or not self.cfg.post_norm:
            return g
        return norm_down(self.cfg, self.block.norm2_post, self.post2, g)

    def skip(self, written: Float[Array, " D"]) -> Array | float:
        """Transpose of the affine skip, down to the stream before the MLP's norm."""
        if self.d.w_skip is None:
            return 0.0
        g = jnp.where(self.on, jnp.einsum("E,DE->D", written, wide(self.d.w_skip[self.slot])), 0.0)
        norm: Norm | None = self.block.norm2
        if self.d.cfg.reads == "resid_mid" or norm is None:
            return g
        if self.d.cfg.reads == "normalized":
            return centre(self.cfg.norm, g) / self.norm2
        return norm_down(self.cfg, norm, self.norm2, g)

    def heads(self, g: Float[Array, " D"]) -> Float[Array, "H K"]:
        """What each head's output is read with, from the cotangent at the attention's output."""
        return jnp.einsum("D,HKD->HK", norm_down(self.cfg, self.block.norm1_post, self.post1, g), self.block.attn.w_o)


def below(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, base: Ground, highest: Array, at: Point
) -> Below:
    """All that one point reads. `vmap` it over points; layers from `highest` on, which none reads, cost nothing."""
    (L, T, C), h, t = frozen.index.shape, frozen.hold, at.pos
    unit = jnp.ones((L, T), frozen.value.dtype)
    scales = [(unit if x is None else x)[:, t] for x in (h.norm2, h.norm1_post, h.norm2_post)]
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    blocks = jax.tree.map(wide, params.blocks)

    def read(carry: Any, inputs: Any) -> Any:
        g, collected = carry
        m, block, *rest, error, attn_constant, mlp_constant, post_bias = inputs
        here = Place(cfg, d, block, *rest)
        out = jnp.where(m < at.top, g, 0.0)
        written = here.written(out)
        reads, collected = _reads(params, d, frozen, m, here.slot, t, written, collected)
        middle = g + here.skip(written)
        into = jnp.where(m < at.attn, g if cfg.parallel else middle, 0.0)
        parts = (written @ error, written @ mlp_constant, out @ post_bias, into @ attn_constant)
        return (middle, collected), (reads, here.heads(into), jnp.stack(parts))

    def step(carry: Any, inputs: Any) -> Any:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read, carry, inputs)[1])
        return jax.lax.cond(inputs[0] < highest, read, lambda carry, _: (carry, nothing), carry, inputs)

    by_layer = (frozen.error[:, t], base.attn_constant[:, t], base.mlp_constant[:, t], base.post_bias)
    collected: Any = jnp.zeros((L, C), frozen.value.dtype) if d.cfg.kind == "clt" else ()
    xs = (jnp.arange(L), blocks, *scales, slots, covered, *by_layer)
    (g, collected), (reads, head_reads, parts) = jax.lax.scan(step, (at.vec, collected), xs, reverse=True)
    complete: Array = collected if d.cfg.kind == "clt" else reads
    features, from_embed = complete * frozen.value[:, t], g @ base.embed[t]
    heads = _heads(cfg, frozen, head_reads, t)
    constants = jnp.concatenate([parts[:, 1:].ravel(), at.const[None]])
    terms = (features, heads, from_embed, parts[:, 0], constants)
    size = sum((jnp.abs(x).sum() for x in terms), jnp.zeros((), features.dtype))
    return Below(complete, features, head_reads, heads, from_embed, parts[:, 0].sum(), constants.sum(), size)


def _reads(
    params: Params, d: Transcoders, frozen: Frozen, m: Array, slot: Array, t: Array, written: Array, collected: Any
) -> Any:
    """<decoders to layer m, written> of its own features [C]; cross-layer features collect over their outputs."""
    if d.cfg.kind == "neurons":
        assert params.blocks.mlp is not None
        return wide(params.blocks.mlp.w_out[m]) @ written, collected
    if frozen.decoder is None:
        assert d.w_dec is not None
        return wide(d.w_dec[slot, frozen.index[m, t]]) @ written, collected
    if d.cfg.kind != "clt":
        return frozen.decoder[m, t] @ written, collected

    def add(i: Array, all_reads: Array) -> Array:
        assert frozen.decoder is not None
        return all_reads.at[i].add(frozen.decoder[pair(d.cfg, i, m), t] @ written)

    return (), jax.lax.fori_loop(0, m + 1, add, collected)


def _heads(cfg: ModelConfig, frozen: Frozen, reads: Float[Array, "L H K"], t: Array) -> Float[Array, "L H S"]:
    """Pattern x <value vector, read> for every head and source."""
    assert frozen.hold.pattern is not None
    L, H, K = reads.shape
    grouped = reads.reshape(L, cfg.n_kv_heads, -1, K)
    moved = jnp.einsum("LGRK,LSGK->LGRS", grouped, frozen.values).reshape(L, H, -1)
    return moved * frozen.hold.pattern[:, :, t]
