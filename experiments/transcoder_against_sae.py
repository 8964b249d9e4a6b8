"""Does a transcoder lose less than an SAE on the MLP's output at equal L0? The paper's claim, on a small model.

    python -m experiments.transcoder_against_sae
    python -m experiments.transcoder_against_sae --model experiments/models/tiny-gpt2-0 --k 16 32 --seeds 0 1 2 \
        --tokens 2097152

Dunefsky et al. 2024, section 4.2 and Figure 3: each MLP is replaced alone, by what a dictionary writes; L0 against the
cross-entropy. Transcoders and SAEs on the MLP's output are trained by `sweep` in one process, on the
same tokens in the same order: TopK, 1,024 features, several k, five seeds, all four layers. The SAEs begin with tied
weights and unit decoder rows, the transcoders as `presets.make` sets them; both at the same learning rate.

At each k there are 20 pairs (layer and seed), on the same held-out rows, with an interval for each by resampling rows.
Where a dictionary has fewer than k positive pre-activations its L0 is below k; the two of a pair are compared at the
geometric middle of theirs, on curves that are linear in log L0 (within what both reach). A pair holds where the
transcoder's cross-entropy is not above the SAE's. Members that `work` has measured are not trained again.

The embedded model's MLPs are gated, which a layer of features with ReLU can only approach; those of the second model
(`experiments.tiny_lm --family gpt2`) are not, as in the paper. An SAE with as many features on as the output has
dimensions needs no dictionary to be exact, so that the largest L0 here say little about models that are wider.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import rows
from experiments.tiny_dictionaries import ASSETS, CONTEXT
from tcircuits.transcoders.evaluation.compare import compare, sparsity
from tcircuits.transcoders.evaluation.families import FILE, evaluate_members
from tcircuits.transcoders.evaluation.results import Evaluation, Losses
from tcircuits.transcoders.evaluation.saved import load_evaluation
from tcircuits.transcoders.training.grid import Member, grid
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.sweep import sweep


@dataclass(frozen=True)
class Config:
    """The grid."""

    model: Path | None = None
    """Folder of another small model, which gets a result of its own; the embedded one."""
    k: tuple[int, ...] = (16, 32, 64, 128)
    """Features on."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of weights and of the order of tokens."""
    kinds: tuple[str, ...] = ("transcoder", "sae")
    """Families; the first is compared with each other (`skip` is a further one)."""
    tokens: int = 262_144
    """Trained on, each dictionary."""
    batch: int = 1024
    """Tokens of a step."""
    rows: int = 64
    """Held-out rows of 128 tokens."""
    work: Path | None = None
    """The sweep; build/transcoder-against-sae."""


Found = dict[str, Evaluation]
Pair = dict[str, Any]


def single(e: Evaluation, layer: int) -> Evaluation:
    """The evaluation with one layer replaced alone, nothing else."""
    i, told = e.sets.index((layer,)), e.losses
    losses = Losses(told.original, told.ce[:, i : i + 1], told.kl[:, i : i + 1], told.agree[:, i : i + 1])
    return replace(e, sets=((layer,),), losses=losses)


def pairs(members: Sequence[Member], found: Found, other: str, cfg: Config, n_layers: int) -> list[Pair]:
    """Every layer, seed and k: both cross-entropies at one L0, and the first less the second with its interval."""
    by = {(m.family, m.seed, int(m.point[1])): found[m.name] for m in members if m.name in found}
    out = []
    for layer in range(n_layers):
        for seed in cfg.seeds:
            sides = [[single(by[family, seed, k], layer) for k in cfg.k] for family in (cfg.kinds[0], other)]
            l0 = np.asarray([[sparsity(e, (layer,)) for e in side] for side in sides])
            least, most = l0.min(1).max(), l0.max(1).min()
            for i, k in enumerate(cfg.k):
                at = float(np.clip(np.sqrt(l0[0, i] * l0[1, i]), least, most))
                (pair,) = compare({seed: sides[0]}, {seed: sides[1]}, l0=[at]).pairs
                row = {"second": other, "layer": layer, "seed": seed, "k": k, "l0": at, "ce": pair.ce}
                out.append(row | asdict(pair.difference))
    return out


def told(found: list[Pair]) -> dict[str, Any]:
    """How many pairs hold, and how many are told apart from zero."""
    holds, n_layers = [p["value"] <= 0 for p in found], 1 + max(p["layer"] for p in found)
    return {
        "pairs": len(found),
        "hold": sum(holds),
        "below_zero": sum(p["high"] < 0 for p in found),
        "above_zero": sum(p["low"] > 0 for p in found),
        "hold_by_layer": [
            sum(h for h, p in zip(holds, found, strict=True) if p["layer"] == i) for i in range(n_layers)
        ],
        "difference_by_layer": [
            float(np.mean([p["value"] for p in found if p["layer"] == i])) for i in range(n_layers)
        ],
    }


def curves(members: Sequence[Member], found: dict[str, Evaluation]) -> list[dict[str, Any]]:
    """Every dictionary's point: L0, unexplained variance, and cross-entropy of each layer replaced and of all."""
    out = []
    for m in members:
        if m.name in found:
            e = found[m.name]
            row = {"family": m.family, "k": int(m.point[1]), "seed": m.seed, "l0": e.l0, "fvu": e.fvu, "dead": e.dead}
            out.append(row | {"ce": [r.ce["dictionary"] for r in e.replaced]})
    return out


def measured(cfg: Config, model: tc.Model, members: Sequence[Member]) -> Found:
    """The evaluation of every member; what `work` has of it is read."""
    work = cfg.work or ROOT / "build" / "-".join(["transcoder-against-sae", *([cfg.model.name] if cfg.model else [])])
    folders = {m.name: work / "members" / m.name for m in members}
    if all((folder / FILE).exists() for folder in folders.values()):
        return {name: load_evaluation(folder / FILE) for name, folder in folders.items()}
    text = rows.text_of(cfg.model or ASSETS)

    def watch(row: dict[str, Any]) -> None:
        print(f"step {row['step']} of {cfg.tokens // cfg.batch}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    fill, drawn = Fill(CONTEXT, 64, 32), rows.Drawn(text, CONTEXT, 1)
    done = sweep(model, members, drawn, work, fill=fill, checkpoint_every=2, watch=watch)
    if done.status != "done":
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    return evaluate_members(model, done.made, rows.held_out(text, cfg.rows, CONTEXT, seed=2), folders, batch=32)


def main(cfg: Config) -> None:
    """Sweep, evaluate, compare."""
    model = tc.load_model(cfg.model or "tiny")
    options: Any = {"kinds": cfg.kinds, "k": cfg.k, "seeds": cfg.seeds, "tokens": cfg.tokens, "batch": cfg.batch}
    members = grid(model.cfg, expansions=(8,), **options)
    found = measured(cfg, model, members)
    every = {other: pairs(members, found, other, cfg, model.cfg.n_layers) for other in cfg.kinds[1:]}
    table = [
        {"second": other, "k": k} | told([p for p in some if p["k"] == k])
        for other, some in every.items()
        for k in cfg.k
    ]
    show("cross-entropy with one MLP replaced: transcoder against", [_line(row) for row in table])
    against = told(every["sae"])
    first = next(iter(found.values()))
    levels = {"original": first.ce_original, "zero": [r.ce["zero"] for r in first.replaced],
              "mean": [r.ce["mean"] for r in first.replaced]}  # fmt: skip
    figures = {"against_sae": against, "share": against["hold"] / against["pairs"], "table": table, "levels": levels}
    figures |= {"pairs": every, "curves": curves(members, found)}
    save("transcoder_against_sae", cfg, figures, variant=cfg.model.name if cfg.model else "")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("second", "k", "pairs", "hold", "below_zero", "above_zero")}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
