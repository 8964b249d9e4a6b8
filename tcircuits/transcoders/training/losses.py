"""The loss of a group of layers, term by term; see `Objective` for the formulas and their sources.

Arrays have the layers of the group leading, then the tokens of the batch. A loss is a vector, one entry a layer, so
that a bad one can be named; training minimises its sum.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp

from tcircuits.transcoders.training import crosslayer
from tcircuits.transcoders.training.codes import Code, biases, encode_batch, gate, sum_rows
from tcircuits.transcoders.training.largest import keep_largest, spread
from tcircuits.transcoders.training.products import product
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.weights import Head, Weights, decoder_norms, pairs
from tcircuits.types import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """Figures of one batch, by layer: the loss and its parts, squared error and variance summed, L0, dead features."""

    loss: Float[Array, " L"]
    error: Float[Array, " L"]
    sparsity: Float[Array, " L"]
    auxiliary: Float[Array, " L"]
    fvu: Float[Array, " L"]
    l0: Float[Array, " L"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What the optimiser's bookkeeping needs of a batch: how often each feature fired, BatchTopK's cut."""

    on: Float[Array, "L F"]
    smallest: Float[Array, " L"]


def loss(
    recipe: Recipe,
    w: Weights,
    x: Float[Array, "L B D"],
    y: Float[Array, "L B D"],
    dead: Bool[Array, "L F"],
    strength: Float[Array, ""],
) -> tuple[Array, tuple[Metrics, Seen]]:
    """The loss of a batch of normalised activations, its parts, and what fired.

    Args:
        recipe: static.
        w: weights of the group's layers.
        x: what the dictionaries read.
        y: what they must write.
        dead: features that count as dead.
        strength: factor of the sparsity terms (below 1 while they warm up).
    """
    parts = _by_source(recipe, w, x, y) if crosslayer.applies(recipe) else _by_batch(recipe, w, x, y, dead)
    guess, errors, sparsity, auxiliary, seen = parts
    sparsity = strength * sparsity
    total = errors + sparsity + auxiliary
    squared, variance = jnp.sum((y - guess) ** 2, (1, 2)), _variance(y)
    l0 = seen.on.sum(-1) / x.shape[1]
    metrics = Metrics(total, errors, sparsity, auxiliary, squared / variance, l0)
    return total.sum(), jax.lax.stop_gradient((metrics, seen))


def _by_batch(recipe: Recipe, w: Weights, x: Array, y: Array, dead: Array) -> tuple[Array, Array, Array, Array, Seen]:
    """Output, error, sparsity and auxiliary terms from the features of all layers."""
    o = recipe.objective
    code = encode_batch(recipe, w, x)
    guesses = outputs(recipe, w, code, x)  # [G, L, B, D]; the last is the whole dictionary
    errors = jnp.stack([_error(recipe, y, guess) for guess in guesses]).mean(0)
    auxiliary = jnp.zeros_like(errors)
    if o.auxk:
        auxiliary = o.auxk * _auxk(recipe, w, code, y, guesses[-1], dead)
    if o.prediction and w.head is not None:
        auxiliary = auxiliary + o.prediction * _prediction(recipe, w.head, code)
    if o.overlap:
        auxiliary = auxiliary + o.overlap * _overlap(recipe, w)
    return guesses[-1], errors, _sparsity(recipe, w, code), auxiliary, Seen(code.on, code.smallest)


def _by_source(recipe: Recipe, w: Weights, x: Array, y: Array) -> tuple[Array, Array, Array, Array, Seen]:
    """The same for cross-layer dictionaries whose gradient is written by hand: source by source, from sums."""
    o = recipe.objective
    weighs = o.l1 or o.tanh or o.preactivation
    norms = decoder_norms(recipe, w) if weighs else jnp.ones_like(w.b_enc)
    threshold = jnp.zeros_like(w.b_enc) if w.log_threshold is None else jnp.exp(w.log_threshold)
    parts = crosslayer.Parts(w.w_enc, biases(w), threshold, w.w_dec, norms)
    t = crosslayer.through(recipe, parts, x)
    guess = _base(recipe, w, x) + t.written
    errors = _error(recipe, y, guess)
    sums = o.l1 * norms * t.value + o.tanh * t.bent + o.preactivation * norms * t.below
    sparsity = sums.sum(-1) / x.shape[1]
    if w.log_threshold is not None:
        sparsity = sparsity + _counted(recipe, t.on / x.shape[1])
    nothing = jnp.zeros_like(errors)
    return guess, errors, sparsity, nothing, Seen(t.on, nothing)


def _variance(y: Array) -> Array:
    return jnp.maximum(jnp.sum((y - y.mean(1, keepdims=True)) ** 2, (1, 2)), jnp.finfo(y.dtype).tiny)


def _error(recipe: Recipe, y: Float[Array, "L B D"], guess: Float[Array, "L B D"]) -> Float[Array, " L"]:
    squared = (y - guess) ** 2
    match recipe.objective.error:
        case "squared":
            return squared.sum(-1).mean(-1)
        case "reference":
            size = jnp.maximum(jnp.linalg.norm(y, axis=-1), jnp.finfo(y.dtype).tiny)
            return (squared / size[..., None]).mean((1, 2))
        case "fvu":
            return squared.sum((1, 2)) / _variance(y)


def outputs(recipe: Recipe, w: Weights, code: Code, x: Float[Array, "L B D"]) -> list[Array]:
    """What each nested prefix writes, [L, B, D] each; the last is the whole dictionary."""
    edges = [0, *recipe.objective.nested, recipe.dictionary.d_feature]
    total, found = _base(recipe, w, x), []
    for start, stop in pairwise(edges):
        total = total + _written(recipe, w, code, start, stop)
        found.append(total)
    return found


def _base(recipe: Recipe, w: Weights, x: Float[Array, "L B D"]) -> Float[Array, "L B D"]:
    """What is written without features: bias and skip."""
    base = jnp.broadcast_to(w.b_dec[:, None], x.shape)
    if w.w_skip is None:
        return base
    return base + product("LBD,LDE->LBE", x, w.w_skip, recipe.compute)


def _written(recipe: Recipe, w: Weights, code: Code, start: int, stop: int) -> Float[Array, "L B D"]:
    """What features start..stop write at each output; the whole dictionary where slots are summed."""
    if recipe.dictionary.kind == "clt" and w.gain is not None:  # one decoder a source: used once, weighed by layer
        written = _layers(recipe, w, _dense(code), start, stop)
        return jnp.einsum("MI,IBD->MBD", _matrix(recipe, w.gain), written)
    if code.dense is None:
        return _summed(recipe, code, w.w_dec.astype(recipe.compute))
    beside = recipe.dictionary.kind == "clt"
    return (_beside if beside else _layers)(recipe, w, code, start, stop)


def _beside(recipe: Recipe, w: Weights, code: Code, start: int, stop: int) -> Float[Array, "L B D"]:
    """Cross-layer outputs with one product a source: its features times its matrices side by side, [F, outputs * D]."""
    assert code.dense is not None
    L, B, _ = code.dense.shape
    edges, D = pairs(recipe), w.w_dec.shape[-1]
    total = jnp.zeros((B, L * D), code.pre.dtype)
    for i in range(L):
        own = [p for p, (source, _) in enumerate(edges) if source == i]
        beside = jnp.moveaxis(w.w_dec[jnp.asarray(own), start:stop], 0, 1).reshape(stop - start, -1)
        wrote = product("BF,FN->BN", code.dense[i, :, start:stop], beside, recipe.compute)
        total = total.at[:, i * D : i * D + wrote.shape[1]].add(wrote)
    return jnp.moveaxis(total.reshape(B, L, D), 1, 0)


def _summed(recipe: Recipe, code: Code, decoder: Float[Array, "P F D"]) -> Float[Array, "L B D"]:
    """Cross-layer outputs summed from the rows of active features, those of all sources of an output together."""
    assert code.index is not None
    assert code.value is not None
    edges, found = pairs(recipe), []
    for m in range(len(code.pre)):
        own = [p for p, (_, output) in enumerate(edges) if output == m]
        rows = decoder[own[0] : own[-1] + 1]
        n, F, D = rows.shape
        sources = slice(edges[own[0]][0], m + 1)
        index = code.index[sources] + F * jnp.arange(n, dtype=code.index.dtype)[:, None, None]
        together = [jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1) for a in (index, code.value[sources])]
        found.append(sum_rows(together[0], together[1], rows.reshape(n * F, D)))
    return jnp.stack(found)


def _layers(recipe: Recipe, w: Weights, code: Code, start: int, stop: int) -> Float[Array, "L B D"]:
    """Each layer's features through its own matrix."""
    assert code.dense is not None
    return product("LBF,LFD->LBD", code.dense[..., start:stop], w.w_dec[:, start:stop], recipe.compute)


def _dense(code: Code) -> Code:
    if code.dense is not None:
        return code
    assert code.index is not None
    assert code.value is not None
    return replace(code, dense=spread(code.index, code.value, code.pre.shape[-1]), index=None, value=None)


def _matrix(recipe: Recipe, gain: Float[Array, " P"]) -> Float[Array, "L L"]:
    """The factors of a tied decoder by (output, source)."""
    n, edges = len(recipe.dictionary.layers), pairs(recipe)
    outputs, sources = [m for _, m in edges], [i for i, _ in edges]
    return jnp.zeros((n, n), gain.dtype).at[jnp.asarray(outputs), jnp.asarray(sources)].set(gain)


def _sparsity(recipe: Recipe, w: Weights, code: Code) -> Float[Array, " L"]:
    """All terms that want fewer or smaller features, without warm-up."""
    o, total = recipe.objective, jnp.zeros(len(code.pre), code.pre.dtype)
    if not any((o.l1, o.l0, o.frequency, o.tanh, o.preactivation)):
        return total
    norms = decoder_norms(recipe, w)
    if o.l1 or o.tanh:
        f = _values(code) * (norms[:, None] if code.dense is not None else _taken(norms, code))
        total = total + (o.l1 * f.sum(-1) + o.tanh * jnp.tanh(o.tanh_scale * f).sum(-1)).mean(-1)
    if w.log_threshold is not None and (o.l0 or o.frequency):
        total = total + _counted(recipe, gate(code.pre, jnp.exp(w.log_threshold), o.bandwidth).mean(1))
    if o.preactivation:
        floor = 0.0 if w.log_threshold is None else jnp.exp(w.log_threshold)[:, None]
        below = jax.nn.relu(floor - code.pre) * norms[:, None]
        total = total + o.preactivation * below.sum(-1).mean(-1)
    return total


def _values(code: Code) -> Array:
    found = code.value if code.dense is None else code.dense
    assert found is not None
    return found


def _taken(norms: Float[Array, "L F"], code: Code) -> Float[Array, "L B C"]:
    assert code.index is not None
    return jax.vmap(lambda n, i: n[i])(norms, code.index)


def _counted(recipe: Recipe, share: Float[Array, "L F"]) -> Float[Array, " L"]:
    """JumpReLU's terms on how many features are on, and how often each: in which share of the batch."""
    o = recipe.objective
    l0 = share.sum(-1)
    counted = o.l0 * (l0 if o.l0_target is None else (l0 / o.l0_target - 1) ** 2)
    return counted + o.frequency * jax.nn.relu(share - o.frequency_limit).sum(-1)


def _auxk(
    recipe: Recipe, w: Weights, code: Code, y: Array, guess: Array, dead: Bool[Array, "L F"]
) -> Float[Array, " L"]:
    """What the largest dead features leave of the residual, which itself is held fixed; 0 in layers with none dead."""
    count = recipe.objective.k_aux or min(y.shape[-1] // 2, code.pre.shape[-1])
    residual = jax.lax.stop_gradient(y - guess)

    def revive(pre: Array) -> Array:
        wide = keep_largest(jnp.where(dead[:, None], pre, 0.0), count)
        own = Code(pre, wide, None, None, code.smallest, code.on)
        error = _error(recipe, residual, _written(recipe, w, own, 0, pre.shape[-1]))
        return error if recipe.dictionary.kind == "clt" else jnp.where(dead.any(-1), error, 0.0)

    return jax.lax.cond(dead.any(), revive, lambda pre: jnp.zeros(len(pre), pre.dtype), code.pre)


def _prediction(recipe: Recipe, head: Head, code: Code) -> Float[Array, " L"]:
    """How far the next layer's features are from their prediction; the last layer predicts nothing."""
    f = code.dense
    assert f is not None
    source = f[:-1] if recipe.objective.cross_grad else jax.lax.stop_gradient(f[:-1])
    hidden = jax.nn.relu(jnp.einsum("LBF,LFR->LBR", source, head.v) + head.c[:, None])
    guess = jax.nn.relu(jnp.einsum("LBR,LRF->LBF", hidden, head.u) + head.b[:, None])
    gap = jnp.sum((jax.lax.stop_gradient(f[1:]) - guess) ** 2, -1).mean(-1)
    return jnp.concatenate([gap, jnp.zeros(1, gap.dtype)])


def _overlap(recipe: Recipe, w: Weights) -> Float[Array, " L"]:
    """How far the |cos| of pairs of decoder rows are above what is free, squared; a mean over rows of sums."""
    rows = w.w_dec / jnp.sqrt(jnp.sum(w.w_dec**2, -1, keepdims=True) + 1e-12)
    cos = jnp.abs(jnp.einsum("LFD,LGD->LFG", rows, rows)) - 2.0 * jnp.eye(rows.shape[1], dtype=rows.dtype)
    return jnp.sum(jax.nn.relu(cos - recipe.objective.overlap_free) ** 2, (1, 2)) / rows.shape[1]
