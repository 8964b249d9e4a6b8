"""What extraction takes at the sizes that the second paper names, on slices that nobody needs to have.

    python -m experiments.plan_extraction

Programs of a behaviour (64 prompts of 64 tokens, 256 circuits, gates on a tree of 4,000 units in 1,000 steps, the
membership network on four behaviours) are compiled ahead of time (`tcircuits plan --extract`): by the TPU's own
compiler for v5p slices (`pip install libtpu`, which needs no TPU), for H100s as an estimate. Float32, except where
"bfloat16" is written behind. Time is that of peak figures; a chip-hour is one device for an hour.

Second table: methods that score or remove single edges, on one H100 (8 prompts of 64 tokens, float32, an estimate):
memory and time of ACDC, edge attribution patching with integrated gradients, and edge pruning. HAGD has ACDC run out of
memory beyond 1.4B parameters. A run that was cut off goes on with the rows that are left.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import tcircuits as tc
from experiments.common import commit, fresh, hardware, result_path, save, say, show
from tcircuits.circuits.acdc import search_program
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.learning import Learning, learn_program
from tcircuits.circuits.running import Setting
from tcircuits.circuits.scores import POINTS, program
from tcircuits.planning.devices import measured, mesh_of, prepare
from tcircuits.planning.extraction import key_of, prompts_of
from tcircuits.planning.hardware import parse_topology
from tcircuits.planning.programs import Abstract, abstracted, compiled
from tcircuits.planning.request import Extraction, Request
from tcircuits.planning.result import seconds
from tcircuits.planning.sources import model_of
from tcircuits.transcoders.dictionary import neurons

ROWS = (
    "pythia-1.4b transcoder:32768 h100:8",
    "pythia-6.9b transcoder:65536 h100:8",
    "llama-2-7b transcoder:131072 h100:8",
    "llama-2-13b transcoder:131072 h100:8",
    "llama-2-70b transcoder:131072 h100:8 bfloat16",
    "pythia-1.4b transcoder:32768 v5p:2x2x1",
    "pythia-6.9b transcoder:65536 v5p:2x2x1",
    "llama-2-7b transcoder:131072 v5p:2x2x2",
    "llama-2-13b transcoder:131072 v5p:2x2x2",
    "llama-2-70b transcoder:131072 v5p:2x2x4",
)
MODELS = ("pythia-1.4b", "pythia-6.9b", "llama-2-7b", "llama-2-13b")
STEPS = 1000  # of edge pruning


@dataclass(frozen=True)
class Config:
    """What to plan."""

    rows: tuple[str, ...] = ROWS
    """Model, transcoders, topology, and a dtype other than float32."""
    models: tuple[str, ...] = MODELS
    """Of the second table."""
    again: bool = False
    """Make all plans anew, also those that an earlier run of this commit kept."""


def planned(text: str) -> dict[str, Any]:
    """One extraction: totals, and every program."""
    say(text)
    model, transcoders, topology, *other = text.split()
    dtype = other[0] if other else "float32"
    plan = tc.plan(model, topology, transcoders, dtype=dtype, smallest=False, behaviour=Extraction())
    programs = [
        {"program": x.name, "runs": x.runs, "gb": x.memory / 1e9, "tflop": x.flops / 1e12, "seconds": x.seconds}
        for x in plan.lines
    ]
    return {
        "plan": text,
        "device_gb": plan.needs / 1e9,
        "of_gb": plan.capacity / 1e9,
        "fits": plan.fits,
        "refused": plan.refused,
        "tflop": plan.flops / 1e12,
        "moved_gb": plan.moved / 1e9,
        "seconds": plan.seconds,
        "chip_hours": plan.device_hours,
        "compiler": plan.compiler,
        "programs": programs,
    }


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


def kept(cfg: Config) -> dict[str, list[dict[str, Any]]]:
    """Rows that an earlier run of this commit left."""
    path = result_path("plan_extraction")
    if cfg.again or not path.exists():
        return {"rows": [], "edges": []}
    found, now = json.loads(path.read_text(encoding="utf-8")), commit()
    return found["figures"] if found["git"] == now and not now["dirty"] else {"rows": [], "edges": []}


def main(cfg: Config) -> None:
    """Plan, print, write; each row is kept as soon as it is made."""
    figures, machine = kept(cfg), hardware()
    for model in cfg.models:
        if model not in [r["model"] for r in figures["edges"]]:
            say(f"edges of {model}")
            figures["edges"] += fresh("experiments.plan_extraction", "of_edges", model=model, topology="h100:1")
            save("plan_extraction", cfg, figures, machine=machine)
    for text in cfg.rows:
        if text not in [r["plan"] for r in figures["rows"]]:
            figures["rows"].append(planned(text))
            save("plan_extraction", cfg, figures, machine=machine)
    show("single edges", figures["edges"])
    show("extraction", [{k: v for k, v in r.items() if k not in ("programs", "refused")} for r in figures["rows"]])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
