"""Can the model do it at all? A circuit of what a model cannot do explains nothing, or what it does instead."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour, Prompts
from tcircuits.types import Array, InputError

LEAST = 0.8  # share of prompts with the right answer: the seed paper's own gate


@dataclass(frozen=True)
class Capability:
    """Over `n` prompts: how often the likeliest token is right, and how often a right answer beats all wrong ones."""

    n: int
    exact: float
    choice: float


def capability(model: Model, behaviour: Behaviour, split: str = "selection", *, batch: int = 64) -> Capability:
    """What the model does on a split."""
    p = behaviour[split]
    found = np.concatenate([_hits(model, p.part(i, batch)) for i in range(0, p.n, batch)], 1)
    return Capability(p.n, float(found[0].mean()), float(found[1].mean()))


def check_capability(
    model: Model, behaviour: Behaviour, split: str = "selection", *, least: float = LEAST
) -> Capability:
    """The same, raised where the likeliest token is right in less than `least` of the prompts.

    Raises:
        InputError: the model fails.
    """
    found = capability(model, behaviour, split)
    if found.exact < least:
        raise InputError(
            f"the model {model.name!r} cannot do {behaviour.name!r}: its likeliest token is right in "
            f"{100 * found.exact:.0f} % of {found.n} prompts ({100 * found.choice:.0f} % prefer a right to a wrong "
            f"answer); {100 * least:.0f} % are asked for"
        )
    return found


def own_choices(model: Model, behaviour: Behaviour, *, batch: int = 64) -> Behaviour:
    """The behaviour with the model's likeliest token as the right answer [N, 1], whether it is or not.

    Wrong are then the answers that were right; where the model says one of these, those that were wrong. Its circuit is
    one of what the model does where it cannot do the task.
    """
    splits = {}
    for name, p in behaviour.splits.items():
        found = [_chosen(model, p.part(i, batch)) for i in range(0, p.n, batch)]
        choice = np.concatenate(found).astype(np.int32)[:, None]
        apart = (p.right != choice).all(1)
        width = max(p.right.shape[1], p.wrong.shape[1])
        right, wrong = (np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-1) for x in (p.right, p.wrong))
        wrong = np.where(apart[:, None], right, wrong)
        splits[name] = replace(p, right=choice, wrong=wrong[:, (wrong >= 0).any(0)])
    return replace(behaviour, splits=splits, about={**behaviour.about, "answers": "the model's own choices"})


def _chosen(model: Model, p: Prompts) -> np.ndarray:
    return np.asarray(_answered(model, jnp.asarray(p.clean), jnp.asarray(p.valid), jnp.asarray(p.at)).argmax(-1))


def _hits(model: Model, p: Prompts) -> np.ndarray:
    logits = _answered(model, jnp.asarray(p.clean), jnp.asarray(p.valid), jnp.asarray(p.at))
    return np.asarray(_judged(logits, jnp.asarray(p.right), jnp.asarray(p.wrong)))


def _answered(model: Model, tokens: Array, valid: Array, at: Array) -> Array:
    """The logits where the answers are read."""
    cfg = model.cfg

    def run(params: Any, tokens: Array, valid: Array, at: Array) -> Array:
        return forward(cfg, params, tokens, mask=valid).logits[jnp.arange(len(tokens)), at]

    return jax.jit(run)(model.params, tokens, valid, at)


@jax.jit
def _judged(logits: Array, right: Array, wrong: Array) -> Array:
    """[2, N]: the likeliest token is right; the best right answer is above the best wrong one."""
    exact = (logits.argmax(-1)[:, None] == right).any(-1)

    def best(ids: Array) -> Array:
        return jnp.where(ids >= 0, jnp.take_along_axis(logits, jnp.maximum(ids, 0), 1), -jnp.inf).max(-1)

    return jnp.stack([exact, best(right) > best(wrong)]).astype(jnp.float32)
