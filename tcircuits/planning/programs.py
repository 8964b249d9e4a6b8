"""The compiled programs of `attribute`, lowered for devices that need not be there. Nothing is allocated or run.

The programs are the very objects that `attribute` calls; their arguments are shapes with shardings, and what one
program returns, laid out as its compiler chose, is what the next one takes. Parameters and dictionary are split as
`load_model` and `load_transcoders` split them with a mesh: heads, neurons, features and vocabulary over all devices.
Targets are spread over all devices where these divide no heads, as `attribute` does it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcircuits.attribution.attribute import SCORE_PROGRAMS, count_active, freeze_program, select_program
from tcircuits.attribution.expansion import (
    AHEAD,
    arranged_program,
    cone_program,
    rows_program,
    threads,
    worth_copying,
)
from tcircuits.attribution.memory import carried, lean, streams
from tcircuits.attribution.outputs import output_chunk, vectors_program
from tcircuits.attribution.select import Selection
from tcircuits.attribution.sketch import PROBES
from tcircuits.models import params as parameters
from tcircuits.numerics import bucket
from tcircuits.parallel import Spread, positions_of, shardings, spread_of
from tcircuits.planning.counting import Cost, cost
from tcircuits.planning.hlo import parse
from tcircuits.planning.request import Request
from tcircuits.planning.sweep import Sweeps, sweeps
from tcircuits.transcoders import dictionary


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while a program runs: what lives before, its results, its work space, its code."""

    held: int
    results: int
    workspace: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.held + self.results + self.workspace + self.code


@dataclass(frozen=True)
class Stage:
    """One program as compiled: its memory, the work of all its runs together, and how often it runs."""

    name: str
    runs: int
    memory: Memory
    cost: Cost


def abstract(tree: Any, mesh: Mesh, dtype: Any) -> Any:
    """Shapes with shardings for a tree of specs."""
    places = shardings(tree, mesh)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, dtype, sharding=p), tree, places)


def device_bytes(tree: Any) -> int:
    """Bytes that each device holds of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclass(frozen=True)
class Abstract:
    """What the programs of one request take, on one mesh."""

    request: Request
    mesh: Mesh
    platform: str
    params: Any
    d: Any

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array that every device has whole."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))

    @property
    def spread(self) -> Spread | None:
        """Over which devices `attribute` spreads targets."""
        return spread_of(self.mesh, self.request.model.n_heads) if self.mesh.size > 1 else None

    @property
    def persistent(self) -> int:
        """Bytes of parameters and dictionary on each device."""
        return device_bytes((self.params, self.d))


def abstracted(request: Request, mesh: Mesh, platform: str = "cpu") -> Abstract:
    """Shapes of parameters and dictionary on a mesh."""
    dtype = jnp.dtype(request.dtype)
    params = abstract(parameters.spec(request.model), mesh, dtype)
    d = abstract(dictionary.spec(request.dictionary), mesh, dtype)
    return Abstract(request, mesh, platform, params, d)


@dataclass(frozen=True)
class Compiled:
    """A program, what it returns, and the bytes of each device that its own buffers take."""

    module: Any
    out: Any
    results: int
    workspace: int
    code: int

    def stage(self, name: str, held: int, total: Cost, runs: int = 1, results: int | None = None) -> Stage:
        """The line of a plan."""
        memory = Memory(held, self.results if results is None else results, self.workspace, self.code)
        return Stage(name, runs, memory, total)

    def work(self, top: float = 1.0) -> Cost:
        """Work of one run."""
        return cost(self.module, top)


def compiled(program: Any, *args: Any, **static: Any) -> Compiled:
    """Lower and compile a program for the devices that its arguments' shardings name."""
    lowered = program.lower(*args, **static)
    made = lowered.compile()
    about = made.memory_analysis()
    out = jax.tree.map(
        lambda o, s: jax.ShapeDtypeStruct(o.shape, o.dtype, sharding=s), lowered.out_info, made.output_shardings
    )
    return Compiled(
        parse(made.as_text()),
        out,
        about.output_size_in_bytes,
        about.temp_size_in_bytes,
        about.generated_code_size_in_bytes,
    )


def stages(a: Abstract) -> Iterator[Stage]:
    """Every program of `attribute`, in the order in which it runs them, one line each."""
    r, cfg, held = a.request, a.request.model, a.persistent
    tokens, origin = a.array((r.tokens,), jnp.int32), a.array((), jnp.bool_)
    slots = None
    if r.dictionary.kind != "neurons" and r.default_slots > 64:
        slots = r.slots
        made = compiled(count_active, cfg, a.params, a.d, tokens, origin, spread=positions_of(a.mesh))
        yield made.stage("count active features", held, made.work())
    few = lean(cfg, r.dictionary, r.tokens, slots or r.default_slots, a.platform)
    how: dict[str, Any] = {"n_slots": slots, "origin": origin, "lean": few, "spread": positions_of(a.mesh)}
    made = compiled(freeze_program, cfg, a.params, a.d, tokens, **how)
    yield made.stage("forward, encode, freeze", held, made.work())
    frozen = made.out
    held += made.results
    made = compiled(vectors_program, a.params, a.array((bucket(r.targets),), jnp.int32))
    yield made.stage("target vectors", held, made.work())
    targets = _outputs(a, frozen)
    yield targets.stage("targets", held, targets.work())
    yield from _selected(a, frozen, targets.out, held + targets.results)


def _outputs(a: Abstract, frozen: Any) -> Compiled:
    """The chunk of logits that are explained."""
    B, D, dtype = bucket(a.request.targets), a.request.model.d_model, frozen.value.dtype
    vec, const = a.array((B, D), dtype), a.array((B,), dtype)
    pos, weight, n = a.array((B,), jnp.int32), a.array((B,), dtype), a.array((), jnp.int32)
    return compiled(output_chunk, a.request.model, a.params, frozen, vec, const, pos, weight, n)


def _selected(a: Abstract, frozen: Any, targets: Any, held: int) -> Iterator[Stage]:
    """Scores of all features, selection, and the rows of those selected."""
    r, cfg = a.request, a.request.model
    if r.features < r.n_active:
        probes = min(PROBES, streams(r.tokens, carried(cfg, r.dictionary, frozen.index.shape[-1])))
        made = compiled(
            SCORE_PROGRAMS["influence"], cfg, a.params, a.d, frozen, targets, n_probes=probes, spread=a.spread
        )
        yield made.stage("influence sketch", held, made.work(cfg.n_layers))
        score = made.out
        made = compiled(select_program, score, frozen.valid, n=r.features)
        yield made.stage("select", held + device_bytes(score), made.work())
    start = a.array((cfg.n_layers + 1,), jnp.int32)
    chosen = Selection(a.array((bucket(r.features, 64),), jnp.int32), start)
    every = r.features == r.n_active and r.dictionary.kind != "neurons"
    whole = a.platform == "cpu" and every and worth_copying(frozen.index.size, r.features)
    apart = 1 if a.spread is None else a.spread.n
    plan = sweeps(r, a.platform, frozen.index.shape[-1], multiple=apart, by_layer=whole)
    members = a.array((plan.chunks, plan.lanes), jnp.int32), a.array((plan.chunks,), jnp.int32)
    made = compiled(arranged_program, cfg, a.params, a.d, frozen, chosen.flat, [targets], *members)
    yield made.stage("features as targets", held + device_bytes(chosen), made.work())
    one = jax.tree.map(lambda x: a.array((1, *x.shape[1:]), x.dtype), made.out)
    yield from _rows(a, frozen, one, None if whole else chosen, plan, held + device_bytes(chosen) + made.results)


def _rows(a: Abstract, frozen: Any, one: Any, chosen: Any, plan: Sweeps, held: int) -> Iterator[Stage]:
    """The sweep, a program for each width of the causal cone; without `chosen`, of all slots.

    Some results live while the host copies the first; a single CPU runs as many programs at once as it has threads, of
    which one copies (`expansion.threads`).
    """
    r, given = a.request, (a.request.model, a.params, a.d, frozen, one)
    numbers, alone = carried(r.model, r.dictionary, frozen.index.shape[-1]), a.mesh.devices.size == 1
    beside = threads(plan.lanes, r.tokens, numbers) if a.platform == "cpu" and alone else 1
    for width, layers in sorted(plan.by_width.items()):
        how: dict[str, Any] = {"n_pos": width, "precision": "highest", "spread": a.spread}
        if chosen is None:
            made = compiled(cone_program, *given, **how)
        else:
            made = compiled(rows_program, *given, chosen, per_layer=plan.per_layer, **how)
        total = Cost()
        for layer, n in layers.items():
            total = total + made.work(layer).times(n)
        runs = sum(layers.values())
        live = min(beside if beside > 1 else AHEAD + 1, runs) * made.results
        several = replace(made, workspace=made.workspace * min(max(1, beside - 1), runs))
        yield several.stage(f"rows, {width} positions", held, total, runs, live)
