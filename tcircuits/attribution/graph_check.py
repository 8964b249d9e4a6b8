"""What a `Graph` must satisfy to be saved, and a file to be loaded: shapes, number types, ranges, order.

Checks yield sentences, nothing where all is well; `raise_problems` makes one error of all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np

from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.prune import GraphScores
from tcircuits.types import InputError

KINDS = {"i": "integers", "f": "floating-point numbers", "b": "booleans"}
TARGET_KINDS = ("logit", "difference", "direction", "feature")

# Type and axes of every array; axes as in `Graph`: T tokens, L layers, n features, R rows, E edges, W columns, N nodes.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokens": ("i", ("T",)),
    "features": ("i", ("n", "3")),
    "activations": ("f", ("n",)),
    "row_start": ("i", ("R+1",)),
    "source": ("i", ("E",)),
    "weight": ("f", ("E",)),
    "row_bias": ("f", ("R",)),
    "row_origin": ("f", ("R",)),
    "row_value": ("f", ("R",)),
    "row_unexpanded": ("f", ("R", "L", "T")),
    "row_unexpanded_abs": ("f", ("R", "L", "T")),
    "row_tail": ("f", ("R",)),
    "row_tail_abs": ("f", ("R",)),
    "influence": ("f", ("W",)),
    "influence_unexpanded": ("f", ("L", "T")),
    "node_mask": ("b", ("N",)),
    "edge_mask": ("b", ("E",)),
    "cumulative": ("f", ("N",)),
}
MASKS = ("node_mask", "edge_mask", "cumulative")  # set by `prune`, all or none


def raise_problems(path: str | Path, what: str, found: Iterable[str]) -> None:
    """Raise `InputError` with all problems found, the first eight in words; nothing where there are none."""
    problems = list(found)
    if problems:
        more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise InputError(f"the graph {what} ({path}):\n  " + "\n  ".join([*problems[:8], *more]))


def array_problems(
    given: Mapping[str, tuple[tuple[int, ...], np.dtype]], n_layers: int, n_targets: int
) -> Iterator[str]:
    """Missing arrays, wrong types, wrong shapes; needs no contents, so that files are checked before they are read."""
    missing = [name for name in ARRAYS if name not in given and name not in MASKS]
    if missing:
        yield f"arrays are missing: {', '.join(missing)}"
        return
    pruned = [name for name in MASKS if name in given]
    if len(pruned) not in (0, len(MASKS)):
        yield f"of {', '.join(MASKS)} only {', '.join(pruned)} is given; pruning sets all three"
    first = {name: (given[name][0] or (0,))[0] for name in ("tokens", "features", "source")}
    T, n, E = first["tokens"], first["features"], first["source"]
    sizes = {"T": T, "L": n_layers, "n": n, "3": 3, "R": n + n_targets, "R+1": n + n_targets + 1, "E": E}
    sizes |= {"W": n + (n_layers + 1) * T, "N": n + (n_layers + 1) * T + n_targets}
    for name, (kind, axes) in ARRAYS.items():
        if name not in given:
            continue
        shape, dtype = given[name]
        wanted = tuple(sizes[axis] for axis in axes)
        if dtype.kind != kind:
            yield f"{name} has type {dtype}; it must be {KINDS[kind]}"
        if shape != wanted:
            yield f"{name} has shape {list(shape)}; it must be [{', '.join(axes)}] = {list(wanted)}"


def content_problems(g: Graph) -> Iterator[str]:
    """What is wrong with the numbers of a graph whose arrays have the right types and shapes."""
    T, L = len(g.tokens), g.n_layers
    if T < 1:
        yield "it has no tokens"
    if len(g.token_text) != T:
        yield f"token_text has {len(g.token_text)} entries for {T} tokens"
    if not g.n_features <= g.n_active:
        yield f"n_active={g.n_active} is below the {g.n_features} selected features"
    yield from _outside("tokens", g.tokens, g.d_vocab)
    for column, (name, end) in enumerate((("layer", L), ("position", T), ("index", 2**31))):
        yield from _outside(f"the {name} of a feature", g.features[:, column], end)
    if g.n_features and not _rising(g.features):
        yield "features are not in rising order of layer, position, index, or one stands twice"
    for i, target in enumerate(g.targets):
        yield from _target_problems(i, target, g)
    for name, (kind, _) in ARRAYS.items():
        x = getattr(g, name)
        if kind == "f" and x is not None and not np.isfinite(x).all():
            yield f"{name} holds numbers that are not finite"
    if "scores" in g.settings and not _is_scores(g.settings["scores"]):
        yield f"settings.scores is {g.settings['scores']!r:.60}; it must have the numbers of GraphScores"
    yield from _edge_problems(g)


def _is_scores(x: object) -> bool:
    names = {f.name for f in fields(GraphScores)}
    return isinstance(x, dict) and x.keys() == names and all(type(v) in (int, float) for v in x.values())


def _outside(name: str, x: np.ndarray, end: int) -> Iterator[str]:
    if len(x) and (int(x.min()) < 0 or int(x.max()) >= end):
        yield f"{name} is in {int(x.min())}..{int(x.max())}; it must be in 0..{end - 1}"


def _rising(features: np.ndarray) -> bool:
    """Rows strictly rise, the first column counting most."""
    step = np.diff(features.astype(np.int64), axis=0)
    layer, pos, index = step.T
    return bool(((layer > 0) | ((layer == 0) & ((pos > 0) | ((pos == 0) & (index > 0))))).all())


def _target_problems(i: int, t: TargetNode, g: Graph) -> Iterator[str]:
    if t.kind not in TARGET_KINDS:
        yield f"target {i} is of kind {t.kind!r}; there are {', '.join(TARGET_KINDS)}"
    if (t.kind == "logit") != (t.token is not None):
        yield f"target {i} ({t.kind}) has token {t.token}; logits have a token, and only they"
    if t.token is not None and not 0 <= t.token < g.d_vocab:
        yield f"target {i} has token {t.token}; it must be in 0..{g.d_vocab - 1}"
    if t.prob is not None and not 0 <= t.prob <= 1:
        yield f"target {i} has probability {t.prob}; it must be in 0..1"
    if not 0 <= t.weight < np.inf:
        yield f"target {i} has weight {t.weight}; it must be finite and not negative"
    if not (0 <= t.layer <= g.n_layers and 0 <= t.pos < len(g.tokens)):
        yield f"target {i} is read at layer {t.layer}, position {t.pos}, outside the graph"


def _edge_problems(g: Graph) -> Iterator[str]:
    start, E = g.row_start, len(g.source)
    if start[0] != 0 or start[-1] != E or (np.diff(start) < 0).any():
        yield f"row_start must rise from 0 to the number of edges ({E}) and never fall"
        return
    if E and (int(g.source.min()) < 0 or int(g.source.max()) >= g.n_sources):
        yield f"source is in {int(g.source.min())}..{int(g.source.max())}; it must be in 0..{g.n_sources - 1}"
        return
    rows = _rows_that_read_above(g)
    if rows:
        yield f"rows {rows} have sources that are not below them: edges must go up through the layers"
    if g.node_mask is not None and g.edge_mask is not None:
        kept = g.node_mask[g.source[g.edge_mask]].all() and g.node_mask[g.row_nodes[g.edge_row[g.edge_mask]]].all()
        if not kept:
            yield "edge_mask keeps edges of nodes that node_mask drops"


def _rows_that_read_above(g: Graph) -> list[int]:
    """Up to three rows with a source at their own layer or above; layer by layer, so that little memory is used."""
    n, T, L, found = g.n_features, len(g.tokens), g.n_layers, []
    first = np.searchsorted(g.features[:, 0], np.arange(L + 2))  # feature that a layer begins with; L: past the last
    blocks = [(int(first[layer]), int(first[layer + 1]), layer) for layer in range(L)]
    blocks += [(n + i, n + i + 1, t.layer) for i, t in enumerate(g.targets)]
    for lo, hi, layer in blocks:
        s = g.source[g.row_start[lo] : g.row_start[hi]]
        features = (s >= first[layer]) & (s < n)
        errors = (s >= n + layer * T) & (s < n + L * T)
        wrong = np.flatnonzero(features | errors)
        if len(wrong):
            found.append(int(np.searchsorted(g.row_start, g.row_start[lo] + wrong[0], "right")) - 1)
    return found[:3]
