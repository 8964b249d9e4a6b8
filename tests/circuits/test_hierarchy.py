"""Hierarchies partition exactly, whatever the graph; cuts find planted communities; formulas against dense NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tcircuits.circuits import affinity as alike
from tcircuits.circuits import spectral
from tcircuits.circuits.coarse_quality import coarse_quality
from tcircuits.circuits.hierarchy import coarse_edges, hierarchy, paper_levels, sums_between, top_down
from tcircuits.circuits.matching import costs, matched_levels
from tcircuits.circuits.tree import (
    Hierarchy,
    check_hierarchy,
    from_levels,
    load_hierarchy,
    save_hierarchy,
    shuffled,
)
from tcircuits.types import InputError

from .test_behaviour_graph import small


def random_weights(n, share, seed):
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(size=(n, n)) * (rng.uniform(size=(n, n)) < share)
    np.fill_diagonal(weight, 0)
    return weight


def communities(sizes, inside=0.5, between=0.01, seed=0):
    """A directed graph with planted communities, and which each node is in; nodes are in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    same = labels[:, None] == labels
    weight = np.where(
        rng.uniform(size=same.shape) < np.where(same, inside, between), 1 + rng.uniform(size=same.shape), 0
    )
    np.fill_diagonal(weight, 0)
    return weight, labels


GRAPHS = st.tuples(st.integers(2, 90), st.floats(0.0, 0.3), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(GRAPHS, st.integers(2, 5), st.sampled_from(["sound", "faithful", "hem", "variation"]))
def test_every_set_is_the_disjoint_union_of_its_children(graph, b, mode):
    weight = random_weights(*graph)
    weight[0, 1] = 1.0  # no graph without edges
    kind = "degree_discounted" if graph[2] % 2 else "magnitude"
    h = hierarchy(small(weight), mode, b=b, affinity=kind)
    check_hierarchy(h)
    n = len(weight)
    seen = np.zeros(n, int)
    for leaf in h.leaves:
        seen[h.members(leaf)] += 1
    np.testing.assert_array_equal(seen, 1)
    for i in range(len(h.parent)):
        kids = [h.members(k) for k in h.kids(i)]
        assert len(kids) != 1
        assert not kids or sorted(np.concatenate(kids)) == sorted(h.members(i))
    if mode == "sound":
        assert h.size[h.leaves].max() <= 6
        assert h.depth.max() <= 12
        assert max((len(h.kids(i)) for i in range(len(h.parent))), default=0) <= b
    for level in range(h.depth.max() + 1):
        labels = h.labels(level)
        assert set(labels) == set(range(labels.max() + 1))
        finer = h.labels(level + 1)
        assert all(len(set(labels[finer == i])) == 1 for i in set(finer))


@pytest.mark.parametrize("kind", ["magnitude", "degree_discounted"])
@pytest.mark.parametrize("weights", ["log", "rank", "plain"])
def test_the_first_cut_finds_planted_communities(kind, weights):
    weight, labels = communities([40, 30, 30, 25])
    h = hierarchy(small(weight), affinity=kind, weights=weights)
    found = h.labels(1)
    assert {tuple(sorted(set(labels[found == i]))) for i in range(4)} == {(0,), (1,), (2,), (3,)}


def test_pieces_that_do_not_hang_together_come_apart_first():
    weight = np.zeros((40, 40))
    for first, last in ((0, 12), (12, 22), (22, 30)):  # three rings; ten nodes alone
        for i in range(first, last):
            weight[i, first + (i + 1 - first) % (last - first)] = 1.0
    h = hierarchy(small(weight))
    assert sorted(sorted(h.members(i)) for i in h.kids(0)) == [
        list(range(12)), list(range(12, 22)), list(range(22, 30)), list(range(30, 40)),
    ]  # fmt: skip
    alone = top_down(csr_array((50, 50)))
    assert (alone.size[alone.leaves] <= 6).all()
    assert sorted(alone.size[alone.kids(0)]) == [12, 12, 13, 13]


def test_a_star_and_a_chain_do_not_run_out_of_depth():
    star = np.zeros((600, 600))
    star[0, 1:] = 1.0
    chain = np.diag(np.ones(599), 1)
    for weight in (star, chain):
        matrix = alike.symmetric(csr_array(weight))
        for depth in (4, 12):
            h = top_down(matrix, depth=depth)
            check_hierarchy(h)
            assert h.depth.max() <= depth
            assert h.size[h.leaves].max() <= 6
            assert (h.size[1:] <= np.maximum(0.8 * h.size[h.parent[1:]] + 1, 6)).all()
    with pytest.raises(InputError, match="do not fit"):
        top_down(matrix, depth=3, leaf=6)


def test_the_papers_levels_are_clusters_of_b_again_and_again():
    weight, _ = communities([120, 110, 100, 83], inside=0.2)
    signed = weight * np.random.default_rng(1).choice([-1, 1], weight.shape)
    h = paper_levels(csr_array(signed))
    assert [len(set(h.labels(level))) for level in range(h.depth.max() + 1)] == [1, 2, 3, 4]  # as 413 -> 4 -> 3 -> 2
    assert sorted(h.size[h.leaves]) == [83, 100, 110, 120]
    first = h.labels(3)
    between = np.array([[signed[np.ix_(first == u, first == v)].sum() for v in range(4)] for u in range(4)])
    second = spectral.cut(csr_array((abs(between) + abs(between).T) / 2), 3)
    got = np.array([h.labels(2)[np.flatnonzero(first == u)[0]] for u in range(4)])
    assert (np.equal.outer(got, got) == np.equal.outer(second, second)).all()


@settings(max_examples=30, deadline=None)
@given(GRAPHS)
def test_coarse_sums_balance_exactly(graph):
    rng = np.random.default_rng(graph[2])
    weight = np.round(random_weights(*graph) * 64)  # whole numbers: sums are exact
    weight[0, 1] = 1.0
    g = small(weight)
    g = replace(g, signed=g.weight * rng.choice([-1, 1], len(g.weight)))
    labels = rng.integers(0, 5, g.n)
    labels[0] = 4
    sizes, signed = coarse_edges(g, labels)
    for found, values in ((sizes, g.weight), (signed, g.signed)):
        wanted = np.zeros((5, 5))
        np.add.at(wanted, (labels[g.source], labels[g.target]), values)
        np.testing.assert_array_equal(found.toarray(), wanted)
        assert found.sum() == values.sum()
    h = hierarchy(g)
    for level in range(1, h.depth.max()):
        finer, coarser = h.labels(level + 1), h.labels(level)
        up = np.array([coarser[np.flatnonzero(finer == i)[0]] for i in range(finer.max() + 1)])
        twice = sums_between(sums_between(g.matrix(), finer), up)
        np.testing.assert_array_equal(twice.toarray(), sums_between(g.matrix(), coarser).toarray())


def test_degree_discounting_is_its_formula():
    w = random_weights(25, 0.3, 0)
    w[3] = 0  # no targets
    out, into = w.sum(1), w.sum(0)
    a, b = (np.where(x > 0, 1 / np.sqrt(np.maximum(x, 1e-300)), 0) for x in (out, into))
    wanted = (a[:, None] * w * b) @ w.T * a + (b[:, None] * w.T * a) @ w * b
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(alike.degree_discounted(csr_array(w)).toarray(), wanted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(alike.symmetric(csr_array(w)).toarray(), (w + w.T) / 2, rtol=1e-15)
    x = np.array([4.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(alike.transformed(x, "log"), np.log1p(x / 2))
    np.testing.assert_allclose(alike.transformed(x, "rank"), [1, 0.25, 0.625, 0.625])


def test_hubs_make_no_more_than_their_heaviest_pairs():
    w = np.zeros((300, 300))
    w[:, 0] = np.arange(1.0, 301)
    found = alike.degree_discounted(csr_array(w))
    rows = np.flatnonzero(np.diff(found.indptr))
    assert rows.min() == 300 - alike.HUB
    assert found.nnz <= 2 * alike.NEAREST * alike.HUB
    assert abs(found - found.T).max() == 0


def test_lanczos_is_the_dense_spectrum():
    weight, _ = communities([150, 150, 100], inside=0.1)
    m = spectral.normalised(alike.symmetric(csr_array(weight)))
    values, vectors = spectral.leading(m, 3)
    dense, basis = np.linalg.eigh(m.toarray())
    np.testing.assert_allclose(values, dense[::-1][:3], atol=1e-3)
    overlap = np.linalg.svd(basis[:, -3:].T @ np.linalg.qr(vectors)[0])[1]
    assert overlap.min() > 0.999
    degree = weight.sum(0) + weight.sum(1)
    wanted = (weight + weight.T) / np.sqrt(np.outer(degree, degree))
    np.testing.assert_allclose(m.toarray(), wanted, rtol=1e-12)
    order = spectral.along(alike.symmetric(csr_array(np.diag(np.ones(99), 1))))
    assert (np.diff(order) == 1).all() or (np.diff(order) == -1).all()  # a chain lies in its own order


def test_k_means_finds_the_best_of_all_clusterings():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2)) + np.repeat([[0, 0], [6, 0], [0, 6]], 3, 0)

    def cost(labels):
        return sum(((x[labels == i] - x[labels == i].mean(0)) ** 2).sum() for i in set(labels))

    every = [np.array(list(np.base_repr(i, 3).zfill(9)), int) for i in range(3**9)]
    assert cost(spectral.k_means(x, 3)) == pytest.approx(min(map(cost, every)), rel=1e-12)


def test_local_variation_is_the_norm_that_it_is_named_for():
    weight, _ = communities([20, 20], inside=0.4, between=0.05)
    s = (weight + weight.T) / 2
    degree, lap = s.sum(1), np.diag(s.sum(1)) - s
    values, vectors = np.linalg.eigh(lap)
    v = vectors[:, 1:10] / np.sqrt(values[1:10])
    i, j = np.nonzero(np.triu(s))
    wanted = []
    for a, c in zip(i, j, strict=True):
        w = s[a, c]
        b = (np.eye(2) - 0.5) @ v[[a, c]]
        own = np.array([[2 * degree[a] - w, -w], [-w, 2 * degree[c] - w]])
        wanted.append(np.linalg.norm(b.T @ own @ b))
    np.testing.assert_allclose(costs(csr_array(s), i, j, s[i, j], "variation"), wanted, rtol=1e-8)
    heavy = costs(csr_array(s), i, j, s[i, j], "hem")
    np.testing.assert_allclose(heavy, -s[i, j] / np.maximum(s.max(1)[i], s.max(1)[j]), rtol=1e-12)
    sizes = [labels.max() + 1 for labels in matched_levels(csr_array(s), "variation", 4)]
    assert sizes == [10, 3]


def test_quality_is_its_formula_and_whole_clusters_lose_nothing():
    weight, labels = communities([12, 10, 8], inside=0.5, between=0.1)
    s = (weight + weight.T) / 2
    q = coarse_quality(csr_array(s), labels, k=2)
    c = np.array([(labels == i) / np.sqrt((labels == i).sum()) for i in range(3)])
    lap = np.diag(s.sum(1)) - s
    values, vectors = np.linalg.eigh(lap)
    coarse = np.linalg.eigvalsh(c @ lap @ c.T)
    np.testing.assert_allclose(q.eigenvalue, np.abs(values[1:3] - coarse[1:3]) / values[1:3], rtol=1e-8)
    root = np.linalg.cholesky(lap + 1e-12 * np.eye(30)).T
    for i in (1, 2):
        x = root @ c.T @ c @ vectors[:, 1 : 1 + i] / np.sqrt(values[1 : 1 + i])
        assert q.subspace[i - 1] == pytest.approx(np.linalg.norm(x, 2) - 1, rel=1e-5, abs=1e-6)
    assert q.clusters == 3
    assert q.largest == 12 / 30
    assert q.cut == pytest.approx(s[labels[:, None] != labels].sum() / s.sum())
    exact = coarse_quality(csr_array(s), np.arange(30))
    assert np.abs(exact.eigenvalue).max() < 1e-8
    assert np.abs(exact.subspace).max() < 1e-8
    apart = coarse_quality(csr_array(s), np.random.default_rng(0).permutation(labels), k=2)
    assert apart.eigenvalue.mean() > 2 * q.eigenvalue.mean()


def test_the_null_has_the_same_shape_and_other_members():
    weight, _ = communities([30, 30])
    h = hierarchy(small(weight))
    null = shuffled(h, 3)
    check_hierarchy(null)
    np.testing.assert_array_equal(null.size, h.size)
    assert (null.order != h.order).mean() > 0.9


def test_files_and_bad_requests(tmp_path):
    h = hierarchy(small(communities([20, 20])[0]), b=3)
    save_hierarchy(h, tmp_path / "h")
    back = load_hierarchy(tmp_path / "h.json")
    for name in ("order", "start", "stop", "parent"):
        np.testing.assert_array_equal(getattr(back, name), getattr(h, name))
    assert back.about == h.about
    for change, words in (
        ({"order": h.order[::-1] * 0}, "no permutation"),
        ({"stop": np.r_[h.stop[0], h.stop[1] - 1, h.stop[2:]]}, "not the union"),
        ({"parent": np.r_[0, h.parent[1:]]}, "not a root"),
        ({"parent": np.r_[-1, h.parent[:0:-1]]}, "level by level"),
    ):
        with pytest.raises(InputError, match=words):
            check_hierarchy(replace(h, **change))
    nested = from_levels(4, [np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])])
    assert sorted(map(tuple, (nested.members(i) for i in nested.leaves))) == [(0,), (1,), (2, 3)]
    assert isinstance(nested, Hierarchy)
    g = small(communities([20, 20])[0])
    for options, words in (
        ({"mode": "best"}, "'best' is unknown"),
        ({"b": 1}, "b >= 2"),
        ({"affinity": "cosine"}, "'cosine'"),
        ({"leaf": 0}, "leaf=0"),
    ):
        with pytest.raises(InputError, match=words):
            hierarchy(g, **options)
    with pytest.raises(InputError, match="0 edges"):
        hierarchy(g.with_edges(np.zeros(len(g.source), bool)))
    with pytest.raises(InputError, match="do not fit"):
        coarse_quality(csr_array((4, 4)), np.zeros(4, int))
