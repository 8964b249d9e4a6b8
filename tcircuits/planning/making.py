"""Making a plan: compile, add up, compare with what the devices have, look for the smallest slice that fits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractMesh

from tcircuits.models import params as parameters
from tcircuits.parallel import AXES, RULES
from tcircuits.planning.devices import measured, mesh_of, own_compiler
from tcircuits.planning.extraction import extraction_stages
from tcircuits.planning.hardware import Topology, larger_first
from tcircuits.planning.host_memory import host_memory
from tcircuits.planning.programs import Abstract, Stage, abstracted, stages
from tcircuits.planning.request import Request, check
from tcircuits.planning.result import Line, Plan, seconds
from tcircuits.transcoders import dictionary
from tcircuits.types import InputError


def check_division(r: Request, topology: Topology) -> None:
    """Raise where the devices cannot share the features evenly: each would hold the whole dictionary.

    Raises:
        InputError: with the topologies that divide them.
    """
    name, size = ("d_mlp", r.model.d_mlp) if r.dictionary.kind == "neurons" else ("d_feature", r.dictionary.d_feature)
    if size % topology.devices:
        fine = [t.name for t in reversed(larger_first(topology.device.kind)) if size % t.devices == 0]
        raise InputError(
            f"{topology.name} has {topology.devices} devices, which do not divide the {size:,} features of a layer "
            f"({name}): each would hold all of them; of {topology.device.kind} these do: {', '.join(fine) or 'none'}"
        )


def whole_arrays(r: Request, n: int) -> tuple[str, ...]:
    """Arrays that every device holds whole although a rule would divide them."""
    found = []
    for tree in (parameters.spec(r.model), dictionary.spec(r.dictionary)):
        for path, spec in jax.tree.leaves_with_path(tree):
            axes = [(a, s) for a, s in zip(spec.axes, spec.shape, strict=True) if a and RULES[a] == "model"]
            if axes and all(size % n for _, size in axes):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                found.append(f"{name} ({', '.join(f'{a} {s}' for a, s in axes)})")
    return tuple(found)


def persistent_bytes(r: Request, n: int) -> int:
    """Bytes of parameters and dictionary on each of n devices; nothing is compiled."""
    mesh: Any = AbstractMesh((1, n), AXES)
    return abstracted(r, mesh).persistent


def make(r: Request, topology: Topology) -> Plan:
    """The plan for one topology, without a look at others.

    Raises:
        InputError: as `check` and `check_division`.
    """
    check(r)
    check_division(r, topology)
    topology = measured(topology)
    a = abstracted(r, mesh_of(topology), topology.device.kind)
    # Where not even the parameters fit, nothing is compiled.
    lines, refused = _lines(a, topology) if a.persistent <= topology.device.memory else ((), "")
    host = host_memory(r)
    return Plan(
        topology=topology.name,
        devices=topology.devices,
        compiler="libtpu" if topology.device.tpu and own_compiler(topology) else "this host",
        capacity=topology.device.memory,
        persistent=a.persistent,
        lines=lines,
        edges=host.edges,
        host=host.peak,
        whole=whole_arrays(r, topology.devices),
        refused=refused,
    )


def _lines(a: Abstract, topology: Topology) -> tuple[tuple[Line, ...], str]:
    """The programs, as far as the compiler takes them, and what it said of the first that it does not."""
    lines: list[Line] = []
    programs = stages(a) if a.request.behaviour is None else extraction_stages(a)
    running = _until_refused(programs)
    for stage in running:
        if isinstance(stage, str):
            return tuple(lines), stage
        lines.append(_line(stage, topology))
    return tuple(lines), ""


def _until_refused(programs: Iterator[Stage]) -> Iterator[Stage | str]:
    """The programs; where the compiler finds one too large for the device, its message."""
    try:
        yield from programs
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield next((line for line in str(error).splitlines() if "Used" in line), str(error))[:400]


def _line(stage: Stage, topology: Topology) -> Line:
    m, c = stage.memory, stage.cost
    return Line(
        name=stage.name,
        runs=stage.runs,
        held=m.held,
        results=m.results,
        workspace=m.workspace,
        code=m.code,
        flops=c.flops,
        n_bytes=c.n_bytes,
        collectives={k: float(v) for k, v in c.runs.items()},
        moved=c.moved_bytes,
        seconds=seconds(topology.device, c.flops, c.n_bytes, c.moved_bytes),
    )


def candidates(r: Request, topology: Topology, largest: int) -> list[Topology]:
    """Topologies of the kind that may fit, the smallest first: those whose share of the parameters does."""
    capacity = measured(topology).device.memory
    found = []
    for t in reversed(larger_first(topology.device.kind)):
        size = r.model.d_mlp if r.dictionary.kind == "neurons" else r.dictionary.d_feature
        if t.devices <= largest and size % t.devices == 0 and persistent_bytes(r, t.devices) <= capacity:
            found.append(t)
    return found


def with_smallest(plan: Plan, r: Request, topology: Topology, largest: int) -> Plan:
    """The plan with the smallest topology that fits; those below a fitting one are compiled, as are those above."""
    if topology.device.kind == "cpu":
        return plan
    for t in candidates(r, topology, largest):
        if t.devices == topology.devices:
            fits = plan.fits
        elif plan.fits and t.devices > topology.devices:
            break
        else:
            fits = make(r, t).fits
        if fits:
            return replace(plan, smallest=t.name)
    return plan
