"""Backward elimination: the smallest circuit that single removals lead to, by exact runs and with few of them.

    worst(C) = max over prompts of KL(model || circuit C)            or the mean over prompts
    from all units, take out whatever leaves worst(C) within the tolerance, until no unit is left that could go

Units are tried in groups, from the logits down as in ACDC or in the order of given scores: a group that can go goes;
of one that cannot, the halves are tried. A circuit of K of U units takes about 2 K log2(U / K) runs, ACDC takes U.
Rounds repeat until no single unit of the circuit could go (it is minimal in that sense): of units that stand in for
each other one stays. Against ACDC (`tcircuits.circuits.acdc`): what is bounded is the whole divergence, not each edge's
share, so that many small steps cannot add up; and that of the worst prompt, so that what matters to few prompts stays.
"""

import time
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.running import Ablation, Setting, Worth, both, check, judged, masked, mean_values, parts
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour, told
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Bool, Float, InputError, Int

Over = Literal["worst", "mean"]


def eliminate(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    *,
    tolerance: float = 0.01,
    over: Over = "worst",
    scores: Float[np.ndarray, " U"] | None = None,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
) -> Circuit:
    """The circuit that is left; the score of a unit is what the circuit without it costs in nats, 0 outside.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        units: what a circuit may consist of.
        tolerance: the largest divergence from the model, in nats.
        over: of the worst prompt, or on average.
        scores: units are tried in their rising order; None starts at the logits.
        dictionary: as in `run_circuits`.
        ablation: as there.
        errors: as there.
        split: of the behaviour.

    Raises:
        InputError: a tolerance that is not positive, scores of other units, and what `run_circuits` refuses; an empty
            circuit is returned.
    """
    if not tolerance > 0:
        raise InputError(f"tolerance={tolerance}: give a positive number of nats")
    if over not in get_args(Over):
        raise InputError(f"over={over!r}; there are {', '.join(get_args(Over))}")
    if scores is not None and (np.shape(scores) != (units.n,) or not np.isfinite(scores).all()):
        raise InputError(f"scores of shape {np.shape(scores)}: give {units.n} finite numbers, one a unit")
    s, start = check(model, behaviour, units, dictionary, ablation, errors, split), time.perf_counter()
    n = behaviour[split].n
    (prompts,) = parts(model, behaviour[split], n)
    mean = mean_values(model, behaviour, s, dictionary, min(n, 16)) if ablation == "mean" else None
    runs = _prepare(s, model.params, dictionary, mean, prompts)
    real = jnp.arange(prompts["clean"].shape[0]) < n
    search = _Search(partial(_divergence, s, over, model.params, dictionary, prompts, runs, real), units.n, tolerance)
    mask = search.eliminate(_downward(units) if scores is None else np.argsort(scores, kind="stable"))
    costs = np.zeros(units.n)
    costs[mask] = [search.cost(mask & (np.arange(units.n) != u)) for u in np.flatnonzero(mask)]
    about: dict[str, Any] = {"method": "elimination", "tolerance": tolerance, "over": over, "ablation": ablation}
    about |= {"errors": errors, "split": split, "behaviour": told(behaviour)}
    about["cost"] = {"forwards": n * (search.runs + 2), "backwards": 0, "seconds": time.perf_counter() - start}
    return Circuit(units, mask, costs, model.name, about)


class _Search:
    """Removals from a circuit, and how many circuits were run."""

    def __init__(self, divergence: Any, n: int, tolerance: float) -> None:
        self.divergence, self.n, self.tolerance, self.runs = divergence, n, tolerance, 0

    def cost(self, mask: Bool[np.ndarray, " U"]) -> float:
        """How far a circuit is from the model."""
        self.runs += 1
        return float(max(self.divergence(mask.astype(np.float32)), 0))

    def eliminate(self, order: Int[np.ndarray, " U"]) -> Bool[np.ndarray, " U"]:
        """The circuit that is left when everything that can go has gone."""
        mask = np.ones(self.n, bool)
        while True:
            before = mask.sum()
            mask = self._without(mask, order[mask[order]])
            if mask.sum() in (before, 0):
                return mask

    def _without(self, mask: Bool[np.ndarray, " U"], group: Int[np.ndarray, " K"]) -> Bool[np.ndarray, " U"]:
        """A circuit without a group, or without as much of it as can go."""
        if not len(group):
            return mask
        tried = mask.copy()
        tried[group] = False
        if self.cost(tried) <= self.tolerance:
            return tried
        if len(group) == 1:
            return mask
        half = len(group) // 2
        return self._without(self._without(mask, group[:half]), group[half:])


def _downward(units: Units | Edges) -> Int[np.ndarray, " U"]:
    """Units from the logits down: edges by reader, then writer, the last first; others by layer."""
    if isinstance(units, Edges):
        return np.lexsort((-units.pairs[:, 1], -units.pairs[:, 0]))
    return np.argsort([-units.where(u)[1] for u in range(units.n)], kind="stable")


@partial(jax.jit, static_argnames="s")
def _prepare(s: Setting, params: Any, d: Any, mean: Worth | None, prompts: dict[str, Array]) -> Any:
    """The model's logits, what its units are worth, and their reference values, by prompt."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda p: both(s, params, d, mean, p))(prompts)


@partial(jax.jit, static_argnames=("s", "over"))
def _divergence(
    s: Setting, over: Over, params: Any, d: Any, prompts: dict[str, Array], runs: Any, real: Array, mask: Array
) -> Float[Array, ""]:
    """KL(model || circuit) of the worst prompt, or on average."""

    def one(p: Any, own: Array, clean: Any, reference: Any) -> Array:
        return judged(s, masked(s, params, d, mask, clean, reference, p), own, p).kl

    with jax.default_matmul_precision("highest"):
        kl = jnp.where(real, jax.vmap(one)(prompts, *runs), 0)
    return kl.max() if over == "worst" else kl.sum() / jnp.sum(real)
