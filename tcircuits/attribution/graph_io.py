"""A graph as one file, and back: `.npz` with the arrays of `Graph` and one JSON string for everything else.

The file is what `numpy.load(path, allow_pickle=False)` reads: the array `json` (a text) holds names, tokens, targets
and settings. Equal graphs give equal bytes: keys are sorted, members stand in a fixed order with a fixed date, and
nothing is compressed (other zlib builds pack differently; on 20 million edges deflate saves two fifths of the size,
makes saving about forty times slower than copying the bytes, and would let a small file unpack to a huge one).

Loading runs no code from the file, and compares what the members declare with what they hold before it reads them.

A graph that circuit-tracer saved is another file, which `ct_graph` reads.

The viewers' JSON is in `viewer_json` (writing) and `viewer_read` (reading); both are at hand here too.
"""

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tcircuits.attribution.ct_file import is_saved_by_torch
from tcircuits.attribution.ct_graph import read_ct_graph
from tcircuits.attribution.files import whole_file
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.graph_check import ARRAYS, array_problems, content_problems, raise_problems
from tcircuits.attribution.viewer_json import graph_schema, viewer_json, write_viewer_json
from tcircuits.attribution.viewer_read import ViewerGraph, ViewerNode, read_viewer_json
from tcircuits.files import zip_archive
from tcircuits.files.limits import MEMORY, Budget, weigh
from tcircuits.files.storage import of_file
from tcircuits.types import InputError

__all__ = [
    "ViewerGraph",
    "ViewerNode",
    "graph_schema",
    "load_graph",
    "read_viewer_json",
    "save_graph",
    "viewer_json",
    "write_viewer_json",
]

FORMAT, VERSION = "tcircuits graph", 1
DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's first day
PLAIN = ("model", "transcoders", "prompt", "n_layers", "d_vocab", "n_active", "settings", "token_text", "targets")
Headers = dict[str, tuple[tuple[int, ...], np.dtype]]


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph to one `.npz` file, whole or not at all; an existing file is replaced.

    Raises:
        InputError: the graph is damaged (all problems in one message), or the file cannot be written.
    """
    arrays = {name: np.asarray(x) for name in ARRAYS if (x := getattr(graph, name)) is not None}
    raise_problems(path, "cannot be saved", array_problems(_shapes(arrays), graph.n_layers, len(graph.targets)))
    raise_problems(path, "cannot be saved", content_problems(graph))
    arrays["json"] = np.array(_plain(graph))
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in ("json", *ARRAYS):
            if name in arrays:
                _write_member(archive, name, arrays[name])
    return Path(path)


def _write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """One array, with nothing of the machine or the time in its header."""
    info = zipfile.ZipInfo(f"{name}.npy", DATE)
    info.create_system, info.external_attr = 3, 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), (1, 0), allow_pickle=False)


def _shapes(arrays: dict[str, np.ndarray]) -> Headers:
    return {name: (x.shape, x.dtype) for name, x in arrays.items()}


def _plain(graph: Graph) -> str:
    """All that is not an array, as JSON in ASCII.

    Raises:
        InputError: settings that are no plain JSON values.
    """
    values = {name: getattr(graph, name) for name in PLAIN}
    values["targets"] = [dataclasses.asdict(t) for t in graph.targets]
    values |= {"format": FORMAT, "version": VERSION}
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"), default=_scalar)
    except (TypeError, ValueError) as problem:
        raise InputError(f"the graph holds what JSON cannot say ({problem}); settings must be plain values") from None


def _scalar(x: Any) -> Any:
    if isinstance(x, np.generic):
        return x.item()
    raise TypeError(f"{type(x).__name__} {x!r:.40}")


def load_graph(path: str | Path, *, model: Any = None) -> Graph:
    """Read a graph that `save_graph` wrote, with every array bit for bit as it was; or one that circuit-tracer saved.

    Which of the two a file is, its contents say. What is not in a file of circuit-tracer's: see `ct_graph`.

    Args:
        path: the file.
        model: names the tokens of a file of circuit-tracer's, which has only their ids; not used for other files.

    Raises:
        InputError: no such file, a truncated or foreign file, another format version, or contents that do not fit
            together (all problems in one message).
    """
    if is_saved_by_torch(path):
        return read_ct_graph(path, model)
    try:
        with open(path, "rb") as file:
            graph = _read(file, path)
    except InputError:
        raise
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except Exception as problem:  # whatever the zip, NumPy and JSON readers say about damaged bytes
        raise InputError(
            f"{path} is damaged, or no graph of tcircuits or circuit-tracer: {problem!s:.400}"
        ) from problem
    raise_problems(path, "cannot be loaded", content_problems(graph))
    return graph


def _read(file: BinaryIO, path: str | Path) -> Graph:
    """The graph in a file, its shapes checked before anything large is read."""
    unknown = zip_archive.members(of_file(Path(path)), None).keys() - {f"{name}.npy" for name in ("json", *ARRAYS)}
    if unknown:
        raise ValueError(f"it has {len(unknown)} unknown members, {min(unknown)!r:.60} among them")
    headers = _headers(file)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        values = _values(str(stored["json"]))
        raise_problems(path, "cannot be loaded", array_problems(headers, values["n_layers"], len(values["targets"])))
        return Graph(**values, **{name: stored[name] for name in ARRAYS if name in headers})


def _headers(file: BinaryIO) -> Headers:
    """Shape and type of each member; refuses what `save_graph` does not write, such as objects and compression.

    Raises:
        ValueError, zipfile.BadZipFile: the file is no such archive.
    """
    room, found = file.seek(0, 2), {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in found or f"{name}.npy" != info.filename or name not in ("json", *ARRAYS):
                raise ValueError(f"its member {info.filename!r:.60} is unknown or stands twice")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ValueError(f"its member {info.filename} is compressed; save_graph writes plain members")
            room -= info.file_size
            if room < 0:
                raise ValueError("its members declare more bytes than the file has")
            with archive.open(info) as member:
                found[name] = _header(member, info)
    if "json" not in found or found["json"][0] != () or found["json"][1].kind != "U":
        raise ValueError("it has no text named 'json'")
    return found


def _header(member: Any, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array; the member must hold exactly that many bytes."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f"its member {info.filename} is of another NumPy format version than 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.hasobject or dtype.kind not in "bifU":
        raise ValueError(f"its member {info.filename} has type {dtype}; only numbers are read, never objects")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or member.tell() + size != info.file_size:
        raise ValueError(f"its member {info.filename} declares shape {shape} of {dtype}, which is not its size")
    return tuple(shape), dtype


def _values(text: str) -> dict[str, Any]:
    """The fields of `Graph` that are no arrays.

    Raises:
        ValueError: not the JSON that `save_graph` writes; all problems in one message.
    """
    weigh(text.encode("utf-8", "replace"), Budget(MEMORY + 3 * len(text)))
    values = json.loads(text, parse_constant=_refuse)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"its text is not of the format {FORMAT!r}")
    if (version := values.pop("version", None)) != VERSION:
        raise ValueError(f"its format version is {version!r:.20}; this release of tcircuits reads version {VERSION}")
    if values.keys() != set(PLAIN):
        raise ValueError(f"its text names {sorted(values)}; needed are {sorted(PLAIN)}")
    problems = [f"{name} is no {what}" for name, what, check in CHECKS if not check(values[name])]
    if problems:
        raise ValueError("; ".join(problems))
    values["token_text"] = tuple(values["token_text"])
    values["targets"] = tuple(TargetNode(**t) for t in values["targets"])
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _is_int(x: Any, low: int = 0) -> bool:
    return type(x) is int and low <= x < 2**31


def _is_target(x: Any) -> bool:
    """Whether a JSON value has the fields of `TargetNode`, each of its type."""
    if not isinstance(x, dict) or x.keys() != {f.name for f in dataclasses.fields(TargetNode)}:
        return False
    texts = isinstance(x["label"], str) and isinstance(x["kind"], str)
    whole = _is_int(x["layer"]) and _is_int(x["pos"]) and (x["token"] is None or _is_int(x["token"]))
    return texts and whole and type(x["weight"]) in (int, float) and type(x["prob"]) in (int, float, type(None))


def _is_list(x: Any, check: Any) -> bool:
    return isinstance(x, list) and all(map(check, x))


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    *((name, "text", _is_text) for name in ("model", "transcoders", "prompt")),
    *((name, "positive whole number", lambda x: _is_int(x, 1)) for name in ("n_layers", "d_vocab")),
    ("n_active", "whole number", _is_int),
    ("settings", "object", lambda x: isinstance(x, dict)),
    ("token_text", "list of texts", lambda x: _is_list(x, _is_text)),
    ("targets", "list of targets", lambda x: _is_list(x, _is_target)),
)
