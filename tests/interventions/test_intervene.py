"""`intervene` and `steer`: what a user gives, gets, and is told."""

from dataclasses import replace

import numpy as np
import pytest

import tcircuits as tc
from tests import bridge
from tests.reference import attribution as at
from tests.reference import builders

pytestmark = pytest.mark.usefixtures("quick_compile")

T = 6


@pytest.fixture(scope="module")
def plt():
    """A per-layer case in float32: model, dictionary, tokens, the oracle's view."""
    case = builders.make_case("llama", "plt-relu")
    return *bridge.both(case, "float32"), case.tokens, at.localise(case.cfg, case.params, case.d, case.tokens)


@pytest.fixture(scope="module")
def clt():
    case = builders.make_case("gpt2", "clt-relu")
    return *bridge.both(case, "float32"), case.tokens, at.localise(case.cfg, case.params, case.d, case.tokens)


def free(model, d, tokens, edits, **options):
    return tc.intervene(model, d, tokens, edits, freeze_attention=False, **options)


def forward(model, tokens, edits=()):
    return np.asarray(bridge.logits(model.cfg, model.params, np.asarray(tokens)[None], tuple(edits))[0])


def moved(run):
    """[L, T] whether any feature changed."""
    return (np.abs(run.activations - run.clean_activations) > 1e-5).any(-1)


def test_an_ablation_is_the_real_model_without_what_the_feature_wrote(plt):
    model, d, tokens, here = plt
    layer, p, f = (int(x) for x in here.features[5])
    run = free(model, d, tokens, tc.feature_edit(layer, f, 0, position=p))
    lost = -here.values[layer][p, f] * here.d.arrays["w_dec"][layer, f]
    by_site = forward(model, tokens, [tc.edit("mlp_out", layer, lost.astype(np.float32), position=p, mode="add")])
    np.testing.assert_allclose(run.logits, by_site, atol=2e-5)
    np.testing.assert_allclose(run.clean_logits, forward(model, tokens), atol=2e-5)
    np.testing.assert_allclose(run.clean_activations, np.stack(here.values), atol=2e-5)
    assert run.activations[layer, p, f] == 0
    assert np.abs(run.logits - run.clean_logits).max() > 1e-2


def test_patching_in_the_value_of_another_prompt(plt):
    model, d, tokens, _ = plt
    other = tc.intervene(model, d, tokens[::-1], []).clean_activations
    layer, f = 1, int(np.argmax(np.abs(other[1]).sum(0)))
    edits = [tc.feature_edit(layer, f, float(other[layer, p, f]), position=p) for p in range(T)]
    run = free(model, d, tokens, edits)
    np.testing.assert_array_equal(run.activations[layer, :, f], other[layer, :, f])
    back = [tc.feature_edit(layer, f, float(run.clean_activations[layer, p, f]), position=p) for p in range(T)]
    np.testing.assert_allclose(free(model, d, tokens, edits + back).logits, run.clean_logits, atol=2e-5)


@pytest.mark.parametrize(
    ("position", "hit"), [(None, range(T)), (2, [2]), ((1, 4), [1, 2, 3]), ((3, None), [3, 4, 5]), ((0, T), range(T))]
)
def test_positions(plt, position, hit):
    model, d, tokens, _ = plt
    run = tc.intervene(model, d, tokens, tc.feature_edit(1, 3, 9.5, position=position))
    expected = run.clean_activations[1, :, 3].copy()
    expected[list(hit)] = 9.5
    np.testing.assert_allclose(run.activations[1, :, 3], expected, atol=1e-6)
    np.testing.assert_array_equal(run.activations[0], run.clean_activations[0])
    assert not moved(run)[:, : min(hit)].any(), "the past does not change"


def test_modes_act_in_order(plt):
    model, d, tokens, here = plt
    layer, p, f = (int(x) for x in here.features[0])
    edits = [tc.feature_edit(layer, f, x, position=p, mode=m) for m, x in (("scale", -2), ("add", 1), ("scale", 3))]
    got = tc.intervene(model, d, tokens, edits).activations[layer, p, f]
    assert got == pytest.approx(3 * (1 - 2 * here.values[layer][p, f]), abs=1e-5)
    assert tc.intervene(model, d, tokens, [*edits, tc.feature_edit(layer, f, 4)]).activations[layer, p, f] == 4


def test_frozen_attention_moves_nothing_between_positions_but_by_the_patterns(plt):
    model, d, tokens, here = plt
    layer, p, f = (int(x) for x in here.features[0])
    edit = tc.feature_edit(layer, f, 5.0, position=p, mode="add")
    frozen, live = tc.intervene(model, d, tokens, edit), free(model, d, tokens, edit)
    assert np.abs(frozen.logits - live.logits).max() > 1e-3
    np.testing.assert_array_equal(frozen.clean_logits, live.clean_logits)


def test_held_mlps_by_layer(plt):
    model, d, tokens, here = plt
    layer, p, f = (int(x) for x in here.features[0])
    assert layer == 0
    edit = tc.feature_edit(layer, f, 5.0, position=p, mode="add")
    runs = {h: tc.intervene(model, d, tokens, edit, freeze_mlps=h) for h in (False, True)}
    lists = {h: tc.intervene(model, d, tokens, edit, freeze_mlps=h) for h in ((), (1,), (0, 1, 2))}
    np.testing.assert_array_equal(lists[()].logits, runs[False].logits)
    np.testing.assert_array_equal(lists[0, 1, 2].logits, runs[True].logits)
    for a, b in ((runs[False], runs[True]), (lists[(1,)], runs[True]), (lists[(1,)], runs[False])):
        assert np.abs(a.logits - b.logits).max() > 1e-3
    # layer 1 answers to layer 0 alone, so holding it changes what layer 2 reads and not what layer 1 would do
    np.testing.assert_allclose(lists[(1,)].activations[1], runs[False].activations[1], atol=1e-6)
    assert np.abs(lists[(1,)].activations[2] - runs[False].activations[2]).max() > 1e-3


def test_edits_of_sites_go_with_edits_of_features(plt):
    model, d, tokens, here = plt
    vector = np.random.default_rng(0).normal(size=model.cfg.d_model).astype(np.float32)
    site = tc.edit("resid_mid", 1, vector, position=2, mode="add")
    np.testing.assert_allclose(free(model, d, tokens, site).logits, forward(model, tokens, [site]), atol=2e-5)
    layer, p, f = (int(x) for x in here.features[-1])
    both = free(model, d, tokens, [site, tc.feature_edit(layer, f, 0, position=p)])
    assert both.activations[layer, p, f] == 0


def test_probabilities(plt):
    model, d, tokens, _ = plt
    run = tc.intervene(model, d, tokens, tc.feature_edit(0, 1, 3.0))
    for position in (-1, 2):
        for got, logits in zip(run.probabilities(position), (run.clean_logits, run.logits), strict=True):
            e = np.exp(logits[position].astype(np.float64))
            np.testing.assert_allclose(got, e / e.sum(), rtol=1e-12)


def test_steering_is_adding_to_the_feature(plt, clt):
    for model, d, tokens, here in (plt, clt):
        layer, _, f = (int(x) for x in here.features[0])
        edits = tc.steer(model, d, layer, f, 2.5, position=(2, None))
        assert len(edits) == (model.cfg.n_layers - layer if d.cfg.kind == "clt" else 1)
        added = free(model, d, tokens, tc.feature_edit(layer, f, 2.5, position=(2, None), mode="add"))
        np.testing.assert_allclose(forward(model, tokens, edits), added.logits, atol=3e-5)


def test_steering_neurons_of_a_model_with_post_norms():
    case = builders.make_case("gemma2", "neurons")
    model, d = bridge.both(case, "float32")
    edits = tc.steer(model, d, 1, 7, -1.5, position=3)
    added = free(model, d, case.tokens, tc.feature_edit(1, 7, -1.5, position=3, mode="add"))
    np.testing.assert_allclose(forward(model, case.tokens, edits), added.logits, atol=3e-5)
    assert np.abs(added.logits - added.clean_logits).max() > 1e-2


def test_steered_text_is_what_the_steered_model_says_next(clt):
    model, d, tokens, here = clt
    layer, _, f = (int(x) for x in here.features[3])
    edits, n = tc.steer(model, d, layer, f, 30.0, position=(len(tokens), None)), 5
    written = tc.generate(model, tokens, n, edits=edits)
    best = forward(model, [*tokens, *written[:-1]], edits).argmax(
        -1
    )  # causal: each position as if the text ended there
    assert written.tolist() == best[len(tokens) - 1 :].tolist()
    plain = tc.generate(model, tokens, n)
    assert plain[0] == written[0], "the prompt was not steered"
    assert plain[1:].tolist() != written[1:].tolist()


FEATURES = [
    ({"layer": 3}, r"layer 3 has no dictionary \(it has \[0, 1, 2\]\)"),
    ({"layer": -1}, "layer -1 has no dictionary"),
    ({"feature": 24}, r"feature 24 is outside 0\.\.23"),
    ({"feature": -1}, "feature -1 is outside"),
    ({"position": 6}, "position 6 is outside the 6 tokens"),
    ({"position": (2, 9)}, r"position 2\.\.8 is outside the 6 tokens"),
    ({"position": (7, None)}, "position 7 is outside the 6 tokens"),
    ({"value": float("nan")}, "a value is not finite"),
    ({"value": float("inf")}, "a value is not finite"),
]


@pytest.mark.parametrize(("change", "message"), FEATURES)
def test_edits_of_features_that_are_refused(plt, change, message):
    model, d, tokens, _ = plt
    given = {"layer": 0, "feature": 0, "value": 0.0, "position": None} | change
    with pytest.raises(tc.InputError, match=message):
        tc.intervene(model, d, tokens, tc.feature_edit(**given))


@pytest.mark.parametrize("position", [-1, (3, 3), (4, 2), (-2, None)])
def test_ranges_that_are_none(position):
    with pytest.raises(tc.InputError, match="is no range of positions"):
        tc.feature_edit(0, 0, 1.0, position=position)


def test_everything_wrong_with_the_edits_is_said_at_once(plt):
    model, d, tokens, _ = plt
    two = [tc.feature_edit(9, 99, float("nan"), position=50), tc.feature_edit(0, 0, 1.0)]
    with pytest.raises(tc.InputError) as caught:
        tc.intervene(model, d, tokens, two)
    for part in ("layer 9", "feature 99", "position 50", "not finite"):
        assert part in str(caught.value)


SITES = [
    (("resid_pre", 3, np.zeros(12)), r"resid_pre: layer 3 is outside 0\.\.2"),
    (("logits", 1, np.zeros(17)), r"logits: layer 1 is outside 0\.\.0"),
    (("mlp_out", 0, np.zeros(13)), r"mlp_out: a value has shape \(13,\); at one position the site has \(12,\)"),
    (("z", 0, np.zeros((4, 7))), r"at one position the site has \(4, 6\)"),
    (("pattern", 0, np.zeros((4, 5))), r"at one position the site has \(4, 6\)"),
    (("resid_post", 0, np.full(12, np.nan)), "resid_post: a value is NaN"),
]


@pytest.mark.parametrize(("site", "message"), SITES)
def test_edits_of_sites_that_are_refused(plt, site, message):
    model, d, tokens, _ = plt
    with pytest.raises(tc.InputError, match=message):
        tc.intervene(model, d, tokens, tc.edit(*site))


def test_edits_outside_the_prompt_or_the_model(plt):
    model, d, tokens, _ = plt
    here = tc.edit("resid_pre", 0, np.zeros(12), position=6)
    with pytest.raises(tc.InputError, match="resid_pre: position 6 is outside the 6 tokens"):
        tc.intervene(model, d, tokens, here)
    with pytest.raises(tc.InputError, match="position 8 is outside the 8 tokens"):
        tc.generate(model, tokens, 2, edits=replace(here, start=here.start + 2, stop=here.stop + 2))
    tc.generate(model, tokens, 3, edits=replace(here, start=here.start + 2, stop=here.stop + 2))
    with pytest.raises(tc.InputError, match="made by feature_edit"):
        tc.intervene(model, d, tokens, [("resid_pre", 0)])
    with pytest.raises(tc.InputError, match=r"freeze_mlps names layers \[-1, 3\]; the model has 0\.\.2"):
        tc.intervene(model, d, tokens, [], freeze_mlps=[-1, 0, 3])
    with pytest.raises(tc.InputError, match="mode 'double' is unknown"):
        tc.feature_edit(0, 0, 1.0, mode="double")


def test_layers_without_a_dictionary():
    case = builders.make_case("llama", "some-layers")
    model, d = bridge.both(case, "float32")
    with pytest.raises(tc.InputError, match=r"layer 0 has no dictionary \(it has \[1\]\)"):
        tc.intervene(model, d, case.tokens, tc.feature_edit(0, 0, 1.0))
    with pytest.raises(tc.InputError, match=r"feature 0 of layer 2: layers are \[1\]"):
        tc.steer(model, d, 2, 0, 1.0)
    run = tc.intervene(model, d, case.tokens, tc.feature_edit(1, 2, 4.0, position=3))
    assert run.activations[1, 3, 2] == 4
    assert not run.activations[[0, 2]].any()


def test_a_dictionary_of_another_model_and_prompts_that_cannot_be_run(plt, clt):
    model, d, tokens, _ = plt
    neurons = tc.load_transcoders("neurons", model=clt[0])
    with pytest.raises(tc.InputError, match="it has 20 neurons, the model's d_mlp is 21"):
        tc.intervene(replace(model, cfg=replace(model.cfg, d_mlp=21)), neurons, tokens, [])
    for prompt, message in (([], "no tokens"), ([17], "leave the vocabulary"), ([1] * 17, "context is 16")):
        with pytest.raises(tc.InputError, match=message):
            tc.intervene(model, d, prompt, [])
    with pytest.raises(tc.InputError, match="tokenizer"):
        tc.intervene(model, d, "text", [])
