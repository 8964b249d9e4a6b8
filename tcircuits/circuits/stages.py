"""Stages of a long computation, each an Orbax checkpoint: a call that was cut off goes on after the last one there.

FOLDER/settings.json says whose they are, FOLDER/NAME is a stage: a few facts and arrays, in the dtype that they were
computed in, so that a later stage sees the same bits whether it was loaded or not. Reading one runs nothing.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits import checkpoint
from tcircuits.files.archive import Wanted, fitting, read_all
from tcircuits.files.limits import read_json
from tcircuits.files.storage import MalformedError
from tcircuits.files.tensor_file import TensorFile
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.stage", 1
Record = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
"""Facts, as JSON values, and arrays."""


@dataclass
class Stages:
    """The stages of one call.

    Attributes:
        folder: that keeps them; None keeps nothing.
        tell: is told of each stage before it is computed.
        seconds: of each stage that this call computed.
    """

    folder: Path | None
    tell: Callable[[str], None] | None
    seconds: dict[str, float] = field(default_factory=dict)

    def begin(self, settings: dict[str, Any]) -> None:
        """Claim the folder for these settings (JSON values).

        Raises:
            InputError: it has stages of others.
        """
        if self.folder is None:
            return
        path = self.folder / "settings.json"
        if path.exists():
            there = read_json(path)
            differ = sorted(key for key in there.keys() | settings.keys() if there.get(key) != settings.get(key))
            if differ:
                raise InputError(f"the stages at {self.folder} are of another call ({', '.join(differ)} differ)")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(".settings.json")
        draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)

    def stage(
        self,
        name: str,
        make: Callable[[], Any],
        record: Callable[[Any], Record],
        restored: Callable[[Mapping[str, Any], TensorFile, Path], Any],
    ) -> Any:
        """What a stage found, now or earlier.

        Args:
            name: of the stage, and of its checkpoint.
            make: computes it.
            record: what is kept of it.
            restored: gives it back, from the facts, the arrays not yet read, and the path for messages.

        Raises:
            InputError: what is there is damaged.
        """
        path = None if self.folder is None else self.folder / name
        if path is not None and checkpoint.is_checkpoint(path):
            about = checkpoint.metadata(path, format_name=f"{FORMAT}.{name}", version=VERSION)
            return restored(about, checkpoint.open_arrays(path), path)
        found = self.timed(name, make)
        if path is not None:
            for remains in (path, *path.parent.glob(f"{name}.orbax*")):  # of a call that was cut off while it wrote
                shutil.rmtree(remains, ignore_errors=True)
            about, arrays = record(found)
            checkpoint.save(path, dict(arrays), format_name=f"{FORMAT}.{name}", version=VERSION, about=about)
        return found

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """Compute, and note how long it took."""
        if self.tell is not None:
            self.tell(name)
        start = time.perf_counter()
        found = make()
        self.seconds[name] = time.perf_counter() - start
        return found


def of_arrays(wanted: Wanted, sizes: Mapping[str, int]) -> tuple[Any, Any]:
    """How a stage of arrays is kept and restored: `wanted` says their kinds and axes, `sizes` lengths of axes."""

    def record(found: Mapping[str, np.ndarray]) -> Record:
        return {}, found

    def restored(_about: Mapping[str, Any], file: TensorFile, path: Path) -> dict[str, np.ndarray]:
        try:
            fitting(file, wanted, sizes)
            return read_all(file)
        except (InputError, MalformedError) as problem:
            raise InputError(f"the stage at {path} is damaged ({problem}): remove its folder") from None

    return record, restored
