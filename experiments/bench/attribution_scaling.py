"""How does the time of an attribution graph grow with rows, tokens, layers, width and active features?

    python -m experiments.bench.attribution_scaling

Random Llama-like models with per-layer ReLU transcoders; one size is changed at a time, all others are those of BASE.
Each time is that of a whole warm call of `tc.attribute`, the best of some, and of `tc.prune`. The exponent is the slope
of log time over log size, by least squares over all points of a sweep; beside it that of the least work that the rows
need (`experiments.bench.attribution`). A slope below the work's says that the larger sizes use the machine better.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.bench.attribution_cases import least_flops
from experiments.common import matmul_peak, save, say, show, timed
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.settings import Settings

BASE = {"rows": 2000, "tokens": 32, "layers": 8, "width": 256, "active": 20}
SWEEPS: dict[str, tuple[int, ...]] = {
    "rows": (500, 1000, 2000, 4000),
    "tokens": (16, 32, 64, 128),
    "layers": (4, 8, 16, 32),
    "width": (128, 256, 512, 1024),
    "active": (10, 20, 40, 80),
}
D_FEATURE, D_VOCAB, D_HEAD = 1024, 512, 32


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sweeps: tuple[str, ...] = tuple(SWEEPS)
    """Sizes that are changed."""
    repeats: int = 3
    """Warm calls, of which the best counts."""


def measure(sizes: dict[str, int], repeats: int) -> dict[str, Any]:
    """Times and least work of one size."""
    heads = sizes["width"] // D_HEAD
    model = random_model(
        "llama",
        n_layers=sizes["layers"],
        d_model=sizes["width"],
        n_heads=heads,
        n_kv_heads=heads // 2,
        d_head=D_HEAD,
        d_mlp=2 * sizes["width"],
        d_vocab=D_VOCAB,
        n_ctx=256,
        rotary_dim=D_HEAD,
        rope_scaling=None,
    )
    tokens = np.concatenate([[0], np.random.default_rng(2).integers(1, D_VOCAB, sizes["tokens"] - 1)])
    share = sizes["active"] / D_FEATURE
    d = random_dictionary(model, "plt-relu", tokens, d_feature=D_FEATURE, share=share, reads="mlp_in")
    stages: list[tc.Timings] = []

    def attribute() -> tc.Graph:
        stages.append(tc.Timings())
        return tc.attribute(model, d, tokens, max_features=sizes["rows"], position_zero="constant", timings=stages[-1])

    done = timed(attribute, repeats)
    graph = done.value
    pruning = timed(lambda: tc.prune(graph), repeats)
    best = min(stages[1:], key=lambda s: sum(s.values()))
    frozen = freeze_prompt(model, d, tokens.astype(np.int32), Settings(None, position_zero="constant"))
    jax.clear_caches()
    return sizes | {
        "n_active": graph.n_active,
        "edges": len(graph.weight),
        "cold": done.first,
        "warm": done.best,
        "sweep": best["attribute"],
        "prune": pruning.best,
        "least_gflop": least_flops(model.cfg, graph, np.asarray(frozen.n_active)) / 1e9,
    }


def exponent(rows: list[dict[str, Any]], size: str, of: str) -> float:
    """Slope of log `of` over log `size`."""
    x, y = (np.log([row[name] for row in rows]) for name in (size, of))
    return float(np.polyfit(x, y, 1)[0])


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found, slopes, peak = {}, [], matmul_peak()
    for size in cfg.sweeps:
        say(size)
        rows = [measure(BASE | {size: value}, cfg.repeats) for value in SWEEPS[size]]
        for row in rows:
            row["fraction_of_peak"] = row["least_gflop"] * 1e9 / row["warm"] / peak
        found[size] = rows
        of = ("warm", "sweep", "prune", "least_gflop")
        slopes.append({"size": size} | {name: exponent(rows, size, name) for name in of})
        keys = (size, "n_active", "warm", "sweep", "prune", "least_gflop", "fraction_of_peak")
        show(f"by {size}", [{k: row[k] for k in keys} for row in rows])
    show("exponents", slopes)
    save("bench.attribution_scaling", cfg, {"base": BASE, "rows": found, "exponents": slopes, "peak": peak})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
