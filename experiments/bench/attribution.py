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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.bench.attribution_cases import CASES, GEMMA, build, exchange, least_flops
from experiments.common import commit, fresh, hardware, matmul_peak, peak_rss_gb, result_path, run, save, show, timed
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.settings import Settings


@dataclass(frozen=True)
class Config:
    """What to measure."""

    cases: tuple[str, ...] = tuple(CASES)
    """Models: those, or Gemma-2-2B (7.5k nodes of 64 tokens; 19 GB on the device)."""
    precisions: tuple[str, ...] = ()
    """Other precisions of the rows' products, each compared with float32."""
    on_cpu: tuple[str, ...] = ()
    """Cases that are also computed on this machine's CPU and compared (on a machine with another device)."""
    rival_python: Path | None = None
    """An interpreter that has circuit-tracer."""
    rival_device: str = "cpu"
    """Where it runs."""
    rivals: tuple[str, ...] = tuple(CASES)
    """Cases that it gets."""
    batches: tuple[int, ...] = (128, 256, 512)
    """Batch sizes of circuit-tracer."""
    repeats: int = 3
    """Warm calls, of which the best counts."""


def ours(case: str, folder: str | None, repeats: int, precision: str = "highest", name: str = "ours") -> dict[str, Any]:
    """Our side, in this process; writes what the comparison needs into `folder`."""
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    model, d, tokens = build(case)
    if folder and case in CASES:
        exchange(Path(folder) / "exchange.npz", model, d, tokens)
    built, stages = time.perf_counter() - start, []

    def attribute() -> tc.Graph:
        stages.append(tc.Timings())
        most = GEMMA["max_features"] if case == "Gemma-2-2B" else None
        given: dict[str, Any] = {"max_features": most, "position_zero": "constant", "precision": precision}
        return tc.attribute(model, d, tokens, timings=stages[-1], **given)

    done = timed(attribute, repeats)
    graph, rss = done.value, peak_rss_gb()
    device = jax.devices()[0].memory_stats() or {}
    pruning = timed(lambda: tc.prune(graph), repeats)
    best = min(stages[1:], key=lambda s: sum(s.values()))
    start = time.perf_counter()
    dense = graph.dense()
    packing = time.perf_counter() - start
    if folder:
        np.save(Path(folder) / f"{name}.npy", dense)
        np.save(Path(folder) / f"{name}.nodes.npy", graph.features)
        np.save(Path(folder) / f"{name}.mask.npy", pruning.value.node_mask)
    frozen = freeze_prompt(model, d, tokens.astype(np.int32), Settings(None, position_zero="constant"))
    flops = least_flops(model.cfg, graph, np.asarray(frozen.n_active))
    peak = matmul_peak(precision=None if precision == "default" else precision)
    return {
        "precision": precision,
        "features": graph.n_features,
        "n_active": graph.n_active,
        "edges": len(graph.weight),
        "cold": done.first,
        "warm": done.best,
        "stages": dict(best),
        "prune": pruning.best,
        "dense": packing,
        "build": built,
        "peak_rss_gb": rss,
        "peak_device_gb": device.get("peak_bytes_in_use", 0) / 1e9 or None,
        "max_row_gap": graph.max_row_gap,
        "least_gflop": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "fraction_of_peak": flops / done.best / peak,
        "fraction_of_peak_rows": flops / best["attribute"] / peak,
        "hardware": hardware(),
    }


def agreement(folder: Path, one: str = "ours", other: str = "rival") -> dict[str, Any]:
    """The largest difference between two adjacency matrices between nodes of both; what pruning keeps of each.

    A feature whose pre-activation is within rounding of zero may be active on one side alone: at most one in a
    thousand. `worst_of_row` is relative to the row's absolute sum.
    """
    ours, theirs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in (one, other))
    mine, their = ([tuple(x) for x in np.load(folder / f"{name}.nodes.npy").tolist()] for name in (one, other))
    both = sorted(set(mine) & set(their))
    ends = len(ours) - len(mine), len(theirs) - len(their)
    if ends[0] != ends[1] or len(both) < 0.999 * max(len(mine), len(their)):
        raise RuntimeError(f"the graphs differ: {len(mine)} and {len(their)} features, {ours.shape}, {theirs.shape}")
    at, there = (_places(nodes, both, ends[0]) for nodes in (mine, their))
    worst = largest = of_row = 0.0
    for i in range(0, len(at), 512):
        a, b = ours[at[i : i + 512]][:, at], theirs[there[i : i + 512]][:, there]
        off, mass = np.abs(a - b).max(1), np.abs(b).sum(1)
        worst, largest = max(worst, float(off.max())), max(largest, float(np.abs(b).max()))
        of_row = max(of_row, float((off / np.maximum(mass, 1e-30)).max()))
    found = {"max_difference": worst, "largest_entry": largest, "worst_of_row": of_row}
    found |= {"nodes_of_one_alone": len(mine) + len(their) - 2 * len(both)}
    masks = [folder / f"{name}.mask.npy" for name in (one, other)]
    if all(m.exists() for m in masks) and len(mine) == len(their) == len(both):
        a, b = map(np.load, masks)
        found |= {"nodes_kept": int(b.sum()), "nodes_differ": int((a != b).sum())}
    return found


def _places(nodes: list[tuple[int, ...]], both: list[tuple[int, ...]], ends: int) -> np.ndarray:
    """Where the features of both graphs, and the nodes that are no features, stand in one of them."""
    place = {node: i for i, node in enumerate(nodes)}
    return np.array([*(place[node] for node in both), *range(len(nodes), len(nodes) + ends)])


def rival(python: Path, folder: Path, cfg: Config) -> dict[str, Any]:
    """circuit-tracer's side, in a process of its own."""
    arguments = (folder / "exchange.npz", folder / "rival.npy", ",".join(map(str, cfg.batches)), str(cfg.repeats))
    done = run([python, "-m", "experiments.bench.rival_circuit_tracer", *arguments, cfg.rival_device])
    found = json.loads(done.stdout.splitlines()[-1])
    best = min(found["seconds_by_batch"], key=found["seconds_by_batch"].get)
    return found | {"peak_rss_gb": done.peak_rss_gb, "best_batch": int(best), "best": found["seconds_by_batch"][best]}


def measure(case: str, cfg: Config) -> Iterator[dict[str, Any]]:
    """One case, more of it each time: ours, at other precisions and on the CPU where that is asked for, the rival."""
    module = "experiments.bench.attribution"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments: dict[str, Any] = {"case": case, "folder": name, "repeats": cfg.repeats}
        found: dict[str, Any] = {"case": case, "ours": fresh(module, "ours", **arguments), "rival": None}
        found["precisions"] = []
        yield found
        if cfg.rival_python is not None and case in cfg.rivals:
            yield against(found, folder, cfg)
        if case in cfg.on_cpu:
            other = fresh(module, "ours", platform="cpu", **arguments | {"repeats": 1}, name="cpu")
            found["cpu"] = other | {"agreement": agreement(folder, "cpu", "ours")}
            yield found
        for precision in cfg.precisions:
            other = fresh(module, "ours", **arguments, precision=precision, name=precision)
            found["precisions"].append(other | {"agreement": agreement(folder, precision, "ours")})
            yield found


def against(found: dict[str, Any], folder: Path, cfg: Config) -> dict[str, Any]:
    """Add what circuit-tracer made of the same case, or why it made nothing."""
    assert cfg.rival_python is not None
    try:
        mine, other = found["ours"], rival(cfg.rival_python, folder, cfg)
    except RuntimeError as error:  # out of memory, say: what it said is part of the result
        found["rival_failed"] = str(error)[-500:]
        return found
    speed = {k: other["best"] / mine[k] for k in ("warm", "cold")} | {"prune": other["prune"] / mine["prune"]}
    speed["both"] = (other["best"] + other["prune"]) / (mine["warm"] + mine["prune"])
    found |= {"rival": other, "times_faster": speed, "agreement": agreement(folder)}
    return found


def earlier(machine: dict[str, Any], variant: str) -> list[dict[str, Any]]:
    """Cases that another call measured at this commit on such a device; they stay in the result."""
    path = result_path("bench.attribution", variant)
    if not path.exists():
        return []
    found, now = json.loads(path.read_text(encoding="utf-8")), commit()
    same = found["git"] == now and not now["dirty"] and found["hardware"]["device"] == machine["device"]
    return found["figures"]["cases"] if same else []


def main(cfg: Config) -> None:
    """Measure, print, write; what is measured stays should a later part fail."""
    found: dict[str, dict[str, Any]] = {}
    for case in cfg.cases:
        for so_far in measure(case, cfg):
            found[case], machine = so_far, so_far["ours"]["hardware"]
            variant = "" if machine["platform"] == "cpu" else machine["platform"]
            others = [f for f in earlier(machine, variant) if f["case"] not in found]
            save("bench.attribution", cfg, {"cases": [*others, *found.values()]}, variant=variant, machine=machine)
    report(list(found.values()))


def report(found: list[dict[str, Any]]) -> None:
    """Print the tables."""
    keys = ("cold", "warm", "prune", "peak_rss_gb", "least_gflop", "peak_gflops", "fraction_of_peak", "max_row_gap")
    rows = [
        {"case": f["case"], "precision": o["precision"], "features": o["features"]} | {k: o[k] for k in keys}
        for f in found
        for o in (f["ours"], *f["precisions"], *([f["cpu"]] if "cpu" in f else []))
    ]
    show("ours", rows)
    rows = []
    for f in found:
        if f["rival"] is not None:
            more = {f"{k} x": v for k, v in f["times_faster"].items()} | f["agreement"]
            rows.append({"case": f["case"], "best": f["rival"]["best"], "batch": f["rival"]["best_batch"]} | more)
    for f in found:
        if "rival_failed" in f:
            print(f"\ncircuit-tracer failed on {f['case']}: {f['rival_failed']}")
    if rows:
        show("circuit-tracer, and how many times faster ours is", rows)
    else:
        print("\ncircuit-tracer was not measured: give --rival-python, an interpreter that has it")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
