"""Nodes by the ids that pages and graph files give them (`node_id`, see `viewer_json`), and what targets stand for."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.checks import check_feature
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.viewer_json import target_numbers
from tcircuits.types import InputError


@dataclass(frozen=True)
class Node:
    """A node by its id: `kind` is feature, error, token or target; `layer` is -1 for tokens, L for targets."""

    id: str
    kind: str
    layer: int
    number: int
    pos: int


def parse_node(text: str, n_layers: int) -> Node:
    """A node from its id; the other form that files have (`jsNodeId`, `-` before the position) is read too.

    Raises:
        InputError: another form, or a layer that the model does not have.
    """
    found = re.fullmatch(r"(E|L|\d{1,6})_(-1|\d{1,15})[_-](\d{1,15})", text)
    if found is None:
        raise InputError(
            f"node {text!r:.60}: give an id of the graph, such as 2_417_9 (layer, feature, position), 2_-1_9 (error), "
            f"E_37_4 (token) or {n_layers + 1}_37_9 (logit of token 37)"
        )
    where, number, pos = found[1], int(found[2]), int(found[3])
    target = where == "L" or (where != "E" and int(where) == n_layers + 1)
    if number == -1 and (target or where == "E"):
        raise InputError(f"node {text!r}: only the error of a layer has -1 in the middle")
    if target or where == "E":
        return Node(text, "target" if target else "token", n_layers if target else -1, number, pos)
    if int(where) >= n_layers:
        raise InputError(f"node {text!r}: the model has layers 0..{n_layers - 1}; targets have {n_layers + 1}")
    return Node(text, "error" if number == -1 else "feature", int(where), number, pos)


def check_node(model: Any, d: Any, tokens: np.ndarray, node: Node) -> None:
    """Raise for a node that no graph of this prompt can have; which features are active only a run can say."""
    if node.pos >= len(tokens):
        raise InputError(f"node {node.id!r}: the prompt has positions 0..{len(tokens) - 1}")
    if node.kind == "feature":
        check_feature(model.cfg, d.cfg, node.layer, node.number)
    if node.kind == "token" and node.number != tokens[node.pos]:
        raise InputError(f"node {node.id!r}: the token at position {node.pos} of this prompt is {tokens[node.pos]}")


def check_edge(model: Any, target: Node, source: Node) -> None:
    """Raise for two nodes between which there can be no edge."""
    if target.kind not in ("feature", "target"):
        raise InputError(f"node {target.id!r} has no inputs: an edge ends in a feature or a target")
    if source.kind == "target":
        raise InputError(f"node {source.id!r} is a target: an edge comes from a feature, an error or a token")
    if source.layer >= target.layer:
        raise InputError(f"no edge runs from {source.id!r} to {target.id!r}: its layer is not below the target's")
    if model.cfg.causal and source.pos > target.pos:
        raise InputError(f"no edge runs from {source.id!r} to {target.id!r}: its position comes after the target's")


def target_spec(model: Any, node: Node, graph: Graph | None) -> specify.Spec:
    """What the target of an edge is, as `attribute` takes it; a graph says what targets are that are no token.

    Raises:
        InputError: a target that the graph does not have, or that its file does not describe; without a graph one that
            is no token.
    """
    if node.kind == "feature":
        return specify.Feature(node.layer, node.pos, node.number)
    if graph is None:
        if node.number >= model.cfg.d_vocab:
            raise InputError(
                f"node {node.id!r}: the vocabulary has tokens 0..{model.cfg.d_vocab - 1}; only the file of a graph "
                "tells what a target is that is no token: give it"
            )
        return specify.Logit(node.number, node.pos)
    return _explained(model, node, graph.targets[target_place(graph, node)])


def target_place(graph: Graph, node: Node) -> int:
    """Which of a graph's targets a node is.

    Raises:
        InputError: none of them.
    """
    ids = [(number, t.pos) for number, t in zip(target_numbers(graph), graph.targets, strict=True)]
    if (node.number, node.pos) not in ids:
        there = ", ".join(f"{graph.n_layers + 1}_{number}_{pos}" for number, pos in ids)
        raise InputError(f"node {node.id!r} is no target of this graph; it has {there}")
    return ids.index((node.number, node.pos))


def _explained(model: Any, node: Node, target: TargetNode) -> specify.Spec:
    """A target from what its graph keeps of it: a token, a feature's name, the two tokens of a difference."""
    if target.kind == "logit" and target.token is not None:
        return specify.Logit(target.token, target.pos)
    feature = re.fullmatch(r"L(\d+) f(\d+) @\d+", target.label)
    if target.kind == "feature" and feature is not None:
        return specify.Feature(int(feature[1]), target.pos, int(feature[2]))
    if target.kind == "difference":
        tokens: dict[str, list[int]] = {}
        for i in range(model.cfg.d_vocab):
            tokens.setdefault(model.token(i), []).append(i)
        cuts = [m.start() for m in re.finditer("(?= - )", target.label)]
        halves = [(target.label[:i], target.label[i + 3 :]) for i in cuts]
        pairs = [(a, b) for plus, minus in halves for a in tokens.get(plus, []) for b in tokens.get(minus, [])]
        if len(pairs) == 1:
            return specify.Difference(*pairs[0], target.pos)
    raise InputError(
        f"target {node.id!r} ({target.label!r:.60}) is a {target.kind} that its file does not describe: choose an edge "
        "into a feature or a logit"
    )


def stored_edge(graph: Graph, target: Node, source: Node) -> float | None:
    """The weight of an edge in a graph; None where it is not stored (not selected, or left out by pruning)."""
    L, T = graph.n_layers, len(graph.tokens)

    def feature(node: Node) -> int | None:
        place = np.flatnonzero((graph.features == (node.layer, node.pos, node.number)).all(1))
        return int(place[0]) if len(place) else None

    row = feature(target) if target.kind == "feature" else graph.n_features + target_place(graph, target)
    column = feature(source) if source.kind == "feature" else graph.n_features + source.layer * T + source.pos
    if source.kind == "token":
        column = graph.n_features + L * T + source.pos
    if row is None or column is None:
        return None
    edges = slice(graph.row_start[row], graph.row_start[row + 1])
    here = np.flatnonzero(graph.source[edges] == column)
    return float(graph.weight[edges][here[0]]) if len(here) else None
