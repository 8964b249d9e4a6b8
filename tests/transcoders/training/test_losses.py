"""Losses and their gradients against NumPy: values, finite differences, and JumpReLU's kernel by its definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.transcoders.training import codes
from tcircuits.transcoders.training.losses import loss

from ...reference import training as by_hand
from .cases import RECIPES, B, D, F, L, batch, plain, random_weights

pytestmark = pytest.mark.usefixtures("quick_compile")
STRENGTH = 0.7


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_gradients(name, x64):
    recipe = RECIPES[name]
    w, (x, y, dead) = random_weights(recipe), batch()
    of_all = jax.jit(jax.value_and_grad(partial(loss, recipe), has_aux=True))
    (total, (metrics, _)), grad = of_all(w, jnp.asarray(x), jnp.asarray(y), jnp.asarray(dead), jnp.float64(STRENGTH))
    expected = by_hand.loss(recipe, plain(w), list(x), list(y), dead, STRENGTH)
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-12)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-12)
    rng = np.random.default_rng(5)
    for _ in range(3):
        way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), w)
        if way.log_threshold is not None:  # the count's slope is a convention: the next test
            way = replace(way, log_threshold=jnp.zeros_like(way.log_threshold))
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grad), jax.tree.leaves(way), strict=True))
        numeric = by_hand.derivative(recipe, plain(w), plain(way), list(x), list(y), dead, STRENGTH)
        # Central differences of fourth order at 1e-6: rounding of 1e-16 / 1e-6 of a loss of order 10.
        assert abs(slope - numeric) <= 1e-8 * max(1.0, abs(numeric))


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.dictionary.activation == "jumprelu"])
def test_thresholds_get_the_kernel(name, x64):
    """d loss / d theta_j = - sum over tokens near the threshold of (theta dE/df + dE/dgate) / bandwidth."""
    recipe = replace(RECIPES[name], objective=replace(RECIPES[name].objective, bandwidth=1.0, preactivation=0.0))
    w, (x, y, dead) = random_weights(recipe), batch()
    f, h, o = plain(w), 1e-5, recipe.objective
    grad = jax.jit(jax.grad(lambda w: loss(recipe, w, *map(jnp.asarray, (x, y, dead)), jnp.float64(1))[0]))(w)

    def total(values):  # the loss of given features; counts are apart
        out = 0.0
        for m in range(L):
            out += by_hand.error(recipe, y[m], by_hand.output(recipe, f, values, x[m], m))
            out += by_hand.sparsity(recipe, f | {"log_threshold": None}, np.zeros((B, F)), values[m], m, 1.0)
        return out

    pairs = [by_hand.features(recipe, f, x[i], i) for i in range(L)]
    values = [v for _, v in pairs]
    seen = 0
    for i in range(L):
        theta = np.exp(f["log_threshold"][i])
        share = (values[i] != 0).mean(0)
        per_share = np.full(
            F, o.l0 if o.l0_target is None else 2 * o.l0 * (share.sum() / o.l0_target - 1) / o.l0_target
        )
        per_share += o.frequency * (share > o.frequency_limit)
        for j in range(0, F, 7):
            near = np.abs(pairs[i][0][:, j] - theta[j]) < o.bandwidth / 2
            expected = 0.0
            for b in np.flatnonzero(near):
                up, down = ([v.copy() for v in values] for _ in range(2))
                up[i][b, j] += h
                down[i][b, j] -= h
                expected -= (theta[j] * (total(up) - total(down)) / (2 * h) + per_share[j] / B) / o.bandwidth
            seen += near.sum()
            got = grad.log_threshold[i, j]
            assert abs(got - theta[j] * expected) <= 1e-7 * max(1.0, abs(got)), (i, j)
    assert seen > 20


def test_dead_features_need_not_exist(x64):
    recipe = RECIPES["topk auxk"]
    w, (x, y, dead) = random_weights(recipe), batch()
    _, (metrics, _) = loss(recipe, w, *map(jnp.asarray, (x, y, np.zeros_like(dead))), jnp.float64(1))
    assert not metrics.auxiliary.any()


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 7, 100, 480, 999, 1000])
def test_the_largest_of_a_batch(kind, n, x64):
    x = np.random.default_rng(n).normal(size=(2, 20, 50)).astype(kind)
    x[1] *= 1e-20
    ranked = -np.sort(-x.reshape(2, -1), 1)
    f, smallest = jax.jit(codes.largest_of_batch, static_argnums=1)(jnp.asarray(x), n)
    for one, row, own, cut in zip(f, ranked, x, smallest, strict=True):
        last = min(n, (row > 0).sum()) - 1
        assert (np.asarray(one) == np.where(own >= row[last], own, 0)).all()
        assert cut == row[last]


def test_ties_are_kept_together(x64):
    x = jnp.asarray([[[3.0, 2.0, 2.0, 2.0, 1.0, -1.0, 0.0]]])
    f, smallest = codes.largest_of_batch(x, 2)
    assert f.tolist() == [[[3, 2, 2, 2, 0, 0, 0]]]
    assert smallest.tolist() == [2]
    nothing, smallest = codes.largest_of_batch(-jnp.abs(x), 2)
    assert not nothing.any()
    assert smallest.tolist() == [0]


def test_summed_rows_are_the_product(x64):
    rng = np.random.default_rng(2)
    index, value = rng.random((12, F)).argsort(1)[:, :5], rng.normal(size=(12, 5))
    w, g = rng.normal(size=(F, D)), rng.normal(size=(12, D))
    wide = np.zeros((12, F))
    np.put_along_axis(wide, index, value, 1)
    out, back = jax.vjp(lambda v, w: codes.sum_rows(jnp.asarray(index), v, w), jnp.asarray(value), jnp.asarray(w))
    np.testing.assert_allclose(out, wide @ w, rtol=1e-12, atol=1e-14)
    d_value, d_w = back(jnp.asarray(g))
    np.testing.assert_allclose(d_value, np.take_along_axis(g @ w.T, index, 1), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(d_w, wide.T @ g, rtol=1e-12, atol=1e-13)
