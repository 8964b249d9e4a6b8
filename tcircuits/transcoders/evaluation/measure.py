"""Sums over a batch of rows: how well dictionaries reconstruct, how sparse they are, and what replacement costs.

One compiled function. Everything is a sum over positions and rows (per row where intervals are wanted), so figures over
any number of batches follow by addition. Position 0 (BOS) is in no sum. Reconstructions are those of the original
model's activations, at positions 1 to T - 1; losses are of the predictions made at positions 1 to T - 2, those
whose next token the row holds.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import MlpHook, forward_one
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.replacement import Original, features, push, replaced_logits, written
from tcircuits.types import Array, Float, Int

FIRST = 1  # position 0 is in no figure


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerSums:
    """Sums over positions by slot (S): y is the target, yh its reconstruction, m a given point near the mean of y.

    `fired` counts positions at which a feature is not zero, `active` those features; `total` sums its values.
    """

    error: Float[Array, " S"]  # |y - yh|^2
    spread: Float[Array, " S"]  # |y - m|^2
    drift: Float[Array, "S D"]  # y - m
    guess_spread: Float[Array, " S"]  # |yh - m|^2
    guess_drift: Float[Array, "S D"]  # yh - m
    guess_square: Float[Array, " S"]  # |yh|^2
    product: Float[Array, " S"]  # yh . y
    ratio: Float[Array, " S"]  # |yh| / |y|
    active: Float[Array, " S"]
    fired: Float[Array, "S F"]
    total: Float[Array, "S F"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSums:
    """Sums over a row's predictions: cross-entropy in nats, KL(original || replaced), and equal top tokens."""

    original: Float[Array, " B"]
    ce: Float[Array, "E B"]
    kl: Float[Array, "E B"]
    agree: Float[Array, "E B"]


def _run(cfg: ModelConfig, params: Params, c: TranscoderConfig, tokens: Int[Array, " T"]) -> tuple[Array, ...]:
    """Logits, streams before each layer, and what dictionaries read and write, by layer of the model."""
    if c.kind == "sae":
        out, _, _ = forward_one(cfg, params, tokens, sites=tuple({"resid_pre", c.reads}))
        return out.logits, out.acts["resid_pre"], out.acts[c.reads], out.acts[c.reads]

    def record(layer: Array, state: None, reads: dict[str, Array], real: Array) -> tuple[Array, None, Any]:
        return real, state, (reads[c.reads], real)

    hook = MlpHook(c.writes, None, record)
    out, _, (read, real) = forward_one(cfg, params, tokens, sites=("resid_pre",), hook=hook)
    return out.logits, out.acts["resid_pre"], read, real


def _weights(tokens: Int[Array, "B T"], weight: Float[Array, " B"]) -> Float[Array, "B T"]:
    return weight[:, None] * (jnp.arange(tokens.shape[1]) >= FIRST)


@partial(jax.jit, static_argnames=("cfg", "precision"))
def site_sums(
    cfg: ModelConfig, params: Params, d: Transcoders, tokens: Int[Array, "B T"], weight: Float[Array, " B"],
    precision: str = "highest",
) -> Float[Array, "S D"]:  # fmt: skip
    """The sum of what each dictionary should write, over rows with `weight` 1 and positions from 1 on."""
    with jax.default_matmul_precision(precision):
        real = jax.vmap(lambda row: _run(cfg, params, d.cfg, row)[3])(tokens)
        real = wide(real[:, jnp.asarray(d.cfg.layers)])
        return jnp.einsum("BT,BLTD->LD", _weights(tokens, weight), real, precision="highest")


@partial(jax.jit, static_argnames=("cfg", "precision"))
def measure(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    tokens: Int[Array, "B T"],
    weight: Float[Array, " B"],
    mean: Float[Array, "S D"],
    by: Int[Array, "E L"],
    start: Any,
    precision: str = "highest",
) -> tuple[LayerSums, Float[Array, "S F"], RowSums]:
    """All sums of a batch, and each feature's largest value; the original runs once, conditions one after another.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        d: a set of dictionaries on it (or `neurons`).
        tokens: rows, each beginning with BOS.
        weight: 1 for rows that count, 0 for those that only fill the batch.
        mean: of what each dictionary should write: the point that variances are taken about, and the mean ablation.
        by: conditions (`replacement.condition_matrix`).
        start: first position that is replaced.
        precision: of matrix products (static).
    """
    layers = jnp.asarray(d.cfg.layers)
    by_layer = jnp.zeros((cfg.n_layers, cfg.d_model), mean.dtype).at[layers].set(mean)
    with jax.default_matmul_precision(precision):
        logits, stream, read, real = jax.vmap(lambda row: _run(cfg, params, d.cfg, row))(tokens)
        sums, largest = _layers(cfg, params, d, read[:, layers], real[:, layers], _weights(tokens, weight), mean)
        log_p, answers = _predictions(logits), tokens[:, FIRST + 1 :]

        def one(condition: Array) -> tuple[Array, ...]:
            def row(stream: Array, read: Array) -> Array:
                return replaced_logits(cfg, params, d, Original(stream, read), condition, by_layer, start)

            return _compare(log_p, _predictions(jax.vmap(row)(stream, read)), answers)

        ce, kl, agree = jax.lax.map(one, by)
    return sums, largest, RowSums(_cross_entropy(log_p, answers), ce, kl, agree)


def _predictions(logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
    """Log probabilities at the positions whose predictions count."""
    return jax.nn.log_softmax(wide(logits[:, FIRST:-1]), -1)


def _cross_entropy(log_p: Float[Array, "B T V"], answers: Int[Array, "B T"]) -> Float[Array, " B"]:
    return -jnp.take_along_axis(log_p, answers[..., None], -1)[..., 0].sum(-1)


def _compare(log_p: Float[Array, "B T V"], log_q: Float[Array, "B T V"], answers: Int[Array, "B T"]) -> Any:
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), (-2, -1))
    agree = jnp.sum(log_p.argmax(-1) == log_q.argmax(-1), -1)
    return _cross_entropy(log_q, answers), kl, agree.astype(kl.dtype)


def _layers(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    read: Float[Array, "B S T D"],
    real: Float[Array, "B S T D"],
    weight: Float[Array, "B T"],
    mean: Float[Array, "S D"],
) -> tuple[LayerSums, Float[Array, "S F"]]:
    """The sums of every slot, one slot after another (features of one layer are held at a time), and largest values."""
    n = len(d.cfg.layers)
    read, real = jnp.moveaxis(read, 1, 0), wide(jnp.moveaxis(real, 1, 0))
    start = jnp.zeros_like(wide(read)) if d.cfg.kind == "clt" else ()

    def step(carried: Any, item: Any) -> tuple[Any, tuple[LayerSums, Array]]:
        slot, layer, x, y, m = item
        f = features(cfg, params, d, layer, slot, x)
        carried = push(d, slot, f, carried) if d.cfg.kind == "clt" else carried
        guess = wide(written(params, d, layer, slot, f, x, carried))
        largest = jnp.max(jnp.where(weight[..., None] > 0, f, -jnp.inf), (0, 1))
        return carried, (_sums(wide(f), y, guess, weight, m), largest)

    return jax.lax.scan(step, start, (jnp.arange(n), jnp.asarray(d.cfg.layers), read, real, mean))[1]


def _sums(f: Float[Array, "B T F"], y: Array, guess: Array, w: Float[Array, "B T"], m: Float[Array, " D"]) -> LayerSums:
    def summed(x: Float[Array, "B T *X"]) -> Array:
        return jnp.einsum("BT,BT...->...", w, x, precision="highest")

    def square(x: Array) -> Array:
        return summed(jnp.sum(x * x, -1))

    on = (f != 0).astype(f.dtype)
    length = jnp.linalg.norm(y, axis=-1)
    ratio = jnp.linalg.norm(guess, axis=-1) / jnp.where(length > 0, length, 1.0)
    return LayerSums(
        error=square(y - guess),
        spread=square(y - m),
        drift=summed(y - m),
        guess_spread=square(guess - m),
        guess_drift=summed(guess - m),
        guess_square=square(guess),
        product=summed(jnp.sum(y * guess, -1)),
        ratio=summed(ratio),
        active=summed(on.sum(-1)),
        fired=summed(on),
        total=summed(f),
    )
