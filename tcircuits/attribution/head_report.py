"""Why a head looks where it looks, by name: the pairs of a score with their tokens and features.

What `tcircuits attention` prints; the numbers are those of `qk`, and for layer 0 in float64.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.checks import check_head, check_match, check_prompt
from tcircuits.attribution.corpus import slots_for
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.narrowing import narrowed
from tcircuits.attribution.qk import BLOCK, QKPairs, qk_pairs, source_place
from tcircuits.parallel import host
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import InputError

_freeze = jax.jit(freeze, static_argnames=("cfg", "n_slots"))
_pairs = jax.jit(qk_pairs, static_argnames=("cfg", "n", "block"))


def source_name(model: Any, frozen: Frozen, number: int) -> str:
    """A source of a query or key, as a person reads it."""
    L, T, C = frozen.index.shape
    kind, layer, pos, slot = source_place((L, T, C), number)
    if kind == "feature":
        return f"L{layer} f{int(frozen.index[layer, pos, slot])} @{pos}"
    if kind == "error":
        return f"L{layer} error @{pos}"
    if kind == "token":
        return f"{model.token(int(frozen.tokens[pos]))!r} @{pos}"
    return "constants below" if kind == "constant" else "biases of the head"


def attention_report(
    model: Any,
    d: Transcoders | LazyTranscoders,
    prompt: Any,
    head: tuple[int, int],
    query: int,
    key: int | None = None,
    *,
    top: int = 12,
    block: int = BLOCK,
) -> dict[str, Any]:
    """One score of one head as pairs of sources by name; JSON values. MLPs at position 0 are nodes like all others.

    Args:
        model: from `load_model`.
        d: transcoders on it, in memory or on disk, or `neurons`; heads of layer 0 read none of them.
        prompt: a text or token ids.
        head: layer and head.
        query: position that looks (negative: from the end).
        key: position looked at (None: the one that it attends to most).
        top: pairs, and sources of each side, listed.
        block: pairs of sources held in memory at once.

    Raises:
        InputError: see `check_prompt` and `check_match`; a head or position that does not exist, a key that comes after
            the query, nothing to list.
    """
    check_match(model, d)
    check_head(model.cfg, *head)
    if top < 1:
        raise InputError(f"top={top}: list at least 1")
    ids, text = check_prompt(model, prompt)
    at = specify.place(query, len(ids))
    looked = None if key is None else specify.place(key, len(ids))
    if looked is not None and looked > at and model.cfg.causal:
        raise InputError(f"key position {looked} comes after query position {at}: the head cannot look there")
    run = _first_layer if head[0] == 0 and model.params.embed.dtype != jnp.float64 else _any_layer
    frozen, pattern, looked, pairs = run(model, d, ids, head, at, looked, top, block)
    return _named(model, frozen, jax.tree.map(host, pairs), top) | {
        "model": model.name,
        "transcoders": d.source,
        "prompt": text,
        "head": list(head),
        "query": {"position": at, "token": model.token(int(ids[at]))},
        "key": {"position": looked, "token": model.token(int(ids[looked]))},
        "pattern": float(pattern[looked]),
    }


def _any_layer(
    model: Any,
    d: Transcoders | LazyTranscoders,
    ids: np.ndarray,
    head: Any,
    at: int,
    looked: int | None,
    top: int,
    block: int,
) -> tuple[Frozen, np.ndarray, int, QKPairs]:
    """The frozen prompt, the query's pattern, the key (the one most attended to where None is given), and pairs."""
    small, some = narrowed(model, d, [ids], [False])
    slots = slots_for(model, small, ids[None])
    frozen = _freeze(model.cfg, model.params, small, ids, n_slots=slots, origin=False)
    assert frozen.hold.pattern is not None
    pattern = host(frozen.hold.pattern[head[0], head[1], at], np.float64)
    looked = int(pattern.argmax()) if looked is None else looked
    places = (jnp.asarray(x) for x in (head, at, looked))
    pairs = _pairs(model.cfg, model.params, small, frozen, *places, n=top, block=block)
    if some is not None:  # named by their numbers in the whole set
        index, on = np.array(frozen.index), np.nonzero(host(frozen.valid))
        index[on] = some.whole(on[0], index[on])
        frozen = replace(frozen, index=jnp.asarray(index))
    return frozen, pattern, looked, pairs


def _first_layer(
    model: Any,
    d: Transcoders | LazyTranscoders,
    ids: np.ndarray,
    head: Any,
    at: int,
    looked: int | None,
    top: int,
    block: int,
) -> tuple[Frozen, np.ndarray, int, QKPairs]:
    """The same in float64, on the host, of the first layer alone.

    Its sources are one token and constants on each side, so their pairs may cancel inside a single dot product, and
    float32 then misses the score by more than a millionth of the pairs (as rows of layer 0, see `precise`).
    """
    c, p = model.cfg, model.params
    cfg = replace(c, n_layers=1, windows=c.windows[:1], unrotated=tuple(i for i in c.unrotated if i == 0))
    blocks = jax.tree.map(lambda x: x[:1], p.blocks)
    some = replace(p, blocks=blocks, embed=p.embed[ids], unembed=None, b_unembed=None)  # the prompt is the vocabulary
    none = TranscoderConfig("transcoder", 1, c.d_model, 1, (0,))  # one feature that is never on
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.tree.map(lambda x: jnp.asarray(host(x, np.float64)), some)
        rows, bias = jnp.zeros((1, 1, c.d_model), jnp.float64), jnp.zeros((1, 1), jnp.float64)
        empty = Transcoders(none, d.source, rows, bias, rows, rows[0], None, None)
        places = np.arange(len(ids), dtype=np.int32), head, at, looked, top, block
        found = _any_layer(replace(model, cfg=cfg, params=params), empty, *places)
        frozen, pattern, looked, pairs = jax.tree.map(np.asarray, found)
    return replace(frozen, tokens=ids), pattern, int(looked), pairs


def _named(model: Any, frozen: Frozen, pairs: QKPairs, top: int) -> dict[str, Any]:
    """Pairs and the largest sources of each side, with names."""

    def side(values: Any) -> list[Any]:
        x = np.asarray(values)
        order = np.argsort(-np.abs(x), kind="stable")[:top]
        return [[source_name(model, frozen, int(i)), float(x[i])] for i in order]

    mass = float(pairs.mass)
    return {
        "score": float(pairs.score),
        "pairs": [
            [source_name(model, frozen, int(i)), source_name(model, frozen, int(j)), float(v)]
            for i, j, v in zip(pairs.query, pairs.key, pairs.value, strict=True)
        ],
        "rest": float(pairs.rest),
        "rest_abs": float(pairs.rest_abs),
        "by_query": side(pairs.by_query),
        "by_key": side(pairs.by_key),
        "gap": abs(float(pairs.total) - float(pairs.score)) / max(mass, 1e-30),
    }
