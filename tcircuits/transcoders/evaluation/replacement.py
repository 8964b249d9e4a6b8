"""Replacements as data: which layers of a model are replaced, and by what.

A condition is one number a layer: 0 leaves the layer as it is, 1 puts what the dictionary writes in the place of the
site that it stands for (the MLP's output; for SAEs the site that they reconstruct), 2 zero, 3 the site's mean over a
corpus. What comes after runs on: a dictionary reads the replaced stream, and the features of a cross-layer set go from
layer to layer. Conditions are arrays, so one compiled program serves all of them; each starts at its first replaced
layer from the original's residual stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import MlpHook, SiteHook, mlp_hidden, mlp_written
from tcircuits.models.params import Params
from tcircuits.models.resume import forward_from, layer_of
from tcircuits.numerics import wide
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, encode, pair
from tcircuits.types import Array, Float, InputError, Int

BY = ("nothing", "dictionary", "zero", "mean")
NOTHING, DICTIONARY, ZERO, MEAN = range(4)


def coverage(cfg: TranscoderConfig) -> np.ndarray:
    """The slot of each layer of the model; 0 where it has none."""
    slots = np.zeros(cfg.n_layers, np.int32)
    slots[list(cfg.layers)] = np.arange(len(cfg.layers))
    return slots


def standard_sets(cfg: TranscoderConfig) -> tuple[tuple[int, ...], ...]:
    """Each layer that has a dictionary by itself, and all of them together."""
    each = tuple((layer,) for layer in cfg.layers)
    return each if len(each) == 1 else (*each, cfg.layers)


def check_sets(cfg: TranscoderConfig, sets: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The sets, ascending and without repeats.

    Raises:
        InputError: no set, an empty one, or layers that have no dictionary.
    """
    found = tuple(dict.fromkeys(tuple(sorted({int(i) for i in layers})) for layers in sets))
    absent = sorted({i for layers in found for i in layers} - set(cfg.layers))
    if absent:
        raise InputError(f"layers {absent} have no dictionary to replace them; there are {list(cfg.layers)}")
    if not found or () in found:
        raise InputError(f"sets of layers {[list(s) for s in sets]}: give at least one set, and no empty one")
    return found


def condition_matrix(cfg: TranscoderConfig, sets: Sequence[Sequence[int]], by: Sequence[int]) -> Int[np.ndarray, "E L"]:
    """Every set replaced by each of `by`: the sets' rows for the first, then for the second, ..."""
    out = np.zeros((len(by), len(sets), cfg.n_layers), np.int32)
    for i, what in enumerate(by):
        for j, layers in enumerate(sets):
            out[i, j, list(layers)] = what
    return out.reshape(-1, cfg.n_layers)


def features(
    cfg: ModelConfig, params: Params, d: Transcoders, layer: Any, slot: Any, x: Float[Array, "*X D"]
) -> Float[Array, "*X F"]:
    """Feature values of a layer for what its dictionary reads (neurons: for `mlp_in`)."""
    if d.cfg.kind == "neurons":
        return mlp_hidden(cfg, layer_of(params.blocks.mlp, layer), x)
    return encode(d, slot, wide(x))


def push(
    d: Transcoders, source: Any, f: Float[Array, "*X F"], carried: Float[Array, "L *X D"], wanted: Any = None
) -> Float[Array, "L *X D"]:
    """Add what features of slot `source` of a cross-layer set write to all slots; with `wanted` [L] only to those.

    Over all slots, with a branch in place of a start that depends on `source`, and decoders looked up again on the way
    back: so that gradients exist and hold no copy of them.
    """
    assert d.w_dec is not None

    def more(carried: Array, m: Array) -> Array:
        assert d.w_dec is not None
        row = jnp.einsum("...F,FD->...D", f, d.w_dec[pair(d.cfg, source, m)])
        return carried.at[m].add(row.astype(carried.dtype))

    def add(carried: Array, m: Array) -> tuple[Array, None]:
        on = m >= source if wanted is None else (m >= source) & wanted[m]
        return jax.lax.cond(on, more, lambda carried, _: carried, carried, m), None

    slots = jnp.arange(len(d.cfg.layers))
    return jax.lax.scan(jax.checkpoint(add, prevent_cse=False), carried, slots)[0]


def written(
    params: Params,
    d: Transcoders,
    layer: Any,
    slot: Any,
    f: Float[Array, "*X F"],
    x: Float[Array, "*X D"],
    carried: Any,
) -> Float[Array, "*X D"]:
    """What the dictionary of a slot writes; `carried` [L, *X, D] has the sums of a cross-layer set up to this slot."""
    if d.cfg.kind == "neurons":
        return mlp_written(layer_of(params.blocks.mlp, layer), f)
    assert d.w_dec is not None
    assert d.b_dec is not None
    y = carried[slot] if d.cfg.kind == "clt" else jnp.einsum("...F,FD->...D", f, d.w_dec[slot])
    y = y + d.b_dec[slot]
    return y if d.w_skip is None else y + jnp.einsum("...D,DE->...E", wide(x), d.w_skip[slot])


@dataclass(frozen=True)
class Original:
    """One sequence through the original model: the stream before each layer, and what dictionaries read there."""

    stream: Float[Array, "L T D"]
    read: Float[Array, "L T D"]


def replaced_logits(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    original: Original,
    by: Int[Array, " L"],
    mean: Float[Array, "L D"],
    start: Any,
) -> Float[Array, "T V"]:
    """Logits of one sequence under a condition.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: a set of dictionaries.
        original: from the original model on the same sequence.
        by: what replaces each layer; 0 where there is no dictionary.
        mean: the replaced site's mean, by layer of the model.
        start: the first position that is replaced (1 leaves position 0 as the model's own).
    """
    slots, first = jnp.asarray(coverage(d.cfg)), jnp.argmax(by != NOTHING)
    n_positions = original.stream.shape[1]
    free = (jnp.arange(n_positions) < start)[:, None]
    wanted = by == DICTIONARY

    def guess(layer: Array, x: Array, carried: Any, dtype: Any) -> tuple[Array, Any]:
        """What the dictionary writes, and what its features carry on (a cross-layer set must run where any is used)."""
        slot = slots[layer]
        needed = wanted[layer]
        if d.cfg.kind == "clt":
            needed = jnp.any(wanted & (jnp.arange(cfg.n_layers) >= layer))

        def run(carried: Any) -> tuple[Array, Any]:
            f = features(cfg, params, d, layer, slot, x)
            carried = push(d, slot, f, carried, wanted) if d.cfg.kind == "clt" else carried
            return written(params, d, layer, slot, f, x, carried).astype(dtype), carried

        return jax.lax.cond(needed, run, lambda carried: (jnp.zeros(x.shape, dtype), carried), carried)

    def choose(layer: Array, real: Array, substitute: Array) -> Array:
        rest = (jnp.zeros_like(real), jnp.broadcast_to(mean[layer], real.shape).astype(real.dtype))
        return jnp.where(free, real, jax.lax.select_n(by[layer], real, substitute, *rest))

    if d.cfg.kind == "sae":
        swap = SiteHook(d.cfg.reads, lambda layer, x: choose(layer, x, guess(layer, x, (), x.dtype)[0]))
        return forward_from(cfg, params, layer_of(original.stream, first), first, swap=swap)

    def fn(layer: Array, carried: Any, reads: dict[str, Array], real: Array) -> tuple[Array, Any, tuple[()]]:
        substitute, carried = guess(layer, reads[d.cfg.reads], carried, real.dtype)
        return choose(layer, real, substitute), carried, ()

    carried = _carried(cfg, params, d, original.read, wanted, first) if d.cfg.kind == "clt" else ()
    hook = MlpHook(d.cfg.writes, carried, fn)
    return forward_from(cfg, params, layer_of(original.stream, first), first, hook=hook)


def _carried(
    cfg: ModelConfig, params: Params, d: Transcoders, read: Float[Array, "L T D"], wanted: Array, first: Array
) -> Float[Array, "L T D"]:
    """What the features of a cross-layer set before layer `first` write to later layers, on the original's stream."""

    def add(i: Array, carried: Array) -> Array:
        return push(d, i, features(cfg, params, d, i, i, read[i]), carried, wanted)

    return jax.lax.fori_loop(0, jnp.where(wanted.any(), first, 0), add, jnp.zeros_like(wide(read)))
