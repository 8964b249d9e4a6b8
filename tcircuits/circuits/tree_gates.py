"""Masks learned on a tree, from coarse to fine: the differentiable search that HAGD names and gives no formula for.

    pruning   every set below the root and every unit has a hard-concrete gate z (`learning.hard_concrete`); a unit is
              as open as all gates above it let it be:

                  Z_v = z_v prod over sets S that hold v of z_S       P(Z_v > 0) = the product of the P(z > 0)

              The loss is that of edge pruning (`learning`): KL(model || circuit) + l1 (s - s') + l2 (s - s')^2 with
              s' = 1 - mean P(Z > 0), l1 and l2 climbing. The score of a unit is log P(Z > 0).
    topk      every set and every unit has a score; a unit's is the sum of its own and all those above it, and masks are
              those of `learning`'s top-k: one run ranks all units. A product of closed gates has no gradient, so what
              fell once stays closed; a sum has the same gradient at every level.

For the first 4/15 of the steps only the two coarsest levels learn, then one more level joins after the other until half
of the steps; the units' own come last. Gates that have not joined are open; scores are 0, a unit's own where it starts.
Units that are not in the tree are ablated.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits.circuits.forward import Errors
from tcircuits.circuits.learning import (
    FIRST,
    HEAT,
    HIGH,
    LOW,
    RATES,
    Kind,
    Learning,
    check_kind,
    divergence_of,
    hard_concrete,
    size_of,
    summing_to,
)
from tcircuits.circuits.running import Ablation, Setting, Worth, check, mean_values, parts
from tcircuits.circuits.scores import UnitScores
from tcircuits.circuits.tree import Hierarchy, check_hierarchy
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError, Int

COARSE, ALL = 4 / 15, 1 / 2  # of the steps: when the third level joins, and when the units' own gates do
DEFAULT = Learning()


def tree_scores(
    model: Model,
    behaviour: Behaviour,
    units: Units,
    h: Hierarchy,
    numbers: Int[np.ndarray, " n"],
    *,
    kind: Kind = "pruning",
    how: Learning = DEFAULT,
    start: Float[np.ndarray, " U"] | None = None,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    seed: int = 0,
) -> UnitScores:
    """Learn masks on a tree and score units by them; see the module.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        units: what circuits are made of.
        h: a hierarchy of n things.
        numbers: the unit of each thing.
        kind: a product of gates, or a sum of scores.
        how: steps, batch, rate, wanted share of units left out (of those in the tree; of gates alone).
        start: scores of all units whose ranks, between 0 and 1, the units' own start from: of gates P = 0.05 + 0.9 rank
            by size alone; of `topk` a mask equal to the rank where it sums to half of the units, by size and sign.
            None: all open, all equal.
        dictionary: as in `run_circuits`.
        ablation: as there.
        errors: as there.
        split: of the behaviour.
        seed: of gates and prompts.

    Raises:
        InputError: an unknown kind, units that are none or there twice, scores of another size, what `run_circuits`
            refuses.
    """
    check_kind(kind)
    check_hierarchy(h)
    if h.n != len(numbers) or len(np.unique(numbers)) != h.n or numbers.min() < 0 or numbers.max() >= units.n:
        raise InputError(f"units are not {h.n} different numbers in 0..{units.n - 1}, one a thing of the tree")
    if start is not None and start.shape != (units.n,):
        raise InputError(f"start has shape {start.shape}, not {(units.n,)}")
    s, began = check(model, behaviour, units, dictionary, ablation, errors, split), time.perf_counter()
    n = behaviour[split].n
    (prompts,) = parts(model, behaviour[split], n)
    mean = mean_values(model, behaviour, s, dictionary, min(n, 16)) if ablation == "mean" else None
    first = starting(kind, how, h.n, None if start is None else start[numbers])
    tree = tuple(jnp.asarray(x) for x in (h.parent, h.depth, leaf_of(h), numbers))
    begun, levels = jnp.asarray(first, jnp.float32), int(h.depth.max())
    learned = gates_program(
        s, kind, how, n, levels, model.params, dictionary, mean, prompts, tree, begun, jax.random.key(seed)
    )
    values = np.full(units.n, -1e9)
    values[numbers] = host(learned)
    passes = how.steps * min(how.batch, n)
    return UnitScores(f"tree {kind}", values, None, 2 * n + passes, passes, time.perf_counter() - began)


def starting(kind: Kind, how: Learning, n: int, scores: Float[np.ndarray, " n"] | None) -> Float[np.ndarray, " n"]:
    """What the units' own gates or scores start from."""
    if scores is None:
        return np.full(n, FIRST if kind == "pruning" else 0.0)
    if kind == "topk":  # signed: ablating what is below 0 helps
        p = (np.argsort(np.argsort(scores, kind="stable")) + 0.5) / n
        return how.heat * np.log(p / (1 - p))
    p = 0.05 + 0.9 * np.argsort(np.argsort(np.abs(scores), kind="stable")) / max(n - 1, 1)
    return np.log(p / (1 - p))


def leaf_of(h: Hierarchy) -> Int[np.ndarray, " n"]:
    """The leaf that holds each thing."""
    found = np.zeros(h.n, np.int64)
    for i in h.leaves:
        found[h.members(int(i))] = i
    return found


def down(
    z: Float[Array, " m"], parent: Int[Array, " m"], depth: Int[Array, " m"], levels: int, *, add: bool = False
) -> Float[Array, " m"]:
    """The product (or the sum) over each set and all those above it; the root's is 1 (or 0)."""
    z = z.at[0].set(0.0 if add else 1.0)
    for level in range(1, levels + 1):
        above = z[jnp.maximum(parent, 0)]
        z = jnp.where(depth == level, z + above if add else z * above, z)
    return z


def joined(step: Array, steps: int, level: Array, levels: int) -> Array:
    """Whether gates of a level (1 is the coarsest, levels + 1 are the units' own) take part at a step."""
    turn = jnp.maximum(level - 2, 0) / max(levels - 1, 1)  # 0 for the two coarsest, 1 for the units'
    at = jnp.where(level <= 2, 0.0, COARSE + (ALL - COARSE) * turn)
    return step >= at * steps


@dataclass(frozen=True)
class Shape:
    """A tree as `gates_program` takes it, and how its levels join.

    Attributes:
        parent: of each set.
        depth: of each set.
        leaf: of each thing.
        levels: depth of the deepest.
        steps: of the training.
    """

    parent: Int[Array, " m"]
    depth: Int[Array, " m"]
    leaf: Int[Array, " n"]
    levels: int
    steps: int

    def opened(self, sets: Float[Array, " m"], own: Float[Array, " n"], step: Array) -> Float[Array, " n"]:
        """How open each thing is at a step, from gates of sets and things or from their probabilities."""
        sets = jnp.where(self._joined(step, self.depth), sets, 1.0)
        own = jnp.where(self._joined(step, self.levels + 1), own, 1.0)
        return own * down(sets, self.parent, self.depth, self.levels)[self.leaf]

    def summed(self, sets: Float[Array, " m"], own: Float[Array, " n"], step: Array) -> Float[Array, " n"]:
        """The score of each thing at a step; what has not joined has no gradient."""
        sets = jnp.where(self._joined(step, self.depth), sets, 0.0)
        own = jnp.where(self._joined(step, self.levels + 1), own, jax.lax.stop_gradient(own))
        return own + down(sets, self.parent, self.depth, self.levels, add=True)[self.leaf]

    def _joined(self, step: Array, level: Array | int) -> Array:
        return joined(step, self.steps, jnp.asarray(level), self.levels)


@partial(jax.jit, static_argnames=("s", "kind", "how", "n", "levels"))
def gates_program(
    s: Setting,
    kind: Kind,
    how: Learning,
    n: int,
    levels: int,
    params: Any,
    d: Any,
    mean: Worth | None,
    prompts: dict[str, Array],
    tree: tuple[Array, ...],
    start: Float[Array, " n"],
    key: Array,
) -> Float[Array, " n"]:
    """All steps of the search: the score of each thing. `tree` is parent, depth, leaf of things, their units."""
    parent, depth, leaf, numbers = tree
    t = Shape(parent, depth, leaf, levels, how.steps)
    batch, adam = min(how.batch, n), optax.adam(how.lr or RATES[kind])
    noise = 0.01 * jax.random.normal(key, t.parent.shape, start.dtype)
    with jax.default_matmul_precision("highest"):
        divergence = divergence_of(s, params, d, mean, prompts)

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            (gates, prices), state = carry
            picked, one, two = jax.random.split(jax.random.fold_in(key, number), 3)
            chosen = jax.random.permutation(picked, n)[:batch]

            def loss(gates: Any, prices: Array) -> Array:
                if kind == "topk":
                    mask = summing_to(t.summed(gates[0], gates[1], number) / how.heat, size_of(one, len(numbers)))
                else:
                    mask = t.opened(hard_concrete(one, gates[0]), hard_concrete(two, gates[1]), number)
                kl = divergence(jnp.zeros(s.units.n, mask.dtype).at[numbers].set(mask), chosen)
                if kind == "topk":
                    return kl
                wanted = how.left_out * jnp.minimum(1.0, number / (how.steps * 5 / 6))
                short = wanted - (1 - t.opened(chance(gates[0]), chance(gates[1]), number).mean())
                return kl + prices[0] * short + prices[1] * short**2

            by_gates, by_prices = jax.grad(loss, (0, 1))(gates, prices)
            moves, state = adam.update((by_gates, -by_prices), state)
            moved: Any = optax.apply_updates((gates, prices), moves)
            return (moved, state), None

        begun = (how.heat * noise if kind == "topk" else FIRST + noise, start), jnp.zeros(2, start.dtype)
        (((sets, own), _), _), _ = jax.lax.scan(step, (begun, adam.init(begun)), jnp.arange(how.steps))
    end = jnp.asarray(how.steps)
    if kind == "topk":
        return t.summed(sets, own, end)
    return jnp.log(jnp.maximum(t.opened(chance(sets), chance(own), end), 1e-30))


def chance(a: Float[Array, " m"]) -> Float[Array, " m"]:
    """The probability that a gate with logit `a` is not 0."""
    return jax.nn.sigmoid(a - HEAT * jnp.log(-LOW / HIGH))
