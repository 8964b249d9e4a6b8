"""Edges as units: which writer each reader hears, heads' queries, keys and values apart.

Writers are the embedding, every head (through its output matrix) and every MLP; readers are every head's query, every
key/value head's key and value, every MLP, and the logits. A reader's input is the sum of all writers before it, so

    input = sum_w out_w' + sum_w m_w (out_w - out_w')           m: 1 in the circuit, 0 outside; ': the reference run

gives every edge a mask of its own, and all-ones is the model. The gradient by the mask at one is edge attribution
patching (Syed et al. 2023, arXiv 2310.10348): (out - out') times the gradient at the reader's input. An edge's ablation
is exact: only that reader hears the reference.

Norms stand in every reader: each normalises its own input. Writers must add to the stream, so post-norms are refused.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import (
    LayerKind,
    Tap,
    View,
    attention_pattern,
    embed,
    layer_kinds,
    layer_rope,
    logits_from,
    mix,
    mlp,
    normalise,
    rope_tables,
)
from tcircuits.models.params import Attention, Block, Params
from tcircuits.models.rotary import rotate
from tcircuits.numerics import norm_scale, wide
from tcircuits.types import Array, Bool, Float, InputError, Int

ROLES = ("q", "k", "v")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Edges:
    """The edges of a model, numbered reader by reader: layers in order, within one queries, keys, values, the MLP.

    Attributes:
        n_layers, n_heads, n_kv_heads: of the model.
        parallel: an MLP does not hear the heads of its own layer.
        attn_only: there are no MLPs.
        kinds, positions: what `Units` has too; edges are of one kind, and pooled.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    attn_only: bool = False
    kinds: tuple[str, ...] = ("edge",)
    positions: None = None

    @property
    def per_layer(self) -> int:
        """Writers of a layer."""
        return self.n_heads + (not self.attn_only)

    @property
    def n_writers(self) -> int:
        """The embedding, heads and MLPs."""
        return 1 + self.n_layers * self.per_layer

    @property
    def readers(self) -> int:
        """Readers of a layer."""
        return self.n_heads + 2 * self.n_kv_heads + (not self.attn_only)

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "R W"]:
        """Which writer a reader hears; the last row is the logits."""
        found = np.zeros((self.n_layers * self.readers + 1, self.n_writers), bool)
        for layer in range(self.n_layers):
            rows = slice(layer * self.readers, (layer + 1) * self.readers)
            found[rows, : 1 + layer * self.per_layer] = True
            if not self.attn_only and not self.parallel:
                found[rows.stop - 1, : 1 + layer * self.per_layer + self.n_heads] = True
        found[-1] = True
        return found

    @cached_property
    def pairs(self) -> Int[np.ndarray, "U 2"]:
        """Reader and writer of each edge."""
        return np.argwhere(self.allowed)

    @property
    def n(self) -> int:
        """How many edges; a sum, not the length of `pairs`: a file may say any sizes."""
        layers, heard = self.n_layers, self.per_layer * self.n_layers * (self.n_layers - 1) // 2
        own = 0 if self.attn_only or self.parallel else layers * self.n_heads  # an MLP hears its own layer's heads
        return self.readers * (layers + heard) + own + self.n_writers

    def split(self, mask: Any) -> dict[str, Array]:
        """A vector over edges [U] as matrices: readers by layer [L, R, W], and the logits' [W]."""
        reader, writer = self.pairs.T
        mask = jnp.asarray(mask)
        full = jnp.zeros(self.allowed.shape, mask.dtype).at[reader, writer].set(mask)
        return {"layers": full[:-1].reshape(self.n_layers, self.readers, -1), "logits": full[-1]}

    def groups(self) -> Int[np.ndarray, " U"]:
        """The reader's layer of each edge: what random circuits are matched in."""
        return self.pairs[:, 0] // self.readers

    def writer_name(self, writer: int) -> str:
        """`embed`, `head 1.3` or `mlp 2`."""
        if writer == 0:
            return "embed"
        layer, place = divmod(writer - 1, self.per_layer)
        return f"mlp {layer}" if place == self.n_heads else f"head {layer}.{place}"

    def reader_name(self, reader: int) -> str:
        """`head 1.3 q`, `head 1.0 k` (a key/value head), `mlp 2` or `logits`."""
        if reader == len(self.allowed) - 1:
            return "logits"
        layer, place = divmod(reader, self.readers)
        if place == self.readers - 1 and not self.attn_only:
            return f"mlp {layer}"
        sizes = np.cumsum([0, self.n_heads, self.n_kv_heads, self.n_kv_heads])
        role = int(np.searchsorted(sizes, place, "right")) - 1
        return f"head {layer}.{place - sizes[role]} {ROLES[role]}"

    def label(self, unit: int) -> str:
        """`head 0.1 -> head 2.3 q`.

        Raises:
            InputError: no such edge.
        """
        if not 0 <= unit < self.n:
            raise InputError(f"edge {unit} is outside 0..{self.n - 1}")
        reader, writer = self.pairs[unit]
        return f"{self.writer_name(int(writer))} -> {self.reader_name(int(reader))}"


def edges_of(cfg: ModelConfig) -> Edges:
    """The edges of a model.

    Raises:
        InputError: heads that do not add to the stream (post-norms), or whose queries are normed together.
    """
    wrong = []
    if cfg.post_norm:
        wrong.append("its sublayers are normed before they are added, so heads do not add to the stream")
    if cfg.qk_norm_whole:
        wrong.append("its queries are normed over all heads together")
    if wrong:
        raise InputError(f"the model ({cfg.family}) has no edges between heads: {'; '.join(wrong)}: use units")
    return Edges(cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.parallel, cfg.attn_only)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Written:
    """What every writer adds to the stream in one run."""

    out: Float[Array, "W T D"]


def run(
    cfg: ModelConfig,
    params: Params,
    edges: Edges,
    tokens: Int[Array, " T"],
    valid: Bool[Array, " T"],
    mask: dict[str, Array] | None = None,
    reference: Written | None = None,
    nudge: tuple[dict[str, Array], Written] | None = None,
    start: Float[Array, "T D"] | None = None,
) -> tuple[Float[Array, "T V"], Written]:
    """Logits of one sequence under a mask of edges, and what its writers wrote.

    Args:
        cfg: sizes and switches (static).
        params: weights.
        edges: of this model (static).
        tokens: padded on the left where `valid` is False.
        valid: which are tokens.
        mask: of `Edges.split`; None keeps every edge.
        reference: what a reader hears of a writer outside.
        nudge: a number for every edge (of `Edges.split`) and a vector for every writer: what the edge's reader hears
            beside, for gradients.
        start: the stream before layer 0, instead of the tokens' embeddings.
    """
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    view, rope = View(positions, positions, valid), rope_tables(cfg, positions, params.embed.dtype)
    x = embed(cfg, params, tokens, positions) if start is None else start
    other = jnp.zeros((edges.n_writers, *x.shape), x.dtype) if reference is None else reference.out.astype(x.dtype)
    gap = jnp.zeros_like(other).at[0].set(x - other[0])  # of the writers so far; the rest count as zero
    rows = jnp.asarray(edges.allowed[:-1].reshape(edges.n_layers, edges.readers, -1), x.dtype)
    rows = rows if mask is None else mask["layers"].astype(x.dtype)
    last = jnp.ones(edges.n_writers, x.dtype) if mask is None else mask["logits"].astype(x.dtype)
    beside = jnp.zeros((edges.n_layers, edges.readers, *x.shape), x.dtype)
    if nudge is not None:
        beside = jnp.einsum("LRW,WTD->LRTD", nudge[0]["layers"].astype(x.dtype), nudge[1].out.astype(x.dtype))

    def step(carry: Any, item: Any) -> tuple[Any, None]:
        gap, total = carry
        layer, block, kind, row, more = item
        gap, total = _layer(cfg, edges, block, kind, rope, view, layer, row, gap, total, other, more)
        return (gap, total), None

    items = (jnp.arange(cfg.n_layers), params.blocks, layer_kinds(cfg), rows, beside)
    (gap, total), _ = jax.lax.scan(step, (gap, other[0]), items)
    stream = total + jnp.einsum("W,WTD->TD", last, gap)
    if nudge is not None:
        stream = stream + jnp.einsum("W,WTD->TD", nudge[0]["logits"].astype(x.dtype), nudge[1].out.astype(x.dtype))
    return logits_from(cfg, params, stream, Tap((), (), 0, positions)), Written(gap + other)


def _layer(
    cfg: ModelConfig,
    edges: Edges,
    p: Block,
    kind: LayerKind,
    rope: Any,
    view: View,
    layer: Array,
    mask: Float[Array, "R W"],
    gap: Float[Array, "W T D"],
    total: Float[Array, "T D"],
    other: Float[Array, "W T D"],
    beside: Float[Array, "R T D"],
) -> tuple[Array, Array]:
    """One layer: its writers' gaps put in their places, and the reference stream after it.

    `total` is the reference stream before the layer: the sum of all reference writers so far, biases in them.
    """
    H, G, first = cfg.n_heads, cfg.n_kv_heads, 1 + layer * edges.per_layer
    heard = total + jnp.einsum("RW,WTD->RTD", mask[: H + 2 * G], gap) + beside[: H + 2 * G]
    z = _heads(cfg, p.attn, normalise(cfg, p.norm1, heard, None), view, kind, rope)
    wrote = jnp.einsum("THK,HKD->HTD", z, p.attn.w_o)
    if p.attn.b_o is not None:  # a constant: shared out, so that writers sum to the stream
        wrote = wrote + p.attn.b_o / H
    own = jax.lax.dynamic_slice_in_dim(other, first, H)
    gap = jax.lax.dynamic_update_slice_in_dim(gap, (wrote - own).astype(gap.dtype), first, 0)
    after = total + own.sum(0)
    if edges.attn_only or p.mlp is None:
        return gap, after
    heard = (total if cfg.parallel else after) + jnp.einsum("W,WTD->TD", mask[-1], gap) + beside[-1]
    wrote = mlp(cfg, p.mlp, normalise(cfg, p.norm2, heard, None))
    own = jax.lax.dynamic_index_in_dim(other, first + H, keepdims=False)
    gap = jax.lax.dynamic_update_index_in_dim(gap, (wrote - own).astype(gap.dtype), first + H, 0)
    return gap, after + own


def _heads(
    cfg: ModelConfig, p: Attention, x: Float[Array, "R T D"], view: View, kind: LayerKind, rope: Any
) -> Float[Array, "T H K"]:
    """What heads read, each query, key and value from an input of its own."""
    H, G = cfg.n_heads, cfg.n_kv_heads
    q = _projected(cfg, x[:H], p.w_q, p.b_q, p.q_norm)
    k = _projected(cfg, x[H : H + G], p.w_k, p.b_k, p.k_norm)
    v = _projected(cfg, x[H + G :], p.w_v, p.b_v, None)
    if rope is not None:
        cos, sin = layer_rope(cfg, kind, rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return mix(cfg, attention_pattern(cfg, q, k, view.allowed(cfg, kind.window)), v)


def _projected(
    cfg: ModelConfig, x: Float[Array, "H T D"], w: Float[Array, "D H K"], b: Any, norm: Any
) -> Float[Array, "T H K"]:
    h = jnp.einsum("HTD,DHK->THK", x, w)
    h = h if b is None else h + b
    if norm is None:
        return h
    return (wide(h) / norm_scale("rms", cfg.norm_eps, h)[..., None] * wide(norm)).astype(h.dtype)
