"""Many dictionaries at once: the model runs once over each buffer of tokens, and every member of a grid trains on it.

    RUN/checkpoints/0000012000          the states of all members after that many steps; the newest two are kept
    RUN/metrics.jsonl                   a line for every fill: step, tokens, speed
    RUN/members/NAME/metrics.jsonl      the member's figures, as `train` writes them
    RUN/members/NAME/transcoders        the result

Members take their steps one after the other on the harvested activations, by the program that a fill of `train` runs
too; so each ends where `train` with its recipe, the same corpus and the same `Fill` ends. Members that differ by
nothing but their seed share one compiled program (the seed is an argument of it). The states of all members lie on the
device at once, three times the weights of each.

A member whose loss is no longer finite is left out from there on, and the others go on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tcircuits.models.model import Model
from tcircuits.parallel import is_lead
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.grid import Member
from tcircuits.transcoders.training.harvest import Fill, buffers, check_fill, fit
from tcircuits.transcoders.training.identity import check_model, identity
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.run import (
    DEFAULT_FILL,
    Corpus,
    TrainingError,
    abstract_state,
    ahead,
    figures,
    nothing,
    over_data,
    placed,
    signals,
    state_shardings,
    tokens_of,
    write_result,
)
from tcircuits.transcoders.training.step import State, init_state
from tcircuits.types import InputError

FAILED = "failed.json"


@dataclass(frozen=True)
class SweepOutcome:
    """How a call of `sweep` ended: `done` or `stopped`; what is on disk is that of `step`.

    `made` has the dictionary of every member that was trained to its end (none unless done), `failed` the complaint of
    every other.
    """

    status: str
    step: int
    made: Mapping[str, Transcoders]
    failed: Mapping[str, str]


def sweep(
    model: Model,
    members: Sequence[Member],
    corpus: Corpus,
    run: Path,
    *,
    fill: Fill = DEFAULT_FILL,
    checkpoint_every: int = 50,
    max_hours: float | None = None,
    mesh: Mesh | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> SweepOutcome:
    """Train every member until its steps are done, going on with what `run` holds. Every process calls it.

    Args:
        model: its parameters stay as they are.
        members: of `grid`; all with the same number of steps and tokens a step.
        corpus: rows of `fill.context` tokens.
        run: folder of the sweep; see above.
        fill: how activations are gathered.
        checkpoint_every: fills between checkpoints.
        max_hours: stop, with a checkpoint, after so long.
        mesh: where arrays live; `model` must be loaded on the same.
        watch: is given the figures of every fill, those of the members under `members`, on the lead process.

    Raises:
        InputError: members that do not fit each other, the model, the corpus or what the folder holds.
        TrainingError: the loss of every member is no longer finite.
    """
    check_fill(model.cfg, fill)
    work = _Work(model, check_members(model, members), fill, mesh)
    about = work.about(corpus)
    states, step, failed = work.begin(run, corpus, about)
    wait, number = nothing, -(-step // fill.steps)
    ends = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with ahead(corpus, fill, work.batch, number) as rows, signals() as asked:
        while step < work.steps:
            row = work.fill_once(run, states, failed, placed(next(rows), work.rows), number, step)
            if len(failed) == len(members):
                raise TrainingError("no member is left: " + "; ".join(f"{n}: {why}" for n, why in failed.items()))
            step, number = row["step"], number + 1
            if is_lead():
                watch(row)
            stop = any(folder.votes(bool(asked) or (ends is not None and time.monotonic() > ends)))
            if stop or step == work.steps or number % checkpoint_every == 0:
                wait()
                wait = folder.write_state(run, states, step, about)
            if stop and step < work.steps:
                wait()
                kept = folder.checkpoints(run)
                return SweepOutcome("stopped", int(kept[0].name) if kept else 0, {}, failed)
        wait()
    whole = [m for m in members if m.name not in failed]
    made = {m.name: write_result(folder_of(run, m), m.recipe, states[m.name], model.name) for m in whole}
    return SweepOutcome("done", step, made, failed)


def folder_of(run: Path, member: Member) -> Path:
    """Where a member's figures and its dictionary are."""
    return run / "members" / member.name


def check_members(model: Model, members: Sequence[Member]) -> tuple[Member, ...]:
    """The members, if they can be trained together.

    Raises:
        InputError: none, equal names, another number of steps or tokens, recipes that do not fit the model.
    """
    if not members:
        raise InputError("the grid is empty: give at least one member")
    if len({m.name for m in members}) < len(members):
        raise InputError(f"members share a name: {sorted(m.name for m in members)}")
    for name in ("steps", "batch"):
        values = {getattr(m.recipe, name) for m in members}
        if len(values) > 1:
            raise InputError(
                f"members differ in {name} ({sorted(values)}): they train on the same tokens, step by step"
            )
    for m in members:
        check_model(model, m.recipe)
    return tuple(members)


@dataclass(frozen=True)
class _Work:
    """What a sweep compiles, and one fill of it."""

    model: Model
    members: tuple[Member, ...]
    fill: Fill
    mesh: Mesh | None

    @property
    def steps(self) -> int:
        return self.members[0].recipe.steps

    @property
    def batch(self) -> int:
        return self.members[0].recipe.batch

    @cached_property
    def rows(self) -> Any:
        """Sharding of tokens."""
        return None if self.mesh is None else over_data(self.mesh, self.fill.rows)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All that any member is for."""
        return tuple(sorted({i for m in self.members for i in m.recipe.dictionary.layers}))

    @cached_property
    def harvest(self) -> Callable[..., dict[str, jax.Array]]:
        """One run of the model for what all members read and write, by site: [layer, token, width]."""
        cfg, layers = self.model.cfg, self.layers
        ends = (m.recipe.dictionary for m in self.members)
        names = tuple(dict.fromkeys(name for d in ends for name in (d.reads, d.writes)))
        return jax.jit(lambda params, tokens: buffers(cfg, params, names, layers, tokens))

    @cached_property
    def programs(self) -> dict[Recipe, tuple[Callable[..., State], Callable[..., Any]]]:
        """First state and fill of every recipe, seeds left out."""
        return {r: self._programs(r) for r in dict.fromkeys(_unseeded(m) for m in self.members)}

    def _programs(self, recipe: Recipe) -> Any:
        d, places, batch = recipe.dictionary, None, None
        if self.mesh is not None:
            places = state_shardings(recipe, self.mesh)
            batch = over_data(self.mesh, recipe.batch // recipe.accumulate)
        slots = None if d.layers == self.layers else jnp.asarray([self.layers.index(i) for i in d.layers])

        def taken(acts: dict[str, Any]) -> tuple[Any, Any]:
            x, y = acts[d.reads], acts[d.writes]
            return (x, y) if slots is None else (x[slots], y[slots])

        start = jax.jit(partial(init_state, recipe), out_shardings=places)

        def first(acts: Any, key: Any) -> State:  # as in `run.make_programs`
            return start(*taken(acts), key)

        def one(state: State, acts: Any, number: Any, key: Any) -> Any:
            x, y = taken(acts)
            return fit(recipe, self.fill, state, x, y, number, key=key, place=batch)

        both = None if places is None else (places, None)
        return first, jax.jit(one, donate_argnums=(0,), out_shardings=both)

    def about(self, corpus: Corpus) -> dict[str, Any]:
        """What decides the numbers of all members."""
        shared = identity(self.model, self.members[0].recipe, self.fill, corpus.describe())
        del shared["recipe"]
        return {"members": {m.name: asdict(m.recipe) for m in self.members}} | shared

    def abstract(self) -> dict[str, Any]:
        """Shapes and places of all states."""
        return {m.name: abstract_state(self.model, m.recipe, self.fill, self.mesh) for m in self.members}

    def first(self, tokens: Any) -> dict[str, State]:
        """The states before the first step."""
        acts = self.harvest(self.model.params, tokens)
        return {m.name: self.programs[_unseeded(m)][0](acts, jax.random.key(m.seed)) for m in self.members}

    def begin(self, run: Path, corpus: Corpus, about: dict[str, Any]) -> tuple[dict[str, State], int, dict[str, str]]:
        """The states to go on from, their step, and who had failed by then; folders are as they were at that step."""
        for path in (run, *(folder_of(run, m) for m in self.members)):
            folder.clear_remains(path)
        found = folder.read_state(run, self.abstract(), about)
        step = found[1] if found else 0
        _prepare(run, self.members, step)
        failed = _failures(run, self.members, step)
        if found:
            return found[0], step, failed
        rows = tokens_of(corpus, self.fill, 0, self.fill.n_rows(self.batch))
        return self.first(placed(rows, self.rows)), step, failed

    def fill_once(
        self, run: Path, states: dict[str, State], failed: dict[str, str], tokens: Any, number: int, step: int
    ) -> dict[str, Any]:
        """Harvest, and a fill of every member that has not failed; `states` and `failed` are brought up to date."""
        start, found, rows = time.monotonic(), {}, {}
        acts = self.harvest(self.model.params, tokens)
        going = [m for m in self.members if m.name not in failed]
        for m in going:
            go = self.programs[_unseeded(m)][1]
            states[m.name], found[m.name] = go(states[m.name], acts, jnp.int32(number), jax.random.key(m.seed))
        for m in going:
            try:
                here = folder_of(run, m)
                rows[m.name] = figures(m.recipe, self.fill, states[m.name], found[m.name], step, start, here)
            except TrainingError as problem:
                failed[m.name] = str(problem)
                _write_failure(folder_of(run, m), step, str(problem))
        after = min(step + self.fill.steps, self.steps)
        speed = (after - step) * self.batch / max(time.monotonic() - start, 1e-9)
        told = {"step": after, "tokens": after * self.batch, "tokens_per_second": speed}
        if is_lead():
            folder.add_metrics(run, told | {"members": len(rows)})
            for name, row in rows.items():
                row["tokens_per_second"] = speed  # of the whole sweep: members share the model's run
                folder.add_metrics(run / "members" / name, row)
        return told | {"members": rows}


def _unseeded(member: Member) -> Recipe:
    return replace(member.recipe, seed=0)


def _prepare(run: Path, members: Sequence[Member], step: int) -> None:
    """Every folder as it was after a step."""
    folder.prepare(run, step)
    if is_lead():
        for m in members:
            folder_of(run, m).mkdir(parents=True, exist_ok=True)
            folder.cut_metrics(folder_of(run, m), step)


def _write_failure(member: Path, step: int, message: str) -> None:
    if is_lead():
        (member / FAILED).write_text(json.dumps({"step": step, "message": message}), encoding="utf-8")


def _failures(run: Path, members: Sequence[Member], step: int) -> dict[str, str]:
    """The members that had failed before a step, and why; later failures are forgotten: they come again."""
    found = {}
    for m in members:
        path = folder_of(run, m) / FAILED
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["step"] < step:
                found[m.name] = told["message"]
            elif is_lead():
                path.unlink()
    return found
