"""The graph of a behaviour against sums over dense matrices of single graphs; heads against what they write."""

from collections import defaultdict
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.circuits.behaviour_graph import (
    NODE_KINDS,
    BehaviourGraph,
    capped,
    check_graph,
    influences,
    load_behaviour_graph,
    most_edges,
    most_influential,
    save_behaviour_graph,
)
from tcircuits.circuits.graph_build import build_graph, summed
from tcircuits.circuits.scores import unit_scores
from tcircuits.circuits.units import Units, units_of
from tcircuits.models.forward import forward
from tcircuits.types import InputError

from .cases import random_behaviour
from .test_running import dictionary_of, sized

pytestmark = pytest.mark.usefixtures("quick_compile")
LENGTHS = {"attribution": (6, 6, 4), "selection": (5, 6), "report": (4, 6)}


def direction_of(model, p, i):
    """What the logit difference reads at the final norm's output: mean right minus mean wrong unembedding."""
    unembed = np.asarray(model.params.embed.T if model.cfg.tied else model.params.unembed, np.float64)
    right, wrong = p.right[i][p.right[i] >= 0], p.wrong[i][p.wrong[i] >= 0]
    return unembed[:, right].mean(1) - unembed[:, wrong].mean(1)


def written_by_heads(model, d, tokens, graph, direction):
    """<u, what head h of layer m writes at the target>, [rows, L, H]; gpt2, a dictionary that reads resid_mid."""
    cfg, p = model.cfg, model.params
    out = forward(cfg, p, jnp.asarray(tokens[None]), sites=("z", "resid_post"))
    z = np.asarray(out.acts["z"][:, 0], np.float64)  # [L, T, H, K]
    written = np.einsum("lthk,lhkd->lthd", z, np.asarray(p.blocks.attn.w_o, np.float64))
    last = np.asarray(out.acts["resid_post"][-1, 0, -1], np.float64)
    scale = np.sqrt(last.var() + cfg.norm_eps)
    u = direction * np.asarray(p.final_norm.w, np.float64)
    rows = [np.einsum("lhd,d->lh", written[:, -1], (u - u.mean()) / scale)]
    for layer, pos, index in graph.features[::-1]:
        row = np.einsum("lhd,d->lh", written[:, pos], np.asarray(d.w_enc[layer, index], np.float64))
        row[layer + 1 :] = 0
        rows.insert(0, row)
    return np.asarray(rows)


@pytest.mark.parametrize("positions", [None, 7])
def test_edges_are_means_over_prompts(positions, x64):
    model = sized("gpt2")
    d, behaviour = dictionary_of(model, "plt-relu"), random_behaviour(model, lengths=LENGTHS)
    units, p = units_of(model.cfg, ("head", "feature"), d.cfg, positions), behaviour["attribution"]
    g = build_graph(model, behaviour, units, dictionary=d, max_features=8, batch=2)
    weight, signed, count, lost = (defaultdict(float) for _ in range(4))
    for i in range(p.n):
        tokens = p.clean[i][p.padding[i] :]
        direction = direction_of(model, p, i)
        (graph,) = tc.attribute_batch(model, d, [tokens], targets=[tc.Direction(direction)], max_features=8)
        T = len(tokens)
        at = (lambda t, T=T: int(t) + positions - T) if positions else (lambda t: -1)
        f = [(2, int(k), int(i), at(t)) for k, t, i in graph.features]
        names = f + [(1, k, 0, at(t)) for k in range(2) for t in range(T)]
        names += [(0, 0, int(x), at(t)) for t, x in enumerate(tokens)] + [(4, 2, 0, at(T - 1))]
        dense, mine, missing = graph.dense(), defaultdict(float), defaultdict(float)
        for t, s in np.argwhere(dense):
            mine[names[s], names[t]] += dense[t, s]
        rows = [*f, names[-1]]
        places = [*graph.features[:, 1], T - 1]
        for t, row in enumerate(written_by_heads(model, d, tokens, graph, direction)):
            for m, h in np.argwhere(row):
                mine[(3, int(m), int(h), at(places[t])), rows[t]] += row[m, h]
            missing[rows[t]] += graph.row_unexpanded_abs[t].sum()
        for pair, value in mine.items():
            weight[pair] += abs(value) / p.n
            signed[pair] += value / p.n
            count[pair] += 1 / p.n
        for node, value in missing.items():
            lost[node] += value / p.n
    name = [tuple(int(x) for x in row) for row in g.nodes]
    pairs = [(name[s], name[t]) for s, t in zip(g.source, g.target, strict=True)]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == set(weight)
    for found, wanted in ((g.weight, weight), (g.signed, signed), (g.share, count)):
        np.testing.assert_allclose(found, [wanted[k] for k in pairs], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(g.lost, [lost[k] for k in name], rtol=1e-6, atol=1e-9)
    assert (np.abs(g.signed) <= g.weight * (1 + 1e-12)).all()
    scored = unit_scores(model, behaviour, units, method="ig", dictionary=d).values
    inside = np.flatnonzero(g.unit >= 0)
    assert set(g.unit[inside]) >= set(np.flatnonzero(scored))
    for node in inside:
        assert units.label(int(g.unit[node])) == g.label(node)
    np.testing.assert_array_equal(g.importance[inside], scored[g.unit[inside]])
    assert (g.unit[g.nodes[:, 0] == 4] == -1).all()


def small(weight, start=-1, lost=None):
    """A graph of features with these weights [n, n]."""
    source, target = np.nonzero(weight)
    n, w = len(weight), weight[source, target].astype(float)
    nodes = np.stack([np.full(n, 2), np.zeros(n), np.arange(n), np.full(n, -1)], 1).astype(int)
    first = np.zeros(n)
    first[start] = 1.0
    lost = np.zeros(n) if lost is None else lost
    units = Units(("feature",), 1, 1, (0,), n)
    return BehaviourGraph(
        nodes, source, target, w, w, np.ones_like(w), lost, first, np.arange(n), np.arange(n) / n, units
    )


def test_influence_is_the_series_and_pruning_keeps_its_share():
    rng = np.random.default_rng(0)
    weight = np.triu(rng.uniform(size=(30, 30)) * (rng.uniform(size=(30, 30)) < 0.4), 1)
    lost = rng.uniform(size=30)
    g = small(weight, lost=lost)
    part = weight / np.maximum(weight.sum(0) + lost, 1e-30)
    start = np.eye(30)[-1]
    wanted = np.linalg.solve(np.eye(30) - part, start)
    nodes, edges = influences(g)
    np.testing.assert_allclose(nodes, wanted, rtol=1e-12)
    np.testing.assert_allclose(edges, (part * wanted)[g.source, g.target], rtol=1e-12)
    kept = most_influential(g, 0.8, 0.98)
    inside = kept.nodes[:-1, 2]
    assert wanted[inside].sum() >= 0.8 * wanted[:-1].sum()
    assert wanted[np.delete(inside, np.argmin(wanted[inside]))].sum() < 0.8 * wanted[:-1].sum()
    whole = g.with_nodes(np.isin(np.arange(30), kept.nodes[:, 2]))
    carried = influences(whole)[1]
    cut = np.sort(carried)[::-1]
    assert len(kept.source) == np.searchsorted(np.cumsum(cut), 0.98 * cut.sum()) + 1
    reads = np.bincount(kept.target, kept.weight, kept.n) + kept.lost
    np.testing.assert_allclose(reads, (weight.sum(0) + lost)[kept.nodes[:, 2]], rtol=1e-12)  # nothing is forgotten


def test_most_edges_keeps_the_heaviest_out_and_in():
    rng = np.random.default_rng(1)
    weight = rng.permutation(400).reshape(20, 20) + 1.0
    np.fill_diagonal(weight, 0)
    for out, into in ((3, 0), (0, 2), (3, 2)):
        kept = most_edges(small(weight), out, into)
        wanted = np.zeros((20, 20), bool)
        for i in range(20):
            wanted[i, np.argsort(-weight[i])[:out]] = True
            wanted[np.argsort(-weight[:, i])[:into], i] = True
        np.testing.assert_array_equal(kept.matrix().toarray() > 0, wanted)
    with pytest.raises(InputError, match="at least one edge"):
        most_edges(small(weight), 0, 0)


def test_caps_keep_the_greatest_and_the_output():
    weight = np.triu(np.arange(1.0, 37).reshape(6, 6), 1)
    g = small(weight, start=0)
    strength = weight.sum(0) + weight.sum(1)
    best = np.argsort(-strength)
    assert set(capped(g, 3).nodes[:, 2]) == {0, *[i for i in best if i != 0][:2]}
    assert set(capped(g, 2, "importance").nodes[:, 2]) == {0, 5}
    with pytest.raises(InputError, match="'size'"):
        capped(g, 3, "size")


def test_sums_add_up_equal_keys():
    keys = np.array([[2, 1, 2, 1], [0, 5, 0, 4]])
    found, values = summed(keys, np.array([[1.0, 2, 3, 4]]))
    np.testing.assert_array_equal(found, [[1, 1, 2], [4, 5, 0]])
    np.testing.assert_array_equal(values, [[4, 2, 4]])


def test_files_come_back_and_damage_is_refused(tmp_path):
    g = small(np.triu(np.ones((4, 4)), 1))
    save_behaviour_graph(g, tmp_path / "g")
    back = load_behaviour_graph(tmp_path / "g.json")
    for name in ("nodes", "source", "target", "weight", "signed", "share", "lost", "start", "unit", "importance"):
        np.testing.assert_array_equal(getattr(back, name), getattr(g, name))
    assert back.units == g.units
    assert len(NODE_KINDS) == 5
    for change, words in (
        ({"source": g.source + 3}, "outside 0..3"),
        ({"weight": -g.weight}, "negative"),
        ({"lost": g.lost[1:]}, "lost has"),
        ({"signed": g.signed * np.nan}, "not finite"),
        ({"unit": g.unit + 1}, r"units 1\.\.4 are outside"),
    ):
        with pytest.raises(InputError, match=words):
            check_graph(replace(g, **change))
    with pytest.raises(InputError, match="0 edges"):
        check_graph(g.with_edges(np.zeros(len(g.source), bool)))
    ring = small(np.roll(np.eye(3), 1, 1))
    with pytest.raises(InputError, match="circle"):
        influences(ring)


def test_bad_requests_are_refused(x64):
    model = sized("gpt2")
    d, behaviour = dictionary_of(model, "plt-relu"), random_behaviour(model)
    units = units_of(model.cfg, ("head", "feature"), d.cfg)
    for change, words in (
        ({"units": units_of(model.cfg, ("head", "mlp"))}, "has features among"),
        ({"prompts": 0}, "prompts=0"),
        ({"split": "test"}, "'test' is unknown"),
        ({"ablation": "noise"}, "'noise' is unknown"),
    ):
        given = {"units": units} | change
        with pytest.raises(InputError, match=words):
            build_graph(model, behaviour, given.pop("units"), dictionary=d, **given)
    with pytest.raises(InputError, match="shares of influence"):
        most_influential(small(np.triu(np.ones((4, 4)), 1)), 0.0)
