"""A record: one JSON object to be read by people, and arrays beside it, PATH.json and PATH.npz.

Each file is written to another name and renamed, so that it appears whole or not at all. Readers run nothing.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import read_json
from tcircuits.files.opening import open_tensors
from tcircuits.files.tensor_file import TensorFile
from tcircuits.types import InputError


def write_record(
    path: str | PathLike[str], kind: str, version: int, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a record; PATH may end in .json or .npz."""
    stem, given = _stem(path), dict[str, Any](arrays)
    stem.parent.mkdir(parents=True, exist_ok=True)
    draft = stem.with_name(f".{stem.name}.npz")
    with draft.open("wb") as out:
        np.savez_compressed(out, **given)
    draft.replace(stem.with_name(f"{stem.name}.npz"))
    text = json.dumps({"tcircuits": kind, "version": version} | dict(head), indent=1)
    draft = stem.with_name(f".{stem.name}.json")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(stem.with_name(f"{stem.name}.json"))


def read_record(path: str | PathLike[str], kind: str, version: int) -> tuple[dict[str, Any], TensorFile]:
    """The head and the arrays of a record.

    Raises:
        InputError: a file is missing or damaged, or the record is of another kind or version.
    """
    stem = _stem(path)
    names = [stem.with_name(f"{stem.name}.{end}") for end in ("json", "npz")]
    absent = [str(p) for p in names if not p.is_file()]
    if absent:
        raise InputError(f"no {kind} at {path}: {', '.join(absent)} missing")
    head = read_json(names[0])
    if head.get("tcircuits") != kind or head.get("version") != version:
        raise InputError(f"{names[0]} is no {kind} of version {version}")
    return head, open_tensors(names[1])


def _stem(path: str | PathLike[str]) -> Path:
    given = Path(path).expanduser()
    return given.with_suffix("") if given.suffix in (".json", ".npz") else given
