"""The stored graphs of circuit-tracer 0.5.0: adjacency, masks, scores, and its way to choose features."""

from functools import cache

import jax
import numpy as np
import pytest

from tcircuits.attribution.attribute import attribute
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.prune import prune, scores
from tcircuits.attribution.reference_selection import restrict_like_reference
from tcircuits.attribution.specify import Direction

from .. import bridge
from ..reference import golden
from . import compare

QUICK = {
    "gpt2-plt-relu", "gpt2-plt-relu-ranked", "gpt2-clt-jumprelu", "llama-plt-skip", "llama-plt-skip-direction",
    "llama-clt-relu", "llama-clt-relu-ranked", "neox-plt-topk-signed", "gemma2-plt-topk-signed",
}  # fmt: skip
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in golden.NAMES]


@cache
def traced(name: str, **options) -> tuple[Graph, dict[str, np.ndarray]]:
    case, made = golden.load(name)
    targets = Direction(made["vector"]) if "vector" in made else None
    with jax.enable_x64(True):
        m, d = bridge.both(case)
        options = {"max_n_logits": 5, "position_zero": "constant", "chunk": 128, **options}
        return attribute(m, d, case.tokens, targets=targets, **options), made


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_graph_that_it_made(name):
    graph, made = traced(name)
    np.testing.assert_array_equal(graph.features, made["active_features"])
    np.testing.assert_allclose(graph.activations, made["activations"], rtol=0, atol=1e-12)
    if "vector" not in made:
        assert [t.token for t in graph.targets] == made["target_ids"].tolist()
    np.testing.assert_allclose(graph.target_weights, made["weights"], rtol=0, atol=1e-12)
    assert graph.max_row_gap <= 1e-13
    if "max_feature_nodes" in made:
        every = graph
        queue = int(made["batch_size"] * made["update_interval"])
        graph = restrict_like_reference(graph, int(made["max_feature_nodes"]), queue)
        np.testing.assert_array_equal(graph.features, every.features[made["selected"]])
        assert graph.n_active == every.n_features > graph.n_features
        np.testing.assert_allclose(graph.row_sums()[0], graph.row_value, atol=1e-12)
    A = made["adjacency"]
    assert (np.abs(graph.dense() - A).max(1) <= 1e-11 * np.abs(A).sum(1)).all()
    compare_pruned(graph, made)


def compare_pruned(graph: Graph, made: dict[str, np.ndarray]) -> None:
    """Masks, cumulative shares and both scores."""
    for label, thresholds in (("", (0.8, 0.98)), ("_tight", (0.98, 0.4))):
        pruned = prune(graph, *thresholds)
        np.testing.assert_array_equal(pruned.node_mask, made[f"node_mask{label}"])
        np.testing.assert_array_equal(compare.dense_edges(pruned), made[f"edge_mask{label}"])
        n = graph.n_sources
        np.testing.assert_allclose(pruned.cumulative[:n], made["cumulative"][:n], rtol=0, atol=1e-11)
    found = scores(graph)
    np.testing.assert_allclose([found.replacement, found.completeness], made["scores"], rtol=0, atol=1e-11)


def test_selection_reference_is_that_rule():
    """Through `attribute`, with its own queue, which takes all that is asked for in one round."""
    name = "gpt2-plt-relu-ranked"
    (every, made), (graph, _) = traced(name), traced(name, max_features=30, selection="reference")
    expected = restrict_like_reference(every, 30)
    assert len(expected.features) == 30
    for field in ("features", "source", "weight", "influence", "row_tail"):
        np.testing.assert_array_equal(getattr(graph, field), getattr(expected, field))
    assert not np.array_equal(expected.features, every.features[made["selected"]])  # its rounds were of another size
