"""Searches against known effects: additive ones, units that stand in for each other, whole models; what is counted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tcircuits.circuits.affinity import symmetric
from tcircuits.circuits.group_search import How, group_search, single_search
from tcircuits.circuits.hierarchy import top_down
from tcircuits.circuits.meter import Meter, meter
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.traversal import survivors, traverse
from tcircuits.circuits.tree import from_levels, shuffled
from tcircuits.circuits.trimming import trim
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

from .cases import random_behaviour
from .test_hierarchy import communities
from .test_running import sized

N = 120


def tree(n=N, seed=0):
    weight, labels = communities([n // 4] * 4, seed=seed)
    return top_down(symmetric(csr_array(weight))), labels


def additive(effect, pairs=(), noise=0.0, prompts=8, seed=0):
    """m = sum of the effects of units kept; of a pair the effect is lost only with both."""
    rng, calls = np.random.default_rng(seed), []

    def run(masks):
        calls.append(masks.copy())
        value = masks @ effect + sum(w * (masks[:, a] | masks[:, b]) for a, b, w in pairs)
        return value[:, None] + noise * rng.normal(size=(len(masks), prompts))

    return Meter(run, len(effect)), calls


def planted(n=N, k=10, seed=0):
    rng = np.random.default_rng(seed)
    effect = np.zeros(n)
    effect[rng.choice(n, k, replace=False)] = 0.5 + rng.uniform(size=k)
    return effect / effect.sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from(["whole", "left"]), st.booleans())
def test_without_noise_the_planted_units_are_found_and_all_runs_are_counted(seed, k, base, signed):
    effect = planted(k=k, seed=seed)
    h = shuffled(tree()[0], seed)
    numbers = np.random.default_rng(seed).permutation(N)
    measure, calls = additive(effect)
    found = group_search(measure, h, numbers, How(10_000, 1e-4, base, signed), effect)
    assert set(found.order[:k]) == set(np.flatnonzero(effect))
    assert found.candidates[effect > 0].all()
    assert found.stopped == "done"
    assert found.spent == measure.spent == sum(map(len, calls))
    for members, d, se in found.sets:  # noiseless and additive, so every set's effect is the sum over its units
        assert d == pytest.approx(effect[members].sum(), abs=1e-12)
        assert se == pytest.approx(0, abs=1e-12)
    leaf = h.size[h.leaves].max()
    assert (found.candidates.sum() <= k * leaf) & (found.spent < N or k > 5)


def test_the_effect_is_the_mean_difference_and_its_error_that_of_the_mean():
    effect = planted()
    measure, _ = additive(effect, noise=0.05, prompts=16)
    found = group_search(measure, tree()[0], np.arange(N), How(60, 0.01, "whole"))
    again, calls = additive(effect, noise=0.05, prompts=16)
    values = again.run(~np.array([np.isin(np.arange(N), m) for m, _, _ in found.sets[:4]]))
    lost = (measure.full - values) / (measure.full.mean() - measure.none.mean())
    assert len(calls) == 2
    for (_, d, se), row in zip(found.sets, lost, strict=False):
        assert d == pytest.approx(row.mean(), rel=1e-12)
        assert se == pytest.approx(row.std(ddof=1) / 4, rel=1e-12)
    assert found.spent <= 60
    assert found.stopped == "budget"


def branch_of(h, unit):
    return next(int(i) for i in h.kids(0) if unit in h.members(int(i)))


@pytest.mark.parametrize("across", [False, True])
def test_units_that_stand_in_for_each_other(across):
    h, effect = tree()[0], planted()
    leaf = next(h.members(int(i)) for i in h.leaves if h.size[i] > 1 and not effect[h.members(int(i))].any())
    other = next(u for u in range(N) if effect[u] == 0 and branch_of(h, u) != branch_of(h, leaf[0]))
    pair = (int(leaf[0]), int(other if across else leaf[1]), 0.3)

    def found_by(search):
        return search(additive(effect, [pair])[0])

    alone = found_by(lambda m: single_search(m, np.arange(N), budget=10_000))
    assert alone.density[[pair[0], pair[1]]] == pytest.approx(0, abs=1e-12)
    whole = found_by(lambda m: group_search(m, h, np.arange(N), How(10_000, 1e-3, "whole")))
    left = found_by(lambda m: group_search(m, h, np.arange(N), How(10_000, 1e-3, "left")))
    assert whole.candidates[[pair[0], pair[1]]].any() != across  # nothing but the root holds both
    assert left.candidates[[pair[0], pair[1]]].any()
    measure, _ = additive(effect, [pair])
    assert measure.faithfulness(left.candidates[None])[0] == pytest.approx(1, abs=0.05)
    circuit = trim(measure, left.order, [11], budget=10_000)
    assert circuit.masks[0, effect > 0].all()
    assert circuit.masks[0, [pair[0], pair[1]]].sum() == 1


def test_a_target_stops_the_search_and_negative_effects_count_only_unsigned():
    effect = planted() / 2
    effect[np.argmax(effect)] += 0.5  # one leaf stands out
    measure, _ = additive(effect)
    found = group_search(measure, tree()[0], np.arange(N), How(10_000, 1e-4, target=0.5, opened=1))
    assert found.stopped == "target"
    assert 0.5 <= effect[found.candidates].sum() < 1
    assert found.spent < group_search(additive(effect)[0], tree()[0], np.arange(N), How(10_000, 1e-4)).spent
    effect = planted()
    effect[np.flatnonzero(effect == 0)[0]] = -0.3
    bad = int(np.argmin(effect))
    for signed in (True, False):
        measure, _ = additive(effect)
        found = group_search(measure, shuffled(tree()[0], 5), np.arange(N), How(10_000, 1e-4, "whole", signed))
        assert found.candidates[bad] != signed


def test_large_leaves_are_measured_one_by_one():
    effect = planted()
    h = from_levels(N, [np.arange(N) % 3])
    measure, _ = additive(effect)
    found = group_search(measure, h, np.arange(N), How(10_000, 1e-4))
    assert set(found.order) == set(np.flatnonzero(effect))
    assert sorted({len(m) for m, _, _ in found.sets}) == [1, 40]
    prior = np.arange(N, 0, -1.0)  # what does not fit the budget is left; the prior says what goes first
    measure, _ = additive(effect)
    part = group_search(measure, h, np.arange(N), How(20, 1e-4, "whole"), prior)
    assert part.stopped == "budget"
    assert part.spent == 20
    singles = [int(m[0]) for m, _, _ in part.sets if len(m) == 1]
    assert len(singles) == 20 - 2 - 3
    assert singles == sorted(singles)
    assert len({i % 3 for i in singles}) == 1


def test_single_ablations_take_what_the_budget_allows():
    effect = planted()
    measure, calls = additive(effect)
    order = np.argsort(-effect, kind="stable")
    found = single_search(measure, order[::-1], budget=42, batch=16)
    assert found.spent == 42
    assert sum(map(len, calls)) == 42
    assert set(found.candidates.nonzero()[0]) == set(order[::-1][:40])
    np.testing.assert_allclose(found.density[order[::-1][:40]], effect[order[::-1][:40]], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_elimination_keeps_the_largest_effects_where_they_add_up(seed, k):
    rng = np.random.default_rng(seed)
    effect = rng.uniform(0.1, 1, size=40)
    effect /= effect.sum()
    measure, calls = additive(effect)
    found = trim(measure, rng.permutation(40), [k, 20], budget=10**6, pieces=10**6)
    # nothing can be worse than the best circuit of the size, and this one is greedy in steps of a quarter
    best = np.argsort(-effect)
    assert set(np.flatnonzero(found.masks[1])) == set(best[:20])
    assert set(np.flatnonzero(found.masks[0])) == set(best[:k])
    assert found.measured
    assert found.spent == sum(map(len, calls))
    assert sorted([*found.removed, *np.flatnonzero(found.masks[0])]) == list(range(40))


def test_values_share_what_a_piece_costs():
    rng = np.random.default_rng(0)
    effect = rng.uniform(size=60) ** 3
    effect /= effect.sum()
    values = effect * np.exp(0.3 * rng.normal(size=60))
    order = np.argsort(-values)
    best = set(np.argsort(-effect)[:12])
    hits = []
    for given_ in (
        None,
        values,
    ):  # eight pieces a round: without values, units of one piece are told apart by place only
        measure, _ = additive(effect)
        found = trim(measure, order, [12], budget=200, values=given_, pieces=8)
        hits.append(effect[found.masks[0]].sum())
    assert hits[1] >= hits[0]
    assert hits[1] > 0.95 * effect[list(best)].sum()


def test_elimination_without_budget_goes_by_what_it_knows():
    effect = np.arange(1.0, 21) / 210
    measure, _ = additive(effect)
    order = np.arange(20)[::-1]
    found = trim(measure, order, [5, 30, 8], budget=2)
    assert not found.measured
    assert found.spent == 2
    assert [m.sum() for m in found.masks] == [5, 20, 8]
    assert set(np.flatnonzero(found.masks[0])) == set(range(15, 20))
    for change, words in (
        ({"order": order[:0]}, "no candidates"),
        ({"order": order + 15}, r"numbers in 0\.\.19"),
        ({"sizes": [0]}, r"sizes=\[0\]"),
        ({"share": 1.0}, "share=1.0"),
        ({"values": effect - 1}, "0 or more"),
    ):
        given_ = {"order": order, "sizes": [3]} | change
        with pytest.raises(InputError, match=words):
            trim(measure, given_.pop("order"), given_.pop("sizes"), budget=10, **given_)


def test_bad_searches_are_refused():
    h, effect = tree()[0], planted()
    measure, _ = additive(effect)
    for change, words in (
        ({"budget": 0}, "budget=0"),
        ({"least": -1.0}, "least=-1.0"),
        ({"base": "none"}, "base='none'"),
        ({"opened": 0}, "opened=0"),
    ):
        with pytest.raises(InputError, match=words):
            How(**({"budget": 10} | change))
    for units, how, prior, words in (
        (np.arange(N), How(2), None, "2 already spent"),
        (np.zeros(N, int), How(10), None, "different numbers"),
        (np.arange(N) + 1, How(10), None, "different numbers"),
        (np.arange(N), How(10), np.zeros(3), "the prior"),
    ):
        with pytest.raises(InputError, match=words):
            group_search(measure, h, units, how, prior)
    with pytest.raises(InputError, match="already spent"):
        single_search(measure, np.arange(N), budget=2)
    with pytest.raises(InputError, match="too small to divide by"):
        additive(np.zeros(5))


@pytest.mark.usefixtures("quick_compile")
def test_a_model_is_measured_as_run_circuits_does():
    model = sized("llama")
    behaviour, units = random_behaviour(model), units_of(model.cfg, ("head", "mlp"))
    measure = meter(model, behaviour, units)
    assert measure.spent == 4
    masks = np.random.default_rng(0).uniform(size=(3, units.n)) < 0.5
    runs = run_circuits(model, behaviour, masks, units, split="attribution")
    np.testing.assert_allclose(measure(masks), runs.circuits.metric, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measure.full, runs.model.metric, rtol=1e-5, atol=1e-6)
    assert measure.spent == 4 + 5
    h = top_down(csr_array((units.n, units.n)), leaf=1)
    found = group_search(measure, h, np.arange(units.n), replace(How(100), least=0.0))
    assert found.stopped == "done"
    assert found.candidates.all()
    with pytest.raises(InputError, match="'noise' is unknown"):
        meter(model, behaviour, units, ablation="noise")


def test_the_papers_traversal_pools_keeps_and_grows():
    labels = np.repeat(np.arange(4), 5)
    h = from_levels(20, [labels // 2, labels])
    scores = np.zeros(20)
    scores[labels == 0] = 1.0
    scores[labels == 3] = 0.8
    scores[labels == 2] = 0.5
    alive = survivors(h, scores, q=2)
    # both halves stay; of the four sets 0 and 3 are the best two
    np.testing.assert_array_equal(alive, (labels == 0) | (labels == 3))
    np.testing.assert_array_equal(survivors(h, scores, q=1), labels == 3)  # 0.65 on average beats 0.5
    chain = symmetric(csr_array(np.diag(np.ones(19), 1)))
    region = traverse(h, chain, scores, q=1, neighbours=1, size=6)
    assert region.tolist() == [15, 16, 17, 18, 19, 14]  # the survivors, then the neighbour that one of them brings
    assert len(traverse(h, chain, scores, q=2, neighbours=0, size=48)) == 5  # not connected to set 3
    with pytest.raises(InputError, match="q=0"):
        survivors(h, scores, q=0)
    with pytest.raises(InputError, match="size=0"):
        traverse(h, chain, scores, size=0)
