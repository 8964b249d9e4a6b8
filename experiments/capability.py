"""Which behaviours can the models at hand do? A circuit is looked for only where 80 % of prompts are answered rightly.

    python -m experiments.capability

Every task that is text, for every built-in language model: how often the likeliest token is right, how often a right
answer beats the wrong ones, on the selection split. Where a tokenizer splits too few texts rightly, or a benchmark's
package is not installed, the reason stands in the result.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import tcircuits as tc
from experiments.common import save, show
from tcircuits.tasks.gate import LEAST, capability
from tcircuits.types import InputError

NUMBERS = ("addition", "parity", "sorting")  # for models whose tokens are numbers: see `experiments.algorithmic`

# Solved questions before each; five of HellaSwag are 900 tokens, too many for minutes on a CPU.
OPTIONS = {"winogrande": ({"shots": 0}, {"shots": 5}), "hellaswag": ({"shots": 0},)}


@dataclass(frozen=True)
class Config:
    """What to ask whom."""

    models: tuple[str, ...] = ("tiny", "smollm2-135m")
    """Built-in names, folders, or hub ids."""
    tasks: tuple[str, ...] = tuple(t for t in tc.tasks.TASKS if t not in NUMBERS)
    """Of `tcircuits.tasks.TASKS`."""
    seed: int = 0
    """Of the prompts."""
    batch: int = 4
    """Prompts at once."""


def asked(cfg: Config, model: tc.Model, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a model does on a task, or why it could not be asked."""
    start, what = time.perf_counter(), {"model": model.name, "task": task} | options
    try:
        behaviour = tc.make_behaviour(model, task, seed=cfg.seed, options=options)
    except InputError as problem:
        return what | {"why_not": str(problem)}
    found = capability(model, behaviour, batch=cfg.batch)
    return what | asdict(found) | {"passes": found.exact >= LEAST, "seconds": time.perf_counter() - start}


def settings(cfg: Config) -> list[tuple[str, dict[str, Any]]]:
    """Tasks and their options."""
    return [(task, options) for task in cfg.tasks for options in OPTIONS.get(task, ({},))]


def main(cfg: Config) -> None:
    """Ask every model, print, write."""
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name in cfg.models:
        try:
            model = tc.load_model(name)
        except InputError as problem:
            missing[name] = str(problem)
            continue
        for setting in settings(cfg):
            found.append(asked(cfg, model, *setting))
            save("capability", cfg, {"gate": LEAST, "rows": found, "missing": missing})
        show(name, [_line(row) for row in found if row["model"] == model.name])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("task", "shots", "n", "exact", "choice", "passes")} | {
        "why not": row.get("why_not", "-")[:90]
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
