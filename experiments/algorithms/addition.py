"""Addition modulo p as a problem: the whole table, 30 % of it trained on, loss at the last position alone.

The recipe of Nanda et al. 2023 (arXiv 2301.05217): one layer, 4 heads of 32, width 128, 512 ReLU neurons, no norm,
input [a, b, =]. Its 226,688 weights are those of `ModelConfig` but for the column of "=" in the unembedding, which is
zero.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.algorithms.training import Problem
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import mlp
from tcircuits.models.params import Params, init
from tcircuits.tasks.algorithms import trained_sums
from tcircuits.types import Array, Float, Int


def config(modulus: int = 113, n_layers: int = 1, d_mlp: int = 512, d_model: int = 128) -> ModelConfig:
    """Sizes of the literature's model; a second layer is the only departure that is asked for."""
    return ModelConfig(
        *("addition", n_layers, d_model, 4, 4, d_model // 4, d_mlp, modulus + 1, 3),
        norm="none",
        activation="relu",
        gated=False,
        position="learned",
        mlp_bias=True,
        final_norm=False,
        pre_norm=False,
    )


def start(cfg: ModelConfig, seed: int) -> Params:
    """Normal with variance 1 / fan-in; the column of "=" is zero, and stays so: no loss reads it."""
    params = init(cfg, jax.random.key(seed))
    assert params.unembed is not None
    return replace(params, unembed=params.unembed.at[:, -1].set(0.0))


def pairs(modulus: int) -> tuple[np.ndarray, np.ndarray]:
    """The trained and the held-out prompts [a, b, =]: [N, 3] each."""
    trained = trained_sums(modulus)
    found = [np.argwhere(which) for which in (trained, ~trained)]
    train, test = (np.insert(ab, 2, modulus, 1).astype(np.int32) for ab in found)
    return train, test


def _looked_up(cfg: ModelConfig, params: Params, tokens: Int[Array, "N T"]) -> Float[Array, "N D"]:
    """`last_residual` of one layer: scores and values are looked up by position and token.

    All prompts end in the same token, so that they have one query.
    """
    assert params.pos_embed is not None
    assert params.blocks.mlp is not None
    block, length = jax.tree.map(lambda w: w[0], params.blocks), tokens.shape[1]
    p, at = block.attn, jnp.arange(length)
    table = params.embed[None] + params.pos_embed[:length, None]
    end = table[-1, tokens[0, -1]]
    query = jnp.einsum("D,DHK->HK", end, p.w_q) * cfg.query_scale
    scores = jnp.einsum("TVD,DHK,HK->TVH", table, p.w_k, query)
    values = jnp.einsum("TVD,DHK->TVHK", table, p.w_v)
    pattern = jax.nn.softmax(scores[at, tokens], 1)
    z = pattern[:, -1, :, None] * values[-1, tokens[0, -1]]
    for i in range(length - 1):
        z = z + pattern[:, i, :, None] * values[i][tokens[:, i]]
    x = end + jnp.einsum("NHK,HKD->ND", z, p.w_o)
    return x + mlp(cfg, block.mlp, x)


def last_residual(cfg: ModelConfig, params: Params, tokens: Int[Array, "N T"]) -> Float[Array, "N D"]:
    """The residual stream after the last layer at the last position: what `forward` gives, with less work."""
    assert params.pos_embed is not None
    assert params.blocks.mlp is not None
    if cfg.n_layers == 1:
        return _looked_up(cfg, params, tokens)
    length = tokens.shape[1]
    x = params.embed[tokens] + params.pos_embed[:length]
    seen = jnp.tril(jnp.ones((length, length), bool))
    for layer in range(cfg.n_layers):
        block = jax.tree.map(lambda w, i=layer: w[i], params.blocks)
        p = block.attn
        q, k, v = (jnp.einsum("NTD,DHK->NTHK", x, w) for w in (p.w_q, p.w_k, p.w_v))
        if layer == cfg.n_layers - 1:
            q, x, seen = q[:, -1:], x[:, -1:], seen[-1:]
        scores = jnp.where(seen, jnp.einsum("NTHK,NSHK->NHTS", q, k) * cfg.query_scale, -1e30)
        z = jnp.einsum("NHTS,NSHK->NTHK", jax.nn.softmax(scores, -1), v)
        x = x + jnp.einsum("NTHK,HKD->NTD", z, p.w_o)
        x = x + mlp(cfg, block.mlp, x)
    return x[:, 0]


def logits(cfg: ModelConfig, params: Params, tokens: Int[Array, "N T"]) -> Float[Array, "N p"]:
    """At the last position, of all tokens but "="."""
    assert params.unembed is not None
    return last_residual(cfg, params, tokens) @ params.unembed[:, :-1]


def judged(found: Float[Array, "N p"], right: Int[Array, " N"]) -> tuple[Array, Array]:
    """Mean of -log p of the right answers in nats, and how often they are the likeliest."""
    p = jnp.take_along_axis(found, right[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(found, -1) - p).mean(), (found.argmax(-1) == right).mean()


def problem(name: str, cfg: ModelConfig) -> Problem:
    """Addition modulo `cfg.d_vocab - 1`."""
    modulus = cfg.d_vocab - 1
    train, test = (jnp.asarray(x) for x in pairs(modulus))

    def of(params: Params, tokens: Array) -> tuple[Array, Array]:
        return judged(logits(cfg, params, tokens), (tokens[:, 0] + tokens[:, 1]) % modulus)

    def loss(params: Params, batch: Any) -> Array:
        return of(params, train)[0]

    def measure(params: Params) -> dict[str, Array]:
        ours, theirs = of(params, train), of(params, test)
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        return dict(zip(names, (*ours, *theirs), strict=True))

    return Problem(name, cfg, lambda seed: start(cfg, seed), loss, lambda step: (), measure)
