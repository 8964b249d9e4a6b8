"""Interventions on features: set, add, scale or ablate them, and see logits and the features downstream.

The model runs as it is, with its real MLPs; an edited feature adds (new - old) times its decoder rows to what the MLPs
write. What else may react is the caller's choice: attention patterns, norm denominators and the MLPs of given layers
are either held at their values on the clean prompt or free. With all of them held, the run is the local replacement
model, and every feature and logit moves by exactly the edge of the attribution graph: that is how attribution is
tested.

Source: constrained patching and steering, Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs).

>>> ablation = feature_edit(3, 1005, 0.0, position=4)
>>> ablation.mode, ablation.layer.tolist(), ablation.start.tolist(), ablation.stop.tolist(), ablation.feature.tolist()
('set', [3], [4], [5], [1005])
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import coverage, freeze
from tcircuits.attribution.slots import neuron_features
from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import END, Edit, Mode
from tcircuits.models.forward import Hold, MlpHook, forward_one
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders, activate, pair
from tcircuits.types import Array, Float, InputError, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeatureEdit:
    """E edits of features, applied in order: layer, positions start <= p < stop, feature number, value.

    `set` gives the feature that value, `add` adds it, `scale` multiplies; ablation is `set` to 0, and patching is
    `set` to the value of another run. Several of one mode are one FeatureEdit (`jnp.stack` their arrays), so they can
    be vmapped.
    """

    mode: Mode = field(metadata={"static": True})
    layer: Int[Array, " E"]
    start: Int[Array, " E"]
    stop: Int[Array, " E"]
    feature: Int[Array, " E"]
    value: Float[Array, " E"]


def feature_edit(
    layer: int, feature: int, value: float, *, position: int | tuple[int, int | None] | None = None, mode: Mode = "set"
) -> FeatureEdit:
    """One edit; `position` is a position, a half-open range, or None for all.

    Raises:
        InputError: an unknown mode, or a range that is empty.
    """
    if mode not in ("set", "add", "scale"):
        raise InputError(f"mode {mode!r} is unknown; there are set, add, scale")
    span = (0, None) if position is None else position if isinstance(position, tuple) else (position, position + 1)
    start, stop = span[0], END if span[1] is None else span[1]
    if start < 0 or stop <= start:
        raise InputError(f"position={position!r} is no range of positions: give start >= 0 and stop > start")
    if max(layer, feature, start, stop) > END:
        raise InputError(f"layer={layer}, feature={feature}, position={position!r}: a number is above {END}")
    numbers = jnp.asarray([[layer], [start], [stop], [feature]], jnp.int32)
    return FeatureEdit(mode, numbers[0], numbers[1], numbers[2], numbers[3], jnp.asarray([value], float))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Clean:
    """The clean prompt: what is held, what dictionaries read and MLPs wrote, and neurons' gates [L, T, M]."""

    hold: Hold
    read: Float[Array, "L T D"]
    written: Float[Array, "L T D"]
    factor: Float[Array, "L T M"] | None
    logits: Float[Array, "T V"]
    activations: Float[Array, "L T F"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Run:
    """An edited run: logits [T, V]; activations [L, T, F] of the dictionary's layers after the edits.

    Where the MLP of a layer is held, an edited feature has what the edit made of its clean value, and any other what it
    would be on the edited stream. `linear` holds the same before edits and activation function: pre-activations with
    b_enc (for neurons: the clean gate or slope times the pre-activation), which is what the rows of an attribution
    graph sum to.
    """

    logits: Float[Array, "T V"]
    activations: Float[Array, "L T F"]
    linear: Float[Array, "L T F"]


def _features(
    cfg: ModelConfig, params: Params, d: Transcoders, layer: Array, slot: Array, reads: Any, gate: Any
) -> tuple[Array, Array]:
    """Activations and linear values [T, F] of a layer's features."""
    if d.cfg.kind == "neurons":
        mlp = jax.tree.map(lambda x: wide(x[layer]), params.blocks.mlp)
        value, _ = neuron_features(cfg, mlp, wide(reads["mlp_in"]))
        if gate is None:
            return value, value
        h = jnp.einsum("TD,DM->TM", wide(reads["mlp_in"]), mlp.w_in) + (0.0 if mlp.b_in is None else mlp.b_in)
        return value, h * gate
    assert d.w_enc is not None
    assert d.b_enc is not None
    pre = jnp.einsum("TD,FD->TF", wide(reads[d.cfg.reads]), wide(d.w_enc[slot])) + wide(d.b_enc[slot])
    threshold = None if d.threshold is None else wide(d.threshold[slot])
    return activate(d.cfg, pre, threshold), pre


def _decoder(params: Params, d: Transcoders, i: Array, m: Any, feature: Array) -> Float[Array, " D"]:
    """Decoder row of a feature of slot i to slot m."""
    if d.cfg.kind == "neurons":
        assert params.blocks.mlp is not None
        return wide(params.blocks.mlp.w_out[i, feature])
    assert d.w_dec is not None
    return wide(d.w_dec[pair(d.cfg, i, m), feature])


def clean_run(cfg: ModelConfig, params: Params, dictionary: Transcoders, tokens: Int[Array, " T"]) -> Clean:
    """Run the prompt and keep what an edited run may hold. Pure."""
    d = dictionary
    frozen = freeze(cfg, params, d, tokens, n_slots=1)
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))

    def record(layer: Array, state: Any, reads: dict[str, Array], written: Array) -> Any:
        value, _ = _features(cfg, params, d, layer, slots[layer], reads, None)
        factor = None
        if d.cfg.kind == "neurons":
            mlp = jax.tree.map(lambda x: wide(x[layer]), params.blocks.mlp)
            factor = neuron_features(cfg, mlp, wide(reads["mlp_in"]))[1]
        return written, state, (reads[d.cfg.reads], written, factor, jnp.where(covered[layer], value, 0.0))

    with jax.default_matmul_precision("highest"):
        hook = MlpHook(d.cfg.writes, (), record)
        out, _, (read, written, factor, value) = forward_one(cfg, params, tokens, hook=hook)
    return Clean(frozen.hold, read, written, factor, out.logits, value)


def edited_run(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    tokens: Int[Array, " T"],
    clean: Clean,
    features: tuple[FeatureEdit, ...] = (),
    sites: tuple[Edit, ...] = (),
    *,
    hold_mlps: Array | None = None,
    freeze_attention: bool = True,
    freeze_norms: bool = False,
) -> Run:
    """Run the prompt with edits. Pure; `vmap` it over the arrays of the edits.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        dictionary: transcoders or neurons.
        tokens: the prompt.
        clean: from `clean_run` on the same prompt.
        features: edits of features.
        sites: edits of sites (`tcircuits.edit`), for errors and embeddings.
        hold_mlps: [L] 1 where an MLP's output is held at its clean value (affine skips stay live, gates stay frozen);
            None: none.
        freeze_attention: hold attention patterns (static).
        freeze_norms: hold norm denominators (static).
    """
    d = dictionary
    held = jnp.zeros(cfg.n_layers) if hold_mlps is None else jnp.asarray(hold_mlps)
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    h = clean.hold
    hold = h if freeze_norms else Hold(pattern=h.pattern)
    hold = hold if freeze_attention else replace(hold, pattern=None)

    def fn(layer: Array, state: Array, reads: dict[str, Array], written: Array) -> Any:
        slot = slots[layer]
        gate = None if clean.factor is None else clean.factor[layer]
        value, linear = _features(cfg, params, d, layer, slot, reads, gate)
        base = clean.written[layer]
        if d.w_skip is not None:
            moved = wide(reads[d.cfg.reads]) - wide(clean.read[layer])
            base = base + jnp.where(covered[layer], jnp.einsum("TD,DE->TE", moved, wide(d.w_skip[slot])), 0.0)
        fixed = held[layer] > 0
        out = jnp.where(fixed, base, written)
        present = jnp.where(fixed, clean.activations[layer], value)
        now, edited, state = _apply(cfg, params, d, features, layer, slot, present, state)
        on = covered[layer]
        record = (jnp.where(on, jnp.where(edited, now, value), 0.0), jnp.where(on, linear, 0.0))
        return (out + state[layer]).astype(written.dtype), state, record

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros(clean.written.shape, wide(clean.written).dtype)
        out, _, (value, linear) = forward_one(
            cfg, params, tokens, edits=sites, hold=hold, hook=MlpHook(d.cfg.writes, start, fn)
        )
    return Run(out.logits, value, linear)


def _apply(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    edits: tuple[FeatureEdit, ...],
    layer: Array,
    slot: Array,
    present: Float[Array, "T F"],
    state: Float[Array, "L T D"],
) -> tuple[Array, Array, Array]:
    """A layer's features after the edits [T, F], which of them were edited, and the stream's changes from here on."""
    positions = jnp.arange(present.shape[0])

    def one(mode: Mode) -> Any:
        def step(carry: tuple[Array, ...], e: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            now, edited, state = carry
            at, start, stop, feature, value = e
            old = now[:, feature]
            new = {"set": jnp.broadcast_to(value, old.shape), "add": old + value, "scale": old * value}[mode]
            hit = (at == layer) & (start <= positions) & (positions < stop)
            new = jnp.where(hit, new, old).astype(old.dtype)
            now, edited = now.at[:, feature].set(new), edited.at[:, feature].max(hit)
            delta = (new - old)[:, None]
            if d.cfg.kind != "clt":
                return (now, edited, state.at[layer].add(delta * _decoder(params, d, slot, slot, feature))), None

            def push(m: Array, state: Array) -> Array:
                return state.at[m].add(delta * _decoder(params, d, layer, m, feature))

            return (now, edited, jax.lax.fori_loop(layer, cfg.n_layers, push, state)), None

        return step

    carry = (present, jnp.zeros(present.shape, bool), state)
    for e in edits:
        carry, _ = jax.lax.scan(one(e.mode), carry, (e.layer, e.start, e.stop, e.feature, e.value))
    return carry
