"""Graphs of which only some features are expanded: the rest are leaves with exact sums, and the rule that chooses."""

from functools import cache

import numpy as np
import pytest

from tcircuits.attribution.graph import Graph
from tcircuits.attribution.prune import scores
from tcircuits.types import InputError

from ..reference import attribution as at
from ..reference import graph as gr
from ..tiers import tiered
from . import compare

CASES = [("gpt2", "clt-skip", "influence"), ("llama", "neurons", "effect"), ("gemma2", "plt-raw", "influence")]


@cache
def part(family: str, name: str, rule: str, n: int) -> tuple[Graph, at.Attribution, np.ndarray]:
    """The package's partial graph, the oracle's full one, and which features are in the first."""
    both = compare.oracle(family, name)
    graph = compare.trace(both.case, both.targets, "attribute", max_features=n, selection=rule)
    number = {tuple(f): i for i, f in enumerate(both.a.features.tolist())}
    return graph, both.a, np.array([number[tuple(f)] for f in graph.features.tolist()])


def third(family: str, name: str) -> int:
    return compare.oracle(family, name).a.n_features // 3


@pytest.mark.parametrize(("family", "name", "rule"), tiered(CASES, CASES[:2]))
def test_edges_leaves_and_scores_are_the_oracle_s(family, name, rule):
    n = third(family, name)
    graph, a, keep = part(family, name, rule, n)
    assert graph.n_features == n < graph.n_active == a.n_features
    assert (np.diff(keep) > 0).all()
    small, signed, mass = at.restrict(a, keep)
    size = compare.row_sizes(a)[np.r_[keep, a.n_features : len(a.A)]]
    assert max(compare.gaps(graph, small, size).values()) <= 1e-12
    assert (np.abs(graph.unexpanded - signed).max((1, 2)) <= 1e-12 * size).all()
    assert (np.abs(compare.mass_of(graph) - mass).max((1, 2)) <= 1e-12 * size).all()
    assert (mass.sum((1, 2)) / size).max() > 0.1
    assert graph.max_row_gap <= 1e-13
    strength = gr.node_influence(small.A, small.weights, mass)
    np.testing.assert_allclose(graph.influence, strength[: graph.n_sources], rtol=1e-9, atol=1e-13)
    want, got = gr.scores(small.A, small.weights, compare.sizes_of(small), mass), scores(graph)
    for field in ("replacement", "completeness", "completeness_inputs"):
        assert getattr(got, field) == pytest.approx(getattr(want, field), rel=1e-10)
    assert graph.influence_unexpanded.sum() == pytest.approx(want.unexpanded, rel=1e-10)
    assert 0 < got.unexpanded_share < 1


@pytest.mark.parametrize(("family", "name", "rule"), tiered(CASES, CASES[:2]))
def test_without_the_leaves_rows_do_not_balance(family, name, rule):
    graph, _, _ = part(family, name, rule, third(family, name))
    signed, size = graph.row_sums()
    short = np.abs(signed - graph.row_unexpanded.sum((1, 2)) - graph.row_value) / size
    assert short.max() > 1e-2


def total_effects(a: at.Attribution) -> np.ndarray:
    """Weighted |a_s d value_t / d a_s| through the whole frozen network, features passing it on linearly."""
    n, k = a.n_features, len(a.targets)
    direct = a.A[:, :n] / a.activations
    through = np.linalg.inv(np.eye(n) - direct[:n])
    return a.weights @ np.abs(direct[len(a.A) - k :] @ through * a.activations)


def test_the_rule_effect_takes_the_largest_total_effects():
    family, name, rule = CASES[1]
    _, a, keep = part(family, name, rule, third(family, name))
    score = total_effects(a)
    np.testing.assert_array_equal(keep, np.sort(np.argsort(-score, kind="stable")[: len(keep)]))
    # Not what direct effects alone would choose.
    direct = a.weights @ np.abs(a.A[len(a.A) - len(a.targets) :, : a.n_features])
    assert set(np.argsort(-direct)[: len(keep)]) != set(keep)


@pytest.mark.parametrize(
    ("family", "name"), tiered([("gpt2", "clt-skip"), ("gemma2", "plt-raw")], [("gpt2", "clt-skip")])
)
def test_the_rule_influence_captures_most_of_what_can_be_captured(family, name):
    _, a, keep = part(family, name, "influence", third(family, name))
    strength = gr.node_influence(a.A, a.weights)[: a.n_features]
    best = np.sort(strength)[::-1][: len(keep)].sum()
    assert strength[keep].sum() >= 0.95 * best


def test_all_features_asked_for_is_the_full_graph():
    both = compare.oracle("gpt2", "clt-skip")
    full = compare.traced("gpt2", "clt-skip")
    same = compare.trace(both.case, both.targets, "attribute", max_features=10**6)
    np.testing.assert_array_equal(same.weight, full.weight)
    assert not same.row_unexpanded_abs.any()


def test_a_target_that_is_not_active_is_refused():
    both = compare.oracle("gpt2", "clt-skip")
    values = both.here.values[1]
    p, f = np.argwhere(values == 0)[0]
    with pytest.raises(InputError, match=rf"feature {f} of layer 1 is not active at position {p} \(\d+ others are\)"):
        compare.trace(both.case, [at.Target("feature", int(p), layer=1, feature=int(f))], "attribute")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_features": 0}, "max_features=0"),
        ({"selection": "best"}, "selection='best'; there are influence, effect, reference"),
        ({"memory_gb": 1e-6}, "give max_features"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    both = compare.oracle("gpt2", "clt-skip")
    with pytest.raises(InputError, match=message):
        compare.trace(both.case, both.targets, "attribute", **options)
