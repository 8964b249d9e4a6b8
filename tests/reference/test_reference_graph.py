"""The graph oracle: a case worked by hand, three ways to the same influence, and circuit-tracer's graphs."""

import numpy as np
import pytest

from . import attribution as at
from . import builders, golden
from . import graph as gr


def sizes_of(a: at.Attribution) -> gr.Sizes:
    return gr.Sizes(a.n_features, a.n_errors, a.length, len(a.targets))


@pytest.fixture(scope="module")
def a() -> at.Attribution:
    case = builders.make_case("llama", "clt-relu")
    return at.attribute(case.cfg, case.params, case.d, case.tokens)


def test_a_graph_worked_by_hand():
    # Nodes: features 0 and 1, error 2, token 3, target 4 of weight 0.5.
    A = np.zeros((5, 5))
    A[4] = [3, -1, 0, 0, 0]
    A[1] = [1, 0, -1, 2, 0]
    A[0] = [0, 0, 1, -1, 0]
    sizes, w = gr.Sizes(2, 1, 1, 1), np.array([0.5])
    strength = gr.node_influence(A, w)
    # Target: 3/4 to 0, 1/4 to 1. Feature 1: a quarter each to 0 and 2, half to 3. Feature 0: half each to 2 and 3.
    np.testing.assert_allclose(strength, 0.5 * np.array([13 / 16, 1 / 4, 15 / 32, 17 / 32, 0]), rtol=1e-15)
    np.testing.assert_allclose(gr.edge_influence(A, w)[4], [0.375, 0.125, 0, 0, 0], rtol=1e-15)
    got = gr.scores(A, w, sizes)
    assert got.replacement == pytest.approx(17 / 32)
    through = np.array([13 / 16, 1 / 4, 15 / 32, 17 / 32, 1])
    explained = np.array([1 / 2, 3 / 4, 1, 1, 1])
    assert got.completeness == pytest.approx(through @ explained / through.sum())
    fed = [0, 1, 4]
    assert got.completeness_inputs == pytest.approx(through[fed] @ explained[fed] / through[fed].sum())
    # Cumulated from the largest: 13/32, 17/64, 15/64, 8/64 of 66/64; the threshold 0.7 is passed by the third.
    np.testing.assert_allclose(gr.cumulative(strength), np.array([26, 66, 58, 43, 66]) / 66)
    pruned = gr.prune(A, w, sizes, node_threshold=0.7, edge_threshold=1.0)
    assert pruned.node_mask.tolist() == [True, False, True, True, True]
    # Without feature 1 the target's row is all feature 0: edges of 0.5, 0.25, 0.25, then zeros.
    pruned = gr.prune(A, w, sizes, node_threshold=0.7, edge_threshold=0.9)
    assert np.argwhere(pruned.edge_mask).tolist() == [[0, 2], [0, 3], [4, 0]]
    # Only the strongest edge: the error has no edge out, the feature none in, then the target none at all.
    pruned = gr.prune(A, w, sizes, node_threshold=0.7, edge_threshold=0.1)
    assert pruned.node_mask.tolist() == [False, False, False, True, True]
    assert not pruned.edge_mask.any()


def test_dropping_a_node_drops_those_that_only_it_needs():
    # Nodes: features 0 to 3, error 4, token 5, target 6. Feature 1 has one larger input and two small outputs, 2 and 3.
    A = np.zeros((7, 7))
    A[6, [2, 3]] = 0.5
    A[3, [1, 5]] = A[2, [1, 5]] = [0.2, 0.8]
    A[1, 0] = 1
    A[0, [5, 4]] = [0.95, 0.05]
    p = gr.prune(A, np.ones(1), gr.Sizes(4, 1, 1, 1), node_threshold=1.0, edge_threshold=0.9)
    # Edge scores: 0.5 twice, 0.4 twice, 0.2, 0.19, 0.1 twice, 0.01; the share 0.9 ends at 0.19.
    assert p.node_mask.tolist() == [False, False, True, True, False, True, True]
    assert np.argwhere(p.edge_mask).tolist() == [[2, 5], [3, 5], [6, 2], [6, 3]]


def test_influence_three_ways(a):
    share, start = gr.normalize(a.A), gr.spread(a.weights, len(a.A))
    series = gr.influence(share, start)
    np.testing.assert_allclose(gr.influence_dense(share, start), series, atol=1e-14)
    total = start.copy()  # from the top: targets, then features by falling layer
    order = [*range(len(a.A) - len(a.targets), len(a.A)), *np.argsort(-a.features[:, 0], kind="stable")]
    for node in order:
        total += total[node] * share[node]
    np.testing.assert_allclose(total - start, series, atol=1e-14)


def test_pruning_keeps_more_with_higher_thresholds(a):
    previous = None
    for node, edge in [(0.3, 0.6), (0.5, 0.8), (0.8, 0.98), (1.0, 1.0)]:
        p = gr.prune(a.A, a.weights, sizes_of(a), node, edge)
        assert p.node_mask[sizes_of(a).inner :].all()
        assert previous is None or (p.node_mask[previous]).all()
        previous = p.node_mask
        used = p.edge_mask.any(0) | p.edge_mask.any(1)
        assert edge == 1.0 or not (used & ~p.node_mask).any()
    assert 0.05 < gr.prune(a.A, a.weights, sizes_of(a)).node_mask.mean() < 0.9


def test_unexpanded_features_keep_the_sums_and_count_as_error(a):
    full = gr.node_influence(a.A, a.weights)[: a.n_features]
    keep = np.sort(np.argsort(-full)[: a.n_features // 2])
    small, signed, mass = at.restrict(a, keep)
    np.testing.assert_allclose(small.A.sum(1) + signed.sum((1, 2)) + small.bias, small.values, atol=1e-12)
    nodes = np.concatenate([keep, np.arange(a.n_features, len(a.A))])
    np.testing.assert_allclose(gr.row_sizes(small.A, mass), gr.row_sizes(a.A)[nodes], rtol=1e-14)
    got = gr.scores(small.A, small.weights, sizes_of(small), mass)
    strength = gr.node_influence(small.A, small.weights, mass)
    leaves = np.delete(gr.spread(a.weights, len(a.A)), [])
    known = np.isin(np.arange(len(a.A)), nodes)
    expected = gr.influence(np.where(known[:, None], gr.normalize(a.A), 0), leaves)
    np.testing.assert_allclose(strength, expected[nodes], atol=1e-14)
    assert got.unexpanded == pytest.approx(expected[~known].sum())
    assert 0 < got.unexpanded < 1
    assert got.replacement < gr.scores(small.A, small.weights, sizes_of(small)).replacement


@pytest.mark.parametrize("name", golden.NAMES)
def test_equals_circuit_tracer(name):
    compare(*golden.load(name))


def compare(case: builders.Case, made: dict[str, np.ndarray]) -> None:
    here = at.localise(case.cfg, case.params, case.d, case.tokens, "constant")
    np.testing.assert_allclose(here.run.logits, made["logits"], rtol=0, atol=1e-13)
    targets = at.top_logits(here.run, max_n=5)
    if "vector" in made:
        targets = [at.Target("direction", len(case.tokens) - 1, vector=made["vector"])]
    else:
        assert [t.token for t in targets] == made["target_ids"].tolist()
    g = at.attribute(case.cfg, case.params, case.d, case.tokens, targets, "constant")
    np.testing.assert_array_equal(g.features, made["active_features"])
    np.testing.assert_allclose(g.activations, made["activations"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(g.weights, made["weights"], rtol=0, atol=1e-14)
    assert g.gap() < 1e-13
    keep = np.arange(g.n_features)
    if "max_feature_nodes" in made:
        per_round = int(made["batch_size"] * made["update_interval"])
        keep = gr.select(g.A, g.weights, sizes_of(g), int(made["max_feature_nodes"]), per_round)
        assert not np.array_equal(keep, np.arange(len(keep)))
    np.testing.assert_array_equal(keep, made["selected"])
    A, sizes = gr.restrict(g.A, sizes_of(g), keep)
    assert (np.abs(A - made["adjacency"]).max(1) <= 1e-13 * np.abs(A).sum(1)).all()
    compare_pruned(A, g.weights, sizes, made)


def compare_pruned(A: np.ndarray, weights: np.ndarray, sizes: gr.Sizes, made: dict[str, np.ndarray]) -> None:
    for label, thresholds in (("", (0.8, 0.98)), ("_tight", (0.98, 0.4))):
        p = gr.prune(A, weights, sizes, *thresholds)
        np.testing.assert_array_equal(p.node_mask, made[f"node_mask{label}"])
        np.testing.assert_array_equal(p.edge_mask, made[f"edge_mask{label}"])
        np.testing.assert_allclose(p.cumulative, made["cumulative"], rtol=0, atol=1e-13)
    s = gr.scores(A, weights, sizes)
    np.testing.assert_allclose([s.replacement, s.completeness], made["scores"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox"])
def test_equals_circuit_tracer_where_it_is_installed(family):
    pytest.importorskip("circuit_tracer")
    torch = pytest.importorskip("torch")
    from ..golden import make_circuit_tracer as maker

    torch.set_default_dtype(torch.float64)
    changes = maker.CHANGES[family]
    for kind in maker.KINDS:
        case = builders.make_case(family, kind, seed=77, **changes)
        case.tokens[0] = 0  # its first token must be a special one
        reads, writes = maker.PLACES[family, kind[:3]]
        case.d = builders.make_dictionary(case.cfg, case.params, case.tokens, kind, reads=reads, writes=writes)
        compare(case, maker.trace(case.cfg, case.params, case.d, case.tokens))
