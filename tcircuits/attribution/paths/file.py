"""A path graph as one file, and back: `.npz` with its arrays and one JSON text for everything else; never a pickle.

Equal graphs give equal bytes: keys are sorted, members stand in a fixed order with a fixed date, nothing is compressed.
"""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tcircuits.attribution.files import whole_file
from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.paths.filters import EMBED, ROOT
from tcircuits.attribution.paths.graph import PathGraph
from tcircuits.files.archive import Wanted, fitting, open_archive, read_all
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import checked
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits paths", 1
DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's first day
SAID = {
    "model": str, "transcoders": str, "prompt": str, "n_layers": int, "token_text": tuple[str, ...],
    "target": TargetNode, "settings": dict,
}  # fmt: skip
INTS = ("level", "parent", "kind", "layer", "pos", "index")
FLOATS = ("value", "score", "error", "bias", "pruned", "size")
WANTED: Wanted = {
    "tokens": ("i", ("T",)), "wanted": ("i", ("I",)), **dict.fromkeys(INTS, ("i", ("P",))),
    **dict.fromkeys(FLOATS, ("f", ("P",))), "listed": ("b", ("P",)),
}  # fmt: skip


def save_paths(graph: PathGraph, path: str | Path) -> Path:
    """Write a path graph to one `.npz` file, whole or not at all; an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    about = {name: getattr(graph, name) for name in SAID} | {"format": FORMAT, "version": VERSION}
    about["target"] = asdict(graph.target)
    text = json.dumps(about, sort_keys=True, allow_nan=False, separators=(",", ":"))
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in (*WANTED, "json"):
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
        about, file = open_archive(path, "json", FORMAT, VERSION)
        said = checked(about, SAID)
        fitting(file, WANTED, {"T": len(said["token_text"])})
        graph = PathGraph(**said | read_all(file))
        _check(graph)
    except (InputError, MalformedError) as problem:
        raise InputError(f"{path} cannot be read as paths: {problem}") from None
    return graph


def _check(graph: PathGraph) -> None:
    """Raise where arrays of a file do not fit together.

    Raises:
        MalformedError: naming what is wrong.
    """
    P = len(graph.level)
    if not P:
        raise MalformedError("it has no paths, not even the root")
    if graph.n_layers < 1 or graph.layer.min() < 0 or graph.layer.max() > graph.n_layers:
        raise MalformedError("its layers are not those of its model")
    before = graph.parent < np.arange(P)
    start = graph.parent[0] == -1 and (graph.parent[1:] >= 0).all() and before.all()
    if not start or (graph.level[1:] != graph.level[graph.parent[1:]] + 1).any() or graph.level[0]:
        raise MalformedError("its paths do not continue one another")
    if graph.kind.min() < 0 or graph.kind.max() > ROOT or (graph.kind[graph.parent[1:]] == EMBED).any():
        raise MalformedError("its nodes are of unknown kinds, or something follows an embedding")
    if graph.pos.min() < 0 or graph.pos.max() >= len(graph.tokens):
        raise MalformedError("its positions are not those of its tokens")
    if not all(np.isfinite(getattr(graph, name)).all() for name in FLOATS):
        raise MalformedError("it has values that are not finite")
