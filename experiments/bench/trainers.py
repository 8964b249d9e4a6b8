"""How fast is a training step, against PyTorch's trainers of sparse dictionaries, and against this machine's peak?

    python -m experiments.bench.trainers [--rival-python PATH]

Activations in memory (three batches in rotation), float32, Adam; each side in a process of its own, one after the
other, in one run. Per-layer: batch 4096, width 576, 4608 features, k 32. Cross-layer: 6 layers of width 256 with 1024
features, one decoder for each pair. Rivals run under the default allocator and under one that keeps its memory
(`tuned`: `MALLOC_*` variables), since page faults are a third of some of their steps.

What is compared: eai-sparsify trains a TopK transcoder as we do; dictionary-learning and SAELens train no transcoders
from input to output, so their TopK SAE stands for it (the same products; ours is timed as an SAE as well);
decode-clt's cross-layer transcoder is timed with ReLU and with JumpReLU, with its default loss; ours has the same terms
with the same weights: mean squared error, 1e-3 tanh(n a) summed over tokens and growing over 10,000 steps, 3e-6 of the
mean max(0, -pre), all times the width, which Adam does not see. What differs: ours measures the last term from the
threshold, weighs it by decoder norms and lets it grow alike (more work, not less); theirs decays weights (AdamW);
first values are each library's own, and `l0` on both sides says how many features are on in the first batch. Steps
are timed, not what they learn.

A run of ours takes its steps in one compiled program (`harvest.run_fill`, 16 of them by default), so steps are timed in
programs of `steps` over the three batches; `single` is the time of a step that is a program of its own, which asks the
system for its memory anew each time. A rival's step is a call, as its own trainer makes it.

FLOPs of a step: dense is 5 products of 2 B d F; what TopK needs at least is one product and 4 of 2 B d k; cross-layer
is 2 products for each encoder and 3 for each pair. `share_of_peak` is the dense (for TopK also the least) count over
the time, over the best float32 product of the same process.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import ROOT, fresh, matmul_peak, peak_rss_gb, run, save, show
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.transcoders.training.step import init_state, train_step

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
AGAINST = {  # the rival's step, and ours that it is compared with
    "eai-sparsify signum": "topk",
    "eai-sparsify adam": "topk",
    "dictionary-learning": "topk sae",
    "sae-lens": "topk sae",
    "decode-clt relu": "clt relu",
    "decode-clt jumprelu": "clt jumprelu",
}


@dataclass(frozen=True)
class Config:
    """Sizes and repetitions."""

    batch: int = 4096
    """Tokens of a step."""
    width: int = 576
    """d_model of the per-layer dictionaries."""
    features: int = 4608
    """Their features."""
    k: int = 32
    """Features kept."""
    layers: int = 6
    """Of the cross-layer dictionary."""
    clt_width: int = 256
    """Its d_model."""
    clt_features: int = 1024
    """Its features a layer."""
    warmup: int = 3
    """A rival's steps before timing; on our side the first program is not timed."""
    repeats: int = 9
    """Steps timed; the median counts."""
    steps: int = 3
    """Steps of one program on our side; each of them counts as their mean."""
    names: tuple[str, ...] = ()
    """Which of our recipes, and what is compared with them; () is all."""
    rival_python: Path | None = None
    """An interpreter that has the rivals; without it only our side is timed."""


def recipes(cfg: Config) -> dict[str, Recipe]:
    """What is timed on our side."""
    one = TranscoderConfig("transcoder", 1, cfg.width, cfg.features, (0,), "topk", k=cfg.k)
    sae = replace(one, kind="sae", reads="mlp_out", writes="mlp_out")
    all_layers = tuple(range(cfg.layers))
    clt = TranscoderConfig("clt", cfg.layers, cfg.clt_width, cfg.clt_features, all_layers)
    adam = Optimizer(clip=None)
    topk = Recipe(one, Objective(error="fvu"), adam, batch=cfg.batch)
    n = cfg.clt_width * cfg.batch  # of a mean over tokens and dimensions ours is `n / batch` times the size
    sparse = Objective(
        tanh=1e-3 * n, tanh_scale=1.0, preactivation=3e-6 * cfg.clt_width / (cfg.clt_features * cfg.layers)
    )
    ramp = Optimizer(lr=1e-4, warmup=0, decay=0.0, clip=1.0, sparsity_warmup=10_000)
    relu = Recipe(clt, sparse, ramp, batch=cfg.batch, decoder_norm="free")
    return {
        "topk": topk,
        "topk dense": replace(topk, decode="dense"),
        "topk bf16": replace(topk, compute="bfloat16"),
        "topk sae": replace(topk, dictionary=sae),
        "batchtopk": replace(
            topk, dictionary=replace(one, activation="batchtopk", k=None), objective=Objective(error="fvu", k=cfg.k)
        ),
        "clt relu": relu,
        "clt jumprelu": replace(relu, dictionary=replace(clt, activation="jumprelu")),
        "clt topk": replace(relu, dictionary=replace(clt, activation="topk", k=cfg.k), objective=Objective()),
    }


def flops(recipe: Recipe) -> tuple[float, float]:
    """Floating-point operations of a step: as dense products, and at least."""
    c, b = recipe.dictionary, recipe.batch
    unit, n = 2.0 * b * c.d_model * c.d_feature, len(c.layers)
    dense = unit * (2 * n + 3 * c.n_pairs)
    if c.k is None:
        return dense, dense
    return dense, n * unit + 2.0 * b * c.d_model * c.k * (n + 3 * c.n_pairs)


def ours(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One of our recipes, in this process."""
    cfg = Config(**settings)
    recipe = recipes(cfg)[name]
    c = recipe.dictionary
    shape = (3, len(c.layers), recipe.batch, c.d_model)
    x, y = (jax.random.normal(jax.random.key(i), shape, jnp.float32) for i in range(2))
    state = init_state(recipe, x[0], y[0])
    order = jnp.arange(cfg.steps) % 3

    def several(state: Any, order: Any) -> Any:
        return jax.lax.scan(lambda s, i: train_step(recipe, s, x[i], y[i]), state, order)

    program = jax.jit(several, donate_argnums=0)
    state, l0, first, seconds = clocked(program, state, order, -(-cfg.repeats // cfg.steps))
    state, _, _, single = clocked(program, state, order[:1], cfg.repeats // 3)
    timed, (dense, least) = sorted(seconds), flops(recipe)
    rss, peak = peak_rss_gb(), matmul_peak()
    return {
        "step": name,
        "median": median(timed),
        "min": timed[0],
        "max": timed[-1],
        "single": median(single),
        "tokens_per_second": recipe.batch / median(timed),
        "compile": first,
        "l0": l0,
        "share_of_peak_dense": dense / median(timed) / peak,
        "share_of_peak_least": least / median(timed) / peak,
        "peak_gflops": peak / 1e9,
        "peak_rss_gb": rss,
    }


def clocked(program: Any, state: Any, order: Any, calls: int) -> tuple[Any, float, float, list[float]]:
    """State, the first step's L0, seconds of the first call, and of a step in each later call."""
    n, l0, seconds = len(order), [], []
    for _ in range(1 + calls):
        start = perf_counter()
        state, metrics = jax.block_until_ready(program(state, order))
        seconds.append((perf_counter() - start) / n)
        l0.append(float(metrics.l0[0].sum()))
    return state, l0[0], seconds[0] * n, seconds[1:]


def rival(python: Path, name: str, cfg: Config, env: dict[str, str]) -> dict[str, Any]:
    """One rival under one allocator."""
    c: dict[str, Any] = {"rival": name, "batch": cfg.batch, "warmup": cfg.warmup, "repeats": cfg.repeats}
    if name.startswith("decode-clt"):
        c |= {"width": cfg.clt_width, "features": cfg.clt_features, "layers": cfg.layers}
    else:
        c |= {"width": cfg.width, "features": cfg.features, "k": cfg.k}
    done = run([python, ROOT / "experiments/bench/rival_trainers.py", json.dumps(c)], **env)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"tokens_per_second": cfg.batch / found["median"], "peak_rss_gb": done.peak_rss_gb}


def ratios(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many times as many tokens a second ours trains, against each rival under each allocator."""
    return {
        name: {how: mine[AGAINST[name]]["tokens_per_second"] / one["tokens_per_second"] for how, one in both.items()}
        for name, both in theirs.items()
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    settings = {n: getattr(cfg, n) for n in cfg.__dataclass_fields__ if n != "rival_python"}
    mine, theirs = {}, {}
    for name in cfg.names or recipes(cfg):
        mine[name] = fresh("experiments.bench.trainers", "ours", name=name, settings=settings)
    show("ours", list(mine.values()))
    if cfg.rival_python is not None:
        for name in (n for n, own in AGAINST.items() if own in mine):
            ways = {"default": {}, "tuned": TUNED}
            theirs[name] = {how: rival(cfg.rival_python, name, cfg, env) for how, env in ways.items()}
    found = ratios(mine, theirs)
    show("theirs", [
        {"rival": n, "allocator": how, "median": r["median"], "tokens_per_second": r["tokens_per_second"],
         "ours x": found[n][how]}
        for n, both in theirs.items() for how, r in both.items()
    ])  # fmt: skip
    save("bench.trainers", cfg, {"ours": mine, "theirs": theirs, "ratios": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
