"""A model's parameters as one pytree, layers stacked on a leading axis, and the one declarative spec of it.

`spec(cfg)` gives, for every array, its shape, logical axes and initialiser; abstract shapes (`abstract`), shardings
(`tcircuits.parallel.shardings`) and random parameters (`init`) all come from it. Absent arrays are None, so that two
configurations with different switches have different trees and a wrong tree is caught by its structure.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tcircuits.models.config import ModelConfig
from tcircuits.types import Array, Float

Init = Literal["normal", "ones", "zeros"]


@dataclass(frozen=True)
class ArraySpec:
    """Shape, logical axes (names that `parallel.RULES` maps to mesh axes) and initialiser of one array."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init = "normal"
    fan_in: int = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """Gain, and bias for layer norms."""

    w: Float[Array, "*L D"]
    b: Float[Array, "*L D"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attention:
    """Projections; queries of head h read key/value head h // (H / G)."""

    w_q: Float[Array, "*L D H K"]
    w_k: Float[Array, "*L D G K"]
    w_v: Float[Array, "*L D G K"]
    w_o: Float[Array, "*L H K D"]
    b_q: Float[Array, "*L H K"] | None
    b_k: Float[Array, "*L G K"] | None
    b_v: Float[Array, "*L G K"] | None
    b_o: Float[Array, "*L D"] | None
    q_norm: Float[Array, "*L K"] | Float[Array, "*L H K"] | None
    k_norm: Float[Array, "*L K"] | Float[Array, "*L G K"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mlp:
    """y = act(x W_in + b_in) W_out + b_out, or (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out."""

    w_in: Float[Array, "*L D M"]
    w_gate: Float[Array, "*L D M"] | None
    w_out: Float[Array, "*L M D"]
    b_in: Float[Array, "*L M"] | None
    b_gate: Float[Array, "*L M"] | None
    b_out: Float[Array, "*L D"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """One layer; in `Params` every array has the layers as its leading axis."""

    norm1: Norm | None
    attn: Attention
    norm1_post: Norm | None
    norm2: Norm | None
    mlp: Mlp | None
    norm2_post: Norm | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Params:
    """All weights of a model. `unembed` is None where it is tied to `embed`."""

    embed: Float[Array, "V D"]
    pos_embed: Float[Array, "T D"] | None
    blocks: Block
    final_norm: Norm | None
    unembed: Float[Array, "D V"] | None
    b_unembed: Float[Array, " V"] | None


def _norm_spec(cfg: ModelConfig, lead: tuple[int, ...], wanted: bool = True) -> Any:
    if not wanted or cfg.norm == "none":
        return None
    shape, axes = (*lead, cfg.d_model), (*("layers",) * len(lead), "embed")
    bias = ArraySpec(shape, axes, "zeros") if cfg.norm == "layer" else None
    return Norm(_leaf(ArraySpec(shape, axes, "ones")), _leaf(bias))


def _attention_spec(cfg: ModelConfig) -> Any:
    L, D, H, G, K = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head
    kv = ("layers", "embed", "kv_heads", "head")

    def bias(wanted: bool, *shape: int, axes: tuple[str, ...]) -> Any:
        return ArraySpec((L, *shape), ("layers", *axes), "zeros") if wanted else None

    def head_gain(n: int, heads: str) -> Any:
        if not cfg.qk_norm_whole:
            return ArraySpec((L, K), ("layers", "head"), "ones") if cfg.qk_norm else None
        return ArraySpec((L, n, K), ("layers", heads, "head"), "ones")

    return Attention(
        w_q=_leaf(ArraySpec((L, D, H, K), ("layers", "embed", "heads", "head"), fan_in=D)),
        w_k=_leaf(ArraySpec((L, D, G, K), kv, fan_in=D)),
        w_v=_leaf(ArraySpec((L, D, G, K), kv, fan_in=D)),
        w_o=_leaf(ArraySpec((L, H, K, D), ("layers", "heads", "head", "embed"), fan_in=H * K)),
        b_q=bias(cfg.qkv_bias, H, K, axes=("heads", "head")),
        b_k=bias(cfg.qkv_bias, G, K, axes=("kv_heads", "head")),
        b_v=bias(cfg.qkv_bias, G, K, axes=("kv_heads", "head")),
        b_o=bias(cfg.o_bias, D, axes=("embed",)),
        q_norm=head_gain(H, "heads"),
        k_norm=head_gain(G, "kv_heads"),
    )


def _mlp_spec(cfg: ModelConfig) -> Any:
    if cfg.attn_only:
        return None
    L, D, M = cfg.n_layers, cfg.d_model, cfg.d_mlp
    inward = ArraySpec((L, D, M), ("layers", "embed", "mlp"), fan_in=D)
    hidden = ArraySpec((L, M), ("layers", "mlp"), "zeros") if cfg.mlp_bias else None
    return Mlp(
        w_in=_leaf(inward),
        w_gate=_leaf(inward if cfg.gated else None),
        w_out=_leaf(ArraySpec((L, M, D), ("layers", "mlp", "embed"), fan_in=M)),
        b_in=_leaf(hidden),
        b_gate=_leaf(hidden if cfg.gated else None),
        b_out=_leaf(ArraySpec((L, D), ("layers", "embed"), "zeros") if cfg.mlp_bias else None),
    )


def _leaf(spec: ArraySpec | None) -> Any:
    """A spec standing where the tree will hold an array."""
    return spec


def spec(cfg: ModelConfig) -> Params:
    """The parameter tree with an `ArraySpec` in the place of each array."""
    L, D, V = cfg.n_layers, cfg.d_model, cfg.d_vocab
    block = Block(
        norm1=_norm_spec(cfg, (L,), cfg.pre_norm),
        attn=_attention_spec(cfg),
        norm1_post=_norm_spec(cfg, (L,), cfg.post_norm),
        norm2=_norm_spec(cfg, (L,), cfg.pre_norm and not cfg.attn_only),
        mlp=_mlp_spec(cfg),
        norm2_post=_norm_spec(cfg, (L,), cfg.post_norm and not cfg.attn_only),
    )
    return Params(
        embed=_leaf(ArraySpec((V, D), ("vocab", "embed"), fan_in=D)),
        pos_embed=_leaf(ArraySpec((cfg.n_ctx, D), (None, "embed"), fan_in=D) if cfg.position == "learned" else None),
        blocks=block,
        final_norm=_norm_spec(cfg, (), cfg.final_norm),
        unembed=_leaf(None if cfg.tied else ArraySpec((D, V), ("embed", "vocab"), fan_in=D)),
        b_unembed=_leaf(ArraySpec((V,), ("vocab",), "zeros") if cfg.unembed_bias else None),
    )


def abstract(cfg: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Shapes and dtypes of the parameters; allocates nothing."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), spec(cfg))


def init(cfg: ModelConfig, key: Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal with variance 1 / fan-in, gains one, biases zero."""
    leaves, tree = jax.tree.flatten(spec(cfg))
    keys = jax.random.split(key, len(leaves))

    def draw(s: ArraySpec, k: Array) -> Array:
        if s.init != "normal":
            return jnp.full(s.shape, 1.0 if s.init == "ones" else 0.0, dtype)
        return jax.random.normal(k, s.shape, dtype) / jnp.sqrt(jnp.asarray(s.fan_in, dtype))

    return jax.tree.unflatten(tree, [draw(s, k) for s, k in zip(leaves, keys, strict=True)])


def count(cfg: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(spec(cfg)))
