"""Dictionaries of the embedded model for the studies: a grid's members, trained together on the model's own text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tcircuits as tc
from experiments.lm import rows
from tcircuits.transcoders.training.grid import Member
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.sweep import sweep

ASSETS = Path(tc.__file__).parent / "assets/tiny"
CONTEXT = 128


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
