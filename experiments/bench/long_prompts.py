"""How long a prompt can be traced, in which memory, and how does time grow with it?

    python -m experiments.bench.long_prompts

Random weights in the shape of SmolLM2-135M (30 layers of width 576, 9 heads, 3 for keys and values, 49,152 tokens) with
per-layer TopK transcoders of 4,608 features, 32 on at every layer and position: 7.9 million active ones at 8,192
tokens. The top logits and 256 features get rows, chosen by influence among all; then the graph is pruned. Each length
is a process of its own, one call, compilation included.

- `peak_rss_gb` is the most memory of the process, `before_gb` what it held with model and transcoders loaded;
- `exponent` is the slope of log seconds over log tokens from the length before;
- `patterns_gb` and `decoders_gb` are what attention patterns and decoder rows of the active features would take: kept
  below 2 GB of patterns, beyond that computed and looked up where they are used (`lean`);
- `least_tflop` is the least work of the rows (`experiments.bench.attribution`), `share_of_peak` that over the seconds
  of the stage, over the best float32 product of the same process. Choosing 256 of millions costs as much as some 64
  rows from the top, which is not counted in it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.bench.attribution_cases import least_flops
from experiments.common import fresh, matmul_peak, peak_rss_gb, save, say, show, timed
from tcircuits.attribution.memory import lean
from tcircuits.models import params as parameters
from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig

MODEL = ModelConfig("llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, rotary_dim=64, rope_theta=1e5, tied=True)
D_FEATURE, K = 4608, 32


@dataclass(frozen=True)
class Config:
    """What to measure."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Tokens of the prompts."""
    max_features: int = 256
    """That get rows."""


def build(length: int) -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """The model, its transcoders, a prompt of random tokens."""
    cfg = replace(MODEL, n_ctx=max(MODEL.n_ctx, length))
    params = parameters.init(cfg, jax.random.key(0))
    L, D = cfg.n_layers, cfg.d_model
    c = TranscoderConfig("transcoder", L, D, D_FEATURE, tuple(range(L)), activation="topk", k=K)
    w_enc, w_dec = (jax.random.normal(k, (L, D_FEATURE, D)) * D**-0.5 for k in jax.random.split(jax.random.key(1)))
    zeros = jnp.zeros((L, D_FEATURE)), jnp.zeros((L, D))
    d = tc.Transcoders(c, "random-topk", w_enc, zeros[0], w_dec, zeros[1], None, None)
    tokens = np.random.default_rng(2).integers(0, cfg.d_vocab, length)
    return tc.Model(cfg, params, None, "random-smollm2-135m"), d, tokens


def measure(length: int, max_features: int) -> dict[str, Any]:
    """One prompt, in this process."""
    model, d, tokens = build(length)
    jax.block_until_ready((model.params, d))
    before, times = peak_rss_gb(), tc.Timings()
    found = timed(lambda: tc.attribute(model, d, tokens, max_features=max_features, timings=times), 0)
    graph, traced = found.value, peak_rss_gb()
    pruning = timed(lambda: tc.prune(graph), 0)
    cfg, T = model.cfg, length
    flops = least_flops(cfg, graph, np.full((cfg.n_layers, T), K))
    peak = matmul_peak()
    return {
        "tokens": T,
        "n_active": graph.n_active,
        "features": graph.n_features,
        "edges": len(graph.weight),
        "lean": lean(cfg, d.cfg, T, K, jax.default_backend()),
        "seconds": found.first,
        "stages": dict(times),
        "prune": pruning.first,
        "kept_nodes": int(pruning.value.node_mask.sum()),
        "before_gb": before,
        "peak_rss_gb": traced,
        "patterns_gb": 4e-9 * cfg.n_layers * cfg.n_heads * T**2,
        "decoders_gb": 4e-9 * graph.n_active * cfg.d_model,
        "max_row_gap": graph.max_row_gap,
        "least_tflop": flops / 1e12,
        "peak_gflops": peak / 1e9,
        "share_of_peak": flops / times["attribute"] / peak,
    }


def main(cfg: Config) -> None:
    """Measure, print, write; lengths that are done stay should a later one fail."""
    rows: list[dict[str, Any]] = []
    for length in cfg.lengths:
        say(f"{length} tokens")
        row = fresh("experiments.bench.long_prompts", "measure", length=length, max_features=cfg.max_features)
        if rows:
            last = rows[-1]
            row["exponent"] = math.log(row["seconds"] / last["seconds"]) / math.log(length / last["tokens"])
        rows.append(row)
        save("bench.long_prompts", cfg, {"rows": rows})
    show("long prompts", [{k: v for k, v in row.items() if k != "stages"} for row in rows])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
