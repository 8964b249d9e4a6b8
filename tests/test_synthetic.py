"""Worlds with a known truth against their definition, in NumPy; measures against hand-worked cases and loops."""

from dataclasses import replace
from itertools import combinations, permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from experiments.synthetic import metrics, trial, world
from experiments.synthetic.world import WorldConfig
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


def test_features_fire_as_often_as_defined(drawn):
    cfg, _, s, values = drawn["alone"]
    p = expected(cfg)
    off = np.abs((values > 0).mean(0) - p) / np.sqrt(p * (1 - p) / TOKENS)
    assert off.max() < 4.5  # standard deviations; 80 features: chance 5e-4
    assert not s.dropped
    roots = np.flatnonzero(parents(cfg) < 0)
    np.testing.assert_allclose(p[roots], zipf(cfg)[roots])


def test_children_need_their_parents_and_exclude_their_siblings(drawn):
    for cfg, _, _, values in drawn.values():
        on, up = values > 0, parents(cfg)
        assert (up >= 0).sum() == 4 * (3 + 9)
        for parent in range(cfg.features):
            family = on[:, up == parent]
            assert family.sum(1).max(initial=0) <= 1
            assert not family[~on[:, parent]].any()
        assert on[:, up >= 0].any()


def test_a_child_grows_with_its_parent(drawn):
    cfg, w, _, values = drawn["correlated"]
    up = parents(cfg)
    for child in (cfg.roots, cfg.starts[2]):  # one below a root, one below that
        on = values[:, child] > 0
        parent = up[child]
        own = values[on, child] / (values[on, parent] / float(w.mean[parent]))
        sd = float(w.sd[child])
        assert abs(own.mean() - float(w.mean[child])) < 4 * sd / np.sqrt(on.sum())
        assert abs(own.std() / sd - 1) < 4 / np.sqrt(2 * on.sum())
        assert np.corrcoef(values[on, child], values[on, parent])[0, 1] > 0.2


def test_pairs_fire_together_as_the_copula_says(drawn):
    cfg, w, _, values = drawn["correlated"]
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


def test_worlds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="forest has 10880 nodes, more than features=1000"):
        WorldConfig(features=1000)
    with pytest.raises(InputError, match="p_min=0.5, p_max=0.4"):
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
