"""Which layer's features write a layer's output, against NumPy; and a network whose hops are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cross_layer_shortcut as shortcut
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, neurons
from tcircuits.transcoders.evaluation.hops import shares, skipped
from tcircuits.types import InputError

S, N, D, F = 3, 40, 6, 10


def random_set(kind, rng):
    pairs = S * (S + 1) // 2 if kind == "clt" else S
    cfg = TranscoderConfig(kind, S, D, F, tuple(range(S)), "relu")
    w_enc, w_dec = rng.normal(size=(S, F, D)), rng.normal(size=(pairs, F, D))
    arrays = {"w_enc": w_enc, "b_enc": rng.normal(size=(S, F)), "w_dec": w_dec, "b_dec": rng.normal(size=(S, D))}
    given = {k: jnp.asarray(v) for k, v in arrays.items()}
    return Transcoders(cfg, "random", **given, threshold=None, w_skip=None), arrays


@pytest.mark.parametrize("kind", ["transcoder", "clt"])
def test_shares_are_covariances_over_the_variance(kind, x64):
    rng = np.random.default_rng(0)
    d, a = random_set(kind, rng)
    read, y = rng.normal(size=(2, S, N, D))
    found = np.asarray(jax.jit(shares)(d, jnp.asarray(read), jnp.asarray(y)))
    expected = np.zeros((S, S))
    for m in range(S):
        target = y[m] - y[m].mean(0)
        for i in range(m + 1) if kind == "clt" else [m]:
            f = np.maximum(read[i] @ a["w_enc"][i].T + a["b_enc"][i], 0)
            part = f @ a["w_dec"][m * (m + 1) // 2 + i if kind == "clt" else m]
            expected[i, m] = ((part - part.mean(0)) * target).sum() / (target**2).sum()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        np.asarray(skipped(found)), 1 - np.diagonal(expected) / expected.sum(0), rtol=1e-9, atol=1e-12
    )


def test_where_features_write_the_target_itself_the_shares_add_up_to_one(x64):
    rng = np.random.default_rng(1)
    d, a = random_set("clt", rng)
    read = rng.normal(size=(S, N, D))
    f = [np.maximum(read[i] @ a["w_enc"][i].T + a["b_enc"][i], 0) for i in range(S)]
    y = [sum(f[i] @ a["w_dec"][m * (m + 1) // 2 + i] for i in range(m + 1)) for m in range(S)]
    share = np.asarray(shares(d, jnp.asarray(read), jnp.asarray(np.stack(y))))
    np.testing.assert_allclose(share.sum(0), 1.0, rtol=0, atol=1e-12)
    assert skipped(share)[0] == 0


def test_neurons_are_no_set():
    with pytest.raises(InputError, match="neurons write to their own layer"):
        shares(neurons(S, D, F), jnp.zeros((S, N, D)), jnp.zeros((S, N, D)))


def test_the_network_computes_its_circuits():
    net = shortcut.network(3, jax.random.key(0))
    bits = shortcut.samples(net, jax.random.key(1), 256)
    x, y = (np.asarray(a) for a in shortcut.run(net, bits))
    b, answer = np.asarray(bits), np.asarray(net.answer)
    np.testing.assert_allclose(y[1] @ answer.T, b.prod(0), atol=1e-5)
    np.testing.assert_allclose(x[1], x[0] + y[0], atol=1e-6)
    assert 0.2 < b.any(0).mean() < 0.3
    x_without, y_without = shortcut.run(net, bits, jnp.ones(bits.shape[1:]))
    np.testing.assert_allclose(np.asarray(y_without[1]), 0.0, atol=1e-5)  # p AND q needs p
    np.testing.assert_allclose(np.asarray(x_without[1]) @ np.asarray(net.middle[0]).T, 0.0, atol=1e-5)


@pytest.mark.slow
def test_a_penalty_makes_a_cross_layer_transcoder_skip_the_hop_that_a_per_layer_one_takes():
    cfg = shortcut.Config(circuits=8, features=96, steps=1000, batch=512)
    key = jax.random.key(0)
    net = shortcut.network(cfg.circuits, key)
    found = {}
    for kind in ("transcoder", "clt"):
        d = shortcut.trained(shortcut.recipe(cfg, kind, 1e-2), cfg, net, jax.random.key(1))
        found[kind] = {k: float(v) for k, v in shortcut.figures(d, net, 4096, jax.random.key(2)).items()}
    assert max(f["fvu"] for f in found.values()) < 0.05  # reconstruction alone does not tell
    assert found["transcoder"]["skipped"] == 0
    assert abs(found["transcoder"]["intervention"]) < 0.05
    assert found["clt"]["skipped"] > 0.2
    assert found["clt"]["intervention"] > 0.2
