"""What attention adds to a target, head by head: by source position, and how much of one edge goes through each head.

`head_sources` splits what attention adds to <u, stream at a position> into heads and source positions: [L, H, T]
numbers, made of values and of the patterns' rows of that one position; no array [H, T, T, D] is made.

`head_loadings` splits an edge of the attribution graph. An edge sums over all paths between source and target, through
the residual stream, affine skips and frozen attention. Paths through no head, through each head alone, and through two
heads or more are three sums; each is computed from its own paths, so that they add up to the edge is a check.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.linear import heads_down, norm_bias, norm_down, token_vectors
from tcircuits.attribution.sweep import Sweep
from tcircuits.attribution.weights import Still, hold_of
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold, forward_one
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.types import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadSources:
    """What attention adds to <u, stream at a position>.

    Attributes:
        weight: by layer, head and source position, value biases included; 0 in layers that `u` does not read.
        bias: by layer, of b_O and a post-norm's bias.
    """

    weight: Float[Array, "L H T"]
    bias: Float[Array, " L"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadLoadings:
    """One edge: direct + sum of heads + several = edge.

    Attributes:
        direct: paths through no head (0 between positions).
        heads: paths through this head and no other.
        several: paths through two heads or more.
    """

    direct: Float[Array, ""]
    heads: Float[Array, "L H"]
    several: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """The edge."""
        return self.direct + self.heads.sum((-2, -1)) + self.several


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """What a node writes at its position: by each layer's MLP at the dictionary's site, and at the embedding."""

    pos: Any
    written: Float[Array, "L D"]
    embed: Float[Array, " D"]


def feature_source(cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, place: Any) -> Source:
    """The feature at (layer, position, slot), times its activation."""
    layer, pos, slot = place
    outs = jnp.arange(cfg.n_layers)
    if frozen.decoder is None:
        assert params.blocks.mlp is not None
        rows = jnp.broadcast_to(wide(params.blocks.mlp.w_out[layer, slot]), (cfg.n_layers, cfg.d_model))
    elif d.cfg.kind == "clt":
        rows = frozen.decoder[pair(d.cfg, layer, jnp.maximum(outs, layer)), pos, slot]
    else:
        rows = jnp.broadcast_to(frozen.decoder[layer, pos, slot], (cfg.n_layers, cfg.d_model))
    there = outs >= layer if d.cfg.kind == "clt" else outs == layer
    written = jnp.where(there[:, None], rows, 0.0) * frozen.value[layer, pos, slot]
    return Source(pos, written, jnp.zeros(cfg.d_model, written.dtype))


def error_source(cfg: ModelConfig, frozen: Frozen, layer: Any, pos: Any) -> Source:
    """The error node of a layer and position."""
    here = (jnp.arange(cfg.n_layers) == layer)[:, None]
    written = jnp.where(here, frozen.error[:, pos], 0.0)
    return Source(pos, written, jnp.zeros(cfg.d_model, written.dtype))


def token_source(cfg: ModelConfig, params: Params, frozen: Frozen, pos: Any) -> Source:
    """The token at a position."""
    embed = token_vectors(cfg, params, frozen.tokens[pos])
    return Source(pos, jnp.zeros((cfg.n_layers, cfg.d_model), embed.dtype), embed)


def head_loadings(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, target: tuple[Any, Any, Array], source: Source
) -> HeadLoadings:
    """The edge from a source to a target, by heads. Pure; `vmap` it over sources or targets.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: what `frozen` was made with.
        frozen: the frozen prompt.
        target: its layer, position and covector [D] on the stream that this layer's MLP reads (L: the final norm), as
            in `Targets`.
        source: `feature_source`, `error_source` or `token_source`.
    """
    top, pos, vec = target
    split, L = _Split(Sweep(cfg, params, d, frozen), pos, source), cfg.n_layers

    def body(i: Array, carry: Any) -> Any:
        g, found = carry
        m = top - 1 - i
        found = jax.tree.map(jnp.add, found, split.read(m, g))
        return split.below(m, g), found

    with jax.default_matmul_precision("highest"):
        g = split.start(vec)
        if not cfg.parallel:
            g = jax.lax.cond(top < L, lambda g: split.attention(jnp.minimum(top, L - 1), g), lambda g: g, g)
        zero = jax.tree.map(jnp.zeros_like, split.loads(g.none, g.each, g.several[0], source.embed))
        g, found = jax.lax.fori_loop(0, top, body, (g, zero))
        last = split.loads(g.none, g.each, g.several[source.pos], source.embed)
        return jax.tree.map(jnp.add, found, last)


class _Covectors(NamedTuple):
    """What the target reads of a stream: past no head yet, past each head alone, past one, past several.

    The first stays at the target's position; the second is kept at the source's only, where it is read.
    """

    none: Float[Array, " D"]
    each: Float[Array, "L H D"]
    one: Float[Array, "T D"]
    several: Float[Array, "T D"]


@dataclass(frozen=True)
class _Split:
    """A descending sweep that keeps paths apart by the heads on them; lives for one trace."""

    sweep: Sweep
    pos: Any
    source: Source

    def start(self, vec: Float[Array, " D"]) -> _Covectors:
        """The target's own covector."""
        cfg, T = self.sweep.cfg, self.sweep.frozen.tokens.shape[0]
        nothing = jnp.zeros((T, cfg.d_model), vec.dtype)
        return _Covectors(vec, jnp.zeros((cfg.n_layers, cfg.n_heads, cfg.d_model), vec.dtype), nothing, nothing)

    def at(self, pos: Any) -> Still:
        """The maps of one position."""
        return Still(self.sweep.cfg, self.sweep.params, self.sweep.d, hold_of(self.sweep.hold, pos))

    def by_head(self, m: Any, g: Float[Array, " D"]) -> Float[Array, "H D"]:
        """A covector on what layer m's attention writes at the target, back through each head to the source's place."""
        cfg, (block, target), (_, source) = self.sweep.cfg, self.at(self.pos).at(m), self.at(self.source.pos).at(m)
        g = norm_down(cfg, block.norm1_post, target.norm1_post, g[None])
        back = heads_down(block.attn, g)[0] * self.sweep.at(m)[1].pattern[:, self.pos, self.source.pos, None]
        return norm_down(cfg, block.norm1, source.norm1, back)

    def attention(self, m: Any, g: _Covectors) -> _Covectors:
        """Past the attention of layer m, or through it."""
        here = jnp.zeros_like(g.one).at[self.pos].set(g.none)
        first, more = self.sweep.attention(m, jnp.stack([here, g.one + g.several]))
        each = g.each.at[m].add(self.by_head(m, g.none))
        return _Covectors(g.none, each, g.one + first, g.several + more)

    def skips(self, m: Any, g: _Covectors) -> _Covectors:
        """Past the MLP of layer m, and through its affine skip."""
        sweep = self.sweep

        def one_place(x: Float[Array, "B D"], pos: Any) -> Float[Array, "B D"]:
            still, x = self.at(pos), x[:, None]
            return (x + still.skip(m, still.written(m, x)))[:, 0]

        both = jnp.stack([g.one, g.several])
        one, several = both + sweep.skip(m, sweep.written(m, both))
        each = one_place(g.each.reshape(-1, g.none.shape[0]), self.source.pos).reshape(g.each.shape)
        return _Covectors(one_place(g.none[None], self.pos)[0], each, one, several)

    def below(self, m: Any, g: _Covectors) -> _Covectors:
        """From the stream after layer m to the stream before it."""
        if not self.sweep.cfg.parallel:
            return self.attention(m, self.skips(m, g))
        skipped, passed = self.skips(m, g), self.attention(m, g)  # both read the stream before the layer
        return jax.tree.map(lambda a, b, x: a + (b - x), skipped, passed, g)

    def read(self, m: Any, g: _Covectors) -> HeadLoadings:
        """What the source writes by layer m's MLP, read by each."""
        still, D = self.at(self.source.pos), g.none.shape[0]
        flat = jnp.concatenate([g.each.reshape(-1, D), g.none[None], g.several[self.source.pos][None]])
        flat = still.written(m, flat[:, None])[:, 0]
        return self.loads(flat[-2], flat[:-2].reshape(g.each.shape), flat[-1], self.source.written[m])

    def loads(self, none: Array, each: Array, several: Array, row: Float[Array, " D"]) -> HeadLoadings:
        """Products with what the source writes."""
        return HeadLoadings((none @ row) * (self.pos == self.source.pos), each @ row, several @ row)


def head_values(cfg: ModelConfig, params: Params, hold: Hold, tokens: Array) -> Float[Array, "L T G K"]:
    """The values of every layer on a prompt, biases included: what `head_sources` reads."""
    with jax.default_matmul_precision("highest"):
        params = jax.tree.map(wide, params)
        return forward_one(cfg, params, tokens, sites=("v",), hold=hold)[0].acts["v"]


def head_sources(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    values: Float[Array, "L T G K"],
    top: Any,
    pos: Any,
    vec: Float[Array, " D"],
) -> HeadSources:
    """What attention adds to <vec, stream at `pos`>, by head and source position (equations 8, 19-22). Pure; `vmap` it.

    Through the residual stream and affine skips: what it adds through features is theirs.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: a set of dictionaries on it, for its affine skips.
        hold: the prompt's patterns and denominators (`Frozen.hold`).
        values: of the same prompt (`head_values`).
        top: `vec` reads the stream before this layer's MLP (L: the final norm).
        pos: where.
        vec: covector.
    """
    last = top - 1 if cfg.parallel else top
    group, still = cfg.n_heads // cfg.n_kv_heads, Still(cfg, params, d, hold_of(hold, pos))

    def step(g: Array, m: Array) -> tuple[Array, HeadSources]:
        lower = jnp.where(m < top, g + still.skip(m, still.written(m, g)), g)
        at, (block, h) = g if cfg.parallel else lower, still.at(m)
        down = norm_down(cfg, block.norm1_post, h.norm1_post, at)[0, 0]
        read = jnp.einsum("D,HKD->HK", down, block.attn.w_o).reshape(cfg.n_kv_heads, group, -1)
        assert hold.pattern is not None
        found = jnp.einsum("GRK,SGK->GRS", read, wide(values[m])).reshape(cfg.n_heads, -1) * hold.pattern[m, :, pos]
        bias = 0.0 if block.attn.b_o is None else block.attn.b_o @ down
        bias = bias + (norm_bias(block.norm1_post) * at[0, 0]).sum()
        return lower, HeadSources(jnp.where(m <= last, found, 0.0), jnp.where(m <= last, bias, 0.0))

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, vec[None, None], jnp.arange(cfg.n_layers), reverse=True)[1]
