"""Interchange interventions: a circuit's units take the values of another prompt, and the answer should follow.

With prompt a, counterfactual b and a circuit C, the model runs on a while every unit of C has its value on b. Where C
carries a variable of a causal model, the output is what that causal model gives for the mixture (Geiger et al. 2021,
arXiv 2106.02997); where C is the whole computation, it is the answer to b. This tests a circuit by what it makes the
model do, not by what is lost without it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits import metrics
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.running import parts, run_circuits
from tcircuits.circuits.units import Units
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.intervals import Interval
from tcircuits.types import Bool, Float, InputError, Int


@dataclass(frozen=True)
class Interchange:
    """How often the answer follows the units.

    Attributes:
        accuracy: share of prompts whose likeliest token is what is expected of the mixture.
        kept: share whose likeliest token is still the model's own on the unchanged prompt.
        random: accuracies of random circuits with as many units in every kind and layer.
        p: how often those reach the accuracy (`metrics.share_above`).
        prompts: those that count: what is expected differs from the model's own choice.
    """

    accuracy: Interval
    kept: float
    random: Float[np.ndarray, " n"]
    p: float
    prompts: int


def interchange(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    mask: Bool[np.ndarray, " U"],
    *,
    expected: Int[np.ndarray, "N A"] | None = None,
    dictionary: Transcoders | None = None,
    errors: Errors = "keep",
    split: str = "report",
    random: int = 100,
    batch: int = 16,
    at_once: int = 16,
    seed: int = 0,
) -> Interchange:
    """Give a circuit's units their values on the counterfactuals.

    Args:
        model: from `load_model`.
        behaviour: prompts and counterfactuals of a split.
        units: what the mask counts.
        mask: the circuit.
        expected: token ids [N, A] of which any is right for the mixture, -1 fills up: what a causal model predicts.
            None expects the model's own choice on the counterfactual.
        dictionary: whose features are units.
        errors: as in `run_circuits`.
        split: of the behaviour.
        random: random circuits of the same profile.
        batch: prompts that run together.
        at_once: circuits that run together.
        seed: of the random circuits.

    Raises:
        InputError: an empty circuit, expectations of another size or outside the vocabulary, expectations that are what
            the model says anyway, what `run_circuits` refuses.
    """
    mask, n = np.asarray(mask, bool), behaviour[split].n
    if mask.shape != (units.n,) or not mask.any():
        raise InputError(
            f"the circuit has shape {mask.shape} with {int(mask.sum())} units; give {units.n}, some of them"
        )
    if random < 1:
        raise InputError(f"random={random}: give at least 1 random circuit")
    if expected is None:
        expected = choices(model, behaviour, split=split, batch=batch)[:, None]
    expected = np.asarray(expected)
    if expected.ndim != 2 or len(expected) != n or expected.max() >= model.cfg.d_vocab or (expected < 0).all(1).any():
        raise InputError(f"expected answers have shape {expected.shape}; give ids [{n}, answers], one or more a prompt")
    moved = np.concatenate([mask[None], metrics.matched(mask, units.groups(), random, seed)])
    how: Any = {"dictionary": dictionary, "errors": errors, "split": split, "batch": batch, "at_once": at_once}
    runs = run_circuits(model, behaviour, ~moved, units, **how)
    own = runs.model.choice
    counted = (expected != own[:, None]).all(1)
    if not counted.any():
        raise InputError("on every prompt the model says what is expected of the mixture anyway: nothing can be told")
    follows = (runs.circuits.choice[..., None] == expected[None]).any(-1)[:, counted]
    kept = (runs.circuits.choice[0] == own)[counted].mean()
    chance = follows[1:].mean(1)
    accuracy = metrics.bootstrap(lambda x: x, follows[0])
    return Interchange(accuracy, float(kept), chance, metrics.share_above(accuracy.value, chance), int(counted.sum()))


def choices(model: Model, behaviour: Behaviour, *, split: str = "report", batch: int = 16) -> Int[np.ndarray, " N"]:
    """The model's likeliest next token on each counterfactual of a split."""
    found = [host(_choices(model.cfg, model.params, part)) for part in parts(model, behaviour[split], batch)]
    return np.concatenate(found)[: behaviour[split].n]


@partial(jax.jit, static_argnames="cfg")
def _choices(cfg: ModelConfig, params: Params, prompts: dict[str, Any]) -> Int[Any, " N"]:
    logits = forward(cfg, params, prompts["other"], mask=prompts["valid"]).logits
    ends = jnp.take_along_axis(logits, prompts["at"][:, None, None], 1)[:, 0]
    return jnp.argmax(ends, -1).astype(jnp.int32)
