"""Scores against their definitions: finite differences, completeness of integrated gradients, single ablations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import remat_p

from experiments.toys import random_model
from tcircuits.circuits import forward, scores
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.scores import unit_scores
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

from .cases import Oracle, random_behaviour
from .test_running import SIZES, dictionary_of, sized

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module", params=["plt-relu", "clt-relu"])
def case(request):
    with jax.enable_x64(True):
        model = sized("llama")
        d, behaviour = dictionary_of(model, request.param), random_behaviour(model)
        yield model, d, behaviour, units_of(model.cfg, ("head", "feature"), d.cfg)


def test_gradients_are_finite_differences(case):
    model, d, behaviour, units = case
    found = unit_scores(model, behaviour, units, method="gradient", dictionary=d)
    chosen = [0, 3, *(units.starts["feature"] + np.flatnonzero(found.values[units.starts["feature"] :])[:3])]
    step = 2.0**-10  # exact in float32, as 1 - step is
    masks = np.ones((2 * len(chosen), units.n))
    for i, unit in enumerate(chosen):
        masks[2 * i, unit], masks[2 * i + 1, unit] = 1 + step, 1 - step
    m = run_circuits(model, behaviour, masks, units, dictionary=d, split="attribution").circuits.metric
    slope = (m[::2] - m[1::2]) / (2 * step)
    np.testing.assert_allclose(found.by_prompt[:, chosen].T, slope, rtol=1e-4, atol=1e-6)
    assert (found.forwards, found.backwards) == (3 * 3, 3)


def test_layers_computed_anew_give_the_same_gradient(case, monkeypatch):
    model, d, behaviour, units = case
    kept = unit_scores(model, behaviour, units, method="gradient", dictionary=d)
    tokens, valid, heads = jnp.arange(8), jnp.ones(8, bool), units_of(model.cfg, ("head",))

    def prepared():
        """How many loops over layers have a body that is computed anew."""
        whole = jax.make_jaxpr(lambda t: forward.run(model.cfg, model.params, None, heads, t, valid))(tokens)
        loops = [e.params["jaxpr"].jaxpr for e in whole.jaxpr.eqns if e.primitive.name == "scan"]
        return sum(e.primitive is remat_p for body in loops for e in body.eqns)

    assert prepared() == 0
    monkeypatch.setattr(forward, "KEPT_BYTES", 0.0)
    assert prepared() == 1
    jax.clear_caches()
    anew = unit_scores(model, behaviour, units, method="gradient", dictionary=d)
    jax.clear_caches()
    np.testing.assert_allclose(anew.by_prompt, kept.by_prompt, rtol=1e-12, atol=1e-14)


def test_integrated_gradients_add_up(case):
    model, d, behaviour, units = case
    masks = np.stack([np.ones(units.n), np.zeros(units.n)])
    m = run_circuits(model, behaviour, masks, units, dictionary=d, split="attribution").circuits.metric
    gaps = []
    for points in (2, 64):
        found = unit_scores(model, behaviour, units, method="ig", dictionary=d, points=points)
        gaps.append(np.abs(found.by_prompt.sum(1) - (m[0] - m[1])).max())
        np.testing.assert_allclose(found.values, found.by_prompt.mean(0))
    assert gaps[1] < 0.02 * np.abs(m[0] - m[1]).max()  # ReLU features bend the line: no rule is exact
    assert gaps[1] < gaps[0]


def test_exact_scores_are_single_ablations(case):
    model, _, behaviour, _ = case
    units, oracle = units_of(model.cfg, ("head", "mlp")), Oracle(model, None)
    found = unit_scores(model, behaviour, units, method="exact")
    p = behaviour["attribution"]
    for i in (0, 2):
        clean, other = oracle.worth(p.clean[i]), oracle.worth(p.other[i])

        def metric(mask, i=i, clean=clean, other=other):
            logits = oracle.masked(units, mask, p.clean[i], other, clean, "keep")
            right, wrong = (ids[ids >= 0] for ids in (p.right[i], p.wrong[i]))
            return logits[right].mean() - logits[wrong].mean()

        effects = [metric(np.ones(units.n)) - metric(1 - row) for row in np.eye(units.n)]
        np.testing.assert_allclose(found.by_prompt[i], effects, rtol=0, atol=1e-9)


def test_sizes_are_those_of_the_activations(case):
    model, d, behaviour, units = case
    found, oracle, p = (
        unit_scores(model, behaviour, units, method="activation", dictionary=d),
        Oracle(model, d),
        behaviour["attribution"],
    )
    for i in range(p.n):
        own = oracle.worth(p.clean[i])
        heads = np.linalg.norm(own["z"], axis=-1).mean(1).ravel()
        np.testing.assert_allclose(found.by_prompt[i], [*heads, *np.abs(own["feature"]).mean(1).ravel()], rtol=1e-9)


@pytest.mark.parametrize("method", ["gradient", "ig", "activation"])
def test_positions_of_unequal_prompts_sum_to_the_pooled_score(method, case):
    model, d, _, pooled = case
    lengths = {"attribution": (6, 3, 5), "selection": (6,), "report": (6,)}
    behaviour = random_behaviour(model, lengths=lengths)
    apart = units_of(model.cfg, pooled.kinds, d.cfg, positions=8)
    one, each = (unit_scores(model, behaviour, u, method=method, dictionary=d).by_prompt for u in (pooled, apart))
    by_place = each.reshape(3, pooled.n, 8)
    size = np.array(lengths["attribution"])
    # sizes are means over a prompt's positions, derivatives sums
    whole = by_place.sum(-1) / (size[:, None] if method == "activation" else 1)
    np.testing.assert_allclose(whole, one, rtol=1e-6, atol=1e-8 * np.abs(one).max())
    for row, n in zip(by_place, size, strict=True):
        assert not row[:, : 8 - n].any()  # where a prompt has no position
        assert row[:, -1].any()


def test_what_cannot_be_scored_is_refused(monkeypatch):
    model = random_model("gpt2", **SIZES, n_kv_heads=2)
    behaviour, units = random_behaviour(model), units_of(model.cfg, ("head",))
    with pytest.raises(InputError, match="'magic' is unknown"):
        unit_scores(model, behaviour, units, method="magic")
    with pytest.raises(InputError, match="at least 1"):
        unit_scores(model, behaviour, units, points=0)
    monkeypatch.setattr(scores, "MOST_EXACT", 3)
    with pytest.raises(InputError, match="at most 3"):
        unit_scores(model, behaviour, units, method="exact")
    one, two = (unit_scores(model, behaviour, units, method="random", seed=s).values for s in (0, 1))
    assert (one != two).any()
