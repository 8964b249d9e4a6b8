"""Train a small transformer on a problem until it generalises; killed at any moment, the same call goes on.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with the settings of Nanda et al. 2023 (arXiv 2301.05217): learning
rate 1e-3 after ten steps of warm-up, weight decay 1 on every array, betas .9 and .98. A hundred steps are one
compiled scan.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits import checkpoint
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.types import Array, Int

FORMAT, VERSION = "tcircuits.algorithm", 1
CHUNK = 100  # steps of one compiled call; after each the model is measured


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, and when that ends: `after` steps behind the first at which `enough` is reached."""

    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    warmup: int = 10
    seed: int = 0
    enough: float = 0.99
    after: int = 1000
    most: int = 20_000
    keep_every: int = 500


@dataclass(frozen=True)
class Problem:
    """What is learned.

    Attributes:
        name: of the model.
        cfg: its sizes.
        start: initial parameters by seed.
        loss: of parameters and a batch.
        batches: the batches of `CHUNK` steps from a step on, stacked; () where each step takes the whole table.
        measure: `train_loss`, `train_accuracy`, `test_loss`, `test_accuracy` of parameters.
    """

    name: str
    cfg: ModelConfig
    start: Callable[[int], Params]
    loss: Callable[[Params, Any], Array]
    batches: Callable[[int], Any]
    measure: Callable[[Params], dict[str, Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, the optimizer's state, and how many steps are done."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW whose first steps are short."""
    rate = optax.linear_schedule(recipe.learning_rate / recipe.warmup, recipe.learning_rate, recipe.warmup)
    return optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=recipe.weight_decay)


def begin(problem: Problem, recipe: Recipe) -> State:
    """The state before the first step."""
    tree: Any = problem.start(recipe.seed)
    return State(tree, optimizer(recipe).init(tree), jnp.int32(0))


def advance(problem: Problem, recipe: Recipe) -> Callable[[State, Any], State]:
    """`CHUNK` steps as one program."""
    opt = optimizer(recipe)

    def one(state: State, batch: Any) -> tuple[State, None]:
        gradient = jax.grad(problem.loss)(state.params, batch)
        old: Any = state.params
        updates, inner = opt.update(gradient, state.optimizer, old)
        new: Any = optax.apply_updates(old, updates)
        return State(new, inner, state.step + 1), None

    return jax.jit(lambda state, batches: jax.lax.scan(one, state, batches, CHUNK)[0], donate_argnums=0)


def snapshots(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if checkpoint.is_checkpoint(path))


def load(path: Path, problem: Problem, recipe: Recipe) -> State:
    """A checkpoint."""
    return checkpoint.load(path, jax.eval_shape(lambda: begin(problem, recipe)))


def done(lines: list[dict[str, float]], recipe: Recipe) -> bool:
    """Whether a log ends a run."""
    first = next((row["step"] for row in lines if row["test_accuracy"] >= recipe.enough), None)
    last = lines[-1]["step"] if lines else 0
    return last >= recipe.most or (first is not None and last >= first + recipe.after)


def read_log(folder: Path) -> list[dict[str, float]]:
    """What was measured so far."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_log(folder: Path, lines: list[dict[str, float]]) -> None:
    draft = folder / "log.partial"
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draft.replace(folder / "log.jsonl")


def _keep(folder: Path, recipe: Recipe, state: State, lines: list[dict[str, float]]) -> None:
    about = {"recipe": json.dumps(asdict(recipe))}
    checkpoint.save(folder / f"step_{int(state.step):07d}", state, format_name=FORMAT, version=VERSION, about=about)
    _write_log(folder, lines)


def train(problem: Problem, recipe: Recipe, folder: Path) -> tuple[Params, list[dict[str, float]]]:
    """Train to the end from whatever `folder` holds; also the log, one row for each `CHUNK` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    found = snapshots(folder)
    state = load(found[-1], problem, recipe) if found else begin(problem, recipe)
    lines = [row for row in read_log(folder) if row["step"] <= int(state.step)]
    step, measure = advance(problem, recipe), jax.jit(problem.measure)
    while not done(lines, recipe):
        clock = time.perf_counter()
        state = jax.block_until_ready(step(state, problem.batches(int(state.step))))
        row = {"step": int(state.step)} | {k: float(v) for k, v in measure(state.params).items()}
        before = lines[-1]["seconds"] if lines else 0.0
        lines.append(row | {"seconds": before + time.perf_counter() - clock})
        if not np.isfinite(row["train_loss"]):
            raise FloatingPointError(f"{problem.name}: the loss is {row['train_loss']} at step {row['step']}")
        print(problem.name, " ".join(f"{k} {v:.4g}" for k, v in lines[-1].items()), flush=True)
        if row["step"] % recipe.keep_every == 0 or done(lines, recipe):
            _keep(folder, recipe, state, lines)
    return state.params, lines
