"""One step of training, as a pure function of the state and a batch of activations.

    state = init_state(recipe, x, y)
    state, metrics = train_step(recipe, state, x, y)

Layers that do not depend on each other are trained one after the other within the program (`lax.map`), so that only
one layer's features exist at a time; on a GPU as many at once as have room, which fills it better. Coupled ones
(cross-layer dictionaries, HAGD's prediction) are always trained at once.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.training.losses import Metrics, Seen, loss
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.weights import Scales, Weights, export, first_weights, spec
from tcircuits.types import Array, Float, Int

CUT_MEMORY = 0.99  # of the running mean of BatchTopK's cut
ROOM = 2**33  # bytes that the features of layers trained at once may take, on a GPU


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that a run carries from step to step.

    `first` and `second` are Adam's moments; `quiet` counts the tokens since each feature fired; `cut` is the running
    mean of BatchTopK's cut.
    """

    step: Int[Array, ""]
    weights: Weights
    first: Weights
    second: Weights
    quiet: Int[Array, "L F"]
    cut: Float[Array, " L"]
    scales: Scales


def state_spec(recipe: Recipe) -> Any:
    """The arrays of `State.weights` as `ArraySpec`: for shardings, with the moments laid out alike."""
    return spec(recipe)


def init_state(recipe: Recipe, x: Float[Array, "L N D"], y: Float[Array, "L N D"], key: Any = None) -> State:
    """The state before the first step; the activations (as harvested) give scales and means.

    `key` is that of the recipe's seed (None: made from it).
    """
    L = len(recipe.dictionary.layers)
    kind = jnp.float64 if recipe.compute == "float64" else jnp.float32
    x, y = x.astype(kind), y.astype(kind)

    def size(v: Array) -> Array:
        return jnp.sqrt(jnp.mean(v**2, (1, 2))) if recipe.normalise else jnp.ones(L, kind)

    scales = Scales(size(x), size(x) if recipe.dictionary.kind == "sae" else size(y))
    means = x.mean(1) / scales.x[:, None], y.mean(1) / scales.y[:, None]
    key = jax.random.key(recipe.seed) if key is None else key
    weights = first_weights(recipe, key, *means, dtype=kind)
    first, second = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))  # not one: steps donate both
    quiet = jnp.zeros(weights.b_enc.shape, jnp.int32)
    return State(jnp.zeros((), jnp.int32), weights, first, second, quiet, jnp.zeros(L, kind), scales)


def learning_rate(recipe: Recipe, step: Int[Array, ""]) -> Float[Array, ""]:
    """Of the step with this number (from 0): linear warm-up, constant, linear decay to zero."""
    o, t = recipe.optimizer, step.astype(jnp.float32)
    up = (t + 1) / max(o.warmup, 1) if o.warmup else jnp.ones_like(t)
    falling = max(round(o.decay * recipe.steps), 1)
    down = (recipe.steps - t) / falling if o.decay else jnp.ones_like(t)
    return o.lr * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)


def strength(recipe: Recipe, step: Int[Array, ""]) -> Float[Array, ""]:
    """Factor of the sparsity terms at this step."""
    n = recipe.optimizer.sparsity_warmup
    return jnp.minimum(1.0, (step.astype(jnp.float32) + 1) / n) if n else jnp.ones((), jnp.float32)


def train_step(
    recipe: Recipe, state: State, x: Float[Array, "L B D"], y: Float[Array, "L B D"]
) -> tuple[State, Metrics]:
    """One step on a batch of activations (as harvested); the state's counters, weights and moments move on."""
    kind = state.weights.b_enc.dtype
    x = x.astype(kind) / state.scales.x[:, None, None]
    y = y.astype(kind) / state.scales.y[:, None, None]
    parts = state.weights, state.first, state.second, state.quiet, x, y
    move = partial(_move, recipe, state.step)
    n = len(recipe.dictionary.layers)
    size = n if recipe.coupled else together(recipe)
    if size == n:
        moved = move(*parts)
    else:
        groups = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), parts)
        moved = jax.lax.map(lambda p: move(*p), groups)
        moved = jax.tree.map(lambda a: a.reshape(n, *a.shape[2:]), moved)
    weights, first, second, quiet, smallest, metrics = moved
    late = jnp.where(state.step == 0, smallest, CUT_MEMORY * state.cut + (1 - CUT_MEMORY) * smallest)
    return State(state.step + 1, weights, first, second, quiet, late, state.scales), metrics


def together(recipe: Recipe) -> int:
    """Layers that are trained at once where they need not be: one, but on a GPU as many as divide all and have room."""
    if jax.default_backend() != "gpu":
        return 1
    n = len(recipe.dictionary.layers)
    fit = ROOM // (4 * recipe.batch // recipe.accumulate * recipe.dictionary.d_feature)
    return max(g for g in range(1, n + 1) if n % g == 0 and (g == 1 or g <= fit))


def _move(
    recipe: Recipe, step: Array, w: Weights, first: Weights, second: Weights, quiet: Array, x: Array, y: Array
) -> Any:
    """A group of layers: gradient, Adam, decoder norms, counters."""
    dead = quiet >= recipe.objective.dead_after
    grad, metrics, seen = gradient(recipe, w, x, y, dead, strength(recipe, step))
    grad = _at_right_angles(recipe, w, _clipped(recipe, grad))
    w, first, second = _adam(recipe, step, w, first, second, grad)
    if recipe.decoder_norm == "unit":
        w = replace(w, w_dec=w.w_dec / jnp.linalg.norm(w.w_dec, axis=-1, keepdims=True))
    quiet = jnp.where(seen.on > 0, 0, jnp.minimum(quiet + recipe.batch, 2**30))
    return w, first, second, quiet, seen.smallest, metrics


def gradient(
    recipe: Recipe, w: Weights, x: Array, y: Array, dead: Array, scale: Array
) -> tuple[Weights, Metrics, Seen]:
    """The gradient of a batch, its parts added where the recipe accumulates; figures are means over the parts."""
    n = recipe.accumulate
    of_part = jax.grad(partial(loss, recipe), has_aux=True)
    if n == 1:
        grad, (metrics, seen) = of_part(w, x, y, dead, scale)
        return grad, metrics, seen

    def split(a: Array) -> Array:  # every n-th token to one part: a batch spread over devices stays where it is
        return jnp.moveaxis(a.reshape(len(a), a.shape[1] // n, n, a.shape[2]), 2, 0)

    def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(w, *part, dead, scale)), None

    start = jax.eval_shape(of_part, w, split(x)[0], split(y)[0], dead, scale)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)
    (grad, (metrics, seen)), _ = jax.lax.scan(add, zeros, (split(x), split(y)))
    grad, metrics = jax.tree.map(lambda a: a / n, (grad, metrics))
    return grad, metrics, Seen(seen.on, seen.smallest / n)


def _clipped(recipe: Recipe, grad: Weights) -> Weights:
    """The gradient, its norm limited: of coupled layers together, else of each, so that they stay independent."""
    if recipe.optimizer.clip is None:
        return grad
    if not recipe.coupled:
        squares = sum(jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(grad))
        size = jnp.sqrt(jnp.asarray(squares))
        scale = jnp.where(size < recipe.optimizer.clip, 1.0, recipe.optimizer.clip / size)
        return jax.tree.map(lambda g: g * scale.reshape(-1, *[1] * (g.ndim - 1)).astype(g.dtype), grad)
    tree: Any = grad  # optax's types know no registered dataclasses
    clipped: Any = optax.clip_by_global_norm(recipe.optimizer.clip).update(tree, optax.EmptyState())[0]
    return clipped


def _at_right_angles(recipe: Recipe, w: Weights, grad: Weights) -> Weights:
    """Without what would only change the norm of decoder rows."""
    if recipe.decoder_norm != "unit":
        return grad
    along = jnp.sum(grad.w_dec * w.w_dec, -1, keepdims=True)
    return replace(grad, w_dec=grad.w_dec - along * w.w_dec)


def _adam(recipe: Recipe, step: Array, w: Weights, first: Any, second: Any, grad: Any) -> Any:
    """New weights and moments (Kingma and Ba 2015, algorithm 1)."""
    o = recipe.optimizer
    state = optax.ScaleByAdamState(count=step, mu=first, nu=second)
    moves: Any
    moves, moved = optax.scale_by_adam(o.b1, o.b2, o.eps).update(grad, state)
    assert isinstance(moved, optax.ScaleByAdamState)
    lr = learning_rate(recipe, step)
    return jax.tree.map(lambda a, m: a - lr.astype(a.dtype) * m, w, moves), moved.mu, moved.nu


def result(recipe: Recipe, state: State, source: str) -> Transcoders:
    """The dictionary that a state stands for, acting on plain activations."""
    return export(recipe, state.weights, state.scales, state.cut, source)
