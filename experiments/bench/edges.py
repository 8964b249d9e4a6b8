"""What do scores of all edges cost: each patched exactly on the embedded model, gradients at the size of Llama 8B?

    python -m experiments.bench.edges

First table: seconds (second call, compiled) and forward passes for every edge of the embedded model by each method, and
the largest memory that its program holds. Second: what the compiler says the gradient programs hold at the shape of
Llama-3.1-8B in bfloat16 (8 prompts of 64 tokens; nothing is allocated), with other numbers of layers and heads beside.
`ig`, which moves the mask of every edge, is the comparison: it keeps vectors for every reader and writer. Compiled for
the CPU, whose programs hold float32 copies of bfloat16 weights: what one prompt needs is nearly all of that.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import peak_rss_gb, save, show
from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.running import Setting
from tcircuits.circuits.scores import Method, program
from tcircuits.models import params as parameters
from tcircuits.models.config import ModelConfig

LLAMA = ModelConfig("llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, rotary_dim=128, rope_theta=500000.0)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str = "tiny"
    """Of the first table."""
    task: str = "ioi"
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 8
    """Of the second table, together in one program."""
    tokens: int = 64
    """Of each."""
    points: int = 8
    """Of eap-ig and ig."""


def timed(cfg: Config, model: tc.Model) -> list[dict[str, Any]]:
    """Every edge of a small model."""
    behaviour, edges, rows = tc.make_behaviour(model, cfg.task), tc.edges_of(model.cfg), []
    methods: tuple[Method, ...] = ("exact", "gradient", "relp", "eap-ig", "ig")
    for method in methods:
        tc.unit_scores(model, behaviour, edges, method=method, points=cfg.points)
        start = time.perf_counter()
        found = tc.unit_scores(model, behaviour, edges, method=method, points=cfg.points)
        seconds, n = time.perf_counter() - start, behaviour["attribution"].n
        row = {"method": method, "edges": edges.n, "prompts": n, "seconds": seconds, "forwards": found.forwards}
        rows.append(row | {"edge_runs_per_second": edges.n * n / seconds, "peak_rss_gb": peak_rss_gb()})
    return rows


def held(cfg: Config, shape: ModelConfig, method: Method) -> dict[str, Any]:
    """What the compiler says that a program of scores holds, in GB: the weights, and all else at its peak."""
    params = parameters.abstract(shape, jnp.bfloat16)
    points = 1 if method in ("gradient", "relp") else cfg.points
    at = jax.ShapeDtypeStruct((points,), jnp.float32)
    tokens = jax.ShapeDtypeStruct((cfg.prompts, cfg.tokens), jnp.int32)
    answers = jax.ShapeDtypeStruct((cfg.prompts, 1), jnp.int32)
    valid = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
    prompts = {"clean": tokens, "other": tokens, "valid": valid, "right": answers, "wrong": answers}
    prompts["at"] = jax.ShapeDtypeStruct((cfg.prompts,), jnp.int32)
    run = program(Setting(shape, edges_of(shape), "logit_difference"), method)
    memory: Any = jax.jit(run).lower(params, None, None, at, at, prompts).compile().memory_analysis()
    about = {"method": method, "prompts": cfg.prompts, "layers": shape.n_layers, "heads": shape.n_heads}
    about |= {"edges": edges_of(shape).n}
    weights = sum(int(np.prod(a.shape)) * 2 for a in jax.tree.leaves(params)) / 1e9
    return about | {"weights_gb": weights, "beside_gb": memory.temp_size_in_bytes / 1e9}


def main(cfg: Config) -> None:
    """Measure, print, write."""
    rows = timed(cfg, tc.load_model(cfg.model))
    show("every edge", rows)
    shapes = [LLAMA, replace(LLAMA, n_heads=128, n_kv_heads=32, d_head=32, rotary_dim=32)]
    shapes += [replace(LLAMA, n_layers=64)]
    memory = [held(cfg, LLAMA, method) for method in ("eap-ig", "relp", "ig")]
    memory += [held(replace(cfg, prompts=1), LLAMA, "eap-ig")]
    memory += [held(cfg, shape, "eap-ig") for shape in shapes[1:]]
    show("memory by the compiler", memory)
    save("bench.edges", cfg, {"every_edge": rows, "memory": memory, "backend": jax.default_backend()})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
