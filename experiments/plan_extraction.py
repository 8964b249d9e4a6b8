"""What extraction takes at the sizes that the second paper names, on slices that nobody needs to have.

    python -m experiments.plan_extraction

Programs of a behaviour (64 prompts of 64 tokens, 256 circuits, gates on a tree of 4,000 units in 1,000 steps, the
membership network on four behaviours) are compiled ahead of time (`tcircuits plan --extract`): by the TPU's own
compiler for v5p slices (`pip install libtpu`, which needs no TPU), for H100s as an estimate. Float32, except where
"bfloat16" is written behind. Time is that of peak figures; a chip-hour is one device for an hour.
A run that was cut off goes on with the rows that are left.
"""

import json
from dataclasses import dataclass
from typing import Any

import tcircuits as tc
from experiments.common import commit, hardware, result_path, save, say, show
from tcircuits.planning.request import Extraction

ROWS = (
    "pythia-1.4b transcoder:32768 h100:8",
    "pythia-6.9b transcoder:65536 h100:8",
    "llama-2-7b transcoder:131072 h100:8",
    "llama-2-13b transcoder:131072 h100:8",
    "llama-2-70b transcoder:131072 h100:8 bfloat16",
    "pythia-1.4b transcoder:32768 v5p:2x2x1",
    "pythia-6.9b transcoder:65536 v5p:2x2x1",
    "llama-2-7b transcoder:131072 v5p:2x2x2",
    "llama-2-13b transcoder:131072 v5p:2x2x2",
    "llama-2-70b transcoder:131072 v5p:2x2x4",
)


@dataclass(frozen=True)
class Config:
    """What to plan."""

    rows: tuple[str, ...] = ROWS
    """Model, transcoders, topology, and a dtype other than float32."""
    again: bool = False
    """Make all plans anew, also those that an earlier run of this commit kept."""


def planned(text: str) -> dict[str, Any]:
    """One extraction: totals, and every program."""
    say(text)
    model, transcoders, topology, *other = text.split()
    dtype = other[0] if other else "float32"
    plan = tc.plan(model, topology, transcoders, dtype=dtype, smallest=False, behaviour=Extraction())
    programs = [
        {"program": x.name, "runs": x.runs, "gb": x.memory / 1e9, "tflop": x.flops / 1e12, "seconds": x.seconds}
        for x in plan.lines
    ]
    return {
        "plan": text,
        "device_gb": plan.needs / 1e9,
        "of_gb": plan.capacity / 1e9,
        "fits": plan.fits,
        "refused": plan.refused,
        "tflop": plan.flops / 1e12,
        "moved_gb": plan.moved / 1e9,
        "seconds": plan.seconds,
        "chip_hours": plan.device_hours,
        "compiler": plan.compiler,
        "programs": programs,
    }


def kept(cfg: Config) -> list[dict[str, Any]]:
    """Rows that an earlier run of this commit left."""
    path = result_path("plan_extraction")
    if cfg.again or not path.exists():
        return []
    found, now = json.loads(path.read_text(encoding="utf-8")), commit()
    return found["figures"]["rows"] if found["git"] == now and not now["dirty"] else []


def main(cfg: Config) -> None:
    """Plan, print, write; each row is kept as soon as it is made."""
    rows, machine = kept(cfg), hardware()
    for text in cfg.rows:
        if text not in [r["plan"] for r in rows]:
            rows.append(planned(text))
            save("plan_extraction", cfg, {"rows": rows}, machine=machine)
    show("extraction", [{k: v for k, v in r.items() if k not in ("programs", "refused")} for r in rows])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
