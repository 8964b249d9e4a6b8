"""Masks on a tree: products and sums against a loop, when levels join, the planted head found, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.circuits.learning import Learning
from tcircuits.circuits.tree import from_levels
from tcircuits.circuits.tree_gates import Shape, chance, down, joined, leaf_of, tree_scores
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_unit_is_as_open_as_all_gates_above_it():
    h = from_levels(12, [np.arange(12) // 6, np.arange(12) // 3, np.arange(12) // 2])
    z = np.random.default_rng(0).uniform(size=len(h.parent))
    found = np.asarray(down(jnp.asarray(z), jnp.asarray(h.parent), jnp.asarray(h.depth), int(h.depth.max())))
    for thing, leaf in enumerate(leaf_of(h)):
        assert thing in h.members(int(leaf))
        wanted, i = 1.0, int(leaf)
        while i > 0:
            wanted, i = wanted * z[i], h.parent[i]
        assert found[leaf] == pytest.approx(wanted, rel=1e-5)
    a = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(chance(jnp.asarray(a)), 1 / (1 + np.exp(-(a - 2 / 3 * np.log(0.1 / 1.1)))), rtol=1e-5)


def test_a_score_is_the_sum_of_all_above_it_and_learns_at_every_level_that_joined():
    h = from_levels(12, [np.arange(12) // 6, np.arange(12) // 3, np.arange(12) // 2])
    leaf, levels = leaf_of(h), int(h.depth.max())
    shape = Shape(jnp.asarray(h.parent), jnp.asarray(h.depth), jnp.asarray(leaf), levels, 300)
    rng = np.random.default_rng(1)
    sets, own = rng.normal(size=len(h.parent)), rng.normal(size=12)
    for step, coarsest in ((0, 2), (149, 3), (150, levels)):
        found = shape.summed(jnp.asarray(sets), jnp.asarray(own), jnp.asarray(step))
        for thing in range(12):
            wanted, i = own[thing], int(leaf[thing])
            while i > 0:
                wanted, i = wanted + sets[i] * (h.depth[i] <= coarsest), h.parent[i]
            assert found[thing] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        by_sets, by_units = jax.grad(lambda a, b, t=step: shape.summed(a, b, jnp.asarray(t)).sum(), (0, 1))(
            jnp.asarray(sets), jnp.asarray(own)
        )
        members = np.array([len(h.members(i)) for i in range(len(h.parent))])
        np.testing.assert_array_equal(by_sets, np.where((h.depth > 0) & (h.depth <= coarsest), members, 0))
        np.testing.assert_array_equal(by_units, np.full(12, float(step >= 150)))


def test_levels_join_from_coarse_to_fine():
    levels, steps = 4, 300
    first = [
        min(t for t in range(steps) if bool(joined(jnp.asarray(t), steps, jnp.asarray(k), levels))) for k in range(1, 6)
    ]
    assert first[:2] == [0, 0]
    assert first[2] > 80 - 1
    assert first == sorted(first)
    assert first[4] == 150  # the units' own, at half of the steps
    flat = [min(t for t in range(steps) if bool(joined(jnp.asarray(t), steps, jnp.asarray(k), 1))) for k in (1, 2)]
    assert flat == [0, 0]


def test_the_planted_head_stays_open(planted):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    h = from_levels(units.n, [np.arange(units.n) % 2])
    found = tree_scores(
        model, behaviour, units, h, np.arange(units.n), how=Learning(steps=120, batch=4, left_out=0.6), ablation="zero"
    )
    assert units.label(int(np.argmax(found.values))) == "head 0.1"
    n = behaviour["attribution"].n
    assert (found.forwards, found.backwards) == (2 * n + 120 * min(4, n), 120 * min(4, n))
    added = tree_scores(
        model, behaviour, units, h, np.arange(units.n), kind="topk", how=Learning(steps=60, batch=4), ablation="zero"
    )
    assert units.label(int(np.argmax(added.values))) == "head 0.1"
    assert (found.method, added.method) == ("tree pruning", "tree topk")
    some = tree_scores(
        model, behaviour, units, from_levels(2, []), np.array([1, 2]), how=Learning(steps=5), start=np.arange(3.0)
    )
    assert some.values[0] == -1e9
    unknown: Any = "best"
    with pytest.raises(InputError, match="unknown"):
        tree_scores(model, behaviour, units, h, np.arange(units.n), kind=unknown)
    for numbers, start, words in ((np.array([1, 1, 2]), None, "different"), (np.arange(3), np.zeros(2), "shape")):
        with pytest.raises(InputError, match=words):
            tree_scores(model, behaviour, units, from_levels(3, []), numbers, start=start)
