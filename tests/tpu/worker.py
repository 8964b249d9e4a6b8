"""Trains a small dictionary with all processes of a run, and goes on from its checkpoint: worker.py FOLDER KILLED

The second of them is killed in the middle, unless the file KILLED is there, which it leaves.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from experiments.training_meshes import FILL, RECIPES, model_on
from experiments.training_resume import Numbers
from tcircuits.parallel import initialize, make_mesh
from tcircuits.transcoders.training.run import train

KILLED_AT = 14  # of 25 fills, two steps each; checkpoints are after steps 10, 20 ...


class Killing(Numbers):
    """Rows of which the second process does not live to see the middle."""

    def __init__(self, killed: Path) -> None:
        super().__init__()
        self.killed = killed

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows first .. first + n."""
        if jax.process_index() == 1 and first >= KILLED_AT * n and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(first, n)


def main(folder: Path, killed: Path) -> None:
    """Train to the end."""
    initialize()
    mesh = make_mesh((2, 1))
    train(model_on(mesh), RECIPES["topk, skip"], Killing(killed), folder, fill=FILL, checkpoint_every=10, mesh=mesh)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
