"""From tokens to what dictionaries read and must write, and one compiled program that also trains on it.

A *fill* is a number of steps on one buffer: the model runs over enough rows, the activations of all their tokens are
shuffled, and each step takes its part. The first position of a row (BOS) is left out: its activations are outliers. A
fill depends on nothing but the state before it, its rows and its number, so that a run is resumed at any boundary
between fills without storing activations.
"""

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


def sites(cfg: ModelConfig, d: TranscoderConfig) -> tuple[str, str]:
    """The forward pass's names of what a dictionary reads and writes."""
    stream = "resid_pre" if cfg.parallel else "resid_mid"
    reads = stream if d.reads in ("normalized", "resid_mid") else d.reads
    return reads, stream if d.writes == "resid_mid" else d.writes


def activations(
    cfg: ModelConfig, params: Params, d: TranscoderConfig, tokens: Int[Array, "R T"]
) -> tuple[Float[Array, "L N D"], Float[Array, "L N D"]]:
    """What the dictionaries read and must write, for all positions of all rows but the first; N = R (T - 1)."""
    names = sites(cfg, d)
    acts = forward(cfg, params, tokens, sites=tuple(dict.fromkeys(names))).acts
    slots = jnp.asarray(d.layers)

    def take(name: str) -> Array:
        x = acts[name][slots, :, 1:]
        return x.reshape(len(slots), -1, x.shape[-1])

    x, y = take(names[0]), take(names[1])
    if d.reads == "normalized" and params.blocks.norm2 is not None:
        x = normalised(cfg, x).astype(x.dtype)
    return x, y


def buffer(
    cfg: ModelConfig, params: Params, d: TranscoderConfig, tokens: Int[Array, "Q R T"]
) -> tuple[Float[Array, "L N D"], Float[Array, "L N D"]]:
    """The activations of several runs of the model, one after the other; layers above the last in use do not run."""
    cfg, params = _up_to(cfg, params, max(d.layers))
    x, y = jax.lax.map(lambda rows: activations(cfg, params, d, rows), tokens)
    x, y = (jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, a.shape[-1]) for a in (x, y))
    return x, y


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
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(recipe.seed), number), x.shape[1])
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
