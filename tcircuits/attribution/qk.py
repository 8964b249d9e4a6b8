"""Why a head looks where it looks: one score as a sum over pairs of what made the query and what made the key.

    score = scale <R_t q_t, R_s k_s>,   q_t = sum of A_i over sources i,   k_s = sum of B_j over sources j

of layer l and head h, before soft cap, mask and softmax. With the denominators of the norm before the attention and of
the query and key norms held at their values, R_t q_t is linear in the stream, and the stream is a sum over the sources
of the attribution graph: active features of earlier layers at all positions (through frozen attention), errors, tokens,
and constants. So scale R_t q_t = sum_i A_i and R_s k_s = sum_j B_j with one vector [K] a source, from the maps that
rows of the graph go through, and the score is the sum of A_i . B_j over all pairs.

The matrix of pairs [W, W] is never made where it is large: blocks of rows pass by, the largest pairs are kept, and
the sum of all others is computed in a second pass.

Sources: Kamath et al. 2025 (transformer-circuits.pub/2025/attention-qk); rotary and query/key norms made exact.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, push_stream
from tcircuits.attribution.linear import layer as layer_of
from tcircuits.attribution.linear import norm_bias, norm_down, token_vectors
from tcircuits.attribution.sweep import Sweep, accumulator, source_reads
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward_one, layer_kinds, layer_rope, rope_tables
from tcircuits.models.params import Params
from tcircuits.models.rotary import rotate
from tcircuits.numerics import norm_scale, wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int

BLOCK = 1 << 22  # pairs that are held at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Side:
    """A query or key [K] as a sum over sources, rotated (a query times the score's scale too).

    `constant` are the parameters' constants in the stream (biases and position embeddings below), `bias` those of this
    very head (the norm's bias, b_q or b_k).
    """

    features: Float[Array, "L T C K"]
    errors: Float[Array, "L T K"]
    tokens: Float[Array, "T K"]
    constant: Float[Array, " K"]
    bias: Float[Array, " K"]

    def flat(self) -> Float[Array, "W K"]:
        """All sources: features, errors, tokens, constant, bias."""
        K = self.bias.shape[0]
        parts = (self.features, self.errors, self.tokens, self.constant, self.bias)
        return jnp.concatenate([x.reshape(-1, K) for x in parts])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QKPairs:
    """A score as pairs of sources, numbered as in `Side.flat` (`source_place` names them); several under `vmap`.

    Attributes:
        query, key, value: the pairs of largest magnitude, largest first.
        rest, rest_abs: sum and absolute mass of all other pairs.
        by_query, by_key: each source's pairs summed: what it adds to the score from its side.
        total: the sum over all pairs; `mass` of their magnitudes.
        score: as the forward pass computes it.
    """

    query: Int[Array, " N"]
    key: Int[Array, " N"]
    value: Float[Array, " N"]
    rest: Float[Array, ""]
    rest_abs: Float[Array, ""]
    by_query: Float[Array, " W"]
    by_key: Float[Array, " W"]
    score: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """The listed pairs and all others."""
        return self.value.sum(-1) + self.rest

    @property
    def mass(self) -> Float[Array, ""]:
        """The magnitudes of all pairs."""
        return jnp.abs(self.value).sum(-1) + self.rest_abs


def source_place(shape: tuple[int, int, int], number: int) -> tuple[str, int, int, int]:
    """(kind, layer, position, slot) of a source, for `Frozen.index` of this shape [L, T, C]; -1 where there is none."""
    L, T, C = shape
    if number < L * T * C:
        return "feature", number // (T * C), number // C % T, number % C
    number -= L * T * C
    if number < L * T:
        return "error", number // T, number % T, -1
    number -= L * T
    if number < T:
        return "token", -1, number, -1
    return ("constant", "bias")[number - T], -1, -1, -1


def _turn(cfg: ModelConfig, layer: Any, pos: Any, length: int, x: Float[Array, "K X"]) -> Float[Array, "K X"]:
    """The rotation of a position, applied to the first axis."""
    rope = rope_tables(cfg, jnp.arange(length), wide(x).dtype)
    if rope is None:
        return x
    kind = jax.tree.map(lambda y: y[layer], layer_kinds(cfg))
    cos, sin = (y[pos][None] for y in layer_rope(cfg, kind, rope))
    return rotate(x.T[:, None], cos, sin)[:, 0].T


def head_side(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, head: tuple[Any, Any], pos: Any, *, key: bool
) -> Side:
    """The query (or key) of a head at a position, source by source. Pure.

    `frozen` must have been made with `origin=False`, so that what MLPs write at position 0 are sources too.
    """
    layer, h = head
    group = h * cfg.n_kv_heads // cfg.n_heads
    with jax.default_matmul_precision("highest"):
        block = layer_of(params.blocks, layer)
        p, norm1 = block.attn, block.norm1
        w, b = (p.w_k[:, group], p.b_k) if key else (p.w_q[:, h], p.b_q)
        b = jnp.zeros(w.shape[1], w.dtype) if b is None else b[group if key else h]
        b = b + jnp.einsum("D,DK->K", norm_bias(norm1) + jnp.zeros(cfg.d_model, w.dtype), w)
        factor = _norm_factor(cfg, params, frozen, layer, pos, group if key else h, key)
        factor = factor * (1.0 if key else cfg.query_scale)
        T = frozen.tokens.shape[0]
        scale = frozen.hold.norm1
        down = norm_down(cfg, norm1, None if scale is None else scale[layer, pos, None], w.T)
        cov = _turn(cfg, layer, pos, T, down * factor[:, None])
        return _push(cfg, params, d, frozen, layer, pos, cov, _turn(cfg, layer, pos, T, (b * factor)[:, None])[:, 0])


def _norm_factor(
    cfg: ModelConfig, params: Params, frozen: Frozen, layer: Any, pos: Any, at: Any, key: bool
) -> Float[Array, " K"]:
    """Gain over held denominator of the query or key norm; ones where there is none."""
    if not cfg.qk_norm:
        return jnp.ones(cfg.d_head, frozen.final.dtype)
    p = layer_of(params.blocks.attn, layer)
    read = _attention_input(cfg, params, frozen, layer)[pos]
    w, b, gain = (p.w_k, p.b_k, p.k_norm) if key else (p.w_q, p.b_q, p.q_norm)
    x = jnp.einsum("D,DHK->HK", read, w) + (0.0 if b is None else b)
    over = x.ravel() if cfg.qk_norm_whole else x[at]
    return (gain[at] if cfg.qk_norm_whole else gain) / norm_scale("rms", cfg.norm_eps, over)


def _attention_input(cfg: ModelConfig, params: Params, frozen: Frozen, layer: Any) -> Float[Array, "T D"]:
    params = jax.tree.map(wide, params)
    return forward_one(cfg, params, frozen.tokens, sites=("attn_in",), hold=frozen.hold)[0].acts["attn_in"][layer]


def _push(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, layer: Any, pos: Any, cov: Array, bias: Array
) -> Side:
    """Pull K covectors at one position before a layer down to every source."""
    L, T, C = frozen.index.shape
    K, sweep = cov.shape[0], Sweep(cfg, params, d, frozen)

    def body(i: Array, carry: Any) -> Any:
        g, acc, features, errors = carry
        m = layer - 1 - i
        written = sweep.written(m, g)
        r, acc = source_reads(sweep, m, written, acc)
        features = features.at[m].set(jnp.einsum("KTC,TC->TCK", r, frozen.value[m]))
        errors = errors.at[m].set(jnp.einsum("KTD,TD->TK", written, frozen.error[m]))
        return sweep.below(m, g, written), acc, features, errors

    g = jnp.zeros((K, T, cfg.d_model), cov.dtype).at[:, pos].set(cov)
    zeros = (jnp.zeros((L, T, C, K), cov.dtype), jnp.zeros((L, T, K), cov.dtype))
    g, _, features, errors = jax.lax.fori_loop(0, layer, body, (g, accumulator(sweep, K), *zeros))
    tokens = jnp.einsum("KTD,TD->TK", g, token_vectors(cfg, params, frozen.tokens))
    return Side(features, errors, tokens, cov @ _constant(cfg, params, d, frozen)[layer, pos], bias)


def _constant(cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen) -> Float[Array, "L T D"]:
    """The part of the stream before each layer that is made of parameters alone."""
    params, T = jax.tree.map(wide, params), frozen.tokens.shape[0]
    start = jnp.zeros_like(frozen.final) if params.pos_embed is None else params.pos_embed[jnp.arange(T)]
    return push_stream(cfg, params, d, frozen.hold, start, None, True, jnp.ones(T, start.dtype))[1]


def head_scores(cfg: ModelConfig, params: Params, tokens: Int[Array, " T"], head: tuple[Any, Any]) -> Array:
    """Scores [T, T] of a head as the forward pass has them before soft cap and mask, positions after the query too."""
    layer, h = head
    with jax.default_matmul_precision("highest"):
        params = jax.tree.map(wide, params)
        acts = forward_one(cfg, params, tokens, sites=("q", "k"))[0].acts
        q, k = acts["q"][layer][:, h], acts["k"][layer][:, h * cfg.n_kv_heads // cfg.n_heads]
        rope = rope_tables(cfg, jnp.arange(len(tokens)), q.dtype)
        if rope is not None:
            turn = layer_rope(cfg, jax.tree.map(lambda y: y[layer], layer_kinds(cfg)), rope)
            q, k = (rotate(x[:, None], *turn)[:, 0] for x in (q, k))
        return jnp.einsum("TK,SK->TS", q, k) * cfg.query_scale


def qk_pairs(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    frozen: Frozen,
    head: tuple[Any, Any],
    query: Any,
    key: Any,
    *,
    n: int = 64,
    block: int = BLOCK,
) -> QKPairs:
    """One score of one head as pairs of sources. Pure; `vmap` it over heads, queries or keys.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: what `frozen` was made with.
        frozen: the frozen prompt, made with `origin=False`.
        head: layer and head.
        query: position that looks.
        key: position that is looked at; the score is defined where the mask forbids it too.
        n: pairs listed (static).
        block: pairs held at once (static).
    """
    a = head_side(cfg, params, d, frozen, head, query, key=False).flat()
    b = head_side(cfg, params, d, frozen, head, key, key=True).flat()
    score = head_scores(cfg, params, frozen.tokens, head)[query, key]
    with jax.default_matmul_precision("highest"):
        i, j, value, rest, rest_abs = top_pairs(a, b, n, block)
        return QKPairs(i, j, value, rest, rest_abs, a @ b.sum(0), b @ a.sum(0), score)


def top_pairs(a: Float[Array, "W K"], b: Float[Array, "X K"], n: int, block: int = BLOCK) -> Any:
    """The `n` largest |a_i . b_j| as (i, j, value), and sum and absolute sum of all others, block by block of rows."""
    W, X = len(a), len(b)
    n, size = min(n, W * X), min(W, max(1, block // X))
    count = -(-W // size)
    rows = jnp.pad(a, [(0, count * size - W), (0, 0)]).reshape(count, size, -1)

    def largest(best: Any, x: Any) -> tuple[Any, None]:
        part, number = x
        value = (part @ b.T).ravel()
        _, at = jax.lax.top_k(jnp.abs(value), min(n, size * X))
        first = number * size
        i, j = jnp.concatenate([best[0], first + at // X]), jnp.concatenate([best[1], at % X])
        value = jnp.concatenate([best[2], value[at]])
        _, keep = jax.lax.top_k(jnp.where(i < W, jnp.abs(value), -1.0), n)
        return (i[keep], j[keep], value[keep]), None

    none = jnp.full(n, count * size, jnp.int32)
    start = (none, jnp.zeros(n, jnp.int32), jnp.zeros(n, a.dtype))
    (i, j, value), _ = jax.lax.scan(largest, start, (rows, jnp.arange(count, dtype=jnp.int32)))

    def others(_: None, x: Any) -> tuple[None, Array]:
        part, number = x
        left = (part @ b.T).at[jnp.where(i // size == number, i % size, size), j].set(0.0, mode="drop")
        return None, jnp.stack([left, jnp.abs(left)]).sum(-1).sum(-1)

    _, sums = jax.lax.scan(others, None, (rows, jnp.arange(count, dtype=jnp.int32)))
    return (i, j, value, *sums.sum(0))
