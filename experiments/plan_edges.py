"""What methods that score or remove single edges take at the sizes that the second paper names.

    python -m experiments.plan_edges

On one H100, 8 prompts of 64 tokens, float32, compiled ahead of time for this host's processor, so an estimate: memory
and time of ACDC, edge attribution patching with integrated gradients, and edge pruning. HAGD has ACDC run out of memory
beyond 1.4B parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import fresh, hardware, save, say, show
from tcircuits.circuits.acdc import search_program
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.learning import Learning, learn_program
from tcircuits.circuits.running import Setting
from tcircuits.circuits.scores import POINTS, program
from tcircuits.planning.devices import measured, mesh_of, prepare
from tcircuits.planning.extraction import key_of, prompts_of
from tcircuits.planning.hardware import parse_topology
from tcircuits.planning.programs import Abstract, abstracted, compiled
from tcircuits.planning.request import Request
from tcircuits.planning.result import seconds
from tcircuits.planning.sources import model_of
from tcircuits.transcoders.dictionary import neurons

STEPS = 1000  # of edge pruning


@dataclass(frozen=True)
class Config:
    """What to plan."""

    models: tuple[str, ...] = ("pythia-1.4b", "pythia-6.9b", "llama-2-7b", "llama-2-13b")
    """Names of known models: sizes alone."""
    topology: str = "h100:1"
    """One device."""


def of_edges(model: str, topology: str) -> list[dict[str, Any]]:
    """Memory and work of methods over single edges, in this process, which must not have used a device yet."""
    where = parse_topology(topology)
    prepare(where, where.devices)
    where = measured(where)
    cfg = model_of(model)
    edges, request = edges_of(cfg), Request(cfg, neurons(cfg.n_layers, cfg.d_model, cfg.d_mlp).cfg)
    a, rows = abstracted(request, mesh_of(where)), []
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(a.params))
    for method, lower in PROGRAMS.items():
        made = lower(a, edges)
        total = made.work(edges.n)
        row = {"model": model, "method": method, "topology": topology, "edges": edges.n, "weights_gb": weights / 1e9}
        row |= {"device_gb": (weights + made.results + made.workspace) / 1e9, "of_gb": where.device.memory / 1e9}
        hours = seconds(where.device, total.flops, total.n_bytes, total.moved_bytes) / 3600
        rows.append(row | {"tflop": total.flops / 1e12, "hours": hours})
    return rows


def _acdc(a: Abstract, edges: Edges) -> Any:
    s, order = Setting(a.request.model, edges, "logit_difference"), a.array((edges.n,), jnp.int32)
    given = (prompts_of(a, 8), a.array((8,), jnp.bool_), order, a.array((), jnp.float32))
    return compiled(search_program, s, a.params, None, *given)


def _eap_ig(a: Abstract, edges: Edges) -> Any:
    s, point = Setting(a.request.model, edges, "logit_difference"), a.array((POINTS,), jnp.float32)
    return compiled(jax.jit(program(s, "eap-ig")), a.params, None, None, point, point, prompts_of(a, 8))


def _pruning(a: Abstract, edges: Edges) -> Any:
    s, how = Setting(a.request.model, edges, "logit_difference"), Learning(steps=STEPS, batch=8)
    return compiled(learn_program, s, "pruning", how, 8, a.params, None, None, prompts_of(a, 8), key_of(a))


PROGRAMS: dict[str, Callable[[Abstract, Edges], Any]] = {"acdc": _acdc, "eap-ig": _eap_ig, "pruning": _pruning}


def main(cfg: Config) -> None:
    """Plan, print, write; each model is kept as soon as it is made."""
    rows: list[dict[str, Any]] = []
    for model in cfg.models:
        say(f"edges of {model}")
        rows += fresh("experiments.plan_edges", "of_edges", model=model, topology=cfg.topology)
        save("plan_edges", cfg, {"rows": rows}, machine=hardware())
    show("single edges", rows)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
