"""Stages of a long computation, each kept in a folder: a call that was cut off goes on after the last one there.

A stage is a record, PATH.json and PATH.npz, with arrays in the dtype that they were computed in (a later stage sees the
same bits, whether it was loaded or not). The JSON file is written last: where it is, the stage is whole.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.archive import Wanted, fitting, read_all
from tcircuits.files.limits import read_json
from tcircuits.files.record import read_record, write_record
from tcircuits.files.storage import MalformedError
from tcircuits.types import InputError

VERSION = 1


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

    def stage(self, name: str, make: Callable[[], Any], save: Any, load: Any) -> Any:
        """What a stage found, now or earlier."""
        path = None if self.folder is None else self.folder / name
        # a record's JSON is written last, so that the stage is whole where it is there
        if path is not None and path.with_name(f"{name}.json").exists():
            return load(path)
        found = self.timed(name, make)
        if path is not None:
            save(found, path)
        return found

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """Compute, and note how long it took."""
        if self.tell is not None:
            self.tell(name)
        start = time.perf_counter()
        found = make()
        self.seconds[name] = time.perf_counter() - start
        return found


def of_arrays(name: str, wanted: Wanted, sizes: Mapping[str, int]) -> tuple[Any, Any]:
    """How a stage of arrays is saved and loaded: `wanted` says their kinds and axes, `sizes` lengths of axes."""

    def save(found: Mapping[str, np.ndarray], path: Path) -> None:
        write_record(path, name, VERSION, {}, found)

    def load(path: Path) -> dict[str, np.ndarray]:
        _, file = read_record(path, name, VERSION)
        try:
            fitting(file, wanted, sizes)
            return read_all(file)
        except (InputError, MalformedError) as problem:
            raise InputError(f"the stage at {path} is damaged ({problem}): remove its folder") from None

    return save, load
