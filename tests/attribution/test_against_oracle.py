"""Whole graphs equal the oracle's: features, edges, biases and values, for every family and kind of dictionary."""

import jax
import numpy as np
import pytest

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.specify import Difference, Logit

from .. import bridge
from ..reference import attribution as at
from ..reference import builders
from . import compare

TABLE = [(f, d) for f in builders.PUBLISHED for d in builders.ACCEPTANCE]
MORE = [
    ("relu", "plt-raw"), ("relu", "some-filled"), ("relu", "some-layers"), ("relu", "plt-topk-signed"),
    ("gemma2", "plt-raw"), ("gemma2", "some-filled"), ("neox", "some-filled"), ("gemma2", "plt-normalized"),
    ("llama", "plt-batchtopk"), ("gemma2", "plt-resid"), ("gpt2", "plt-resid"), ("gpt2", "clt-skip"),
    ("toy", "plt-relu"), ("encoder", "neurons"), ("llama", "plt-topk-margin"),
]  # fmt: skip
QUICK = [
    ("gpt2", "plt-relu"), ("neox", "clt-jumprelu"), ("llama", "plt-jumprelu"), ("llama", "clt-relu"),
    ("gemma2", "neurons"), ("gemma2", "plt-skip"), ("gemma2", "plt-raw"), ("relu", "some-filled"),
    ("relu", "plt-topk-signed"), ("toy", "plt-relu"), ("gemma3", "neurons"),
]  # fmt: skip
SINGLE = [(f, d) for f in builders.PUBLISHED for d in builders.ACCEPTANCE]
QUICK_SINGLE = [("gpt2", "neurons"), ("gpt2", "clt-relu"), ("neox", "plt-relu"), ("llama", "plt-skip")]
CONSTANTS = {
    "gpt2": ("b_v", "b_o", "norm1", "norm2", "final_norm", "pos_embed", "b_enc", "b_dec"),
    "llama": ("b_enc", "b_dec"),
    "relu": ("b_v", "b_o", "norm1", "norm1_post", "norm2", "final_norm", "b_unembed", "b_dec"),
}


def rows_of(table, quick):
    """The table, with all that is not in `quick` marked slow: each entry is two or three programs to compile.

    Of the acceptance table all but a covering part is marked exhaustive.
    """
    assert set(quick) <= set(table)
    rest = set(TABLE) - set(builders.covering()) - set(quick)
    marks = {
        entry: [pytest.mark.exhaustive] * (entry in rest) + [pytest.mark.slow] * (entry not in quick) for entry in table
    }
    return [pytest.param(*entry, marks=marks[entry]) for entry in table]


@pytest.mark.parametrize(("family", "name"), rows_of(TABLE + MORE, QUICK))
def test_float64(family, name):
    for zero in ("attribute", "constant"):
        both, graph = compare.oracle(family, name, zero), compare.traced(family, name, zero)
        size = compare.row_sizes(both.a)
        assert max(compare.gaps(graph, both.a, size).values()) <= 1e-11
        if (family, name) in TABLE:
            assert graph.max_row_gap <= 1e-13
        np.testing.assert_allclose(graph.target_weights, both.a.weights, rtol=1e-12)
        # What rounding leaves is far below even that, once rows that cancel within one dot product are set apart.
        size = np.maximum(size, compare.products(both.here, both.targets))
        assert max(compare.gaps(graph, both.a, size).values()) <= 1e-14
        assert (compare.row_gaps(graph) <= 1e-14 * size).all()
        assert not graph.settings["overflow"]
        assert graph.n_active == both.a.n_features > 10


@pytest.mark.parametrize(("family", "name"), rows_of(SINGLE, QUICK_SINGLE))
def test_float32(family, name):
    both, graph = compare.oracle(family, name), compare.traced(family, name, dtype="float32")
    assert graph.weight.dtype == np.float32
    assert graph.max_row_gap <= 1e-6
    size = np.maximum(compare.row_sizes(both.a), compare.products(both.here, both.targets))
    assert max(compare.gaps(graph, both.a, size).values()) <= 1e-6


@pytest.mark.parametrize(("family", "name"), [(f, c) for f, cs in CONSTANTS.items() for c in cs])
def test_every_constant_is_in_the_bias(family, name):
    """Without any one of the constants the oracle's bias is another, and with it the sum of our row."""
    kind = "plt-jumprelu" if family == "llama" else "plt-topk-signed" if family == "relu" else "plt-relu"
    both, graph = compare.oracle(family, kind), compare.traced(family, kind)
    less, _ = at.constants(both.here, both.targets, both.here.frozen, name)
    size = compare.row_sizes(both.a)
    assert (np.abs(graph.bias - less) / size).max() > 1e-4
    short = graph.dense().sum(1) + less - graph.values
    assert (np.abs(short) / size).max() > 1e-4


@pytest.mark.parametrize(("family", "name"), [("gpt2", "plt-relu"), ("llama", "clt-relu"), ("gemma2", "neurons")])
def test_every_source_is_in_a_sum(family, name):
    graph = compare.traced(family, name)
    size = np.zeros(graph.n_nodes)
    size[graph.row_nodes] = graph.row_sums()[1]
    share = np.abs(graph.dense()) / np.where(size > 0, size, 1.0)[:, None]
    silent = np.flatnonzero(share.max(0)[: graph.n_sources] <= 1e-6)
    # What the last layer wrote where no target looks reaches nothing, and neurons leave no error.
    looked_at = {t.pos for t in graph.targets if t.layer == graph.n_layers}
    for s in silent:
        layer, p = graph.features[s][:2] if s < graph.n_features else divmod(s - graph.n_features, len(graph.tokens))
        assert s < graph.n_features + graph.n_errors
        assert (layer == graph.n_layers - 1 and p not in looked_at) or (name == "neurons" and s >= graph.n_features)


@pytest.mark.parametrize(("family", "name"), [("gpt2", "plt-relu"), ("neox", "clt-jumprelu"), ("llama", "clt-relu")])
def test_edges_go_up_and_forward(family, name):
    graph = compare.traced(family, name)
    n, (layer, position, _) = graph.n_features, graph.features.T
    A = graph.dense()
    allowed = (layer[:, None] > layer) & (position[:, None] >= position)
    if family == "neox":  # parallel blocks: the next layer's features read the stream before its attention
        allowed &= (position[:, None] == position) | (layer[:, None] > layer + 1)
    assert not A[:n, :n][~allowed].any()
    assert np.abs(A[:n, :n][allowed]).min() > 0
    assert not A[n : graph.n_sources].any()


def test_two_runs_are_equal_bit_for_bit():
    both, first = compare.oracle("gpt2", "plt-relu"), compare.traced("gpt2", "plt-relu")
    second = compare.trace(both.case, both.targets, "attribute")
    for name in ("features", "activations", "source", "weight", "row_bias", "row_value", "influence"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), strict=True)


def test_a_difference_of_logits_is_that_direction():
    """Its labels differ, its row does not; and it is the difference of the rows of both logits, with any demeaning."""
    both, graph = compare.oracle("llama", "clt-relu"), compare.traced("llama", "clt-relu")
    row = next(i for i, t in enumerate(graph.targets) if t.kind == "direction" and t.pos == 3)
    with jax.enable_x64(True):
        m, d = bridge.both(both.case)
        wanted = [Difference(7, 4, 3), Logit(7, -3), Logit(4, 3)]
        made = attribute(m, d, both.case.tokens, targets=wanted, position_zero="nodes", chunk=128)
    A, n = made.dense(), made.n_sources
    size = np.abs(A[n:]).sum(1).max()
    np.testing.assert_allclose(A[n, :n], graph.dense()[graph.n_sources + row, :n], atol=1e-13 * size)
    np.testing.assert_allclose(A[n], A[n + 1] - A[n + 2], atol=1e-13 * size)
    assert [(t.kind, t.token, t.pos) for t in made.targets] == [
        ("difference", None, 3),
        ("logit", 7, 3),
        ("logit", 4, 3),
    ]
    assert made.targets[0].label == "#7 - #4"
