"""One `.npz` file of named arrays and one JSON text, as several results are saved: read without trust.

    about, file = open_archive(path, "about")
    sizes = fitting(file, {"value": ("f", ("S", "F", 20)), "count": ("iu", ("S", "F"))}, {"S": 2})
    arrays = read_all(file)

The text is parsed and shapes are compared with what the text says before any array is read; nothing is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import MEMORY, Budget, parse_json
from tcircuits.files.opening import open_tensors
from tcircuits.files.storage import MalformedError
from tcircuits.files.strided import DTYPES
from tcircuits.files.tensor_file import TensorFile
from tcircuits.types import InputError

Wanted = Mapping[str, tuple[str, tuple[str | int, ...]]]
"""By name: the kinds of NumPy types (such as `iu`) that an array may have, and its axes: sizes, or names of sizes."""


def open_archive(
    path: str | Path, text: str, name: str, version: int, *, max_decoded: int | None = None
) -> tuple[dict[str, Any], TensorFile]:
    """What the text of an archive says, without its `format` and `version`, and the arrays, not yet read.

    Args:
        path: the file.
        text: name of the array that is the text.
        name: what `format` must say.
        version: what `version` must say.
        max_decoded: as of `open_tensors`.

    Raises:
        MalformedError: as `open_tensors`; no text of that name, no JSON object, another format or version.
    """
    try:
        file = open_tensors(path, max_decoded=max_decoded)
    except InputError as problem:  # the caller names the file
        raise MalformedError(str(problem).removeprefix(f"{path}: ").removeprefix(f"{path} ")) from None
    said = file.about.get(text) if isinstance(file.about, dict) else None
    if not isinstance(said, str) or len(file.about) != 1:
        raise MalformedError(f"it has no text {text!r} beside its arrays, or other texts too")
    about = parse_json(said.encode("utf-8", "surrogatepass"), Budget(MEMORY + len(said)))
    if not isinstance(about, dict) or about.pop("format", None) != name:
        raise MalformedError(f"its text is not of the format {name!r}")
    found = about.pop("version", None)
    if type(found) is not int or found != version:
        raise MalformedError(f"it has version {found!r:.40}; this release reads version {version}")
    return about, file


def fitting(file: TensorFile, wanted: Wanted, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of all axes that `wanted` names, where a file has just these arrays.

    Args:
        file: the open file.
        wanted: its arrays.
        sizes: of axes that are known already.

    Raises:
        MalformedError: arrays that are missing, too many, of other types, or whose axes do not fit one another.
    """
    names = file.headers.keys()
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - names)]
    wrong += [f"{name!r:.60} is not expected" for name in sorted(names - wanted.keys())]
    known = dict(sizes)
    for name in [name for name in wanted if name in names]:
        kinds, axes = wanted[name]
        header = file.headers[name]
        if DTYPES[header.dtype].kind not in kinds:
            wrong.append(f"{name} holds {header.dtype}")
        fits = len(header.shape) == len(axes)
        for axis, n in zip(axes, header.shape, strict=False):
            fits &= n == (known.setdefault(axis, n) if isinstance(axis, str) else axis)
        if not fits:
            told = ", ".join(str(known.get(axis, axis)) if isinstance(axis, str) else str(axis) for axis in axes)
            wrong.append(f"{name} has shape {header.shape!s:.80}, not ({told})")
    if wrong:
        raise MalformedError(f"{'; '.join(wrong)!s:.600}")
    return known


def read_all(file: TensorFile) -> dict[str, Any]:
    """Every array of a file.

    Raises:
        InputError: an array is damaged.
    """
    return {name: np.asarray(file.read(name, None)) for name in file.headers}
