"""A forward pass in which every unit outside a circuit has a reference value instead of its own.

    unit = m own + (1 - m) reference            m: 1 in the circuit, 0 outside, or between: what gradients go through

Units compute on the stream that the circuit leaves them. What an MLP writes beyond its features (the dictionary's
error) is computed anew on that stream (`keep`), has its reference value (`ablate`), or that of the clean run (`clean`,
an upper bound: the errors are told what the whole model knew).
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tcircuits.circuits.units import Units
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import (
    MlpHook,
    Tap,
    View,
    embed,
    layer_kinds,
    logits_from,
    rope_tables,
    run_layer,
)
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.replacement import features, push, written
from tcircuits.types import Array, Bool, Float, Int

Errors = Literal["keep", "ablate", "clean"]
KEPT_BYTES = 2.5e8
"""Of one sequence: where a gradient would keep more of the layers, it computes each anew on its way back."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Values:
    """What units are worth in one run: heads' outputs before the output matrix, sublayers' writings, features, errors.

    Arrays of kinds that nobody asked for are None. `error` is what the MLPs write beyond their dictionaries.
    """

    z: Float[Array, "L T H K"] | None
    attn: Float[Array, "L T D"] | None
    mlp: Float[Array, "L T D"] | None
    feature: Float[Array, "S T F"] | None
    error: Float[Array, "S T D"] | None


class Masked(Tap):
    """A tap that mixes reference values into the sites of heads and sublayers, and keeps what they were."""

    def __init__(self, layer: Any, positions: Array, mixed: dict[str, Any]) -> None:
        super().__init__((), tuple(SITE[kind] for kind in mixed), layer, positions)
        self.mixed = {SITE[kind]: value for kind, value in mixed.items()}

    def __call__(self, site: str, x: Array) -> Array:
        """`x` with what lies outside the circuit replaced; what is kept is the unit's own value."""
        own = super().__call__(site, x)
        if site not in self.mixed:
            return own
        mask, reference = self.mixed[site]
        return own if mask is None else _between(mask, own, reference)


SITE = {"head": "z", "attn": "attn_out", "mlp": "mlp_out"}


def _between(mask: Array, own: Array, reference: Array) -> Array:
    mask = mask.astype(own.dtype)
    return mask * own + (1 - mask) * reference.astype(own.dtype)


def run(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders | None,
    units: Units,
    tokens: Int[Array, " T"],
    valid: Bool[Array, " T"],
    mask: dict[str, Array] | None = None,
    reference: Values | None = None,
    clean: Values | None = None,
    errors: Errors = "keep",
    at: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*T V"], Values]:
    """Logits of one sequence under a mask, and what its units were worth before the mask.

    Args:
        cfg: sizes and switches (static).
        params: weights.
        d: the dictionary of features, if they are units.
        units: the kinds that are recorded and masked (static).
        tokens: padded on the left where `valid` is False.
        valid: which are tokens.
        mask: by kind, in `units.shapes` (of its positions the last T count); None changes nothing.
        reference: what masked units are worth.
        clean: of the model's own run on this sequence; for `errors="clean"`.
        errors: see the module's docstring (static).
        at: the only position whose logits are wanted, [V]. Unembedding is 28 of the 134 million products that SmolLM2
            needs for a token, and logits of all positions are its largest array.
    """
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    view, rope = View(positions, positions, valid), rope_tables(cfg, positions, params.embed.dtype)
    x = embed(cfg, params, tokens, positions)
    if mask is not None and units.positions is not None:
        mask = {kind: m[..., units.positions - len(tokens) :] for kind, m in mask.items()}
    whole = [kind for kind in units.kinds if kind in SITE]
    hook = (
        None if "feature" not in units.kinds else _hook(cfg, params, d, units, mask, reference, clean, errors, tokens)
    )

    def step(carry: Any, item: Any) -> Any:
        x, state = carry
        block, number, kind, mixed = item
        tap = Masked(number, positions, mixed)
        live = None if hook is None else MlpHook(hook.at, state, hook.fn)
        x, _, state, record = run_layer(cfg, block, x, number, kind, rope, view, tap, hook=live)
        return (x, state), (tap.kept, record)

    if _kept_bytes(cfg, d, len(tokens)) > KEPT_BYTES:
        step = jax.checkpoint(step, prevent_cse=False)
    mixed = {kind: (None, None) if mask is None else _by_layer(kind, mask[kind], reference) for kind in whole}
    layers = (params.blocks, jnp.arange(cfg.n_layers), layer_kinds(cfg), mixed)
    (x, _), (kept, record) = jax.lax.scan(step, (x, hook.state if hook else ()), layers)
    logits = read_out(cfg, params, x, positions, at)
    f, error = (None, None) if hook is None else jax.tree.map(lambda a: a[jnp.asarray(units.layers)], record)
    return logits, Values(kept.get("z"), kept.get("attn_out"), kept.get("mlp_out"), f, error)


def read_out(
    cfg: ModelConfig, params: Params, x: Float[Array, "T D"], positions: Array, at: Int[Array, ""] | None
) -> Float[Array, "*T V"]:
    """Logits of a stream, at one position or at all."""
    tap = Tap((), (), 0, positions)
    return logits_from(cfg, params, x, tap) if at is None else logits_from(cfg, params, x[at][None], tap)[0]


def _kept_bytes(cfg: ModelConfig, d: Transcoders | None, length: int) -> float:
    """About what a gradient keeps of one sequence: patterns, streams, the MLP's width and features, twice each."""
    width = cfg.n_heads * length + 4 * cfg.d_model + cfg.d_mlp + (d.cfg.d_feature if d else 0)
    return 4.0 * cfg.n_layers * length * 2 * width


def _by_layer(kind: str, mask: Array, reference: Values | None) -> tuple[Array, Array]:
    """A kind's mask as its site needs it, layers leading, and its reference."""
    assert reference is not None
    value = {"head": reference.z, "attn": reference.attn, "mlp": reference.mlp}[kind]
    assert value is not None
    by_position = jnp.swapaxes(mask, 1, 2)  # [L, T or 1, heads or 1]
    return (by_position[..., None] if kind == "head" else by_position), value


def _hook(
    cfg: ModelConfig,
    params: Params,
    d: Any,
    units: Units,
    mask: Any,
    reference: Values | None,
    clean: Values | None,
    errors: Errors,
    tokens: Array,
) -> MlpHook:
    """What MLPs write under a mask of features; features and errors of every layer are recorded."""
    slots = jnp.asarray([units.layers.index(i) if i in units.layers else 0 for i in range(cfg.n_layers)], jnp.int32)
    covered = jnp.asarray([i in units.layers for i in range(cfg.n_layers)])
    across = d.cfg.kind == "clt"
    zero = jnp.zeros((len(units.layers), len(tokens), cfg.d_model), wide(params.embed).dtype) if across else ()

    def fn(layer: Array, state: Any, reads: dict[str, Array], real: Array) -> tuple[Array, Any, Any]:
        slot, x = slots[layer], reads[d.cfg.reads]
        sums: Any = state if across else ((), ())
        own, masked = sums
        f = features(cfg, params, d, layer, slot, x)
        on = covered[layer]
        mixed = f
        if mask is not None and reference is not None and reference.feature is not None:
            kept = jnp.swapaxes(mask["feature"][slot], 0, 1)
            mixed = _between(kept, f, reference.feature[slot])
        if across:
            own = push(d, slot, jnp.where(on, f, 0), own)
            masked = push(d, slot, jnp.where(on, mixed, 0), masked)
        error = wide(real) - written(params, d, layer, slot, f, x, own)
        put = wide(real)
        if mask is not None:
            told = error
            if errors != "keep":
                source = reference if errors == "ablate" else clean
                assert source is not None
                assert source.error is not None
                told = source.error[slot]
            put = written(params, d, layer, slot, mixed, x, masked) + told
        put = jnp.where(on, put.astype(real.dtype), real)
        return put, ((own, masked) if across else ()), (f, error)

    return MlpHook(d.cfg.writes, (zero, zero) if across else (), fn)
