"""What a graph says, in numbers a person or a script reads: tokens, strongest paths, scores."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tcircuits.attribution.graph import Graph
from tcircuits.attribution.prune import TINY, row_totals, scores


@dataclass(frozen=True)
class Path:
    """A chain of nodes from a token to a target; `share` is the product of each one's share in the next one's input."""

    nodes: tuple[int, ...]
    share: float
    sign: int


def node_label(g: Graph, node: int, show: Callable[[str], str] = repr) -> str:
    """A short name: `L24 f1005 @4`, `error L3 @2`, a token as `show` gives it with `@3`, or a target's label."""
    n, E, T = g.n_features, g.n_errors, len(g.tokens)
    if node < n:
        layer, pos, feature = g.features[node]
        return f"L{layer} f{feature} @{pos}"
    if node < n + E:
        return f"error L{(node - n) // T} @{(node - n) % T}"
    if node < g.n_sources:
        return f"{show(g.token_text[node - n - E])} @{node - n - E}"
    return show(g.targets[node - g.n_sources].label)


def heaviest(g: Graph) -> int:
    """The target with the largest weight."""
    return int(np.argmax(g.target_weights))


def strongest_inputs(g: Graph, count: int = 8) -> list[tuple[int, float]]:
    """(node, signed edge) of the largest direct contributions to the heaviest target."""
    row = g.n_features + heaviest(g)
    edges = slice(g.row_start[row], g.row_start[row + 1])
    order = np.argsort(-np.abs(g.weight[edges]), kind="stable")[:count]
    return [(int(g.source[edges][i]), float(g.weight[edges][i])) for i in order]


def strongest_paths(g: Graph, count: int = 5) -> list[Path]:
    """The best token-to-target path through each of the strongest last steps into the heaviest target."""
    n, start = g.n_features, g.n_features + g.n_errors
    kept = np.arange(len(g.weight)) if g.edge_mask is None else np.flatnonzero(g.edge_mask)
    row_of = np.searchsorted(g.row_start, kept, "right") - 1
    source, share = g.source[kept], np.abs(g.weight[kept]) / np.maximum(row_totals(g), TINY)[row_of]
    best, via = np.zeros(g.n_sources), np.full(g.n_sources, -1)
    best[start:] = 1.0
    bounds = np.searchsorted(g.features[:, 0], np.arange(g.n_layers + 1))
    for lo, hi in pairwise(bounds):  # one layer: its sources are all below it
        edges = np.arange(*np.searchsorted(row_of, [lo, hi]))
        value, row = share[edges] * best[source[edges]], row_of[edges]
        order = np.lexsort((value, row))
        last = np.flatnonzero(np.diff(np.append(row[order], -1)))
        winner = order[last]
        best[row[winner]], via[row[winner]] = value[winner], kept[edges[winner]]
    row = n + heaviest(g)
    edges = np.arange(*np.searchsorted(row_of, [row, row + 1]))
    value = share[edges] * best[source[edges]]
    chosen = np.argsort(-value, kind="stable")[:count]
    return [_walk(g, row, int(kept[edges[i]]), via, float(value[i])) for i in chosen if value[i] > 0]


def _walk(g: Graph, row: int, edge: int, via: np.ndarray, share: float) -> Path:
    nodes, sign = [g.n_sources + row - g.n_features], 1
    while edge >= 0:
        sign *= 1 if g.weight[edge] >= 0 else -1
        nodes.append(int(g.source[edge]))
        edge = int(via[nodes[-1]])
    return Path(tuple(reversed(nodes)), share, sign)


def token_shares(g: Graph) -> np.ndarray:
    """[T] share of all influence on leaves that each token has."""
    n, E = g.n_features, g.n_errors
    leaves = g.influence[n + E :]
    total = g.influence[n:].sum() + g.influence_unexpanded.sum()
    return leaves / max(total, TINY)


def summary(g: Graph) -> dict[str, Any]:
    """The numbers of a pruned graph, as plain values: what `tcircuits trace --json` prints, without the times."""
    found, rest = asdict(scores(g)), g.settings.get("bias") == "rest"
    kept_nodes = g.n_nodes if g.node_mask is None else int(g.node_mask.sum())
    kept_edges = len(g.weight) if g.edge_mask is None else int(g.edge_mask.sum())
    return {
        "model": g.model,
        "transcoders": g.transcoders,
        "prompt": g.prompt,
        "tokens": [{"id": int(i), "text": t} for i, t in zip(g.tokens, g.token_text, strict=True)],
        "targets": [{"token": t.label, "id": t.token, "prob": t.prob, "kind": t.kind} for t in g.targets],
        "n_features": g.n_active,
        "n_selected": g.n_features,
        "n_nodes": kept_nodes,
        "n_edges": kept_edges,
        "replacement_score": found["replacement"],
        "completeness_score": found["completeness"],
        "completeness_score_inputs": found["completeness_inputs"],
        "unexpanded_share": found["unexpanded_share"],
        "error_share": found["error_share"],
        "bias_share": found["bias_share"],
        "origin_share": found["origin_share"],
        # Rows of another tool's file carry no constants: what is missing stands as bias, so there is no gap to tell.
        "bias": "rest" if rest else "computed",
        "max_row_gap": None if rest else g.max_row_gap,
        "token_shares": [float(x) for x in token_shares(g)],
    }
