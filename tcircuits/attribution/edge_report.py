"""One edge of an attribution graph by the heads that carry it, by name.

What `tcircuits attention --edge` prints. The loadings are those of `heads`; the edge beside them is that of the graph's
own rows, which is computed otherwise, so their balance is a check.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.attribute import freeze_prompt, origin_rule
from tcircuits.attribution.checks import check_match, check_prompt
from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.heads import HeadLoadings, error_source, feature_source, head_loadings, token_source
from tcircuits.attribution.narrowing import narrowed
from tcircuits.attribution.node_ids import Node, check_edge, check_node, parse_node, stored_edge, target_spec
from tcircuits.attribution.outputs import resolve, slot_of
from tcircuits.attribution.rows import rows
from tcircuits.attribution.select import Selection
from tcircuits.attribution.settings import Settings
from tcircuits.attribution.targets import Targets
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import Array, Float, InputError, Int

FAR = 1e-3  # of what runs along an edge: no rounding is so large, so another edge is one of other weights


def edge_report(
    model: Any,
    d: Transcoders | LazyTranscoders,
    prompt: Any,
    target: str,
    source: str,
    *,
    graph: Graph | None = None,
    top: int = 12,
) -> dict[str, Any]:
    """An edge by heads: direct + heads + paths through several heads = edge; JSON values.

    Args:
        model: from `load_model`.
        d: transcoders on it, in memory or on disk, or `neurons`.
        prompt: a text or token ids; not read where there is a graph, which has its own.
        target: id of the node that the edge ends in, a feature or a target.
        source: id of the node that it comes from, a feature, an error or a token.
        graph: where the ids are from: it tells what its targets are, and its edge must be the one found here.
        top: heads listed.

    Raises:
        InputError: see `check_prompt` and `check_match`; an id that names no node of this prompt, an edge that cannot
            be, a graph of other weights, nothing to list.
    """
    check_match(model, d)
    if top < 1:
        raise InputError(f"top={top}: list at least 1")
    ids, text = check_prompt(model, prompt if graph is None else graph.tokens)
    to, origin = (parse_node(x, model.cfg.n_layers) for x in (target, source))
    check_node(model, d, ids, to)
    check_node(model, d, ids, origin)
    check_edge(model, to, origin)
    spec = target_spec(model, to, graph)
    settings = Settings(None, position_zero="auto" if graph is None else graph.settings["position_zero"])
    loads, edge, pattern, label = _computed(model, d, ids, settings, spec, origin)
    found = _listed(loads, pattern[:, :, to.pos, origin.pos], edge, top)
    in_graph = None
    if graph is not None:
        in_graph = stored_edge(graph, to, origin)
        _check_same(graph, in_graph, found)
    return {
        "model": model.name,
        "transcoders": d.source,
        "prompt": text,
        "target": _place(model, ids, to, label),
        "source": _place(model, ids, origin, _name(model, origin)),
        **found,
        "in_graph": in_graph,
    }


def _computed(
    model: Any, d: Transcoders | LazyTranscoders, ids: np.ndarray, s: Settings, spec: specify.Spec, origin: Node
) -> tuple[HeadLoadings, float, np.ndarray, str]:
    """Loadings, the edge by its row, patterns, and the target's label."""
    constant = origin_rule(model, ids, s)
    if constant and origin.pos == 0 and origin.kind == "error":
        raise InputError(f"node {origin.id!r}: MLPs at position 0 are one constant of this graph, not nodes")
    small, some = narrowed(model, d, [ids], [constant])
    frozen = freeze_prompt(model, small, ids, s)
    (chunk, *_), (explained, *_) = resolve(model, small, frozen, [spec], s, some)
    slot = 0
    if origin.kind == "feature":
        slot = slot_of(frozen, specify.Feature(origin.layer, origin.pos, origin.number), some)[1]
    place = np.asarray([origin.layer, origin.pos, slot], np.int32)
    one = Targets(chunk.layer, *(getattr(chunk, name)[:, :1] for name in TARGET_LANES))
    loads, edge = _loadings(model.cfg, model.params, small, frozen, one, place, kind=origin.kind)
    assert frozen.hold.pattern is not None
    return jax.tree.map(host, loads), float(edge), host(frozen.hold.pattern, np.float64), explained.label


TARGET_LANES = ("pos", "vec", "const", "value", "weight", "node", "valid")


@partial(jax.jit, static_argnames=("cfg", "kind"))
def _loadings(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, target: Targets, place: Int[Array, "3"], kind: str
) -> tuple[HeadLoadings, Float[Array, ""]]:
    """Loadings of one edge, and the edge as the target's row has it; `place`: the source's layer, position, slot."""
    (L, T, C), (layer, pos, slot) = frozen.index.shape, place
    if kind == "feature":
        source, column = feature_source(cfg, params, d, frozen, (layer, pos, slot)), 0
    elif kind == "error":
        source, column = error_source(cfg, frozen, layer, pos), 1 + layer * T + pos
    else:
        source, column = token_source(cfg, params, frozen, pos), 1 + L * T + pos
    there = kind == "feature"
    flat = jnp.reshape((layer * T + pos) * C + slot if there else L * T * C, 1).astype(jnp.int32)
    chosen = Selection(flat, (there & (jnp.arange(L + 1) > layer)).astype(jnp.int32))
    row = rows(cfg, params, d, frozen, target, chosen, per_layer=1).weight[0, 0]
    at = target.layer[0], target.pos[0, 0], target.vec[0, 0]
    return head_loadings(cfg, params, d, frozen, at, source), row[column]


def _listed(loads: HeadLoadings, pattern: Float[np.ndarray, "L H"], edge: float, top: int) -> dict[str, Any]:
    """The parts of an edge, its strongest heads first, and how far they are from the edge."""
    heads = np.asarray(loads.heads, np.float64)
    order = [i for i in np.argsort(-np.abs(heads), axis=None, kind="stable")[:top] if heads.ravel()[i] != 0]
    places = [tuple(int(x) for x in np.unravel_index(i, heads.shape)) for i in order]
    direct, several = float(loads.direct), float(loads.several)
    total, mass = direct + heads.sum() + several, abs(direct) + np.abs(heads).sum() + abs(several)
    return {
        "edge": edge,
        "direct": direct,
        "heads": [
            {"layer": i, "head": h, "adds": float(heads[i, h]), "pattern": float(pattern[i, h])} for i, h in places
        ],
        "other_heads": float(heads.sum() - sum(heads[place] for place in places)),
        "several": several,
        "total": float(total),
        "mass": float(mass),
        "gap": abs(float(total) - edge) / max(float(mass), 1e-30),
    }


def _check_same(graph: Graph, in_graph: float | None, found: dict[str, Any]) -> None:
    """Raise where an edge is not the one that its graph has."""
    if in_graph is not None and abs(in_graph - found["edge"]) > FAR * found["mass"]:
        raise InputError(
            f"this edge is {found['edge']:.6g} here and {in_graph:.6g} in the graph, which was made of the model "
            f"{graph.model!r} and the transcoders {graph.transcoders!r}: give those"
        )


def _place(model: Any, ids: np.ndarray, node: Node, name: str) -> dict[str, Any]:
    return {"id": node.id, "name": name, "position": node.pos, "token": model.token(int(ids[node.pos]))}


def _name(model: Any, node: Node) -> str:
    """A source as a person reads it."""
    if node.kind == "token":
        return f"{model.token(node.number)!r} @{node.pos}"
    return f"L{node.layer} error @{node.pos}" if node.kind == "error" else f"L{node.layer} f{node.number} @{node.pos}"
