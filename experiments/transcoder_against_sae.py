"""Does a transcoder lose less than an SAE on the MLP's output at equal L0? The paper's claim, on the embedded model.

    python -m experiments.transcoder_against_sae

Dunefsky et al. 2024, section 4.2 and Figure 3: each MLP is replaced alone, by what a dictionary writes; L0 against the
cross-entropy. Transcoders, skip transcoders and SAEs on the MLP's output are trained by `sweep` in one process, on the
same tokens in the same order: TopK, 1,024 features, several k, five seeds, all four layers. The SAEs begin with tied
weights and unit decoder rows, the transcoders as `presets.make` sets them; both at the same learning rate.

At each L0 there are 20 pairs (layer and seed), on the same held-out rows, with an interval for each by resampling rows.
A pair holds where the transcoder's cross-entropy is not above the SAE's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import rows
from experiments.tiny_dictionaries import ASSETS, CONTEXT
from tcircuits.transcoders.evaluation.compare import Comparison, compare
from tcircuits.transcoders.evaluation.families import evaluate_members
from tcircuits.transcoders.evaluation.results import Evaluation
from tcircuits.transcoders.training.grid import Member, grid
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.sweep import sweep


@dataclass(frozen=True)
class Config:
    """The grid."""

    k: tuple[int, ...] = (16, 32, 64, 128)
    """Features on."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of weights and of the order of tokens."""
    kinds: tuple[str, ...] = ("transcoder", "skip", "sae")
    """Families; the first is compared with each other."""
    tokens: int = 262_144
    """Trained on, each dictionary."""
    batch: int = 1024
    """Tokens of a step."""
    rows: int = 64
    """Held-out rows of 128 tokens."""
    work: Path = ROOT / "build/transcoder-against-sae"
    """The sweep."""


def families(members: Sequence[Member], found: dict[str, Evaluation], k: int) -> dict[str, dict[int, list[Evaluation]]]:
    """The evaluations at one k, by family and seed."""
    out: dict[str, dict[int, list[Evaluation]]] = {}
    for m in members:
        if m.point[1] == k and m.name in found:
            out.setdefault(m.family, {}).setdefault(m.seed, []).append(found[m.name])
    return out


def told(c: Comparison, k: int, first: str, second: str, n_layers: int) -> dict[str, Any]:
    """The pairs of single layers at one k: how many hold, by layer, and how many are told apart from zero."""
    pairs = [p for p in c.pairs if len(p.layers) == 1]
    holds = np.asarray([p.difference.value <= 0 for p in pairs])
    layers = np.asarray([p.layers[0] for p in pairs])
    every = [p for p in c.pairs if len(p.layers) == n_layers]
    return {
        "first": first,
        "second": second,
        "k": k,
        "pairs": len(pairs),
        "hold": int(holds.sum()),
        "below_zero": sum(p.difference.excludes_zero and p.difference.value < 0 for p in pairs),
        "above_zero": sum(p.difference.excludes_zero and p.difference.value > 0 for p in pairs),
        "hold_by_layer": [int(holds[layers == i].sum()) for i in range(n_layers)],
        "difference_by_layer": [float(np.mean([p.difference.value for p in pairs if p.layers[0] == i]))
                                for i in range(n_layers)],
        "ce_by_layer": [[float(np.mean([p.ce[side] for p in pairs if p.layers[0] == i])) for side in (0, 1)]
                        for i in range(n_layers)],
        "all_layers": [asdict(p) for p in every],
        "overall": asdict(c.overall),
        "skipped": list(c.skipped),
    }  # fmt: skip


def curves(members: Sequence[Member], found: dict[str, Evaluation]) -> list[dict[str, Any]]:
    """Every dictionary's point: L0, unexplained variance, and cross-entropy of each layer replaced and of all."""
    out = []
    for m in members:
        if m.name in found:
            e = found[m.name]
            row = {"family": m.family, "k": int(m.point[1]), "seed": m.seed, "l0": e.l0, "fvu": e.fvu, "dead": e.dead}
            out.append(row | {"ce": [r.ce["dictionary"] for r in e.replaced]})
    return out


def main(cfg: Config) -> None:
    """Sweep, evaluate, compare."""
    model, text = tc.load_model("tiny"), rows.text_of(ASSETS)
    options: Any = {"kinds": cfg.kinds, "k": cfg.k, "seeds": cfg.seeds, "tokens": cfg.tokens, "batch": cfg.batch}
    members = grid(model.cfg, expansions=(8,), **options)
    drawn = rows.Drawn(text, CONTEXT, 1)

    def watch(row: dict[str, Any]) -> None:
        print(f"step {row['step']} of {cfg.tokens // cfg.batch}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    fill = Fill(CONTEXT, 64, 32)
    done = sweep(model, members, drawn, cfg.work, fill=fill, checkpoint_every=2, watch=watch)
    if done.status != "done":
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    held_out = rows.held_out(text, cfg.rows, CONTEXT, seed=2)
    folders = {m.name: cfg.work / "members" / m.name for m in members}
    found = evaluate_members(model, done.made, held_out, folders, batch=32)
    ours, *others = cfg.kinds
    table = []
    for other in others:
        for k in cfg.k:
            of = families(members, found, k)
            table.append(told(compare(of[ours], of[other]), k, ours, other, model.cfg.n_layers))
    names = ("first", "second", "k", "pairs", "hold", "below_zero", "above_zero")
    show("cross-entropy with one MLP replaced", [{n: row[n] for n in names} for row in table])
    against = [row for row in table if row["second"] == "sae"]
    total = {n: sum(row[n] for row in against) for n in names[3:]}
    ce = next(iter(found.values()))
    levels = {"original": ce.ce_original, "zero": [r.ce["zero"] for r in ce.replaced],
              "mean": [r.ce["mean"] for r in ce.replaced]}  # fmt: skip
    figures = {"against_sae": total, "share": total["hold"] / total["pairs"], "table": table, "levels": levels}
    save("transcoder_against_sae", cfg, figures | {"curves": curves(members, found), "failed": dict(done.failed)})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
