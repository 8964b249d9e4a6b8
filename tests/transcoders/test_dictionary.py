"""encode, decode, reconstruct and sparse against NumPy loops, for every kind and activation function."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.transcoders import dictionary
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import (
    Transcoders,
    activate,
    decode,
    encode,
    encode_once,
    neurons,
    pair,
    reconstruct,
    sparse,
    spec,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

L, D, F, T = 3, 4, 9, 5
ALL = tuple(range(L))
ACTIVATIONS = {
    "relu": {},
    "topk": {"k": 3},
    "topk signed": {"k": 6, "signed_topk": True},
    "batchtopk": {},
    "jumprelu": {},
}
CONFIGS = {
    f"{kind} {name}": TranscoderConfig(kind, L, D, F, ALL, name.split()[0], **switches)
    for kind in ("transcoder", "clt")
    for name, switches in ACTIVATIONS.items()
}
CONFIGS["transcoder some layers"] = TranscoderConfig("transcoder", 7, D, F, (1, 4, 6))
SKIPS = {f"{name} skip": dataclasses.replace(CONFIGS[name], skip=True) for name in ("transcoder relu", "clt jumprelu")}
HOW = {"plain": lambda f: f, "jit": jax.jit, "vmap": lambda f: jax.vmap(f, in_axes=1, out_axes=1)}


def make(cfg, dtype="float32") -> Transcoders:
    """Random arrays; thresholds of both signs, so that batchtopk differs from jumprelu."""
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(spec(cfg))
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=s.shape), dtype) for s in leaves])


def inputs(dtype="float32") -> np.ndarray:
    return np.random.default_rng(1).normal(size=(L, T, D)).astype(dtype)


def value_by_hand(cfg, pre: np.ndarray, j: int, threshold) -> float:
    """Feature j of one vector of pre-activations."""
    match cfg.activation:
        case "relu":
            return max(pre[j], 0.0)
        case "jumprelu":
            return pre[j] if pre[j] > threshold[j] else 0.0
        case "batchtopk":
            return pre[j] if pre[j] > max(threshold[j], 0.0) else 0.0
        case "topk":
            larger = sum(other > pre[j] for other in pre)
            return pre[j] if larger < cfg.k and (cfg.signed_topk or pre[j] > 0) else 0.0


def features_by_hand(d: Transcoders, x: np.ndarray) -> np.ndarray:
    w, b = np.asarray(d.w_enc, np.float64), np.asarray(d.b_enc, np.float64)
    n = w.shape[1]
    theta = np.zeros((L, n)) if d.threshold is None else np.asarray(d.threshold, np.float64)
    out = np.zeros((L, T, n))
    for s in range(L):
        for t in range(T):
            pre = np.array([sum(w[s, j, i] * float(x[s, t, i]) for i in range(D)) + b[s, j] for j in range(n)])
            out[s, t] = [value_by_hand(d.cfg, pre, j, theta[s]) for j in range(n)]
    return out


def outputs_by_hand(d: Transcoders, f: np.ndarray) -> np.ndarray:
    """Decoders of a cross-layer dictionary come ordered by output, then by source."""
    w = iter(np.asarray(d.w_dec, np.float64))
    out = np.array([np.tile(b, (T, 1)) for b in np.asarray(d.b_dec, np.float64)])
    for m in range(L):
        for i in range(m + 1) if d.cfg.kind == "clt" else [m]:
            decoder = next(w)
            for t in range(T):
                for j in range(F):
                    out[m, t] += f[i, t, j] * decoder[j]
    assert next(w, None) is None
    return out


def skip_by_hand(d: Transcoders, x: np.ndarray) -> np.ndarray:
    if d.w_skip is None:
        return np.zeros(x.shape)
    w = np.asarray(d.w_skip, np.float64)
    return np.array([[sum(float(v[i]) * w[s, i] for i in range(D)) for v in x[s]] for s in range(L)])


def tolerance(dtype):
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == "float64" else {"rtol": 2e-5, "atol": 2e-5}


@pytest.mark.parametrize("name", CONFIGS)
def test_encode(name, dtype):
    d, x = make(CONFIGS[name], dtype), inputs(dtype)
    got = jax.jit(lambda d, x: jnp.stack([encode(d, s, x[s]) for s in range(L)]))(d, x)
    wanted = features_by_hand(d, x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got != 0, wanted != 0)
    np.testing.assert_allclose(got, wanted, **tolerance(dtype))


@pytest.mark.parametrize(("n_feature", "parts"), [(F, 16), (24, 16), (24, 2)])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_an_encoder_read_in_blocks(activation, n_feature, parts, dtype, monkeypatch):
    """Three blocks of nine features in one part; three of one feature of each of eight; six of two of each of two."""
    monkeypatch.setattr(dictionary, "BLOCK", 3 * D)
    monkeypatch.setattr(dictionary, "SHARDS", parts)
    d = make(dataclasses.replace(CONFIGS[f"transcoder {activation}"], d_feature=n_feature), dtype)
    x = inputs(dtype)
    got = jax.jit(lambda d, x: jax.lax.map(lambda s: encode_once(d, s, x[s]), jnp.arange(L)))(d, x)
    wanted = features_by_hand(d, x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got != 0, wanted != 0)
    np.testing.assert_allclose(got, wanted, **tolerance(dtype))


@pytest.mark.parametrize("name", CONFIGS)
def test_decode(name, dtype):
    """The skip is not part of it; features are given, dense, of both signs."""
    d = make(CONFIGS[name], dtype)
    f = np.random.default_rng(2).normal(size=(L, T, F)).astype(dtype)
    got = jax.jit(lambda d, f: jnp.stack([decode(d, s, f) for s in range(L)]))(d, f)
    np.testing.assert_allclose(got, outputs_by_hand(d, f), **tolerance(dtype))


def check_reconstruct(name, how, dtype):
    d, x = make((CONFIGS | SKIPS)[name], dtype), inputs(dtype)
    got = HOW[how](lambda rows: reconstruct(d, rows))(x)
    wanted = outputs_by_hand(d, features_by_hand(d, x)) + skip_by_hand(d, x)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, wanted, **tolerance(dtype))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", CONFIGS | SKIPS)
def test_reconstruct(name, how):
    check_reconstruct(name, how, "float32")


@pytest.mark.parametrize("name", ["transcoder topk", "clt batchtopk", *SKIPS])
def test_reconstruct_in_float64(name, x64):
    check_reconstruct(name, "jit", "float64")


@pytest.mark.parametrize("name", ["transcoder topk", "clt jumprelu"])
def test_slots_may_be_traced_and_nothing_is_traced_twice(name):
    d, x = make(CONFIGS[name]), jnp.asarray(inputs())
    f = jnp.asarray(features_by_hand(d, inputs()), jnp.float32)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def both(d, slot, x, f):
        return encode(d, slot, x[slot]), decode(d, slot, f)

    for s in range(L):
        values, output = both(d, s, x, f)
        np.testing.assert_allclose(values, f[s], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(output, outputs_by_hand(d, np.asarray(f))[s], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["clt relu", "transcoder relu skip"])
def test_lower_precision_parameters(name):
    """Parameters in bfloat16, activations in float32: no more is lost than by rounding the parameters."""
    d, x = make((CONFIGS | SKIPS)[name], "bfloat16"), inputs()
    got = reconstruct(d, x)
    wanted = outputs_by_hand(d, features_by_hand(d, x)) + skip_by_hand(d, x)
    assert got.dtype == "float32"
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_cross_layer_with_own_decoders_only_equals_per_layer():
    """Every other decoder zero: the same function as per-layer dictionaries."""
    plt = make(SKIPS["transcoder relu skip"])
    cfg, w_dec = dataclasses.replace(plt.cfg, kind="clt"), np.zeros((6, F, D), np.float32)
    for m in range(L):
        w_dec[pair(cfg, m, m)] = plt.w_dec[m]
    clt = dataclasses.replace(plt, cfg=cfg, w_dec=jnp.asarray(w_dec))
    np.testing.assert_allclose(reconstruct(clt, inputs()), reconstruct(plt, inputs()), rtol=1e-6, atol=1e-6)


def test_pairs_fill_the_decoders_once():
    cfg = CONFIGS["clt relu"]
    assert [pair(cfg, i, m) for m in range(L) for i in range(m + 1)] == list(range(cfg.n_pairs))
    assert [pair(CONFIGS["transcoder relu"], m, m) for m in range(L)] == list(ALL)


EDGES = {
    "a value at its threshold is off": ("jumprelu", {}, [0.5, 0.75, 0.25], [0.5, 0.5, 0.5], [0, 0.75, 0]),
    "jumprelu passes negative values above a negative threshold": (
        *("jumprelu", {}, [-0.5, -2.0, 0.0], [-1.0, -1.0, -1.0], [-0.5, 0, 0]),
    ),
    "batchtopk never does": ("batchtopk", {}, [-0.5, 0.5, 0.1], [-1.0, -1.0, 0.2], [0, 0.5, 0]),
    "of equals, topk keeps the first": ("topk", {"k": 2}, [1.0, 1.0, 1.0], None, [1.0, 1.0, 0]),
    "topk of fewer positive values than k": ("topk", {"k": 2}, [-1.0, 2.0, -3.0], None, [0, 2.0, 0]),
    "signed topk keeps negative ones": ("topk", {"k": 2, "signed_topk": True}, [-1.0, 2.0, -3.0], None, [-1.0, 2.0, 0]),
    "topk of all": ("topk", {"k": 3, "signed_topk": True}, [-1.0, 2.0, -3.0], None, [-1.0, 2.0, -3.0]),
    "margin ranks by what is above the threshold": (
        *("topk", {"k": 1, "margin": True}, [5.0, 3.0, 2.0], [4.0, 1.5, 2.5], [0, 3.0, 0]),
    ),
    "margin passes negative values, and none below": (
        *("topk", {"k": 3, "margin": True}, [-1.0, -3.0, 2.0], [-2.0, -2.0, 2.0], [-1.0, 0, 0]),
    ),
    "relu": ("relu", {}, [-1.0, 0.0, 3.0], None, [0, 0, 3.0]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge):
    activation, switches, pre, threshold, wanted = EDGES[edge]
    cfg = TranscoderConfig("transcoder", 1, 2, 3, (0,), activation, **switches)
    theta = None if threshold is None else jnp.array(threshold)
    np.testing.assert_array_equal(activate(cfg, jnp.array(pre), theta), wanted)
    np.testing.assert_array_equal(activate(cfg, jnp.array([[pre]] * 2), theta), [[wanted]] * 2)


@pytest.mark.parametrize("n_slots", [1, 4, F])
@pytest.mark.parametrize("how", HOW)
def test_sparse(how, n_slots):
    """By ascending index, padded; where there are too many, the first ones."""
    f = np.random.default_rng(3).normal(size=(4, T, F)).astype(np.float32)
    f *= np.random.default_rng(4).random(f.shape) < 0.4
    f[0, 0], f[0, 1], f[1, 1] = 0, 1.5, np.eye(F)[0]
    index, value, valid = HOW[how](lambda rows: sparse(rows, n_slots))(jnp.asarray(f))
    assert index.shape == value.shape == valid.shape == (4, T, n_slots)
    for at in np.ndindex(4, T):
        on = [j for j in range(F) if f[at][j] != 0][:n_slots]
        assert index[at].tolist() == on + [0] * (n_slots - len(on))
        assert value[at].tolist() == [float(f[at][j]) for j in on] + [0.0] * (n_slots - len(on))
        assert valid[at].tolist() == [True] * len(on) + [False] * (n_slots - len(on))


def test_sparse_and_dense_decode_to_the_same():
    d, x = make(CONFIGS["clt jumprelu"]), inputs()
    f = jnp.stack([encode(d, s, x[s]) for s in range(L)])
    index, value, valid = sparse(f, F)
    rows = jnp.asarray(d.w_dec)[pair(d.cfg, 1, 2)][index[1]]
    got = jnp.einsum("TC,TCD->TD", jnp.where(valid[1], value[1], 0), rows)
    np.testing.assert_allclose(got, f[1] @ d.w_dec[pair(d.cfg, 1, 2)], rtol=1e-5, atol=1e-5)


def test_a_tree_without_arrays():
    d = neurons(L, D, F)
    assert jax.tree.leaves(d) == []
    assert jax.tree.leaves(jax.jit(lambda d: d)(d)) == []
    with pytest.raises(AssertionError, match=r"attribution\.freeze"):
        encode(d, 0, jnp.ones(D))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "topk"}, "k=None with activation='topk'"),
        ({"k": 3}, "k=3 with activation='relu'"),
        ({"activation": "topk", "k": F + 1}, "k=10 is outside 1..9"),
        ({"activation": "topk", "k": 0}, "k=0 is outside"),
        ({"layers": ()}, "not empty"),
        ({"layers": (1, 0)}, "ascending"),
        ({"layers": (0, 0)}, "without repeats"),
        ({"layers": (0, 3)}, r"leave the model's 0..2"),
        ({"layers": (-1, 0)}, r"leave the model's 0..2"),
        ({"kind": "clt", "layers": (0, 1)}, "covers all 3 layers"),
    ],
)
def test_a_configuration_that_does_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIGS["transcoder relu"], **change)


def test_an_sae_reads_what_it_writes():
    cfg = TranscoderConfig("sae", L, D, F, (0, 2), reads="resid_post", writes="resid_post")
    assert cfg.n_pairs == 2
    for reads, writes, skip in (
        ("mlp_in", "mlp_out", False),
        ("normalized", "normalized", False),
        ("mlp_in",) * 2 + (True,),
    ):
        with pytest.raises(ValueError, match="writes the site that it reads"):
            TranscoderConfig("sae", L, D, F, ALL, reads=reads, writes=writes, skip=skip)
    with pytest.raises(ValueError, match="with kind='transcoder'"):
        TranscoderConfig("transcoder", L, D, F, ALL, reads="resid_post")
