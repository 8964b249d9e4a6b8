"""How well do the field's scores find circuits of the embedded model, beside what they must beat?

    python -m experiments.circuit_baselines
    python -m experiments.circuit_baselines --ablation mean
    python -m experiments.circuit_baselines --suite positions
    python -m experiments.circuit_baselines --suite mod113
    python -m experiments.circuit_baselines --suite smollm2

`positions` has units apart by position, counted from the end, without running each alone. `mod113` is of the models of
addition modulo 113 (`experiments.algorithmic`) in place of `tiny`, with a table over the models; `smollm2` of IOI on
SmolLM2-135M, its heads and MLPs, with fewer prompts and without what runs every unit alone (`smollm2-edges`: its 70,651
edges, with fewer still; `smollm2-positions`: 787,950 heads and neurons by position, factual recall too).
Their results are `circuit_baselines_mean.json` and so on.

For each task and kind of units, all on the package's own harness: units are scored on the attribution split by every
method, circuits of growing size run on the report split. CMD, CPR (by score, as published), areas of accuracy and KL;
phi, agreement with the model, faithfulness and nulls at 5 % of the units, and at the size that `ig` (or else the first
method) takes on the selection split; how much of the circuit of that size other prompts would have chosen too (Jaccard
overlap over resampled prompts, beside that of random circuits; not for learned scores, which are no mean over prompts);
Pearson correlation of every method with exact ablation; what each method costs. Ablation: resampling from the
counterfactual, or the mean over the attribution split (without EAP-IG, which goes from the counterfactual's activations
to the prompt's).
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

import tcircuits as tc
from experiments.algorithms.folders import SEEDS, own_set, reference
from experiments.common import save, show
from tcircuits.circuits import metrics
from tcircuits.circuits.discover import score
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.learning import Kind
from tcircuits.circuits.metrics import SHARES
from tcircuits.circuits.running import Ablation, Runs
from tcircuits.circuits.scores import POINTS, Method, UnitScores
from tcircuits.circuits.stability import stability
from tcircuits.tasks.gate import LEAST


@dataclass(frozen=True)
class Basis:
    """Kinds of units, joined by commas; the dictionary of features (`own`: the model's own), what errors are.

    With `positions` units are apart by position.
    """

    units: str
    transcoders: str = "neurons"
    errors: Errors = "keep"
    positions: bool = False


@dataclass(frozen=True)
class Suite:
    """Models by name, tasks of `tcircuits.tasks.TASKS`, and what circuits consist of.

    `sizes` are prompts of each split where they are not the task's own, `without` methods that cost too much, `least`
    the capability that is asked for.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    bases: tuple[Basis, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    without: tuple[str, ...] = ()
    least: float = LEAST


def _smollm2(basis: Basis, prompts: int, *without: str, tasks: tuple[str, ...] = ("ioi",), least: float = 0.0) -> Suite:
    """Few prompts; IOI is below the gate (.59 of 64 right, .42 of 12), so that A_err and A_ok stand beside phi."""
    sizes = (("attribution", prompts), ("selection", min(prompts, 16)), ("report", max(prompts, 24)))
    return Suite(("smollm2-135m",), tasks, (basis,), sizes, ("exact", "topk", *without), least)


FEATURES = "head,feature"
FIVE = SHARES.index(0.05)
SUITES = {
    "mod113": Suite(
        SEEDS,
        ("addition",),
        (Basis(FEATURES), Basis(FEATURES, "own"), Basis(FEATURES, "own", "ablate"), Basis("edge")),
    ),
    "positions": Suite(
        ("tiny",),
        ("ioi", "greater_than", "agreement", "induction"),
        (Basis(FEATURES, positions=True), Basis(FEATURES, "tiny-transcoders", positions=True)),
        (("attribution", 32), ("selection", 16), ("report", 64)),
        ("exact",),
    ),
    "smollm2": _smollm2(Basis("head,mlp"), 32, least=0.5),
    "smollm2-positions": _smollm2(Basis(FEATURES, positions=True), 12, tasks=("ioi", "factual_recall")),
    # without ig, which goes by masks: 70,651 gradients a point, each through every writer's gap
    "smollm2-edges": _smollm2(Basis("edge"), 16, "ig"),
}


@dataclass(frozen=True)
class Config:
    """What to compare."""

    suite: Literal["", "positions", "mod113", "smollm2", "smollm2-edges", "smollm2-positions"] = ""
    """Models, tasks and kinds of units of `SUITES`, in place of the next four."""
    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    units: tuple[str, ...] = ("head,mlp", FEATURES, "edge")
    """Kinds of units, joined by commas."""
    transcoders: str = "neurons"
    """The dictionary of features."""
    methods: tuple[Method | Kind, ...] = (
        "ig", "eap-ig", "gradient", "relp", "topk", "exact", "activation", "random",
    )  # fmt: skip
    """Of `tc.discover`; eap-ig for edges only."""
    ablation: Ablation = "resample"
    """What happens to units outside a circuit."""
    random: int = 100
    """Random circuits of the same profile."""
    seed: int = 0
    """Of prompts and random circuits."""


def suite_of(cfg: Config) -> Suite:
    """What a configuration asks for."""
    if cfg.suite:
        return SUITES[cfg.suite]
    return Suite((cfg.model,), cfg.tasks, tuple(Basis(units, cfg.transcoders) for units in cfg.units))


def case(cfg: Config, suite: Suite, model: tc.Model, task: str, basis: Basis) -> dict[str, Any]:
    """One task with one kind of units."""
    behaviour, kinds = tc.make_behaviour(model, task, sizes=dict(suite.sizes), seed=cfg.seed), basis.units
    name = own_set(model.name) if basis.transcoders == "own" else basis.transcoders
    d = tc.load_transcoders(name, model=model) if "feature" in kinds else None
    edges, places = kinds == "edge", behaviour.length if basis.positions else None
    of = None if d is None else d.cfg
    units = tc.edges_of(model.cfg) if edges else tc.units_of(model.cfg, kinds.split(","), of, places)
    how: Any = {"dictionary": d, "ablation": cfg.ablation, "errors": basis.errors}
    published = edges and cfg.ablation == "resample"
    methods = [m for m in cfg.methods if (published or m != "eap-ig") and m not in suite.without]
    scores = {m: score(model, behaviour, units, m, points=POINTS, seed=cfg.seed, **how) for m in methods}
    circuit, _, choice = tc.discover(
        model, behaviour, units, method=methods[0], least=suite.least, seed=cfg.seed, **how
    )
    counts = metrics.counts_of(SHARES, units.n)
    masks = [metrics.nested(s.values, np.append(counts, circuit.size), signed=True) for s in scores.values()]
    chance = [metrics.matched(m, units.groups(), cfg.random, cfg.seed) for m in (circuit.mask, masks[0][FIVE])]
    stacked, start = np.concatenate([*masks, *chance, np.zeros((1, units.n), bool)]), time.perf_counter()
    runs = tc.run_circuits(model, behaviour, stacked, units, **how)
    seconds = time.perf_counter() - start
    none, full = runs.circuits.metric[-1], runs.model
    metrics.check_range(full.metric, none)
    f = metrics.faithfulness(runs.circuits.metric, full.metric, none)
    exact = scores["exact"].values if "exact" in scores else None
    what = {"model": model.name, "task": task, "units": kinds, "positions": places}
    what |= {} if d is None else {"transcoders": basis.transcoders, "errors": basis.errors}
    rows = []
    for i, (method, s) in enumerate(scores.items()):
        at = i * (len(counts) + 1)
        about: dict[str, Any] = what | {"method": method, "of": units.n, "kept": circuit.size}
        about["scored"] = int(np.count_nonzero(s.values))
        about["pearson_with_exact"] = None if exact is None else _pearson(s.values, exact)
        about |= {"forwards": s.forwards, "backwards": s.backwards, "seconds": s.seconds}
        about["jaccard"] = _jaccard(s, circuit.size)
        five = {"kept": int(counts[FIVE])} | _circuit(runs, at + FIVE)
        rows.append(about | _figures(runs, f, slice(at, at + len(counts)), at + len(counts)) | {"five": five})
    first = len(scores) * (len(counts) + 1)
    return {
        "rows": rows,
        "nulls": what | _nulls(runs, f, slice(first, first + cfg.random), len(counts)),
        "nulls_five": what | _nulls(runs, f, slice(first + cfg.random, len(f) - 1), FIVE),
        "near": choice.taken is not None,
        "circuit_runs_per_second": len(stacked) * len(none) / seconds,
        "circuit": circuit.labels()[:20],
    }


def _figures(runs: Runs, f: np.ndarray, curve: slice, at: int) -> dict[str, Any]:
    """Areas of a method's curve, and its circuit of the common size (row `at`)."""
    shares, found, full, none = np.asarray(SHARES), runs.circuits, runs.model, runs.circuits.metric[-1]
    areas: dict[str, Any] = metrics.areas(f[curve], shares)
    areas["accuracy_area"] = metrics.area(found.right[curve].mean(1), shares)
    areas["kl_area"] = metrics.area(found.kl[curve].mean(1), shares)
    for name, of in {"CPR": lambda f: f, "CMD": lambda f: np.abs(1 - f)}.items():
        means = (*found.metric[curve], full.metric, none)
        areas[f"{name}_interval"] = asdict(metrics.bootstrap(partial(_area, of, shares), *means))
    areas["curve"] = {"faithfulness": f[curve].tolist(), "right": found.right[curve].mean(1).tolist()}
    return areas | _circuit(runs, at)


def _circuit(runs: Runs, at: int) -> dict[str, Any]:
    """The circuit of row `at`, against the model and, in the last row, nothing kept."""
    found, full = runs.circuits, runs.model
    choices = found.choice[at], full.choice
    return {
        "faithfulness": asdict(metrics.faithful(found.metric[at], full.metric, found.metric[-1])),
        "phi": asdict(metrics.preserved(found.right[at], full.right)),
        "a_ok": asdict(metrics.agreement(*choices, full.right)),
        "a_err": asdict(metrics.agreement(*choices, ~full.right, metrics.LEAST_ERRORS)),
    }


def _area(of: Callable[..., Any], shares: np.ndarray, *means: Any) -> Any:
    """An area over shares, of mean metrics of the circuits, the model and the empty circuit."""
    *circuits, full, none = means
    return np.trapezoid(of((np.stack(circuits) - none) / (full - none)), shares, axis=0)


def _jaccard(scored: UnitScores, size: int) -> dict[str, Any] | None:
    """Overlap of the circuits that resampled prompts choose; None where scores are not a mean over prompts."""
    return None if scored.by_prompt is None else asdict(stability(scored.by_prompt, size))


def _nulls(runs: Runs, f: np.ndarray, at: slice, own: int) -> dict[str, float]:
    """What nothing and random circuits (rows `at`) reach, against row `own`."""
    right = runs.circuits.right.mean(1) / runs.model.right.mean()
    return {
        "nothing_phi": float(right[-1]),
        "random_faithfulness_95": float(np.quantile(f[at], 0.95)),
        "random_phi_95": float(np.quantile(right[at], 0.95)),
        "p_faithfulness": metrics.share_above(float(f[own]), f[at]),
        "p_phi": metrics.share_above(float(right[own]), right[at]),
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None


AREAS = ("CMD", "CPR", "accuracy_area", "kl_area")
COSTS = ("kept", "of", "forwards", "backwards", "seconds")


def over_models(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method with each basis over the models: means with 95 % intervals (Student's t, models as the sample)."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for c in cases:
        for row in c["rows"]:
            key = tuple(row.get(k) for k in ("task", "units", "transcoders", "errors", "method"))
            groups.setdefault(key, []).append((row, c["nulls"]))
    found = []
    for key, pairs in groups.items():
        about: dict[str, Any] = dict(zip(("task", "units", "transcoders", "errors", "method"), key, strict=True))
        rows = [row for row, _ in pairs]
        values = {name: [r[name] for r in rows] for name in AREAS}
        values |= {name: [r[name]["value"] for r in rows] for name in ("faithfulness", "phi")}
        values["a_ok"] = [r["a_ok"]["share"]["value"] for r in rows]
        about |= {"models": len(rows)} | {name: _spread(v) for name, v in values.items()}
        about |= {name: float(np.mean([r[name] for r in rows])) for name in COSTS}
        nulls = ("nothing_phi", "random_faithfulness_95", "random_phi_95")
        about |= {name: float(np.mean([n[name] for _, n in pairs])) for name in nulls}
        found.append(about | {name: max(n[name] for _, n in pairs) for name in ("p_faithfulness", "p_phi")})
    return found


def _spread(values: list[float]) -> dict[str, float | None]:
    """The mean over models, and the ends of its 95 % interval (None: one model)."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": mean, "low": None, "high": None}
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"value": mean, "low": mean - half, "high": mean + half}


def variant(cfg: Config) -> str:
    """What the result's name says of a configuration."""
    return "_".join(filter(None, (cfg.suite.replace("-", "_"), "" if cfg.ablation == "resample" else cfg.ablation)))


def main(cfg: Config) -> None:
    """Measure, print, write after each case."""
    suite, found = suite_of(cfg), []
    for name in suite.models:
        model = tc.load_model(reference(name))
        for task in suite.tasks:
            for basis in suite.bases:
                found.append(case(cfg, suite, model, task, basis))
                many = {"over_models": over_models(found)} if len(suite.models) > 1 else {}
                save("circuit_baselines", cfg, {"cases": found} | many, variant=variant(cfg))
                show(f"{name}, {task}, {basis}", [_line(r) for r in found[-1]["rows"]])
                show("nulls", [found[-1]["nulls"], found[-1]["nulls_five"]])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    short = ("method", "kept", "of", "CMD", "CPR", "accuracy_area", "kl_area", "pearson_with_exact", "seconds")
    values = {name: row[name]["value"] for name in ("faithfulness", "phi")}
    values |= {"A_ok": row["a_ok"]["share"]["value"], "jaccard": row["jaccard"] and row["jaccard"]["mean"]}
    values |= {"F at 5 %": row["five"]["faithfulness"]["value"], "A_ok at 5 %": row["five"]["a_ok"]["share"]["value"]}
    return {name: row[name] for name in short} | values


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
