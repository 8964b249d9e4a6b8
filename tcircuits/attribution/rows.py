"""Rows of the attribution matrix: one descending sweep per chunk of targets, by explicit transposed maps.

    A[t, s] = a_s sum over output layers m of <W_dec_s[m], J_m^T u_t>

with J the frozen linear map between what layer m writes and what the target reads. A chunk carries cotangents of B
targets from its layer to layer 0 (`descent` has the maps and what they cost); at each layer it reads the MLP's output
against all features, the error and (for the embedding) the tokens. No tape, no copies of the forward pass. `rows` gives
the selected features' columns and sums over the others; `cone` gives every slot as it comes.

Every row balances: sum of its edges + unexpanded + bias = value, with the bias computed forward from the parameters.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.descent import Descent
from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.select import Selection, chosen_mask
from tcircuits.attribution.targets import Targets
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.parallel import Spread
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Attribution rows of targets in chunks. Columns: the N selected features, then L * T errors, then T tokens.

    Attributes:
        weight: edges [Q, B, N + L T + T].
        unexpanded: signed sum over the features that are not selected, by their layer and position; `unexpanded_abs` is
            their exact absolute mass.
        bias: constants of the parameters, and of position 0 where that is no node; `origin` is that latter part.
        value: what edges + unexpanded + bias sum to.
        share: the influence that starts at the row (a logit's probability; 0 for features).
        node: the row's own column if it is a selected feature, else -1; `layer` is the chunk's (`Targets`).
        valid: padding is False, and all its numbers are 0.
    """

    weight: Float[Array, "Q B W"]
    unexpanded: Float[Array, "Q B L T"]
    unexpanded_abs: Float[Array, "Q B L T"]
    bias: Float[Array, "Q B"]
    origin: Float[Array, "Q B"]
    value: Float[Array, "Q B"]
    share: Float[Array, "Q B"]
    node: Int[Array, "Q B"]
    layer: Int[Array, " Q"]
    valid: Array


def effects(
    cfg: ModelConfig, params: Params, dictionary: Transcoders, frozen: Frozen, targets: Targets
) -> Float[Array, "L T C"]:
    """Weighted absolute total effect of every active feature on the targets, for the selection (see `select`)."""
    sweep = Descent(cfg, params, dictionary, frozen, frozen.tokens.shape[0])

    def chunk(total: Array, t: Targets) -> tuple[Array, None]:
        def body(i: Array, carry: Any) -> Any:
            g, acc, total = carry
            m = t.layer - 1 - i
            written = sweep.written(m, g)
            r, acc = sweep.raw_reads(m, written, acc)
            effect = jnp.einsum("B,TBC->TC", t.weight, jnp.abs(r * frozen.value[m][:, None]))
            return sweep.below(m, g, written, lambda x: x + sweep.features(m, r)), acc, total.at[m].add(effect)

        g = sweep.start(t.layer, t.pos, t.vec)
        return jax.lax.fori_loop(0, t.layer, body, (g, sweep.accumulator(t.pos.shape[0]), total))[2], None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(chunk, jnp.zeros_like(frozen.value), targets)[0]


def rows(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    frozen: Frozen,
    targets: Targets,
    selection: Selection | None = None,
    *,
    per_layer: int | None = None,
    n_pos: int | None = None,
    precision: str = "highest",
    spread: Spread | None = None,
) -> Rows:
    """Edges from the selected features, errors and tokens to every target. Pure: `jit`, `vmap` and shard it.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        dictionary: what `frozen` was made with.
        frozen: the frozen prompt.
        targets: in chunks, see `Targets`.
        selection: features that are columns; None is every slot.
        per_layer: static bound on the selected features of one layer (default: all that there can be).
        n_pos: static; all targets of this call stand before this position, so that later ones are left out of the
            sweep.
        precision: static; of matrix products, in JAX's words (see `attribute`).
        spread: static; over which axes of a mesh the targets of a chunk are spread, where that divides them.
    """
    L, T, C = frozen.index.shape
    if selection is None:
        selection = Selection(jnp.arange(L * T * C, dtype=jnp.int32), jnp.arange(L + 1, dtype=jnp.int32) * (T * C))
    n = min(T, n_pos or T)
    width = min(per_layer or T * C, selection.flat.shape[0])
    rest = (~chosen_mask(selection, (L, T, C))).astype(frozen.value.dtype)[:, :n]
    sweep = Descent(cfg, params, dictionary, frozen, n, spread)
    with jax.default_matmul_precision(precision):
        return jax.lax.map(lambda t: _chunk_rows(sweep, t, selection, rest, width), targets)


def _chunk_rows(sweep: Descent, t: Targets, selection: Selection, rest: Array, width: int) -> Rows:
    """Rows of one chunk."""
    frozen, n, (L, T, C) = sweep.frozen, sweep.n, sweep.frozen.index.shape
    B, N = t.pos.shape[0], selection.flat.shape[0]
    dtype = frozen.value.dtype
    padded = jnp.concatenate([selection.flat, jnp.full(width, L * T * C, jnp.int32)])
    at = t.layer if t.enter is None else t.enter

    def those_of(layer: Any) -> Float[Array, "B D"]:
        return t.vec if t.enter is None else jnp.where((t.enter == layer)[:, None], t.vec, 0.0)

    def body(i: Array, carry: Any) -> Any:
        g, acc, edges, errors, signed, absolute = carry
        m = t.layer - 1 - i
        written = sweep.written(m, g)
        r, acc = sweep.reads(m, written, acc)
        edges = _put(edges, r, selection.start, padded, m, width, T)
        errors = errors.at[m].set(sweep.errors(m, written))
        signed = signed.at[m].set(jnp.einsum("TBC,TC->TB", r, rest[m]))
        absolute = absolute.at[m].set(jnp.einsum("TBC,TC->TB", jnp.abs(r), rest[m]))
        enter = None if t.enter is None else lambda x: sweep.enter(x, t.pos, those_of(m))
        return sweep.below(m, g, written, enter), acc, edges, errors, signed, absolute

    by_layer = jnp.zeros((L, n, B), dtype)
    start = (
        sweep.start(t.layer, t.pos, those_of(t.layer)),
        sweep.accumulator(B),
        jnp.zeros((B, N + width), dtype),
        by_layer,
        by_layer,
        by_layer,
    )
    g, _, edges, errors, signed, absolute = jax.lax.fori_loop(0, t.layer, body, start)

    def all_positions(x: Array) -> Array:
        """Lanes first, and zeros at the positions that were left out."""
        return jnp.pad(jnp.moveaxis(x, -1, 0), [(0, 0)] * (x.ndim - 1) + [(0, T - n)])

    tokens = all_positions(sweep.tokens(g))
    weight = jnp.concatenate([edges[:, :N], all_positions(errors).reshape(B, L * T), tokens], -1)
    bias, origin = sweep.constants(at, t.pos, t.vec, t.const)
    real = t.valid.astype(dtype)
    return Rows(
        weight,
        all_positions(signed),
        all_positions(absolute),
        bias * real,
        origin * real,
        t.value,
        t.weight,
        t.node,
        t.layer,
        t.valid,
    )


def _put(edges: Array, r: Array, start: Array, padded: Array, m: Any, width: int, T: int) -> Array:
    """Write the selected features of layer m into their columns (a window of static width; the rest of it is kept)."""
    n, B, C = r.shape
    first, count = start[m], start[m + 1] - start[m]
    place = jax.lax.dynamic_slice_in_dim(padded, first, width) - m * (T * C)
    mine = jnp.arange(width) < count
    inside = mine & (place < n * C)
    place = jnp.clip(place, 0, n * C - 1)
    values = r.transpose(1, 0, 2).reshape(B, n * C)[:, place]
    old = jax.lax.dynamic_slice_in_dim(edges, first, width, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(
        edges, jnp.where(mine, jnp.where(inside, values, 0.0), old), first, axis=1
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cone:
    """Attributions of one chunk of B targets to every slot at the first n positions, where they fall from the sweep.

    Nothing is gathered and nothing summed: what a caller that wants all slots copies out of. Layers that are not below
    the chunk's are 0.
    """

    features: Float[Array, "L n B C"]
    errors: Float[Array, "L n B"]
    tokens: Float[Array, "n B"]
    bias: Float[Array, " B"]
    origin: Float[Array, " B"]


def cone(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    frozen: Frozen,
    targets: Targets,
    *,
    n_pos: int,
    precision: str = "highest",
    spread: Spread | None = None,
) -> Cone:
    """Attributions of one chunk of targets, all before position `n_pos` (static), to all slots. Pure."""
    sweep, t = Descent(cfg, params, dictionary, frozen, n_pos, spread), jax.tree.map(lambda x: x[0], targets)
    (L, _, C), B, dtype = frozen.index.shape, t.pos.shape[0], frozen.value.dtype

    def body(i: Array, carry: Any) -> Any:
        g, acc, features, errors = carry
        m = t.layer - 1 - i
        written = sweep.written(m, g)
        r, acc = sweep.reads(m, written, acc)
        return sweep.below(m, g, written), acc, features.at[m].set(r), errors.at[m].set(sweep.errors(m, written))

    with jax.default_matmul_precision(precision):
        g, acc = sweep.start(t.layer, t.pos, t.vec), sweep.accumulator(B)
        zeros = (jnp.zeros((L, n_pos, B, C), dtype), jnp.zeros((L, n_pos, B), dtype))
        g, _, features, errors = jax.lax.fori_loop(0, t.layer, body, (g, acc, *zeros))
        return Cone(features, errors, sweep.tokens(g), *sweep.constants(t.layer, t.pos, t.vec, t.const))
