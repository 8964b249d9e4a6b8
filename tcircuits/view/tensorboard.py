"""Figures of training as TensorBoard event files, where its package is installed (it needs no torch, no TensorFlow)."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tcircuits.parallel import is_lead
from tcircuits.types import InputError

BY_LAYER = ("loss", "fvu", "l0", "dead")
WHOLE = ("lr", "tokens_per_second")
Add = Callable[[str, Sequence[int], Mapping[str, Any]], None]


def check_tensorboard(wanted: bool) -> None:
    """Raise, before anything is run, where event files are wanted and cannot be written."""
    if wanted and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install 'tcircuits[tensorboard]'")


@contextmanager
def board(folder: Path, wanted: bool) -> Iterator[Add]:
    """`add(name, layers, row)` writes the figures of a fill; each name is a run of its own below `folder`.

    Steps that are trained again after a restart are written again; TensorBoard shows the later ones.
    """
    if not (wanted and is_lead()):
        yield lambda name, layers, row: None
        return
    check_tensorboard(wanted)
    make, writers = importlib.import_module("tensorboard.summary").Writer, {}

    def add(name: str, layers: Sequence[int], row: Mapping[str, Any]) -> None:
        if name not in writers:
            writers[name] = make(str(folder / name))
        for what in BY_LAYER:
            for layer, value in zip(layers, row[what], strict=True):
                writers[name].add_scalar(f"{what}/layer {layer}", value, row["step"])
        for what in WHOLE:
            writers[name].add_scalar(what, row[what], row["step"])
        writers[name].flush()

    try:
        yield add
    finally:
        for writer in writers.values():
            writer.close()
