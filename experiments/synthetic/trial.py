"""One dictionary trained on a world, and what it recovers."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.synthetic import dense, metrics
from experiments.synthetic.world import World, WorldConfig, activations, is_active, sample
from tcircuits.transcoders.dictionary import Transcoders, decode, encode
from tcircuits.transcoders.training.codes import preactivations
from tcircuits.transcoders.training.largest import cut_of
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.step import State, init_state, result, train_step
from tcircuits.types import Array, Float, Int
from tcircuits.view.terminal import progress

FIRST = 4096  # activations that give scales and means
AT_ONCE = 500  # steps of one call


def train(
    recipes: tuple[Recipe, ...],
    cfg: WorldConfig,
    world: World,
    seed: int,
    draw: int | None = None,
    watch: Callable[[int, list[Transcoders]], None] | None = None,
) -> list[Transcoders]:
    """A dictionary for each recipe, all from the same batches; `seed` is of their first weights and of the data.

    Recipes must agree on the number of steps, which `draw` divides, and the size of a batch. `draw` is for GPUs: how
    many batches are drawn at once, by `dense`. `watch` is given the number of activations so far and the dictionaries
    as they are, each time that number has doubled.
    """
    first, rest = jax.random.split(_key(seed, draw))
    x, _, _ = batch_of(cfg, world, first, FIRST, draw)
    steps, dropped = recipes[0].steps // (draw or 1), 0
    states = tuple(first_state(replace(recipe, seed=seed), x[None]) for recipe in recipes)

    def dictionaries() -> list[Transcoders]:
        return [result(recipe, state, f"synthetic-{seed}") for recipe, state in zip(recipes, states, strict=True)]

    with progress("training") as tell:
        for start in range(0, steps, AT_ONCE):
            stop = min(start + AT_ONCE, steps)
            states, lost = fit(recipes, cfg, world, states, rest, start, stop, draw)
            dropped += int(lost)
            tell(stop, steps)
            if watch and stop < steps and (stop // AT_ONCE).bit_count() == 1:
                watch(stop * recipes[0].batch * (draw or 1), dictionaries())
    if dropped:
        warnings.warn(f"{dropped} active features found no place in their batches: raise `world.room`", stacklevel=2)
    return dictionaries()


def _key(seed: int, draw: int | None) -> Array:
    return jax.random.key(seed, impl=None if draw is None else "rbg")


def batch_of(
    cfg: WorldConfig, world: World, key: Array, n: int, draw: int | None = None
) -> tuple[Float[Array, "n D"], Array, Int[Array, ""]]:
    """Activations of n tokens, whether each true feature is active [n, N], and how many active ones found no place."""
    if draw is not None:
        value = dense.values(cfg, world, key, n)
        return dense.activations(world, value), value > 0, jnp.zeros((), jnp.int32)
    s = sample(cfg, world, key, n)
    return activations(world, s), is_active(cfg, s), s.dropped


def first_state(recipe: Recipe, x: Float[Array, "L B D"]) -> State:
    """The trainer's, but for JumpReLU's thresholds: at first they let the wanted number of features on.

    From the trainer's own 0.1 they would need a thousand steps at the learning rate of short runs.
    """
    state = init_state(recipe, x, x)
    w, target = state.weights, recipe.objective.l0_target
    if w.log_threshold is None or target is None:
        return state
    pre = preactivations(recipe, w, x / state.scales.x[:, None, None])
    cut = cut_of(pre, round(target * x.shape[1]))
    return replace(state, weights=replace(w, log_threshold=jnp.full_like(w.log_threshold, jnp.log(cut))))


@partial(jax.jit, static_argnums=(0, 1, 7))
def fit(
    recipes: tuple[Recipe, ...],
    cfg: WorldConfig,
    world: World,
    states: tuple[State, ...],
    key: Array,
    start: Any,
    stop: Any,
    draw: int | None = None,
) -> tuple[tuple[State, ...], Int[Array, ""]]:
    """Draws start..stop in one program, a step on each of their batches; how many active features had no place."""
    batch, times = recipes[0].batch, draw or 1

    def one(number: Array, carry: tuple[tuple[State, ...], Array]) -> tuple[tuple[State, ...], Array]:
        states, dropped = carry
        x, _, lost = batch_of(cfg, world, jax.random.fold_in(key, number), times * batch, draw)

        def step(states: tuple[State, ...], x: Array) -> tuple[tuple[State, ...], None]:
            return tuple(train_step(r, s, x[None], x[None])[0] for r, s in zip(recipes, states, strict=True)), None

        states, _ = jax.lax.scan(step, states, x.reshape(times, batch, -1))
        return states, dropped + lost

    return jax.lax.fori_loop(start, stop, one, (states, jnp.zeros((), jnp.int32)))


def measure(
    d: Transcoders, cfg: WorldConfig, world: World, seed: int, batches: int, batch: int, draw: int | None = None
) -> dict[str, float]:
    """The figures of a dictionary on batches that no training sees (a key of another kind)."""
    assert d.w_dec is not None
    cos = metrics.cosines(np.asarray(d.w_dec[0], np.float64), np.asarray(world.directions, np.float64))
    match = cos.argmax(1)
    key = jax.random.fold_in(_key(2**31 - 1, draw), seed)
    sums: dict[str, Any] = _counted(cfg, batches, batch, draw, world, d, jnp.asarray(match), key)
    total = {name: np.asarray(v, np.float64).sum(0) for name, v in sums.items()}
    n = batches * batch
    variance = total["square"] - (total["x"] ** 2).sum() / n
    return metrics.detection(total["both"], total["fired"], total["active"]) | {
        "mcc": metrics.mean_correlation(cos),
        "uniqueness": metrics.uniqueness(match),
        "explained_variance": 1 - float(total["error"] / variance),
        "l0": float(total["fired"].sum() / n),
        "dead": int((total["fired"] == 0).sum()),
        "shrinkage": float(total["ratio"] / n),
        "true_l0": float(total["true"] / n),
    }


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _counted(
    cfg: WorldConfig,
    batches: int,
    batch: int,
    draw: int | None,
    world: World,
    d: Transcoders,
    match: Int[Array, " F"],
    key: Array,
) -> dict[str, Float[Array, "S ..."]]:
    """Sums over each batch."""

    def one(number: Array) -> dict[str, Any]:
        x, true, _ = batch_of(cfg, world, jax.random.fold_in(key, number), batch, draw)
        f = encode(d, 0, x)
        guess = decode(d, 0, f[None])
        fires, active = f > 0, true[:, match]
        size = jnp.linalg.norm(x, axis=1)
        return {
            "both": jnp.sum(fires & active, 0),
            "fired": jnp.sum(fires, 0),
            "active": jnp.sum(active, 0),
            "true": jnp.sum(true),
            "x": x.sum(0),
            "square": jnp.sum(x**2),
            "error": jnp.sum((x - guess) ** 2),
            "ratio": jnp.sum(jnp.linalg.norm(guess, axis=1) / jnp.maximum(size, 1e-6)),
        }

    return jax.lax.map(one, jnp.arange(batches))
