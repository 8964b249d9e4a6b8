"""Transcoders of the models that compute a known function, trained by the package's trainer, and what they are worth.

Rows are prompts with their answers behind them, of what the model was trained on, in an order that their number alone
decides; figures are of what it was not trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.algorithms.addition import pairs
from experiments.algorithms.small import bit_rows, draw_numbers, number_rows
from tcircuits.tasks.algorithms import bit_strings
from tcircuits.transcoders.evaluation.replacement import DICTIONARY, Original, replaced_logits
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.presets import dictionary, make
from tcircuits.transcoders.training.run import train
from tcircuits.types import Array, Int

Kind = Literal["transcoder", "clt"]


@dataclass(frozen=True)
class Rows:
    """Endless rows of a task: `pool` over and over, each time in another order."""

    task: str
    pool: Int[np.ndarray, "N T"]
    seed: int = 0

    def rows(self, first: int, n: int) -> Int[np.ndarray, "n T"]:
        """Rows first .. first + n - 1."""
        size = len(self.pool)
        rounds = range(first // size, -(-(first + n) // size))
        order = np.concatenate([np.random.default_rng([self.seed, r]).permutation(size) for r in rounds])
        skip = first - rounds[0] * size
        return self.pool[order[skip : skip + n]]

    def describe(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {"task": self.task, "rows": len(self.pool), "context": self.pool.shape[1], "seed": self.seed}


def addition_rows(modulus: int, held_out: bool) -> Int[np.ndarray, "N 3"]:
    """Prompts [a, b, =]."""
    return pairs(modulus)[int(held_out)]


def parity_rows(held_out: bool) -> Int[np.ndarray, "N 11"]:
    """Bit strings of every length, each with what comes behind it: "=", the answer, and bits at random."""
    rows = bit_rows(bit_strings(held_out))[:, :-1]
    rng = np.random.default_rng(0)
    found = np.asarray(rng.integers(0, 2, rows.shape), np.int32)
    for row, text in zip(found, rows, strict=True):
        own = text[text >= 0]
        row[: len(own)] = own
    return found


def sorting_rows(held_out: bool, n: int = 4096) -> Int[np.ndarray, "N 10"]:
    """Numbers, "=", and all but the last of them in order."""
    return number_rows(draw_numbers(np.random.default_rng(3 + held_out), n, trained=not held_out))[:, :-1]


def trained(
    model: tc.Model, rows: Rows, kind: Kind, run: Path, *, features: int, k: int, tokens: int, batch: int = 1024
) -> tc.Transcoders:
    """A set, trained now or by an earlier run (remove `run` to train anew)."""
    if (run / "transcoders").is_dir():
        return tc.load_transcoders(run / "transcoders", model=model)
    d = dictionary(model.cfg, kind=kind, features=features, activation="batchtopk", k=k)
    recipe = make(d, tokens=tokens, batch=batch, k=k, objective={"dead_after": 32_768})
    context = rows.pool.shape[1]
    done = train(model, recipe, rows, run, fill=Fill(context, 256, 16))
    if done.transcoders is None:
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    return done.transcoders


@partial(jax.jit, static_argnums=0)
def _replaced(cfg: Any, params: Any, d: tc.Transcoders, tokens: Int[Array, "N T"]) -> Array:
    """Logits [N, T, V] with every MLP replaced, from position 1 on."""
    by = jnp.full(cfg.n_layers, DICTIONARY)
    mean = jnp.zeros((cfg.n_layers, cfg.d_model))
    found = tc.forward(cfg, params, tokens, sites=("resid_pre", "mlp_in")).acts

    def one(stream: Array, read: Array) -> Array:
        return replaced_logits(cfg, params, d, Original(stream, read), by, mean, 1)

    return jax.vmap(one)(*(jnp.moveaxis(found[name], 1, 0) for name in ("resid_pre", "mlp_in")))


def worth(
    model: tc.Model, d: tc.Transcoders, rows: Int[np.ndarray, "N T"], answers: Int[np.ndarray, "N T"]
) -> dict[str, Any]:
    """Unexplained variance, L0, dead features; accuracy where there is an answer (-1: none), original and replaced."""
    e = evaluate(model, d, rows, batch=64)
    asked, found = answers >= 0, {}
    for name in ("original", "replaced"):
        right = []
        for start in range(0, len(rows), 512):
            tokens = jnp.asarray(rows[start : start + 512])
            whole = tc.forward(model.cfg, model.params, tokens).logits
            logits = whole if name == "original" else _replaced(model.cfg, model.params, d, tokens)
            right.append(np.asarray(logits.argmax(-1)) == answers[start : start + 512])
        found[f"accuracy_{name}"] = float(np.concatenate(right)[asked].mean())
    return found | {
        "features": d.cfg.d_feature,
        "fvu": np.asarray(e.fvu),
        "l0": np.asarray(e.l0),
        "dead": np.asarray(e.dead),
        "kl_all_replaced": e.replaced[-1].kl["dictionary"],
        "positions": e.n_positions,
    }


def answers_of(task: str, rows: Int[np.ndarray, "N T"], modulus: int = 113) -> Int[np.ndarray, "N T"]:
    """The right token behind each position, -1 where chance decides."""
    found = np.full(rows.shape, -1, np.int32)
    if task == "addition":
        found[:, -1] = (rows[:, 0] + rows[:, 1]) % modulus
    elif task == "parity":
        at = (rows == 2).argmax(1)
        ones = [int(row[:end].sum()) for row, end in zip(rows, at, strict=True)]
        found[np.arange(len(rows)), at] = np.asarray(ones) % 2
    else:
        found[:, 5:] = np.sort(rows[:, :5], 1)
    return found


def rows_of(task: str, held_out: bool, modulus: int = 113) -> Int[np.ndarray, "N T"]:
    """Rows of what the model was trained on, or of what it was not."""
    if task == "addition":
        return addition_rows(modulus, held_out)
    return parity_rows(held_out) if task == "parity" else sorting_rows(held_out)
