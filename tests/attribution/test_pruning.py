"""Influence, scores and pruning masks, on the host and on the device, against dense matrices and full sorts."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.influence import influence, prune_masks
from tcircuits.attribution.influence import scores as device_scores
from tcircuits.attribution.prune import prune, scores, with_influence
from tcircuits.attribution.rows import Rows
from tcircuits.types import InputError

from ..reference import attribution as at
from ..reference import graph as gr
from . import compare

CASES = [("gpt2", "plt-relu"), ("neox", "clt-jumprelu"), ("llama", "neurons"), ("gemma2", "plt-skip")]
THRESHOLDS = [(0.8, 0.98), (0.98, 0.4), (0.5, 0.9), (0.999, 0.9999), (0.3, 0.6)]


def graph_of(a: at.Attribution, mass: np.ndarray | None = None, dtype=np.float64) -> Graph:
    """The package's graph with the oracle's numbers."""
    n, k, L, T = a.n_features, len(a.targets), a.n_layers, a.length
    rows = np.r_[:n, len(a.A) - k : len(a.A)]
    A = a.A[rows, : len(a.A) - k].astype(dtype)
    row, source = np.nonzero(A)
    leaves = np.zeros((n + k, L, T)) if mass is None else mass[rows]
    nothing = np.zeros(n + k)
    targets = tuple(TargetNode(str(i), "direction", None, None, float(w), L, T - 1) for i, w in enumerate(a.weights))
    graph = Graph(
        model="m", transcoders="d", prompt="", tokens=np.zeros(T, int), token_text=("",) * T, n_layers=L, d_vocab=1,
        features=a.features, activations=a.activations, targets=targets,
        row_start=np.r_[0, np.cumsum(np.bincount(row, minlength=n + k))], source=source, weight=A[row, source],
        row_bias=a.bias[rows], row_origin=nothing, row_value=a.values[rows], row_unexpanded=leaves,
        row_unexpanded_abs=leaves, row_tail=nothing, row_tail_abs=nothing, influence=np.zeros(A.shape[1]),
        influence_unexpanded=np.zeros((L, T)), n_active=n,
    )  # fmt: skip
    return with_influence(graph)


def rows_of(a: at.Attribution, mass: np.ndarray | None = None, dtype="float64") -> Rows:
    """The same as device rows: the targets' chunk, then one chunk a layer from the top, padded to one width."""
    n, k, L, T = a.n_features, len(a.targets), a.n_layers, a.length
    chunks = [np.arange(len(a.A) - k, len(a.A))]
    chunks += [np.flatnonzero(a.features[:, 0] == layer) for layer in range(L - 1, -1, -1)]
    B = max(map(len, chunks))
    take = np.stack([np.pad(c, (0, B - len(c)), constant_values=-1) for c in chunks])
    valid = take >= 0

    def pick(x: np.ndarray) -> jax.Array:
        return jnp.asarray(np.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 1)), x[take], 0), dtype)

    leaves = pick(np.zeros((len(a.A), L, T)) if mass is None else mass)
    bias, share = pick(a.bias), pick(gr.spread(a.weights, len(a.A)))
    node = jnp.asarray(np.where(valid & (take < n), take, -1), jnp.int32)
    layer = jnp.asarray([L, *range(L - 1, -1, -1)], jnp.int32)
    A = pick(a.A[:, : len(a.A) - k])
    return Rows(A, leaves, leaves, bias, bias, bias, share, node, layer, jnp.asarray(valid))


@jax.jit
def on_device(rows: Rows, node: jax.Array, edge: jax.Array):
    return influence(rows), prune_masks(rows, node, edge), device_scores(rows)


def as_matrix(rows: Rows, edges: np.ndarray, a: at.Attribution) -> np.ndarray:
    """Device edges [Q, B, W] by node."""
    out, k = np.zeros(a.A.shape, bool), len(a.targets)
    node, valid, n = np.asarray(rows.node), np.asarray(rows.valid), len(a.A) - k
    where = np.where(node >= 0, node, n + np.arange(node.shape[1]))
    out[where[valid], :n] = np.asarray(edges)[valid]
    return out


@cache
def small(family: str, name: str) -> tuple[at.Attribution, np.ndarray]:
    """A case with half of its features expanded: those with the most influence."""
    a = compare.oracle(family, name).a
    strength = gr.node_influence(a.A, a.weights)[: a.n_features]
    part, _, mass = at.restrict(a, np.sort(np.argsort(-strength)[: a.n_features // 2]))
    return part, mass


def check(a: at.Attribution, mass: np.ndarray | None, thresholds: tuple[float, float]) -> None:
    graph, sizes = graph_of(a, mass), compare.sizes_of(a)
    expected = gr.prune(a.A, a.weights, sizes, *thresholds, mass)
    pruned = prune(graph, *thresholds)
    np.testing.assert_array_equal(pruned.node_mask, expected.node_mask)
    np.testing.assert_array_equal(compare.dense_edges(pruned), expected.edge_mask & (a.A != 0))
    n = graph.n_sources
    np.testing.assert_allclose(pruned.cumulative[:n], expected.cumulative[:n], rtol=0, atol=1e-12)
    strength = gr.node_influence(a.A, a.weights, mass)[:n]
    np.testing.assert_allclose(graph.influence, strength, rtol=1e-12, atol=1e-15)
    rows = rows_of(a, mass)
    inf, masks, scored = on_device(rows, *(jnp.asarray(t, jnp.float64) for t in thresholds))
    np.testing.assert_allclose(inf.columns, strength, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(inf.unexpanded, graph.influence_unexpanded, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(masks.columns, expected.node_mask[:n])
    np.testing.assert_array_equal(as_matrix(rows, masks.edges, a), expected.edge_mask & (a.A != 0))
    np.testing.assert_allclose(masks.cumulative, expected.cumulative[:n], rtol=0, atol=1e-12)
    want, got = gr.scores(a.A, a.weights, sizes, mass), scores(graph)
    for field in ("replacement", "completeness", "completeness_inputs"):
        expected_score = np.nan_to_num(getattr(want, field))  # 0 where nothing flows at all
        assert getattr(got, field) == pytest.approx(expected_score, rel=1e-12)
        assert float(getattr(scored, field)) == pytest.approx(expected_score, rel=1e-12)
    share = np.nan_to_num(want.unexpanded / (want.unexpanded + strength[a.n_features :].sum()))
    assert got.unexpanded_share == pytest.approx(share, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_equals_dense_matrices_and_full_sorts(family, name, x64):
    for thresholds in THRESHOLDS:
        check(compare.oracle(family, name).a, None, thresholds)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_equals_them_with_unexpanded_leaves(family, name, x64):
    a, mass = small(family, name)
    assert gr.scores(a.A, a.weights, compare.sizes_of(a), mass).unexpanded > 0
    for thresholds in THRESHOLDS:
        check(a, mass, thresholds)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_thresholds_of_1_drop_only_what_has_no_influence(family, name, x64):
    """There the dense form compares rounded sums with 1; here nothing above rounding goes, and all dead ends do."""
    a = compare.oracle(family, name).a
    graph = prune(graph_of(a), 1.0, 1.0)
    total = graph.influence.sum()
    assert graph.node_mask[: graph.n_sources][graph.influence > 1e-13 * total].all()
    assert not graph.node_mask[: a.n_features + a.n_errors][graph.influence[: a.n_features + a.n_errors] == 0].any()
    score = gr.edge_influence(a.A, a.weights)
    edges = compare.dense_edges(graph)
    assert edges[score > 1e-13 * score.sum()].all()
    assert not edges[score == 0].any()
    _, masks, _ = on_device(rows_of(a), jnp.float64(1.0), jnp.float64(1.0))
    assert np.asarray(masks.columns)[graph.influence > 1e-13 * total].all()


def test_thresholds_outside_0_to_1_are_refused():
    graph = graph_of(compare.oracle("gpt2", "plt-relu").a)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"node_threshold=.* is outside 0\.\.1"):
            prune(graph, wrong)
        with pytest.raises(InputError, match="edge_threshold"):
            prune(graph, 0.8, wrong)


def hand_made(A: np.ndarray, n: int, weights: list[float]) -> at.Attribution:
    """A graph of one layer a feature, one error (in layer 0) and one token, with a matrix of its own."""
    k, L = len(weights), max(n, 1)
    features = np.stack([np.arange(n), np.zeros(n, int), np.arange(n)], 1)
    N = n + L + 1 + k
    whole = np.zeros((N, N))
    nodes = np.r_[:n, n, n + L, n + L + 1 : N]  # features, the error of layer 0, the token, targets
    whole[np.ix_(nodes, nodes)] = A
    empty = np.zeros(N)
    targets = [at.Target("direction", 0)] * k
    return at.Attribution(features, np.ones(n), whole, empty, empty, empty, np.array(weights), L, 1, targets)


def test_nodes_and_edges_that_tie_with_the_last_one_kept_stay(x64):
    """Four features with the same influence: the share of one of them keeps all four, and all their edges."""
    A = np.zeros((7, 7))
    A[6, :4] = 1.0
    A[:4, 5] = 1.0
    a = hand_made(A, 4, [1.0])
    graph = prune(graph_of(a), 0.6, 0.3)  # the token has half of the influence, each feature an eighth
    assert graph.node_mask[:4].all()
    assert graph.edge_mask.all()
    check(a, None, (0.6, 0.3))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the oracle's 0 / 0
def test_rows_of_zeros_and_of_one_target(x64):
    """A feature that nothing feeds, one that feeds nothing, a target with an empty row: no division by zero."""
    A = np.zeros((5, 5))
    A[4, 0] = 2.0
    A[1, 3] = 1.0
    a = hand_made(A, 2, [0.7])
    check(a, None, (0.8, 0.98))
    empty = graph_of(hand_made(np.zeros((5, 5)), 2, [0.7]))
    pruned = prune(empty)
    assert np.isfinite(pruned.cumulative).all()
    assert all(np.isfinite(v) for v in vars(scores(empty)).values())
    _, masks, scored = on_device(rows_of(hand_made(np.zeros((5, 5)), 2, [0.7])), jnp.float64(0.8), jnp.float64(0.98))
    assert not masks.edges.any()
    assert all(np.isfinite(float(v)) for v in (scored.replacement, scored.completeness))


@pytest.mark.filterwarnings("ignore:overflow encountered in reduce:RuntimeWarning")
@pytest.mark.parametrize("size", [1e37, 1e-25])
def test_large_and_small_rows_do_not_overflow_in_float32(size):
    """Rows whose float32 totals would be infinite, or whose squares would be zero, have the same influence."""
    a, mass = small("llama", "neurons")
    plain, huge = (graph_of(a_scaled(a, s), mass * s, np.float32) for s in (1.0, size))
    assert np.isfinite(huge.weight).all()
    if size > 1:
        assert np.isinf(np.abs(huge.weight).sum(dtype=np.float32))
    np.testing.assert_allclose(huge.influence, plain.influence, rtol=1e-5)
    assert (prune(huge).node_mask == prune(plain).node_mask).mean() > 0.99
    ones = jnp.float32(0.8), jnp.float32(0.98)
    first = on_device(rows_of(a, mass, "float32"), *ones)
    second = on_device(rows_of(a_scaled(a, size), mass * size, "float32"), *ones)
    np.testing.assert_allclose(second[0].columns, first[0].columns, rtol=1e-5)
    np.testing.assert_allclose(second[2].completeness, first[2].completeness, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(first[0].columns), plain.influence, rtol=1e-5)
    assert (second[1].columns == first[1].columns).mean() > 0.99


def a_scaled(a: at.Attribution, size: float) -> at.Attribution:
    """The same graph with rows `size` times as large."""
    return at.Attribution(**(vars(a) | {"A": a.A * size}))
