"""Dictionaries of the embedded model for the studies: a grid's members, trained together on the model's own text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tcircuits as tc
from experiments.lm import rows
from tcircuits.transcoders.training.grid import Member, grid
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.sweep import sweep

ASSETS = Path(tc.__file__).parent / "assets/tiny"
CONTEXT = 128
KINDS = ("transcoder", "sae")
K = 16
SEEDS = (0, 1, 2, 3, 4)
TOKENS = 786_432
Sets = Mapping[tuple[str, int], tc.Transcoders]


def trained(model: tc.Model, members: Sequence[Member], run: Path, seed: int) -> Mapping[str, tc.Transcoders]:
    """Every member's dictionary, by name; goes on with what `run` holds. `seed` is that of the text.

    Raises:
        SystemExit: stopped by a signal, with a checkpoint.
    """
    steps = members[0].recipe.steps

    def watch(row: dict[str, Any]) -> None:
        print(f"step {row['step']} of {steps}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    drawn = rows.Drawn(rows.text_of(ASSETS), CONTEXT, seed)
    done = sweep(model, members, drawn, run, fill=Fill(CONTEXT, 64, 32), checkpoint_every=10, watch=watch)
    if done.status != "done":
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    return done.made


def standard(model: tc.Model, run: Path, seeds: Sequence[int] = SEEDS, tokens: int = TOKENS) -> Sets:
    """Transcoders, and SAEs on the MLP's output, of all layers: TopK, by kind and seed."""
    options: Any = {"kinds": KINDS, "k": (K,), "seeds": tuple(seeds), "expansions": (8,)}
    members = grid(model.cfg, **options, tokens=tokens, batch=1024)
    made = trained(model, members, run, 3)
    return {(m.family, m.seed): made[m.name] for m in members}
