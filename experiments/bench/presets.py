"""What would the paper's three runs take on this machine: `gpt2-l8`, `pythia-410m-l15`, `pythia-1.4b-l15`?

    python -m experiments.bench.presets

Random weights of the real shapes, random tokens, the recipes of `presets.paper`, float32. Of each preset, in a process
of its own: the harvest (the model's forward pass over rows of 128 tokens, of which 127 count) and the training step,
each compiled and then timed apart. A real run does both in one program, harvesting each token once, so that a token
costs the sum; shuffling and reading the corpus are not in it.

Where a whole batch of 4096 would take minutes or not fit beside the rest, steps are timed at two smaller batches and
the line through both gives the step of 4096 (`measured_batches`, `extrapolated`): the optimiser's part does not depend
on the batch, the products are proportional to it. `hours` is 60 million tokens at that rate. `share_of_peak` is the
FLOPs over the time, over the best float32 product in the same process: of the step 5 products of 2 B d F, of the
harvest 2 for each token and parameter of the blocks that run. `program_gb` is what the compiler says that a whole run's
program holds (weights, state, a buffer of 16 steps, temporaries), compiled and not run; `peak_rss_gb` is of what was
run here.
"""

from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import fresh, matmul_peak, peak_rss_gb, save, show
from tcircuits.models import params as parameters
from tcircuits.models.config import ModelConfig
from tcircuits.models.families import config_from_hf
from tcircuits.transcoders.training.harvest import Fill, buffer, run_fill
from tcircuits.transcoders.training.presets import PAPER, PAPER_CONTEXT, PAPER_TOKENS, paper
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.step import init_state, train_step

NEOX = {"model_type": "gpt_neox", "vocab_size": 50_304, "max_position_embeddings": 2048, "rotary_pct": 0.25}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2-l8": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024,
                "vocab_size": 50_257},
    "pythia-410m-l15": {**NEOX, "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
                        "intermediate_size": 4096},
    "pythia-1.4b-l15": {**NEOX, "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16,
                        "intermediate_size": 8192},
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    presets: tuple[str, ...] = tuple(PAPER)
    """Of the paper."""
    rows: int = 8
    """Rows of 128 tokens in a timed harvest."""
    whole: tuple[str, ...] = ("gpt2-l8",)
    """Presets whose step is timed at the batch of 4096; the others at `parts`."""
    parts: tuple[int, int] = (256, 768)
    """Batches of the others."""
    repeats: int = 2
    """Runs after the one that compiles; the fastest counts."""


def best(f: Any, repeats: int) -> float:
    """Seconds of the fastest of some runs, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        start = perf_counter()
        jax.block_until_ready(f())
        seconds.append(perf_counter() - start)
    return min(seconds[1:])


def harvest_seconds(cfg: ModelConfig, recipe: Recipe, rows: int, repeats: int) -> float:
    """Seconds of the forward pass over so many rows."""
    params = parameters.init(cfg, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, rows, PAPER_CONTEXT), 0, cfg.d_vocab)
    run = jax.jit(partial(buffer, cfg, d=recipe.dictionary))
    return best(lambda: run(params, tokens=tokens), repeats)


def step_seconds(recipe: Recipe, repeats: int) -> float:
    """Seconds of one step on activations in memory."""
    shape = (1, recipe.batch, recipe.dictionary.d_model)
    x, y = (jax.random.normal(jax.random.key(i), shape, jnp.float32) for i in range(2))
    held = [init_state(recipe, x, y)]
    step = jax.jit(train_step, static_argnums=0, donate_argnums=1)

    def once() -> Any:
        state, metrics = step(recipe, held.pop(), x, y)
        held.append(state)
        return state, metrics

    return best(once, repeats)


def program_gb(cfg: ModelConfig, recipe: Recipe) -> float:
    """What the compiler says that the program of a run holds, in GB; nothing is allocated."""
    fill = Fill(context=PAPER_CONTEXT)
    params, kind = parameters.abstract(cfg), jnp.float32
    acts = jax.ShapeDtypeStruct((1, recipe.batch, cfg.d_model), kind)
    state = jax.eval_shape(partial(init_state, recipe), acts, acts)
    tokens = jax.ShapeDtypeStruct((fill.chunks(recipe.batch), fill.rows, fill.context), jnp.int32)
    run = jax.jit(partial(run_fill, cfg, recipe, fill), donate_argnums=1)
    memory: Any = run.lower(params, state, tokens, jnp.int32(0)).compile().memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9


def measure(name: str, rows: int, whole: bool, parts: list[int], repeats: int) -> dict[str, Any]:
    """One preset, in this process."""
    cfg = config_from_hf(MODELS[name])
    recipe = paper(name, cfg, PAPER[name].penalties[0])
    used = replace(cfg, n_layers=PAPER[name].layer + 1)
    blocks = parameters.count(used) - cfg.d_vocab * cfg.d_model * (1 if cfg.tied else 2)
    harvest = harvest_seconds(cfg, recipe, rows, repeats)
    batches = [recipe.batch] if whole else parts
    timed = [step_seconds(replace(recipe, batch=b), repeats) for b in batches]
    slope = 0.0 if whole else (timed[1] - timed[0]) / (batches[1] - batches[0])
    step = timed[-1] + slope * (recipe.batch - batches[-1])
    rss, peak = peak_rss_gb(), matmul_peak()
    per_token = harvest / (rows * (PAPER_CONTEXT - 1)) + step / recipe.batch
    unit = 2.0 * recipe.batch * cfg.d_model * recipe.dictionary.d_feature
    return {
        "preset": name,
        "harvest_tokens_per_second": rows * (PAPER_CONTEXT - 1) / harvest,
        "measured_batches": batches,
        "measured_seconds": timed,
        "extrapolated": not whole,
        "step_seconds": step,
        "tokens_per_second": 1 / per_token,
        "hours": per_token * PAPER_TOKENS / 3600,
        "share_of_peak_step": 5 * unit / step / peak,
        "share_of_peak_harvest": 2 * blocks * rows * PAPER_CONTEXT / harvest / peak,
        "peak_gflops": peak / 1e9,
        "peak_rss_gb": rss,
        "program_gb": program_gb(cfg, recipe),
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found = []
    for name in cfg.presets:
        settings = {"rows": cfg.rows, "whole": name in cfg.whole, "parts": cfg.parts, "repeats": cfg.repeats}
        found.append(fresh("experiments.bench.presets", "measure", name=name, **settings))
    keys = ("preset", "tokens_per_second", "hours", "step_seconds", "harvest_tokens_per_second", "share_of_peak_step",
            "share_of_peak_harvest", "peak_gflops", "peak_rss_gb", "program_gb", "extrapolated")  # fmt: skip
    show("presets", [{k: row[k] for k in keys} for row in found])
    save("bench.presets", cfg, {"presets": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
