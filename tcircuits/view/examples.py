"""What `tcircuits features` found, on the page of a graph: examples of each feature, and a short label.

A feature that has no label is called by the token at which it is strongest in the corpus of the features' folder.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.statistics.result import origin
from tcircuits.transcoders.statistics.viewer_file import FeatureFiles
from tcircuits.types import InputError

EXAMPLES = 5  # of a feature


def open_features(folder: Path, cfg: TranscoderConfig, source: str) -> FeatureFiles:
    """The records of a folder, checked against the dictionaries that a graph is made with.

    Raises:
        InputError: no such folder, a damaged one, or one for dictionaries of another size.
    """
    files = FeatureFiles(folder)
    sizes = {layer: files.n_features(layer) for layer in files.layers}
    wrong = {layer: n for layer, n in sizes.items() if layer not in cfg.layers or n != cfg.d_feature}
    if wrong:
        layer, n = next(iter(wrong.items()))
        raise InputError(
            f"{folder} has {n:,} features in layer {layer}; the transcoders have {cfg.d_feature:,} in each of the "
            f"layers {list(cfg.layers)}: give the folder that `tcircuits features` wrote for them"
        )
    made = origin(folder / "statistics.npz") if (folder / "statistics.npz").exists() else None
    if made is not None and made != source:
        warnings.warn(f"{folder} was made for transcoders {made}, the graph is of {source}", stacklevel=2)
    return files


def with_examples(graph: Mapping[str, Any], files: FeatureFiles) -> dict[str, Any]:
    """A graph in the viewers' form, its feature nodes with `examples`: (tokens, activations, place of the chosen)."""
    read: dict[tuple[int, int], list[Any]] = {}
    nodes = []
    for node in graph["nodes"]:
        if node["feature_type"] == "cross layer transcoder" and int(node["layer"]) in files.layers:
            place = int(node["layer"]), int(node["node_id"].split("_")[1])
            if place not in read:
                read[place] = _strongest(files.read(*place))
            node = {**node, "examples": read[place]}
            if read[place] and not node["clerp"]:
                tokens, _, chosen = read[place][0]
                node["clerp"] = tokens[chosen].strip() or tokens[chosen]
        nodes.append(node)
    return {**graph, "nodes": nodes}


def _strongest(record: Mapping[str, Any]) -> list[Any]:
    """The first examples of a record's first group; what is no example in it is left out."""
    groups = record.get("examples_quantiles")
    first = groups[0].get("examples") if isinstance(groups, list) and groups and isinstance(groups[0], dict) else []
    found = [_example(e) for e in (first if isinstance(first, list) else []) if isinstance(e, dict)]
    return [e for e in found if e is not None][:EXAMPLES]


def _example(e: Mapping[str, Any]) -> list[Any] | None:
    tokens, values, chosen = (e.get(name) for name in ("tokens", "tokens_acts_list", "train_token_ind"))
    if not isinstance(tokens, list) or not isinstance(values, list) or not isinstance(chosen, int):
        return None
    numbers = all(isinstance(v, int | float) for v in values)
    if len(tokens) != len(values) or not 0 <= chosen < len(tokens) or not numbers:
        return None
    return [[str(t) for t in tokens], values, chosen]
