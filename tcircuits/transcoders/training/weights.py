"""What training changes, in float32: shapes, first values, and the dictionary that comes out.

Inputs and targets are divided by one number a layer while training (`Scales`); `export` folds those, and the vector
subtracted from the input, into the encoder and the decoder, so that the result acts on plain activations.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.params import ArraySpec
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.types import Array, Float

SMALL = 0.1  # norm of decoder rows that begin small
FIRST_THRESHOLD = 0.1  # JumpReLU's, before training, in units of the normalised input


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """HAGD's prediction of the next layer's features: relu(relu(f V + c) U + b)."""

    v: Float[Array, "L F R"]
    c: Float[Array, "L R"]
    u: Float[Array, "L R F"]
    b: Float[Array, "L F"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """Trained arrays; decoders are stored by pair (source, output), sources of one output together.

    `gain` [P] belongs to a tied decoder, whose `w_dec` has one matrix a source.
    """

    w_enc: Float[Array, "L F D"]
    b_enc: Float[Array, "L F"]
    w_dec: Float[Array, "P F D"]
    b_dec: Float[Array, "L D"]
    log_threshold: Float[Array, "L F"] | None
    w_skip: Float[Array, "L D D"] | None
    b_in: Float[Array, "L D"] | None
    gain: Float[Array, " P"] | None
    head: Head | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scales:
    """Root mean squares of what the dictionaries read and write, by layer; ones without normalisation."""

    x: Float[Array, " L"]
    y: Float[Array, " L"]


def pairs(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """(source slot, output slot) of each decoder, by output and then by source."""
    n = len(recipe.dictionary.layers)
    if recipe.dictionary.kind != "clt":
        return tuple((m, m) for m in range(n))
    reach = n if recipe.band is None else recipe.band
    return tuple((i, m) for m in range(n) for i in range(max(0, m - reach + 1), m + 1))


def spec(recipe: Recipe) -> Weights:
    """The tree with an `ArraySpec` in the place of each array."""
    c, o = recipe.dictionary, recipe.objective
    n, F, D, R = len(c.layers), c.d_feature, c.d_model, o.prediction_rank
    n_dec = n if recipe.tied else len(pairs(recipe))
    rows = ("layers", "feature", "embed")

    def leaf(wanted: Any, *shape: int, axes: tuple[str | None, ...]) -> Any:
        return ArraySpec(shape, axes) if wanted else None

    head: Any = None
    if o.prediction:
        head = Head(
            leaf(True, n - 1, F, R, axes=("layers", "feature", None)),
            leaf(True, n - 1, R, axes=("layers", None)),
            leaf(True, n - 1, R, F, axes=("layers", None, "feature")),
            leaf(True, n - 1, F, axes=("layers", "feature")),
        )
    return Weights(
        w_enc=leaf(True, n, F, D, axes=rows),
        b_enc=leaf(True, n, F, axes=("layers", "feature")),
        w_dec=leaf(True, n_dec, F, D, axes=rows),
        b_dec=leaf(True, n, D, axes=("layers", "embed")),
        log_threshold=leaf(c.activation == "jumprelu", n, F, axes=("layers", "feature")),
        w_skip=leaf(c.skip, n, D, D, axes=("layers", "embed", None)),
        b_in=leaf(recipe.pre_bias, n, D, axes=("layers", "embed")),
        gain=leaf(recipe.tied, len(pairs(recipe)), axes=(None,)),
        head=head,
    )


def first_weights(
    recipe: Recipe, key: Array, mean_x: Float[Array, "L D"], mean_y: Float[Array, "L D"], dtype: Any = jnp.float32
) -> Weights:
    """Values to start from, in units of the normalised activations.

    Encoder rows have norm 1 (pre-activations of unit size) and uniform entries, as in the paper's code; decoder rows
    have norm 1, or 0.1 where they are free and not the encoder's; `small` gives both 0.1. The encoder's bias places
    the mean input at pre-activation zero, and the decoder's is the mean target.
    """
    s = spec(recipe)
    k_enc, k_dec, k_head = jax.random.split(key, 3)
    w_enc = _unit(jax.random.uniform(k_enc, s.w_enc.shape, dtype, -1.0, 1.0))
    w_dec = _unit(jax.random.normal(k_dec, s.w_dec.shape, dtype))
    if recipe.start in ("tied", "small"):
        w_enc = SMALL * w_enc if recipe.start == "small" else w_enc
        w_dec = w_enc
    elif recipe.start == "zero":
        w_dec = jnp.zeros_like(w_dec)
    elif recipe.decoder_norm == "free":
        w_dec = SMALL * w_dec
    centre = -jnp.einsum("LFD,LD->LF", w_enc, mean_x)
    bare = s.b_in is not None
    return Weights(
        w_enc=w_enc,
        b_enc=jnp.zeros(s.b_enc.shape, dtype) if bare else centre.astype(dtype),
        w_dec=w_dec,
        b_dec=mean_y.astype(dtype),
        log_threshold=_full(s.log_threshold, jnp.log(FIRST_THRESHOLD), dtype),
        w_skip=_full(s.w_skip, 0.0, dtype),
        b_in=mean_x.astype(dtype) if bare else None,
        gain=_full(s.gain, 1.0, dtype),
        head=None if s.head is None else _first_head(s.head, k_head, dtype),
    )


def _unit(w: Array) -> Array:
    return w / jnp.linalg.norm(w, axis=-1, keepdims=True)


def _full(s: Any, value: Any, dtype: Any) -> Any:
    return None if s is None else jnp.full(s.shape, value, dtype)


def _first_head(s: Head, key: Array, dtype: Any) -> Head:
    one, two = jax.random.split(key)
    return Head(
        jax.random.normal(one, s.v.shape, dtype) / jnp.sqrt(s.v.shape[1]),
        jnp.zeros(s.c.shape, dtype),
        jax.random.normal(two, s.u.shape, dtype) / jnp.sqrt(s.u.shape[1]),
        jnp.zeros(s.b.shape, dtype),
    )


def decoder_norms(recipe: Recipe, w: Weights) -> Float[Array, "L F"]:
    """The norm of what each feature writes to all its outputs together; ones where rows are kept at norm 1."""
    if recipe.decoder_norm == "unit":
        return jnp.ones_like(w.b_enc)
    if recipe.dictionary.kind != "clt":
        return jnp.sqrt(jnp.sum(w.w_dec**2, -1) + 1e-12)
    edges = jnp.asarray(pairs(recipe))
    own = w.w_dec if w.gain is None else w.gain[:, None, None] * w.w_dec[edges[:, 0]]
    of_source = edges[:, 0] == jnp.arange(len(w.b_enc))[:, None]
    squares = jnp.einsum("IP,PF->IF", of_source.astype(own.dtype), jnp.sum(own**2, -1), precision="highest")
    return jnp.sqrt(squares + 1e-12)


def threshold_of(recipe: Recipe, weights: Weights, running: Float[Array, " L"]) -> Float[Array, "L F"] | None:
    """The thresholds of the result: JumpReLU's own, or for BatchTopK the running mean of a batch's smallest value.

    Where the largest n_j a_j are kept, that of a_j is divided by n_j.
    """
    if weights.log_threshold is not None:
        return jnp.exp(weights.log_threshold)
    if recipe.dictionary.activation == "batchtopk":
        norms = decoder_norms(recipe, weights) if recipe.objective.by_norm else jnp.ones_like(weights.b_enc)
        return running[:, None] / norms
    return None


def export(recipe: Recipe, weights: Weights, scales: Scales, running: Float[Array, " L"], source: str) -> Transcoders:
    """The dictionary, acting on plain activations.

    With x = scales.x x', y = scales.y y' and pre-activations W (x' - b_in) + b:
    W_enc = W / scales.x, b_enc = b - W b_in, W_dec -> scales.y W_dec, b_dec -> scales.y b_dec, and
    W_skip -> W_skip scales.y / scales.x. Feature values keep the normalised units.
    """
    w, sx, sy = weights, scales.x, scales.y
    b_enc = w.b_enc if w.b_in is None else w.b_enc - jnp.einsum("LFD,LD->LF", w.w_enc, w.b_in)
    return Transcoders(
        recipe.dictionary,
        source,
        w_enc=w.w_enc / sx[:, None, None],
        b_enc=b_enc,
        w_dec=_decoders(recipe, w, sy),
        b_dec=w.b_dec * sy[:, None],
        threshold=threshold_of(recipe, w, running),
        w_skip=None if w.w_skip is None else w.w_skip * (sy / sx)[:, None, None],
    )


def _decoders(recipe: Recipe, w: Weights, sy: Array) -> Array:
    c = recipe.dictionary
    if c.kind != "clt":
        return w.w_dec * sy[:, None, None]
    rows: list[Any] = [jnp.zeros_like(w.w_dec[0])] * c.n_pairs
    for p, (i, m) in enumerate(pairs(recipe)):
        stored = w.w_dec[p] if w.gain is None else w.gain[p] * w.w_dec[i]
        rows[pair(c, i, m)] = stored * sy[m]
    return jnp.stack(rows)


def as_dictionary(recipe: Recipe, weights: Weights, running: Float[Array, " L"]) -> Transcoders:
    """The dictionary in normalised units, for tests and for trials while training."""
    ones = jnp.ones(len(recipe.dictionary.layers), weights.b_enc.dtype)
    return export(recipe, weights, Scales(ones, ones), running, "training")
