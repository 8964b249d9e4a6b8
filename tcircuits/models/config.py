"""What a model is: sizes and static switches, hashable, so that `jit` takes them as static.

A family (GPT-2, GPT-NeoX, Llama ...) is a choice of switches, not a class: `families.py` maps a published
`config.json` to this configuration, and `forward.py` reads nothing else.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import jax

from tcircuits.numerics import Activation

NormKind = Literal["layer", "rms", "none"]
PositionKind = Literal["rotary", "learned", "none"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings: `linear` divides all, `llama3` only the long wavelengths."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192


@jax.tree_util.register_static
@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder (or, with `causal=False`, encoder) transformer.

    Attributes:
        parallel: attention and MLP read the same residual stream (GPT-NeoX, GPT-J).
        norm: `layer` subtracts the mean and has a bias; `rms` does neither; `none` is the identity.
        pre_norm: a norm on what attention and MLP read; OLMo 2 has none.
        post_norm: a norm on what attention and MLP write, before it is added (Gemma 2, 3, OLMo 2).
        qk_norm: an RMS norm over the head width of queries and keys (Qwen3, Gemma 3).
        qk_norm_whole: that norm goes over all heads together, with a gain for each of their entries (OLMo 2).
        gated: the MLP is act(x W_gate) * (x W_in), else act(x W_in).
        rotary_dim: leading dimensions of each head that rotate; 0 unless `position == "rotary"`.
        rope_theta_local: base for layers with a window, where it differs (Gemma 3).
        unrotated: layers whose queries and keys keep no position (SmolLM3).
        windows: per layer, how many positions back a query sees (itself included); 0 is all. () is all everywhere.
        attn_scale: factor on scores before the soft cap; None is 1 / sqrt(d_head).
        embed_scale: factor on token embeddings (Gemma); 1 otherwise.
        attn_only: no MLP at all.

    Raises:
        ValueError: sizes or switches that do not fit together.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    gated: bool = True
    parallel: bool = False
    position: PositionKind = "rotary"
    rotary_dim: int = 0
    rope_theta: float = 10000.0
    rope_theta_local: float | None = None
    rope_scaling: RopeScaling | None = None
    unrotated: tuple[int, ...] = ()
    causal: bool = True
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    tied: bool = False
    final_norm: bool = True
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    attn_scale: float | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    attn_only: bool = False
    relevance: ClassVar[bool] = False
    holds_patterns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        wrong = []
        sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_vocab", "n_ctx")
        wrong += [f"{name}={getattr(self, name)} (needs at least 1)" for name in sizes if getattr(self, name) < 1]
        if self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads:
            wrong.append(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if (self.position == "rotary") != (self.rotary_dim > 0):
            wrong.append(f"rotary_dim={self.rotary_dim} with position={self.position!r}")
        if self.rotary_dim % 2 or self.rotary_dim > self.d_head:
            wrong.append(f"rotary_dim={self.rotary_dim} must be even and at most d_head={self.d_head}")
        if self.windows and len(self.windows) != self.n_layers:
            wrong.append(f"windows has {len(self.windows)} entries for n_layers={self.n_layers}")
        if any(not 0 <= layer < self.n_layers for layer in self.unrotated):
            wrong.append(f"unrotated={self.unrotated} names layers outside 0..{self.n_layers - 1}")
        if self.qk_norm_whole and not self.qk_norm:
            wrong.append("qk_norm_whole=True with qk_norm=False")
        if self.attn_only == (self.d_mlp > 0):
            wrong.append(f"d_mlp={self.d_mlp} with attn_only={self.attn_only}")
        if wrong:
            raise ValueError("model configuration does not fit together: " + "; ".join(wrong))

    @property
    def query_scale(self) -> float:
        """Factor on attention scores."""
        return 1.0 / math.sqrt(self.d_head) if self.attn_scale is None else self.attn_scale


@jax.tree_util.register_static
@dataclass(frozen=True)
class RelevanceConfig(ModelConfig):
    """The same model with the derivatives of relevance patching; what it computes is unchanged.

    Constants to derivatives are norms' denominators, the slope s(h) of an activation function h s(h), and attention
    patterns; a product of two branches (a gated MLP) passes half of the derivative to each. Every layer is then linear
    in what it is told, and shares of its output add up. Soft caps keep their own derivative.

    Source: RelP (arXiv 2508.21258), whose rules are those of layer-wise relevance propagation.
    """

    relevance: ClassVar[bool] = True
    holds_patterns: ClassVar[bool] = True


@jax.tree_util.register_static
@dataclass(frozen=True)
class EdgeRelevanceConfig(RelevanceConfig):
    """The same with the derivative of attention patterns, without which no edge into a query or key has a score."""

    holds_patterns: ClassVar[bool] = False


def with_relevance(cfg: ModelConfig, *, edges: bool = False) -> RelevanceConfig:
    """The configuration under which derivatives follow `RelevanceConfig`, or `EdgeRelevanceConfig`."""
    kind = EdgeRelevanceConfig if edges else RelevanceConfig
    return kind(**{f.name: getattr(cfg, f.name) for f in fields(ModelConfig)})
