"""The membership network: layers against NumPy, padding and order that change nothing, and what training finds."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import rankdata

from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.hierarchy import coarse_edges, hierarchy
from tcircuits.circuits.membership import Network, Training, adapted, fit, predict, predict_edges
from tcircuits.circuits.membership_data import EDGE_FEATURES, NODE_FEATURES, Sample, padded, sample_of
from tcircuits.circuits.units import Units
from tcircuits.types import InputError

QUICK = Training(steps=5, layers=1, heads=2, width=4)


def random_graph(n=24, edges=80, seed=0):
    rng = np.random.default_rng(seed)
    pairs = np.unique(np.sort(rng.integers(0, n, (edges, 2)), 1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    signed = rng.normal(size=len(pairs))
    nodes = np.stack([np.full(n, 3), np.arange(n) // 8, np.arange(n) % 8, np.full(n, -1)], 1)
    score, zero = rng.normal(size=n), np.zeros(n)
    units = Units(("head",), n // 8, 8)
    share = rng.uniform(0.5, 1, len(pairs))
    return BehaviourGraph(*(nodes, *pairs.T, abs(signed), signed, share, zero, zero, np.arange(n), score, units))


def random_sample(seed=0):
    g = random_graph(seed=seed)
    h, rng = hierarchy(g, b=3, leaf=3), np.random.default_rng(seed)
    return g, h, sample_of(g, h, dict(enumerate(rng.normal(size=len(h.parent)))), {i: 0.1 * i for i in range(5)})


def dense(x, p):
    return x @ np.asarray(p["kernel"], float) + np.asarray(p.get("bias", 0), float)


def normed(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_every_level_is_in_the_sample():
    g, h, s = random_sample()
    levels = int(h.depth.max())
    sizes = [int(h.labels(level).max()) + 1 for level in range(1, levels + 1)] + [g.n]
    assert s.node.shape == (sum(sizes), len(NODE_FEATURES))
    assert s.edge.shape[1] == len(EDGE_FEATURES)
    assert np.isfinite(s.node).all()
    at = sizes[0]
    weights, _ = coarse_edges(g, h.labels(1))
    first = (s.source < at) & (s.edge[:, EDGE_FEATURES.index("backwards")] == 0)
    apart = weights.toarray()
    np.fill_diagonal(apart, 0)
    assert sorted(zip(s.source[first].tolist(), s.target[first].tolist(), strict=True)) == [
        (int(a), int(b)) for a, b in np.argwhere(apart)
    ]
    single = s.effect[-g.n :]
    np.testing.assert_allclose(single[:5], 0.1 * np.arange(5))
    assert np.isnan(single[5:]).all()
    leaf = h.leaves[0]
    assert len(set(s.family[-g.n :][h.members(int(leaf))])) == 1
    with pytest.raises(InputError, match="is over"):
        sample_of(random_graph(n=16), h, {}, {})


def test_attention_is_that_of_the_paper_in_numpy():
    _, _, s = random_sample()
    how = replace(QUICK, dropout=0.0)
    weights = Network(how).init(jax.random.key(0), s)
    p = weights["params"]
    z = dense(s.node.astype(float), p["Dense_0"])
    a = p["Attention_0"]
    here, there = dense(z, a["Dense_0"])[s.target], dense(z, a["Dense_1"])[s.source]
    mixed = here + there + dense(s.edge.astype(float), a["Dense_2"])
    mixed = np.where(mixed > 0, mixed, 0.2 * mixed).reshape(-1, 2, 4)
    logits = np.einsum("ehk,hk->eh", mixed, np.asarray(a["a"], float))
    heard = np.zeros((len(z), 8))
    for v in range(len(z)):
        into = np.flatnonzero(s.target == v)
        for k in range(2 if len(into) else 0):
            share = softmax(logits[into, k])
            heard[v, 4 * k : 4 * k + 4] = share @ there[into].reshape(-1, 2, 4)[:, k]
    z = normed(z + dense(heard, a["Dense_3"]), a["LayerNorm_0"])
    z = normed(z + dense(gelu(dense(z, a["Dense_5"])), a["Dense_4"]), a["LayerNorm_1"])  # named as they are made
    expected = dense(np.concatenate([z, s.node], 1), p["Dense_1"])[:, 0]
    np.testing.assert_allclose(Network(how).apply(weights, s)[0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gat", "paper"])
def test_padding_and_order_change_nothing(kind):
    (_, _, s), (_, _, other) = random_sample(), random_sample(1)
    m = fit([s], replace(QUICK, kind=kind))
    plain = predict(m, s)
    both = padded([s, other])
    n = len(s.node)
    filled = predict(m, jax.tree.map(lambda x: x[0], both))
    np.testing.assert_allclose(filled[:n], plain, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(s.source))
    mixed = replace(s, **{name: getattr(s, name)[order] for name in ("edge", "source", "target", "live")})
    np.testing.assert_allclose(predict(m, mixed), plain, atol=1e-5)


def test_the_papers_attention_does_not_depend_on_the_target():
    """e_uv = a1 z_u + a2 z_v, and the second term cancels in the softmax over u."""
    _, _, s = random_sample()
    how = replace(QUICK, kind="paper")
    weights = Network(how).init(jax.random.key(0), s)
    width = s.node.shape[1]
    kernel = weights["params"]["PaperLayer_0"]["Dense_0"]["kernel"]
    changed = jax.tree.map(lambda x: x, weights)
    changed["params"]["PaperLayer_0"]["Dense_0"]["kernel"] = kernel.at[width:].set(7.0)
    first, second = (Network(how).apply(w, s)[0] for w in (weights, changed))
    np.testing.assert_allclose(first, second, atol=1e-4)


def planted(seed):
    """Sets whose effect is what their neighbours' feature 0 says, not their own."""
    rng, n = np.random.default_rng(seed), 60
    node = rng.normal(size=(n, 4)).astype(np.float32)
    source, target = rng.integers(0, n, (2, 240))
    heard = np.bincount(target, node[source, 0], n) / np.maximum(np.bincount(target, minlength=n), 1)
    edge, family = np.zeros((240, 2), np.float32), np.arange(n) // 5
    ones = np.ones(n, np.float32), np.ones(240, np.float32)
    return Sample(node, edge, source, target, heard, family, *ones)


def test_training_finds_what_neighbours_say_and_reptile_adapts():
    train, test = [planted(i) for i in range(6)], planted(99)
    m = fit(train, Training(steps=150, lr=1e-2, dropout=0.0))
    assert m.losses[-10:].mean() < 0.3 * m.losses[:10].mean()
    assert np.corrcoef(predict(m, test), test.effect)[0, 1] > 0.8
    assert abs(np.corrcoef(test.node[:, 0], test.effect)[0, 1]) < 0.5
    meta = fit(train, Training(steps=60, lr=1e-2, inner=5, dropout=0.0, layers=1))
    few = replace(test, effect=np.where(np.arange(60) < 20, test.effect, np.nan))
    after = adapted(meta, few, steps=30)
    assert after.losses[-1] < after.losses[0]


def test_edges_of_the_graph_have_their_effects_and_cues():
    g = random_graph()
    h = hierarchy(g, b=3, leaf=3)
    effects = {(int(a), int(b)): 0.1 * i for i, (a, b) in enumerate(zip(g.source, g.target, strict=True)) if i % 2}
    s = sample_of(g, h, {}, {}, edges=effects)
    plain = sample_of(g, h, {}, {})
    for name in ("node", "edge", "source", "target", "live"):
        np.testing.assert_array_equal(getattr(s, name), getattr(plain, name))
    first, found, into = len(s.node) - g.n, {}, np.bincount(g.target, g.weight, g.n)
    shares = {(a, b): w / into[b] for a, b, w in zip(g.source, g.target, g.weight, strict=True)}
    signs = {(a, b): np.sign(w * g.importance[b]) for a, b, w in zip(g.source, g.target, g.signed, strict=True)}
    own = [e for e in range(len(s.source)) if s.source[e] >= first and not s.edge[e, EDGE_FEATURES.index("backwards")]]
    assert len(own) == len(g.source)
    for e in range(len(s.source)):
        pair = s.source[e] - first, s.target[e] - first
        if e not in own:
            assert np.isnan(s.edge_effect[e])
            assert not s.cue[e].any()
        else:
            assert s.cue[e, 2] == signs[pair]
            if pair in effects:
                found[pair] = s.edge_effect[e]
            else:
                assert np.isnan(s.edge_effect[e])
    assert found == pytest.approx(effects)
    expected = rankdata([shares[s.source[e] - first, s.target[e] - first] for e in own])
    np.testing.assert_allclose(s.cue[own, 0], (expected - 0.5) / len(own), atol=1e-6)


def test_the_head_for_edges_finds_what_both_ends_say():
    """An edge's planted effect is the product of a feature of both ends; padding changes no score."""

    def sample(seed):
        s, rng = planted(seed), np.random.default_rng(seed)
        cue = rng.normal(size=(len(s.source), 3)).astype(np.float32)
        return replace(s, cue=cue, edge_effect=s.node[s.source, 1] * s.node[s.target, 2])

    train, test = [sample(i) for i in range(6)], sample(99)
    m = fit(train, Training(steps=150, lr=2e-2, dropout=0.0, layers=1, heads=2, edges=1.0))
    found = predict_edges(m, replace(test, edge_effect=np.full(len(test.source), np.nan)))
    assert np.corrcoef(found, test.edge_effect)[0, 1] > 0.8
    assert abs(np.corrcoef(test.node[test.source, 1], test.edge_effect)[0, 1]) < 0.5
    smaller = replace(
        test, **{n: getattr(test, n)[:99] for n in ("source", "target", "edge", "cue", "edge_effect", "live")}
    )
    filled = jax.tree.map(lambda x: x[1], padded([test, smaller]))
    np.testing.assert_allclose(predict_edges(m, filled)[:99], predict_edges(m, smaller), atol=1e-5)
    assert np.isnan(filled.edge_effect[99:]).all()


def test_bad_settings_are_refused():
    _, _, s = random_sample()
    with pytest.raises(InputError, match="layers=0"):
        Training(layers=0, lr=-1.0)
    with pytest.raises(InputError, match=r"edges=1.0 of kind 'paper'"):
        Training(kind="paper", edges=1.0)
    with pytest.raises(InputError, match="no measured edge"):
        fit([planted(0)], replace(QUICK, edges=1.0))
    with pytest.raises(InputError, match="edges have no scores"):
        predict_edges(fit([planted(0)], QUICK), planted(0))
    with pytest.raises(InputError, match="two or more"):
        fit([replace(s, effect=np.full(len(s.node), np.nan))])
    with pytest.raises(InputError, match="at least one"):
        fit([])
