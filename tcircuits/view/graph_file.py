"""The page of a graph that is only a file: one that was saved here, or by circuit-tracer."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcircuits.types import InputError
from tcircuits.view.page import write_page

PAGE_EDGES = 40_000  # what a browser draws without delay


@contextmanager
def folder_of(path: str | Path) -> Iterator[Path]:
    """A folder with a page: the path itself if it is no file, else one that is gone afterwards.

    A graph that is not pruned is pruned with the defaults; its page shows the strongest edges.

    Raises:
        InputError: a file that is no graph, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        yield path
        return
    from tcircuits.attribution.graph_io import load_graph, viewer_json

    try:
        shown = viewer_json(load_graph(path), max_edges=PAGE_EDGES)
    except InputError as problem:
        raise InputError(
            f"{path} is a file; give the folder that `tcircuits trace --out` wrote, or a graph: {problem}"
        ) from problem
    with tempfile.TemporaryDirectory(prefix="tcircuits-") as folder:
        write_page(shown, Path(folder) / "index.html")
        yield Path(folder)
