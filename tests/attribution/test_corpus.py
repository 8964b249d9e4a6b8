"""Averages of weights over text: against autodiff with patterns zero, position by position; and what is refused."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from experiments import autodiff as ad
from tcircuits.attribution import corpus
from tcircuits.attribution import weights as w
from tcircuits.attribution.frozen import freeze

from .. import bridge
from ..reference import builders
from ..reference import model as oracle
from ..tiers import tiered

CASES = [("gpt2", "plt-relu"), ("neox", "clt-skip"), ("gemma2", "plt-raw"), ("llama", "neurons")]
ROWS, LENGTH, LAYER = 5, 6, 2


def rows_of(case, n=ROWS):
    return np.random.default_rng(7).integers(0, case.cfg.d_vocab, (n, LENGTH))


@cache
def dense(family, name):
    """Activations [R, L, T, F] and direct attributions to every target of two [R, N, L, T, F], by autodiff."""
    case = builders.make_case(family, name)
    m, d = bridge.both(case)
    rows = jnp.asarray(rows_of(case), jnp.int32)

    @jax.jit
    def activations(params, d):
        def one(row):
            return ad.features_of(d, freeze(m.cfg, params, d, row))

        return jax.lax.map(one, rows)

    a = np.asarray(activations(m.params, d))
    often = np.argsort(-(a[:, LAYER, 1:] > 0).sum((0, 1)), kind="stable")[:2]

    @jax.jit
    def attributions(params, d):
        def one(row):
            frozen = freeze(m.cfg, params, d, row)
            acts, none = ad.features_of(d, frozen), jnp.zeros_like(frozen.hold.pattern)

            def reads(acts):
                pre = ad.run(m.cfg, params, d, frozen, none, acts, 0.0)[0][LAYER]
                if d.cfg.kind == "neurons":
                    slope = jnp.take_along_axis(frozen.factor[LAYER], frozen.index[LAYER], -1)
                    pre = pre * slope
                return pre[:, often].sum(0)  # positions do not mix: one gradient for all of them

            return jax.jacrev(reads)(acts) * acts

        return jax.lax.map(one, rows)

    return case, m, d, a, often, np.asarray(attributions(m.params, d))


@pytest.mark.parametrize(("family", "name"), tiered(CASES, CASES[:1]))
def test_the_averages_are_those_of_every_position(family, name, x64):
    case, m, d, a, often, each = dense(family, name)
    got = corpus.corpus_effects(m, d, rows_of(case), LAYER, often.tolist(), batch=2)
    own = a[:, LAYER, 1:][..., often]  # [R, T, N]
    each = each[..., 1:, :]
    assert got.n_positions == ROWS * (LENGTH - 1)
    np.testing.assert_array_equal(got.active, (own > 0).sum((0, 1)))
    for i in range(2):
        x, e = own[..., i], each[:, i].transpose(0, 2, 1, 3)  # [R, T], [R, T, L, F]
        high = x > got.threshold[i]
        positive = np.sort(x[x > 0])
        assert high.sum() == got.above[i] == (positive >= np.quantile(positive, 0.2)).sum()
        expected = {
            "mean": e[high].mean(0),
            "era": e[x > 0].sum(0) / x.size,
            "twera": (np.maximum(x, 0)[..., None, None] * e).sum((0, 1)) / np.maximum(x, 0).sum(),
        }
        for key, value in expected.items():
            assert np.abs(value[:LAYER]).max() > 0
            assert not value[LAYER:].any()
            np.testing.assert_allclose(getattr(got, key)[:, i], value, rtol=0, atol=1e-12 * np.abs(value).max())


def test_with_denominators_given_it_is_moments_times_virtual_weights(x64):
    """TWERA = E[a_t a_s] / E[a_t] V, the paper's form, where V is the same at every position."""
    case, m, d, a, often, _ = dense("gpt2", "plt-relu")
    rows = rows_of(case)
    hold = corpus.mean_hold(m, d, rows, batch=2)
    got = corpus.corpus_effects(m, d, rows, LAYER, often.tolist(), hold=hold, batch=3)
    own = a[:, LAYER, 1:][..., often].reshape(-1, 2)
    for source in range(LAYER):
        past, number = a[:, source, 1:].reshape(len(own), -1), jnp.arange(d.cfg.d_feature)
        weight = w.virtual_weights(m.cfg, m.params, d, hold, (LAYER, jnp.asarray(often)), (source, number))
        expected = own.T @ past / own.sum(0)[:, None] * np.asarray(weight)
        np.testing.assert_allclose(got.twera[source], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("family", tiered(["gpt2", "gemma2", "neox"], ["gemma2"]))
def test_mean_denominators_are_harmonic_means(family, x64):
    case = builders.make_case(family, "plt-relu")
    m, d = bridge.both(case)
    rows = rows_of(case, 4)
    got = corpus.mean_hold(m, d, rows, batch=2)
    runs = [oracle.run(case.cfg, case.params, row).scales for row in rows]
    for name in ("norm1", "norm1_post", "norm2", "norm2_post", "final_norm"):
        ours = getattr(got, name)
        if ours is None:
            assert "post" in name
            continue
        rates = np.mean([1 / r[name][..., 1:] for r in runs], (0, -1))
        np.testing.assert_allclose(np.asarray(ours)[..., 0], 1 / rates, rtol=1e-12)


def test_batches_of_any_size_give_the_same():
    case = builders.make_case("llama", "clt-relu")
    m, d = bridge.both(case, "float32")
    rows, seen = rows_of(case), []
    value = jax.jit(jax.vmap(lambda row: ad.features_of(d, freeze(m.cfg, m.params, d, row))[LAYER, 1:]))(
        jnp.asarray(rows)
    )
    index = np.argsort(-(np.asarray(value) > 0).sum((0, 1)), kind="stable")[:2].tolist()
    one = corpus.corpus_effects(m, d, rows, LAYER, index, batch=1, progress=lambda n, of: seen.append((n, of)))
    assert seen == [(i, 10) for i in range(1, 11)]
    three = corpus.corpus_effects(m, d, rows, LAYER, index, batch=3)
    for name in ("mean", "era", "twera", "activation"):
        x, y = getattr(one, name), getattr(three, name)
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * np.abs(y).max())


def test_overlap_of_the_largest():
    a = np.array([[5.0, 4, 3, 0, -9], [1, 0, 0, 0, 0]])
    b = np.array([[1.0, 9, -1, 8, -9], [1, 2, 3, 0, 0]])
    np.testing.assert_allclose(tc.attribution.top_overlap(a, b, 2), [0.5, 0.0])
    np.testing.assert_allclose(tc.attribution.top_overlap(a, b, 3), [2 / 3, 1 / 3])


def test_what_is_refused():
    case = builders.make_case("llama", "some-layers")
    m, d = bridge.both(case, "float32")
    rows = rows_of(case)
    never = replace(d, b_enc=d.b_enc - 1e6)
    refusals = [
        (lambda: corpus.corpus_effects(m, d, rows, 1, [24]), r"feature 24 of layer 1: its dictionary has .* 0\.\.23"),
        (lambda: corpus.corpus_effects(m, d, rows, 2, [0]), r"layer 2 has no dictionary \(layers with one: 1\)"),
        (lambda: corpus.corpus_effects(m, d, rows, 3, [0]), r"layer 3: the model has layers 0\.\.2"),
        (lambda: corpus.corpus_effects(m, d, rows, 1, []), "give at least one feature"),
        (lambda: corpus.corpus_effects(m, d, rows, 1, [0], above=1.0), "a share in"),
        (lambda: corpus.corpus_effects(m, never, rows, 1, [0, 5]), r"no position \(of 25\) at which feature 0, 5 of"),
        (lambda: corpus.corpus_effects(m, d, rows[0], 1, [0]), r"rows have shape \(6,\)"),
        (lambda: corpus.corpus_effects(m, d, rows[:, :1], 1, [0]), r"rows have 1 tokens; give 2 to 16"),
        (lambda: corpus.mean_hold(m, d, rows + 17), r"leave the vocabulary 0\.\.16"),
        (lambda: tc.feature_weights(m, d, 0, 0), "layer 0 has no dictionary"),
        (lambda: tc.feature_weights(m, d, 1, -1), "feature -1 of layer 1"),
        (lambda: tc.feature_weights(m, d, 1, 0, through=[(1, 4)]), r"head 1/4 does not exist: .* heads 0\.\.3"),
        (lambda: tc.feature_weights(m, d, 1, 0, through=[(2, 0)]), "head 2/0 cannot come here .* a layer up to 1"),
        (lambda: tc.feature_weights(m, d, 1, 0, through=[(0, 1), (0, 2)]), "head 0/2 cannot come here .* no layer"),
        (lambda: tc.feature_weights(m, d, 1, 0, top=0), "top=0"),
        (lambda: tc.attention_report(m, d, case.tokens, (0, 9), -1), "head 0/9 does not exist"),
        (lambda: tc.attention_report(m, d, case.tokens, (0, 0), 6), "position 6 is outside the prompt of 6 tokens"),
        (lambda: tc.attention_report(m, d, case.tokens, (0, 0), 2, 4), "key position 4 comes after query position 2"),
        (lambda: tc.attention_report(m, d, case.tokens, (0, 0), 2, top=0), "top=0"),
    ]
    for call, message in refusals:
        with pytest.raises(tc.InputError, match=message):
            call()
