"""Graphs that circuit-tracer saved, as `Graph`.

Features are sorted, the dense matrix becomes rows of edges without zeros, no node is lost. Some of what a `Graph` says
is not in such a file, and is not made up:

- Constants (biases, and all that comes from position 0) are no edges there. A feature's `row_bias` is a rest: its
  activation less its edges. Where not all active features are nodes, it also holds the edges from the others. What a
  target's row sums to is not there: `row_value` is the sum of its edges, `row_bias` 0. So rows balance by construction.
- Features that are not nodes are counted (`n_active`); what they would add is not known, `row_unexpanded` is 0.
- Texts of tokens: `#id`, but for tokens that are targets too, and where a model is given that names them.

`settings` says so: `bias` is "rest", `unexpanded` "unknown" where features were left out, `activations` "unknown" where
the file has none (they are 0 then, and null in the viewers' JSON).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.attribution.ct_file import FAILED, Saved, read_saved, wide
from tcircuits.attribution.graph import Graph, TargetNode, segment_sums
from tcircuits.attribution.graph_check import content_problems, raise_problems
from tcircuits.attribution.prune import with_influence

BLOCK = 1 << 22  # entries of the matrix that are compressed at a time
Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_ct_graph(path: str | Path, model: Any = None) -> Graph:
    """The graph in a file that circuit-tracer's `Graph.to_pt` wrote, with its influence, not pruned.

    Memory: the matrix once, so as much as the file is long, and the graph.

    Args:
        path: the file.
        model: the model of the graph; its tokenizer names the tokens, nothing else of it is used.

    Raises:
        InputError: no such file, damaged, foreign or hostile, contents that do not fit together, or a model of other
            sizes (all problems in one message).
    """
    saved = read_saved(path)
    dead = [*_dead_problems(saved), *_model_problems(saved, model)]
    graph = _graph(saved, _namer(saved, model) if not dead else "#{}".format)
    raise_problems(path, FAILED, [*dead, *content_problems(graph)])
    return with_influence(graph)


def _dead_problems(s: Saved) -> Iterator[str]:
    """Edges where none can be."""
    n, end = len(s.selected), len(s.matrix) - len(s.targets)
    if s.matrix[n:end].any():
        yield "adjacency_matrix has edges into errors or tokens, which have no inputs"
    if s.matrix[:, end:].any():
        yield "adjacency_matrix has edges out of targets"


def _model_problems(s: Saved, model: Any) -> Iterator[str]:
    """Whether a model that is to name tokens can be the graph's."""
    if model is None:
        return
    layers, size = model.cfg.n_layers, model.cfg.d_vocab
    largest = max([int(s.tokens.max(initial=0)), *(number for _, number in s.targets if number < s.d_vocab)])
    if layers != s.n_layers or size <= largest:
        yield (
            f"it is of a model with {s.n_layers} layers and tokens up to {largest}; "
            f"{model.name!r:.60} has {layers} layers and {size} tokens"
        )


def _namer(s: Saved, model: Any) -> Callable[[int], str]:
    """What to call a token."""
    if model is not None:
        return model.token
    known = {number: text for text, number in s.targets if text}
    return lambda number: known.get(number, f"#{number}")


def _graph(s: Saved, name: Callable[[int], str]) -> Graph:
    """The graph without its influence, its contents not yet checked."""
    order = np.lexsort(s.active[s.selected].T[::-1])
    chosen = s.selected[order]
    n, k, T, L = len(order), len(s.targets), len(s.tokens), s.n_layers
    start, source, weight = _edges(s.matrix, order, k)
    sums = segment_sums(weight, start)
    value = sums.copy()
    if s.activations is not None:
        value[:n] = s.activations[chosen]
    with np.errstate(over="ignore"):  # what overflows float32 is reported with everything else
        value, bias = value.astype(weight.dtype), (value - sums).astype(weight.dtype)
    activations = np.zeros(n, weight.dtype) if s.activations is None else s.activations[chosen]
    leaves = np.zeros((n + k, L, T), np.float32)
    return Graph(
        model=s.model,
        transcoders="unknown" if s.scan is None else s.scan if isinstance(s.scan, str) else ", ".join(s.scan),
        prompt=s.prompt,
        tokens=s.tokens,
        token_text=tuple(name(int(i)) for i in s.tokens),
        n_layers=L,
        d_vocab=s.d_vocab,
        features=s.active[chosen],
        activations=activations,
        targets=tuple(_target(s, i, name) for i in range(k)),
        row_start=start,
        source=source,
        weight=weight,
        row_bias=bias,
        row_origin=np.zeros(n + k, weight.dtype),
        row_value=value,
        row_unexpanded=leaves,
        row_unexpanded_abs=leaves,
        row_tail=np.zeros(n + k),
        row_tail_abs=np.zeros(n + k),
        influence=np.zeros(n + L * T + T),
        influence_unexpanded=np.zeros((L, T)),
        n_active=len(s.active),
        settings=_settings(s),
    )


def _target(s: Saved, i: int, name: Callable[[int], str]) -> TargetNode:
    """A logit, or a direction, which circuit-tracer numbers from the end of the vocabulary on."""
    (text, number), share = s.targets[i], float(s.probabilities[i])
    place = {"layer": s.n_layers, "pos": len(s.tokens) - 1}
    if number >= s.d_vocab:
        return TargetNode(text or f"target {i}", "direction", None, None, share, **place)
    return TargetNode(text or name(number), "logit", number, share, share, **place)


def _settings(s: Saved) -> dict[str, Any]:
    """How the graph was made, as far as the file says it, and what it does not have."""
    n, some = len(s.selected), len(s.selected) < len(s.active)
    found = {
        "source": "circuit-tracer",
        "model_name": s.model,
        "tokenizer_name": s.tokenizer,
        "scan": s.scan,
        "max_features": n if some and n else None,
        "bias": "rest",
        "unexpanded": "unknown" if some else "none",
        "position_zero": "constant",
    }
    return found if s.activations is not None else {**found, "activations": "unknown"}


def _edges(matrix: np.ndarray, order: np.ndarray, k: int) -> Edges:
    """`row_start`, `source` and `weight` of the rows of features, in this order, and of the k targets."""
    n, end = len(order), len(matrix) - k
    rows, columns = np.concatenate([order, np.arange(end, end + k)]), np.concatenate([order, np.arange(n, end)])
    step, counts, source, weight = max(1, BLOCK // len(matrix)), [], [], []
    for i in range(0, len(rows), step):
        block = wide(matrix[rows[i : i + step]][:, columns])
        row, column = np.nonzero(block)
        counts.append(np.bincount(row, minlength=len(block)))
        source.append(column.astype(np.int32))
        weight.append(block[row, column])
    start = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
    return start, np.concatenate(source), np.concatenate(weight)
