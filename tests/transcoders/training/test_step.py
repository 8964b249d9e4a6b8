"""The step: Adam by hand, norms kept, layers independent, parts of a batch, counters, and what comes out."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.transcoders.dictionary import encode, reconstruct
from tcircuits.transcoders.training import step as module
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe, differences
from tcircuits.transcoders.training.step import init_state, learning_rate, result, train_step
from tcircuits.types import InputError

from ...reference import training as by_hand
from .cases import RECIPES, B, D, F, L, batch, config, plain

pytestmark = pytest.mark.usefixtures("quick_compile")
STEP = jax.jit(train_step, static_argnums=0)


def run(recipe, steps=3, seed=1, n=B):
    state = init_state(recipe, *map(jnp.asarray, batch(seed, 64)[:2]))
    for i in range(steps):
        x, y, _ = batch(10 + i, n)
        state, metrics = STEP(recipe, state, jnp.asarray(x), jnp.asarray(y))
    return state, metrics


def test_adam_is_adam(x64):
    """Three steps of the paper's loss, with gradients by finite differences of the NumPy loss."""
    recipe = replace(RECIPES["l1"], decoder_norm="free", objective=Objective(l1=0.3), normalise=False)
    state = init_state(recipe, *map(jnp.asarray, batch(1, 64)[:2]))
    names = ("w_enc", "b_enc", "w_dec", "b_dec")
    w = plain(state.weights)
    m, v = ({n: np.zeros_like(w[n]) for n in names} for _ in range(2))
    rng = np.random.default_rng(0)
    where = {n: {tuple(rng.integers(0, s) for s in w[n].shape) for _ in range(6)} for n in names}
    for t in range(1, 4):
        x, y, dead = batch(10 + t)
        got, _ = STEP(recipe, state, jnp.asarray(x), jnp.asarray(y))
        for n in names:
            for at in where[n]:
                way = {k: None if a is None else np.zeros_like(a) for k, a in w.items()}
                way[n][at] = 1.0
                g = by_hand.derivative(recipe, w, way, list(x), list(y), dead & False)
                m[n][at] = 0.9 * m[n][at] + 0.1 * g
                v[n][at] = 0.999 * v[n][at] + 0.001 * g * g
                move = 1e-2 * (m[n][at] / (1 - 0.9**t)) / (np.sqrt(v[n][at] / (1 - 0.999**t)) + 1e-8)
                # A gradient known to 1e-8 moves Adam's direction by that over its size.
                tolerance = 1e-2 * 1e-7 / max(abs(g), 1e-3)
                assert abs(float(getattr(got.weights, n)[at]) - (w[n][at] - move)) <= max(tolerance, 1e-9), (t, n, at)
        state, w = got, plain(got.weights)


@pytest.mark.parametrize("name", ["l1", "topk", "matryoshka", "sae"])
def test_decoder_rows_keep_norm_one_and_gradients_are_at_right_angles(name, x64):
    state, _ = run(RECIPES[name])
    np.testing.assert_allclose(jnp.linalg.norm(state.weights.w_dec, axis=-1), 1, rtol=1e-14)
    along = jnp.sum(state.first.w_dec * state.weights.w_dec, -1)
    assert float(jnp.abs(along).max()) < 0.2 * float(jnp.linalg.norm(state.first.w_dec, axis=-1).max())


@pytest.mark.parametrize("name", ["l1", "topk auxk", "jumprelu", "batchtopk"])
def test_layers_do_not_know_of_each_other(name, x64):
    """Another layer's data does not move this one, and a layer alone has the same loss."""
    recipe = replace(RECIPES[name], optimizer=replace(RECIPES[name].optimizer, clip=0.01))
    state = init_state(recipe, *map(jnp.asarray, batch(1, 64)[:2]))
    x, y, _ = batch(10)
    other = x.copy()
    other[0] *= 3
    (one, a), (two, b) = (STEP(recipe, state, jnp.asarray(v), jnp.asarray(y)) for v in (x, other))
    for u, v in zip(jax.tree.leaves(one.weights), jax.tree.leaves(two.weights), strict=True):
        assert (np.asarray(u)[1:] == np.asarray(v)[1:]).all()
        assert (np.asarray(u)[0] != np.asarray(v)[0]).any()
    assert (a.loss[1:] == b.loss[1:]).all()


@pytest.mark.parametrize("name", ["l1", "topk", "clt topk", "jumprelu tanh", "hagd"])
def test_parts_of_a_batch_add_up(name, x64):
    """Losses that are means over tokens have the same gradient in parts; only rounding differs."""
    recipe = replace(RECIPES[name], objective=replace(RECIPES[name].objective, error="squared"))
    whole, parts = run(recipe)[0], run(replace(recipe, accumulate=4))[0]
    for a, b in zip(jax.tree.leaves(whole.weights), jax.tree.leaves(parts.weights), strict=True):
        # Adam divides by the gradient's size: where it is tiny, rounding moves the direction; one step is 1e-2.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    assert (whole.quiet == parts.quiet).all()


@pytest.mark.parametrize("name", RECIPES)
def test_the_result_acts_on_plain_activations(name, x64):
    """On what was harvested it writes what training in normalised units has, times the target's size."""
    recipe = RECIPES[name]
    state, _ = run(recipe, 2)
    d = result(recipe, state, "test")
    x, _, _ = batch(20)
    sx, sy = np.asarray(state.scales.x), np.asarray(state.scales.y)
    assert abs(sx - 1).max() > 0.005
    w, inputs = plain(state.weights), x / sx[:, None, None]
    if recipe.dictionary.activation == "batchtopk":  # afterwards a threshold, the same for every token
        pre = [by_hand.features(recipe, w, inputs[i], i)[0] for i in range(L)]
        size = [by_hand.norms(recipe, w, i) if recipe.objective.by_norm else 1 for i in range(L)]
        f = [np.where(p * n > float(state.cut[i]), p, 0) for i, (p, n) in enumerate(zip(pre, size, strict=True))]
    else:
        f = [by_hand.features(recipe, w, inputs[i], i)[1] for i in range(L)]
    expected = np.stack([by_hand.output(recipe, w, f, inputs[m], m) * sy[m] for m in range(L)])
    both = jax.jit(lambda d, x: (reconstruct(d, x), jnp.stack([encode(d, i, x[i]) for i in range(L)])))
    written, active = both(d, x)
    np.testing.assert_allclose(written, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(active, np.stack(f), atol=1e-12)


def test_a_small_start_is_small_and_tied(x64):
    w = init_state(RECIPES["sae small"], *map(jnp.asarray, batch(1, 64)[:2])).weights
    np.testing.assert_array_equal(w.w_enc, w.w_dec)
    np.testing.assert_allclose(jnp.linalg.norm(w.w_dec, axis=-1), 0.1, rtol=1e-14)


def test_counters(x64):
    recipe = replace(RECIPES["topk auxk"], objective=replace(RECIPES["topk auxk"].objective, dead_after=2 * B))
    state = init_state(recipe, *map(jnp.asarray, batch(1, 64)[:2]))
    fired = np.zeros((3, L, F), bool)
    for i in range(3):
        x, y, _ = batch(10 + i)
        w = plain(state.weights)
        inputs = x / np.asarray(state.scales.x)[:, None, None]
        fired[i] = [(by_hand.features(recipe, w, inputs[s], s)[1] > 0).any(0) for s in range(L)]
        state, metrics = STEP(recipe, state, jnp.asarray(x), jnp.asarray(y))
    expected = np.where(fired[2], 0, np.where(fired[1], B, np.where(fired[0], 2 * B, 3 * B)))
    assert (np.asarray(state.quiet) == expected).all()
    assert int(state.step) == 3
    np.testing.assert_allclose(metrics.l0, 3)


def test_schedule():
    recipe = replace(RECIPES["l1"], steps=100, optimizer=Optimizer(lr=2.0, warmup=10, decay=0.2))
    rates = np.array([float(learning_rate(recipe, jnp.int32(i))) for i in range(100)])
    expected = [min(1, (t + 1) / 10, (100 - t) / 20) * 2 for t in range(100)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_training_finds_planted_features():
    """Eight sparse directions, written elsewhere: nearly all is explained, and each direction is a decoder row."""
    rng = np.random.default_rng(0)
    n, width = 8, 24
    way, out = (np.linalg.qr(rng.normal(size=(width, n)))[0].T for _ in range(2))
    recipe = Recipe(
        replace(config(activation="topk", k=2), n_layers=1, layers=(0,), d_model=width, d_feature=16),
        Objective(error="fvu", auxk=1 / 32, dead_after=2000),
        Optimizer(lr=1e-2, warmup=10, decay=0.3),
        steps=600,
        batch=256,
    )  # fmt: skip

    def draw(key):
        k1, k2 = jax.random.split(key)
        chosen = jax.random.permutation(k1, jnp.tile(jnp.arange(n), (256, 1)), axis=1, independent=True)[:, :2]
        size = 1 + jax.random.uniform(k2, (256, 2))
        code = jnp.zeros((256, n)).at[jnp.arange(256)[:, None], chosen].set(size)
        return (code @ way)[None], (code @ out)[None]

    state = init_state(recipe, *draw(jax.random.key(1)))

    @jax.jit
    def go(state):
        return jax.lax.scan(lambda s, i: train_step(recipe, s, *draw(jax.random.key(i))), state, jnp.arange(600))

    state, metrics = go(state)
    assert float(metrics.fvu[-1, 0]) < 0.02
    cosines = np.abs(out @ np.asarray(state.weights.w_dec[0]).T)
    assert (cosines.max(1) > 0.98).all()


def bad(**more):
    return lambda: Recipe(**{"dictionary": config(), **more})


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (bad(steps=0), "steps=0"),
        (bad(batch=10, accumulate=3), "parts of equal size"),
        (bad(objective=Objective(l1=-1)), "l1=-1 must not be negative"),
        (bad(objective=Objective(l0=1.0)), "activation='jumprelu'"),
        (bad(objective=Objective(nested=(9, 4))), "ascending widths"),
        (bad(objective=Objective(k=3)), "belongs to batchtopk"),
        (bad(dictionary=config(activation="batchtopk")), "batchtopk needs objective.k"),
        (bad(dictionary=config("clt")), "decoder_norm='free'"),
        (bad(dictionary=config("clt"), objective=Objective(overlap=1.0)), "overlap needs one decoder a feature"),
        (bad(objective=Objective(overlap_free=1.0)), "overlap_free=1.0 must be"),
        (bad(band=2), "belong to kind='clt'"),
        (bad(start="tied"), "is for SAEs"),
        (bad(start="zero"), "decoder_norm='unit'"),
        (bad(start="small"), "is for SAEs"),
        (bad(dictionary=RECIPES["sae"].dictionary, start="small"), "start='small' cannot have decoder_norm='unit'"),
        (bad(objective=Objective(by_norm=True)), "by_norm belongs to batchtopk"),
        (bad(objective=Objective(k_aux=99, auxk=1.0)), "k_aux=99"),
        (bad(dictionary=replace(config(), layers=(1,)), objective=Objective(prediction=1.0)), "at least two layers"),
        (bad(optimizer=Optimizer(lr=float("nan"))), "lr=nan"),
    ],
)
def test_recipes_that_do_not_fit_together(make, complaint):
    with pytest.raises(InputError, match=complaint):
        make()


def test_differences_are_named():
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": (1,)}, "d": None}) == ["a.b: 2 -> 1"]


def test_one_program_for_any_depth():
    """Layers are mapped: the step of twelve layers is no longer a program than that of three."""
    sizes = []
    for n in (3, 12):
        cfg = replace(config(activation="topk", k=4), n_layers=n, layers=tuple(range(n)))
        recipe = replace(RECIPES["topk"], dictionary=cfg, compute="float32")
        acts = jax.ShapeDtypeStruct((n, B, D), jnp.float32)
        state = jax.eval_shape(partial(init_state, recipe), acts, acts)
        sizes.append(len(STEP.lower(recipe, state, acts, acts).as_text().splitlines()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["topk auxk", "batchtopk", "matryoshka", "jumprelu target"])
def test_layers_at_once_are_layers_one_by_one(name, x64, monkeypatch):
    recipe = replace(RECIPES[name], optimizer=replace(RECIPES[name].optimizer, clip=0.1))
    recipe = replace(recipe, objective=replace(recipe.objective, dead_after=2 * recipe.batch))
    x, y = (jax.random.normal(jax.random.key(i), (L, recipe.batch, D)) for i in range(2))
    ends = []
    for size in (1, L):
        monkeypatch.setattr(module, "together", lambda recipe, size=size: size)
        state = init_state(recipe, x, y)
        state = replace(state, quiet=state.quiet.at[1, :5].set(recipe.batch * 3))  # dead features in one layer only
        one_step = jax.jit(lambda state, x, y: train_step(recipe, state, x, y))
        for _ in range(3):
            state, metrics = one_step(state, x, y)
        ends.append((state, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), *ends)
