"""Activations with a known truth: sparse sums of known directions, as SynthSAEBench-16k defines them.

    x = bias + sum_j value_j direction_j

Chanin and Garriga-Alonso 2026, arXiv 2602.14687. Features are numbered by how often they fire (Zipf). The first ones
form a forest, numbered level by level: a child fires only while its parent does, its value grows with its parent's, and
of the children of one parent one at most fires. All others are independent, but for a weak low-rank correlation.

Feature j fires where f_j . e + s_j n_j > t_j, e and n normal, |f_j|^2 + s_j^2 = 1 (a Gaussian copula): t_j is set so
that this has the wanted probability. A batch needs random numbers for the roots, for the features outside the forest,
and for the children of roots that fire, a third to a half of all features; values and indices are kept as slots.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm

from tcircuits.types import Array, Float, InputError, Int

LEAST_OWN = 0.01  # of a feature's variance that is its own, where the low-rank part would take more


@jax.tree_util.register_static
@dataclass(frozen=True)
class WorldConfig:
    """Sizes and laws of a world; the defaults are those of SynthSAEBench-16k.

    Attributes:
        features: true features N, more than dimensions.
        d_model: dimensions D.
        exponent, p_max, p_min: firing probability of the feature of rank r: r**-exponent, scaled to p_min..p_max.
        roots, branching, depth: of the forest; leaves are `depth` levels below roots.
        rank, correlation: of the low-rank part f: entries are normal with this standard deviation.
        turns, turn_lr: steps of Adam that push directions apart.
        first, last: mean value of the most and of the least frequent feature, linear between.
        sd: mean and standard deviation of the normal whose absolute value is a feature's standard deviation.
        bias: norm of what is added to every activation.
        seed: of all these draws.

    Raises:
        InputError: a forest with more nodes than there are features, probabilities out of range.
    """

    features: int = 16_384
    d_model: int = 768
    exponent: float = 0.5
    p_max: float = 0.4
    p_min: float = 5e-4
    roots: int = 128
    branching: int = 4
    depth: int = 3
    rank: int = 25
    correlation: float = 0.1
    turns: int = 100
    turn_lr: float = 3e-4
    first: float = 5.0
    last: float = 4.0
    sd: tuple[float, float] = (0.5, 0.5)
    bias: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        wrong = []
        if min(self.features, self.d_model, self.roots, self.branching, self.rank) < 1 or self.depth < 0:
            wrong.append("sizes must be positive")
        elif self.forest > self.features:
            wrong.append(f"the forest has {self.forest} nodes, more than features={self.features}")
        if not 0 < self.p_min < self.p_max < 1:
            wrong.append(f"p_min={self.p_min}, p_max={self.p_max} must be ascending within 0..1")
        if wrong:
            raise InputError("the world does not fit together: " + "; ".join(wrong))

    @property
    def starts(self) -> tuple[int, ...]:
        """The first feature of each level of the forest, and the first outside it."""
        sizes = [self.roots * self.branching**level for level in range(self.depth + 1)]
        return tuple(int(s) for s in np.cumsum([0, *sizes]))

    @property
    def forest(self) -> int:
        """Features in the forest."""
        return self.starts[-1]


def scaled(cfg: WorldConfig, part: int) -> WorldConfig:
    """A world smaller by a factor in features, dimensions, roots and active features.

    What stays: features and active features for a dimension, the trees' shape, and the firing probability at each
    quantile of the ranks but the very first ones, since p = p_max rank**-exponent.
    """
    return replace(
        cfg,
        features=cfg.features // part,
        d_model=cfg.d_model // part,
        roots=cfg.roots // part,
        p_max=cfg.p_max * part**-cfg.exponent,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class World:
    """Arrays of a world; R is the rank of the correlation."""

    directions: Float[Array, "N D"]
    bias: Float[Array, " D"]
    mean: Float[Array, " N"]
    sd: Float[Array, " N"]
    threshold: Float[Array, " N"]
    factor: Float[Array, "N R"]
    own: Float[Array, " N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """Active features of n activations as a list (value 0: empty), and how many found no place in it."""

    token: Int[Array, " C"]
    index: Int[Array, " C"]
    value: Float[Array, " C"]
    dropped: Int[Array, ""]
    n: int = field(metadata={"static": True})


def wanted(cfg: WorldConfig) -> np.ndarray:
    """The firing probability that each feature should have [N]: Zipf."""
    fall = np.arange(1, cfg.features + 1) ** -cfg.exponent
    return cfg.p_min + (cfg.p_max - cfg.p_min) * (fall - fall[-1]) / (fall[0] - fall[-1])


def drawn(cfg: WorldConfig) -> np.ndarray:
    """The probability with which each feature is drawn [N], before parents and siblings have their say.

    A child's is what it should be, given its parent, times one more than the siblings that are expected beside it; at
    most 1. Where that limit holds, or children together are more frequent than their parent, they fire less often than
    wanted.
    """
    p = wanted(cfg)
    out = p.copy()
    for level in range(cfg.depth):
        parents, children = (slice(*cfg.starts[i : i + 2]) for i in (level, level + 1))
        family = p[children].reshape(-1, cfg.branching)
        parent = p[parents][:, None]
        beside = family.sum(1, keepdims=True) - family
        out[children] = (family / parent * (1 + beside / parent)).ravel()
    return np.minimum(out, 1.0)


def make_world(cfg: WorldConfig) -> World:
    """Draw a world."""
    keys = jax.random.split(jax.random.key(cfg.seed), 4)
    N = cfg.features
    factor = cfg.correlation * jax.random.normal(keys[0], (N, cfg.rank))
    size = jnp.sum(factor**2, 1, keepdims=True)
    factor = factor * jnp.sqrt(jnp.minimum(1.0, (1 - LEAST_OWN) / size))
    bias = jax.random.normal(keys[1], (cfg.d_model,))
    return World(
        directions=apart(cfg, jax.random.normal(keys[2], (N, cfg.d_model))),
        bias=cfg.bias * bias / jnp.linalg.norm(bias),
        mean=jnp.linspace(cfg.first, cfg.last, N),
        sd=jnp.abs(cfg.sd[0] + cfg.sd[1] * jax.random.normal(keys[3], (N,))),
        threshold=jnp.asarray(norm.isf(drawn(cfg)), jnp.float32),
        factor=factor,
        own=jnp.sqrt(1 - jnp.sum(factor**2, 1)),
    )


@partial(jax.jit, static_argnums=0)
def apart(cfg: WorldConfig, e: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Unit directions, pushed apart: Adam on sum_{i != j} (e_i . e_j)^2 + N sum_i (|e_i|^2 - 1)^2.

    The gradient is formed by way of E^T E [D, D]: 4 N D^2 operations and no array [N, N].
    """
    adam = optax.adam(cfg.turn_lr)

    def turn(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
        e, state = carry
        size = jnp.sum(e**2, 1, keepdims=True)
        gradient = 4 * (e @ (e.T @ e) - size * e) + 4 * cfg.features * (size - 1) * e
        moves, state = adam.update(gradient, state)
        return (e + jnp.asarray(moves), state), None

    e = e / jnp.linalg.norm(e, axis=1, keepdims=True)
    (e, _), _ = jax.lax.scan(turn, (e, adam.init(e)), None, cfg.turns)
    return e / jnp.linalg.norm(e, axis=1, keepdims=True)


def room(mean: float, most: int) -> int:
    """Slots for so many active features on average: for a variance of four times the mean, six standard deviations."""
    return min(most, int(np.ceil(mean + 12 * np.sqrt(mean) + 12)))


def sample(cfg: WorldConfig, world: World, key: Array, n: int) -> Sample:
    """The active features of n activations."""
    k_shared, k_roots, k_rest, *k_levels = jax.random.split(key, 3 + cfg.depth)
    shared = jax.random.normal(k_shared, (n, cfg.rank))
    token, index, value, lost = _independent(cfg, world, shared, k_roots, 0, cfg.roots)
    *rest, more = _independent(cfg, world, shared, k_rest, cfg.forest, cfg.features)
    found = [(token, index, value)]
    for level, k in enumerate(k_levels):
        index, value = _children(cfg, world, shared[token], k, level, index, value)
        found.append((token, index, value))
    parts: Any = zip(*found, rest, strict=True)
    token, index, value = (jnp.concatenate(a) for a in parts)
    return Sample(token, index, value, lost + more, n)


def _independent(cfg: WorldConfig, world: World, shared: Array, key: Array, start: int, stop: int) -> Any:
    """Those of the features start..stop that fire, which need no parent: slots, and how many found none."""
    n, width = len(shared), stop - start
    slots = room(n * wanted(cfg)[start:stop].sum(), n * width)
    if not slots:
        return *(jnp.zeros(0, kind) for kind in (jnp.int32, jnp.int32, jnp.float32)), jnp.zeros((), jnp.int32)
    k_fire, k_size = jax.random.split(key)
    own = world.own[start:stop] * jax.random.normal(k_fire, (n, width))
    fires = shared @ world.factor[start:stop].T + own > world.threshold[start:stop]
    (place,) = jnp.nonzero(fires.ravel(), size=slots, fill_value=n * width)
    token, index = jnp.minimum(place // width, n - 1), start + place % width
    value = jnp.where(place < n * width, _size(world, k_size, index), 0.0)
    return token, index, value, jnp.maximum(jnp.sum(fires) - slots, 0)


def _children(
    cfg: WorldConfig, world: World, shared: Array, key: Array, level: int, parent: Array, value: Array
) -> tuple[Array, Array]:
    """The child of each parent [C] that fires, if one does: index and value [C]; `shared` [C, R] is its token's."""
    k_fire, k_size, k_choose = jax.random.split(key, 3)
    first = cfg.starts[level + 1] + cfg.branching * (parent - cfg.starts[level])
    child = first[:, None] + jnp.arange(cfg.branching)
    drive = jnp.einsum("cr,cir->ci", shared, world.factor[child])
    fires = drive + world.own[child] * jax.random.normal(k_fire, child.shape) > world.threshold[child]
    size = jnp.where(fires & (value[:, None] > 0), _size(world, k_size, child), 0.0)
    chosen = jnp.argmax(jnp.where(size > 0, jax.random.uniform(k_choose, child.shape), -1.0), 1)[:, None]
    index, own = (jnp.take_along_axis(a, chosen, 1)[:, 0] for a in (child, size))
    return index, own * value / world.mean[parent]


def _size(world: World, key: Array, index: Array) -> Array:
    return jax.nn.relu(world.mean[index] + world.sd[index] * jax.random.normal(key, index.shape))


def activations(world: World, s: Sample) -> Float[Array, "B D"]:
    """What the model would have computed: the sum over active features."""
    rows = s.value[:, None] * world.directions[s.index]
    return world.bias + jax.ops.segment_sum(rows, s.token, s.n)


def is_active(cfg: WorldConfig, s: Sample) -> Array:
    """Whether each true feature is active [B, N]: for measuring, not for training."""
    return jnp.zeros((s.n, cfg.features), bool).at[s.token, s.index].max(s.value > 0)
