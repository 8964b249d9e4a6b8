"""From tokens to what dictionaries read and must write, and one compiled program that also trains on it.

A *fill* is a number of steps on one buffer: the model runs over enough rows, the activations of all their tokens are
shuffled, and each step takes its part. The first position of a row (BOS) is left out: its activations are outliers. A
fill depends on nothing but the state before it, its rows and its number, so that a run is resumed at any boundary
between fills without storing activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward, normalised
from tcircuits.models.params import Params
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training.losses import Metrics
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.step import State, train_step
from tcircuits.types import Array, Float, InputError, Int


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fill:
    """How activations are gathered.

    Attributes:
        context: tokens of a row, with its first.
        rows: rows that the model runs over at once.
        steps: steps on one buffer; more of them shuffle better and need more memory.
    """

    context: int = 128
    rows: int = 32
    steps: int = 16

    def chunks(self, batch: int) -> int:
        """Runs of the model for one buffer."""
        return -(-self.steps * batch // (self.rows * (self.context - 1)))

    def n_rows(self, batch: int) -> int:
        """Rows that one buffer takes from the corpus."""
        return self.chunks(batch) * self.rows


def check_fill(cfg: ModelConfig, fill: Fill) -> None:
    """Raise for sizes that the model does not take."""
    if not 2 <= fill.context <= cfg.n_ctx:
        raise InputError(f"a context of {fill.context} tokens; the model takes 2..{cfg.n_ctx}")
    if fill.rows < 1 or fill.steps < 1:
        raise InputError(f"{fill.rows} rows at once, {fill.steps} steps on a buffer: give at least 1 of each")


def site_of(cfg: ModelConfig, name: str) -> str:
    """The forward pass's name of what a dictionary reads or writes."""
    stream = "resid_pre" if cfg.parallel else "resid_mid"
    return stream if name in ("normalized", "resid_mid") else name


def gathered(
    cfg: ModelConfig, params: Params, names: Sequence[str], layers: Sequence[int], tokens: Int[Array, "R T"]
) -> dict[str, Float[Array, "L N D"]]:
    """What dictionaries read or write at these sites and layers, for all positions of all rows but the first.

    One forward pass serves all sites; N = R (T - 1).
    """
    own = {name: site_of(cfg, name) for name in names}
    acts = forward(cfg, params, tokens, sites=tuple(dict.fromkeys(own.values()))).acts
    slots = jnp.asarray(layers)

    def take(name: str) -> Array:
        x = acts[own[name]][slots, :, 1:]
        x = x.reshape(len(slots), -1, x.shape[-1])
        plain = name != "normalized" or params.blocks.norm2 is None
        return x if plain else normalised(cfg, x).astype(x.dtype)

    return {name: take(name) for name in names}


def activations(
    cfg: ModelConfig, params: Params, d: TranscoderConfig, tokens: Int[Array, "R T"]
) -> tuple[Float[Array, "L N D"], Float[Array, "L N D"]]:
    """What the dictionaries of `d` read and must write."""
    found = gathered(cfg, params, (d.reads, d.writes), d.layers, tokens)
    return found[d.reads], found[d.writes]


def buffers(
    cfg: ModelConfig, params: Params, names: Sequence[str], layers: Sequence[int], tokens: Int[Array, "Q R T"]
) -> dict[str, Float[Array, "L N D"]]:
    """The activations of several runs of the model, one after the other, by site.

    Layers above the last one in `layers` do not run.
    """
    cfg, params = _up_to(cfg, params, max(layers))
    found = jax.lax.map(lambda rows: gathered(cfg, params, names, layers, rows), tokens)
    return {name: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, a.shape[-1]) for name, a in found.items()}


def buffer(
    cfg: ModelConfig, params: Params, d: TranscoderConfig, tokens: Int[Array, "Q R T"]
) -> tuple[Float[Array, "L N D"], Float[Array, "L N D"]]:
    """What the dictionaries of `d` read and must write, over several runs of the model."""
    found = buffers(cfg, params, (d.reads, d.writes), d.layers, tokens)
    return found[d.reads], found[d.writes]


def _up_to(cfg: ModelConfig, params: Params, last: int) -> tuple[ModelConfig, Params]:
    """The model's layers 0..last."""
    n = last + 1
    if n == cfg.n_layers:
        return cfg, params
    unrotated = tuple(i for i in cfg.unrotated if i < n)
    short = replace(cfg, n_layers=n, windows=cfg.windows[:n], unrotated=unrotated)
    return short, replace(params, blocks=jax.tree.map(lambda a: a[:n], params.blocks))


def run_fill(
    cfg: ModelConfig,
    recipe: Recipe,
    fill: Fill,
    params: Params,
    state: State,
    tokens: Array,
    number: Int[Array, ""],
    place: Any = None,
) -> tuple[State, Metrics]:
    """One fill: harvest, shuffle, `fill.steps` steps (fewer at the end of the run); metrics are stacked by step.

    Args:
        cfg: of the model (static).
        recipe: what is trained (static).
        fill: sizes (static).
        params: of the model.
        state: before the fill.
        tokens: `fill.n_rows` rows, [Q, R, T].
        number: of the fill, from 0; decides the order of the tokens.
        place: sharding of a batch [L, B, D]; without it the compiler lets every device take all tokens.
    """
    x, y = buffer(cfg, params, recipe.dictionary, tokens)
    return fit(recipe, fill, state, x, y, number, place=place)


def fit(
    recipe: Recipe,
    fill: Fill,
    state: State,
    x: Float[Array, "L N D"],
    y: Float[Array, "L N D"],
    number: Int[Array, ""],
    *,
    key: Any = None,
    place: Any = None,
) -> tuple[State, Metrics]:
    """The steps of one fill on activations that are there; `key` is that of the recipe's seed (None: made from it)."""
    key = jax.random.key(recipe.seed) if key is None else key
    order = jax.random.permutation(jax.random.fold_in(key, number), x.shape[1])
    batches = order[: fill.steps * recipe.batch].reshape(fill.steps, recipe.batch)

    def taken(a: Array, batch: Array) -> Array:
        return a[:, batch] if place is None else jax.lax.with_sharding_constraint(a[:, batch], place)

    def step(state: State, batch: Array) -> tuple[State, Any]:
        def go(state: State) -> tuple[State, Metrics]:
            return train_step(recipe, state, taken(x, batch), taken(y, batch))

        def stay(state: State) -> tuple[State, Metrics]:
            nothing = jnp.full(len(recipe.dictionary.layers), jnp.nan, state.weights.b_enc.dtype)
            return state, Metrics(*[nothing] * 6)

        return jax.lax.cond(state.step < recipe.steps, go, stay, state)

    return jax.lax.scan(step, state, batches)
