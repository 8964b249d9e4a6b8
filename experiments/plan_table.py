"""The table of `tpu/README.md`: what `tcircuits plan` says of well-known models on sensible slices.

    python -m experiments.plan_table

Programs are compiled by the TPU's own compiler (`pip install libtpu`, which needs no TPU); nothing is downloaded and no
weights are allocated. Where transcoders of a model are published, their width is taken; where none are, WIDTH is a
width that is published for models of that size. 64 tokens, 7,500 features with rows of their own, 128 features active
at every layer and position, float32. GPU rows are estimates: compiled for as many devices of this host.
Then two plans that must be refused, with what would fit.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any

import tcircuits as tc
from experiments.common import ROOT, result_path, save, say, show
from tcircuits.planning.words import advice

ROWS = (
    "llama-2-70b transcoder:131072 v5p:2x2x4",
    "gemma-2-2b gemma-scope-2b v5e:2x2",
    "gemma-2-9b transcoder:16384 v5e:4x4",
    "gemma-2-27b transcoder:131072 v5p:2x2x2",
    "llama-3.2-1b llama-3.2-1b v5e:2x4",
    "llama-2-7b transcoder:131072 v6e:2x4",
    "llama-2-13b transcoder:131072 v5p:2x2x1",
    "qwen3-4b qwen3-4b v5e:4x4",
    "qwen3-14b transcoder:163840 v5p:2x2x2",
    "pythia-1.4b transcoder:32768 v5e:2x2",
    "pythia-6.9b transcoder:65536 v5e:4x4",
    "gemma-2-2b gemma-scope-2b h100:1",
)
IMPOSSIBLE = ("gemma-2-2b gemma-scope-2b v5e:1x1", "llama-2-70b transcoder:131072 v5p:2x2x1")
README = ROOT / "tpu" / "README.md"
START, END = "<!-- plans -->", "<!-- end of plans -->"


@dataclass(frozen=True)
class Config:
    """What to plan."""

    rows: tuple[str, ...] = ROWS
    """Model, transcoders and topology."""
    impossible: tuple[str, ...] = IMPOSSIBLE
    """Plans that must be refused."""
    tokens: int = 64
    """Length of the prompt."""
    max_features: int = 7500
    """Features with rows of their own."""
    active: int = 128
    """Active features at every layer and position."""
    again: bool = False
    """Make all plans anew, also those that an earlier run kept."""


def planned(text: str, cfg: Config, *, smallest: bool) -> tuple[dict[str, Any], tc.Plan]:
    """One plan: a row of figures, and the plan itself."""
    say(text)
    model, transcoders, topology = text.split()
    about = {"tokens": cfg.tokens, "max_features": cfg.max_features, "active": cfg.active}
    plan = tc.plan(model, topology, transcoders, **about, smallest=smallest)
    row = {
        "plan": text,
        "model": model,
        "transcoders": transcoders,
        "topology": topology,
        "device_gb": plan.needs / 1e9,
        "of_gb": plan.capacity / 1e9,
        "parameters_gb": plan.persistent / 1e9,
        "host_gb": plan.host / 1e9,
        "tflop": plan.flops / 1e12,
        "read_gb": plan.n_bytes / 1e9,
        "moved_gb": plan.moved / 1e9,
        "seconds": plan.seconds,
        "fits": plan.fits,
        "compiler": plan.compiler,
    }
    return row, plan


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as the README has it."""
    head = "| model | transcoders | slice | a device needs | of | FLOP of a device | between devices | time |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        estimate = "" if r["compiler"] == "libtpu" else " (estimate)"
        fits = "" if r["fits"] else " does not fit"
        lines.append(
            f"| {r['model']} | {r['transcoders']} | {r['topology']}{estimate} | {r['device_gb']:.1f} GB{fits} "
            f"| {r['of_gb']:.0f} GB | {r['tflop']:.0f} T | {r['moved_gb']:.0f} GB | {r['seconds']:.1f} s |"
        )
    return "\n".join(lines)


def kept(cfg: Config) -> dict[str, Any]:
    """Figures of an earlier run with the same sizes, which may have been cut off; none where there are none."""
    path = result_path("plan_table")
    if cfg.again or not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    same = all(found["config"][name] == getattr(cfg, name) for name in ("tokens", "max_features", "active"))
    return found["figures"] if same and found["figures"]["libtpu"] == importlib.metadata.version("libtpu") else {}


def main(cfg: Config) -> None:
    """Plan, print, write; each plan is kept as soon as it is made."""
    before = kept(cfg)
    figures: dict[str, Any] = {
        "libtpu": importlib.metadata.version("libtpu"),
        "rows": [],
        "programs": {},
        "refused": [],
    }
    figures["rows"] = [r for r in before.get("rows", []) if r["plan"] in cfg.rows]
    figures["refused"] = [r for r in before.get("refused", []) if r["plan"] in cfg.impossible]
    figures["programs"] = before.get("programs", {})
    for text in cfg.rows:
        if text not in [r["plan"] for r in figures["rows"]]:
            row, plan = planned(text, cfg, smallest=False)
            figures["rows"].append(row)
            figures["programs"][text] = [
                {"program": x.name, "runs": x.runs, "gb": x.memory / 1e9, "seconds": x.seconds} for x in plan.lines
            ]
            save("plan_table", cfg, figures)
    for text in cfg.impossible:
        if text not in [r["plan"] for r in figures["refused"]]:
            row, plan = planned(text, cfg, smallest=True)
            told = {"plan": text, "fits": row["fits"], "smallest": plan.smallest, "message": advice(plan)}
            figures["refused"].append(told)
            save("plan_table", cfg, figures)
    figures["rows"].sort(key=lambda r: cfg.rows.index(r["plan"]))
    show("plans", figures["rows"])
    show("refused", figures["refused"])
    write_table(figures["rows"])


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the table into the README."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    README.write_text(f"{before}{START}\n{markdown(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
