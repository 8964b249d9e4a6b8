"""Backward elimination keeps what it promises: near to the model, nothing more can go, one of two that stand in."""

from dataclasses import replace

import numpy as np
import pytest

from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

from .cases import random_behaviour
from .test_running import sized

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize(("over", "ablation"), [("worst", "resample"), ("mean", "mean")])
def test_the_circuit_is_within_the_tolerance_and_no_single_edge_could_go(over, ablation, x64):
    model = sized("gpt2")
    edges, behaviour, tolerance = edges_of(model.cfg), random_behaviour(model), 0.05
    found = eliminate(model, behaviour, edges, tolerance=tolerance, over=over, ablation=ablation)
    inside = np.flatnonzero(found.mask)
    assert 0 < len(inside) < edges.n
    masks = np.repeat(found.mask[None].astype(float), len(inside) + 1, 0)
    masks[np.arange(len(inside)) + 1, inside] = 0
    runs = run_circuits(model, behaviour, masks, edges, ablation=ablation, split="attribution")
    costs = getattr(runs.circuits.kl, {"worst": "max", "mean": "mean"}[over])(axis=1)
    assert costs[0] <= tolerance < costs[1:].min()
    np.testing.assert_allclose(found.scores[inside], costs[1:], rtol=1e-5)
    assert not found.scores[~found.mask].any()


def test_the_planted_circuit_is_found_with_few_runs(planted):
    model, behaviour = planted
    edges = edges_of(model.cfg)
    found = eliminate(model, behaviour, edges)
    assert set(found.labels()) == {"embed -> head 0.1 v", "head 0.1 -> logits"}
    assert found.about["cost"]["forwards"] / behaviour["attribution"].n < 2 + 3 * 2 * (1 + np.log2(edges.n))
    heads = eliminate(model, behaviour, units_of(model.cfg, ("head", "mlp")), over="mean")
    assert heads.labels() == ["head 0.1"]


def test_of_two_heads_that_do_the_same_the_one_with_the_higher_score_stays(planted):
    """Both heads say the answer clearly enough alone: neither matters by itself, one of them must stay."""
    model, behaviour = planted
    attn = model.params.blocks.attn
    w_v, w_o = attn.w_v.at[:, :, 0].set(attn.w_v[:, :, 1]), attn.w_o.at[:, 0].set(attn.w_o[:, 1])
    blocks = replace(model.params.blocks, attn=replace(attn, w_v=w_v, w_o=w_o))
    model = replace(model, params=replace(model.params, blocks=blocks))
    units = units_of(model.cfg, ("head", "mlp"))
    for first in (0, 1):
        scores = np.zeros(units.n)
        scores[1 - first] = 1.0
        found = eliminate(model, behaviour, units, tolerance=0.5, scores=scores, ablation="zero")
        assert found.labels() == [f"head 0.{1 - first}"]


def test_what_cannot_be_is_refused(planted):
    model, behaviour = planted
    edges = edges_of(model.cfg)
    for given, words in (
        ({"tolerance": 0.0}, "positive"),
        ({"over": "best"}, "'best'"),
        ({"scores": np.zeros(3)}, "one a unit"),
        ({"scores": np.full(edges.n, np.nan)}, "finite"),
        ({"ablation": "none"}, "ablation 'none'"),
    ):
        with pytest.raises(InputError, match=words):
            eliminate(model, behaviour, edges, **given)
