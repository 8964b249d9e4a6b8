"""How long does `tcircuits trace` take on SmolLM2-135M, by stage, with an empty compilation cache and with a full one?

    python -m experiments.trace_smollm2

The command line as a user runs it, each time in a process of its own: once with a cache folder that is new (cold), then
with the folder that this run filled (warm, the best of some). Wall time is the whole process, imports included; peak
memory is the process's largest resident set.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common import run, save, show


@dataclass(frozen=True)
class Config:
    """What to trace."""

    prompt: str = "The capital of France is"
    """The text to explain."""
    model: str = "smollm2-135m"
    """As in `tcircuits trace`."""
    transcoders: str = "neurons"
    """As in `tcircuits trace`."""
    max_features: int | None = None
    """Features that are expanded; None is the command's default."""
    warm_runs: int = 3
    """Runs with the full cache; the one with the least wall time counts."""


def trace(cfg: Config, folder: Path) -> dict[str, Any]:
    """One trace: what it printed, with wall time and peak memory."""
    command = [sys.executable, "-m", "tcircuits.cli", "trace", cfg.prompt, "--json"]
    command += ["--model", cfg.model, "--transcoders", cfg.transcoders, "--out", str(folder / "trace")]
    command += [] if cfg.max_features is None else ["--max-features", str(cfg.max_features)]
    done = run(command, TCIRCUITS_CACHE=str(folder / "cache"))
    printed = json.loads(done.stdout.splitlines()[-1])
    del printed["page"]  # a temporary folder
    files = {path.name: path.stat().st_size for path in sorted((folder / "trace").iterdir())}
    return printed | {"wall": done.wall, "cpu": done.cpu, "peak_rss_gb": done.peak_rss_gb, "bytes": files}


def line(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Wall time, memory and stages of one run; `outside` is what no stage counts, mostly imports."""
    outside = found["wall"] - sum(found["seconds"].values())
    return (
        {"run": name, "peak_rss_gb": found["peak_rss_gb"], "wall": found["wall"]}
        | found["seconds"]
        | {"outside": outside}
    )


def measure(module: str, cfg: Config) -> None:
    """Measure, print, write the result of `module`."""
    with tempfile.TemporaryDirectory() as name:
        cold = trace(cfg, Path(name))
        runs = [trace(cfg, Path(name)) for _ in range(cfg.warm_runs)]
    warm = min(runs, key=lambda found: found["wall"])
    show("seconds", [line("cold", cold), *(line(f"warm {i + 1}", found) for i, found in enumerate(runs))])
    scores = ("replacement_score", "completeness_score", "completeness_score_inputs", "unexpanded_share", "bias_share")
    show("scores", [{k: warm[k] for k in (*scores, "max_row_gap")}])
    show("graph", [{k: warm[k] for k in ("n_features", "n_selected", "n_nodes", "n_edges")} | warm["bytes"]])
    show("targets", warm["targets"])
    walls = [found["wall"] for found in runs]
    save(module, cfg, {"cold": cold, "warm": warm, "warm_walls": walls})


def main(cfg: Config) -> None:
    """Measure, print, write."""
    measure("trace_smollm2", cfg)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
