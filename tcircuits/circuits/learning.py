"""Scores that are learned: masks between 0 and 1 are trained so that the circuit says what the whole model says.

    pruning   a gate for every unit, z = clip(1.2 sigmoid((log u - log(1 - u) + a) / T) - 0.1, 0, 1), u uniform and
              T = 2/3: hard-concrete gates (Louizos et al. 2018). The loss is KL(model || circuit) + l1 (s - s') +
              l2 (s - s')^2, s' = 1 - mean P(z > 0), l1 and l2 climbing, s rising to the wanted share of units left
              out over the first 5/6 of the steps (edge pruning, Bhaskar et al. 2024, arXiv 2406.16778). The score is a.
    topk      mask = sigmoid((score - t) / T) with t such that it sums to k, k drawn anew in each step, evenly in its
              logarithm: one run ranks all units (the idea of mask attribution, arXiv 2609.25518). Only the loss above's
              first term.

Each step takes some prompts of the split, the same for all; the whole training is one compiled program.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.running import Ablation, Setting, Worth, both, check, judged, masked, mean_values, parts
from tcircuits.circuits.scores import UnitScores
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError, Int

Kind = Literal["pruning", "topk"]
HEAT, LOW, HIGH = 2 / 3, -0.1, 1.1  # of hard-concrete gates: temperature, and the stretch before clipping
FIRST = 10.0  # log a at the start of pruning: all gates open
TURNS = 50  # halvings of the interval of t
RATES: dict[Kind, float] = {"pruning": 0.8, "topk": 0.05}  # of Adam


@dataclass(frozen=True)
class Learning:
    """How masks are learned.

    Attributes:
        steps: how many.
        batch: prompts of a step.
        lr: of Adam; None is 0.8 for `pruning` (as published), 0.05 for `topk`.
        left_out: share of units that `pruning` is driven to leave out.
        heat: temperature of `topk`'s masks, in units of the scores.
    """

    steps: int = 500
    batch: int = 16
    lr: float | None = None
    left_out: float = 0.95
    heat: float = 0.1

    def __post_init__(self) -> None:
        wrong = [f"{name}={getattr(self, name)}" for name in ("steps", "batch") if getattr(self, name) < 1]
        wrong += [f"lr={self.lr}"] if self.lr is not None and not self.lr > 0 else []
        wrong += [] if 0 < self.left_out < 1 else [f"left_out={self.left_out} (between 0 and 1)"]
        wrong += [] if self.heat > 0 else [f"heat={self.heat}"]
        if wrong:
            raise InputError("masks cannot be learned with " + ", ".join(wrong))


DEFAULT = Learning()


def learned_scores(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    *,
    kind: Kind = "topk",
    how: Learning = DEFAULT,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    seed: int = 0,
) -> UnitScores:
    """Learn scores on a split; see the module's docstring.

    Raises:
        InputError: an unknown kind, and what `run_circuits` refuses.
    """
    check_kind(kind)
    s, start = check(model, behaviour, units, dictionary, ablation, errors, split), time.perf_counter()
    n = behaviour[split].n
    (prompts,) = parts(model, behaviour[split], n)
    mean = mean_values(model, behaviour, s, dictionary, min(n, 16)) if ablation == "mean" else None
    learned = learn_program(s, kind, how, n, model.params, dictionary, mean, prompts, jax.random.key(seed))
    passes = how.steps * min(how.batch, n)
    return UnitScores(kind, np.asarray(host(learned)), None, 2 * n + passes, passes, time.perf_counter() - start)


def check_kind(kind: str) -> None:
    """Refuse what is no kind.

    Raises:
        InputError: if it is none.
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind {kind!r} is unknown; there are {', '.join(get_args(Kind))}")


@partial(jax.jit, static_argnames=("s", "kind", "how", "n"))
def learn_program(
    s: Setting,
    kind: Kind,
    how: Learning,
    n: int,
    params: Any,
    d: Any,
    mean: Worth | None,
    prompts: dict[str, Array],
    key: Array,
) -> Float[Array, " U"]:
    """All steps of the training: the scores."""
    batch = min(how.batch, n)  # of the n prompts; what fills the devices up comes after them
    adam = optax.adam(how.lr or RATES[kind])
    first, noise = jax.random.split(key)
    scores = 0.01 * jax.random.normal(first, (s.units.n,)) + (FIRST if kind == "pruning" else 0.0)
    with jax.default_matmul_precision("highest"):
        divergence = divergence_of(s, params, d, mean, prompts)

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            (scores, prices), state = carry
            picked, drawn = jax.random.split(jax.random.fold_in(noise, number))
            chosen = jax.random.permutation(picked, n)[:batch]

            def loss(scores: Array, prices: Array) -> Array:
                if kind == "topk":
                    return divergence(summing_to(scores / how.heat, size_of(drawn, s.units.n)), chosen)
                gates = hard_concrete(drawn, scores)
                wanted = how.left_out * jnp.minimum(1.0, number / (how.steps * 5 / 6))
                short = wanted - (1 - open_share(scores))
                return divergence(gates, chosen) + prices[0] * short + prices[1] * short**2

            by_scores, by_prices = jax.grad(loss, (0, 1))(scores, prices)
            moves, state = adam.update((by_scores, -by_prices), state)
            moved: Any = optax.apply_updates((scores, prices), moves)
            return (moved, state), None

        begun = scores, jnp.zeros(2, scores.dtype)
        ((scores, _), _), _ = jax.lax.scan(step, (begun, adam.init(begun)), jnp.arange(how.steps))
    return scores


def divergence_of(
    s: Setting, params: Any, d: Any, mean: Worth | None, prompts: dict[str, Array]
) -> Callable[[Float[Array, " U"], Int[Array, " B"]], Float[Array, ""]]:
    """KL(model || circuit) of a mask, averaged over chosen prompts; what units are worth is computed once."""
    own, clean, reference = jax.vmap(lambda p: both(s, params, d, mean, p))(prompts)

    def divergence(mask: Array, chosen: Array) -> Array:
        def one(p: Any, own: Array, clean: Any, reference: Any) -> Array:
            return judged(s, masked(s, params, d, mask, clean, reference, p), own, p).kl

        return jax.vmap(one)(*jax.tree.map(lambda a: a[chosen], (prompts, own, clean, reference))).mean()

    return divergence


def hard_concrete(key: Array, a: Float[Array, " U"]) -> Float[Array, " U"]:
    """A draw of the gates with logits `a`."""
    u = jax.random.uniform(key, a.shape, a.dtype, 1e-6, 1 - 1e-6)
    soft = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + a) / HEAT)
    return jnp.clip(soft * (HIGH - LOW) + LOW, 0.0, 1.0)


def open_share(a: Float[Array, " U"]) -> Float[Array, ""]:
    """The mean probability that a gate with logit `a` is not 0."""
    return jax.nn.sigmoid(a - HEAT * jnp.log(-LOW / HIGH)).mean()


def size_of(key: Array, n: int) -> Float[Array, ""]:
    """A size between 1 and n, evenly drawn in its logarithm."""
    return jnp.exp(jax.random.uniform(key) * jnp.log(float(n)))


def summing_to(x: Float[Array, " U"], k: Array) -> Float[Array, " U"]:
    """sigmoid(x - t) with t such that it sums to k; differentiable, t included (implicitly)."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        more = jnp.sum(jax.nn.sigmoid(fixed - middle)) > k
        return jnp.where(more, middle, low), jnp.where(more, high, middle)

    fixed = jax.lax.stop_gradient(x)
    room = 40.0 + jnp.log(float(x.size))
    low, high = jax.lax.fori_loop(0, TURNS, halve, (fixed.min() - room, fixed.max() + room))
    t = (low + high) / 2
    soft = jax.nn.sigmoid(fixed - t)
    weight = soft * (1 - soft)
    # one step of Newton's method from the solution, whose value is t and whose gradient that of the solution
    t = t + jnp.sum(weight * (x - fixed)) / jnp.maximum(weight.sum(), jnp.finfo(x.dtype).tiny)
    return jax.nn.sigmoid(x - t)
