"""Worlds with a known truth against their definition, in NumPy; measures against hand-worked cases and loops."""

import json
from dataclasses import replace
from itertools import combinations, permutations, product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import multivariate_normal, norm

from experiments import common, synthetic_truth
from experiments.synthetic import dense, metrics, rival_sae_lens, trial, world
from experiments.synthetic.world import WorldConfig
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import InputError

CFG = WorldConfig(
    features=80, d_model=12, p_max=0.4, p_min=0.02, roots=4, branching=3, depth=2, rank=3, correlation=0.35,
    turns=20, sd=(0.5, 0.2), seed=3,
)  # fmt: skip
TOKENS = 40_000
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def drawn():
    """A world without and one with correlation; per world what is active [B, N], the values [B, N], and the sample."""
    found = {}
    for name, cfg in (("alone", replace(CFG, correlation=0.0)), ("correlated", CFG)):
        w = world.make_world(cfg)
        s = jax.jit(world.sample, static_argnums=(0, 3))(cfg, w, jax.random.key(1), TOKENS)
        values = np.zeros((TOKENS, cfg.features))
        np.add.at(values, (np.asarray(s.token), np.asarray(s.index)), np.asarray(s.value))
        found[name] = cfg, w, s, values
    return found


@pytest.fixture(scope="module", params=["listed", "dense"])
def either(request, drawn):
    """The same, drawn in both ways."""
    if request.param == "listed":
        return drawn
    draw = jax.jit(dense.values, static_argnums=(0, 3))
    return {
        name: (cfg, w, s, np.asarray(draw(cfg, w, jax.random.key(1), TOKENS), np.float64))
        for name, (cfg, w, s, _) in drawn.items()
    }


def parents(cfg):
    """The parent of each feature, -1 for none: the tree is walked level by level."""
    out, level, used = [-1] * cfg.features, list(range(cfg.roots)), cfg.roots
    for _ in range(cfg.depth):
        below = []
        for parent in level:
            for _ in range(cfg.branching):
                out[used] = parent
                below.append(used)
                used += 1
        level = below
    return np.array(out)


def zipf(cfg):
    raw = np.array([1 / r**cfg.exponent for r in range(1, cfg.features + 1)])
    return cfg.p_min + (cfg.p_max - cfg.p_min) * (raw - raw.min()) / (raw.max() - raw.min())


def expected(cfg):
    """How often each feature is active when nothing is correlated: siblings that fire at once draw lots."""
    up, p = parents(cfg), zipf(cfg)
    out = p.copy()
    for parent in range(cfg.features):
        family = np.flatnonzero(up == parent)
        alone = [p[j] / p[parent] * (1 + (p[family].sum() - p[j]) / p[parent]) for j in family]
        alone = np.minimum(alone, 1)
        for place, j in enumerate(family):
            wins = 0.0
            for fires in product([0, 1], repeat=len(family)):
                chance = np.prod([q if on else 1 - q for q, on in zip(alone, fires, strict=True)])
                wins += chance * fires[place] / max(sum(fires), 1)
            out[j] = out[parent] * wins
    return out


def test_features_fire_as_often_as_defined(either):
    cfg, _, s, values = either["alone"]
    p = expected(cfg)
    off = np.abs((values > 0).mean(0) - p) / np.sqrt(p * (1 - p) / TOKENS)
    assert off.max() < 4.5  # standard deviations; 80 features: chance 5e-4
    assert not s.dropped
    roots = np.flatnonzero(parents(cfg) < 0)
    np.testing.assert_allclose(p[roots], zipf(cfg)[roots])


def test_children_need_their_parents_and_exclude_their_siblings(either):
    for cfg, _, _, values in either.values():
        on, up = values > 0, parents(cfg)
        assert (up >= 0).sum() == 4 * (3 + 9)
        for parent in range(cfg.features):
            family = on[:, up == parent]
            assert family.sum(1).max(initial=0) <= 1
            assert not family[~on[:, parent]].any()
        assert on[:, up >= 0].any()


def test_a_child_grows_with_its_parent(either):
    cfg, w, _, values = either["correlated"]
    up = parents(cfg)
    for child in (cfg.roots, cfg.starts[2]):  # one below a root, one below that
        on = values[:, child] > 0
        parent = up[child]
        own = values[on, child] / (values[on, parent] / float(w.mean[parent]))
        sd = float(w.sd[child])
        assert abs(own.mean() - float(w.mean[child])) < 4 * sd / np.sqrt(on.sum())
        assert abs(own.std() / sd - 1) < 4 / np.sqrt(2 * on.sum())
        assert np.corrcoef(values[on, child], values[on, parent])[0, 1] > 0.2


def test_pairs_fire_together_as_the_copula_says(either):
    cfg, w, _, values = either["correlated"]
    on, f, p = values > 0, np.asarray(w.factor, np.float64), zipf(cfg)
    free = np.flatnonzero(parents(cfg) < 0)
    pairs = sorted(combinations(free, 2), key=lambda ij: -abs(f[ij[0]] @ f[ij[1]]))[:12]
    assert abs(f[pairs[0][0]] @ f[pairs[0][1]]) > 0.4
    for i, j in pairs:
        rho = f[i] @ f[j]
        both = multivariate_normal.cdf([norm.ppf(p[i]), norm.ppf(p[j])], cov=[[1, rho], [rho, 1]])
        off = (on[:, i] & on[:, j]).mean() - both
        assert abs(off) < 4 * np.sqrt(both * (1 - both) / TOKENS) + 1e-5  # the integral's own error


def test_activations_are_the_sum(drawn):
    cfg, w, s, values = drawn["correlated"]
    x = np.asarray(world.activations(w, s))
    truth = values @ np.asarray(w.directions, np.float64) + np.asarray(w.bias)
    np.testing.assert_allclose(x, truth, rtol=0, atol=8 * 2**-23 * np.abs(truth).max() * 10)  # sums of about 10 terms
    np.testing.assert_array_equal(np.asarray(world.is_active(cfg, s)), values > 0)
    np.testing.assert_allclose(np.linalg.norm(w.directions, axis=1), 1, rtol=1e-6)
    assert abs(np.linalg.norm(w.bias) - 0.5) < 1e-6


def test_what_finds_no_place_is_counted(drawn, monkeypatch):
    cfg, w, _, _ = drawn["alone"]
    whole = jax.jit(lambda key: world.sample(cfg, w, key, 50))(jax.random.key(2))
    free = np.flatnonzero(parents(cfg) < 0)
    active = np.asarray(world.is_active(cfg, whole))
    roots, others = active[:, :4].sum(), active[:, free[4:]].sum()
    monkeypatch.setattr(world, "room", lambda mean, most: 5)
    few = jax.jit(lambda key: world.sample(cfg, w, key, 50))(jax.random.key(2))
    assert int(few.dropped) == roots - 5 + others - 5 > 0


def test_directions_are_pushed_apart():
    rng = np.random.default_rng(0)
    e = rng.normal(size=(30, 8))
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    slope = np.zeros_like(e)
    for i in range(30):
        for j in range(30):
            if i != j:
                slope[i] += 4 * (e[i] @ e[j]) * e[j]
        slope[i] += 4 * 30 * (e[i] @ e[i] - 1) * e[i]
    once = e - 1e-2 * np.sign(slope)  # Adam's first step
    once /= np.linalg.norm(once, axis=1, keepdims=True)
    cfg = replace(CFG, features=30, d_model=8, roots=1, depth=1, turns=1, turn_lr=1e-2)
    clear = (np.abs(slope) > 1e-3).all(1)
    assert clear.sum() > 20
    np.testing.assert_allclose(world.apart(cfg, jnp.asarray(e))[clear], once[clear], atol=2e-6)

    def overlap(x):
        return ((x @ x.T) ** 2).sum() - 30

    more = np.asarray(world.apart(replace(cfg, turns=100), jnp.asarray(e)), np.float64)
    assert overlap(more) < overlap(once) < overlap(e)


def test_the_full_world_has_the_published_number_of_active_features():
    """About 34, about 25 of them among the 4,096 most frequent (arXiv 2602.14687, and the tool's documentation)."""
    cfg = replace(WorldConfig(), d_model=2, turns=0)
    s = jax.jit(world.sample, static_argnums=(0, 3))(cfg, world.make_world(cfg), jax.random.key(0), 1024)
    on = np.asarray(s.value) > 0
    assert not s.dropped
    assert abs(on.sum() / 1024 - 34) < 1.5  # its standard error is 0.35
    assert abs((on & (np.asarray(s.index) < 4096)).sum() / 1024 - 25) < 1.5


@pytest.mark.parametrize("part", [1, 8])
def test_the_library_that_defines_the_benchmark_is_asked_for_the_same_world(part):
    names = (
        *("SyntheticModelConfig", "HierarchyConfig", "ZipfianFiringProbabilityConfig", "OrthogonalizationConfig"),
        *("LowRankCorrelationConfig", "LinearMagnitudeConfig", "FoldedNormalMagnitudeConfig"),
    )
    law = rival_sae_lens.world(SimpleNamespace(**dict.fromkeys(names, SimpleNamespace)), part)
    tree, p, turns, means = law.hierarchy, law.firing_probability, law.orthogonalization, law.mean_firing_magnitudes
    assert world.scaled(WorldConfig(), part) == WorldConfig(
        *(law.num_features, law.hidden_dim, p.exponent, p.max_prob, p.min_prob),
        *(tree.total_root_nodes, tree.branching_factor, tree.max_depth),
        *(law.correlation.rank, law.correlation.correlation_scale, turns.num_steps, turns.lr, means.start, means.end),
        (law.std_firing_magnitudes.mean, law.std_firing_magnitudes.std),
        law.bias,
        law.seed,
    )
    assert tree.mutually_exclusive_portion == 1
    assert tree.compensate_probabilities
    assert tree.scale_children_by_parent


def test_worlds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="forest has 10880 nodes, more than features=1000"):
        WorldConfig(features=1000)
    with pytest.raises(InputError, match=r"p_min=0\.5, p_max=0\.4"):
        WorldConfig(p_min=0.5)


def test_measures_by_hand():
    # Two features find the first direction; the third finds the third.
    directions = np.eye(3)
    decoder = np.array([[2.0, 0, 0], [-3, 4, 0], [0, 0, 0.5], [0, 0, 0]])
    cos = metrics.cosines(decoder, directions)
    np.testing.assert_allclose(cos, [[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 0, 0]], atol=1e-15)
    assert metrics.mean_correlation(cos) == pytest.approx((1 + 0.8 + 1) / 3)
    assert metrics.uniqueness(np.array([0, 0, 2, 2, 1])) == 0.6
    found = metrics.detection(np.array([3, 0, 2]), np.array([4, 0, 2]), np.array([6, 5, 2]))
    assert found["precision"] == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert found["recall"] == pytest.approx((3 / 6 + 0 + 1) / 3)
    assert found["f1"] == pytest.approx((2 * 0.75 * 0.5 / 1.25 + 0 + 1) / 3)


@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (4, 4)])
def test_the_assignment_is_the_best_of_all(shape):
    cos = np.random.default_rng(sum(shape)).random(shape)
    small = cos if shape[0] <= shape[1] else cos.T
    ways = permutations(range(small.shape[1]), small.shape[0])
    best = max(np.mean([small[i, j] for i, j in enumerate(way)]) for way in ways)
    assert metrics.mean_correlation(cos) == pytest.approx(best)


def test_a_dictionary_is_measured_as_defined(drawn):
    """All figures once more in NumPy, from the same batches."""
    cfg, w, _, _ = drawn["correlated"]
    batches, n, F, seed = 3, 200, 20, 7
    rng = np.random.default_rng(0)
    enc, dec = rng.normal(size=(F, cfg.d_model)), rng.normal(size=(F, cfg.d_model))
    dec[3], enc[4] = 0.0, 0.0  # one writes nothing, one is never on
    own = TranscoderConfig("sae", 1, cfg.d_model, F, (0,), "batchtopk", reads="resid_post", writes="resid_post")
    shift = rng.normal(size=cfg.d_model)
    arrays = {"w_enc": enc[None], "b_enc": np.zeros((1, F)), "w_dec": dec[None], "b_dec": shift[None]}
    d = Transcoders(
        own,
        "random",
        **{k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()},
        threshold=jnp.full((1, F), 1.5),
        w_skip=None,
    )
    got = trial.measure(d, cfg, w, seed, batches, n)
    key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
    xs, actives = [], []
    for i in range(batches):
        s = jax.jit(world.sample, static_argnums=(0, 3))(cfg, w, jax.random.fold_in(key, i), n)
        xs.append(np.asarray(world.activations(w, s), np.float64))
        actives.append(np.asarray(world.is_active(cfg, s)))
    x, active = np.concatenate(xs), np.concatenate(actives)
    pre = x @ enc.T
    assert np.abs(pre - 1.5).min() > 1e-5  # nothing that rounding could turn on or off
    f = np.where(pre > 1.5, pre, 0)
    guess = f @ dec + shift
    truth = np.asarray(w.directions, np.float64)
    cos = np.array([[abs(a @ b) / max(np.linalg.norm(a), 1e-8) / np.linalg.norm(b) for b in truth] for a in dec])
    scores = []
    for j in range(F):
        t, p = active[:, cos[j].argmax()], f[:, j] > 0
        precision = (t & p).sum() / p.sum() if p.any() else 0.0
        recall = (t & p).sum() / t.sum() if t.any() else 0.0
        scores.append((precision, recall, 2 * precision * recall / (precision + recall) if (t & p).any() else 0.0))
    means = dict(zip(("precision", "recall", "f1"), np.mean(scores, 0), strict=True))
    rows, columns = linear_sum_assignment(-cos)
    variance = ((x - x.mean(0)) ** 2).sum()
    expected = means | {
        "mcc": cos[rows, columns].mean(),
        "uniqueness": len(set(cos.argmax(1))) / F,
        "explained_variance": 1 - ((x - guess) ** 2).sum() / variance,
        "l0": (f > 0).sum() / len(x),
        "dead": (f == 0).all(0).sum(),
        "shrinkage": (np.linalg.norm(guess, axis=1) / np.linalg.norm(x, axis=1)).mean(),
        "true_l0": active.sum() / len(x),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-5), name  # float32 sums of 600 tokens


def test_jumprelu_starts_at_the_wanted_number_of_features():
    scale = synthetic_truth.SCALES["eighth"]
    recipe = synthetic_truth.recipe("jumprelu", replace(CFG, features=160, d_model=12), scale, 3.5, 2560)
    x = np.random.default_rng(0).normal(2.0, 1.0, (1, 300, 12)).astype(np.float32)
    state = trial.first_state(recipe, jnp.asarray(x))
    w = {name: np.asarray(getattr(state.weights, name)[0], np.float64) for name in ("w_enc", "b_enc", "log_threshold")}
    pre = x[0] / np.sqrt((x**2).mean()) @ w["w_enc"].T + w["b_enc"]
    assert abs((pre > np.exp(w["log_threshold"]) * (1 - 1e-5)).sum() - 3.5 * 300) <= 1  # one that rounding moved


def test_what_free_rows_change():
    scale, law = synthetic_truth.SCALES["full"], WorldConfig()
    every = {m: synthetic_truth.recipe(m, law, scale, 25.0, 200_000_000, 1e-2) for m in synthetic_truth.METHODS}
    for name, r in every.items():
        free = name in ("free", "small", "decayed")
        assert r.decoder_norm == ("free" if free else "unit")
        assert r.start == ("small" if name in ("small", "decayed") else "tied")
        assert r.optimizer.decay == (1 / 3 if name == "decayed" else 0.0)
        assert r.objective.by_norm == free
        assert r.objective.dead_after == (1_024_000 if free else 10_000_000)


@pytest.mark.slow  # nearly all of it compiles two trainers within one program
def test_the_experiment_runs_and_leaves_a_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    small = synthetic_truth.Scale(
        part=16, tokens=640, batch=64, lr=2e-3, warmup=1, decay=0.3, l1=(1e-2, 1e-1), measured=1024
    )
    monkeypatch.setitem(synthetic_truth.SCALES, "eighth", small)
    synthetic_truth.main(synthetic_truth.Config(methods=("batchtopk", "apart"), l0=(25.0,), seeds=(1, 2)))
    figures = json.loads((tmp_path / "synthetic_truth.json").read_text())["figures"]
    assert [(r["method"], r["seed"]) for r in figures["rows"]] == [
        (m, s) for s in (1, 2) for m in ("batchtopk", "apart")
    ]
    apart = [r["f1"] for r in figures["rows"] if r["method"] == "apart"]
    base, line = figures["summary"]
    assert line["f1"] == pytest.approx(np.mean(apart))
    assert line["f1_sd"] == pytest.approx(abs(apart[0] - apart[1]) / np.sqrt(2))
    assert line["f1_gain"] == pytest.approx(line["f1"] - base["f1"])
    assert (base["f1_published"], base["f1_gain"], base["f1_gain_published"]) == (0.7316, 0, 0)
    assert line["f1_published"] is None
    assert all(0 < r["mcc"] < 1 and 0 <= r["f1"] < 1 and 0.5 < r["l0"] < 5 for r in figures["rows"])
    assert "batchtopk" in capsys.readouterr().out


def test_a_run_that_was_cut_off_is_completed(tmp_path, monkeypatch):
    """Rows of the same commit and sizes are kept, of others not; only seeds that are missing are trained."""
    state, ran = {"commit": "a", "dirty": False}, []

    def one(cfg, scale, world, arrays, tokens, asked, seed, curve):
        ran.append((asked, seed))
        return [
            {"l0_asked": asked, "method": "batchtopk", "seed": seed} | dict.fromkeys(synthetic_truth.MEASURED, seed)
        ]

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "commit", lambda: dict(state))
    monkeypatch.setattr(synthetic_truth, "one_seed", one)
    monkeypatch.setattr(synthetic_truth, "make_world", lambda cfg: None)
    cfg = synthetic_truth.Config(methods=("batchtopk",), l0=(25.0, 20.0), seeds=(1, 2))
    synthetic_truth.main(replace(cfg, seeds=(1,)))
    synthetic_truth.main(cfg)
    assert ran == [(25, 1), (20, 1), (25, 2), (20, 2)]
    lines = json.loads((tmp_path / "synthetic_truth.json").read_text())["figures"]["summary"]
    assert [(x["l0_asked"], x["seeds"], x["f1"]) for x in lines] == [(25, 2, 1.5), (20, 2, 1.5)]
    state["commit"] = "b"
    synthetic_truth.main(replace(cfg, l0=(25.0,)))
    assert ran[4:] == [(25, 1), (25, 2)]
    synthetic_truth.main(replace(cfg, l0=(25.0,), tokens=1000))
    assert ran[6:] == [(25, 1), (25, 2)]


def test_the_weight_of_l1_is_read_off_the_curve():
    curve = [{"l1": 0.01, "l0": 8.0}, {"l1": 0.04, "l0": 2.0}, {"l1": 0.08, "l0": 0.0}]
    assert synthetic_truth.l1_weight(curve, 4.0) == pytest.approx(0.02)  # halfway in both logarithms
    assert synthetic_truth.l1_weight(curve, 100.0) == pytest.approx(0.01)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(InputError, match="'pca' is unknown; there are batchtopk"):
        synthetic_truth.main(synthetic_truth.Config(methods=("pca",)))
    with pytest.raises(InputError, match=r"batchtopk needs objective\.k"):
        synthetic_truth.main(synthetic_truth.Config(l0=(4.0,)))
    with pytest.raises(InputError, match="at least one of each"):
        synthetic_truth.main(synthetic_truth.Config(seeds=()))
