"""How long does extraction take, stage by stage, and what does it find?

    python -m experiments.extraction

`tc.extract` in a process of its own for each behaviour, compiled programs not kept: addition modulo 113 by the network
trained for it, the embedded model's behaviours, and addition modulo 23 as text, which the embedded model cannot do (its
row says so and has no circuit). Then `tc.validate` on the report split. Units are heads and transcoder features, errors
kept, ablation by resampling. The stages of HAGD's own code on its mod-23 task (GPT-2, four layers, one GPU): 151 s
transcoders, 4.5 s attribution, 199 s interventions, 21 s validation.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import tcircuits as tc
from experiments.common import fresh, save, say, show
from tcircuits.tasks.gate import LEAST
from tcircuits.transcoders.presets import usual_set
from tcircuits.types import InputError

PUBLISHED = {"transcoders": 151.0, "attribution": 4.5, "interventions": 199.0, "validation": 21.0}


@dataclass(frozen=True)
class Config:
    """What to extract."""

    cases: tuple[tuple[str, str], ...] = (
        ("mod113-0", "addition"),
        ("tiny", "modular"),
        ("tiny", "ioi"),
        ("tiny", "greater_than"),
        ("tiny", "agreement"),
        ("tiny", "induction"),
    )
    """Models and tasks of `tcircuits.tasks.TASKS`."""
    share: float = 0.05
    """Of all units, that the largest circuit has; half of them for the network of one task."""
    budget: int = 250
    """Circuits on all prompts of the attribution split."""
    random: int = 100
    """Random circuits of the report."""
    seed: int = 0
    """Of prompts, trees and random circuits."""


def case(model: str, task: str, share: float, budget: int, random: int, seed: int) -> dict[str, Any]:
    """One behaviour: seconds by stage, the circuit's figures, the nulls."""
    start = time.perf_counter()
    loaded = tc.load_model(model)
    d = tc.load_transcoders(usual_set(model), model=loaded)
    behaviour = tc.make_behaviour(loaded, task, seed=seed)
    units = tc.units_of(loaded.cfg, ("head", "feature"), d.cfg)
    about: dict[str, Any] = {"model": model, "task": task, "units": units.n}
    seconds = {"load": time.perf_counter() - start}
    options = tc.ExtractOptions(budget=budget, share=0.5 if model.startswith("mod113") else share, seed=seed)
    try:
        found = tc.extract(loaded, behaviour, units, dictionary=d, options=options, tell=say)
    except InputError as problem:
        return about | {"refused": str(problem), "least": LEAST}
    start = time.perf_counter()
    report = tc.validate(loaded, behaviour, found.circuit, dictionary=d, random=random, seed=seed)
    seconds |= dict(found.seconds) | {"validate": time.perf_counter() - start}
    return about | {
        "refused": None,
        "seconds": seconds,
        "total": sum(seconds.values()),
        "evaluations": found.evaluations,
        "kept": found.circuit.size,
        "near": found.choice.taken is not None,
        "tree": {"units": found.tree.n, "sets": len(found.tree.parent)},
        "faithfulness": asdict(report.circuit.faithfulness),
        "phi": asdict(report.circuit.phi),
        "nothing_phi": report.nothing.phi.value,
        "nulls": asdict(report.nulls),
        "baselines": {name: asdict(f.faithfulness) for name, f in report.baselines.items()},
    }


def main(cfg: Config) -> None:
    """Measure, print, write after each behaviour."""
    rows: list[dict[str, Any]] = []
    own = {name: getattr(cfg, name) for name in ("share", "budget", "random", "seed")}
    for model, task in cfg.cases:
        rows.append(fresh("experiments.extraction", "case", echo=True, model=model, task=task, **own))
        save("extraction", cfg, {"rows": rows, "published_seconds": PUBLISHED})
    show("seconds by stage", [_seconds(row) for row in rows])
    show("circuits", [_circuit(row) for row in rows])


def _seconds(row: dict[str, Any]) -> dict[str, Any]:
    names = ("load", "graph", "tree", "search", "circuits", "choice", "validate")
    spent = row.get("seconds", {})
    return {"model": row["model"], "task": row["task"]} | {n: spent.get(n) for n in names} | {"total": row.get("total")}


def _circuit(row: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"model": row["model"], "task": row["task"], "kept": row.get("kept"), "of": row["units"]}
    if row["refused"]:
        return told | dict.fromkeys(("evaluations", "F", "phi", "random F", "ig F"))
    figures = {"F": row["faithfulness"]["value"], "phi": row["phi"]["value"]}
    others = {"random F": row["nulls"]["faithfulness_95"], "ig F": row["baselines"]["ig"]["value"]}
    return told | {"evaluations": row["evaluations"]} | figures | others


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
