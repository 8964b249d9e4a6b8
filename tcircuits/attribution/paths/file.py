"""A path graph as one file, and back: `.npz` with its arrays and one JSON text for everything else; never a pickle.

Equal graphs give equal bytes: keys are sorted, members stand in a fixed order with a fixed date, nothing is compressed.
"""

import json
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.attribution.files import whole_file
from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.paths.filters import EMBED, ROOT
from tcircuits.attribution.paths.graph import PathGraph
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits paths", 1
DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's first day
PLAIN = ("model", "transcoders", "prompt", "n_layers", "token_text", "target", "settings")
INTS = ("level", "parent", "kind", "layer", "pos", "index")
FLOATS = ("value", "score", "error", "bias", "pruned", "size")
TYPES = dict.fromkeys(("tokens", "wanted", *INTS), "i") | dict.fromkeys(FLOATS, "f") | {"listed": "b", "json": "U"}


def save_paths(graph: PathGraph, path: str | Path) -> Path:
    """Write a path graph to one `.npz` file, whole or not at all; an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    about = {name: getattr(graph, name) for name in PLAIN} | {"format": FORMAT, "version": VERSION}
    about["target"] = asdict(graph.target)
    text = json.dumps(about, sort_keys=True, allow_nan=False, separators=(",", ":"))
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in TYPES:
            array = np.array(text) if name == "json" else np.asarray(getattr(graph, name))
            info = zipfile.ZipInfo(f"{name}.npy", DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)
    return Path(path)


def load_paths(path: str | Path) -> PathGraph:
    """Read what `save_paths` wrote, with every array bit for bit as it was.

    Raises:
        InputError: no such file, a damaged or foreign one, another version, or contents that do not fit together.
    """
    try:
        with open(path, "rb") as file:
            arrays = _arrays(file)
        about = json.loads(str(arrays.pop("json")))
        if about.pop("format", None) != FORMAT or about.pop("version", None) != VERSION or about.keys() != set(PLAIN):
            raise ValueError(f"its text is not of the format {FORMAT!r}, version {VERSION}")
        about["token_text"], about["target"] = tuple(about["token_text"]), TargetNode(**about["target"])
        values: dict[str, Any] = about | arrays
        graph = PathGraph(**values)
        _check(graph)
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except Exception as problem:  # whatever the zip, NumPy and JSON readers say about damaged bytes
        raise InputError(f"{path} is damaged, or no paths of tcircuits: {problem!s:.400}") from problem
    return graph


def _arrays(file: Any) -> dict[str, np.ndarray]:
    """All members, whose declared sizes are what they hold.

    Raises:
        ValueError, zipfile.BadZipFile: the file is no such archive.
    """
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if members.keys() != TYPES.keys():
            raise ValueError(f"its members are {sorted(members)!s:.100}")
        for name, info in members.items():
            with archive.open(info) as member:
                np.lib.format.read_magic(member)
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                held = info.file_size - member.tell()
            stored = info.compress_type == zipfile.ZIP_STORED and dtype.kind == TYPES[name]
            if not stored or len(shape) != (name != "json") or int(np.prod(shape)) * dtype.itemsize != held:
                raise ValueError(f"its member {name} is not what save_paths writes")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in TYPES}


def _check(graph: PathGraph) -> None:
    """Raise where arrays of a file do not fit together.

    Raises:
        ValueError: naming what is wrong.
    """
    P, own = len(graph.level), {f.name for f in fields(graph)} & {*INTS, *FLOATS, "listed"}
    if not P or any(len(getattr(graph, name)) != P for name in own):
        raise ValueError("its arrays have different lengths")
    before = graph.parent < np.arange(P)
    start = graph.parent[0] == -1 and (graph.parent[1:] >= 0).all() and before.all()
    if not start or (graph.level[1:] != graph.level[graph.parent[1:]] + 1).any() or graph.level[0]:
        raise ValueError("its paths do not continue one another")
    if graph.kind.min() < 0 or graph.kind.max() > ROOT or (graph.kind[graph.parent[1:]] == EMBED).any():
        raise ValueError("its nodes are of unknown kinds, or something follows an embedding")
    if len(graph.tokens) != len(graph.token_text) or graph.pos.min() < 0 or graph.pos.max() >= len(graph.tokens):
        raise ValueError("its positions are not those of its tokens")
    if not all(np.isfinite(getattr(graph, name)).all() for name in FLOATS):
        raise ValueError("it has values that are not finite")
