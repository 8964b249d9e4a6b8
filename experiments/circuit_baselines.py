"""How well do the field's scores find circuits of the embedded model, beside what they must beat?

    python -m experiments.circuit_baselines

For each task and kind of units, all on the package's own harness: units are scored on the attribution split by every
method, circuits of growing size run on the report split. CMD, CPR (by score, as published), areas of accuracy and KL;
phi, agreement with the model, faithfulness and nulls at the size that `ig` takes on the selection split; Pearson
correlation of every method with exact ablation; what each method costs. Ablation: resampling from the counterfactual.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, show
from tcircuits.circuits import metrics
from tcircuits.circuits.discover import score
from tcircuits.circuits.learning import Kind
from tcircuits.circuits.metrics import SHARES
from tcircuits.circuits.running import Runs
from tcircuits.circuits.scores import POINTS, Method

STANDARD: Any = {"ablation": "resample", "errors": "keep"}


@dataclass(frozen=True)
class Config:
    """What to compare."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    units: tuple[str, ...] = ("head,mlp", "head,feature", "edge")
    """Kinds of units, joined by commas."""
    transcoders: str = "neurons"
    """The dictionary of features."""
    methods: tuple[Method | Kind, ...] = ("ig", "eap-ig", "gradient", "topk", "exact", "activation", "random")
    """Of `tc.discover`; eap-ig for edges only."""
    random: int = 100
    """Random circuits of the same profile."""
    seed: int = 0
    """Of prompts and random circuits."""


def case(cfg: Config, model: tc.Model, task: str, kinds: str) -> dict[str, Any]:
    """One task with one kind of units."""
    behaviour = tc.make_behaviour(model, task, seed=cfg.seed)
    d = tc.load_transcoders(cfg.transcoders, model=model) if "feature" in kinds else None
    edges = kinds == "edge"
    units = tc.edges_of(model.cfg) if edges else tc.units_of(model.cfg, kinds.split(","), None if d is None else d.cfg)
    how: Any = {"dictionary": d}
    methods = [m for m in cfg.methods if edges or m != "eap-ig"]
    scores = {m: score(model, behaviour, units, m, points=POINTS, seed=cfg.seed, **STANDARD, **how) for m in methods}
    circuit, _, choice = tc.discover(model, behaviour, units, method="ig", seed=cfg.seed, **how)
    counts = metrics.counts_of(SHARES, units.n)
    masks = [metrics.nested(s.values, np.append(counts, circuit.size), signed=True) for s in scores.values()]
    chance = metrics.matched(circuit.mask, units.groups(), cfg.random, cfg.seed)
    stacked, start = np.concatenate([*masks, chance, np.zeros((1, units.n), bool)]), time.perf_counter()
    runs = tc.run_circuits(model, behaviour, stacked, units, **how)
    seconds = time.perf_counter() - start
    none, full = runs.circuits.metric[-1], runs.model
    metrics.check_range(full.metric, none)
    f = metrics.faithfulness(runs.circuits.metric, full.metric, none)
    exact = scores["exact"].values if "exact" in scores else None
    rows = []
    for i, (name, s) in enumerate(scores.items()):
        at = i * (len(counts) + 1)
        about: dict[str, Any] = {"task": task, "units": kinds, "method": name, "of": units.n, "kept": circuit.size}
        about["pearson_with_exact"] = None if exact is None else _pearson(s.values, exact)
        about |= {"forwards": s.forwards, "backwards": s.backwards, "seconds": s.seconds}
        rows.append(about | _figures(runs, f, slice(at, at + len(counts)), at + len(counts)))
    own = float(f[len(counts)])  # the first method's circuit
    return {
        "rows": rows,
        "nulls": {"task": task, "units": kinds} | _nulls(runs, f, len(scores) * (len(counts) + 1), own),
        "near": choice.taken is not None,
        "circuit_runs_per_second": len(stacked) * len(none) / seconds,
        "circuit": circuit.labels()[:20],
    }


def _figures(runs: Runs, f: np.ndarray, curve: slice, at: int) -> dict[str, Any]:
    """Areas of a method's curve, and its circuit of the common size (row `at`)."""
    shares, found, full, none = np.asarray(SHARES), runs.circuits, runs.model, runs.circuits.metric[-1]
    areas = metrics.areas(f[curve], shares)
    areas["accuracy_area"] = metrics.area(found.right[curve].mean(1), shares)
    areas["kl_area"] = metrics.area(found.kl[curve].mean(1), shares)
    choices = found.choice[at], full.choice
    return areas | {
        "faithfulness": asdict(metrics.faithful(found.metric[at], full.metric, none)),
        "phi": asdict(metrics.preserved(found.right[at], full.right)),
        "a_ok": asdict(metrics.agreement(*choices, full.right)),
        "a_err": asdict(metrics.agreement(*choices, ~full.right, metrics.LEAST_ERRORS)),
    }


def _nulls(runs: Runs, f: np.ndarray, at: int, own: float) -> dict[str, float]:
    """What nothing and random circuits (rows from `at` on, but the last) reach."""
    right = runs.circuits.right.mean(1) / runs.model.right.mean()
    return {
        "nothing_phi": float(right[-1]),
        "random_faithfulness_95": float(np.quantile(f[at:-1], 0.95)),
        "random_phi_95": float(np.quantile(right[at:-1], 0.95)),
        "p_faithfulness": metrics.share_above(own, f[at:-1]),
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None


def main(cfg: Config) -> None:
    """Measure, print, write after each case."""
    model, found = tc.load_model(cfg.model), []
    for task in cfg.tasks:
        for kinds in cfg.units:
            found.append(case(cfg, model, task, kinds))
            save("circuit_baselines", cfg, {"cases": found})
            show(f"{task}, {kinds}", [_line(r) for r in found[-1]["rows"]])
            show("nulls", [found[-1]["nulls"]])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    short = ("method", "kept", "of", "CMD", "CPR", "accuracy_area", "kl_area", "pearson_with_exact", "seconds")
    values = {name: row[name]["value"] for name in ("faithfulness", "phi")}
    return {name: row[name] for name in short} | values | {"A_ok": row["a_ok"]["share"]["value"]}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
