"""The graph JSON that the public viewers read: `metadata`, `qParams`, `nodes`, `links` of a pruned graph.

| node | node_id | feature | layer | feature_type | jsNodeId |
|---|---|---|---|---|---|
| feature | `{l}_{f}_{pos}` | (l + f)(l + f + 1)/2 + f | `"l"` | cross layer transcoder | `{l}_{f}-{pos}` |
| error | `{l}_-1_{pos}` | -1 | `"l"` | mlp reconstruction error | `{l}_-1-{pos}` |
| token | `E_{token}_{pos}` | pos | `"E"` | embedding | `E_{token}-{pos}` |
| target | `{L+1}_{v}_{pos}` | v | `"L+1"` | logit | `L_{v}-{pos}` |

v is the token of a logit; targets that are no token (differences, directions, features) have v = d_vocab + their
number, and probability 0 where viewers need a number (`metadata.tcircuits.targets` says null). A node's `influence` is
the share of influence that it and all stronger nodes carry (`Graph.cumulative`): small is important, and the viewers'
slider cuts on it. What no other tool writes stands in `metadata.tcircuits` and in the node fields `bias`,
`unexpanded`, `top_logits`, `bottom_logits`; `graph.schema.json` beside this file describes all of it. Nothing in the
file depends on time or machine.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits._version import __version__
from tcircuits.attribution.files import whole_file
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.prune import edge_scores, prune
from tcircuits.attribution.summary import summary
from tcircuits.types import InputError

FEATURE, ERROR, TOKEN, TARGET = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
INDEX = "graph-metadata.json"

Ranked = Sequence[tuple[str, float]]  # tokens with their logits
Promoted = Mapping[int, tuple[Ranked, Ranked]]  # node number -> (top, bottom)


def graph_schema() -> dict[str, Any]:
    """The JSON schema (draft-07) of what `viewer_json` returns."""
    return json.loads((resources.files("tcircuits.attribution") / "graph.schema.json").read_text(encoding="utf-8"))


def cantor(layer: int, feature: int) -> int:
    """One number for a feature of a layer: the viewers' key for feature pages (`schema_version` 1)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def viewer_json(
    graph: Graph,
    *,
    slug: str = "graph",
    scan: str | None = None,
    max_edges: int | None = None,
    promoted: Promoted | None = None,
) -> dict[str, Any]:
    """The kept nodes and edges of a graph in the viewers' form; a graph that is not pruned is pruned with the defaults.

    Args:
        graph: from `attribute`, `prune` or `load_graph`.
        slug: the graph's name in viewers, and its file's.
        scan: the viewers' name of the model; None is `settings.scan` where the graph has one, else its model's name.
        max_edges: at most so many edges, the strongest by `edge_scores`; each kept feature, error and target keeps its
            strongest one on each side in any case, so that nothing dangles. `metadata.tcircuits.edges_shown` tells.
        promoted: what nodes (by number) promote in the vocabulary: `(top, bottom)`, each [(token, logit), ...].

    Raises:
        InputError: a slug that is no file name, a negative `max_edges`.
    """
    check_slug(slug)
    g = graph if graph.node_mask is not None and graph.edge_mask is not None else prune(graph)
    edges = shown_edges(g, max_edges)
    nodes = _nodes(g, promoted or {})
    return {
        "metadata": _metadata(g, slug, scan, max_edges, _facts(g, len(edges))),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": _links(g, edges, {i: node["node_id"] for i, node in nodes.items()}),
    }


def check_slug(slug: str) -> None:
    """Raise for a slug that cannot be a file's name everywhere."""
    bad = set('/\\:*?"<>|') & set(slug)
    if not slug or len(slug) > 200 or slug.startswith(".") or bad or not slug.isprintable() or slug + ".json" == INDEX:
        raise InputError(
            f"slug {slug!r:.60} cannot name a file: use letters, digits, '-', '_', and '.' but not in first place"
        )


def _facts(g: Graph, shown: int) -> dict[str, Any]:
    """What the file says beyond the viewers' format: `summary`, without what stands elsewhere in the metadata."""
    facts = {name: value for name, value in summary(g).items() if name not in ("prompt", "tokens")}
    facts["targets"] = [{**fact, "label": t.label} for fact, t in zip(facts["targets"], g.targets, strict=True)]
    return {**facts, "edges_shown": shown, "n_layers": g.n_layers}


def target_numbers(g: Graph) -> list[int]:
    """The number v of each target: its token; d_vocab + its place for what is no token, or stands twice."""
    out: list[int] = []
    seen: set[tuple[int, int]] = set()
    for i, t in enumerate(g.targets):
        virtual = t.token is None or (t.token, t.pos) in seen
        out.append(g.d_vocab + i if virtual else int(t.token or 0))
        seen.add((out[-1], t.pos))
    return out


def shown_edges(g: Graph, max_edges: int | None) -> np.ndarray:
    """Numbers of the kept edges that go into the file, in rising order; see `viewer_json`."""
    assert g.edge_mask is not None
    assert g.node_mask is not None
    kept = np.flatnonzero(g.edge_mask)
    if max_edges is None:
        return kept
    if max_edges < 0:
        raise InputError(f"max_edges={max_edges}: give a number of edges, or None for all that pruning kept")
    if len(kept) <= max_edges:
        return kept
    score = edge_scores(g, g.node_mask[: g.n_sources])[kept]
    strongest = np.argsort(-score, kind="stable")
    row, column = g.edge_row[kept][strongest], g.source[kept][strongest]
    needed = np.zeros(len(kept), bool)
    needed[strongest[np.unique(row, return_index=True)[1]]] = True
    columns, first = np.unique(column, return_index=True)
    needed[strongest[first[columns < g.n_features + g.n_errors]]] = True
    others = strongest[~needed[strongest]]
    needed[others[: max(max_edges - int(needed.sum()), 0)]] = True
    return kept[needed]


def _links(g: Graph, edges: np.ndarray, ids: Mapping[int, str]) -> list[dict[str, Any]]:
    names = [ids.get(i, "") for i in range(g.n_nodes)]
    row = np.searchsorted(g.row_start, edges, "right") - 1
    ends = zip(g.source[edges].tolist(), g.row_nodes[row].tolist(), short(g.weight[edges]), strict=True)
    return [{"source": names[s], "target": names[t], "weight": w} for s, t, w in ends]


def short(x: np.ndarray) -> list[float]:
    """Numbers with as few decimals as bring back the same value of their own type.

    A float32 printed as a float64 has eight digits that say nothing; in a file of many numbers that is a quarter of
    its size.
    """
    wide = x.astype(np.float64)
    if x.dtype != np.float32:
        return wide.tolist()
    with np.errstate(all="ignore"):
        places = 8 - np.floor(np.log10(np.abs(wide)))  # nine digits name every float32
        up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)  # whole numbers, so exact
        rounded = np.round(wide * up / down) / up * down
    return np.where(rounded.astype(np.float32) == x, rounded, wide).tolist()


def _nodes(g: Graph, promoted: Promoted) -> dict[int, dict[str, Any]]:
    """The kept nodes by number."""
    assert g.node_mask is not None
    assert g.cumulative is not None
    n, T, leaf, numbers = g.n_features, len(g.tokens), g.n_features + g.n_errors, target_numbers(g)
    features, tokens = g.features.tolist(), g.tokens.tolist()
    activations, bias, influence = short(g.activations), short(g.row_bias), g.cumulative.tolist()
    unexpanded = short(g.row_unexpanded.sum((1, 2), dtype=np.float64).astype(g.row_unexpanded.dtype))
    known = g.settings.get("activations") != "unknown"
    best = max(range(len(g.targets)), key=lambda i: g.targets[i].prob or 0.0, default=None)
    out: dict[int, dict[str, Any]] = {}
    for i in np.flatnonzero(g.node_mask).tolist():
        if i < n:
            layer, pos, f = features[i]
            node = _node(str(layer), f, pos, FEATURE, cantor(layer, f), activation=activations[i] if known else None)
        elif i < leaf:
            layer, pos = divmod(i - n, T)
            node = _node(str(layer), -1, pos, ERROR, -1)
        elif i < g.n_sources:
            pos = i - leaf
            node = _node("E", tokens[pos], pos, TOKEN, pos, clerp=f'Emb: "{g.token_text[pos]}"')
        else:
            node = _target_node(g, i - g.n_sources, numbers[i - g.n_sources], i - g.n_sources == best)
        node["influence"] = influence[i] if i < g.n_sources else None
        if i < n or i >= g.n_sources:  # nodes with inputs
            row = i if i < n else i - g.n_sources + n
            node |= {"bias": bias[row], "unexpanded": unexpanded[row]}
        if i in promoted:
            node["top_logits"], node["bottom_logits"] = (_ranked(x) for x in promoted[i])
        out[i] = node
    return out


def _node(
    layer: str, number: int, pos: int, kind: str, feature: int, *, clerp: str = "", activation: float | None = None
) -> dict[str, Any]:
    """One node; `number` is the middle part of its id."""
    return {
        "node_id": f"{layer}_{number}_{pos}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": pos,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{number}-{pos}",
        "clerp": clerp,
        "influence": None,
        "activation": activation,
    }


def _target_node(g: Graph, i: int, number: int, best: bool) -> dict[str, Any]:
    """A target; viewers look for `(p=...)` in its label."""
    t = g.targets[i]
    prob = 0.0 if t.prob is None else float(t.prob)
    word = "Output" if t.kind == "logit" else "Target"
    node = _node(str(g.n_layers + 1), number, t.pos, TARGET, number, clerp=f'{word} "{t.label}" (p={prob:.3f})')
    return node | {"token_prob": prob, "is_target_logit": best, "jsNodeId": f"L_{number}-{t.pos}"}


def _ranked(tokens: Iterable[Any]) -> list[list[Any]]:
    return [[str(token), float(value)] for token, value in tokens]


def _metadata(g: Graph, slug: str, scan: str | None, max_edges: int | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The file's first part; `facts` goes under our own name."""
    s = dict(g.settings)
    pruning = {name: s.pop(name) for name in ("node_threshold", "edge_threshold") if name in s}
    if max_edges is not None:
        pruning["max_edges"] = int(max_edges)
    if (selected := s.pop("max_features", None)) is not None:
        s["max_feature_nodes"] = selected
    s.pop("scores", None)
    return {
        "slug": slug,
        "scan": _scan(g) if scan is None else scan,
        "transcoder_list": [g.transcoders],
        "prompt_tokens": list(g.token_text),
        "prompt": g.prompt,
        "node_threshold": pruning.get("node_threshold", 1.0),
        "schema_version": 1,
        "info": {"generator": {"name": "tcircuits", "version": __version__}},
        "generation_settings": s,
        "pruning_settings": pruning,
        "tcircuits": facts,
    }


def _scan(g: Graph) -> str:
    """The viewers' name of model and dictionaries: that of the file which a graph is from, else the model's."""
    found = g.settings.get("scan")
    return found if isinstance(found, str) and found else g.model


def write_viewer_json(graph: Graph, path: str | Path, **options: Any) -> dict[str, Any]:
    """Write `viewer_json(graph, **options)`, and its metadata into `graph-metadata.json` in the same folder.

    A path that ends in `.json` is the file to write and names the slug; any other path is a folder, made where it is
    missing, that gets `{slug}.json`. Of `graph-metadata.json` only the entry of the same slug is replaced.

    Returns:
        What was written.

    Raises:
        InputError: as `viewer_json`; a slug that is not the file's name; a `graph-metadata.json` that is no such list;
            a file that cannot be written. Nothing is left half-written.
    """
    path = Path(path)
    if path.suffix == ".json":
        if options.setdefault("slug", path.stem) != path.stem:
            raise InputError(f"slug {options['slug']!r} is not the name of {path}; viewers look for {{slug}}.json")
        folder = path.parent
    else:
        folder = path
    slug = options.setdefault("slug", "graph")
    check_slug(slug)
    index = folder / INDEX
    graphs = [entry for entry in _read_index(index) if entry.get("slug") != slug]
    document = viewer_json(graph, **options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot make the folder {folder}: {problem.strerror or problem}") from problem
    _write_json(document, folder / f"{slug}.json")
    _write_json({"graphs": [*graphs, document["metadata"]]}, index)
    return document


def _write_json(value: Any, path: Path) -> None:
    """Compact JSON in ASCII, so that no reader can mistake the encoding."""
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as problem:
        raise InputError(f"the graph holds what JSON cannot say ({problem}); numbers must be finite") from problem
    with whole_file(path) as file:
        file.write(text.encode("ascii"))


def _read_index(path: Path) -> list[dict[str, Any]]:
    """Entries of an existing `graph-metadata.json`."""
    if not path.exists():
        return []
    try:
        graphs = json.loads(path.read_bytes())["graphs"]
        if all(isinstance(entry, dict) for entry in graphs):
            return list(graphs)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(f"{path} is no list of graphs ({{'graphs': [...]}}); move it away or choose another folder")
