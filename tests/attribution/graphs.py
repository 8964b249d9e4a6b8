"""Graphs for the tests of their files: random numbers in true shapes, and traces of tiny models."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.prune import prune, with_influence
from tcircuits.attribution.specify import Difference, Direction, Logit

from .. import bridge
from ..reference.builders import make_case

HOSTILE = ("</script><img src=x onerror=alert(1)>", "🦆\n\t", "שלום", "\ud83d", '"quoted" (p=0.5)', "\x00")
NO_TOKEN = (
    TargetNode("a - b", "difference", None, None, 1.0, 4, 5),
    TargetNode("north", "direction", None, None, 0.5, 4, 3),
    TargetNode("L2 f1 @4", "feature", None, None, 1.0, 2, 4),
)
LOGITS = (TargetNode(" Paris", "logit", 7, 0.7, 0.7, 4, 5), TargetNode(" a", "logit", 3, 0.1, 0.1, 4, 5))


def random_graph(
    *,
    n=40,
    n_layers=4,
    tokens=(5, 1, 5, 0, 8, 2),
    targets=LOGITS,
    dtype=np.float32,
    density=0.7,
    seed=0,
    text=HOSTILE,
    **changes,
):
    """Edges go up and forward, rows sum to their values; about half of each row is unexpanded."""
    rng = np.random.default_rng(seed)
    T, L, k = len(tokens), n_layers, len(targets)
    n = min(n, L * T * 3)
    cells = np.sort(rng.choice(L * T * 3, n, replace=False))
    features = np.stack([cells // (T * 3), cells // 3 % T, cells % 3], 1).astype(np.int32)
    layer = np.concatenate([features[:, 0], np.repeat(np.arange(L), T), np.full(T, -1)])
    pos = np.concatenate([features[:, 1], np.tile(np.arange(T), L), np.arange(T)])
    ends = [(int(a), int(b)) for a, b, _ in features] + [(t.layer, t.pos) for t in targets]
    sources = [np.flatnonzero((layer < a) & (pos <= b) & (rng.random(len(layer)) < density)) for a, b in ends]
    count = [len(s) for s in sources]
    weight = rng.normal(size=sum(count)) * np.exp(rng.normal(size=sum(count)))
    R = n + k
    leaves = rng.normal(size=(R, L, T)) * 0.1
    bias, origin = rng.normal(size=R), rng.normal(size=R) * 0.1
    sums = np.bincount(np.repeat(np.arange(R), count), weight, R) + leaves.sum((1, 2)) + bias
    graph = Graph(
        model="model",
        transcoders="transcoders",
        prompt="".join(text[:T]),
        tokens=np.array(tokens, np.int32),
        token_text=(*text, *map(str, range(T)))[:T],
        n_layers=L,
        d_vocab=17,
        features=features,
        activations=rng.gamma(2.0, size=n).astype(dtype),
        targets=tuple(targets),
        row_start=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        source=np.concatenate([np.zeros(0), *sources]).astype(np.int32),
        weight=weight.astype(dtype),
        row_bias=bias.astype(dtype),
        row_origin=origin.astype(dtype),
        row_value=sums.astype(dtype),
        row_unexpanded=leaves.astype(dtype),
        row_unexpanded_abs=np.abs(leaves * 2).astype(dtype),
        row_tail=np.zeros(R),
        row_tail_abs=np.zeros(R),
        influence=np.zeros(len(layer)),
        influence_unexpanded=np.zeros((L, T)),
        n_active=n + 50,
        settings={
            "max_features": max(n, 1),
            "max_n_logits": 10,
            "desired_logit_prob": 0.95,
            "list": [1, None, 0.1, "ü"],
        },
    )
    return replace(with_influence(graph), **changes)


def no_edges():
    """Nothing but tokens and a target."""
    return random_graph(n=0, density=0.0, targets=LOGITS[:1])


@cache
def traced(family="llama", name="plt-relu", max_features=60, **changes):
    """A pruned graph of a tiny model: targets at two positions, two that are no token, features that stay leaves."""
    case = make_case(family, name, **changes)
    model, transcoders = bridge.both(case, "float32")
    north = np.eye(case.cfg.d_model)[0]
    kinds = [Logit(3), Logit(3, 2), Difference(4, 5), Direction(north, "north", 1)]
    return prune(attribute(model, transcoders, case.tokens, targets=kinds, max_features=max_features))


GRAPHS = {
    "float32": random_graph,
    "float64": lambda: random_graph(dtype=np.float64, seed=1),
    "pruned": lambda: prune(random_graph(seed=2)),
    "compact": lambda: prune(random_graph(seed=3, n=60)).compact(),
    "no token": lambda: prune(random_graph(seed=4, targets=(*LOGITS, *NO_TOKEN))),
    "one token twice": lambda: random_graph(seed=5, targets=(*LOGITS, LOGITS[0], replace(LOGITS[0], pos=2))),
    "one layer": lambda: prune(random_graph(n_layers=1, n=10, targets=(replace(LOGITS[0], layer=1),)), 0.9, 0.99),
    "one position": lambda: random_graph(tokens=(3,), targets=(replace(LOGITS[0], pos=0),)),
    "no features": lambda: random_graph(n=0),
    "no edges": no_edges,
    "no edges, pruned": lambda: prune(no_edges()),
    "traced": traced,
    "traced, one layer": lambda: traced("gpt2", max_features=None, n_layers=1),
}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "traced, one layer" else ()) for name in GRAPHS]
