"""One feature from weights alone, by name: tokens it answers to and promotes, heads, earlier and later features.

What `tcircuits weights` prints. The numbers are those of `weights` and `forward_weights`; here they are ranked and get
names. Nothing of it needs a prompt.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.checks import check_feature, check_heads, check_match
from tcircuits.attribution.forward_weights import feature_reads, stream_logits, written_streams
from tcircuits.attribution.lazy_weights import all_weights
from tcircuits.attribution.weights import (
    deembed,
    feature_covectors,
    ov_norms,
    pullback,
    through_heads,
    unit_hold,
)
from tcircuits.models.forward import Hold
from tcircuits.numerics import wide
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders, chosen
from tcircuits.transcoders.streaming import Progress
from tcircuits.types import Array, Float, InputError


@partial(jax.jit, static_argnames=("cfg", "heads"))
def _numbers(
    cfg: Any, params: Any, d: Transcoders, hold: Hold, layer: Array, index: Array, heads: tuple[tuple[int, int], ...]
) -> dict[str, Array]:
    """Everything about one feature."""
    one, number = jnp.reshape(layer, 1), jnp.reshape(index, 1)
    u, top = feature_covectors(cfg, params, d, hold, one, number), layer
    if heads:
        u, top = through_heads(cfg, params, d, hold, u, layer, heads), heads[-1][0]
    layers = jnp.arange(cfg.n_layers)
    earlier = jax.lax.map(lambda i: pullback(cfg, params, d, hold, u, top, i)[0], layers)
    streams = written_streams(cfg, params, d, hold, one, number)
    later = jax.lax.map(lambda i: feature_reads(cfg, params, d, hold, i, streams[i])[0], layers)
    norms = ov_norms(cfg, params, d, hold, u, top)[..., 0]
    return {
        "reads": u,
        "streams": streams,
        "tokens": deembed(cfg, params, d, hold, u, top)[0],
        "logits": stream_logits(cfg, params, hold, streams[-1])[0],
        "earlier": earlier,
        "later": jnp.where((layers > layer)[:, None], later, 0.0),
        "norms": jnp.where((layers < top)[:, None], norms, 0.0) if heads else norms,
    }


@partial(jax.jit, static_argnames=("cfg",))
def _by_head(
    cfg: Any, params: Any, d: Transcoders, hold: Hold, layer: Array, index: Array, heads: Array
) -> Float[Array, "E V"]:
    """De-embeddings of one feature through each of some heads."""
    u = feature_covectors(cfg, params, d, hold, jnp.reshape(layer, 1), jnp.reshape(index, 1))

    def one(head: Array) -> Array:
        v = through_heads(cfg, params, d, hold, u, layer, head[None])
        return deembed(cfg, params, d, hold, v, head[0])[0]

    return jax.lax.map(one, heads)


def top_tokens(model: Any, scores: Float[np.ndarray, " V"], k: int) -> tuple[list[Any], list[Any]]:
    """([[token, score], ...] of the largest scores, the same of the smallest), tokens as shown to people."""
    k = min(k, len(scores))
    up, down = np.argsort(-scores, kind="stable")[:k], np.argsort(scores, kind="stable")[:k]
    largest, smallest = ([[model.token(int(t)), float(scores[t])] for t in side] for side in (up, down))
    return largest, smallest


def top_features(weights: Float[np.ndarray, "L F"], k: int) -> tuple[list[Any], list[Any]]:
    """([[layer, feature, weight], ...] of the largest positive weights, the same of the most negative)."""
    flat, out = weights.ravel(), []
    for sign in (1, -1):
        order = np.argsort(-sign * flat, kind="stable")[:k]
        places = [np.unravel_index(i, weights.shape) for i in order if sign * flat[i] > 0]
        out.append([[int(i), int(f), float(weights[i, f])] for i, f in places])
    return out[0], out[1]


def feature_weights(
    model: Any,
    d: Transcoders | LazyTranscoders,
    layer: int,
    index: int,
    *,
    through: Sequence[tuple[int, int]] = (),
    hold: Hold | None = None,
    top: int = 10,
    n_heads: int = 6,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What one feature answers to and does, from weights alone; JSON values.

    Args:
        model: from `load_model`.
        d: transcoders on it, or `neurons`; of a set on disk all decoders of earlier layers and all encoders of later
            ones pass by in blocks, and of other layers only this feature's rows are read.
        layer: of the feature.
        index: its number.
        through: a chain of heads (layer, head) from the feature down; tokens and earlier features are then those that
            it would see through them.
        hold: what stands for the norms' denominators (None: ones, see `weights`).
        top: tokens and features listed on each side.
        n_heads: heads listed, by OV norm, each with the tokens that the feature would see through it.
        progress: called with (blocks read, blocks in all), of a set on disk.

    Raises:
        InputError: a feature that does not exist, a chain that no path can take, nothing to list.
    """
    check_match(model, d)
    check_feature(model.cfg, d.cfg, layer, index)
    check_heads(model.cfg, layer, through)
    if top < 1 or n_heads < 0:
        raise InputError(f"top={top}, n_heads={n_heads}: list at least 1 and 0")
    chain = tuple((int(i), int(h)) for i, h in through)
    place = hold or unit_hold(model.cfg, wide(model.params.embed).dtype)
    small, number = _alone(d, layer, index)
    at = jnp.asarray(layer), jnp.asarray(number)
    numbers = _numbers(model.cfg, model.params, small, place, *at, chain)
    found: dict[str, np.ndarray] = {k: host(x) for k, x in numbers.items()}
    if isinstance(d, LazyTranscoders):
        reads = numbers["reads"], chain[-1][0] if chain else layer
        found |= all_weights(model, small, d, place, layer, reads, numbers["streams"], found, progress)
    answers, silenced = top_tokens(model, found["tokens"], top)
    promoted, suppressed = top_tokens(model, found["logits"], top)
    (excited, inhibited), (excites, inhibits) = (top_features(found[k], top) for k in ("earlier", "later"))
    return {
        "model": model.name,
        "transcoders": d.source,
        "layer": layer,
        "feature": index,
        "denominators": "one" if hold is None else "given",
        "through": [list(head) for head in chain],
        "tokens": {"largest": answers, "smallest": silenced},
        "logits": {"promoted": promoted, "suppressed": suppressed},
        "earlier": {"excite": excited, "inhibit": inhibited},
        "later": {"excited": excites, "inhibited": inhibits},
        "heads": _heads(model, small, place, at, chain, found["norms"], n_heads, top),
    }


def _alone(d: Transcoders | LazyTranscoders, layer: int, index: int) -> tuple[Transcoders, int]:
    """A set in memory as it is; of one on disk the one feature, and its number then."""
    if not isinstance(d, LazyTranscoders):
        return d, index
    some = chosen(d, {layer: [index]})
    return some.transcoders, int(some.here(np.array([layer]), np.array([index]))[0])


def _heads(
    model: Any, d: Transcoders, hold: Hold, at: Any, chain: Any, norms: np.ndarray, n_heads: int, top: int
) -> list[dict[str, Any]]:
    """The heads of largest OV norm; without a chain, the tokens seen through each."""
    order = [i for i in np.argsort(-norms, axis=None, kind="stable")[:n_heads] if norms.ravel()[i] > 0]
    heads = [tuple(int(x) for x in np.unravel_index(i, norms.shape)) for i in order]
    listed: list[dict[str, Any]] = [{"layer": i, "head": h, "norm": float(norms[i, h])} for i, h in heads]
    if heads and not chain:
        scores = host(_by_head(model.cfg, model.params, d, hold, *at, jnp.asarray(heads)))
        for one, row in zip(listed, scores, strict=True):
            one["largest"], one["smallest"] = top_tokens(model, row, top)
    return listed
