"""Does the memory that `tcircuits plan` predicts for a CPU agree with what `attribute` takes?

    python -m experiments.bench.plan_memory

Random models of four families, each in a process of its own that makes parameters and dictionary, notes its resident
memory, and calls `attribute` once. Measured is the peak of the resident memory minus what was noted, compiling
included. Predicted is the plan for `cpu:1` with the numbers of active features of that very prompt, minus parameters
and dictionary: what the programs and the host's arrays take. The plan spreads features evenly over layers and
positions. Of the cross-layer set (`neox`) 17,000 of 31,744 active features are chosen, which lie less evenly: it plans
14 % more edges than there are. With all of a TopK set's (`qwen2`) there is nothing to choose.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import fresh, peak_rss_gb, save, say, show
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.settings import Settings

CASES: dict[str, dict[str, Any]] = {
    "llama": {
        "kind": "plt-relu", "n_layers": 12, "d_model": 512, "n_heads": 8, "n_kv_heads": 4, "d_head": 64,
        "d_mlp": 1536, "d_feature": 2048, "length": 64, "share": 0.25, "max_features": 2000,
    },
    "gemma2": {
        "kind": "plt-jumprelu", "n_layers": 10, "d_model": 768, "n_heads": 8, "n_kv_heads": 4, "d_head": 96,
        "d_mlp": 2048, "d_feature": 2048, "length": 48, "share": 0.25, "max_features": 1500,
    },
    "neox": {
        "kind": "clt-relu", "n_layers": 8, "d_model": 128, "n_heads": 4, "n_kv_heads": 4, "d_head": 32,
        "d_mlp": 512, "d_feature": 512, "length": 32, "share": 0.25, "max_features": 17000,
    },
    "qwen2": {
        "kind": "plt-topk", "n_layers": 12, "d_model": 512, "n_heads": 8, "n_kv_heads": 4, "d_head": 64,
        "d_mlp": 1536, "d_feature": 2048, "length": 64, "k": 32, "max_features": None,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure."""

    cases: tuple[str, ...] = tuple(CASES)
    """Families, each with one dictionary kind and size."""


def build(case: str) -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """The model, its dictionary and the prompt."""
    sizes = dict(CASES[case])
    kind, length, _ = sizes.pop("kind"), sizes.pop("length"), sizes.pop("max_features")
    width = {name: sizes.pop(name) for name in ("d_feature", "share", "k") if name in sizes}
    windows = {"windows": (64, 0) * (sizes["n_layers"] // 2)} if case == "gemma2" else {}
    rotary = {"rotary_dim": sizes["d_head"] // (4 if case == "neox" else 1)}
    model = random_model(case, d_vocab=8192, n_ctx=128, **rotary, **windows, **sizes)
    tokens = np.random.default_rng(2).integers(1, 8192, length)
    return model, random_dictionary(model, kind, tokens, **width), tokens


def resident_gb() -> float:
    """What this process holds now, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e9


def forget_peak() -> None:
    """Let the peak count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(case: str) -> dict[str, Any]:
    """The growth of one process over one call."""
    model, d, tokens = build(case)
    forget_peak()
    before = resident_gb()
    graph = tc.attribute(model, d, tokens, max_features=CASES[case]["max_features"], position_zero="constant")
    grown = peak_rss_gb() - before
    frozen = freeze_prompt(model, d, tokens, Settings(None, position_zero="constant"))
    return {
        "grown_gb": grown,
        "active": int(np.asarray(frozen.n_active).max()),
        "before_gb": before,
        "n_active": graph.n_active,
        "edges": len(graph.weight),
        "targets": len(graph.targets),
    }


def compared(case: str) -> dict[str, Any]:
    """One model: predicted and measured."""
    say(case)
    module = "experiments.bench.plan_memory"
    found = fresh(module, "measured", case=case)
    plan = fresh(module, "predicted", case=case, active=found["active"], targets=found["targets"])
    ratio = plan["grown_gb"] / found["grown_gb"]
    about = {k: CASES[case][k] for k in ("kind", "length", "max_features")}
    return {"case": case} | about | {"predicted": plan, "measured": found, "ratio": ratio}


def predicted(case: str, active: int, targets: int) -> dict[str, Any]:
    """The plan; nothing but sizes is taken from the model."""
    model, d, tokens = build(case)
    plan = tc.plan(
        model,
        "cpu:1",
        d,
        tokens=len(tokens),
        max_features=CASES[case]["max_features"],
        active=active,
        targets=targets,
        smallest=False,
    )
    worst = max(plan.lines, key=lambda line: line.memory)
    return {
        "grown_gb": (plan.peak - plan.persistent) / 1e9,
        "edges": plan.edges,
        "host_gb": plan.host / 1e9,
        "largest_program": worst.name,
        "largest_program_gb": (worst.memory - plan.persistent) / 1e9,
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found = [compared(case) for case in cfg.cases]
    rows = [
        {
            "case": f["case"],
            "kind": f["kind"],
            "predicted GB": f["predicted"]["grown_gb"],
            "measured GB": f["measured"]["grown_gb"],
            "ratio": f["ratio"],
            "edges planned": f["predicted"]["edges"],
            "edges": f["measured"]["edges"],
        }
        for f in found
    ]
    show("what one call of attribute takes beside parameters and dictionary", rows)
    save("bench.plan_memory", cfg, {"cases": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
