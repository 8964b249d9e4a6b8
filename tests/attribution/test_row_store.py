"""Rows in their final place: every way to compute and to copy them gives the same graph."""

import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution import expansion
from tcircuits.attribution.row_store import RowStore
from tcircuits.attribution.rows import Cone

TOKENS = np.array([0, 7, 31, 5, 90, 12, 44, 3])


def traced(family: str, kind: str = "plt-relu", **options) -> tc.Graph:
    model = random_model(family)
    d = random_dictionary(model, kind, TOKENS, share=0.2)
    return tc.attribute(model, d, TOKENS, position_zero="nodes", **options)


def assert_same(a: tc.Graph, b: tc.Graph) -> None:
    np.testing.assert_array_equal(a.features, b.features)
    total = np.abs(b.dense()).sum(1, keepdims=True) + 1e-6
    assert np.abs((a.dense() - b.dense()) / total).max() < 1e-6  # float32 sums in another order: a few ulp of the row
    np.testing.assert_allclose(a.influence, b.influence, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "neox", "mistral"])
def test_columns_picked_on_the_device_are_the_slots_copied(family, monkeypatch):
    copied = traced(family)
    monkeypatch.setattr(expansion, "worth_copying", lambda slots, n: False)
    assert_same(traced(family), copied)


def test_threads_and_launching_in_order_give_the_same_graph(monkeypatch):
    side_by_side = traced("gpt2", chunk=8)
    monkeypatch.setattr(expansion, "_in_threads", None)
    monkeypatch.setattr(expansion, "alone_on_a_cpu", lambda frozen: False)
    assert_same(traced("gpt2", chunk=8), side_by_side)


@pytest.mark.parametrize("alone", [True, False])
def test_a_failure_ends_the_sweep(alone, monkeypatch):
    """What is waiting is not computed any more, and the error is the one that was raised."""
    seen = []

    def fail(store, *given):
        seen.append(given)
        raise MemoryError("no room")

    for name in ("put_cone", "put_rows"):
        monkeypatch.setattr(RowStore, name, fail)
    monkeypatch.setattr(expansion, "alone_on_a_cpu", lambda frozen: alone)
    with pytest.raises(MemoryError, match="no room"):
        traced("llama", chunk=1)
    assert len(seen) <= 1 + max(expansion.threads(1, 8, 8), expansion.AHEAD) + expansion.AHEAD


def test_what_a_window_hides_is_no_edge():
    """A layer-0 feature at the last of 8 positions sees 6 of them through a window, and all without one."""
    for family, seen in (("mistral", {2, 3, 4, 5, 6, 7}), ("llama", set(range(8)))):
        graph = traced(family)
        assert (graph.weight != 0).all()
        (rows,) = np.nonzero((graph.features[:, 0] == 0) & (graph.features[:, 1] == 7))
        assert len(rows) > 1
        for row in rows:
            sources = graph.source[graph.row_start[row] : graph.row_start[row + 1]]
            assert set(sources - graph.n_features - graph.n_errors) == seen
        assert graph.max_row_gap < 1e-6


def test_blocks_are_the_rows_in_order_and_share_the_weights():
    graph = traced("llama")
    assert [b.lo for b in graph.blocks[1:]] == [b.hi for b in graph.blocks[:-1]]
    assert (graph.blocks[0].lo, graph.blocks[-1].hi) == (0, graph.n_features + len(graph.targets))
    assert len(graph.blocks) <= 4 * 8 + len(graph.targets)
    assert all(np.shares_memory(b.weight, graph.weight) for b in graph.blocks if b.weight.size)
    small = tc.prune(graph).compact()
    dense = np.zeros_like(small.dense())
    dense[small.row_nodes[small.edge_row], small.source] = small.weight
    np.testing.assert_array_equal(small.dense(), dense)


def filled(rng: np.random.Generator, zeros: int) -> tuple[RowStore, np.ndarray]:
    """A store of one layer-1 feature at position 1 and one output at position 2, over two layer-0 features."""
    layer, pos = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    live, direct = np.array([[False, True, True], [True, True, True]]), np.array([False, False, False, True])
    store = RowStore(layer, pos, pos, 3, live, direct, np.dtype(np.float32), leaves=False)
    features, errors = rng.normal(size=(2, 3, 2, 4)).astype(np.float32), rng.normal(size=(2, 3, 2)).astype(np.float32)
    tokens = rng.normal(size=(3, 2)).astype(np.float32)
    features[0, 0, 0, 0] *= zeros == 0
    both = np.zeros(2, np.float32)
    cone = Cone(features, errors, tokens, both, both)
    store.put_first_layer(np.array([[3.0, 0, 0], [4.0, 5.0, 0]]), np.ones(2), np.ones(2))
    for row, lane in ((2, 0), (3, 1)):
        store.put_cone(cone, np.array([row]), np.array([lane]), np.ones(1, np.float32))
    wanted = np.zeros((4, 3 + 6 + 3), np.float32)
    wanted[0, 9], wanted[1, 9:11] = 3, (4, 5)
    for row, lane in ((2, 0), (3, 1)):
        for m, t in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
            inside = m < layer[row] and t <= pos[row] and (m < layer[row] - 1 or not direct[row] or t == pos[row])
            if inside and live[m, t]:
                wanted[row, 3 + 3 * m + t] = errors[m, t, lane]
            for number in np.flatnonzero((layer[:3] == m) & (pos[:3] == t)) if inside else ():
                wanted[row, number] = features[m, t, lane, 0]
        wanted[row, 9 : 10 + pos[row]] = tokens[: pos[row] + 1, lane]
    return store, wanted


@pytest.mark.parametrize("zeros", [0, 1])
def test_blocks_go_where_the_layout_says(zeros):
    store, wanted = filled(np.random.default_rng(3), zeros)
    start, source, weight = store.edges()
    got = np.zeros_like(wanted)
    got[np.repeat(np.arange(4), np.diff(start)), source] = weight
    np.testing.assert_array_equal(got, wanted)
    assert len(weight) == (wanted != 0).sum()


def test_precision_is_checked_and_kept():
    graph = traced("llama", precision="default", max_features=20)
    assert graph.settings["precision"] == "default"
    with pytest.raises(tc.InputError, match="precision='half'; there are highest, high, default"):
        traced("llama", precision="half")
