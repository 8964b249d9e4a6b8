"""How long does an attribution graph take, against circuit-tracer on the same model, dictionary and prompt?

    python -m experiments.bench.attribution [--rival-python PATH]

Random Llama-like models with per-layer ReLU transcoders, all active features expanded, float32, position 0 (the BOS
token) constant as in circuit-tracer. Times are of whole calls: `tc.attribute` and `tc.prune` here; `attribute` and
`prune_graph` there, at several batch sizes of which the fastest counts. Ours is given cold (the first call of a
process, compiling included, no cache on disk) and warm; all others are warm, best of some. Each side runs in a process
of its own, one after the other. `--rival-python` is an interpreter that has circuit-tracer (what to install is in
`tests/golden/make_circuit_tracer.py`); without it the rival's figures are absent.

What a graph needs at least, in floating-point operations (2 a multiply-add), for a row at layer l, position p, with
n = p + 1 positions in its causal cone:

    attention, each of l layers:   2 [n (D H K + D G K) + n (n + 1) / 2 H K]
    features below it:             2 D sum of the active features at layers < l, positions <= p
    errors and tokens:             2 D (l n + n)

with D d_model, H heads, G key/value heads, K d_head; a target counts as l = L. The sweep does more: it pads features to
slots and positions to the widest of a chunk. `fraction_of_peak` is this least work over time and over the best
float32 matrix product of the same process, so it charges all padding, packing and host work.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.common import fresh, matmul_peak, peak_rss_gb, run, save, show, timed
from experiments.toys import random_dictionary, random_model
from tcircuits.models.config import ModelConfig

CASES: dict[str, dict[str, Any]] = {
    "A": {"n_layers": 8, "d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_head": 32, "length": 16, "features": 8843},
    "B": {"n_layers": 12, "d_model": 256, "n_heads": 8, "n_kv_heads": 4, "d_head": 32, "length": 24, "features": 5031},
}
D_FEATURE, D_VOCAB = 1024, 512


@dataclass(frozen=True)
class Config:
    """What to measure."""

    cases: tuple[str, ...] = tuple(CASES)
    """Models."""
    rival_python: Path | None = None
    """An interpreter that has circuit-tracer."""
    batches: tuple[int, ...] = (128, 256, 512)
    """Batch sizes of circuit-tracer."""
    repeats: int = 3
    """Warm calls, of which the best counts."""


def build(case: str) -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """The model, a dictionary with (nearly) the wanted number of active features, and the prompt, BOS first."""
    sizes = dict(CASES[case])
    length, wanted = sizes.pop("length"), sizes.pop("features")
    rope: dict[str, Any] = {"rotary_dim": sizes["d_head"], "rope_scaling": None}
    model = random_model("llama", d_mlp=4 * sizes["d_model"], d_vocab=D_VOCAB, **rope, **sizes)
    tokens = np.concatenate([[0], np.random.default_rng(2).integers(1, D_VOCAB, length - 1)])
    share = wanted / (sizes["n_layers"] * (length - 1) * D_FEATURE)
    d = random_dictionary(model, "plt-relu", tokens, d_feature=D_FEATURE, share=share, reads="mlp_in")
    return model, d, tokens


def exchange(path: Path, model: tc.Model, d: tc.Transcoders, tokens: np.ndarray) -> None:
    """Write everything that the rival needs, under our names."""
    named = {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in jax.tree.leaves_with_path(model.params)}
    arrays = {f"d.{name}": getattr(d, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}
    everything = {k: np.asarray(x) for k, x in (named | arrays).items()}
    np.savez(path, allow_pickle=False, cfg=np.array(json.dumps(asdict(model.cfg))), tokens=tokens, **everything)


def least_flops(cfg: ModelConfig, graph: tc.Graph) -> float:
    """The work that the rows of a graph need at least; see the module's docstring."""
    D, H, G, K, T = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, len(graph.tokens)
    active = np.zeros((cfg.n_layers + 1, T + 1))
    np.add.at(active, (graph.features[:, 0] + 1, graph.features[:, 1] + 1), 1)
    below = active.cumsum(0).cumsum(1)  # [l, n]: features at layers < l and positions < n
    layer = graph.row_layer.astype(np.int64)
    n = np.concatenate([graph.features[:, 1], [t.pos for t in graph.targets]]) + 1
    attention = layer * (n * (D * H * K + D * G * K) + n * (n + 1) / 2 * H * K)
    return float(2 * (attention + D * below[layer, n] + D * (layer * n + n)).sum())


def ours(case: str, folder: str | None, repeats: int) -> dict[str, Any]:
    """Our side, in this process; writes what the comparison needs into `folder`."""
    jax.config.update("jax_enable_compilation_cache", False)
    model, d, tokens = build(case)
    if folder:
        exchange(Path(folder) / "exchange.npz", model, d, tokens)
    stages: list[tc.Timings] = []

    def attribute() -> tc.Graph:
        stages.append(tc.Timings())
        return tc.attribute(model, d, tokens, position_zero="constant", timings=stages[-1])

    done = timed(attribute, repeats)
    graph, rss = done.value, peak_rss_gb()
    pruning = timed(lambda: tc.prune(graph), repeats)
    best = min(stages[1:], key=lambda s: sum(s.values()))
    start = time.perf_counter()
    dense = graph.dense()
    packing = time.perf_counter() - start
    if folder:
        np.save(Path(folder) / "ours.npy", dense)
        np.save(Path(folder) / "ours.nodes.npy", graph.features)
    flops, peak = least_flops(model.cfg, graph), matmul_peak()
    return {
        "features": graph.n_features,
        "edges": len(graph.weight),
        "cold": done.first,
        "warm": done.best,
        "stages": dict(best),
        "prune": pruning.best,
        "dense": packing,
        "peak_rss_gb": rss,
        "max_row_gap": graph.max_row_gap,
        "least_gflop": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "fraction_of_peak": flops / done.best / peak,
        "fraction_of_peak_rows": flops / best["attribute"] / peak,
    }


def agreement(folder: Path) -> dict[str, float]:
    """The largest difference between the two adjacency matrices, whose nodes must be the same."""
    ours, theirs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ours", "rival"))
    mine, other = np.load(folder / "ours.nodes.npy"), np.load(folder / "rival.npy.nodes.npy")
    if ours.shape != theirs.shape or not np.array_equal(mine, other):
        raise RuntimeError(f"the graphs differ: {len(mine)} and {len(other)} features, {ours.shape}, {theirs.shape}")
    worst = largest = 0.0
    for i in range(0, len(ours), 512):
        a, b = ours[i : i + 512], theirs[i : i + 512]
        worst, largest = max(worst, float(np.abs(a - b).max())), max(largest, float(np.abs(b).max()))
    return {"max_difference": worst, "largest_entry": largest}


def rival(python: Path, folder: Path, cfg: Config) -> dict[str, Any]:
    """circuit-tracer's side, in a process of its own."""
    arguments = (folder / "exchange.npz", folder / "rival.npy", ",".join(map(str, cfg.batches)), str(cfg.repeats))
    done = run([python, "-m", "experiments.bench.rival_circuit_tracer", *arguments])
    found = json.loads(done.stdout.splitlines()[-1])
    best = min(found["seconds_by_batch"], key=found["seconds_by_batch"].get)
    return found | {"peak_rss_gb": done.peak_rss_gb, "best_batch": int(best), "best": found["seconds_by_batch"][best]}


def measure(case: str, cfg: Config) -> dict[str, Any]:
    """One case, both sides."""
    with tempfile.TemporaryDirectory() as name:
        folder = None if cfg.rival_python is None else name
        arguments = {"case": case, "folder": folder, "repeats": cfg.repeats}
        found = {"case": case, "ours": fresh("experiments.bench.attribution", "ours", **arguments), "rival": None}
        if cfg.rival_python is None:
            return found
        mine, other = found["ours"], rival(cfg.rival_python, Path(name), cfg)
        speed = {k: other["best"] / mine[k] for k in ("warm", "cold")} | {"prune": other["prune"] / mine["prune"]}
        return found | {"rival": other, "times_faster": speed, "agreement": agreement(Path(name))}


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found = [measure(case, cfg) for case in cfg.cases]
    keys = ("cold", "warm", "prune", "peak_rss_gb", "least_gflop", "peak_gflops", "fraction_of_peak", "max_row_gap")
    show(
        "ours",
        [{"case": f["case"], "features": f["ours"]["features"]} | {k: f["ours"][k] for k in keys} for f in found],
    )
    if cfg.rival_python is None:
        print("\ncircuit-tracer was not measured: give --rival-python, an interpreter that has it")
    else:
        rows = []
        for f in found:
            batches = {f"b={b}": s for b, s in f["rival"]["seconds_by_batch"].items()}
            more = {f"{k} x": v for k, v in f["times_faster"].items()} | f["agreement"]
            rows.append({"case": f["case"]} | batches | {k: f["rival"][k] for k in ("prune", "peak_rss_gb")} | more)
        show("circuit-tracer, and how many times faster ours is", rows)
    save("bench.attribution", cfg, {"cases": found, "rival_measured": cfg.rival_python is not None})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
