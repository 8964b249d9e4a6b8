"""How strongly each unit is on at each word of some texts: what units of two models are compared by.

Words, not tokens, so that two tokenizers need not agree: a unit's strength at a word is its largest on the word's
tokens. A word is what lies between white space.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.forward import Values
from tcircuits.circuits.running import Setting, record
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError, Int


def unit_profiles(
    model: Model, texts: Sequence[str], units: Units, *, dictionary: Transcoders | None = None, batch: int = 16
) -> tuple[Float[np.ndarray, "W U"], Int[np.ndarray, " W"]]:
    """Strengths of units at every word of some texts, and which words are the last of theirs (0 or 1).

    Of a feature its activation's size, of a head or sublayer the norm of what it computes; BOS belongs to no word.

    Args:
        model: from `load_model`, with a tokenizer.
        texts: any; each is one sequence.
        units: pooled over positions.
        dictionary: whose features are units.
        batch: texts that run together.

    Raises:
        InputError: a model without a tokenizer, no texts, texts without words or longer than the model's context, units
            by position.
    """
    if units.positions is not None:
        raise InputError("profiles are of units pooled over positions")
    if not texts:
        raise InputError("no texts: give some on which both models run")
    rows = [_words(model, text) for text in texts]
    longest = max(len(ids) for ids, _ in rows)
    if longest > model.cfg.n_ctx:
        raise InputError(f"a text has {longest} tokens; the context of {model.name!r} is {model.cfg.n_ctx}")
    found, last, s = [], [], Setting(model.cfg, units, "logit_difference")
    for at in range(0, len(rows), batch):
        part = [rows[min(i, len(rows) - 1)] for i in range(at, at + batch)]
        ids = np.zeros((batch, longest), np.int32)
        valid = np.arange(longest)[None] >= longest - np.array([len(row) for row, _ in part])[:, None]
        for line, (row, _) in zip(ids, part, strict=True):
            line[longest - len(row) :] = row
        values = host(_strengths(s, model.params, dictionary, jnp.asarray(ids), jnp.asarray(valid)))
        for value, (row, word) in zip(values, rows[at : at + batch], strict=False):
            pooled = np.zeros((word.max() + 1, units.n), np.float32)
            inside = word >= 0
            np.maximum.at(pooled, word[inside], value[longest - len(row) :][inside])
            found.append(pooled)
            last.append(np.arange(len(pooled)) == len(pooled) - 1)
    return np.concatenate(found), np.concatenate(last).astype(int)


def _words(model: Model, text: str) -> tuple[list[int], Int[np.ndarray, " T"]]:
    """Tokens of a text, and the number of the word that each one ends in (-1: none)."""
    if model.tokenizer is None:
        raise InputError(f"{model.name!r} has no tokenizer: its units cannot be compared on texts")
    if not text.split():
        raise InputError(f"the text {text!r:.60} has no words")
    ids, word = model.encode(text), []
    seen = ""
    for i, number in enumerate(ids):
        special = i == 0 and number == model.tokenizer.bos_id
        seen += "" if special else model.token(number)
        word.append(-1 if special else len(seen.split()) - 1)
    return ids, np.array(word)


@partial(jax.jit, static_argnames="s")
def _strengths(s: Setting, params: Any, d: Any, tokens: Array, valid: Array) -> Float[Array, "N T U"]:
    def one(tokens: Array, valid: Array) -> Array:
        values = record(s, params, d, tokens, valid)[1]
        assert isinstance(values, Values)
        sites = {"head": values.z, "attn": values.attn, "mlp": values.mlp, "feature": values.feature}
        found = []
        for kind in s.units.kinds:
            x = sites[kind]
            assert x is not None
            size = jnp.abs(x) if kind == "feature" else jnp.linalg.norm(x, axis=-1)
            size = size[..., None] if size.ndim == 2 else size  # [L, T, n]
            found.append(jnp.swapaxes(size, 0, 1).reshape(len(tokens), -1))
        return jnp.concatenate(found, -1)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(tokens, valid)
