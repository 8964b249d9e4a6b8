"""Gates on a tree, learned from coarse to fine: the differentiable search that HAGD names and gives no formula for.

Every set below the root and every unit has a hard-concrete gate z (`learning.hard_concrete`); a unit is as open as all
gates above it let it be:

    Z_v = z_v prod over sets S that hold v of z_S           P(Z_v > 0) = the product of the P(z > 0)

The loss is that of edge pruning (`learning`): KL(model || circuit) + l1 (s - s') + l2 (s - s')^2 with s' = 1 - mean
P(Z > 0), l1 and l2 climbing. For the first 4/15 of the steps only the two coarsest levels have gates, then one more
level joins after the other until half of the steps; the units' own come last. Gates that have not joined are open. The
score of a unit is log P(Z > 0). Units that are not in the tree are ablated.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits.circuits.forward import Errors
from tcircuits.circuits.learning import FIRST, HEAT, HIGH, LOW, Learning, divergence_of, hard_concrete
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
    how: Learning = DEFAULT,
    start: Float[np.ndarray, " U"] | None = None,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    seed: int = 0,
) -> UnitScores:
    """Learn gates on a tree and score units by them; see the module.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        units: what circuits are made of.
        h: a hierarchy of n things.
        numbers: the unit of each thing.
        how: steps, batch, rate, wanted share of units left out (of those in the tree).
        start: scores of all units whose ranks the units' gates start from, P = 0.05 + 0.9 rank; None: all open.
        dictionary: as in `run_circuits`.
        ablation: as there.
        errors: as there.
        split: of the behaviour.
        seed: of gates and prompts.

    Raises:
        InputError: units that are none or there twice, scores of another size, what `run_circuits` refuses.
    """
    check_hierarchy(h)
    if h.n != len(numbers) or len(np.unique(numbers)) != h.n or numbers.min() < 0 or numbers.max() >= units.n:
        raise InputError(f"units are not {h.n} different numbers in 0..{units.n - 1}, one a thing of the tree")
    if start is not None and start.shape != (units.n,):
        raise InputError(f"start has shape {start.shape}, not {(units.n,)}")
    s, began = check(model, behaviour, units, dictionary, ablation, errors, split), time.perf_counter()
    n = behaviour[split].n
    (prompts,) = parts(model, behaviour[split], n)
    mean = mean_values(model, behaviour, s, dictionary, min(n, 16)) if ablation == "mean" else None
    first = np.full(h.n, FIRST)
    if start is not None:
        p = 0.05 + 0.9 * np.argsort(np.argsort(np.abs(start[numbers]), kind="stable")) / max(h.n - 1, 1)
        first = np.log(p / (1 - p))
    tree = tuple(jnp.asarray(x) for x in (h.parent, h.depth, leaf_of(h), numbers))
    learned = gates_program(
        s, how, n, int(h.depth.max()), model.params, dictionary, mean, prompts, tree, jnp.asarray(first, jnp.float32),
        jax.random.key(seed),
    )  # fmt: skip
    values = np.full(units.n, -1e9)
    values[numbers] = host(learned)
    passes = how.steps * min(how.batch, n)
    return UnitScores("tree", values, None, 2 * n + passes, passes, time.perf_counter() - began)


def leaf_of(h: Hierarchy) -> Int[np.ndarray, " n"]:
    """The leaf that holds each thing."""
    found = np.zeros(h.n, np.int64)
    for i in h.leaves:
        found[h.members(int(i))] = i
    return found


def down(z: Float[Array, " m"], parent: Int[Array, " m"], depth: Int[Array, " m"], levels: int) -> Float[Array, " m"]:
    """The product of each set's gate and all those above it; the root's is 1."""
    z = z.at[0].set(1.0)
    for level in range(1, levels + 1):
        z = jnp.where(depth == level, z * z[jnp.maximum(parent, 0)], z)
    return z


def joined(step: Array, steps: int, level: Array, levels: int) -> Array:
    """Whether gates of a level (1 is the coarsest, levels + 1 are the units' own) take part at a step."""
    turn = jnp.maximum(level - 2, 0) / max(levels - 1, 1)  # 0 for the two coarsest, 1 for the units'
    at = jnp.where(level <= 2, 0.0, COARSE + (ALL - COARSE) * turn)
    return step >= at * steps


@partial(jax.jit, static_argnames=("s", "how", "n", "levels"))
def gates_program(
    s: Setting,
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
    """All steps of the search: log P(Z > 0) of each thing. `tree` is parent, depth, leaf of things, their units."""
    parent, depth, leaf, numbers = tree
    batch, adam = min(how.batch, n), optax.adam(how.lr or 0.8)
    sets = FIRST + 0.01 * jax.random.normal(key, parent.shape, start.dtype)
    with jax.default_matmul_precision("highest"):
        divergence = divergence_of(s, params, d, mean, prompts)

        def through(of_sets: Array, of_units: Array, number: Array) -> Array:
            """How open each thing is, from gates (or their probabilities)."""
            of_sets = jnp.where(joined(number, how.steps, depth, levels), of_sets, 1.0)
            own = jnp.where(joined(number, how.steps, jnp.asarray(levels + 1), levels), of_units, 1.0)
            return own * down(of_sets, parent, depth, levels)[leaf]

        def step(carry: Any, number: Array) -> tuple[Any, None]:
            (gates, prices), state = carry
            picked, one, two = jax.random.split(jax.random.fold_in(key, number), 3)
            chosen = jax.random.permutation(picked, n)[:batch]

            def loss(gates: Any, prices: Array) -> Array:
                z = through(hard_concrete(one, gates[0]), hard_concrete(two, gates[1]), number)
                mask = jnp.zeros(s.units.n, z.dtype).at[numbers].set(z)
                wanted = how.left_out * jnp.minimum(1.0, number / (how.steps * 5 / 6))
                short = wanted - (1 - through(chance(gates[0]), chance(gates[1]), number).mean())
                return divergence(mask, chosen) + prices[0] * short + prices[1] * short**2

            by_gates, by_prices = jax.grad(loss, (0, 1))(gates, prices)
            moves, state = adam.update((by_gates, -by_prices), state)
            moved: Any = optax.apply_updates((gates, prices), moves)
            return (moved, state), None

        begun = (sets, start), jnp.zeros(2, start.dtype)
        (((sets, own), _), _), _ = jax.lax.scan(step, (begun, adam.init(begun)), jnp.arange(how.steps))
    return jnp.log(jnp.maximum(through(chance(sets), chance(own), jnp.asarray(how.steps)), 1e-30))


def chance(a: Float[Array, " m"]) -> Float[Array, " m"]:
    """The probability that a gate with logit `a` is not 0."""
    return jax.nn.sigmoid(a - HEAT * jnp.log(-LOW / HIGH))
