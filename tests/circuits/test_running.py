"""Masked runs against plain edits, ablation by ablation; identities; padding; bad input."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.toys import random_dictionary, random_model
from tcircuits.circuits import running, scores
from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.running import check, parts, run_circuits
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

from ..tiers import tiered
from .cases import Oracle, metric_of, random_behaviour

pytestmark = pytest.mark.usefixtures("quick_compile")
SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 31, "n_ctx": 12}
CASES = [
    ("gpt2", ("head", "mlp"), None, "resample", "keep"),
    ("llama", ("attn", "mlp"), None, "mean", "keep"),
    ("neox", ("head", "feature"), "neurons", "resample", "keep"),
    ("gpt2", ("head", "feature"), "plt-skip", "resample", "ablate"),
    ("gemma2", ("feature",), "plt-relu", "resample", "clean"),
    ("llama", ("head", "feature"), "clt-relu", "mean", "keep"),
    ("gpt2", ("attn", "feature"), "clt-relu", "resample", "ablate"),
    ("qwen3", ("head", "feature"), "plt-topk", "zero", "keep"),
]
QUICK = [CASES[i] for i in (0, 3, 5)]


def sized(family, **switches):
    more = {"windows": (6, 0)} if family == "gemma2" else {}
    heads = {"n_kv_heads": 1} if family in ("llama", "gemma2", "qwen3") else {"n_kv_heads": 2}
    return random_model(family, dtype="float64", **SIZES | heads | more | switches)


def dictionary_of(model, kind):
    tokens = np.arange(8) % model.cfg.d_vocab
    return None if kind is None else random_dictionary(model, kind, tokens, d_feature=24)


def reference_of(ablation, oracle, behaviour, tokens, other):
    if ablation == "resample":
        return oracle.worth(other)
    own = oracle.worth(tokens)
    if ablation == "zero":
        return {name: np.zeros_like(a) for name, a in own.items()}
    p = behaviour["attribution"]
    rows = [oracle.worth(row[start:]) for row, start in zip(p.clean, p.padding, strict=True)]
    return {name: np.mean([r[name] for r in rows], 0)[:, -len(tokens) :] for name in own}


@pytest.mark.parametrize(
    ("family", "kinds", "kind", "ablation", "errors"), tiered(CASES, [CASES[i] for i in (0, 3, 5)])
)
def test_masked_runs_are_edits(family, kinds, kind, ablation, errors, x64):
    model = sized(family)
    d, behaviour = dictionary_of(model, kind), random_behaviour(model, metric="probability_difference")
    units, oracle = units_of(model.cfg, kinds, None if d is None else d.cfg), Oracle(model, d)
    masks = (np.random.default_rng(1).uniform(size=(2, units.n)) < 0.5).astype(float)
    masks[1] = np.random.default_rng(2).uniform(size=units.n)  # between
    how = {"dictionary": d, "ablation": ablation, "errors": errors}
    runs = run_circuits(model, behaviour, masks, units, at_once=2, batch=2, **how)
    p = behaviour["report"]
    for i, (row, other, start) in enumerate(zip(p.clean, p.other, p.padding, strict=True)):
        tokens = row[start:]
        clean, reference = oracle.worth(tokens), reference_of(ablation, oracle, behaviour, tokens, other[start:])
        for c, mask in enumerate(masks):
            logits = oracle.masked(units, mask, tokens, reference, clean, errors)
            expected = metric_of(behaviour.metric, logits, p.right[i], p.wrong[i])
            # masks are float32: 2^-24 of each unit's value
            np.testing.assert_allclose(runs.circuits.metric[c, i], expected, rtol=0, atol=2e-6)
            assert runs.circuits.choice[c, i] == logits.argmax()
            assert runs.circuits.right[c, i] == (logits.argmax() in p.right[i])


@pytest.mark.parametrize(("kind", "errors"), [("neurons", "keep"), ("plt-jumprelu", "clean"), ("clt-relu", "keep")])
def test_everything_kept_is_the_model_and_nothing_kept_is_the_counterfactual(kind, errors, x64):
    model = sized("gpt2")
    d = dictionary_of(model, kind)
    behaviour = random_behaviour(model)
    units = units_of(model.cfg, ("head", "feature"), d.cfg)
    runs = run_circuits(
        model, behaviour, np.stack([np.ones(units.n), np.zeros(units.n)]), units, dictionary=d, errors=errors
    )
    np.testing.assert_allclose(runs.circuits.metric[0], runs.model.metric, atol=1e-12)
    np.testing.assert_allclose(runs.circuits.kl[0], 0, atol=1e-12)
    assert (runs.circuits.kl[1] > 1e-6).all()


def test_figures_do_not_depend_on_batches():
    model = random_model("llama", **SIZES, n_kv_heads=1)
    behaviour, units = random_behaviour(model), units_of(model.cfg, ("head", "mlp"))
    masks = np.random.default_rng(0).uniform(size=(5, units.n)) < 0.5
    one = run_circuits(model, behaviour, masks, units, at_once=5, batch=3)
    many = run_circuits(model, behaviour, masks, units, at_once=2, batch=2)
    for name in ("metric", "kl"):
        a, b = (np.asarray(getattr(r.circuits, name)) for r in (one, many))
        np.testing.assert_allclose(a, b, rtol=0, atol=2**-24 * 64 * np.abs(a).max())
    np.testing.assert_array_equal(one.circuits.choice, many.circuits.choice)


@pytest.mark.parametrize("kinds", [("mlp",), ("head", "feature")])
@pytest.mark.parametrize("positions", [6, 8])
def test_a_unit_at_one_position_changes_that_position_alone(kinds, positions, x64):
    model = sized("gpt2")
    behaviour = random_behaviour(model, lengths={"attribution": (6,), "selection": (6,), "report": (6, 3, 6)})
    d = dictionary_of(model, "plt-relu") if "feature" in kinds else None
    units = units_of(model.cfg, kinds, None if d is None else d.cfg, positions=positions)
    mask = np.ones(units.n)
    mask[[u for u in range(units.n) if units.label(u).endswith("@-2")]] = 0
    runs = run_circuits(model, behaviour, mask[None], units, dictionary=d)
    p, oracle = behaviour["report"], Oracle(model, d)
    for i in range(p.n):
        tokens, other = p.clean[i][p.padding[i] :], p.other[i][p.padding[i] :]
        clean, reference = oracle.worth(tokens), oracle.worth(other)
        logits = oracle.masked(units, mask, tokens, reference, clean, "keep")
        expected = metric_of(behaviour.metric, logits, p.right[i], p.wrong[i])
        np.testing.assert_allclose(runs.circuits.metric[0, i], expected, rtol=0, atol=2e-6)


def test_what_cannot_be_run_is_refused():
    model = random_model("gpt2", **SIZES, n_kv_heads=2)
    behaviour, units = random_behaviour(model), units_of(model.cfg, ("head", "mlp"))
    good = np.ones((1, units.n))
    for change, words in (
        ({"masks": good[:, 1:]}, "masks have shape"),
        ({"masks": good * np.nan}, "not finite"),
        ({"ablation": "noise"}, "ablation 'noise' is unknown"),
        ({"errors": "drop"}, "errors 'drop' is unknown"),
        ({"split": "test"}, "split 'test' is unknown"),
        ({"units": units_of(replace(model.cfg, n_layers=3), ("head", "mlp"))}, "units are for 3 layers"),
        ({"units": units_of(model.cfg, ("mlp",), positions=5)}, "the longest prompt has 6.*positions=6"),
        ({"behaviour": replace(behaviour, model="other")}, "the tokens of 'other'"),
    ):
        given = {"behaviour": behaviour, "masks": good, "units": units} | change
        with pytest.raises(InputError, match=words):
            run_circuits(model, given.pop("behaviour"), given.pop("masks"), given.pop("units"), **given)


def test_units_that_do_not_fit_are_refused_and_the_others_are_named():
    model = random_model("gpt2", **SIZES, n_kv_heads=2)
    d = dictionary_of(model, "neurons")
    for kinds, words in (
        ((), "at least one kind"),
        (("head", "tail"), "'tail' is unknown"),
        (("head", "attn"), "overlap"),
        (("feature",), "need a dictionary"),
    ):
        with pytest.raises(InputError, match=words):
            units_of(model.cfg, kinds)
    units = units_of(model.cfg, ("feature", "head"), d.cfg, positions=3)
    assert units.kinds == ("head", "feature")
    assert units.n == 2 * 2 * 3 + 2 * 24 * 3
    assert [units.label(u) for u in (0, 5, 12, 12 + 24 * 3 + 7)] == [
        "head 0.0@-3",
        "head 0.1@-1",
        "feature 0/0@-3",
        "feature 1/2@-2",
    ]
    places = [(*units.where(u)[:2], units.where(u)[3]) for u in range(units.n)]
    assert len(set(zip(places, units.groups().tolist(), strict=True))) == len(set(places)) == 2 * 2 * 3
    with pytest.raises(InputError, match="outside"):
        units.where(units.n)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_programs_lower_for(platform):
    model = random_model("llama", **SIZES, n_kv_heads=1)
    d, behaviour = dictionary_of(model, "plt-relu"), random_behaviour(model)
    (prompts,) = parts(model, behaviour["report"], 2)
    for units in (units_of(model.cfg, ("head", "feature"), d.cfg), edges_of(model.cfg)):
        s = check(model, behaviour, units, d, "resample", "keep", "report")
        groups = jnp.ones((1, 2, units.n))
        for program, arguments in (
            (running.runs_program, (s, model.params, d, None, groups, prompts)),
            (scores._gradients, (s, model.params, d, None, jnp.ones(1), jnp.ones(1), prompts)),
        ):
            assert program.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
