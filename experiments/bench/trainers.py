"""How fast is a training step, against PyTorch's trainers of sparse dictionaries, and against this machine's peak?

    python -m experiments.bench.trainers [--rival-python PATH]
    python -m experiments.bench.trainers --device gpu --sizes small large --precisions float32 bfloat16 ...

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

Ratios depend on the processor: PyTorch's products take longer on AMD's than on Intel's, ours do not. Compare ratios of
one result only.

A run of ours takes its steps in one compiled program (`harvest.run_fill`, 16 of them by default), so steps are timed in
programs of `steps` over the three batches; `single` is the time of a step that is a program of its own, which asks the
system for its memory anew each time. A rival's step is a call, as its own trainer makes it.

FLOPs of a step: dense is 5 products of 2 B d F; what TopK needs at least is one product and 4 of 2 B d k; cross-layer
is 2 products for each encoder and 3 for each pair. `share_of_peak` is the dense (for TopK also the least) count over
the time, over the best float32 product of the same process.

On a GPU (`bench_trainers_gpu`) each side is one process for all it times, the two after each other. A second size is a
layer of a real model: batch 8192, width 2048, 32,768 features, k 64. A sample is a program of many steps on our side,
as many calls between two waits on theirs (`GPU_STEPS`). float32 is float32 storage with products in TF32 on both
sides (JAX's default, torch's `high`); bfloat16 is products in bfloat16 with weights and moments in float32, on their
side as each library's trainer does it (see `rival_trainers`). The peak is that of [8192, 8192] products of the same
precision, each side's own. A step that failed has its `error` in place of figures. There is no `single`, and no second
allocator: both sides keep the GPU's memory.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.common import ROOT, fresh, hardware, matmul_peak, peak_rss_gb, run, save, say, show
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
SIZES: dict[str, dict[str, Any]] = {  # what a size changes in `Config`
    "small": {},
    "large": {"batch": 8192, "width": 2048, "features": 32768, "k": 64, "layers": 0},
}
GPU_STEPS = {"small": (32, 20), "large": (8, 5)}  # of a sample: ours, theirs
GPU_NAMES = ("topk", "topk sae", "batchtopk", "clt relu", "clt jumprelu")

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Config:
    """Sizes and repetitions."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where both sides train."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Of the products; on the CPU float32 only."""
    sizes: tuple[Literal["small", "large"], ...] = ("small",)
    """`small` is what the next fields say, `large` see `SIZES`; on the CPU small only."""
    batch: int = 4096
    """Tokens of a step."""
    width: int = 576
    """d_model of the per-layer dictionaries."""
    features: int = 4608
    """Their features."""
    k: int = 32
    """Features kept."""
    layers: int = 6
    """Of the cross-layer dictionary; 0 is none."""
    clt_width: int = 256
    """Its d_model."""
    clt_features: int = 1024
    """Its features a layer."""
    warmup: int = 3
    """A rival's steps before timing; on our side the first program is not timed."""
    repeats: int = 9
    """Steps timed; the median counts."""
    steps: int = 3
    """Steps of one program on our side; each of them counts as their mean (on a GPU see `GPU_STEPS`)."""
    seconds: float = 2.0
    """On a GPU: after this time no further sample of a step is begun; three are always taken."""
    names: tuple[str, ...] = ()
    """Which of our recipes, and what is compared with them; () is all."""
    rival_python: Path | None = None
    """An interpreter that has the rivals; without it only our side is timed."""


def recipes(cfg: Config) -> dict[str, Recipe]:
    """What is timed on our side."""
    one = TranscoderConfig("transcoder", 1, cfg.width, cfg.features, (0,), "topk", k=cfg.k)
    sae = replace(one, kind="sae", reads="mlp_out", writes="mlp_out")
    topk = Recipe(one, Objective(error="fvu"), Optimizer(clip=None), batch=cfg.batch)
    per_layer = {
        "topk": topk,
        "topk dense": replace(topk, decode="dense"),
        "topk bf16": replace(topk, compute="bfloat16"),
        "topk sae": replace(topk, dictionary=sae),
        "batchtopk": replace(
            topk, dictionary=replace(one, activation="batchtopk", k=None), objective=Objective(error="fvu", k=cfg.k)
        ),
    }
    return per_layer | (cross_layer(cfg) if cfg.layers else {})


def cross_layer(cfg: Config) -> dict[str, Recipe]:
    """Those of them whose decoders write to all later layers."""
    all_layers = tuple(range(cfg.layers))
    clt = TranscoderConfig("clt", cfg.layers, cfg.clt_width, cfg.clt_features, all_layers)
    n = cfg.clt_width * cfg.batch  # of a mean over tokens and dimensions ours is `n / batch` times the size
    sparse = Objective(
        tanh=1e-3 * n, tanh_scale=1.0, preactivation=3e-6 * cfg.clt_width / (cfg.clt_features * cfg.layers)
    )
    ramp = Optimizer(lr=1e-4, warmup=0, decay=0.0, clip=1.0, sparsity_warmup=10_000)
    relu = Recipe(clt, sparse, ramp, batch=cfg.batch, decoder_norm="free")
    return {
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
    program, state, order, data = prepared(recipe, cfg.steps)
    state, l0, first, seconds = clocked(program, state, order, data, -(-cfg.repeats // cfg.steps))
    state, _, _, single = clocked(program, state, order[:1], data, cfg.repeats // 3)
    rss, peak = peak_rss_gb(), matmul_peak()
    row = described(name, recipe, seconds, first, l0, peak)
    return row | {"single": median(single), "peak_rss_gb": rss}


def prepared(recipe: Recipe, steps: int) -> tuple[Any, Any, Any, Any]:
    """A program of several steps, the first state, which batch each step takes, and the three batches."""
    c = recipe.dictionary
    shape = (3, len(c.layers), recipe.batch, c.d_model)
    x, y = (jax.random.normal(jax.random.key(i), shape, jnp.float32) for i in range(2))

    def several(state: Any, order: Any, data: Any) -> Any:
        x, y = data
        return jax.lax.scan(lambda s, i: train_step(recipe, s, x[i], y[i]), state, order)

    return jax.jit(several, donate_argnums=0), init_state(recipe, x[0], y[0]), jnp.arange(steps) % 3, (x, y)


def described(name: str, recipe: Recipe, seconds: list[float], first: float, l0: float, peak: float) -> dict[str, Any]:
    """The figures of a step that took these times."""
    timed, (dense, least) = sorted(seconds), flops(recipe)
    return {
        "step": name,
        "median": median(timed),
        "min": timed[0],
        "max": timed[-1],
        "tokens_per_second": recipe.batch / median(timed),
        "compile": first,
        "l0": l0,
        "share_of_peak_dense": dense / median(timed) / peak,
        "share_of_peak_least": least / median(timed) / peak,
        "peak_gflops": peak / 1e9,
    }


def clocked(
    program: Any, state: Any, order: Any, data: Any, calls: int, most: float = float("inf")
) -> tuple[Any, float, float, list[float]]:
    """State, the first step's L0, seconds of the first call, and of a step in each later call.

    After `most` seconds no further call is begun, but three are always timed.
    """
    n, l0, seconds = len(order), [], []
    while len(seconds) < 1 + calls and (len(seconds) < 4 or sum(seconds[1:]) * n < most):
        start = perf_counter()
        state, metrics = jax.block_until_ready(program(state, order, data))
        seconds.append((perf_counter() - start) / n)
        l0.append(float(metrics.l0[0].sum()))
    return state, l0[0], seconds[0] * n, seconds[1:]


def case(name: str, cfg: Config) -> dict[str, Any]:
    """What the rival's side is told."""
    c: dict[str, Any] = {"rival": name, "batch": cfg.batch, "warmup": cfg.warmup, "repeats": cfg.repeats}
    if name.startswith("decode-clt"):
        return c | {"width": cfg.clt_width, "features": cfg.clt_features, "layers": cfg.layers}
    return c | {"width": cfg.width, "features": cfg.features, "k": cfg.k}


def rival(python: Path, name: str, cfg: Config, env: dict[str, str]) -> dict[str, Any]:
    """One rival under one allocator."""
    c = case(name, cfg)
    done = run([python, ROOT / "experiments/bench/rival_trainers.py", json.dumps(c)], echo=False, **env)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"tokens_per_second": cfg.batch / found["median"], "peak_rss_gb": done.peak_rss_gb}


def ratios(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many times as many tokens a second ours trains, against each rival under each allocator."""
    return {
        name: {how: mine[AGAINST[name]]["tokens_per_second"] / one["tokens_per_second"] for how, one in both.items()}
        for name, both in theirs.items()
    }


def sized(cfg: Config, size: str) -> Config:
    """The settings of a size."""
    return replace(cfg, **SIZES[size])


def ours_on_gpu(settings: dict[str, Any]) -> dict[str, Any]:
    """All our recipes in all sizes and precisions, in this process: figures by precision, size and name.

    Raises:
        RuntimeError: JAX sees no GPU.
    """
    machine = hardware()
    if machine["platform"] != "gpu":
        raise RuntimeError(f"JAX sees no GPU here but {machine['device']}; install jax[cuda13], or use --device cpu")
    return {"rows": rows_of(Config(**settings)), "hardware": machine}


def rows_of(cfg: Config, peak_size: int = 8192) -> dict[str, Any]:
    """The same without asking where; `peak_size` is that of the products that measure the peak."""
    found: dict[str, Any] = {}
    for precision in cfg.precisions:
        peak = matmul_peak(peak_size, dtype=precision, precision=None, chain=8)
        say(f"ours: peak of {precision} {peak / 1e12:.1f} TFLOP/s")
        found[precision] = {}
        for size in cfg.sizes:
            here = found[precision][size] = {}
            for name, recipe in gpu_recipes(cfg, size).items():
                here[name] = gpu_row(name, replace(recipe, compute=precision), GPU_STEPS[size][0], cfg, peak)
                told = here[name].get("error") or f"{here[name]['median'] * 1e3:.2f} ms a step"
                say(f"ours: {name} {size} {precision}: {told}")
    return found


def gpu_recipes(cfg: Config, size: str) -> dict[str, Recipe]:
    """Those of a size that are timed on a GPU."""
    every = recipes(sized(cfg, size))
    return {name: every[name] for name in GPU_NAMES if name in every and (not cfg.names or name in cfg.names)}


def gpu_row(name: str, recipe: Recipe, steps: int, cfg: Config, peak: float) -> dict[str, Any]:
    """One recipe, in samples of one program; or what the device said against it, such as too little memory."""
    try:
        program, state, order, data = prepared(recipe, steps)
        _, l0, first, seconds = clocked(program, state, order, data, cfg.repeats, cfg.seconds)
    except jax.errors.JaxRuntimeError as error:
        return {"step": name, "error": str(error)[:300]}
    return described(name, recipe, seconds, first, l0, peak)


def rivals_on_gpu(cfg: Config) -> dict[str, Any]:
    """All rivals in one process: figures by precision, size and name, with the dense share of torch's own peak."""
    assert cfg.rival_python is not None
    keys, cases = [], []
    for precision in cfg.precisions:
        for size in cfg.sizes:
            mine, at = gpu_recipes(cfg, size), sized(cfg, size)
            # eai-sparsify last: a fault in a kernel of its own would fail what comes after it in the process
            for name in (n for n in reversed(AGAINST) if AGAINST[n] in mine):
                keys.append((precision, size, name))
                more = {"device": "cuda", "precision": precision, "steps": GPU_STEPS[size][1], "seconds": cfg.seconds}
                cases.append(case(name, at) | more)
    command = [cfg.rival_python, ROOT / "experiments/bench/rival_trainers.py", json.dumps(cases)]
    said = json.loads(run(command, echo=True).stdout.splitlines()[-1])
    found: dict[str, Any] = {p: {size: {} for size in cfg.sizes} for p in cfg.precisions}
    for (precision, size, name), row in zip(keys, said["cases"], strict=True):
        peak = said["peak_gflops"][precision]
        if "error" not in row:
            recipe = gpu_recipes(cfg, size)[AGAINST[name]]
            row["tokens_per_second"] = recipe.batch / row["median"]
            row["share_of_peak_dense"] = flops(recipe)[0] / row["median"] / peak / 1e9
        found[precision][size][name] = row | {"peak_gflops": peak}
    return found


def on_gpu(cfg: Config) -> None:
    """Measure, print, write, on a GPU. This process starts no JAX backend: it would hold the GPU's memory."""
    settings = {n: getattr(cfg, n) for n in cfg.__dataclass_fields__ if n != "rival_python"}
    own = fresh("experiments.bench.trainers", "ours_on_gpu", echo=True, settings=settings)
    figures: dict[str, Any] = {"ours": own["rows"], "theirs": {}, "ratios": {}}
    figures["sizes"] = {size: numbers(sized(cfg, size)) for size in cfg.sizes}
    save("bench.trainers", cfg, figures, variant="gpu", machine=own["hardware"])  # kept should a rival take all down
    if cfg.rival_python is not None:
        figures["theirs"] = rivals_on_gpu(cfg)
    for precision, size in ((p, size) for p in cfg.precisions for size in cfg.sizes):
        mine, theirs = own["rows"][precision][size], figures["theirs"].get(precision, {}).get(size, {})
        mine = {name: row for name, row in mine.items() if "error" not in row}
        timed = {name: row for name, row in theirs.items() if "error" not in row and AGAINST[name] in mine}
        found = {n: mine[AGAINST[n]]["tokens_per_second"] / row["tokens_per_second"] for n, row in timed.items()}
        figures["ratios"].setdefault(precision, {})[size] = found
        keys = ("median", "tokens_per_second", "share_of_peak_dense", "peak_gflops")
        show(f"{precision} {size}", [
            *({"step": n, **{k: row[k] for k in keys}, "ours x": None} for n, row in mine.items()),
            *({"step": n, **{k: row[k] for k in keys}, "ours x": found[n]} for n, row in timed.items()),
        ])  # fmt: skip
    save("bench.trainers", cfg, figures, variant="gpu", machine=own["hardware"])


def numbers(cfg: Config) -> dict[str, int]:
    """What a size says."""
    return {n: getattr(cfg, n) for n in ("batch", "width", "features", "k", "layers", "clt_width", "clt_features")}


def main(cfg: Config) -> None:
    """Measure, print, write.

    Raises:
        ValueError: sizes or precisions that are for a GPU.
    """
    if cfg.device == "gpu":
        return on_gpu(cfg)
    if cfg.precisions != ("float32",) or cfg.sizes != ("small",):
        raise ValueError("on the CPU precisions are float32 and sizes are small; the others need --device gpu")
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
