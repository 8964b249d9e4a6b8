"""What attention adds to a target, head by head: by source position, and how much of one edge goes through each head.

`head_sources` splits what attention adds to <u, stream at a position> into heads and source positions: [L, H, T]
numbers, made of values and of the patterns' rows of that one position; no array [H, T, T, D] is made.

`head_loadings` splits an edge of the attribution graph. An edge sums over all paths between source and target, through
the residual stream, affine skips and frozen attention. Paths through no head, through each head alone, and through two
heads or more are three sums; each is computed from its own paths, so that they add up to the edge is a check.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.linear import heads_down, norm_bias, norm_down, token_vectors
from tcircuits.attribution.rows import Sweep
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
    sweep, T = Sweep(cfg, params, d, frozen), frozen.tokens.shape[0]
    L, H, D = cfg.n_layers, cfg.n_heads, cfg.d_model
    here = (jnp.arange(T) == pos)[:, None]

    def by_head(m: Any, g: Float[Array, " D"]) -> Float[Array, "H D"]:
        """A covector on what layer m's attention writes at the target, back through each head to the source's place."""
        block, at_target = _place(sweep, pos).at(m)
        at_source = _place(sweep, source.pos).at(m)[1]
        g = norm_down(cfg, block.norm1_post, at_target.norm1_post, g[None])
        back = heads_down(block.attn, g)[0] * sweep.at(m)[1].pattern[:, pos, source.pos, None]
        return norm_down(cfg, block.norm1, at_source.norm1, back)

    def into_attention(m: Any, g: Any) -> Any:
        """Passing the attention of layer m: none yet, one by head, one in all, more."""
        none, each, one, more = g
        down = sweep.attention(m, jnp.stack([none * here, one + more]))
        return none, each.at[m].add(by_head(m, none)), one + down[0], more + down[1]

    def skips(m: Any, g: Any) -> Any:
        none, each, one, more = g
        at_target = _skip_at(sweep, m, pos, none[None])[0]
        at_source = _skip_at(sweep, m, source.pos, each.reshape(L * H, D)).reshape(L, H, D)
        both = jnp.stack([one, more])
        both = both + sweep.skip(m, sweep.written(m, both))
        return none + at_target, each + at_source, both[0], both[1]

    def read(m: Any, g: Any) -> Any:
        """What the source writes at layer m, read by each."""
        none, each, _, more = g
        row = source.written[m]
        covectors = jnp.concatenate([each.reshape(L * H, D), none[None], more[source.pos][None]])
        found = _written_at(sweep, m, source.pos, covectors) @ row
        return found[: L * H].reshape(L, H), found[L * H] * (pos == source.pos), found[L * H + 1]

    def body(i: Array, carry: Any) -> Any:
        g, (heads, direct, several) = carry
        m = top - 1 - i
        more = read(m, g)
        below = skips(m, g)
        if cfg.parallel:  # attention writes past the MLP that reads beside it
            passed = into_attention(m, g)
            below = jax.tree.map(lambda b, p, x: b + p - x, below, passed, g)
        else:
            below = into_attention(m, below)
        return below, (heads + more[0], direct + more[1], several + more[2])

    with jax.default_matmul_precision("highest"):
        zero = jnp.zeros((), vec.dtype)
        g = (vec, jnp.zeros((L, H, D), vec.dtype), jnp.zeros((T, D), vec.dtype), jnp.zeros((T, D), vec.dtype))
        if not cfg.parallel:
            g = jax.lax.cond(top < L, lambda g: into_attention(jnp.minimum(top, L - 1), g), lambda g: g, g)
        g, (heads, direct, several) = jax.lax.fori_loop(0, top, body, (g, (jnp.zeros((L, H), vec.dtype), zero, zero)))
        none, each, _, more = g
        return HeadLoadings(
            direct + (none @ source.embed) * (pos == source.pos),
            heads + each @ source.embed,
            several + more[source.pos] @ source.embed,
        )


def _place(sweep: Sweep, pos: Any) -> Still:
    """The denominators of one position, [L, 1]."""
    return Still(sweep.cfg, sweep.params, sweep.d, hold_of(sweep.hold, pos))


def _written_at(sweep: Sweep, m: Any, pos: Any, g: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return _place(sweep, pos).written(m, g[:, None])[:, 0]


def _skip_at(sweep: Sweep, m: Any, pos: Any, g: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """The affine skip of layer m at one position, transposed; zeros without one."""
    still = _place(sweep, pos)
    return jnp.zeros_like(g) + (still.skip(m, still.written(m, g[:, None])) + jnp.zeros_like(g)[:, None])[:, 0]


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
