"""What weights do on text: mean input x gradient, expected and target-weighted expected attributions, denominators.

With a_s, a_t the activations of a source and a target feature at one position x, and V_ts(x) the direct weight there:

    mean input x gradient   mean over the x where a_t is high enough   of  a_s V_ts
    ERA                     mean over all x                            of  [a_t > 0] a_s V_ts
    TWERA                   sum of a_t a_s V_ts / sum of a_t

V_ts(x) has the norms' denominators at x; with `hold` given it is the input-invariant weight instead, so TWERA is then
E[a_t a_s] / E[a_t] times `virtual_weights`. A target (a neuron) below zero counts as off, and position 0 (BOS) counts
nowhere. A corpus is read in batches (`direct_sums` gives the sums of a prompt); memory is one batch and [L, N, F].

Sources: Dunefsky et al. 2024 (arXiv 2406.11944), section 3.2 and their comparison of pullback and input x gradient; ERA
and TWERA: Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs), global weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.attribute import count_active
from tcircuits.attribution.checks import check_feature, check_match
from tcircuits.attribution.direct_sums import direct_sums, target_slots
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.slots import default_slots
from tcircuits.models.forward import Hold
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders, chosen
from tcircuits.types import Array, Float, InputError, Int


@dataclass(frozen=True)
class CorpusEffects:
    """Direct attributions from all features of earlier layers to some features of one layer, over a corpus.

    Attributes:
        mean: mean input x gradient [L, N, F] over the positions where a target is above its threshold.
        era, twera: see the module.
        activation: mean activation of the targets at counted positions; `active` at how many they are on.
        threshold: of `mean`; `above` how many positions are above it.
        n_positions: counted.
    """

    mean: Float[np.ndarray, "L N F"]
    era: Float[np.ndarray, "L N F"]
    twera: Float[np.ndarray, "L N F"]
    activation: Float[np.ndarray, " N"]
    active: Int[np.ndarray, " N"]
    threshold: Float[np.ndarray, " N"]
    above: Int[np.ndarray, " N"]
    n_positions: int


@partial(jax.jit, static_argnames=("cfg",))
def _most_active(cfg: Any, params: Any, d: Transcoders, tokens: Array) -> Array:
    return jax.lax.map(lambda row: count_active(cfg, params, d, row, False), tokens).max()


@partial(jax.jit, static_argnames=("cfg", "n_slots"))
def _values(cfg: Any, params: Any, d: Transcoders, tokens: Array, layer: Array, index: Array, n_slots: int) -> Array:
    """Activations [rows, N, T] of the targets."""

    def one(row: Array) -> Array:
        return target_slots(freeze(cfg, params, d, row, n_slots=n_slots), layer, index)[1]

    return jax.lax.map(one, tokens)


@partial(jax.jit, static_argnames=("cfg", "n_slots"))
def _sums(
    cfg: Any, params: Any, d: Transcoders, tokens: Array, counts: Array, at: Any, hold: Any, n_slots: int
) -> tuple[Array, Array]:
    """Sums [L, 3, N, F] of a batch: above the threshold, on, and weighted by activation; and of the weights [3, N].

    `counts` is 0 for rows that only fill.
    """
    layer, index, threshold = at

    def one(total: Any, x: Any) -> tuple[Any, None]:
        row, count = x
        frozen = freeze(cfg, params, d, row, n_slots=n_slots)
        _, a = target_slots(frozen, layer, index)
        a = jnp.maximum(a, 0.0) * (jnp.arange(len(row)) > 0) * count
        weight = jnp.stack([a > threshold[:, None], a > 0, a]).astype(a.dtype)
        sums = direct_sums(cfg, params, d, frozen, layer, index, weight, hold), weight.sum(-1)
        return jax.tree.map(jnp.add, total, sums), None

    shape = (cfg.n_layers, 3, len(index), max(d.cfg.d_feature, cfg.d_mlp if d.cfg.fill == "neurons" else 0))
    start = jnp.zeros(shape, threshold.dtype), jnp.zeros((3, len(index)), threshold.dtype)
    return jax.lax.scan(one, start, (tokens, counts))[0]


@partial(jax.jit, static_argnames=("cfg", "n_slots"))
def _rates(cfg: Any, params: Any, d: Transcoders, tokens: Array, n_slots: int) -> Any:
    """Means over a batch of the reciprocal denominators [L], of the final norm's too."""

    def one(row: Array) -> Any:
        h = replace(freeze(cfg, params, d, row, n_slots=n_slots).hold, pattern=None)
        return jax.tree.map(lambda x: (1.0 / x[..., 1:]).mean(-1), h)

    return jax.tree.map(lambda x: x.mean(0), jax.lax.map(one, tokens))


def _batches(rows: np.ndarray, size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of one size, with 0 for rows that only fill the last."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        filled = np.concatenate([some, np.repeat(some[-1:], size - len(some), 0)])
        yield jnp.asarray(filled, jnp.int32), jnp.asarray(np.arange(size) < len(some))


def checked_rows(model: Any, rows: Any) -> np.ndarray:
    """Rows of token ids [n, T] with T >= 2.

    Raises:
        InputError: another form, too long for the model, or ids outside its vocabulary.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or rows.shape[0] < 1:
        raise InputError(f"rows have shape {rows.shape} and dtype {rows.dtype}: give token ids [n, T]")
    if not 2 <= rows.shape[1] <= model.cfg.n_ctx:
        raise InputError(f"rows have {rows.shape[1]} tokens; give 2 to {model.cfg.n_ctx} (the model's context)")
    if rows.min() < 0 or rows.max() >= model.cfg.d_vocab:
        raise InputError(f"token ids {rows.min()}..{rows.max()} leave the vocabulary 0..{model.cfg.d_vocab - 1}")
    return rows


def slots_for(model: Any, d: Transcoders, rows: np.ndarray, batch: int = 8) -> int:
    """Slots that suffice for every position of these rows."""
    most = default_slots(d)
    if d.cfg.kind == "neurons" or most <= 64:
        return most
    counts = [host(_most_active(model.cfg, model.params, d, tokens)) for tokens, _ in _batches(rows, batch)]
    return min(bucket(int(max(counts))), most)


def mean_hold(model: Any, d: Transcoders | LazyTranscoders, rows: Any, *, batch: int = 8) -> Hold:
    """Harmonic means of the norms' denominators over the positions of a corpus but the first, [L, 1].

    Harmonic, because an attribution has their reciprocals as factors: 1 / hold is the mean factor. They are the
    model's own; of a set on disk no feature is read.

    Raises:
        InputError: see `checked_rows`.
    """
    rows = checked_rows(model, rows)
    d = chosen(d, {}).transcoders if isinstance(d, LazyTranscoders) else d
    batch = next(b for b in range(min(batch, len(rows)), 0, -1) if len(rows) % b == 0)  # means of equal parts
    rates = [_rates(model.cfg, model.params, d, tokens, 1) for tokens, _ in _batches(rows, batch)]
    return jax.tree.map(lambda *x: jnp.asarray(1.0 / np.mean([host(y) for y in x], 0))[..., None], *rates)


def corpus_effects(
    model: Any,
    d: Transcoders,
    rows: Any,
    layer: int,
    features: Sequence[int],
    *,
    above: float = 0.2,
    hold: Hold | None = None,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusEffects:
    """Mean input x gradient, ERA and TWERA of all features of earlier layers on some features of one layer.

    Args:
        model: from `load_model`.
        d: transcoders on it, or `neurons`.
        rows: token ids [n, T], read twice: for the thresholds, then for the sums.
        layer: of the targets.
        features: their numbers.
        above: `mean` takes the positions above this quantile of a target's positive activations.
        hold: denominators to use everywhere (None: those of each position).
        batch: rows in one call of the compiled programs.
        progress: called with (rows done, rows in all), both passes counted.

    Raises:
        InputError: a feature that does not exist, rows of another form, or a target that is never on.
    """
    check_match(model, d)
    for f in features:
        check_feature(model.cfg, d.cfg, layer, int(f))
    if not len(features) or not 0 <= above < 1:
        raise InputError(f"features={list(features)}, above={above}: give at least one feature, and a share in [0, 1)")
    rows, tell = checked_rows(model, rows), progress or (lambda done, total: None)
    n, index = len(rows), jnp.asarray(features, jnp.int32)
    slots, batch = slots_for(model, d, rows, batch), min(batch, n)
    values = []
    for i, (tokens, real) in enumerate(_batches(rows, batch)):
        a = host(_values(model.cfg, model.params, d, tokens, layer, index, slots))
        values.append(a[np.asarray(real)])
        tell(min((i + 1) * batch, n), 2 * n)
    a = np.concatenate(values)[:, :, 1:].transpose(1, 0, 2).reshape(len(index), -1)
    threshold = _thresholds(a, layer, features, above)
    at, sums, sizes = (layer, index, jnp.asarray(threshold, a.dtype)), 0.0, 0.0
    for i, (tokens, real) in enumerate(_batches(rows, batch)):
        parts = _sums(model.cfg, model.params, d, tokens, real, at, hold, slots)
        sums, sizes = (x + host(part, np.float64) for x, part in zip((sums, sizes), parts, strict=True))
        tell(n + min((i + 1) * batch, n), 2 * n)
    count, active, mass = np.asarray(sizes)
    mean, era, twera = np.moveaxis(np.asarray(sums), 1, 0)
    return CorpusEffects(
        mean=mean / count[:, None],
        era=era / a.shape[1],
        twera=twera / mass[:, None],
        activation=mass / a.shape[1],
        active=active.astype(np.int64),
        threshold=threshold,
        above=count.astype(np.int64),
        n_positions=a.shape[1],
    )


def _thresholds(a: np.ndarray, layer: int, features: Sequence[int], above: float) -> np.ndarray:
    """A quantile of each target's positive activations."""
    never = [int(f) for f, x in zip(features, a, strict=True) if not (x > 0).any()]
    if never:
        some = ", ".join(map(str, never[:8])) + (", ..." if len(never) > 8 else "")
        raise InputError(
            f"the corpus has no position (of {a.shape[1]}) at which feature {some} of layer {layer} is active: "
            "give more text, or other features"
        )
    return np.array([_between(np.unique(x[x > 0]), np.quantile(x[x > 0], above)) for x in a])


def _between(values: np.ndarray, cut: float) -> float:
    """Half way from the least value not below `cut` to the one before it: rounding moves no position across."""
    i = int(np.searchsorted(values, cut))
    return float(values[i] + (values[i - 1] if i else 0.0)) / 2


def top_overlap(a: Float[np.ndarray, "*N F"], b: Float[np.ndarray, "*N F"], k: int) -> Float[np.ndarray, "*N"]:
    """Share of the k largest entries that two rows have in common (signed: the most negative are not large).

    Ties go to the lower number; entries at or below zero never count, so a row with fewer positive ones shares less.
    """
    sets = []
    for x in (a, b):
        order = np.argsort(-x, -1, kind="stable")[..., :k]
        mask = np.zeros(x.shape, bool)
        np.put_along_axis(mask, order, True, -1)
        sets.append(mask & (x > 0))
    return (sets[0] & sets[1]).sum(-1) / k
