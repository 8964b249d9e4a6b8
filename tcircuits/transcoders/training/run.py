"""A training run: rows of a corpus through `run_fill` until the recipe's steps are done, resumable at any moment.

The state after a step depends on the recipe, the model, the corpus and the number of the step, on nothing else: a run
that was killed goes on from its newest checkpoint and ends with the same bits (same device kind and mesh; elsewhere
within rounding).
"""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcircuits.models.model import Model
from tcircuits.parallel import host, is_lead, shardings
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.harvest import Fill, buffer, check_fill, run_fill
from tcircuits.transcoders.training.identity import check_model, identity
from tcircuits.transcoders.training.losses import Metrics
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.step import State, init_state, learning_rate, result, state_spec
from tcircuits.transcoders.training.weights import Scales
from tcircuits.types import InputError, Int

DEFAULT_FILL = Fill()


class Corpus(Protocol):
    """Rows of tokens by number: what a number stands for never changes, and there is no last one."""

    def rows(self, first: int, n: int) -> Int[np.ndarray, "n T"]:
        """Rows first .. first + n."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What decides its rows, as JSON values: a run is resumed only with the same."""
        ...


class TrainingError(RuntimeError):
    """The loss is no longer finite. The message names step and layer; the last checkpoint is good."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: `done`, or `stopped` (by a signal or the clock); what is on disk is that of `step`.

    `transcoders` is None unless done.
    """

    status: str
    step: int
    transcoders: Transcoders | None


@dataclass(frozen=True)
class Programs:
    """The compiled parts of a run: the first state, and a fill."""

    first: Callable[..., State]
    fill: Callable[..., tuple[State, Metrics]]
    rows: Any  # sharding of tokens


def train(
    model: Model,
    recipe: Recipe,
    corpus: Corpus,
    run: Path,
    *,
    fill: Fill = DEFAULT_FILL,
    checkpoint_every: int = 50,
    max_hours: float | None = None,
    mesh: Mesh | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Outcome:
    """Train until the recipe's steps are done, going on with what `run` holds of it. Every process calls it.

    Args:
        model: its parameters stay as they are.
        recipe: what to train.
        corpus: rows of `fill.context` tokens.
        run: folder of the run; see `folder`.
        fill: how activations are gathered.
        checkpoint_every: fills between checkpoints.
        max_hours: stop, with a checkpoint, after so long.
        mesh: where arrays live; `model` must be loaded on the same.
        watch: is given the figures of every fill, on the lead process.

    Raises:
        InputError: settings that do not fit the model, the corpus or what the folder holds; all before compiling.
        TrainingError: the loss is not finite.
    """
    check_model(model, recipe)
    check_fill(model.cfg, fill)
    about = identity(model, recipe, fill, corpus.describe())
    programs = make_programs(model, recipe, fill, mesh)
    folder.clear_remains(run)
    found = folder.read_state(run, abstract_state(model, recipe, fill, mesh), about)
    folder.prepare(run, found[1] if found else 0)
    state, step = found if found else (_first(model, recipe, fill, corpus, programs), 0)
    wait, number = nothing, -(-step // fill.steps)
    ends = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with ahead(corpus, fill, recipe.batch, number) as rows, signals() as asked:
        while step < recipe.steps:
            start = time.monotonic()
            tokens = placed(next(rows), programs.rows)
            state, metrics = programs.fill(model.params, state, tokens, jnp.int32(number))
            row = figures(recipe, fill, state, metrics, step, start, run)
            step, number = row["step"], number + 1
            if is_lead():
                folder.add_metrics(run, row)
                watch(row)
            stop = any(folder.votes(bool(asked) or (ends is not None and time.monotonic() > ends)))
            if stop or step == recipe.steps or number % checkpoint_every == 0:
                wait()
                wait = folder.write_state(run, state, step, about)
            if stop and step < recipe.steps:
                wait()
                kept = folder.checkpoints(run)
                return Outcome("stopped", int(kept[0].name) if kept else 0, None)
        wait()
    return Outcome("done", step, write_result(run, recipe, state, model.name))


def nothing() -> None:
    """Waits for no checkpoint."""


@contextmanager
def ahead(corpus: Corpus, fill: Fill, batch: int, number: int) -> Iterator[Iterator[np.ndarray]]:
    """The tokens of fill `number` and of those after it; the next are read while the devices work."""
    need = fill.n_rows(batch)
    with ThreadPoolExecutor(1) as pool:

        def read() -> Iterator[np.ndarray]:
            ready = pool.submit(tokens_of, corpus, fill, number * need, need)
            for later in itertools.count(number + 1):
                now, ready = ready.result(), pool.submit(tokens_of, corpus, fill, later * need, need)
                yield now

        yield read()


def write_result(run: Path, recipe: Recipe, state: State, model_name: str) -> Transcoders:
    """The trained set, also written; SAEs, and what is spread over processes, only our own format holds."""
    made = jax.jit(partial(result, recipe, source=str(run)))(state)
    target = run / "transcoders"
    spread = not all(a.is_fully_addressable for a in jax.tree.leaves(made))
    written = target.is_dir() and any(target.iterdir())
    if not any(folder.votes(written)):
        own = spread or recipe.dictionary.kind == "sae"
        save_transcoders(made, target, "orbax" if own else "circuit-tracer", model_name=model_name)
    return made


def make_programs(model: Model, recipe: Recipe, fill: Fill, mesh: Mesh | None) -> Programs:
    """What `train` runs: `first(params, tokens)` and `fill(params, state, tokens, number)`, which takes the state."""
    cfg, places, rows, batch = model.cfg, None, None, None
    if mesh is not None:
        places = state_shardings(recipe, mesh)
        rows = over_data(mesh, fill.rows)
        batch = over_data(mesh, recipe.batch // recipe.accumulate)

    gather = jax.jit(lambda params, tokens: buffer(cfg, params, recipe.dictionary, tokens))
    start = jax.jit(partial(init_state, recipe), out_shardings=places)

    def first(params: Any, tokens: Any) -> State:  # two programs: one would round the means by how it is compiled
        return start(*gather(params, tokens))

    def one(params: Any, state: State, tokens: Any, number: Any) -> tuple[State, Metrics]:
        return run_fill(cfg, recipe, fill, params, state, tokens, number, batch)

    both = None if places is None else (places, None)
    return Programs(first, jax.jit(one, donate_argnums=(1,), out_shardings=both), rows)


def over_data(mesh: Mesh, n: int) -> NamedSharding:
    """The second of three axes over the mesh's data axis, where its length n can be divided."""
    return NamedSharding(mesh, PartitionSpec(None, "data" if n % mesh.shape["data"] == 0 else None, None))


def state_shardings(recipe: Recipe, mesh: Mesh) -> Any:
    """Where the state's arrays live: weights and moments alike, counters with the features, the rest everywhere."""
    weights = shardings(state_spec(recipe), mesh)
    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    scales = Scales(everywhere, everywhere)
    return State(everywhere, weights, weights, weights, weights.b_enc, everywhere, scales)


def abstract_state(model: Model, recipe: Recipe, fill: Fill, mesh: Mesh | None) -> Any:
    """Shapes and places of the state's arrays: what a checkpoint is read as."""
    n, d = len(recipe.dictionary.layers), model.cfg.d_model
    acts = jax.ShapeDtypeStruct((n, fill.rows, d), model.params.embed.dtype)
    shapes = jax.eval_shape(partial(init_state, recipe), acts, acts)
    if mesh is None:
        return shapes
    leaves, tree = jax.tree.flatten(shapes)
    places = jax.tree.leaves(state_shardings(recipe, mesh))
    placed = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p) for s, p in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(tree, placed)


def tokens_of(corpus: Corpus, fill: Fill, first: int, n: int) -> Int[np.ndarray, "Q R T"]:
    """Rows of the corpus, as many at once as the model runs over."""
    rows = np.asarray(corpus.rows(first, n), np.int32)
    if rows.shape != (n, fill.context):
        raise InputError(f"the corpus gave rows of shape {rows.shape}, not {(n, fill.context)}")
    return rows.reshape(-1, fill.rows, fill.context)


def placed(rows: np.ndarray, place: Any) -> jax.Array:
    """Tokens on the devices; every process makes its own part."""
    if place is None:
        return jnp.asarray(rows)
    return jax.make_array_from_callback(rows.shape, place, lambda index: rows[index])


def _first(model: Model, recipe: Recipe, fill: Fill, corpus: Corpus, programs: Programs) -> State:
    rows = tokens_of(corpus, fill, 0, fill.n_rows(recipe.batch))
    return programs.first(model.params, placed(rows, programs.rows))


def figures(
    recipe: Recipe, fill: Fill, state: State, metrics: Metrics, step: int, start: float, run: Path
) -> dict[str, Any]:
    """One line of `metrics.jsonl`: means over the fill's steps, by layer."""
    n = min(fill.steps, recipe.steps - step)
    by_name = {name: host(value, np.float64)[:n] for name, value in _by_name(metrics).items()}
    if not np.isfinite(by_name["loss"]).all():
        raise TrainingError(_complaint(recipe, by_name["loss"], step, run))
    dead = host(jnp.sum(state.quiet >= recipe.objective.dead_after, -1))
    means = {name: [float(v) for v in values.mean(0)] for name, values in by_name.items()}
    tokens = n * recipe.batch
    return {
        "step": step + n,
        "tokens": (step + n) * recipe.batch,
        **means,
        "dead": [int(d) for d in dead],
        "lr": float(learning_rate(recipe, jnp.int32(step + n - 1))),
        "tokens_per_second": tokens / max(time.monotonic() - start, 1e-9),
    }


def _by_name(metrics: Metrics) -> dict[str, Any]:
    """The fields by name; `dataclasses.asdict` would copy the arrays."""
    return {name: getattr(metrics, name) for name in metrics.__dataclass_fields__}


def _complaint(recipe: Recipe, losses: np.ndarray, step: int, run: Path) -> str:
    at, slot = (int(i[0]) for i in np.nonzero(~np.isfinite(losses)))
    kept = folder.checkpoints(run)
    good = f"the state before it is {kept[0]}" if kept else "no checkpoint was written yet"
    layer = recipe.dictionary.layers[slot]
    return f"the loss is not finite at step {step + at}, layer {layer}; {good}: lower lr, or set optimizer.clip"


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that a SIGTERM or SIGINT puts itself into, instead of ending the process: the run saves first."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(name, lambda number, frame: asked.append(number)) for name in names]
    try:
        yield asked
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
