"""One forward pass for every family: static switches of `ModelConfig`, layers scanned, activations returned by site.

Sites, in the order of a layer: resid_pre, attn_in, q, k (both before rotary), v, pattern, z, attn_out, resid_mid,
mlp_in, mlp_raw (before a post-norm), mlp_out, resid_post; then final_norm and logits. A site that is not asked for is
not stored. Norms, softmax and logits are computed in at least float32.

>>> import jax, jax.numpy as jnp
>>> from tcircuits.models.config import ModelConfig
>>> from tcircuits.models.params import init
>>> cfg = ModelConfig("llama", 2, 8, 2, 1, 4, 16, 10, 32, rotary_dim=4)
>>> out = forward(cfg, init(cfg, jax.random.key(0)), jnp.array([[1, 2, 3]]), sites=("resid_post",))
>>> out.logits.shape, out.acts["resid_post"].shape
((1, 3, 10), (2, 1, 3, 8))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tcircuits.models.blockwise import LONG, attend, raw_scores, seen, softcap
from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import SITES, Edit, apply_edits
from tcircuits.models.params import Attention, Block, Mlp, Norm, Params
from tcircuits.models.rotary import rotary_table, rotate
from tcircuits.numerics import act_slope, centre, norm_scale, wide
from tcircuits.types import Array, Bool, Float, InputError, Int

OUTSIDE = ("final_norm", "logits")  # sites that are not inside a layer
MASKED = -1e30  # finite, so that a row that sees nothing (padding) stays finite


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """Logits in float32 or wider, and the activations asked for, layers leading: [L, B, T, ...]."""

    logits: Float[Array, "*B T V"]
    acts: dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hold:
    """Values that a forward pass uses instead of computing them: attention patterns and norm denominators.

    Each is stacked by layer, or None where the pass computes its own. `Scores` stand for patterns that attribution
    computes where it uses them; a forward pass takes arrays alone.
    """

    pattern: Any = None
    norm1: Float[Array, "L T"] | None = None
    norm1_post: Float[Array, "L T"] | None = None
    norm2: Float[Array, "L T"] | None = None
    norm2_post: Float[Array, "L T"] | None = None
    final_norm: Float[Array, " T"] | None = None


@dataclass(frozen=True)
class MlpHook:
    """Replaces what the MLP of every layer writes, carrying `state` from layer to layer.

    `fn(layer, state, reads, written) -> (written, state, record)`, with `reads` the sites `resid_mid` (the MLP's input
    before its norm), `normalized` and `mlp_in`, and `written` the real MLP's output at `at`; `record` comes back
    stacked.
    """

    at: str
    state: Any
    fn: Callable[[Array, Any, dict[str, Array], Array], tuple[Array, Any, Any]]


@dataclass(frozen=True)
class SiteHook:
    """Replaces the value of one site in every layer, before the site's edits: `fn(layer, value [T, ...]) -> value`."""

    at: str
    fn: Callable[[Any, Array], Array]


class LayerKind(NamedTuple):
    """In what layers differ from each other: the window (0 is none), and whether queries and keys are rotated."""

    window: Int[Array, "*L"]
    rotates: Bool[Array, "*L"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """Where the queries of one pass stand and which keys they may see."""

    positions: Int[Array, " T"]
    key_positions: Int[Array, " S"]
    key_valid: Bool[Array, " S"]

    def allowed(self, cfg: ModelConfig, window: Array) -> Bool[Array, "T S"]:
        """Keys that each query attends to in a layer with this window (0: no window)."""
        return self.key_valid[None] & seen(cfg, self.positions, self.key_positions, window)

    def some(self, cfg: ModelConfig, window: Array, at: Int[Array, " b"]) -> Bool[Array, "b S"]:
        """`allowed` of some queries."""
        return replace(self, positions=self.positions[at]).allowed(cfg, window)


class Tap:
    """Applies hook and edits of a site and keeps its value when it is asked for. Lives for one trace of one layer."""

    def __init__(
        self,
        edits: tuple[Edit, ...],
        sites: tuple[str, ...],
        layer: Any,
        positions: Array,
        hook: SiteHook | None = None,
    ) -> None:
        self.edits, self.sites, self.layer, self.positions, self.hook = edits, sites, layer, positions, hook
        self.kept: dict[str, Array] = {}

    def __call__(self, site: str, x: Array) -> Array:
        """`x` after the hook and the edits of `site`."""
        if self.hook is not None and self.hook.at == site:
            x = self.hook.fn(self.layer, x)
        x = apply_edits(self.edits, site, self.layer, self.positions, x)
        if site in self.sites:
            self.kept[site] = x
        return x

    @property
    def wants_pattern(self) -> bool:
        """Whether the pattern itself is asked for, or changed."""
        return "pattern" in self.sites or any(e.site == "pattern" for e in self.edits)

    def pattern(self, x: Float[Array, "H T S"]) -> Array:
        """The pattern's positions are its second axis."""
        x = jnp.swapaxes(apply_edits(self.edits, "pattern", self.layer, self.positions, jnp.swapaxes(x, 0, 1)), 0, 1)
        if "pattern" in self.sites:
            self.kept["pattern"] = x
        return x


def normalise(cfg: ModelConfig, p: Norm | None, x: Float[Array, "T D"], scale: Array | None = None) -> Array:
    """A norm with gain and bias; with `scale` given, its denominator is that."""
    if p is None:
        return x
    return gain(p, normalised(cfg, x, scale)).astype(x.dtype)


def normalised(cfg: ModelConfig, x: Float[Array, "T D"], scale: Array | None = None) -> Array:
    """A norm without gain and bias, in at least float32."""
    scale = held_back(cfg, norm_scale(cfg.norm, cfg.norm_eps, x)) if scale is None else scale
    return centre(cfg.norm, wide(x)) / scale[..., None]


def held_back(cfg: ModelConfig, x: Array) -> Array:
    """`x`, a constant to derivatives under the rules of `RelevanceConfig`."""
    return jax.lax.stop_gradient(x) if cfg.relevance else x


def gain(p: Norm | None, x: Array) -> Array:
    """Gain and bias of a norm."""
    if p is None:
        return x
    return x * wide(p.w) if p.b is None else x * wide(p.w) + wide(p.b)


def _plus(x: Array, b: Array | None) -> Array:
    return x if b is None else x + b


def queries_keys_values(cfg: ModelConfig, p: Attention, x: Float[Array, "T D"], tap: Tap) -> tuple[Array, Array, Array]:
    """Projections [T, H, K], [T, G, K], [T, G, K] before rotary, query and key norms applied."""
    q = head_norm(cfg, _plus(jnp.einsum("TD,DHK->THK", x, p.w_q), p.b_q), p.q_norm)
    k = head_norm(cfg, _plus(jnp.einsum("TD,DGK->TGK", x, p.w_k), p.b_k), p.k_norm)
    v = _plus(jnp.einsum("TD,DGK->TGK", x, p.w_v), p.b_v)
    return tap("q", q), tap("k", k), tap("v", v)


def head_norm(cfg: ModelConfig, h: Float[Array, "T H K"], w: Array | None) -> Float[Array, "T H K"]:
    """The RMS norm of queries or keys, over each head by itself or over all of them together."""
    if w is None:
        return h
    over = h.reshape(h.shape[0], -1) if cfg.qk_norm_whole else h
    scale = held_back(cfg, norm_scale("rms", cfg.norm_eps, over))
    return ((wide(over) / scale[..., None]).reshape(h.shape) * wide(w)).astype(h.dtype)


def attention_pattern(cfg: ModelConfig, q: Float[Array, "T H K"], k: Float[Array, "S G K"], allowed: Array) -> Array:
    """Softmax of the scaled, soft-capped, masked scores: [H, T, S]."""
    return jax.nn.softmax(jnp.where(allowed, raw_scores(cfg, q, k), MASKED), -1)


def mix(cfg: ModelConfig, pattern: Float[Array, "H T S"], v: Float[Array, "S G K"]) -> Float[Array, "T H K"]:
    """What each head reads: the values, weighted by its pattern."""
    grouped = pattern.reshape(cfg.n_kv_heads, -1, *pattern.shape[1:]).astype(v.dtype)
    return jnp.einsum("GRTS,SGK->TGRK", grouped, v).reshape(pattern.shape[1], cfg.n_heads, cfg.d_head)


def mlp_hidden(cfg: ModelConfig, p: Mlp, x: Float[Array, "*X D"]) -> Float[Array, "*X M"]:
    """The neurons of one layer's MLP."""
    up = _plus(jnp.einsum("...D,DM->...M", x, p.w_in), p.b_in)
    if p.w_gate is None:
        return _activated(cfg, up)
    gate = _activated(cfg, _plus(jnp.einsum("...D,DM->...M", x, p.w_gate), p.b_gate))
    if cfg.relevance:  # half of the derivative to either branch
        return 0.5 * (gate * held_back(cfg, up) + held_back(cfg, gate) * up)
    return gate * up


def _activated(cfg: ModelConfig, h: Array) -> Array:
    return h * held_back(cfg, act_slope(cfg.activation, h))


def mlp_written(p: Mlp, hidden: Float[Array, "*X M"]) -> Float[Array, "*X D"]:
    """What neurons write."""
    return _plus(jnp.einsum("...M,MD->...D", hidden, p.w_out), p.b_out)


def mlp(cfg: ModelConfig, p: Mlp, x: Float[Array, "*X D"]) -> Float[Array, "*X D"]:
    """The MLP of one layer."""
    return mlp_written(p, mlp_hidden(cfg, p, x))


Cache = tuple[Float[Array, "S G K"], Float[Array, "S G K"]]


def _attend(
    cfg: ModelConfig, p: Attention, x: Array, view: View, kind: LayerKind, rope: Any, tap: Tap, held: Hold, cache: Any
) -> tuple[Array, Cache]:
    """Attention before its post-norm, and the rotated keys and the values it attended to.

    `cache` is (keys, values, slot): this call's keys and values are written from `slot` on.
    """
    q, k, v = queries_keys_values(cfg, p, x, tap)
    if rope is not None:
        cos, sin = layer_rope(cfg, kind, rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if cache is not None:
        keys, values, slot = cache
        k = jax.lax.dynamic_update_slice_in_dim(keys, k.astype(keys.dtype), slot, 0)
        v = jax.lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype), slot, 0)
    pattern = held.pattern
    if pattern is None and len(q) >= LONG and not tap.wants_pattern:
        z = attend(cfg, q, k, v, partial(view.some, cfg, kind.window))
        return _plus(jnp.einsum("THK,HKD->TD", tap("z", z), p.w_o), p.b_o), (k, v)
    if pattern is None:
        pattern = attention_pattern(cfg, q, k, view.allowed(cfg, kind.window))
        pattern = jax.lax.stop_gradient(pattern) if cfg.holds_patterns else pattern
    z = tap("z", mix(cfg, tap.pattern(pattern), v))
    return _plus(jnp.einsum("THK,HKD->TD", z, p.w_o), p.b_o), (k, v)


def _feed_forward(cfg: ModelConfig, p: Block, x: Array, layer: Any, tap: Tap, held: Hold, hook: MlpHook | None) -> Any:
    """What the MLP adds to the residual stream whose value is `x`; the hook's new state and record."""
    assert p.mlp is not None
    bare = normalised(cfg, x, held.norm2) if p.norm2 is not None else x
    mlp_in = tap("mlp_in", gain(p.norm2, bare).astype(x.dtype))
    reads = {"resid_mid": x, "normalized": bare.astype(x.dtype), "mlp_in": mlp_in}
    state, record = (hook.state if hook else ()), ()
    written = mlp(cfg, p.mlp, mlp_in)
    if hook and hook.at == "mlp_raw":
        written, state, record = hook.fn(layer, state, reads, written)
    written = tap("mlp_raw", written)  # after the hook, as at `mlp_out`: an edit counts where the hook holds the MLP
    written = normalise(cfg, p.norm2_post, written, held.norm2_post)
    if hook and hook.at == "mlp_out":
        written, state, record = hook.fn(layer, state, reads, written)
    return tap("mlp_out", written), state, record


def run_layer(
    cfg: ModelConfig,
    p: Block,
    x: Float[Array, "T D"],
    layer: Any,
    kind: LayerKind,
    rope: Any,
    view: View,
    tap: Tap,
    held: Hold = Hold(),
    hook: MlpHook | None = None,
    cache: Any = None,
) -> tuple[Array, Cache, Any, Any]:
    """One layer: the residual stream after it, its keys and values, the hook's state and record."""
    x = tap("resid_pre", x)
    attn_in = tap("attn_in", normalise(cfg, p.norm1, x, held.norm1))
    attn, kv = _attend(cfg, p.attn, attn_in, view, kind, rope, tap, held, cache)
    attn = tap("attn_out", normalise(cfg, p.norm1_post, attn, held.norm1_post))
    state, record = (hook.state if hook else ()), ()
    if cfg.attn_only:
        return tap("resid_post", x + attn), kv, state, record
    middle = x if cfg.parallel else tap("resid_mid", x + attn)
    written, state, record = _feed_forward(cfg, p, middle, layer, tap, held, hook)
    return tap("resid_post", (x + attn if cfg.parallel else middle) + written), kv, state, record


def embed(
    cfg: ModelConfig, params: Params, tokens: Int[Array, " T"], positions: Int[Array, " T"]
) -> Float[Array, "T D"]:
    """Token embeddings (scaled), plus learned position embeddings."""
    x = params.embed[tokens] * jnp.asarray(cfg.embed_scale, params.embed.dtype)
    return x if params.pos_embed is None else x + params.pos_embed[positions]


def unembed_matrix(params: Params) -> Float[Array, "D V"]:
    """The matrix that makes logits, tied or not."""
    return params.embed.T if params.unembed is None else params.unembed


def rope_tables(cfg: ModelConfig, positions: Array, dtype: Any) -> Any:
    """((cos, sin), (cos, sin)) for full and windowed layers, or None."""
    if cfg.position != "rotary":
        return None
    return rotary_table(cfg, positions, dtype), rotary_table(cfg, positions, dtype, local=True)


def layer_rope(cfg: ModelConfig, kind: LayerKind, rope: Any) -> tuple[Array, Array]:
    """Cosine and sine that one layer's queries and keys turn by, of `rope_tables`."""
    cos, sin = (jnp.where(kind.window > 0, local, full) for full, local in zip(*rope, strict=True))
    if cfg.unrotated:
        cos, sin = jnp.where(kind.rotates, cos, 1), jnp.where(kind.rotates, sin, 0)
    return cos, sin


def layer_kinds(cfg: ModelConfig) -> LayerKind:
    """What differs between layers, stacked."""
    rotates = [layer not in cfg.unrotated for layer in range(cfg.n_layers)]
    return LayerKind(jnp.asarray(cfg.windows or (0,) * cfg.n_layers, jnp.int32), jnp.asarray(rotates))


def logits_from(
    cfg: ModelConfig, params: Params, x: Float[Array, "T D"], tap: Tap, scale: Array | None = None
) -> Array:
    """Final norm, unembedding, soft cap; float32 or wider."""
    x = tap("final_norm", normalise(cfg, params.final_norm, x, scale))
    logits = jnp.einsum("TD,DV->TV", x, unembed_matrix(params), preferred_element_type=wide(x).dtype)
    return tap("logits", softcap(_plus(logits, params.b_unembed), cfg.final_softcap))


def forward_one(
    cfg: ModelConfig,
    params: Params,
    tokens: Int[Array, " T"],
    *,
    mask: Bool[Array, " T"] | None = None,
    sites: tuple[str, ...] = (),
    edits: tuple[Edit, ...] = (),
    hold: Hold = Hold(),
    hook: MlpHook | None = None,
    depth: int | None = None,
) -> tuple[Output, Any, Any]:
    """The forward pass of one sequence; also the keys and values [L, T, G, K] and the hook's stacked records.

    With `depth` (static) only so many layers are run: all that is stacked has so many, and logits are those of the
    stream there.
    """
    check_request(cfg, sites, edits)
    valid = jnp.ones(tokens.shape, bool) if mask is None else mask
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    view = View(positions, positions, valid)
    x = embed(cfg, params, tokens, positions)
    rope = rope_tables(cfg, positions, x.dtype)

    def step(carry: Any, layer: Any) -> Any:
        x, state = carry
        block, number, kind, held = layer
        tap = Tap(edits, sites, number, positions)
        live = None if hook is None else replace(hook, state=state)
        x, kv, state, record = run_layer(cfg, block, x, number, kind, rope, view, tap, held, live)
        return (x, state), (tap.kept, kv, record)

    layers = (params.blocks, jnp.arange(cfg.n_layers), layer_kinds(cfg), replace(hold, final_norm=None))
    start = x, hook.state if hook else ()
    if depth is None or depth == cfg.n_layers:
        (x, _), (acts, kv, records) = jax.lax.scan(step, start, layers)
    else:  # by number: a slice of the stacked weights would be a copy of them
        numbered = partial(_numbered, step, layers)
        (x, _), (acts, kv, records) = jax.lax.scan(numbered, start, jnp.arange(depth))
    tap = Tap(edits, sites, 0, positions)
    logits = logits_from(cfg, params, x, tap, hold.final_norm)
    return Output(logits, acts | tap.kept), kv, records


def _numbered(step: Any, layers: Any, carry: Any, number: Array) -> Any:
    """The step of one of the stacked layers."""
    return step(carry, jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), layers))


def forward(
    cfg: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    mask: Bool[Array, "B T"] | None = None,
    sites: tuple[str, ...] = (),
    edits: tuple[Edit, ...] = (),
) -> Output:
    """Logits [B, T, V] and the activations of `sites`.

    Args:
        cfg: sizes and switches (static under `jit`).
        params: weights; their dtype is the dtype of the residual stream.
        tokens: token ids. Ids outside the vocabulary are the caller's error: nothing raises under `jit`.
        mask: which tokens are real; padding may stand left or right, and its own outputs mean nothing.
        sites: what to return (static); see the module's docstring.
        edits: changes of sites, applied in order; the same for every sequence of the batch.

    Returns:
        `Output(logits, acts)`, every activation with layers leading ([L, B, T, ...]; final_norm and logits without L).

    Raises:
        InputError: an unknown site, no tokens, or more tokens than the model's context.
    """
    if tokens.ndim != 2:
        raise InputError(f"tokens have shape {tokens.shape}; give a batch [B, T] (one prompt is tokens[None])")
    check_length(cfg, tokens.shape[1])
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    axes = {name: 0 if name in OUTSIDE else 1 for name in sites}

    def one(tokens: Array, mask: Array) -> tuple[Array, dict[str, Array]]:
        out = forward_one(cfg, params, tokens, mask=mask, sites=sites, edits=edits)[0]
        return out.logits, out.acts

    with jax.default_matmul_precision("highest"):
        return Output(*jax.vmap(one, out_axes=(0, axes))(tokens, mask))


def check_length(cfg: ModelConfig, n: int) -> None:
    """Raise where a prompt of `n` tokens has nothing to trace or does not fit the context."""
    if n < 1:
        raise InputError("the prompt has no tokens; give at least one")
    if n > cfg.n_ctx:
        raise InputError(f"the prompt has {n} tokens; the model's context is {cfg.n_ctx}: shorten it")


def check_request(cfg: ModelConfig, sites: tuple[str, ...], edits: tuple[Edit, ...]) -> None:
    """Raise for sites that do not exist in this model."""
    absent = {"resid_mid"} if cfg.parallel else set()
    if cfg.attn_only:
        absent |= {"resid_mid", "mlp_in", "mlp_raw", "mlp_out"}
    known = [s for s in SITES if s not in absent]
    wrong = [s for s in (*sites, *(e.site for e in edits)) if s not in known]
    if wrong:
        raise InputError(f"sites {wrong} are unknown in this model; there are {', '.join(known)}")
