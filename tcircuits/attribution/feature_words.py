"""The tokens that features stand for: those that they promote and suppress, and those whose embeddings they read.

    promoted, suppressed: as in `promote`, for features of activation 1
    de-embedding: score(v) = <W_enc * g, centre(W_E[v])>, with g the gain of the norm before the MLP

The de-embedding is what a token's own embedding adds to the feature's pre-activation, times the denominators of the
norms (positive, so the order is that of the additions). With a norm after the attention's or MLP's place the embedding
is the stream itself, so the same holds in every layer.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), section 3.1 of their method (de-embeddings).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.promote import top_effects, written_by
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.numerics import centre, wide
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.statistics.neighbours import encoders
from tcircuits.types import Array, Float, Int

CHUNK = 256


class Words(NamedTuple):
    """For each feature its k highest and k lowest tokens, with their scores."""

    high: Int[np.ndarray, "F K"]
    high_score: Float[np.ndarray, "F K"]
    low: Int[np.ndarray, "F K"]
    low_score: Float[np.ndarray, "F K"]


def promoted_words(model: Model, d: Transcoders, slot: int, k: int = 10) -> Words | None:
    """What the features of a slot promote and suppress; None where they write to no MLP's place (SAEs)."""
    if d.cfg.kind == "sae":
        return None
    number = np.arange(d.cfg.d_feature)
    features = np.stack([np.full_like(number, d.cfg.layers[slot]), 0 * number, number], 1).astype(np.int32)
    k = min(k, model.cfg.d_vocab)

    def one(some: np.ndarray) -> tuple[Array, Array]:
        written = written_by(model.cfg, model.params, d, jnp.asarray(some), jnp.ones(len(some)))
        return top_effects(model.cfg, model.params, written, k)

    return _blocks(one, features)


def deembedded_words(model: Model, d: Transcoders, slot: int, k: int = 10) -> Words:
    """The tokens whose embeddings raise the features of a slot most, and those that lower them most."""
    layer, k = d.cfg.layers[slot], min(k, model.cfg.d_vocab)
    gained = d.cfg.reads == "mlp_in" and d.cfg.kind != "sae"
    return _blocks(
        lambda rows: _deembedded(model.cfg, model.params, layer, jnp.asarray(rows), gained, k),
        host(encoders(model.params, d, slot)),
    )


def _blocks(one: Any, rows: np.ndarray) -> Words:
    """`one` over blocks of rows: scores and tokens [F, 2, K] as `Words`."""
    scores, tokens = [], []
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        padded = np.pad(some, [(0, CHUNK - len(some)), *[(0, 0)] * (rows.ndim - 1)])
        found = [host(x)[: len(some)] for x in one(padded)]
        scores.append(found[0])
        tokens.append(found[1])
    score, token = np.concatenate(scores), np.concatenate(tokens)
    return Words(token[:, 0], score[:, 0], token[:, 1], score[:, 1])


@partial(jax.jit, static_argnames=("cfg", "gained", "k"))
def _deembedded(
    cfg: ModelConfig, params: Params, layer: Any, rows: Float[Array, "N D"], gained: bool, k: int
) -> tuple[Float[Array, "N 2 K"], Int[Array, "N 2 K"]]:
    norm = params.blocks.norm2
    rows = wide(rows)
    if gained and norm is not None:
        rows = rows * wide(norm.w[layer])
    rows = centre(cfg.norm, rows)  # centring is its own transpose
    score = jnp.einsum("ND,VD->NV", rows, wide(params.embed), precision="highest") * cfg.embed_scale
    high, low = jax.lax.top_k(score, k), jax.lax.top_k(-score, k)
    return jnp.stack([high[0], -low[0]], 1), jnp.stack([high[1], low[1]], 1)
