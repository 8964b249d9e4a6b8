"""The same law as `world.sample`, drawn for every feature of every activation: more numbers, but nothing to list.

For GPUs, where listing what fires is meant to cost more than the numbers do: `jnp.nonzero` counts its way to every
place. Neither way was timed on one.
"""

import jax
import jax.numpy as jnp

from experiments.synthetic.world import World, WorldConfig
from tcircuits.types import Array, Float


def values(cfg: WorldConfig, world: World, key: Array, n: int) -> Float[Array, "B N"]:
    """The values of all true features of n activations, 0 where they do not fire."""
    k_shared, k_rest, *k_levels = jax.random.split(key, 3 + cfg.depth)
    shared = jax.random.normal(k_shared, (n, cfg.rank))
    level = _alone(world, shared, k_levels[0], *cfg.starts[:2])
    found = [level]
    for depth, k in enumerate(k_levels[1:]):
        level = _below(cfg, world, shared, k, depth, level)
        found.append(level)
    rest = _alone(world, shared, k_rest, cfg.forest, cfg.features)
    return jnp.concatenate([*found, rest], 1)


def activations(world: World, value: Float[Array, "B N"]) -> Float[Array, "B D"]:
    """What the model would have computed: the sum over active features."""
    return world.bias + value @ world.directions


def _alone(world: World, shared: Array, key: Array, start: int, stop: int) -> Float[Array, "B n"]:
    """The features start..stop with no regard to others."""
    k_fire, k_size = jax.random.split(key)
    shape = len(shared), stop - start
    own = world.own[start:stop] * jax.random.normal(k_fire, shape)
    drive = jnp.matmul(shared, world.factor[start:stop].T, precision="highest")
    size = jax.nn.relu(world.mean[start:stop] + world.sd[start:stop] * jax.random.normal(k_size, shape))
    return jnp.where(drive + own > world.threshold[start:stop], size, 0.0)


def _below(
    cfg: WorldConfig, world: World, shared: Array, key: Array, depth: int, parents: Float[Array, "B n"]
) -> Float[Array, "B m"]:
    """The children of the features of a level: of those that fire below one parent, one is chosen."""
    start, stop = cfg.starts[depth + 1 : depth + 3]
    k_own, k_choose = jax.random.split(key)
    n, width = parents.shape
    alone = _alone(world, shared, k_own, start, stop).reshape(n, width, cfg.branching)
    own = jnp.where(parents[..., None] > 0, alone, 0.0)
    lot = jnp.where(own > 0, jax.random.uniform(k_choose, own.shape), -1.0)
    chosen = jnp.where(lot == lot.max(-1, keepdims=True), own, 0.0)
    mean = world.mean[cfg.starts[depth] : cfg.starts[depth + 1]]
    return (chosen * (parents / mean)[..., None]).reshape(n, width * cfg.branching)
