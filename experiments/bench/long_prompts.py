"""How long a prompt can be traced, in which memory, and how does time grow with it?

    python -m experiments.bench.long_prompts
    python -m experiments.bench.long_prompts --rival-python PATH

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

The second is a result of its own, of shorter prompts and beside circuit-tracer, which the interpreter that is given has
(`tests/golden/make_circuit_tracer.py`): the same weights, prompt and number of features there, in the largest batch of
`batches` that this machine has the memory for; one call of each, ours compiling. `worst_of_logits_rows` is the largest
difference between the logits' edges from errors and tokens, over their row's absolute sum; `chosen_by_both` counts
features with rows in both graphs (each side chooses by its own estimate of influence).
"""

import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.bench.attribution_cases import exchange, least_flops
from experiments.common import fresh, matmul_peak, peak_rss_gb, run, save, say, show, timed
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
    rival_python: Path | None = None
    """An interpreter that has circuit-tracer."""
    rival_lengths: tuple[int, ...] = (256, 512, 1024)
    """Tokens of its prompts."""
    batches: tuple[int, ...] = (64, 32, 16, 8, 4, 2, 1)
    """Its batches, the largest first."""


def build(length: int, bos: bool = False) -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """The model, its transcoders, a prompt of random tokens, after a token 0 where `bos` asks for one."""
    cfg = replace(MODEL, n_ctx=max(MODEL.n_ctx, length))
    params = parameters.init(cfg, jax.random.key(0))
    L, D = cfg.n_layers, cfg.d_model
    c = TranscoderConfig("transcoder", L, D, D_FEATURE, tuple(range(L)), activation="topk", k=K)
    w_enc, w_dec = (jax.random.normal(k, (L, D_FEATURE, D)) * D**-0.5 for k in jax.random.split(jax.random.key(1)))
    zeros = jnp.zeros((L, D_FEATURE)), jnp.zeros((L, D))
    d = tc.Transcoders(c, "random-topk", w_enc, zeros[0], w_dec, zeros[1], None, None)
    tokens = np.random.default_rng(2).integers(int(bos), cfg.d_vocab, length - bos)
    tokens = np.concatenate([[0], tokens]) if bos else tokens
    return tc.Model(cfg, params, None, "random-smollm2-135m"), d, tokens


def measure(length: int, max_features: int, shown: str | None = None) -> dict[str, Any]:
    """One prompt, in this process.

    `shown`: position 0 is constant, as in circuit-tracer, the chosen features are listed, and a file of this name gets
    the rows of the logits over errors and tokens, [k, L T + T].
    """
    model, d, tokens = build(length, bos=shown is not None)
    jax.block_until_ready((model.params, d))
    before, times = peak_rss_gb(), tc.Timings()
    how: Any = {"max_features": max_features, "position_zero": "constant" if shown else "auto"}
    found = timed(lambda: tc.attribute(model, d, tokens, timings=times, **how), 0)
    graph, traced = found.value, peak_rss_gb()
    pruning = timed(lambda: tc.prune(graph), 0)
    cfg, T = model.cfg, length
    n_active = np.full((cfg.n_layers, T), K)
    n_active[:, :1] *= shown is None
    flops = least_flops(cfg, graph, n_active)
    peak = matmul_peak()
    if shown:
        np.save(shown, of_logits(graph))
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
        "share_of_peak": flops / times["attribute"] / peak if times["attribute"] else None,  # 0: less than compiling
    } | ({"chosen": graph.features.tolist()} if shown else {})


def of_logits(graph: tc.Graph) -> np.ndarray:
    """Rows of the logits over errors and tokens, [k, L T + T]."""
    rows = np.zeros((len(graph.targets), graph.n_sources), np.float32)
    for i, row in enumerate(rows, graph.n_features):
        mine = slice(graph.row_start[i], graph.row_start[i + 1])
        row[graph.source[mine]] = graph.weight[mine]
    return rows[:, graph.n_features :]


def given(path: str, length: int, max_features: int) -> None:
    """Write what circuit-tracer needs of a prompt."""
    model, d, tokens = build(length, bos=True)
    exchange(Path(path), model, d, tokens, k=np.array(K), max_features=np.array(max_features))


def rival(python: Path, cfg: Config, length: int) -> dict[str, Any]:
    """circuit-tracer on a prompt, and ours beside it, each in a process of its own, one after the other."""
    module, sizes = "experiments.bench.long_prompts", ",".join(map(str, cfg.batches))
    found: dict[str, Any] = {"tokens": length}
    with tempfile.TemporaryDirectory() as folder:
        path, mine, theirs = (str(Path(folder) / name) for name in ("exchange.npz", "mine.npy", "theirs.npy"))
        fresh(module, "given", path=path, length=length, max_features=cfg.max_features)
        ours = fresh(module, "measure", length=length, max_features=cfg.max_features, shown=mine)
        found |= {f"our_{name}": ours[name] for name in ("seconds", "prune", "peak_rss_gb", "n_active")}
        try:
            done = run([python, "-m", "experiments.bench.rival_circuit_tracer", path, theirs, sizes, "1", "cpu"])
        except RuntimeError as error:
            return found | {"failed": str(error)[-300:]}
        found |= json.loads(done.stdout.splitlines()[-1]) | {"peak_rss_gb": done.peak_rss_gb}
        if found["seconds_by_batch"]:
            batch, seconds = next(iter(found["seconds_by_batch"].items()))
            found |= {"batch": int(batch), "seconds": seconds, "times_faster": seconds / ours["seconds"]}
            both = {tuple(x) for x in found.pop("features")} & {tuple(x) for x in ours["chosen"]}
            a, b = np.load(mine), np.load(theirs, allow_pickle=False)
            off = np.abs(a - b).max(1) / np.abs(b).sum(1)
            found |= {"chosen_by_both": len(both), "worst_of_logits_rows": float(off.max())}
    return found


def main(cfg: Config) -> None:
    """Measure, print, write; lengths that are done stay should a later one fail."""
    if cfg.rival_python is not None:
        rivals: list[dict[str, Any]] = []
        for length in cfg.rival_lengths:
            say(f"{length} tokens")
            rivals.append(rival(cfg.rival_python, cfg, length))
            save("bench.long_prompts", cfg, {"rows": rivals}, variant="rival")
        names = (
            "tokens",
            "n_active",
            "batch",
            "seconds",
            "peak_rss_gb",
            "our_seconds",
            "our_peak_rss_gb",
            "times_faster",
        )
        show(
            "circuit-tracer",
            [{k: r.get(k) for k in (*names, "worst_of_logits_rows", "chosen_by_both")} for r in rivals],
        )
        return
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
