"""Measures worked by hand, their identities, and tests whose answer is known."""

import numpy as np
import pytest
from scipy.stats import binom

from tcircuits.circuits import metrics
from tcircuits.types import InputError


def test_faithfulness_and_its_interval_by_hand():
    full, none = np.array([4.0, 2.0, 6.0, 4.0]), np.array([0.0, -2.0, 2.0, 0.0])
    circuits = np.array([[4.0, 2.0, 6.0, 4.0], [2.0, 0.0, 4.0, 2.0], [0.0, -2.0, 2.0, 0.0], [6.0, 4.0, 8.0, 6.0]])
    np.testing.assert_allclose(metrics.faithfulness(circuits, full, none), [1, 0.5, 0, 1.5])
    found = metrics.faithful(circuits[1], full, none)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))  # the same ratio in every draw
    uneven = metrics.faithful(np.array([4.0, -2.0, 6.0, 0.0]), full, none, draws=4000)
    assert uneven.value == pytest.approx(0.5)
    # prompts give 1, 0, 1, 0 and the denominator is 4 in every draw: a binomial share of 4
    assert (uneven.low, uneven.high) == (binom.ppf(0.025, 4, 0.5) / 4, binom.ppf(0.975, 4, 0.5) / 4)


def test_all_and_nothing_must_differ():
    with pytest.raises(InputError, match="too small to divide by"):
        metrics.check_range(np.array([2.0, 2.1]), np.array([2.0, 2.0]))
    metrics.check_range(np.array([2.0, 2.1]), np.array([-2.0, -2.0]))


def test_phi_and_agreement_by_hand():
    right, model_right = np.array([1, 1, 0, 0, 1], bool), np.array([1, 1, 1, 1, 0], bool)
    assert metrics.preserved(right, model_right).value == pytest.approx(3 / 4)
    with pytest.raises(InputError, match="right on no prompt"):
        metrics.preserved(right, np.zeros(5, bool))
    choice, own = np.array([3, 4, 5, 9, 7]), np.array([3, 4, 6, 8, 7])
    ok = metrics.agreement(choice, own, model_right)
    assert (ok.n, ok.share.value) == (4, 0.5)
    few = metrics.agreement(choice, own, ~model_right, least=2)
    assert (few.n, few.share) == (1, None)


def test_areas_and_their_identities():
    x = np.asarray(metrics.SHARES)
    assert metrics.areas(np.ones(10), x) == pytest.approx({"CPR": 0.999, "CMD": 0.0})
    assert metrics.areas(np.zeros(10), x) == pytest.approx({"CPR": 0.0, "CMD": 0.999})
    assert metrics.areas(x, x) == pytest.approx({"CPR": (1 - 1e-6) / 2, "CMD": 0.999 - (1 - 1e-6) / 2})
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = metrics.areas(rng.normal(0.7, 1.0, 10), x)
        assert found["CPR"] + found["CMD"] >= 0.999 - 1e-12
        assert found["CMD"] >= abs(found["CPR"] - 0.999) - 1e-12


def test_nested_circuits():
    scores = np.array([0.5, -2.0, 1.0, 0.0])
    np.testing.assert_array_equal(metrics.nested(scores, [1, 3], signed=True), [[0, 0, 1, 0], [1, 0, 1, 1]])
    np.testing.assert_array_equal(metrics.nested(scores, [1, 3], signed=False), [[0, 1, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(metrics.counts_of((0.001, 0.1, 0.26, 1), 10), [1, 1, 3, 10])


def test_random_circuits_have_the_same_profile():
    groups, mask = np.repeat([0, 1, 2], [4, 10, 6]), np.zeros(20, bool)
    mask[[0, 5, 6, 7]] = True
    drawn = metrics.matched(mask, groups, 400, seed=1)
    np.testing.assert_array_equal([[row[groups == g].sum() for g in range(3)] for row in drawn], [[1, 3, 0]] * 400)
    share = drawn[:, 4:14].mean(0)
    assert np.abs(share - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_p_values():
    assert metrics.share_above(2.0, np.array([1.0, 3.0, 2.0])) == pytest.approx(3 / 4)
    full = np.zeros(10)
    wins = np.r_[np.ones(8), -1.0, 0.0]  # 8 wins of 9: two-sided 20 / 512
    assert metrics.equivalence(wins, full) == pytest.approx(20 / 512)
    assert metrics.equivalence(full, full) == 1.0
    rng = np.random.default_rng(2)
    x = rng.normal(size=60)
    assert (
        metrics.independence(x**2 + 0.1 * rng.normal(size=60), x, turns=200) < 0.02
    )  # not correlated, not independent
    p = [metrics.independence(rng.normal(size=40), rng.normal(size=40), turns=100, seed=i) for i in range(30)]
    assert 0.25 < np.mean(p) < 0.75
