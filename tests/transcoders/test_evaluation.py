"""Evaluations of every kind of dictionary against definitions in NumPy float64, and against closed forms."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.models.model import Model
from tcircuits.transcoders.config import SAE_SITES, TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.measure import measure
from tcircuits.transcoders.evaluation.results import EDGES, NAMES
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.types import InputError
from tests import bridge
from tests.transcoders import evaluated

pytestmark = pytest.mark.usefixtures("quick_compile")

KINDS = {
    "skip": lambda: evaluated.case("gpt2", "plt-skip"),
    "cross-layer": lambda: evaluated.case("llama", "clt-relu"),
    "before a post-norm": lambda: evaluated.case("gemma2", "plt-raw"),
    "cross-layer after a post-norm": lambda: evaluated.case("gemma2", "clt-jumprelu"),
    "parallel": lambda: evaluated.case("neox", "plt-topk"),
    "parallel cross-layer skip": lambda: evaluated.case("neox", "clt-skip"),
    "one layer": lambda: evaluated.case("llama", "some-layers"),
    "neurons": lambda: evaluated.case("gemma2", "neurons"),
    "SAE on mlp_out": lambda: evaluated.sae("gemma2", "mlp_out"),
    "SAE on mlp_in": lambda: evaluated.sae("gpt2", "mlp_in"),
    "SAE on resid_mid": lambda: evaluated.sae("llama", "resid_mid"),
    "SAE on resid_pre": lambda: evaluated.sae("neox", "resid_pre"),
    "SAE on resid_post": lambda: evaluated.sae("llama", "resid_post"),
}
QUICK = ("cross-layer after a post-norm", "parallel cross-layer skip", "SAE on resid_pre")
SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]
FIGURES = ("fvu", "l0", "dead", "bias", "l2_ratio", "shrinkage", "frequency", "mean_active", "largest")


def model_of(c, dtype="float64"):
    return Model(bridge.model_config(c.cfg), bridge.params(c.params, dtype), None, c.name)


def evaluation(c, dtype="float64", **options):
    d = bridge.transcoders(c.d, dtype)
    return evaluate(model_of(c, dtype), d, c.rows, **{"batch": 2, "draws": 20, **options})


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.usefixtures("x64")
def test_every_figure_is_that_of_the_definition(name):
    c = KINDS[name]()
    covered = c.d.cfg.layers
    sets = [(i,) for i in covered] + ([covered, (0, 2)] if len(covered) > 1 else [])
    e = evaluation(c, conditions=sets)
    for slot, (layer, expected) in enumerate(evaluated.figures(c).items()):
        for figure in FIGURES:
            got = np.asarray(getattr(e, figure))[slot]
            np.testing.assert_allclose(got, expected[figure], rtol=1e-9, atol=1e-11, err_msg=f"{layer} {figure}")
        seen = expected["frequency"][expected["frequency"] > 0]
        assert e.histogram[slot].sum() == len(seen)
        np.testing.assert_array_equal(e.histogram[slot], np.histogram(np.log10(seen), EDGES)[0])
    original = evaluated.losses(c, (), "dictionary")[0]
    np.testing.assert_allclose(e.losses.original, original, rtol=1e-10)
    for j, layers in enumerate(e.sets):
        for i, how in enumerate(NAMES):
            expected = evaluated.losses(c, layers, how)
            got = np.stack([e.losses.ce[i, j], e.losses.kl[i, j], e.losses.agree[i, j]])
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11, err_msg=f"{layers} {how}")
        r = e.replacing(layers)
        assert r.ce["dictionary"] == pytest.approx(e.losses.ce[0, j].mean(), rel=1e-12)
        assert r.delta["zero"].value == pytest.approx(r.ce["zero"] - original.mean(), abs=1e-10)
        for base in NAMES[1:]:
            if r.recovered[base] is not None:
                share = (r.ce[base] - r.ce["dictionary"]) / (r.ce[base] - original.mean())
                assert r.recovered[base].value == pytest.approx(share, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross-layer", "SAE on resid_pre"])
@pytest.mark.usefixtures("x64")
def test_position_0_can_be_replaced_too(name):
    c = KINDS[name]()
    e = evaluation(c, conditions=[(0, 1)], keep_first=False)
    for i, how in enumerate(NAMES):
        np.testing.assert_allclose(e.losses.ce[i, 0], evaluated.losses(c, (0, 1), how, start=0)[0], rtol=1e-9)
    kept = evaluation(c, conditions=[(0, 1)])
    assert abs(kept.losses.ce[0, 0] - e.losses.ce[0, 0]).max() > 1e-4, "it matters"
    np.testing.assert_array_equal(kept.fvu, e.fvu)


@pytest.mark.parametrize(
    "family", ["gemma2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gpt2", "llama", "neox"))]
)
def test_neurons_lose_nothing(family):
    e = evaluation(evaluated.case(family, "neurons"), "float32")
    assert e.sets[-1] == (0, 1, 2)
    assert e.fvu.max() < 1e-10
    np.testing.assert_allclose(e.losses.ce[0], np.broadcast_to(e.losses.original, e.losses.ce[0].shape), atol=2e-6)
    assert abs(e.losses.kl[0]).max() < 1e-6
    np.testing.assert_array_equal(e.losses.agree[0], 1.0)
    assert abs(e.losses.ce[1] - e.losses.original).max() > 0.01, "zero does lose something"


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("site", [pytest.param(s, marks=() if s == "mlp_in" else pytest.mark.slow) for s in SAE_SITES])
def test_a_perfect_dictionary_and_one_that_shrinks(site, scale):
    """Features (x)+ and (-x)+ rebuild x exactly; with decoders of length s all figures follow from s."""
    c = evaluated.case("llama", "plt-relu")
    n, D = c.cfg.n_layers, c.cfg.d_model
    rows = jnp.broadcast_to(jnp.concatenate([jnp.eye(D), -jnp.eye(D)]), (n, 2 * D, D))
    cfg = TranscoderConfig("sae", n, D, 2 * D, tuple(range(n)), reads=site, writes=site)
    zeros = (jnp.zeros((n, 2 * D)), jnp.zeros((n, D)))
    d = Transcoders(cfg, "mirror", rows, zeros[0], scale * rows, zeros[1], None, None)
    e = evaluate(model_of(c, "float32"), d, c.rows, draws=10)
    np.testing.assert_allclose(e.l0, D)
    for figure, expected in (("bias", scale), ("l2_ratio", scale), ("shrinkage", 1 - scale)):
        np.testing.assert_allclose(getattr(e, figure), expected, atol=2e-6, err_msg=figure)
    norms = np.asarray(e.sums.guess_square) / scale**2
    np.testing.assert_allclose(e.fvu, (1 - scale) ** 2 * norms / e.variance, rtol=1e-5, atol=1e-12)
    if scale == 1:
        assert abs(e.losses.ce[0] - e.losses.original).max() < 1e-5
    else:
        assert abs(e.losses.ce[0, -1] - e.losses.original).max() > 1e-4 or site == "resid_post"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross-layer", "SAE on mlp_in", "parallel"])
@pytest.mark.usefixtures("x64")
def test_figures_do_not_depend_on_the_batch(name):
    c = KINDS[name]()
    one, four = (evaluation(c, batch=n) for n in (1, 4))  # 5 rows: the last batch of 4 is filled up
    for a, b in zip(*(dataclasses.astuple(e.sums) for e in (one, four)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)
    for a, b in zip(*(dataclasses.astuple(e.losses) for e in (one, four)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(one.largest.shape, four.largest.shape)
    np.testing.assert_allclose(one.largest, four.largest, rtol=1e-12)


def test_one_program_serves_all_batches_and_sources_and_its_numbers_repeat():
    c = KINDS["skip"]()
    first = evaluation(c, "float32")
    count = measure._cache_size()
    d = dataclasses.replace(bridge.transcoders(c.d, "float32"), source="another")
    again = evaluate(model_of(c, "float32"), d, c.rows, batch=2, draws=20)
    assert measure._cache_size() == count
    assert again.to_json() | {"dictionary": "case"} == first.to_json()


class Endless:
    """Rows without an end."""

    def __init__(self, rows):
        self.table = rows

    def rows(self, first, n):
        return self.table[np.arange(first, first + n) % len(self.table)]


def test_rows_come_from_arrays_and_from_sources_by_number():
    c = KINDS["one layer"]()
    m, d = model_of(c, "float32"), bridge.transcoders(c.d, "float32")
    whole = evaluate(m, d, c.rows, batch=2, draws=5)
    assert (whole.n_rows, whole.context, whole.n_positions, whole.n_predictions) == (5, 7, 30, 25)
    some = evaluate(m, d, c.rows, n_tokens=27, batch=2, draws=5)
    assert some.n_rows == 3, "whole rows"
    same = evaluate(m, d, Endless(c.rows), n_tokens=35, batch=2, draws=5)
    assert same.to_json() == whole.to_json()
    np.testing.assert_array_equal(whole.losses.original[:3], some.losses.original)


def refused(match, c=None, rows=None, d=None, **options):
    c = KINDS["one layer"]() if c is None else c
    d = bridge.transcoders(c.d, "float32") if d is None else d
    before = measure._cache_size()
    with pytest.raises(InputError, match=match):
        evaluate(model_of(c, "float32"), d, c.rows if rows is None else rows, **options)
    assert measure._cache_size() == before, "nothing was compiled"


def test_what_does_not_fit_is_refused_before_anything_is_compiled():
    c = KINDS["one layer"]()
    d = bridge.transcoders(c.d, "float32")
    deeper = TranscoderConfig("transcoder", 5, 12, 24, (1,))
    refused("it is for 5 layers, the model has 3", d=dataclasses.replace(d, cfg=deeper))
    wider = TranscoderConfig("transcoder", 3, 16, 24, (1,))
    refused("its width is 16, the model's d_model 12", d=dataclasses.replace(d, cfg=wider))
    more = TranscoderConfig("neurons", 3, 12, 9, (0, 1, 2), writes="mlp_raw")
    refused("it has 9 neurons, the model's d_mlp is 20", d=dataclasses.replace(d, cfg=more))
    mid = TranscoderConfig("sae", 3, 12, 24, (0, 1, 2), reads="resid_mid", writes="resid_mid")
    refused("parallel and have no resid_mid", evaluated.case("neox"), d=dataclasses.replace(d, cfg=mid))
    refused(r"layers \[0\] have no dictionary", conditions=[(0, 1)])
    refused("give at least one set", conditions=[])
    refused("batch=0", batch=0)


def test_rows_that_cannot_be_used_are_refused():
    c = KINDS["one layer"]()
    refused("6 tokens were asked for; a row has 7 tokens and the corpus 5 rows", n_tokens=6)
    refused("36 tokens|42 tokens were asked for", n_tokens=42)
    refused("has no whole row", rows=np.zeros((0, 7), int))
    refused("rows have 2 tokens; give 3 to 16", rows=c.rows[:, :2])
    refused("rows have 17 tokens; give 3 to 16", rows=np.zeros((2, 17), int))
    refused(
        r"hold token ids 0\.\.99; the model's vocabulary has 0\.\.16", rows=np.full((2, 7), 99) * (np.arange(7) > 0)
    )
    refused("give token ids", rows=np.zeros((2, 7)))
    refused("have no end", rows=Endless(c.rows))
