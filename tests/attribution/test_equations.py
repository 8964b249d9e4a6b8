"""The transcoder paper's equations 6-8 and 18-28, each against autodiff of the frozen replacement model, in float64.

Source: Dunefsky et al. 2024 (arXiv 2406.11944). Both sides are computed by `experiments.equations`, whose autodiff
(`experiments.autodiff`) is the package's forward pass, checked against the NumPy oracle elsewhere, and shares no
transposed map with the weights.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import autodiff as ad
from experiments import equations
from tcircuits.attribution import weights as w
from tcircuits.attribution.direct_sums import direct_sums
from tcircuits.attribution.forward_weights import direct_logits, written_streams
from tcircuits.attribution.frozen import freeze
from tcircuits.models.forward import mlp
from tcircuits.models.params import Mlp

from .. import bridge
from ..reference import builders
from ..reference import model as oracle
from ..tiers import tiered

CASES = [
    ("gpt2", "plt-relu"),
    ("gpt2", "neurons"),
    ("neox", "plt-skip"),
    ("llama", "clt-relu"),
    ("llama", "plt-normalized"),
    ("gemma2", "plt-raw"),
    ("neox", "clt-skip"),
]
QUICK = [("gpt2", "plt-relu"), ("llama", "clt-relu"), ("gemma2", "plt-raw")]
LATER = [("qwen3", "clt-skip"), ("gemma2", "neurons")]
T, J, MIDDLE = 5, 3, 7  # position, target feature of layer 2, feature of layer 1 (`equations.Places`)
BOUND = 1e-11


@cache
def found(family, name):
    m, d = bridge.both(builders.make_case(family, name))
    case = builders.make_case(family, name)
    run = jax.jit(lambda params, d, tokens: equations.numbers(m.cfg, params, d, tokens))
    return jax.tree.map(np.asarray, run(m.params, d, jnp.asarray(case.tokens, jnp.int32)))


def same(pair):
    ours, expected = pair
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=BOUND * np.abs(expected).max())


def agree(family, name, begins, count):
    pairs = {k: v for k, v in found(family, name)[0].items() if k.startswith(begins)}
    assert len(pairs) >= count
    for pair in pairs.values():
        same(pair)


cases = pytest.mark.parametrize(("family", "name"), tiered(CASES, QUICK))


@cases
def test_the_oracle_is_the_model(family, name, x64):
    agree(family, name, "the oracle", 1)


@cases
def test_equations_7_and_18_feature_to_feature(family, name, x64):
    """A(i -> i') = a_i <dec_i, enc_i'>; and of the token, its de-embedding."""
    agree(family, name, "7, 18", 2)


@cases
def test_equations_8_19_to_24_and_27_through_heads(family, name, x64):
    """A = alpha <x, O enc> through one head, and through a chain of two, for features and tokens as sources."""
    agree(family, name, "8, 19-24, 27", 4 if family == "neox" else 5)


@cases
def test_equations_25_and_28_through_a_feature(family, name, x64):
    """The new covector after a feature is <v, dec> enc."""
    agree(family, name, "25, 28", 1)


@cases
def test_equation_26_all_parts_sum_to_the_pre_activation(family, name, x64):
    """Features, heads by source position, and what no feature or head makes, sum to what the target reads."""
    parts = found(family, name)[1]
    heads = parts["heads"]
    terms = np.concatenate([parts["features"].ravel(), heads.ravel(), parts["rest"][None]])
    assert abs(terms.sum() - parts["value"]) <= 1e-13 * np.abs(terms).sum()
    assert np.count_nonzero(heads) > 10
    assert not heads[..., T + 1 :].any(), "nothing from later positions"
    if name != "plt-raw":  # no post-norm: b_O is all of the bias
        b_o = parts["rest"] - parts["rest without b_O"]
        assert abs(parts["head bias"].sum() - b_o) <= 1e-13 * np.abs(terms).sum()


@cases
def test_direct_logits_and_weights_to_later_features(family, name, x64):
    agree(family, name, "logit", 6)
    agree(family, name, "weights", 4)


def test_equation_6_what_saes_have_instead_depends_on_the_input(x64):
    """z dz'/dz between SAE features around an MLP goes through the MLP's Jacobian; equation 7 does not.

    Both by autodiff at two positions. The transcoder's is the same number times the norm's denominators.
    """
    case = builders.make_case("gpt2", "plt-relu")
    m, d = bridge.both(case)
    rng = np.random.default_rng(0)
    dec, enc = rng.normal(size=(2, m.cfg.d_model))
    r = oracle.run(case.cfg, case.params, case.tokens)
    block: Mlp = jax.tree.map(lambda x: x[1], m.params.blocks.mlp)

    def z_later(z, x):
        return enc @ mlp(m.cfg, block, x + z * dec)

    slope = jax.jit(jax.grad(z_later))
    jacobian = jax.jit(jax.jacobian(lambda y: mlp(m.cfg, block, y)))
    slopes, closed = [], []
    for t in (2, 4):
        x = r.sites["mlp_in"][1, t]
        slopes.append(float(slope(0.0, x)))
        closed.append(float(enc @ np.asarray(jacobian(x)) @ dec))
    np.testing.assert_allclose(slopes, closed, rtol=1e-12)
    assert abs(slopes[0] / slopes[1] - 1) > 0.01
    frozen = jax.jit(lambda p, d, t: freeze(m.cfg, p, d, t))(m.params, d, jnp.asarray(case.tokens, jnp.int32))

    @jax.jit
    def invariant_and_gradients(params, d, frozen):
        none, hold = jnp.zeros_like(frozen.hold.pattern), w.unit_hold(m.cfg, frozen.value.dtype)
        found = w.virtual_weights(m.cfg, params, d, hold, (2, jnp.array([J])), (1, jnp.array([MIDDLE])))
        return found, [
            ad.gradients(m.cfg, params, d, frozen, none, lambda out, t=t: out[0][2, t, J])[0] for t in (2, 4)
        ]

    invariant, gradients = invariant_and_gradients(m.params, d, frozen)
    for t, grad in zip((2, 4), gradients, strict=True):
        np.testing.assert_allclose(grad[1, t, MIDDLE] * frozen.hold.norm2[2, t], invariant[0, 0], rtol=1e-12)


@pytest.mark.parametrize(("family", "name"), [("gpt2", "plt-relu"), ("llama", "plt-relu"), ("gemma2", "plt-relu")])
def test_ov_norms_are_those_of_the_matrices(family, name, x64):
    case = builders.make_case(family, name)
    m, d = bridge.both(case)
    hold, attn, blocks = w.unit_hold(m.cfg, "float64"), case.params["blocks"]["attn"], case.params["blocks"]
    u = np.random.default_rng(0).normal(size=(2, m.cfg.d_model))
    got = np.asarray(jax.jit(lambda p, u: w.ov_norms(m.cfg, p, d, hold, u, 1))(m.params, jnp.asarray(u)))
    assert got.shape == (m.cfg.n_layers, m.cfg.n_heads, 2)
    assert not got[2].any(), "attention of layer 2 comes after layer 1 reads"
    for layer in range(2):
        g = u if blocks["norm1_post"] is None else oracle.centre(case.cfg, u * blocks["norm1_post"]["w"][layer])
        for h in range(m.cfg.n_heads):
            value = attn["w_v"][layer][:, h * m.cfg.n_kv_heads // m.cfg.n_heads]
            back = oracle.centre(case.cfg, g @ (value @ attn["w_o"][layer, h]).T * blocks["norm1"]["w"][layer])
            np.testing.assert_allclose(got[layer, h], np.linalg.norm(back, axis=1), rtol=1e-12)


def test_one_decoder_of_a_cross_layer_transcoder(x64):
    """Decoder by decoder, a pullback sums to the whole, and below its own layer a feature writes nothing."""
    case = builders.make_case("neox", "clt-skip")
    m, d = bridge.both(case)
    hold = w.unit_hold(m.cfg, "float64")
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, m.cfg.d_model)))

    @jax.jit
    def both(params, d):
        parts = [w.pullback(m.cfg, params, d, hold, u, 3, 1, output=m_) for m_ in range(4)]
        return jnp.stack(parts), w.pullback(m.cfg, params, d, hold, u, 3, 1)

    parts, whole = both(m.params, d)
    assert not parts[0].any()
    assert not parts[3].any()
    assert np.abs(parts[1]).max() > 0
    assert np.abs(parts[2]).max() > 0
    np.testing.assert_allclose(parts.sum(0), whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_layers_filled_with_neurons(x64):
    """A layer without dictionary whose neurons stand in: weights from them, with the post-norm that they pass."""
    case = builders.make_case("gemma2", "some-filled")
    m, d = bridge.both(case)
    hold, blocks = w.unit_hold(m.cfg, "float64"), case.params["blocks"]
    number = jnp.array([3, 5])

    @jax.jit
    def weights(params, d):
        u = w.feature_covectors(m.cfg, params, d, hold, jnp.ones(2, jnp.int32), number)
        return w.pullback(m.cfg, params, d, hold, u, 1, 0), written_streams(m.cfg, params, d, hold, 0 * number, number)

    got, streams = (np.asarray(x) for x in weights(m.params, d))
    written = blocks["mlp"]["w_out"][0] * blocks["norm2_post"]["w"][0]
    expected = case.d.arrays["w_enc"][0][[3, 5]] * blocks["norm2"]["w"][1] @ written.T
    width = max(m.cfg.d_mlp, d.cfg.d_feature)
    np.testing.assert_allclose(got, np.pad(expected, [(0, 0), (0, width - m.cfg.d_mlp)]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(streams[1], written[[3, 5]], rtol=0, atol=1e-12)


def cores(cfg):
    """Every weight of one feature through one head, and the direct sums of a prompt, as one function of arrays."""

    def run(params, d, tokens, index, head):
        hold, one = w.unit_hold(cfg), jnp.ones(1, jnp.int32)
        u = w.feature_covectors(cfg, params, d, hold, 2 * one, index[None])
        v = w.through_heads(cfg, params, d, hold, u, 2, [(head[0], head[1])])
        frozen = freeze(cfg, params, d, tokens, n_slots=10)
        weight = jnp.ones((2, 1, len(tokens)))
        return {
            "pullback": w.pullback(cfg, params, d, hold, u, 2, head[0]),
            "through": w.pullback(cfg, params, d, hold, v, head[0], 0),
            "tokens": w.deembed(cfg, params, d, hold, v, head[0]),
            "norms": w.ov_norms(cfg, params, d, hold, u, 2),
            "logits": direct_logits(cfg, params, d, hold, 2 * one, index[None]),
            "sums": direct_sums(cfg, params, d, frozen, 2, index[None], weight),
        }

    return run


@pytest.mark.parametrize("platform", tiered(["tpu", "cuda"], ["tpu"]))
@pytest.mark.parametrize(("family", "name"), LATER)
def test_weights_lower_for(family, name, platform):
    case = builders.make_case(family, name)
    m, d = bridge.both(case, "float32")
    made = jax.export.export(jax.jit(cores(m.cfg)), platforms=[platform])
    tokens = jnp.asarray(case.tokens, jnp.int32)
    assert made(m.params, d, tokens, jnp.array(3), jnp.array([1, 2])).platforms == (platform,)


@pytest.mark.parametrize(("family", "name"), tiered(LATER, LATER[1:]))
def test_weights_of_a_batch_are_those_of_single_calls(family, name):
    case = builders.make_case(family, name)
    m, d = bridge.both(case, "float32")
    run, rows = cores(m.cfg), jnp.asarray(np.stack([case.tokens, case.tokens[::-1]]), jnp.int32)
    index, heads = jnp.array([3, 8]), jnp.array([[1, 2], [0, 3]])
    batch = jax.jit(jax.vmap(run, (None, None, 0, 0, 0)))(m.params, d, rows, index, heads)
    single = jax.jit(run)
    for i in range(2):
        for key, expected in single(m.params, d, rows[i], index[i], heads[i]).items():
            size = max(np.abs(expected).max(), 1e-6)
            np.testing.assert_allclose(batch[key][i], expected, rtol=0, atol=2e-6 * size, err_msg=key)
