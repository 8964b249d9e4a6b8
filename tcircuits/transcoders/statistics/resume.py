"""The checkpoints of a pass: the newest complete one counts, older ones are removed once it is there.

    FOLDER/000000000512   the state after 512 rows

A pass that goes on from one ends with the very state of a pass that was not cut off.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcircuits import checkpoint
from tcircuits.parallel import is_lead
from tcircuits.transcoders.training.folder import DamagedCheckpoint, votes
from tcircuits.transcoders.training.recipe import differences
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.feature_pass", 1


def states(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    found = [p for p in folder.glob("*") if p.name.isdecimal() and checkpoint.is_checkpoint(p)]
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def write(folder: Path, state: Any, rows: int, about: Mapping[str, Any]) -> None:
    """Write the state after so many rows, and drop what is older. Every process calls it."""
    settings = {"settings": json.dumps(about), "rows": rows}
    path = folder / f"{rows:012d}"
    if is_lead():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)  # what a pass that was killed left half-written
    votes(True)  # the others wait
    checkpoint.save(path, state, format_name=FORMAT, version=VERSION, about=settings)
    if is_lead():
        for old in folder.glob("*"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)


def read(folder: Path, abstract: Any, about: Mapping[str, Any]) -> tuple[Any, int] | None:
    """The newest state that can be read, and the rows that it holds; None where there is none.

    Raises:
        InputError: the pass was begun with other settings: all differences are listed.
    """
    for path in states(folder):
        state, rows, problem = None, 0, "another process cannot read it"
        try:
            found = checkpoint.metadata(path, format_name=FORMAT, version=VERSION)
            stored, rows = json.loads(found["settings"]), int(found["rows"])
            changed = differences(json.loads(json.dumps(about)), stored)
        except (InputError, KeyError, ValueError, OSError) as error:
            problem, changed = str(error), []
        else:
            if changed:
                raise InputError(
                    f"the pass in {folder} was begun with other settings ({'; '.join(changed)}): "
                    "go on with those, or choose a new folder"
                )
            try:
                state = checkpoint.load(path, abstract)
            except InputError as error:
                problem = str(error)
        if all(votes(state is not None)):
            return state, rows
        warnings.warn(f"checkpoint {path} is passed over: {problem}", DamagedCheckpoint, stacklevel=2)
    return None
