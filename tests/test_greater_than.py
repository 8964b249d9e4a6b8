"""Greater-than: the measure against a loop, a masked MLP against the model itself, thresholds."""

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from experiments.greater_than import COUNTS, Side, Where, headline, needed
from experiments.years import kept, reading
from experiments.years.prompts import difference, grammar_prompts, template_prompts
from tcircuits.models.forward import forward
from tcircuits.transcoders.dictionary import reconstruct
from tcircuits.types import InputError

MODEL = tc.load_model("tiny")
PROMPTS = grammar_prompts(MODEL, 5, 0, held_out=True)


def test_the_difference_is_mass_above_less_mass_up_to_yy():
    rng = np.random.default_rng(0)
    logits, yy = rng.normal(size=(4, 100)), np.array([2, 40, 97, 98])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [sum(p[i, y] if y > yy[i] else -p[i, y] for y in range(100)) for i in range(4)]
    np.testing.assert_allclose(difference(logits, yy), expected, rtol=1e-12)
    np.testing.assert_allclose(difference(np.stack([logits] * 3, 1), yy), np.stack([expected] * 3, 1), rtol=1e-12)


@pytest.mark.parametrize(("which", "place"), [("neurons", "last"), ("features", "start")])
def test_keeping_all_nothing_and_some(which, place):
    tokens = jnp.asarray(PROMPTS.tokens)
    if which == "neurons":
        parts = kept.neurons(MODEL, 2, PROMPTS)
        whole = np.asarray(forward(MODEL.cfg, MODEL.params, tokens, sites=("mlp_out",)).acts["mlp_out"][2])
    else:
        d = tc.load_transcoders("tiny-skip", model=MODEL)
        parts = kept.features(MODEL, d, 2, PROMPTS)
        read = forward(MODEL.cfg, MODEL.params, tokens, sites=("mlp_in",)).acts["mlp_in"]
        whole = np.asarray(reconstruct(d, read)[2])
    written = np.asarray(parts.base + parts.value @ parts.rows)
    # float32: a sum of up to 1024 products, each side rounded once a product
    np.testing.assert_allclose(written, whole, atol=1024 * 2**-24 * float(np.abs(whole).max()))
    n, rng = parts.rows.shape[0], np.random.default_rng(0)
    some, gone = rng.random(n) < 0.5, rng.normal(size=n).astype(np.float32)
    masks = np.stack([np.ones(n, bool), np.zeros(n, bool), some])
    found = kept.logits(MODEL, parts, PROMPTS, place, masks, gone)
    values = np.asarray(parts.value)
    for i, (last, at) in enumerate(zip(PROMPTS.last, PROMPTS.place(place), strict=True)):
        for k, value in enumerate([values[i, at], gone, np.where(some, values[i, at], gone)]):
            edit = tc.edit(parts.site, 2, np.asarray(parts.base[i, at] + value @ parts.rows), position=int(at))
            out = forward(MODEL.cfg, MODEL.params, tokens[i][None], edits=(edit,)).logits[0, last][PROMPTS.years]
            # float32 through two layers: the sums above differ in their last bits
            np.testing.assert_allclose(found[i, k], out, atol=1e-3)


def test_all_neurons_give_the_models_own_difference():
    parts = kept.neurons(MODEL, 1, PROMPTS)
    found = kept.logits(MODEL, parts, PROMPTS, "last", np.ones((1, parts.rows.shape[0]), bool))
    np.testing.assert_allclose(
        difference(found[:, 0], PROMPTS.yy), difference(kept.real(MODEL, PROMPTS), PROMPTS.yy), atol=1e-4
    )


def test_the_start_is_where_yy_stands():
    for row, start, yy in zip(PROMPTS.tokens, PROMPTS.start, PROMPTS.yy, strict=True):
        assert MODEL.decode([int(row[start])]).strip() == f"{yy:02d}"


def test_prefixes_keep_the_first_of_an_order():
    masks = kept.prefixes(np.array([2, 0, 1, 3]), (0, 1, 2))
    np.testing.assert_array_equal(masks, [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]])


def test_needed_is_the_least_count():
    curve = np.linspace(0, 1, len(COUNTS))
    curve[50:] = 0.2
    assert needed(curve, curve[44]) == 60
    assert needed(curve, 1.0) is None


@pytest.mark.parametrize("absent", ["zero", "mean"])
def test_the_cost_where_chosen_is_of_the_choosing_half_alone(absent):
    chosen, other = (grammar_prompts(MODEL, 4, 0, held_out=h) for h in (False, True))
    side = Side(
        MODEL, kept.neurons(MODEL, 0, chosen), kept.neurons(MODEL, 0, other), (chosen, other), Where(0, "start", absent)
    )
    p, hidden = MODEL.params.blocks.mlp, np.asarray(kept.neurons(MODEL, 0, chosen).value)
    own = hidden[np.arange(4), chosen.start]
    gone = own.mean(0) if absent == "mean" else np.zeros_like(own[0])
    written = gone @ np.asarray(p.w_out[0]) + (0 if p.b_out is None else np.asarray(p.b_out[0]))
    without = []
    for tokens, last, at in zip(chosen.tokens, chosen.last, chosen.start, strict=True):
        edits = (tc.edit("mlp_out", 0, written, position=int(at)),)
        out = forward(MODEL.cfg, MODEL.params, jnp.asarray(tokens)[None], edits=edits).logits
        without.append(np.asarray(out)[0, last][chosen.years])
    expected = difference(kept.real(MODEL, chosen), chosen.yy).mean() - difference(np.stack(without), chosen.yy).mean()
    assert side.cost_where_chosen() == pytest.approx(expected, abs=1e-4)  # float32, sums in another order


def test_the_headline_is_chosen_without_the_measuring_half():
    costs = {
        Where(0, "last", "zero"): (0.2, 0.1),
        Where(1, "start", "mean"): (0.1, 0.9),
        Where(2, "last", "mean"): (0.3, 0.0),
    }
    found = {w: {"cost_where_chosen": chosen, "cost": measured} for w, (chosen, measured) in costs.items()}
    assert headline(found) == Where(2, "last", "mean")


def test_halves_of_a_template_share_no_year():
    odd, even = (template_prompts(MODEL, "The war lasted from 17{yy} to 17", odd=o) for o in (True, False))
    assert set(odd.yy) | set(even.yy) == set(range(1, 99))
    assert not set(odd.yy) & set(even.yy)


def test_what_is_refused():
    with pytest.raises(InputError, match="yy"):
        template_prompts(MODEL, "The war", odd=True)
    with pytest.raises(InputError, match="per-layer transcoders"):
        kept.features(MODEL, tc.load_transcoders("tiny-clt", model=MODEL), 0, PROMPTS)
    with pytest.raises(InputError, match="layer 7"):
        kept.features(MODEL, tc.load_transcoders("tiny-transcoders", model=MODEL), 7, PROMPTS)


def test_readings_are_decoder_and_encoder_rows_with_their_gains():
    d, layer, index = tc.load_transcoders("tiny-transcoders", model=MODEL), 0, np.array([3, 11])
    found = reading.read(MODEL, d, layer, index, PROMPTS, "start")
    p = MODEL.params
    embed = np.asarray(p.embed, np.float64)
    gain, final = np.asarray(p.blocks.norm2.w, np.float64)[layer], np.asarray(p.final_norm.w, np.float64)
    dec, enc = np.asarray(d.w_dec, np.float64)[layer, index], np.asarray(d.w_enc, np.float64)[layer, index]
    logits = (dec * final) @ embed.T  # unembedding tied to the embedding, root mean square norms
    logits = (logits - logits.mean(1, keepdims=True))[:, PROMPTS.years]
    expected = logits - logits.mean(1, keepdims=True)
    np.testing.assert_allclose(found.promotes, expected, atol=128 * 2**-24 * np.abs(logits).max() * 8)
    answers = (enc * gain) @ embed[PROMPTS.years].T
    np.testing.assert_allclose(found.answers, answers, atol=128 * 2**-24 * np.abs(answers).max() * 8)
    assert found.head is None


def test_the_years_head_is_the_one_that_looks_there():
    layer, head = reading.years_head(MODEL, 1, PROMPTS)
    pattern = forward(MODEL.cfg, MODEL.params, jnp.asarray(PROMPTS.tokens), sites=("pattern",)).acts["pattern"]
    seen = np.asarray([
        [np.mean([pattern[i, n, h, a, b] for n, (a, b) in enumerate(zip(PROMPTS.last, PROMPTS.start, strict=True))])
         for h in range(MODEL.cfg.n_heads)] for i in range(2)
    ])  # fmt: skip
    assert (layer, head) == np.unravel_index(seen.argmax(), seen.shape)


def test_values_by_year():
    found = reading.by_year(np.array([[1.0], [3.0], [5.0]]), np.array([7, 7, 9]))
    assert found[0, 7] == 2
    assert found[0, 9] == 5
    assert np.isnan(np.delete(found[0], [7, 9])).all()
