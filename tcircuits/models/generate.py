"""Generation with a key/value cache: one prefill, then one scanned step per token; edits apply to both.

Equal to repeated full forward passes (a test holds it to that), with the cost of one position per token.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import Edit, check_edits
from tcircuits.models.forward import (
    Tap,
    View,
    check_length,
    embed,
    forward_one,
    layer_kinds,
    logits_from,
    rope_tables,
    run_layer,
)
from tcircuits.models.params import Params
from tcircuits.types import Array, Bool, Float, InputError, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """The state of one sequence: caches [L, S, G, K], where each slot stands, which are real, and the next token."""

    keys: Float[Array, "L S G K"]
    values: Float[Array, "L S G K"]
    positions: Int[Array, " S"]
    valid: Bool[Array, " S"]
    token: Int[Array, ""]


def _choose(logits: Float[Array, " V"], temperature: Array | None, key: Array) -> Int[Array, ""]:
    if temperature is None:
        return jnp.argmax(logits).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)


def prefill(
    cfg: ModelConfig, params: Params, tokens: Int[Array, " T"], mask: Bool[Array, " T"], n: int, edits: tuple[Edit, ...]
) -> tuple[Float[Array, " V"], Decoding]:
    """Logits after the prompt, and the caches with room for `n` tokens more."""
    out, (k, v), _ = forward_one(cfg, params, tokens, mask=mask, edits=edits)
    T = tokens.shape[0]
    room = ((0, 0), (0, n), (0, 0), (0, 0))
    length = mask.sum()
    positions = jnp.concatenate([jnp.maximum(jnp.cumsum(mask) - 1, 0), length + jnp.arange(n)])
    valid = jnp.concatenate([mask, jnp.zeros(n, bool)])
    last = T - 1 - jnp.argmax(mask[::-1])
    state = Decoding(jnp.pad(k, room), jnp.pad(v, room), positions, valid, jnp.zeros((), jnp.int32))
    return out.logits[last], state


def decode_step(
    cfg: ModelConfig, params: Params, state: Decoding, slot: Int[Array, ""], edits: tuple[Edit, ...]
) -> tuple[Float[Array, " V"], Decoding]:
    """Logits after `state.token`, which takes `slot` of the caches."""
    valid = state.valid.at[slot].set(True)
    position = state.positions[slot][None]
    view = View(position, state.positions, valid)
    x = embed(cfg, params, state.token[None], position)
    rope = rope_tables(cfg, position, x.dtype)

    def step(x: Array, layer: Any) -> Any:
        block, number, kind, keys, values = layer
        tap = Tap(edits, (), number, position)
        x, kv, _, _ = run_layer(cfg, block, x, number, kind, rope, view, tap, cache=(keys, values, slot))
        return x, kv

    layers = (params.blocks, jnp.arange(cfg.n_layers), layer_kinds(cfg), state.keys, state.values)
    x, (keys, values) = jax.lax.scan(step, x, layers)
    logits = logits_from(cfg, params, x, Tap(edits, (), 0, position))
    return logits[0], Decoding(keys, values, state.positions, valid, state.token)


@partial(jax.jit, static_argnames=("cfg", "n"))
def sample(
    cfg: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    n: int,
    edits: tuple[Edit, ...],
    temperature: Array | None,
    key: Array,
) -> Int[Array, "B N"]:
    """`n` tokens after each prompt; greedy where `temperature` is None."""

    def one(tokens: Array, mask: Array, key: Array) -> Array:
        logits, state = prefill(cfg, params, tokens, mask, n, edits)

        def step(carry: tuple[Array, Decoding], i: Array) -> Any:
            logits, state = carry
            token = _choose(logits, temperature, jax.random.fold_in(key, i))
            state = Decoding(state.keys, state.values, state.positions, state.valid, token)
            return decode_step(cfg, params, state, tokens.shape[0] + i, edits), token

        (logits, _), head = jax.lax.scan(step, (logits, state), jnp.arange(n - 1))
        return jnp.append(head, _choose(logits, temperature, jax.random.fold_in(key, n - 1)))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(tokens, mask, jax.random.split(key, tokens.shape[0]))


def generate(
    model: Any,
    tokens: Any,
    n: int,
    *,
    edits: Any = None,
    temperature: float = 0.0,
    key: Array | None = None,
    mask: Any = None,
) -> np.ndarray:
    """Tokens that `model` writes after a prompt.

    Args:
        model: what `load_model` returns.
        tokens: a text, the ids of one prompt [T], or of several [B, T].
        n: how many tokens to write.
        edits: edits of sites (`tcircuits.edit`), one or several; `position=(len(prompt), None)` hits all that is
            written.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn from the softmax of logits / temperature.
        key: random key, needed with a temperature.
        mask: which prompt tokens are real, [B, T] (left or right padding).

    Returns:
        Token ids [n], or [B, n] for several prompts.

    Raises:
        InputError: a model that is not causal, an empty prompt, one that does not fit the context with `n` tokens
            more, ids outside the vocabulary, edits outside the model or the text, a temperature below 0 or without a
            key.
    """
    ids = np.asarray(model.encode(tokens) if isinstance(tokens, str) else tokens)
    batch = ids if ids.ndim == 2 else ids[None]
    check_length(model.cfg, batch.shape[1])
    if not model.cfg.causal:
        raise InputError(
            f"the model {model.name!r} is not causal: what it computes at a position depends on later tokens"
        )
    if n < 1:
        raise InputError(f"n={n}: generate writes at least one token")
    if batch.shape[1] + n > model.cfg.n_ctx:
        raise InputError(f"{batch.shape[1]} tokens and {n} more do not fit the model's context of {model.cfg.n_ctx}")
    if batch.min() < 0 or batch.max() >= model.cfg.d_vocab:
        raise InputError(f"token ids {batch.min()}..{batch.max()} leave the vocabulary 0..{model.cfg.d_vocab - 1}")
    if temperature < 0 or (temperature > 0 and key is None):
        raise InputError(f"temperature={temperature} with key={key}: give 0, or a positive one with a random key")
    real = np.ones(batch.shape, bool) if mask is None else np.asarray(mask, bool)
    chosen = () if edits is None else (edits,) if isinstance(edits, Edit) else tuple(edits)
    check_edits(model.cfg, chosen, batch.shape[1] + n, keys=1)
    heat = None if temperature == 0 else jnp.asarray(temperature, jnp.float32)
    seed = jax.random.key(0) if key is None else key
    out = sample(model.cfg, model.params, jnp.asarray(batch, jnp.int32), jnp.asarray(real), n, chosen, heat, seed)
    return np.asarray(out if ids.ndim == 2 else out[0])
