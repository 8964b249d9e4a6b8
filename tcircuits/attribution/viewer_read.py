"""Reading the viewers' graph JSON, from whatever tool wrote it.

Both forms of error ids are understood: `{l}_-1_{pos}`, and the older `0_{l}_{pos}`, which may equal the id of a
feature of layer 0. A link that names such an id means, as target, the feature (errors take no input); as source, the
node below the target, and where both are, the feature first and the error if the same pair of names comes again.
`qParams` may hold lists, or texts as a viewer's Save button takes them from a URL.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.types import InputError

MAX_BYTES = 500_000_000
MAX_PROBLEMS = 8


@dataclass(frozen=True)
class ViewerNode:
    """One node of a file.

    Attributes:
        node_id: as the file has it; old files may have it twice.
        kind: feature, error, token, target or bias.
        layer: -1 for tokens; for targets what the file says.
        pos: position in the prompt.
        feature: index in the dictionary of a feature, vocabulary id of a token or target; None for errors and biases.
        label: the file's `clerp`.
        feature_type: the file's own word for the kind.
        influence, activation, prob: None where the file has none.
        fields: the file's object.
    """

    node_id: str
    kind: str
    layer: int
    pos: int
    feature: int | None
    label: str
    feature_type: str
    influence: float | None
    activation: float | None
    prob: float | None
    fields: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ViewerGraph:
    """A graph as viewers see it: links are `source[i] -> target[i]` with `weight[i]`, numbers of `nodes`."""

    metadata: Mapping[str, Any]
    nodes: tuple[ViewerNode, ...]
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    pinned: tuple[str, ...] = ()
    supernodes: tuple[tuple[str, ...], ...] = ()  # (label, node ids ...)
    params: Mapping[str, Any] = field(default_factory=dict)  # the other qParams

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, as texts."""
        return tuple(self.metadata.get("prompt_tokens", ()))

    def of_kind(self, kind: str) -> list[int]:
        """Numbers of the nodes of one kind."""
        return [i for i, node in enumerate(self.nodes) if node.kind == kind]


def read_viewer_json(source: str | Path | Mapping[str, Any]) -> ViewerGraph:
    """Read a graph in the viewers' form, from a file or as parsed JSON.

    Raises:
        InputError: no such file, over 500 MB, not JSON, or no graph: the first problems in one message.
    """
    where = "this graph" if isinstance(source, Mapping) else str(source)
    document = source if isinstance(source, Mapping) else _parse(Path(source))
    problems = list(_part_problems(document))
    _refuse(where, problems)
    nodes = [_node(i, raw, problems) for i, raw in enumerate(document["nodes"])]
    _refuse(where, problems)
    known = tuple(node for node in nodes if node is not None)
    links = _links(document["links"], known, problems)
    params = _params(document.get("qParams") or {}, problems)
    _refuse(where, problems)
    return ViewerGraph(document["metadata"], known, *links, *params)


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise InputError(
            f"{where} is no attribution graph in the viewers' form:\n  " + "\n  ".join(problems[:MAX_PROBLEMS] + more)
        )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size / 1e6:.0f} MB; graphs of at most {MAX_BYTES / 1e6:.0f} MB are read")
        return json.loads(path.read_bytes(), parse_constant=_no_number)
    except InputError:
        raise
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not JSON, or is cut off: {problem}") from problem


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _part_problems(document: Any) -> Iterator[str]:
    if not isinstance(document, Mapping):
        yield f"it is a {type(document).__name__}; an object with metadata, qParams, nodes and links is needed"
        return
    for name, kind in (("metadata", Mapping), ("nodes", list), ("links", list)):
        if not isinstance(document.get(name), kind):
            yield f"{name} is missing or is no {'object' if kind is Mapping else 'list'}"
    if not isinstance(document.get("qParams") or {}, Mapping):
        yield "qParams is no object"
    metadata = document.get("metadata")
    tokens = metadata.get("prompt_tokens", []) if isinstance(metadata, Mapping) else []
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        yield "metadata.prompt_tokens is no list of texts"


def _node(i: int, raw: Any, problems: list[str]) -> ViewerNode | None:
    """One node, or None with an entry in `problems`."""
    if not isinstance(raw, Mapping):
        problems.append(f"nodes[{i}] is no object")
        return None
    node_id, pos, word = raw.get("node_id"), raw.get("ctx_idx"), raw.get("feature_type")
    if not isinstance(node_id, str) or not isinstance(word, str):
        problems.append(f"nodes[{i}] has node_id {node_id!r:.40} and feature_type {word!r:.40}; both must be texts")
        return None
    kind, layer = _kind(word), _layer(raw.get("layer"))
    if layer is None or type(pos) is not int or pos < 0:
        problems.append(f"node {node_id!r:.40} has layer {raw.get('layer')!r:.20} and ctx_idx {pos!r:.20}")
        return None
    numbers = (_number(raw.get(name)) for name in ("influence", "activation", "token_prob"))
    label = raw.get("clerp")
    feature = _feature(kind, layer, node_id, raw.get("feature"))
    return ViewerNode(
        node_id, kind, layer, pos, feature, label if isinstance(label, str) else "", word, *numbers, fields=raw
    )


def _kind(word: str) -> str:
    """Our word for a `feature_type`; lorsa and unknown types are features."""
    exact = {"embedding": "token", "logit": "target", "bias": "bias"}
    return exact.get(word, "error" if "error" in word else "feature")


def _layer(x: Any) -> int | None:
    """A layer given as number or text; "E" is -1."""
    if x == "E":
        return -1
    if type(x) is int and x >= -1:
        return x
    return int(x) if isinstance(x, str) and re.fullmatch(r"\d{1,6}", x) else None


def _number(x: Any) -> float | None:
    return float(x) if (type(x) is float and math.isfinite(x)) or (type(x) is int and abs(x) < 2**53) else None


def _feature(kind: str, layer: int, node_id: str, number: Any) -> int | None:
    """Index of a feature from its id `{l}_{f}_{pos}`, else from its pair number; vocabulary id of a token or target."""
    number = number if type(number) is int and number >= 0 else None
    parts = re.fullmatch(r"(E|\d{1,6})_(\d{1,15})_\d+", node_id)
    if kind == "token":
        return int(parts[2]) if parts else None
    if kind == "target":
        return number
    if kind != "feature":
        return None
    if parts and parts[1] == str(layer):
        return int(parts[2])
    return None if number is None else _unpaired(layer, number)


def _unpaired(layer: int, number: int) -> int:
    """The feature of a pair number, where its other half is the layer; older files number features otherwise."""
    total = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - total * (total + 1) // 2
    return feature if total - feature == layer else number


def _links(
    links: list[Any], nodes: tuple[ViewerNode, ...], problems: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of source and target, and weight, of each link."""
    by_id: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        same = by_id.setdefault(node.node_id, [])
        if any(nodes[j].kind == node.kind for j in same):
            problems.append(f"two nodes ({node.kind}) have the id {node.node_id!r:.40}")
        else:
            same.append(i)
    if len(by_id) == len(nodes) and not problems:
        plain = _plain_links(links, {name: same[0] for name, same in by_id.items()})
        if plain is not None:
            return plain
    return _resolved_links(links, by_id, nodes, problems)


def _plain_links(links: list[Any], number: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The links of a file in which every id means one node; None where something is wrong with one of them."""
    try:
        source = np.array([number[link["source"]] for link in links], np.int32)
        target = np.array([number[link["target"]] for link in links], np.int32)
        weights = [link["weight"] for link in links]
        weight = np.array(weights, np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    numbers = set(map(type, weights)) <= {int, float} and np.isfinite(weight).all()
    return (source, target, weight) if numbers else None


def _resolved_links(
    links: list[Any], by_id: Mapping[str, list[int]], nodes: tuple[ViewerNode, ...], problems: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The links one by one: ids may mean two nodes, and each problem gets a sentence."""
    seen: dict[tuple[int, int], int] = {}
    out: list[tuple[int, int, float]] = []
    for i, link in enumerate(links):
        ends = _ends(link, by_id)
        weight = _number(link.get("weight")) if ends else None
        if ends is None or weight is None:
            problems.append(
                f"links[{i}] needs a source and a target among the nodes and a finite weight: {link!r:.100}"
            )
            continue
        sources, targets = ends
        target = targets[0] if len(targets) == 1 else _with_inputs(targets, nodes)
        source = sources[0] if len(sources) == 1 else _below(sources, target, nodes, seen)
        out.append((source, target, weight))
    source, target, weight = zip(*out, strict=True) if out else ((), (), ())
    return np.array(source, np.int32), np.array(target, np.int32), np.array(weight, np.float64)


def _ends(link: Any, by_id: Mapping[str, list[int]]) -> tuple[list[int], list[int]] | None:
    """Nodes that a link's two names may mean."""
    if (
        not isinstance(link, Mapping)
        or not isinstance(link.get("source"), str)
        or not isinstance(link.get("target"), str)
    ):
        return None
    source, target = by_id.get(link["source"]), by_id.get(link["target"])
    return None if source is None or target is None else (source, target)


def _with_inputs(candidates: list[int], nodes: tuple[ViewerNode, ...]) -> int:
    return next((i for i in candidates if nodes[i].kind in ("feature", "target")), candidates[0])


def _below(candidates: list[int], target: int, nodes: tuple[ViewerNode, ...], seen: dict[tuple[int, int], int]) -> int:
    """The candidate that is below the target; of several, the next one in the file each time the pair comes."""
    top = nodes[target]
    among = [i for i in candidates if top.kind == "target" or nodes[i].layer < top.layer] or candidates
    count = seen[among[0], target] = seen.get((among[0], target), -1) + 1
    return among[min(count, len(among) - 1)]


def _params(raw: Mapping[str, Any], problems: list[str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], dict]:
    """Pinned ids, supernodes, and the other parameters."""
    others = {name: value for name, value in raw.items() if name not in ("pinnedIds", "supernodes")}
    pinned = _list(raw.get("pinnedIds"), "qParams.pinnedIds", problems)
    groups = _list(raw.get("supernodes"), "qParams.supernodes", problems)
    if not all(isinstance(group, list) and group for group in groups):
        problems.append("qParams.supernodes is no list of [label, node id, ...]")
        groups = []
    return tuple(map(str, pinned)), tuple(tuple(map(str, group)) for group in groups), others


def _list(value: Any, name: str, problems: list[str]) -> list[Any]:
    """A list, or a text that holds one as JSON or as names between commas."""
    if isinstance(value, list):
        return value
    if value is None or value == "":
        return []
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value.split(",")
    try:
        parsed = json.loads(value)
        if isinstance(parsed, list):
            return parsed
    except (TypeError, ValueError, RecursionError):
        pass
    problems.append(f"{name} is neither a list nor the text of one: {value!r:.40}")
    return []
