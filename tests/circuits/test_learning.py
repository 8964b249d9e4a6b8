"""Learned scores: what they are made of, by hand; and the planted head, which they must put first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.learning import Learning, hard_concrete, learned_scores, open_share, summing_to
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("k", [0.3, 2.0, 6.9])
def test_masks_sum_to_k_and_so_do_their_gradients(k, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=7) * 3)
    mask = summing_to(x, jnp.asarray(k))
    assert float(mask.sum()) == pytest.approx(k, abs=1e-9)
    np.testing.assert_array_equal(jnp.argsort(mask), jnp.argsort(x))
    slope = jax.jacobian(lambda x: summing_to(x, jnp.asarray(k)))(x)
    np.testing.assert_allclose(slope.sum(0), 0, atol=1e-9)  # the sum does not move
    step = 1e-5
    for i in range(7):
        moved = [np.asarray(summing_to(x.at[i].add(h), jnp.asarray(k))) for h in (step, -step)]
        np.testing.assert_allclose(slope[:, i], (moved[0] - moved[1]) / (2 * step), atol=1e-6)


def test_gates_open_as_often_as_their_formula_says():
    a = jnp.repeat(jnp.array([-2.0, 0.0, 1.5]), 40_000)
    gates = np.asarray(hard_concrete(jax.random.key(0), a)).reshape(3, -1)
    assert gates.min() == 0
    assert gates.max() == 1
    p = 1 / (1 + np.exp(-(np.array([-2.0, 0.0, 1.5]) - 2 / 3 * np.log(0.1 / 1.1))))  # P(z > 0)
    assert np.abs((gates > 0).mean(1) - p).max() < 4 * np.sqrt(0.25 / 40_000)
    assert float(open_share(a)) == pytest.approx(p.mean(), rel=1e-5)


def test_the_planted_head_is_ranked_first(planted):
    model, behaviour = planted
    units, how = units_of(model.cfg, ("head", "mlp")), Learning(steps=120, batch=4)
    found = learned_scores(model, behaviour, units, kind="topk", how=how)
    assert units.label(int(found.values.argmax())) == "head 0.1"
    assert (found.forwards, found.backwards) == (2 * 8 + 480, 480)
    again = learned_scores(model, behaviour, units, kind="topk", how=how)
    np.testing.assert_array_equal(again.values, found.values)


def test_pruning_leaves_open_what_the_answer_takes(planted):
    """Of 13 edges it may keep four: the two that carry the answer are among them, and gates are open or shut."""
    model, behaviour = planted
    edges, how = edges_of(model.cfg), Learning(steps=600, batch=8, left_out=0.7)
    found = learned_scores(model, behaviour, edges, kind="pruning", how=how).values
    kept = {edges.label(int(u)) for u in np.flatnonzero(found > 0)}
    assert {"embed -> head 0.1 v", "head 0.1 -> logits"} <= kept
    assert 3 <= len(kept) <= 5
    assert np.abs(found).min() > 1


def test_settings_that_make_no_sense_are_refused(planted):
    model, behaviour = planted
    with pytest.raises(InputError, match="'magic' is unknown"):
        learned_scores(model, behaviour, units_of(model.cfg, ("head",)), kind="magic")
    with pytest.raises(InputError, match=r"steps=0, left_out=1\.0"):
        Learning(steps=0, left_out=1.0)
