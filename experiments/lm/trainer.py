"""Next-token training of a small model: one pure step, and a loop that can be killed at any moment.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with clipped gradients; decay on matrices only; float32. The
learning rate warms up, stays, and over the last 20 % of the steps falls along a cosine to a fiftieth: until then
runs of any length are the same run, so that the length may still be changed. The batch is a function of the step:
a checkpoint needs the state alone, and a resumed run is bit for bit the uninterrupted one.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits import checkpoint
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.params import Params, init
from tcircuits.types import Array, Float, InputError, Int

FORMAT, VERSION = "tcircuits.small_lm", 1


@jax.tree_util.register_static
@dataclass(frozen=True)
class Recipe:
    """How a model is trained; what a checkpoint must agree with to be resumed."""

    steps: int = 3800
    rows: int = 16
    context: int = 128
    seed: int = 0
    learning_rate: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.1
    beta2: float = 0.98
    clip: float = 1.0
    decay: float = 0.2

    @property
    def decay_from(self) -> int:
        """The step at which the learning rate begins to fall."""
        return self.steps - int(self.decay * self.steps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, the optimizer's state, and how many steps are done."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clipping, then AdamW on the schedule; decay leaves out gains and biases."""
    peak, first = recipe.learning_rate, recipe.decay_from
    up, down = (
        optax.linear_schedule(0.0, peak, recipe.warmup),
        optax.cosine_decay_schedule(peak, recipe.steps - first, 0.02),
    )
    rate = optax.join_schedules([up, down], [first])

    def matrices(params: Params) -> Any:
        return jax.tree.map(lambda x: x.size > 4096, params)

    adam = optax.adamw(rate, b1=0.9, b2=recipe.beta2, weight_decay=recipe.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(recipe.clip), adam)


def start(cfg: ModelConfig, recipe: Recipe) -> State:
    """Random parameters; what writes to the residual stream is scaled by 1 / sqrt(2 L) (GPT-2), embeddings to 0.05."""
    params = init(cfg, jax.random.key(recipe.seed))
    blocks, scale = params.blocks, 1 / np.sqrt(2 * cfg.n_layers)
    assert blocks.mlp is not None
    attn = replace(blocks.attn, w_o=blocks.attn.w_o * scale)
    mlp = replace(blocks.mlp, w_out=blocks.mlp.w_out * scale)
    small = 0.05 * np.sqrt(cfg.d_model)
    positions = None if params.pos_embed is None else params.pos_embed * small / 2
    params = replace(
        params, embed=params.embed * small, pos_embed=positions, blocks=replace(blocks, attn=attn, mlp=mlp)
    )
    tree: Any = params  # a pytree, which optax's signatures do not know
    return State(params, optimizer(recipe).init(tree), jnp.int32(0))


def token_losses(cfg: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """-log p of each next token, in nats: [B, T - 1]."""
    logits, wanted = forward(cfg, params, tokens[:, :-1]).logits, tokens[:, 1:]
    right = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - right


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(cfg: ModelConfig, recipe: Recipe, state: State, tokens: Int[Array, "B T"]) -> tuple[State, Array]:
    """One step; also the loss before it."""

    def loss(params: Params) -> Array:
        return token_losses(cfg, params, tokens).mean()

    value, gradient = jax.value_and_grad(loss)(state.params)
    old: Any = state.params
    updates, opt = optimizer(recipe).update(gradient, state.optimizer, old)
    new: Any = optax.apply_updates(old, updates)
    return State(new, opt, state.step + 1), value


def _saved(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if checkpoint.is_checkpoint(path))


def keep(folder: Path, cfg: ModelConfig, recipe: Recipe, state: State, last: int = 2) -> None:
    """Write a checkpoint and drop all but the last ones."""
    path = folder / f"step_{int(state.step):07d}"
    if path.exists():  # what is left of a write that was cut off, or this very state
        shutil.rmtree(path)
    about = {"recipe": json.dumps(asdict(recipe)), "family": cfg.family}
    checkpoint.save(path, state, format_name=FORMAT, version=VERSION, about=about)
    for old in _saved(folder)[:-last]:
        shutil.rmtree(old)


def resume(folder: Path, cfg: ModelConfig, recipe: Recipe) -> State:
    """The newest state in `folder`, or a new one.

    Raises:
        InputError: the checkpoint is of another recipe or family (the differences are listed).
    """
    found = _saved(folder)
    if not found:
        return start(cfg, recipe)
    about = checkpoint.metadata(found[-1], format_name=FORMAT, version=VERSION)
    before = Recipe(**json.loads(about["recipe"]))
    had, wanted = asdict(before) | {"family": about["family"]}, asdict(recipe) | {"family": cfg.family}
    if int(found[-1].name.split("_")[1]) <= min(before.decay_from, recipe.decay_from):
        had |= {k: wanted[k] for k in ("steps", "decay")}  # up to here runs of both lengths are the same
    wrong = [f"{k} was {had[k]!r}, now {wanted[k]!r}" for k in wanted if had[k] != wanted[k]]
    if wrong:
        raise InputError(f"{folder} holds another run ({'; '.join(wrong)}): remove it, or give another folder")
    return checkpoint.load(found[-1], jax.eval_shape(lambda: start(cfg, recipe)))


def train(
    cfg: ModelConfig,
    recipe: Recipe,
    batch: Callable[[int], np.ndarray],
    folder: Path,
    *,
    save_every: int = 100,
    log_every: int = 50,
) -> tuple[Params, list[dict[str, float]]]:
    """Train to the end from whatever `folder` holds; also the log (step, loss, tokens/s, seconds in all).

    Raises:
        InputError: `folder` holds another run.
        FloatingPointError: a loss that is not finite; the last checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = resume(folder, cfg, recipe), folder / "log.jsonl"
    first = int(state.step)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if line["step"] <= first]
    losses, clock = [], time.perf_counter()
    for step in range(first, recipe.steps):
        state, loss = train_step(cfg, recipe, state, jnp.asarray(batch(step)))
        losses.append(loss)
        if (step + 1) % log_every and step + 1 != recipe.steps:
            continue
        mean, seconds = float(jnp.stack(losses).mean()), time.perf_counter() - clock
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} within the {len(losses)} steps before step {step + 1}")
        speed, before = len(losses) * recipe.rows * recipe.context / seconds, lines[-1]["seconds"] if lines else 0.0
        lines.append({"step": step + 1, "loss": mean, "tokens_per_s": speed, "seconds": before + seconds})
        print(f"step {step + 1:6d}  loss {mean:.4f}  {speed:7.0f} tokens/s", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            keep(folder, cfg, recipe, state)
            _write_log(log, lines)
        losses, clock = [], time.perf_counter()
    return state.params, lines


def _write_log(path: Path, lines: list[dict[str, float]]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)
