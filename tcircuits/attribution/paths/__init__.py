"""Input-dependent computational paths: which chains of features, heads and embeddings make up an output on a prompt.

`find_paths` is for one prompt; `search` is the pure core, for `jit`, `vmap` and meshes, with `root_from` for what paths
lead to and `rules` for filters; `save_paths` and `load_paths` are the file.
"""

from tcircuits.attribution.paths.file import load_paths, save_paths
from tcircuits.attribution.paths.filters import Condition, Filters, parse_filters, rules
from tcircuits.attribution.paths.find import find_paths
from tcircuits.attribution.paths.graph import Merged, PathGraph
from tcircuits.attribution.paths.search import Levels, Root, root_from, search

__all__ = [
    "Condition",
    "Filters",
    "Levels",
    "Merged",
    "PathGraph",
    "Root",
    "find_paths",
    "load_paths",
    "parse_filters",
    "root_from",
    "rules",
    "save_paths",
    "search",
]
