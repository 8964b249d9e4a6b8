"""Intervals and comparisons at equal L0 against closed forms."""

import dataclasses

import numpy as np
import pytest

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.evaluation.compare import compare, mixture
from tcircuits.transcoders.evaluation.intervals import interval, resampled, weights
from tcircuits.transcoders.evaluation.measure import LayerSums
from tcircuits.transcoders.evaluation.results import Evaluation, Losses
from tcircuits.types import InputError

N_ROWS, CONTEXT, F, D = 400, 12, 8, 3
RNG = np.random.default_rng(0)
TEXT = RNG.normal(4.0, 1.0, N_ROWS)  # how hard each row is: shared by all evaluations


def made(l0, ce, noise=0.0, layers=(0, 1), corpus="rows", seed=0, ablated=2.0):
    """An evaluation with these L0 and changes of CE by set of layers; `noise` is of the changes, by row."""
    n = len(layers)
    n_positions = N_ROWS * (CONTEXT - 1)
    rng = np.random.default_rng(seed)
    plain, wide = np.ones(n), np.ones((n, F))
    sums = LayerSums(plain, plain, np.zeros((n, D)), plain, np.zeros((n, D)), plain, plain, plain,
                     np.asarray(l0) * n_positions, wide, wide)  # fmt: skip
    changes = np.stack([c + noise * rng.normal(size=N_ROWS) for c in ce])
    lost = TEXT + np.stack([changes, np.full_like(changes, ablated), np.full_like(changes, 0.5 * ablated)])
    cfg = TranscoderConfig("transcoder", 2, D, F, layers)
    about = {"keep_first": True, "precision": "highest", "draws": 400, "seed": 0, "corpus": corpus}
    sets = tuple((i,) for i in layers)
    return Evaluation(model="m", dictionary="d", cfg=cfg, about=about, n_rows=N_ROWS, context=CONTEXT, sets=sets,
                      sums=sums, largest=wide, losses=Losses(TEXT, lost, 0 * lost, 0 * lost + 1))  # fmt: skip


def test_weights_are_counts_of_draws():
    w = np.concatenate(list(weights(7, 250, seed=3)))
    assert w.shape == (250, 7)
    np.testing.assert_allclose(w.sum(1), 1)
    np.testing.assert_allclose(w * 7, np.round(w * 7), atol=1e-12)
    np.testing.assert_allclose(w.mean(0), 1 / 7, atol=5 * np.sqrt(6 / 7 / 7 / 250))
    np.testing.assert_array_equal(w, np.concatenate(list(weights(7, 250, seed=3))))


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    x = RNG.normal(2.0, 3.0, 1000)
    got = interval(x.mean(), resampled(x, 4000, 1), len(x))
    half = 1.959964 * x.std() / np.sqrt(len(x))
    assert got.value == x.mean()
    np.testing.assert_allclose([got.low, got.high], [x.mean() - half, x.mean() + half], atol=0.08 * half)
    assert got.excludes_zero
    assert not interval(0.0, resampled(x - x.mean(), 100), len(x)).excludes_zero


def test_a_single_row_has_no_interval():
    one = interval(3.0, np.full(10, 3.0), 1)
    assert (one.value, one.low, one.high, one.excludes_zero) == (3.0, None, None, False)


def test_intervals_of_an_evaluation_are_paired_by_row():
    """Rows differ by 1 nat, the changes by 0.1: only the latter widens the interval of the change."""
    r = made([10, 10], [0.3, 0.6], noise=0.1).replacing((1,))
    half = 1.96 * 0.1 / np.sqrt(N_ROWS)
    delta, zero, mean = r.delta["dictionary"], r.recovered["zero"], r.recovered["mean"]
    assert delta.value == pytest.approx(0.6, abs=3 * half)
    assert delta.high - delta.low == pytest.approx(2 * half, rel=0.25)
    # (2 - change) / 2 and (1 - change) / 1: the interval is that of the change, divided by what the ablation costs
    for share, cost in ((zero, 2.0), (mean, 1.0)):
        assert share.value == pytest.approx(1 - delta.value / cost, rel=1e-9)
        np.testing.assert_allclose([share.low, share.high], 1 - np.array([delta.high, delta.low]) / cost, rtol=1e-9)


def test_no_loss_is_recovered_where_the_ablation_loses_none():
    r = made([10, 10], [0.3, 0.6], noise=0.1, ablated=0.0).replacing((0,))
    assert r.recovered == {"zero": None, "mean": None}
    told = made([10, 10], [0.3, 0.6], ablated=0.0).to_json()
    assert told["replaced"][0]["recovered"] == {"zero": None, "mean": None}


def test_interpolation_is_linear_in_log_l0():
    np.testing.assert_allclose(mixture([10, 40], 20), [0.5, 0.5])
    np.testing.assert_allclose(mixture([40, 10, 160], 80), [0.5, 0, 0.5])
    np.testing.assert_allclose(mixture([40, 10, 160], 40), [1, 0, 0])
    np.testing.assert_allclose(mixture([1, np.e**3], np.e), [2 / 3, 1 / 3])
    np.testing.assert_allclose(mixture([5, 5], 5), [0.5, 0.5])
    assert mixture([10, 40], 9.9) is None
    assert mixture([10, 40], 40.1) is None
    assert mixture([0, 40], 20) is None, "a set without active features has no logarithm"


def test_families_are_compared_where_their_l0_is_equal():
    """CE = a - b log L0 for both: the difference at equal L0 is that of a, and the same everywhere."""

    def family(a, seed, noise=0.05):
        return [made([x, 2 * x], [a - 0.1 * np.log(x), 2 * a - 0.1 * np.log(2 * x)], noise, seed=seed + i)
                for i, x in enumerate((5.0, 20.0, 80.0))]  # fmt: skip

    first = {s: family(1.0 + 0.02 * s, 10 * s) for s in (1, 2)}
    second = {s: family(1.1, 100 + 10 * s) for s in (1, 2, 3)}
    found = compare(first, second, l0=[10.0, 30.0], draws=400)
    assert {(p.layers, p.seed, p.l0) for p in found.pairs} == {
        ((i,), s, at) for i in (0, 1) for s in (1, 2) for at in (10.0, 30.0)
    }
    for p in found.pairs:
        expected = (1 + p.layers[0]) * (0.02 * p.seed - 0.1)
        assert p.difference.low < expected + 0.005
        assert p.difference.high > expected - 0.005
        assert p.difference.value == pytest.approx(expected, abs=0.012)
        assert p.difference.value == pytest.approx(p.ce[0] - p.ce[1], abs=1e-9)
        a = 1 + 0.02 * p.seed
        assert p.ce[0] - TEXT.mean() == pytest.approx((1 + p.layers[0]) * a - 0.1 * np.log(p.l0), abs=0.012)
    truth = np.mean([(1 + i) * (0.02 * s - 0.1) for i in (0, 1) for s in (1, 2)])
    assert found.overall.value == pytest.approx(truth, abs=0.01)
    assert found.overall.value == pytest.approx(np.mean([p.difference.value for p in found.pairs]), rel=1e-9)
    assert found.overall.low < found.overall.value < found.overall.high < 0
    assert found.skipped == ()


def test_the_middle_of_the_common_range_is_where_nothing_is_said():
    first = {0: [made([5, 5], [0.4, 0.4]), made([20, 20], [0.2, 0.2])]}
    second = {0: [made([10, 10], [0.5, 0.5]), made([40, 40], [0.3, 0.3])]}
    found = compare(first, second, draws=20)
    assert [p.l0 for p in found.pairs] == pytest.approx([np.sqrt(200)] * 2)
    ce = (0.4 - 0.2 * np.log(np.sqrt(200) / 5) / np.log(4), 0.5 - 0.2 * np.log(np.sqrt(200) / 10) / np.log(4))
    assert found.pairs[0].difference.value == pytest.approx(ce[0] - ce[1], rel=1e-9)
    assert found.overall.value == pytest.approx(ce[0] - ce[1], rel=1e-9)


def test_with_one_set_and_one_seed_only_rows_are_resampled():
    first = {0: [made([10, 10], [0.4, 0.4], noise=0.1, seed=1)]}
    second = {0: [made([10, 10], [0.6, 0.6], noise=0.1, seed=2)]}
    one = [{0: [dataclasses.replace(e, sets=((0,),), losses=Losses(e.losses.original, *(x[:, :1] for x in
            (e.losses.ce, e.losses.kl, e.losses.agree)))) for e in f[0]]} for f in (first, second)]  # fmt: skip
    found = compare(*one, draws=500)
    same = found.pairs[0].difference
    np.testing.assert_allclose([found.overall.value, found.overall.low], [same.value, same.low], rtol=1e-12)
    width = found.overall.high - found.overall.low
    assert width == pytest.approx(2 * 1.96 * 0.1 * np.sqrt(2 / N_ROWS), rel=0.25)


def test_ranges_that_do_not_meet_are_named():
    first, second = {0: [made([5, 5], [0.4, 0.4])]}, {0: [made([50, 5], [0.3, 0.3])]}
    found = compare(first, second, draws=10)
    assert [p.layers for p in found.pairs] == [(1,)]
    assert "layers [0], seed 0" in found.skipped[0]
    assert "5..5 and 50..50" in found.skipped[0]
    with pytest.raises(InputError, match="no L0 that both families reach"):
        compare(first, second, l0=[500.0], draws=10)


@pytest.mark.parametrize(
    ("first", "second", "options", "match"),
    [
        ({}, {}, {}, "nothing to compare"),
        ({0: [made([5, 5], [0, 0])]}, {0: [made([5, 5], [0, 0], corpus="others")]}, {}, "differ in corpus"),
        ({0: [made([5, 5], [0, 0])]}, {1: [made([5, 5], [0, 0])]}, {}, "no set of layers that all have"),
        ({0: [made([5], [0], layers=(0,))]}, {0: [made([5], [0], layers=(1,))]}, {}, "no set of layers"),
        ({0: [made([5, 5], [0, 0])]}, {0: [made([5, 5], [0, 0])]}, {"l0": [0.0]}, "numbers above 0"),
    ],
)
def test_what_cannot_be_compared(first, second, options, match):
    with pytest.raises(InputError, match=match):
        compare(first, second, **options)


def test_models_that_differ_are_refused():
    e = made([5, 5], [0, 0])
    with pytest.raises(InputError, match="different models"):
        compare({0: [e]}, {0: [dataclasses.replace(e, model="other")]})
