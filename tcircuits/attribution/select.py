"""Which features become nodes that are expanded, and how their rows are grouped for the sweep.

The default rule (`selection='influence'`): the N active features with the largest influence on the targets, as it
would be if all were expanded, estimated for all features at once by `sketch`. The cheaper and cruder rule
(`selection='effect'`):

    score(s) = sum over targets t of weight_t |a_s d value_t / d a_s|,

the derivative through the whole frozen replacement model, earlier features passing it on linearly (`rows.effects`).
Ties go to the lower (layer, position, feature). Neither rule knows anything of devices.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.targets import Targets, feature_vectors
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Selection:
    """Selected features by their flat place (layer * T + position) * C + slot, ascending; padding is L * T * C.

    `start[l]` is the first selected feature of layer l, `start[L]` the number selected.
    """

    flat: Int[Array, " N"]
    start: Int[Array, " L+1"]


def select_top(score: Float[Array, "L T C"], valid: Array, n: int) -> Selection:
    """The `n` valid slots with the largest score (fewer where fewer are valid)."""
    L, T, C = score.shape
    n = min(n, score.size)
    ranked, place = jax.lax.top_k(jnp.where(valid, score, -1.0).ravel(), n)
    flat = jnp.sort(jnp.where(ranked >= 0, place, score.size).astype(jnp.int32))
    return Selection(flat, jnp.searchsorted(flat, jnp.arange(L + 1, dtype=jnp.int32) * (T * C)).astype(jnp.int32))


def chosen_mask(selection: Selection, shape: tuple[int, ...]) -> Array:
    """Which slots are selected, [L, T, C]."""
    size = shape[0] * shape[1] * shape[2]
    return jnp.zeros(size, bool).at[selection.flat].set(True, mode="drop").reshape(shape)


def chunk_features(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, selection: Selection, size: int, n_chunks: int
) -> Targets:
    """Selected features as targets: chunks of `size` within one layer, layers descending, positions ascending in each.

    `n_chunks` must be at least sum over layers of ceil(count / size); `len(flat) // size + L` always is.
    """
    L, T, C = frozen.index.shape
    place = jnp.arange(selection.flat.shape[0], dtype=jnp.int32)
    there = selection.flat < L * T * C
    layer = jnp.where(there, selection.flat // (T * C), 0)
    per_layer = selection.start[1:] - selection.start[:-1]
    chunks = -(-per_layer // size)
    first = chunks[::-1].cumsum()[::-1] - chunks  # chunks of the layers above come first
    within = place - selection.start[layer]
    lane = jnp.where(there, (first[layer] + within // size) * size + within % size, n_chunks * size)
    source = jnp.full(n_chunks * size, -1, jnp.int32).at[lane].set(place, mode="drop")
    flat = jnp.where(source >= 0, selection.flat[source], 0)
    layer, pos, slot = flat // (T * C), flat // C % T, flat % C
    vec, const, value = feature_vectors(cfg, params, d, frozen, layer, pos, slot)
    valid = source >= 0
    vec, const, value = (jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0) for x in (vec, const, value))

    def fold(x: Array) -> Array:
        return x.reshape(n_chunks, size, *x.shape[1:])

    weight = jnp.zeros_like(value)
    chunk_layer = fold(layer).max(1)
    return Targets(chunk_layer, *(fold(x) for x in (pos, vec, const, value, weight, source, valid)))


def arranged(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    frozen: Frozen,
    flat: Int[Array, " N"],
    outputs: list[Targets],
    members: Int[Array, "Q B"],
    layer: Int[Array, " Q"],
) -> Targets:
    """Features and outputs as the targets of chunks that `grouping.arrange` made. Pure.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: what `frozen` was made with.
        frozen: the frozen prompt.
        flat: places of the features, as in `Selection`.
        outputs: other targets.
        members: which of them is in each lane, features and then outputs numbered one after the other; -1 is padding.
        layer: the highest layer of each chunk.
    """
    (L, T, C), N = frozen.index.shape, flat.shape[0]
    at = jnp.minimum(flat, L * T * C - 1)
    features = at // (T * C), at // C % T, at % C
    vec, const, value = feature_vectors(cfg, params, d, frozen, *features)
    chosen, there = jnp.maximum(members, 0), members >= 0

    def lanes(of_features: Array, name: str) -> Array:
        of_outputs = [getattr(t, name).reshape(-1, *of_features.shape[1:]) for t in outputs]
        found = jnp.concatenate([of_features, *of_outputs])[chosen]
        return jnp.where(there.reshape(*there.shape, *[1] * (found.ndim - 2)), found, jnp.zeros_like(found))

    of_outputs = [jnp.broadcast_to(t.layer[:, None], t.pos.shape).ravel() for t in outputs]
    every = jnp.concatenate([features[0], *of_outputs]).astype(jnp.int32)
    return Targets(
        layer,
        lanes(features[1], "pos"),
        lanes(vec, "vec"),
        lanes(const, "const"),
        lanes(value, "value"),
        lanes(jnp.zeros_like(value), "weight"),
        jnp.where(there & (chosen < N), chosen, -1).astype(jnp.int32),
        there,
        jnp.where(there, every[chosen], 0),
    )
