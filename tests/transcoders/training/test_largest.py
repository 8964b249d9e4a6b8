"""What is kept: kernels and counted cuts against sorting, products in bfloat16 against their own rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.transcoders.training import largest
from tcircuits.transcoders.training.products import product


def sorted_out(x: np.ndarray, k: int) -> np.ndarray:
    """The k largest positive of each row, by sorting."""
    f = np.zeros_like(x)
    for row, out in zip(x.reshape(-1, x.shape[-1]), f.reshape(-1, x.shape[-1]), strict=True):
        best = np.argsort(-row, kind="stable")[:k]
        out[best] = np.maximum(row[best], 0)
    return f


@pytest.mark.parametrize(("width", "k"), [(37, 5), (576, 32), (1000, 1), (4608, 32)])
def test_the_kernel_keeps_what_sorting_keeps(width, k):
    x = np.random.default_rng(width).normal(size=(2, 4, width)).astype(np.float32)
    x[0, 0] = -1.0  # nothing positive
    x[0, 1, k - 1 :] = -1.0  # fewer than k positive
    x[1, 1] *= 1e-30  # small
    x[1, 2] = np.nextafter(np.float32(3), np.float32(4)) - np.arange(width) * np.float32(2**-22)  # neighbours
    kept = largest.by_kernel(jnp.asarray(x), k, interpret=True)
    np.testing.assert_array_equal(kept, sorted_out(x, k))
    np.testing.assert_array_equal(jax.jit(largest.keep_largest, static_argnums=1)(jnp.asarray(x), k), kept)


def test_the_kernel_keeps_all_that_equal_the_last():
    x = jnp.array([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0, -4.0]])
    np.testing.assert_array_equal(
        largest.by_kernel(x, 2, interpret=True), np.array([[3.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0]])
    )


def test_the_gradient_reaches_what_is_kept():
    x = jax.random.normal(jax.random.key(0), (1, 3, 9))
    g = jax.grad(lambda x: jnp.sum(largest.keep_largest(x, 2) ** 2))(x)
    np.testing.assert_allclose(g, 2 * sorted_out(np.asarray(x), 2), rtol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 300])
def test_a_cut_counted_in_passes_separates_the_same(kind, n, x64):
    x = jnp.asarray(np.random.default_rng(n).normal(size=(20, 31)), kind)
    for values in (x, 1e-20 * x, x.at[0, 0].set(1e30)):
        cut = jax.jit(largest.cut_in_passes, static_argnums=1)(values, n)
        positive = int((np.asarray(values) > 0).sum())
        assert int((values >= cut).sum()) == min(n, positive)
        assert int((values >= largest.cut_of(values, n)).sum()) == min(n, positive)
        assert float(cut) > 0


def test_backward_products_round_both_factors():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 7), (2, 6, 7)))
    g = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    out, back = jax.vjp(lambda x, w: product("LBD,LFD->LBF", x, w, "bfloat16"), x, w)
    by_x, by_w = back(g)

    def rounded(a):
        return np.asarray(a.astype(jnp.bfloat16), np.float64)

    # products of two bfloat16 are exact in float32; a sum of n of them rounds n times at most
    near = {"rtol": 0, "atol": 7 * 2**-24 * 40}
    np.testing.assert_allclose(out, np.einsum("LBD,LFD->LBF", rounded(x), rounded(w)), **near)
    np.testing.assert_allclose(by_x, np.einsum("LBF,LFD->LBD", rounded(g), rounded(w)), **near)
    np.testing.assert_allclose(by_w, np.einsum("LBF,LBD->LFD", rounded(g), rounded(x)), **near)
    assert {a.dtype for a in (out, by_x, by_w)} == {jnp.dtype("float32")}
