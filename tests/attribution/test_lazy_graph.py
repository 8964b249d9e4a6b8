"""The graph of a set that stays on disk is the graph of the same set in memory."""

import dataclasses
from functools import cache

import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_model
from tcircuits.attribution.promote import promoted
from tcircuits.types import InputError

from .lazy_sets import CASES, make

SLOW = ("jumprelu", "topk", "clt wide")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, set in memory, the same on disk, tokens) by name; each made once."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp("lazy") / "saved"))


def assert_same(a: tc.Graph, b: tc.Graph) -> None:
    """The same nodes; numbers to rounding. Rows are those of other programs, so sums may be taken in another order."""
    for name in ("model", "transcoders", "prompt", "token_text", "n_layers", "n_active"):
        assert getattr(a, name) == getattr(b, name)
    assert {**a.settings, "scores": None} == {**b.settings, "scores": None}
    assert a.settings["scores"] == pytest.approx(b.settings["scores"], rel=1e-4)
    np.testing.assert_array_equal(a.features, b.features)
    assert [dataclasses.replace(t, prob=0, weight=0) for t in a.targets] == [
        dataclasses.replace(t, prob=0, weight=0) for t in b.targets
    ]
    # Edges are sums of products over the width and the attention paths: float32's 6e-8 of a row's mass, times the
    # square root of some thousand terms.
    mass = a.row_sums()[1][:, None]
    size = np.zeros((a.n_nodes, 1))
    size[a.row_nodes] = mass
    assert (np.abs(a.dense() - b.dense()) <= 4e-6 * size).all()
    np.testing.assert_allclose(a.activations, b.activations, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.influence, b.influence, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(a.row_unexpanded, b.row_unexpanded, atol=4e-6 * mass.max())
    assert b.max_row_gap < 1e-6


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_the_graph_is_that_of_the_whole_set(made, name):
    model, full, lazy, tokens = made(name)
    a, b = (tc.attribute(model, d, tokens, targets=[3, 5]) for d in (full, lazy))
    assert a.n_features > 20
    assert b.features[:, 2].max() > 64, "numbers are those of the whole set"
    assert_same(a, b)
    assert (tc.prune(a).node_mask == tc.prune(b).node_mask).all()


def test_the_same_features_are_selected(made):
    model, full, lazy, tokens = made("jumprelu")
    a, b = (tc.attribute(model, d, tokens, max_features=30, position_zero="constant") for d in (full, lazy))
    assert a.n_features == 30 < a.n_active
    assert (a.features[:, 1] > 0).all()
    assert_same(a, b)


def test_features_as_targets_have_their_numbers_in_the_whole_set(made):
    model, full, lazy, tokens = made("topk signed")
    layer, pos, index = tc.attribute(model, full, tokens, targets=[3]).features[-1].tolist()
    spec = tc.Feature(layer, pos, index)
    a, b = (tc.attribute(model, d, tokens, targets=[spec]) for d in (full, lazy))
    assert b.targets[0].label == f"L{layer} f{index} @{pos}"
    assert_same(a, b)
    absent = tc.Feature(layer, pos, next(i for i in range(120) if i not in set(a.features[:, 2].tolist())))
    messages = []
    for d in (full, lazy):
        with pytest.raises(InputError, match=rf"feature {absent.index} of layer {layer} is not active") as error:
            tc.attribute(model, d, tokens, targets=[absent])
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", ["clt", "some layers"])
def test_what_features_promote(made, name):
    model, full, lazy, tokens = made(name)
    graph = tc.prune(tc.attribute(model, full, tokens, targets=[3, 5]))
    a, b = (promoted(model, d, graph, k=3) for d in (full, lazy))
    assert a.keys() == b.keys()
    for node in a:
        for x, y in zip(a[node], b[node], strict=True):
            assert [token for token, _ in x] == [token for token, _ in y]
            np.testing.assert_allclose([v for _, v in x], [v for _, v in y], atol=2e-5)


@pytest.mark.slow
def test_several_prompts_are_read_once(made, monkeypatch):
    from tcircuits.attribution import narrowing

    model, full, lazy, tokens = made("jumprelu")
    calls, once = [], narrowing.narrow
    monkeypatch.setattr(narrowing, "narrow", lambda *a: calls.append(1) or once(*a))
    prompts = [tokens, tokens[::-1].copy(), tokens[:4]]
    whole = tc.attribute_batch(model, full, prompts, max_features=20)
    some = tc.attribute_batch(model, lazy, prompts, max_features=20)
    assert calls == [1]
    for a, b in zip(whole, some, strict=True):
        assert_same(a, b)


def test_steering_reads_one_row(made):
    for name, layer, feature in (("clt", 1, 101), ("jumprelu", 3, 119)):
        model, full, lazy, _ = made(name)
        a, b = (tc.steer(model, d, layer, feature, 2.0) for d in (full, lazy))
        assert len(a) == len(b) == (3 if name == "clt" else 1)
        for x, y in zip(a, b, strict=True):
            assert x.site == y.site
            np.testing.assert_array_equal(x.layer, y.layer)
            np.testing.assert_array_equal(x.value, y.value)
        with pytest.raises(InputError, match="features 0"):
            tc.steer(model, lazy, layer, 300, 2.0)


def test_interventions_need_the_whole_set(made):
    model, _, lazy, tokens = made("jumprelu")
    with pytest.raises(InputError, match="load them whole"):
        tc.intervene(model, lazy, tokens, tc.feature_edit(1, 5, 2.0))


def test_another_model_is_refused(made):
    _, _, lazy, tokens = made("jumprelu")
    with pytest.raises(InputError, match="do not fit the model"):
        tc.attribute(random_model("llama", n_layers=3), lazy, tokens)


def test_stages_and_progress(made):
    model, _, lazy, tokens = made("jumprelu")
    times, seen = tc.Timings(), []
    graph = tc.attribute(
        model, lazy, tokens, targets=[3, 5], timings=times, progress=lambda done, of: seen.append((done, of))
    )
    assert times.keys() == {"encode", "forward", "select", "attribute", "influence", "compile"}
    blocks = 4 * 3
    assert seen[:blocks] == [(i + 1, blocks) for i in range(blocks)]
    assert seen[blocks:] == [(i + 1, len(seen) - blocks) for i in range(len(seen) - blocks)]
    assert graph.n_features
