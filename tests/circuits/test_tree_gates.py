"""Gates on a tree: products against a loop, when levels join, the planted head found, bad input."""

import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.circuits.learning import Learning
from tcircuits.circuits.tree import from_levels
from tcircuits.circuits.tree_gates import chance, down, joined, leaf_of, tree_scores
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
    some = tree_scores(
        model, behaviour, units, from_levels(2, []), np.array([1, 2]), how=Learning(steps=5), start=np.arange(3.0)
    )
    assert some.values[0] == -1e9
    for numbers, start, words in ((np.array([1, 1, 2]), None, "different"), (np.arange(3), np.zeros(2), "shape")):
        with pytest.raises(InputError, match=words):
            tree_scores(model, behaviour, units, from_levels(3, []), numbers, start=start)
