"""Attention in blocks, for prompts whose patterns would fill the memory: they are computed where they are used.

A head's pattern over T tokens is T^2 numbers; what it is made of is 2 T K. `Scores` keeps that, and for each query the
logarithm of its softmax's denominator, so that any block of the pattern is

    P[t, s] = exp(softcap(q_t . k_s scale) - total_t)    where t may see s, else 0

by itself: K multiply-adds a number, beside the K that each stream pushed through the pattern costs. Blocks that none of
their queries can see (half of them where attention is causal) are left out.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.numerics import wide
from tcircuits.types import Array, Float, Int

BLOCK = 512
LONG = 2048  # tokens from which a forward pass that nobody asks for patterns attends in blocks
NOTHING = 1e30  # the total of a query that is padding: its row of the pattern is 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """What patterns are made of; layers lead, or are taken out one by one.

    Attributes:
        q, k: queries and keys as they meet, rotated.
        total: log sum of exp of each query's scores.
        window: of each layer, 0 for none.
    """

    q: Float[Array, "*L T H K"]
    k: Float[Array, "*L T G K"]
    total: Float[Array, "*L H T"]
    window: Int[Array, "*L"]


def softcap(x: Array, cap: float | None) -> Array:
    """`x`, or where there is a cap, cap tanh(x / cap)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def raw_scores(cfg: ModelConfig, q: Float[Array, "T H K"], k: Float[Array, "S G K"]) -> Float[Array, "H T S"]:
    """Scaled and soft-capped scores, before the mask."""
    grouped = q.reshape(q.shape[0], cfg.n_kv_heads, -1, cfg.d_head)
    scores = softcap(jnp.einsum("TGRK,SGK->GRTS", wide(grouped), wide(k)) * cfg.query_scale, cfg.attn_softcap)
    return scores.reshape(cfg.n_heads, *scores.shape[2:])


def seen(cfg: ModelConfig, t: Int[Array, " T"], s: Int[Array, " S"], window: Array) -> Array:
    """Which positions `s` the positions `t` see."""
    back = t[:, None] - s[None]
    inside = (window == 0) | (jnp.abs(back) < window)
    return (back >= 0) & inside if cfg.causal else inside


def size_of(n: int) -> tuple[int, int]:
    """Number of blocks of n positions, and their size."""
    blocks = -(-n // BLOCK)
    return blocks, -(-n // blocks)


def attend(
    cfg: ModelConfig, q: Float[Array, "T H K"], k: Float[Array, "S G K"], v: Float[Array, "S G K"], allowed: Any
) -> Float[Array, "T H K"]:
    """What each head reads, some queries at a time; `allowed(at)` says what the queries `at` see, [b, S]."""
    T = len(q)
    blocks, b = size_of(T)

    def some(i: Array) -> Float[Array, "b H K"]:
        at = jnp.minimum(i * b + jnp.arange(b), T - 1)
        p = jax.nn.softmax(jnp.where(allowed(at), raw_scores(cfg, q[at], k), -NOTHING), -1)
        p = jax.lax.stop_gradient(p) if cfg.holds_patterns else p
        grouped = p.reshape(cfg.n_kv_heads, -1, *p.shape[1:]).astype(v.dtype)
        return jnp.einsum("GRTS,SGK->TGRK", grouped, v).reshape(b, cfg.n_heads, -1)

    return jax.lax.map(some, jnp.arange(blocks)).reshape(blocks * b, cfg.n_heads, -1)[:T]


def totals(cfg: ModelConfig, q: Float[Array, "T H K"], k: Float[Array, "T G K"], window: Array) -> Float[Array, "H T"]:
    """Log sum of exp of one layer's scores, some queries at a time."""
    T, place = len(q), jnp.arange(len(k))
    blocks, b = size_of(T)

    def some(i: Array) -> Float[Array, "H b"]:
        at = jnp.minimum(i * b + jnp.arange(b), T - 1)
        scores = jnp.where(seen(cfg, at, place, window), raw_scores(cfg, q[at], k), -NOTHING)
        return jax.nn.logsumexp(scores, -1)

    found = jax.lax.map(some, jnp.arange(blocks))
    return jnp.moveaxis(found, 1, 0).reshape(cfg.n_heads, blocks * b)[:, :T]


def pattern_rows(cfg: ModelConfig, pattern: Any, at: Int[Array, " B"], n: int | None = None) -> Float[Array, "H B n"]:
    """The pattern of some queries over the first n positions (default: all), of `Scores` or of a pattern [H, T, T]."""
    if not isinstance(pattern, Scores):
        return pattern[:, at, :n]
    k = pattern.k[:n]
    scores = raw_scores(cfg, pattern.q[at], k) - pattern.total[:, at, None]
    return jnp.where(seen(cfg, at, jnp.arange(len(k)), pattern.window), jnp.exp(scores), 0.0)


class _Blocks:
    """One layer's pattern over the first n positions, cut into blocks; lives for one trace."""

    def __init__(self, cfg: ModelConfig, s: Scores, n: int) -> None:
        self.cfg, self.n = cfg, n
        self.count, self.size = size_of(n)
        more = self.count * self.size - n
        q, k = (jnp.pad(x[:n], [(0, more), (0, 0), (0, 0)]) for x in (s.q, s.k))
        self.scores = Scores(q, k, jnp.pad(s.total[:, :n], [(0, 0), (0, more)], constant_values=NOTHING), s.window)

    def padded(self, x: Array, axis: int) -> Array:
        """Positions up to whole blocks."""
        return jnp.pad(x, [(0, self.count * self.size - self.n if i == axis else 0) for i in range(x.ndim)])

    def cut(self, x: Array, number: Array, axis: int) -> Array:
        """One block of an array of whole blocks."""
        return jax.lax.dynamic_slice_in_dim(x, number * self.size, self.size, axis)

    def block(self, t: Array, s: Array) -> Float[Array, "G b Rb"]:
        """Pattern of the queries of block t over the keys of block s: keys first, as products with it want them.

        The R heads of a group stand side by side.
        """
        p, place, (G, K) = self.scores, jnp.arange(self.size), self.scores.k.shape[1:]
        q = self.cut(p.q, t, 0).reshape(self.size, G, -1, K).transpose(1, 3, 2, 0).reshape(G, K, -1)
        k = self.cut(p.k, s, 0).swapaxes(0, 1)
        scores = softcap((wide(k) @ wide(q)) * self.cfg.query_scale, self.cfg.attn_softcap)
        scores = scores.reshape(G, self.size, -1, self.size)
        total = self.cut(p.total, t, 1).reshape(G, 1, -1, self.size)
        at, to = t * self.size + place, s * self.size + place
        visible = seen(self.cfg, at, to, p.window) & (to < self.n)
        return jnp.where(visible.T[:, None], jnp.exp(scores - total), 0.0).reshape(G, self.size, -1)

    def run(self, out: Array, axis: int, add: Any) -> Array:
        """`out` with what each block (t, s) of the pattern that can be seen adds to it.

        `add(t, s)` says to which block of `out`, along the axis, and what.
        """
        pairs = np.array([(t, s) for t in range(self.count) for s in range(t + 1 if self.cfg.causal else self.count)])

        def step(out: Array, pair: Array) -> tuple[Array, None]:
            number, part = add(pair[0], pair[1])
            part = self.cut(out, number, axis) + part
            return jax.lax.dynamic_update_slice_in_dim(out, part, number * self.size, axis), None

        return jax.lax.scan(step, out, jnp.asarray(pairs, jnp.int32))[0]


def mix_up(cfg: ModelConfig, s: Scores, v: Float[Array, "G T X"]) -> Float[Array, "G R T X"]:
    """What each head reads of values, X numbers at a position: sum over s of P[t, s] v_s."""
    (G, T, X), R = v.shape, cfg.n_heads // cfg.n_kv_heads
    blocks = _Blocks(cfg, s, T)
    v = blocks.padded(v, 1)

    def add(t: Array, s: Array) -> tuple[Array, Array]:
        part = jnp.einsum("GSQ,GSX->GQX", blocks.block(t, s).astype(v.dtype), blocks.cut(v, s, 1))
        return t, part.reshape(G, R, blocks.size, X)

    return blocks.run(jnp.zeros((G, R, v.shape[1], X), v.dtype), 2, add)[:, :, :T]


def mix_down(cfg: ModelConfig, s: Scores, read: Float[Array, "G R n X"]) -> Float[Array, "G n X"]:
    """The transpose, over the first n positions, with the heads of a group summed: sum over t, r of P[t, s] read_t."""
    G, R, n, X = read.shape
    blocks = _Blocks(cfg, s, n)
    read = blocks.padded(read, 2)

    def add(t: Array, s: Array) -> tuple[Array, Array]:
        return s, blocks.block(t, s) @ blocks.cut(read, t, 2).reshape(G, R * blocks.size, X)

    return blocks.run(jnp.zeros((G, read.shape[2], X), read.dtype), 1, add)[:, :n]
