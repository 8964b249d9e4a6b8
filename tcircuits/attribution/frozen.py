"""Freeze a prompt: run the model once and keep what makes the replacement model linear on it.

`freeze` returns patterns, norm denominators, the active features of every layer and position (in C slots), their
decoder rows, the error of each MLP that they leave, and the constant stream that the biases make. Everything
downstream (`rows`, `effects`) reads this and no longer runs the model.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.linear import block_up, layer, norm_bias, norm_up
from tcircuits.attribution.slots import (
    cross_layer_rows,
    default_slots,
    features_and_sum,
    reconstruction,
    rows_of,
)
from tcircuits.models.blockwise import Scores, totals
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import (
    Hold,
    Output,
    check_length,
    forward_one,
    layer_kinds,
    layer_rope,
    normalised,
    rope_tables,
)
from tcircuits.models.params import Params
from tcircuits.models.rotary import rotate
from tcircuits.numerics import centre, norm_scale, wide
from tcircuits.parallel import Spread
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.types import Array, Bool, Float, InputError, Int

SITES = ("z", "mlp_in", "mlp_raw", "mlp_out", "resid_post", "final_norm")
"""What is recorded of every forward pass."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frozen:
    """A frozen prompt. Slots that hold no feature have value 0 and `valid` false.

    Attributes:
        hold: patterns [L, H, T, T] (where it is lean, the `Scores` that make them) and norm denominators [L, T] ([T]
            for the final norm).
        index, value: feature number and activation at each layer, position and slot.
        factor: d activation / d pre-activation with gates frozen: 1, or a neuron's slope or gate.
        values: what heads move: value vectors with their biases.
        decoder: decoder rows of the features in the slots; None for `neurons`, whose rows are the model's own, where
            it is lean, and where paths read them from the dictionary itself.
        error: what the MLP wrote beyond its features, biases and skip, at the dictionary's site.
        constant: the part of the stream that the MLP of each layer reads, and (last row) that the final norm reads,
            which comes from biases and position embeddings; `origin` the part from the MLPs at position 0 where those
            are not nodes (else 0).
        final: the final norm's output, as the forward pass made it: what logits and directions read.
        logits: at all positions, float32 or wider, after the soft cap.
        n_active: active features at each layer and position (0 where they are no nodes); where it exceeds the C slots
            the rest is in `error`.
    """

    tokens: Int[Array, " T"]
    hold: Hold
    index: Int[Array, "L T C"]
    value: Float[Array, "L T C"]
    factor: Float[Array, "L T C"]
    valid: Bool[Array, "L T C"]
    values: Float[Array, "L T G K"]
    decoder: Float[Array, "P T C D"] | None
    error: Float[Array, "L T D"]
    constant: Float[Array, "L+1 T D"]
    origin: Float[Array, "L+1 T D"]
    final: Float[Array, "T D"]
    logits: Float[Array, "T V"]
    n_active: Int[Array, "L T"]

    @property
    def overflow(self) -> Bool[Array, ""]:
        """Whether features were lost (into the error) because the slots did not suffice."""
        return (self.n_active > self.index.shape[-1]).any()


def coverage(cfg: TranscoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """For each model layer, its slot in the dictionary (0 where it has none) and whether it has one."""
    slots, covered = np.zeros(cfg.n_layers, np.int32), np.zeros(cfg.n_layers, bool)
    slots[list(cfg.layers)], covered[list(cfg.layers)] = np.arange(len(cfg.layers)), True
    return slots, covered


def read_by(
    cfg: ModelConfig,
    params: Params,
    dictionaries: TranscoderConfig,
    tokens: Int[Array, " T"],
    spread: Spread | None = None,
) -> Float[Array, "S T D"]:
    """What the dictionary of each layer that has one reads on a prompt, as `freeze` has it; positions may be spread."""
    tokens = tokens if spread is None else spread(tokens, 0)
    site = "mlp_in" if dictionaries.reads == "mlp_in" else "resid_pre" if cfg.parallel else "resid_mid"
    params = jax.tree.map(wide, params)
    x = forward_one(cfg, params, tokens, sites=(site,))[0].acts[site][jnp.asarray(dictionaries.layers)]
    return normalised(cfg, x) if dictionaries.reads == "normalized" and params.blocks.norm2 is not None else x


def rows_in_slots(d: Transcoders, f: Frozen, i: Any, m: Any, n: int | None = None) -> Float[Array, "n C D"]:
    """Rows that layer i's features write to layer m with, at the first n positions (None: all): kept, or looked up."""
    n, number = n or len(f.tokens), pair(d.cfg, i, m)
    if f.decoder is not None:
        start = [jnp.asarray(x, jnp.int32) for x in (number, 0, 0, 0)]
        return jax.lax.dynamic_slice(f.decoder, start, (1, n, *f.decoder.shape[2:]))[0]
    slots, covered = coverage(d.cfg)
    index = jax.lax.dynamic_index_in_dim(f.index, i, keepdims=False)[:n]
    return rows_of(d, jnp.asarray(slots)[m] if d.cfg.kind == "transcoder" else number, jnp.asarray(covered)[i], index)


def _held(cfg: ModelConfig, acts: dict[str, Array], pattern: Any, params: Params, resid: Array) -> Hold:
    """Patterns and denominators of the pass that `acts` recorded."""

    def scale(x: Array) -> Array:
        return norm_scale(cfg.norm, cfg.norm_eps, x)

    final = scale(resid) if params.final_norm is not None else jnp.ones(resid.shape[0], resid.dtype)
    post1 = post2 = None
    if cfg.post_norm:
        attn_raw = jnp.einsum("LTHK,LHKD->LTD", acts["z"], params.blocks.attn.w_o)
        b_o = params.blocks.attn.b_o
        post1 = scale(attn_raw if b_o is None else attn_raw + b_o[:, None])
        post2 = None if cfg.attn_only else scale(acts["mlp_raw"])
    norm2 = scale(acts["resid_pre" if cfg.parallel else "resid_mid"]) if not cfg.attn_only else None
    return Hold(pattern, scale(acts["resid_pre"]), post1, norm2, post2, final)


def mlp_constant(
    cfg: ModelConfig, d: Transcoders, block: Any, slot: Array, covered: Array, post_scale: Array
) -> Array | float:
    """What the dictionary (or the neurons) of a layer writes by its biases, at the dictionary's site."""
    b_out = 0.0 if block.mlp.b_out is None else block.mlp.b_out
    if d.cfg.kind == "neurons":
        return b_out
    assert d.b_dec is not None
    own = wide(d.b_dec[slot])
    if d.cfg.fill == "error":
        return jnp.where(covered, own, 0.0)
    if d.cfg.writes == "mlp_out" and cfg.post_norm:
        b_out = norm_up(cfg, block.norm2_post, post_scale, jnp.zeros((post_scale.shape[0], cfg.d_model)) + b_out)
        b_out = b_out + norm_bias(block.norm2_post)
    return jnp.where(covered, own, b_out)


def skip_up(d: Transcoders, slot: Array, covered: Array, x: Float[Array, "*T D"]) -> Array | float:
    """The affine path of a dictionary: x W_skip."""
    return 0.0 if d.w_skip is None else jnp.where(covered, x @ wide(d.w_skip[slot]), 0.0)


def read_up(cfg: ModelConfig, d: Transcoders, norm2: Any, scale: Array, x: Array, biases: bool) -> Array:
    """From the stream before the MLP's norm to what the dictionary reads."""
    if d.cfg.reads == "resid_mid":
        return x
    if d.cfg.reads == "normalized":
        return norm_up(cfg, None if norm2 is None else type(norm2)(jnp.ones_like(norm2.w), None), scale, x)
    return norm_up(cfg, norm2, scale, x) + (norm_bias(norm2) if biases else 0.0)


def push_stream(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    start: Array,
    written: Array | None,
    biases: bool,
    keep: Array,
) -> tuple[Float[Array, "L+1 T D"], Float[Array, "L T D"]]:
    """Push a constant stream up: what each MLP's norm reads of it, last the final norm; and what it is before layers.

    `written` [L, T, D] is added to what each MLP writes; biases of dictionaries count at positions where `keep` is 1.
    """
    slots, covered = coverage(d.cfg)

    def step(x: Array, inputs: Any) -> tuple[Array, Any]:
        index, slot, on, extra = inputs
        block, held = layer((params.blocks, _layered(hold)), index)
        attn = block_up(cfg, block, held.pattern, held.norm1, held.norm1_post, x, biases)
        middle = x if cfg.parallel else x + attn
        total = x + attn
        if cfg.attn_only:
            return total, (middle, x)
        read = read_up(cfg, d, block.norm2, held.norm2, middle, biases)
        out = skip_up(d, slot, on, read)
        if biases:
            out = out + mlp_constant(cfg, d, block, slot, on, held.norm2_post) * keep[:, None]
        out = out if extra is None else out + extra
        if d.cfg.writes == "mlp_raw":
            post = norm_up(cfg, block.norm2_post, held.norm2_post, jnp.zeros_like(x) + out)
            out = post + (norm_bias(block.norm2_post) if biases else 0.0)
        return total + out, (middle, x)

    inputs = (jnp.arange(cfg.n_layers), jnp.asarray(slots), jnp.asarray(covered), written)
    x, (reads, before) = jax.lax.scan(step, start, inputs)
    return jnp.concatenate([reads, x[None]]), before


def _layered(hold: Hold) -> Hold:
    """The part of a hold that is stacked by layer."""
    return Hold(hold.pattern, hold.norm1, hold.norm1_post, hold.norm2, hold.norm2_post, None)


def freeze(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    tokens: Int[Array, " T"],
    *,
    n_slots: int | None = None,
    origin: bool | Array = False,
    depth: int | None = None,
    lean: bool = False,
    spread: Spread | None = None,
) -> Frozen:
    """Run the model on one prompt and keep what attribution needs. Pure; `vmap` it over prompts of one length.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        dictionary: transcoders, or `neurons`.
        tokens: the prompt.
        n_slots: features kept at each layer and position (static); None keeps all that can be active. Features beyond
            it are part of the error, and `Frozen.overflow` is true.
        origin: the MLPs at position 0 are no nodes but one constant (as the public tracer treats the BOS token).
        depth: run only so many layers (static), for what reads no later ones: those have no features, errors or
            patterns, and constants, logits and the final norm mean nothing. None runs all.
        lean: keep neither patterns nor decoder rows (static), which sweeps then compute and look up where they use
            them: for long prompts. Rows of attribution and the sketch can; paths, heads and QK need the patterns.
        spread: over which devices positions go while the model runs and features are encoded (static); every device
            then gets what is kept of all of them.

    Raises:
        InputError: a prompt that is empty or too long, a model without MLPs, or neurons as fill with too few slots.
    """
    check_length(cfg, tokens.shape[0])
    if cfg.attn_only:
        raise InputError("this model has no MLPs, so it has no features to attribute to")
    C = default_slots(dictionary) if n_slots is None else n_slots
    if dictionary.cfg.fill == "neurons" and dictionary.cfg.kind == "transcoder":
        C = max(C, cfg.d_mlp)
    if dictionary.cfg.fill == "error":
        C = min(C, dictionary.cfg.d_feature)
    with jax.default_matmul_precision("highest"):
        how = C, cfg.n_layers if depth is None else depth, lean, spread
        return _freeze(cfg, params, dictionary, tokens, origin, *how)


def _first_layers(f: Any, depth: int, tree: Any) -> Any:
    """`f` of the first layers of a stacked tree, which are taken by number: slices of stacked weights are copies."""
    return jax.lax.map(lambda i: f(jax.tree.map(lambda x: x[i], tree)), jnp.arange(depth))


def _empty_above(n_layers: int, x: Array) -> Array:
    """Zeros for the layers that were not run."""
    return jnp.pad(x, [(0, n_layers - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _freeze(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    tokens: Array,
    origin: Any,
    n_slots: int,
    depth: int,
    lean: bool,
    spread: Spread | None,
) -> Frozen:
    params = jax.tree.map(wide, params)
    middle = "resid_pre" if cfg.parallel else "resid_mid"
    wanted = ("resid_pre", middle, "q" if lean else "pattern", *SITES)
    out, keys, values = _passed(cfg, params, tokens, tuple(dict.fromkeys(wanted)), depth, spread)
    resid, whole = out.acts["resid_post"][-1], partial(_empty_above, cfg.n_layers)
    acts = {site: x if site == "final_norm" else whole(x) for site, x in out.acts.items()}
    pattern = _scores(cfg, acts["q"], whole(keys)) if lean else wide(acts["pattern"])
    hold = _held(cfg, acts, pattern, params, resid)
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    unit = jnp.ones((cfg.n_layers, tokens.shape[0]), resid.dtype)
    post, norm2 = (unit if x is None else x for x in (hold.norm2_post, hold.norm2))
    reads = {
        "resid_mid": acts[middle],
        "normalized": jax.vmap(lambda x, s: _bare(cfg, params, s, x))(acts[middle], norm2),
        "mlp_in": acts["mlp_in"],
    }
    drop = lean and d.cfg.fill == "error"
    found = _encoded(cfg, d, n_slots, drop, depth, spread, (params.blocks, slots, covered, reads, post))
    (index, value, factor, valid, n_active, decoder), total = jax.tree.map(whole, found)
    if d.cfg.kind == "clt":
        decoder = None if lean else cross_layer_rows(d, index)
        total = reconstruction(d, decoder, index, value)
    keep = jnp.ones(tokens.shape[0], resid.dtype).at[0].set(1.0 - jnp.asarray(origin, resid.dtype))
    written, places = acts[d.cfg.writes], (slots, covered, post)
    error, outside = _errors(cfg, params, d, total, reads[d.cfg.reads], written, places, keep)
    error = jnp.where((jnp.arange(cfg.n_layers) < depth)[:, None, None], error, 0.0)
    value, factor, valid = value * keep[:, None], factor * keep[:, None], valid & (keep[:, None] > 0)
    n_active = jnp.where(keep > 0, n_active, 0)
    start = jnp.zeros_like(resid) if params.pos_embed is None else params.pos_embed[jnp.arange(tokens.shape[0])]
    constant, _ = push_stream(cfg, params, d, hold, start, None, True, keep)
    origins, _ = push_stream(cfg, params, d, hold, jnp.zeros_like(resid), outside, False, keep)
    if spread is not None:
        error, constant, origins = (spread.together(x) for x in (error, constant, origins))
    return Frozen(
        tokens,
        hold,
        index,
        value,
        factor,
        valid,
        whole(values),
        decoder,
        error,
        constant,
        origins,
        acts["final_norm"],
        out.logits,
        n_active,
    )


def _passed(
    cfg: ModelConfig, params: Params, tokens: Array, sites: tuple[str, ...], depth: int, spread: Spread | None
) -> tuple[Output, Array, Array]:
    """The forward pass, keys and values, with all positions on every device; heads and vocabulary stay over "model"."""
    apart = tokens if spread is None else spread(tokens, 0)
    out, (keys, values), _ = forward_one(cfg, params, apart, sites=sites, depth=depth)
    if spread is None:
        return out, keys, values
    axes = {"pattern": 1, "q": 2, "z": 2}
    acts = {site: spread.together(x, axes.get(site)) for site, x in out.acts.items()}
    return Output(spread.together(out.logits, 1), acts), spread.together(keys, 2), spread.together(values, 2)


def _encoded(
    cfg: ModelConfig, d: Transcoders, n_slots: int, drop: bool, depth: int, spread: Spread | None, by_layer: Any
) -> Any:
    """Slots and sums of the layers that are run, with all positions on every device; neurons stay over "model"."""
    blocks, slots, covered, reads, post = by_layer
    apart = reads if spread is None else {site: spread(x, 1) for site, x in reads.items()}
    one = partial(features_and_sum, cfg, d, n_slots, drop, spread)
    found = _first_layers(one, depth, (blocks, slots, covered, apart, post))
    if spread is None:
        return found
    neurons = 2 if d.cfg.kind == "neurons" else None
    return jax.tree.map(lambda x: spread.together(x, neurons if x.ndim == 3 else None), found)


def _scores(cfg: ModelConfig, q: Float[Array, "L T H K"], k: Float[Array, "L T G K"]) -> Scores:
    """What makes the patterns, of queries before and keys after rotation."""
    kinds, rope = layer_kinds(cfg), rope_tables(cfg, jnp.arange(q.shape[1]), q.dtype)

    def one(item: Any) -> tuple[Array, Array]:
        q, k, kind = item
        q = q if rope is None else rotate(q, *layer_rope(cfg, kind, rope))
        return q, totals(cfg, q, k, kind.window)

    q, total = jax.lax.map(one, (q, k, kinds))
    return Scores(q, k, total, kinds.window)


def _bare(cfg: ModelConfig, params: Params, scale: Array, x: Array) -> Array:
    """The MLP's norm without gain and bias."""
    return x if params.blocks.norm2 is None else centre(cfg.norm, x) / scale[:, None]


def _errors(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    total: Any,
    read: Array,
    written: Array,
    by_layer: Any,
    keep: Array,
) -> tuple[Float[Array, "L T D"], Float[Array, "L T D"]]:
    """Errors where positions are nodes, and what MLPs write (without the skip) at position 0 where that is none."""
    slots, covered, post = by_layer
    affine = jax.lax.map(lambda x: skip_up(d, x[0], x[1], x[2]) + jnp.zeros_like(x[2]), (slots, covered, read))
    outside = (written - affine) * (1.0 - keep)[:, None]
    if d.cfg.kind == "neurons":
        return jnp.zeros_like(written), outside
    biases = jax.lax.map(
        lambda x: mlp_constant(cfg, d, *x) + jnp.zeros((read.shape[1], cfg.d_model), read.dtype),
        (params.blocks, slots, covered, post),
    )
    error = written - total - affine - biases
    return error * keep[:, None], outside
