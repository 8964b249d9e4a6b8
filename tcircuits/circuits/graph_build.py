"""Build the graph of a behaviour: attribution graphs of its prompts in batches, added up edge by edge.

The output node is what the metric reads: the gradient of the metric by the logits, through the unembedding, so that an
edge into it is the node's direct effect on the metric to first order.
"""

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.batch import attribute_batch
from tcircuits.attribution.corpus import slots_for
from tcircuits.attribution.graph import Graph, segment_sums
from tcircuits.attribution.specify import Direction
from tcircuits.circuits.behaviour_graph import NODE_KINDS, BehaviourGraph, check_graph
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.head_edges import head_edges
from tcircuits.circuits.running import Ablation, check, metric
from tcircuits.circuits.scores import Method, unit_scores
from tcircuits.circuits.units import Units
from tcircuits.models.forward import forward, unembed_matrix
from tcircuits.models.model import Model
from tcircuits.numerics import wide
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour, Prompts, told
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError, Int

TOKEN, ERROR, FEATURE, HEAD, OUTPUT = range(len(NODE_KINDS))


def build_graph(
    model: Model,
    behaviour: Behaviour,
    units: Units,
    *,
    dictionary: Transcoders,
    method: Method = "ig",
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    prompts: int | None = None,
    lengths: int | None = None,
    max_features: int = 512,
    batch: int = 16,
) -> BehaviourGraph:
    """The graph of a behaviour over the prompts of a split.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        units: what circuits are made of: features, and heads if they are to be nodes. With positions nodes are apart by
            position, counted so that the last position of every prompt is one.
        dictionary: whose features they are.
        method: of the nodes' importance (`unit_scores`).
        ablation: of the importance.
        errors: likewise.
        split: of the behaviour.
        prompts: at most so many (None: all).
        lengths: prompts of at most so many different lengths, the most frequent (None: all); each is compiled anew.
        max_features: of each prompt's graph; what others add is lost (`BehaviourGraph.lost`).
        batch: prompts attributed together.

    Raises:
        InputError: units without features, no prompts, what `run_circuits` and `attribute_batch` refuse.
    """
    check(model, behaviour, units, dictionary, ablation, errors, split)
    if behaviour[split].back is not None:
        raise InputError("answers before the last position: a behaviour's graph is of what is said at the last one")
    if "feature" not in units.kinds:
        raise InputError(f"units are {', '.join(units.kinds)}: a behaviour's graph has features among its nodes")
    if min(x for x in (batch, prompts, lengths) if x is not None) < 1:
        raise InputError(f"prompts={prompts}, lengths={lengths}, batch={batch}: give at least 1 of each")
    chosen, sums = _chosen(behaviour[split], prompts, lengths), Sums(model, units)
    for at in range(0, len(chosen), batch):
        _add(sums, behaviour, behaviour[split], chosen[at : at + batch], dictionary, max_features)
    scored = unit_scores(
        model, behaviour, units, method=method, dictionary=dictionary, ablation=ablation, errors=errors, split=split
    )
    about = {"behaviour": told(behaviour), "split": split, "prompts": len(chosen), "max_features": max_features}
    about |= {"method": method, "ablation": ablation, "errors": errors, "units": asdict(units)}
    found = sums.graph(scored.values, about)
    check_graph(found)
    return found


def _add(sums: "Sums", behaviour: Behaviour, p: Prompts, rows: list[int], d: Transcoders, max_features: int) -> None:
    """Attribute some prompts together and add their edges."""
    model, ids = sums.model, [p.clean[i][p.padding[i] :] for i in rows]
    directions = [host(a) for a in _directions(model, behaviour, p, rows)]
    targets = [[Direction(a, "metric")] for a in directions]
    graphs = attribute_batch(model, d, ids, targets=targets, max_features=max_features)
    for graph, direction, row in zip(graphs, directions, ids, strict=True):
        slots = slots_for(model, d, np.asarray(row)[None])
        sums.add(graph, head_edges(model, d, graph, direction, slots) if "head" in sums.units.kinds else None)


def _chosen(p: Prompts, prompts: int | None, lengths: int | None) -> list[int]:
    """Which prompts: of the most frequent lengths, those of one length side by side."""
    size = p.clean.shape[1] - p.padding
    common = [n for n, _ in Counter(size.tolist()).most_common(lengths)]
    rows = [i for i in range(p.n) if size[i] in common][:prompts]
    return sorted(rows, key=lambda i: int(size[i]))


def _directions(model: Model, behaviour: Behaviour, p: Prompts, rows: list[int]) -> list[Array]:
    """The gradient of the metric by the final norm's output, of each prompt [D]."""

    def one(i: int) -> Array:
        ids = jnp.asarray(p.clean[i][p.padding[i] :])
        return _direction(model.cfg, behaviour.metric, model.params, ids, p.right[i], p.wrong[i])

    return [one(i) for i in rows]


@partial(jax.jit, static_argnames=("cfg", "name"))
def _direction(cfg: Any, name: Any, params: Any, ids: Array, right: Array, wrong: Array) -> Float[Array, " D"]:
    with jax.default_matmul_precision("highest"):
        logits = wide(forward(cfg, params, ids[None]).logits)[0, -1]
        slope = jax.grad(lambda x: metric(name, x, right, wrong))(logits)
        if cfg.final_softcap is not None:
            slope = slope * (1 - (logits / cfg.final_softcap) ** 2)
        return wide(unembed_matrix(params)) @ slope


class Sums:
    """Edges so far, by (source key, target key): what they sum to over prompts."""

    def __init__(self, model: Model, units: Units) -> None:
        self.model, self.units = model, units
        self.n, self.pairs, self.values = 0, np.zeros((2, 0), np.int64), np.zeros((3, 0))
        self.lost_at, self.lost = np.zeros((1, 0), np.int64), np.zeros((1, 0))
        cfg = model.cfg
        longest = max(cfg.n_ctx, units.positions or 0)
        self.sizes = (len(NODE_KINDS), cfg.n_layers + 1, max(units.d_feature, cfg.d_vocab, cfg.n_heads), longest + 1)

    def keys(self, kind: Any, layer: Any, index: Any, position: Any) -> Int[np.ndarray, " n"]:
        """Nodes as numbers; positions are left out where they are pooled."""
        at = np.asarray(position) + 1 if self.units.positions is not None else 0
        where = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (kind, layer, index, at)))
        return np.atleast_1d(np.ravel_multi_index(tuple(where), self.sizes))

    def add(self, graph: Graph, heads: Float[np.ndarray, "N L H"] | None) -> None:
        """Add one prompt's edges."""
        L, T, f = graph.n_layers, len(graph.tokens), graph.features
        place = (self.units.positions or T) - T + np.arange(T)  # of each position, the last one's being the same
        feature = self.keys(FEATURE, f[:, 0], f[:, 2], place[f[:, 1]])
        error = self.keys(ERROR, np.repeat(np.arange(L), T), 0, np.tile(place, L))
        columns = np.concatenate([feature, error, self.keys(TOKEN, 0, graph.tokens, place)])
        rows = np.concatenate([feature, self.keys(OUTPUT, L, 0, place[-1])])
        pairs, weight = np.stack([columns[graph.source], rows[graph.edge_row]]), graph.weight.astype(float)
        if heads is not None:
            row, layer, head = np.nonzero(heads)
            # one node a head: what it adds at different positions is summed unless positions are apart
            at = place[np.append(f[:, 1], T - 1)[row]]
            pairs = np.concatenate([pairs, np.stack([self.keys(HEAD, layer, head, at), rows[row]])], 1)
            weight = np.append(weight, heads[row, layer, head])
        pairs, (weight,) = summed(pairs, weight[None])
        new = np.stack([np.abs(weight), weight, np.ones_like(weight)])
        self.pairs, self.values = summed(np.concatenate([self.pairs, pairs], 1), np.concatenate([self.values, new], 1))
        lost = graph.row_unexpanded_abs.sum((1, 2), dtype=float) + graph.row_tail_abs
        self.lost_at, self.lost = summed(
            np.concatenate([self.lost_at, rows[None]], 1), np.concatenate([self.lost, lost[None]], 1)
        )
        self.n += 1

    def graph(self, scores: Float[np.ndarray, " U"], about: dict[str, Any]) -> BehaviourGraph:
        """The mean over prompts; units with a score are nodes even without edges."""
        numbers = np.flatnonzero(scores)
        places = [self.units.where(int(u)) for u in numbers]
        kind = np.array([FEATURE if p[0] == "feature" else HEAD for p in places], np.int64)
        place = np.array([[p[1], p[2], 0 if p[3] is None else p[3]] for p in places], np.int64).reshape(-1, 3)
        known = self.keys(kind, *place.T) if len(numbers) else np.zeros(0, np.int64)
        keys = np.unique(np.concatenate([self.pairs.ravel(), known]))
        nodes = np.stack(np.unravel_index(keys, self.sizes), 1)
        nodes[:, 3] -= 1
        unit = self._units(nodes)
        lost = np.zeros(len(keys))
        here = np.isin(self.lost_at[0], keys)
        lost[np.searchsorted(keys, self.lost_at[0, here])] = self.lost[0, here] / self.n
        importance = np.where(unit >= 0, scores[np.maximum(unit, 0)], 0.0)
        source, target = np.searchsorted(keys, self.pairs)
        start = (nodes[:, 0] == OUTPUT).astype(float)
        start /= max(start.sum(), 1.0)
        weight, signed, share = self.values / self.n
        edges = (source, target, weight, signed, share)
        return BehaviourGraph(nodes, *edges, lost, start, unit, importance, self.units, self.model.name, about)

    def _units(self, nodes: Int[np.ndarray, "n 4"]) -> Int[np.ndarray, " n"]:
        """The number of each node among the units, or -1."""
        unit, kind = np.full(len(nodes), -1, np.int64), nodes[:, 0]
        for number, name in ((FEATURE, "feature"), (HEAD, "head")):
            if name not in self.units.kinds:
                continue
            slot = np.full(self.model.cfg.n_layers, -1, np.int64)
            layers = self.units.layers if name == "feature" else tuple(range(self.model.cfg.n_layers))
            slot[list(layers)] = np.arange(len(layers))
            here = (kind == number) & (slot[np.minimum(nodes[:, 1], len(slot) - 1)] >= 0)
            at = (slot[nodes[here, 1]], nodes[here, 2], np.maximum(nodes[here, 3], 0))
            unit[here] = self.units.starts[name] + np.ravel_multi_index(at, self.units.shapes[name])
        return unit


def summed(
    keys: Int[np.ndarray, "K E"], values: Float[np.ndarray, "M E"]
) -> tuple[Int[np.ndarray, "K e"], Float[np.ndarray, "M e"]]:
    """Columns of equal keys as one, their values added; in the order of the keys."""
    order = np.lexsort(keys[::-1])
    keys, values = keys[:, order], values[:, order]
    if not keys.shape[1]:
        return keys, values
    first = np.flatnonzero(np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(0)])
    starts = np.r_[first, keys.shape[1]]
    return keys[:, first], np.stack([segment_sums(row, starts) for row in values])
