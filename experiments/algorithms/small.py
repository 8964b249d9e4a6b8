"""Parity and sorting as problems: random batches of what is not held out, and all answers of a text trained on.

A text is a prompt of `tasks.algorithms` with its answers behind it, padded on the left.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.algorithms.training import CHUNK, Problem
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.params import Params, init
from tcircuits.tasks.algorithms import BELOW, BITS, NUMBERS, bit_strings, trained_set
from tcircuits.types import Array, Bool, Int

ROWS = 256  # texts of a batch
HELD_OUT = 2048  # sets of numbers that are measured


def config(family: str, n_layers: int, d_vocab: int, n_ctx: int, d_model: int = 64, d_mlp: int = 256) -> ModelConfig:
    """A small transformer of the literature's kind: no norms, ReLU, learned positions."""
    return ModelConfig(
        *(family, n_layers, d_model, 4, 4, d_model // 4, d_mlp, d_vocab, n_ctx),
        norm="none",
        activation="relu",
        gated=False,
        position="learned",
        mlp_bias=True,
        final_norm=False,
        pre_norm=False,
    )


def bit_rows(strings: Sequence[str]) -> Int[np.ndarray, "N 12"]:
    """`1 0 1 1 = 1` as tokens, padded on the left with -1; 2 stands for "="."""
    rows = np.full((len(strings), BITS[1] + 2), -1, np.int32)
    for row, bits in zip(rows, strings, strict=True):
        text = [*map(int, bits), 2, bits.count("1") % 2]
        row[-len(text) :] = text
    return rows


def number_rows(numbers: Int[np.ndarray, "N 5"]) -> Int[np.ndarray, "N 11"]:
    """`17 3 29 5 11 = 3 5 11 17 29` as tokens; 30 stands for "="."""
    middle = np.full((len(numbers), 1), BELOW)
    return np.concatenate([numbers, middle, np.sort(numbers, 1)], 1).astype(np.int32)


def draw_numbers(rng: np.random.Generator, n: int, trained: bool) -> Int[np.ndarray, "N 5"]:
    """Different numbers in random order, of sets that are trained on or are not."""
    found: list[np.ndarray] = []
    while len(found) < n:
        drawn = rng.permuted(np.tile(np.arange(BELOW), (n, 1)), axis=1)[:, :NUMBERS]
        found += [row for row in drawn if _trained(tuple(sorted(row.tolist()))) == trained]
    return np.stack(found[:n])


@cache
def _trained(numbers: tuple[int, ...]) -> bool:
    return trained_set(numbers)


def judged(cfg: ModelConfig, params: Params, rows: Int[Array, "N T"], answers: int) -> tuple[Array, Bool[Array, "N A"]]:
    """-log p of the last `answers` tokens in nats (mean), and which of them are the likeliest."""
    given, wanted = rows[:, :-1], rows[:, -answers:]
    logits = forward(cfg, params, jnp.maximum(given, 0), mask=given >= 0).logits[:, -answers:, :-1]  # "=" is no answer
    p = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - p).mean(), logits.argmax(-1) == wanted


def _problem(
    name: str, cfg: ModelConfig, answers: int, train: np.ndarray, test: np.ndarray, batches: Callable[[int], Any]
) -> Problem:
    def loss(params: Params, batch: Any) -> Array:
        return judged(cfg, params, batch, answers)[0]

    def measure(params: Params) -> dict[str, Array]:
        found = {}
        for split, rows in (("train", train), ("test", test)):
            value, right = judged(cfg, params, jnp.asarray(rows), answers)
            found |= {f"{split}_loss": value, f"{split}_accuracy": right.all(1).mean()}
        return found

    return Problem(name, cfg, lambda seed: init(cfg, jax.random.key(seed)), loss, batches, measure)


def parity(n_layers: int = 1) -> Problem:
    """Parity of 4 to 10 bits."""
    train, test = (bit_rows(bit_strings(held_out)) for held_out in (False, True))

    def batches(step: int) -> Array:
        return jnp.asarray(train[np.random.default_rng([0, step]).integers(len(train), size=(CHUNK, ROWS))])

    return _problem("parity", config("parity", n_layers, 3, BITS[1] + 1), 1, train, test, batches)


def sorting(n_layers: int = 2) -> Problem:
    """Five different numbers below 30 in order; a text counts as right when all five answers are."""
    train, test = (
        number_rows(draw_numbers(np.random.default_rng(seed), HELD_OUT, trained=seed == 1)) for seed in (1, 2)
    )

    def batches(step: int) -> Array:
        rows = number_rows(draw_numbers(np.random.default_rng([0, step]), CHUNK * ROWS, trained=True))
        return jnp.asarray(rows.reshape(CHUNK, ROWS, -1))

    return _problem("sorting", config("sorting", n_layers, BELOW + 1, 2 * NUMBERS), NUMBERS, train, test, batches)
