"""A run's folder: settings, checkpoints, figures by step.

    RUN/checkpoints/0000012000   the state after that many steps (Orbax); the newest two are kept
    RUN/metrics.jsonl            a line for every fill
    RUN/transcoders              the result, once the run is done

A checkpoint is complete or it does not count. One that is damaged is passed over for the one before it, and set aside
(`NAME.damaged`) until the next start. A disk that is full costs checkpoints and lines, not the run.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcircuits import checkpoint
from tcircuits.parallel import is_lead
from tcircuits.transcoders.training.recipe import differences
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.training", 1
KEPT = 2
METRICS = "metrics.jsonl"


class DamagedCheckpoint(UserWarning):
    """A checkpoint that could not be read, or not be written."""


def votes(flag: bool) -> list[bool]:
    """The flags of all processes. Every process calls it, and none goes on before the others have."""
    if jax.process_count() == 1:
        return [flag]
    from jax.experimental import multihost_utils

    return [bool(f) for f in np.ravel(multihost_utils.process_allgather(np.asarray(flag)))]


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    found = [p for p in (run / "checkpoints").glob("*") if p.name.isdecimal() and checkpoint.is_checkpoint(p)]
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def clear_remains(run: Path) -> None:
    """Remove what a killed run left half-written."""
    if not is_lead():
        return
    remains = [*(run / "checkpoints").glob("*"), *run.glob(".transcoders.*"), *run.glob("transcoders.orbax*")]
    if checkpoint.began_as_checkpoint(run / "transcoders"):
        remains.append(run / "transcoders")
    for path in remains:
        named = path.name.isdecimal() or path.name == "transcoders"
        if path.is_dir() and not (named and checkpoint.is_checkpoint(path)):
            shutil.rmtree(path, ignore_errors=True)


def write_state(run: Path, state: Any, step: int, about: Mapping[str, Any]) -> Callable[[], None]:
    """Begin to write a checkpoint; the result waits for it and then drops the oldest. A full disk is a warning.

    Every process calls it, and the result.
    """
    target = run / "checkpoints" / f"{step:010d}"
    settings = {"settings": json.dumps(about), "step": step}
    try:
        wait = checkpoint.save_async(target, state, format_name=FORMAT, version=VERSION, about=settings)
    except (OSError, ValueError) as problem:
        _not_written(target, problem)
        return lambda: None

    def finish() -> None:
        try:
            wait()
        except Exception as problem:  # Orbax and TensorStore raise many kinds, a full disk among them
            _not_written(target, problem)
            return
        if is_lead():
            for old in checkpoints(run)[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)

    return finish


def _not_written(target: Path, problem: Exception) -> None:
    if is_lead():
        for part in target.parent.glob(f"{target.name}*"):  # Orbax's draft too: it may be what fills the disk
            shutil.rmtree(part, ignore_errors=True)
    reason = str(problem).split("\n")[0][:200]
    warnings.warn(f"checkpoint {target} was not written ({reason}): the one before it stays", DamagedCheckpoint, 3)


def read_state(run: Path, abstract: Any, about: Mapping[str, Any]) -> tuple[Any, int] | None:
    """The newest state that every process can read, and its step; None where there is none yet. Every process calls it.

    Raises:
        InputError: the run was made with other settings: all differences are listed.
    """
    for path in checkpoints(run):
        state, step, problem = None, 0, "another process cannot read it"
        try:
            found = checkpoint.metadata(path, format_name=FORMAT, version=VERSION)
            stored, step = json.loads(found["settings"]), int(found["step"])
        except (InputError, KeyError, ValueError, OSError) as error:
            problem = str(error)
        else:
            _compare(run, json.loads(json.dumps(about)), stored)
            try:
                state = checkpoint.load(path, abstract)
            except InputError as error:
                problem = str(error)
        if all(votes(state is not None)):
            return state, step
        warnings.warn(f"checkpoint {path} is passed over: {problem}", DamagedCheckpoint, stacklevel=2)
    return None


def _compare(run: Path, given: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise where settings differ; another release is a warning."""
    made, here = stored.pop("release", None), given.pop("release", None)
    if made != here:
        warnings.warn(f"{run} was begun with release {made}, this is {here}: figures may move", stacklevel=3)
    changed = differences(given, stored)
    if changed:
        raise InputError(
            f"{run} was begun with other settings ({'; '.join(changed)}): go on with those, or choose a new folder"
        )


def prepare(run: Path, step: int) -> None:
    """Make the folder what it was after a step: later checkpoints (they were passed over) and figures go.

    Every process calls it.

    Raises:
        InputError: nothing can be written there.
    """
    problem = None
    if is_lead():
        try:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            for path in checkpoints(run):
                if int(path.name) > step:  # else it would be the newest again, and good ones would make room for it
                    path.rename(path.with_name(f"{path.name}.damaged"))
            cut_metrics(run, step)
        except OSError as error:
            problem = error
    if any(votes(problem is not None)):
        raise InputError(f"the folder {run} cannot be written ({problem}): free space there, or choose another")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The figures of a run, a dict for every fill; a last line that was cut off is left out."""
    path, found = run / METRICS, []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return found


def cut_metrics(run: Path, step: int) -> None:
    """Drop the lines after a step: they are written again."""
    kept = [row for row in read_metrics(run) if row["step"] <= step]
    draft = run / f".{METRICS}"
    draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    draft.replace(run / METRICS)


def add_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Append a line. Where that fails (a full disk) nothing of it stays, and the run goes on with a warning."""
    path = run / METRICS
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as problem:
        if path.exists():
            os.truncate(path, size)
        warnings.warn(f"the figures of step {row['step']} were not written: {problem}", stacklevel=2)
