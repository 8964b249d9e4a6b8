"""Addition, parity, sorting and the templates: right answers by enumeration, held-out content, splits, bad input."""

import itertools

import jax
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import init
from tcircuits.models.tokenizers import from_words
from tcircuits.tasks import algorithms, make_behaviour, templates, words
from tcircuits.tasks.behaviour import SPLITS
from tcircuits.types import InputError

SIZES = {"attribution": 20, "selection": 20, "report": 40}


def model_of(vocabulary, n_ctx=11):
    """A random model whose tokens are these words."""
    cfg = ModelConfig(
        *("plain", 1, 8, 2, 2, 4, 8, len(vocabulary), n_ctx),
        norm="none", activation="relu", gated=False, position="learned", mlp_bias=True, final_norm=False,
        pre_norm=False,
    )  # fmt: skip
    return Model(cfg, init(cfg, jax.random.key(0)), from_words(vocabulary), "words")


def numbers(n):
    return [*map(str, range(n)), "="]


def prompts(behaviour, split="report"):
    """(prompt, counterfactual, right, wrong) as lists of token ids."""
    p = behaviour[split]
    for clean, other, start, right, wrong in zip(p.clean, p.other, p.padding, p.right, p.wrong, strict=True):
        yield clean[start:].tolist(), other[start:].tolist(), int(right[0]), int(wrong[0])


@pytest.mark.parametrize("modulus", [7, 31, 113])
def test_a_fixed_share_of_the_table_of_sums_is_trained_on(modulus):
    trained = algorithms.trained_sums(modulus)
    assert trained.sum() == int(0.3 * modulus**2)
    assert algorithms.trained_sums(modulus) is trained
    assert not trained.flags.writeable
    train, test = algorithms.sums(modulus)
    assert {*map(tuple, train.tolist()), *map(tuple, test.tolist())} == {
        *itertools.product(range(modulus), range(modulus))
    }
    assert len(train) + len(test) == modulus**2
    with pytest.raises(InputError, match="at least 4"):
        algorithms.trained_sums(3)


def test_sums_are_right_and_held_out():
    b = make_behaviour(model_of(numbers(113), 3), "addition", sizes=SIZES)
    held_out = ~algorithms.trained_sums(113)
    for split in SPLITS:
        for (a, c, end), (other_a, other_c, other_end), right, wrong in prompts(b, split):
            assert end == other_end == 113
            assert right == (a + c) % 113 != wrong == (other_a + other_c) % 113
            assert a != other_a
            assert c != other_c
            assert held_out[a, c]
            assert held_out[other_a, other_c]


@pytest.mark.parametrize("modulus", [31, 59])
def test_another_modulus_is_an_option(modulus):
    b = make_behaviour(model_of(numbers(modulus), 3), "addition", sizes=SIZES, options={"modulus": modulus})
    assert b.about["options"] == {"modulus": modulus}
    assert all(right == (clean[0] + clean[1]) % modulus for clean, _, right, _ in prompts(b))


def test_bit_strings_are_all_there_once():
    train, test = (algorithms.bit_strings(held_out) for held_out in (False, True))
    every = ["".join(bits) for n in range(4, 11) for bits in itertools.product("01", repeat=n)]
    assert sorted((*train, *test)) == sorted(every)
    assert len(test) / len(every) == pytest.approx(0.3, abs=4 * (0.21 / len(every)) ** 0.5)  # four standard deviations


def test_parity_is_right_and_one_bit_turns_it_over():
    b = make_behaviour(model_of(numbers(2)), "parity", sizes=SIZES)
    held_out = set(algorithms.bit_strings(True))
    for clean, other, right, wrong in prompts(b):
        assert clean[-1] == other[-1] == 2
        assert right == sum(clean[:-1]) % 2 != wrong == sum(other[:-1]) % 2
        assert sum(x != y for x, y in zip(clean, other, strict=True)) == 1
        assert "".join(map(str, clean[:-1])) in held_out
    assert len({len(clean) for clean, *_ in prompts(b)}) > 2


def test_sorting_is_right_and_the_counterfactual_keeps_what_was_said():
    b = make_behaviour(model_of(numbers(30)), "sorting", sizes=SIZES)
    seen = set()
    for clean, other, right, wrong in prompts(b):
        (given, said), (changed, again) = ((x[:5], x[6:]) for x in (clean, other))
        assert clean[5] == other[5] == 30
        assert len(set(given)) == len(set(changed)) == 5
        assert said == again == sorted(given)[: len(said)] == sorted(changed)[: len(said)]
        assert right == sorted(given)[len(said)] != wrong == sorted(changed)[len(said)]
        assert sum(x != y for x, y in zip(given, changed, strict=True)) == 1
        assert not algorithms.trained_set(given)
        seen.add(len(said))
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("task", "n"), [("addition", 113), ("parity", 2), ("sorting", 30)])
def test_splits_share_no_prompt(task, n):
    b = make_behaviour(model_of(numbers(n)), task, sizes=SIZES, seed=2)
    texts = {s: {tuple(x) for clean, other, *_ in prompts(b, s) for x in (clean, other)} for s in SPLITS}
    assert {s: b[s].n for s in SPLITS} == SIZES
    assert all(texts[s].isdisjoint(texts[t]) for s, t in itertools.combinations(SPLITS, 2))


def test_digits_are_apart_and_sums_are_one_of_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        e = algorithms.addition_digits(rng, True)
        left, right = e.prompt.removesuffix(" mod 23 = ").split(" + ")
        assert (int(left.replace(" ", "")) + int(right.replace(" ", ""))) % 23 == int(e.answer)
        assert len(e.answer) == len(e.distractor) == 1
        assert e.answer != e.distractor


def test_templates_ask_for_the_gender_and_the_capital():
    rng = np.random.default_rng(0)
    for _ in range(50):
        e = templates.gendered_pronoun(rng, True)
        assert e.answer == {"female": " she", "male": " he"}[e.truth["gender"]]
        assert e.truth["name"] in e.prompt
        assert {e.answer, e.distractor} == {" he", " she"}
        e = templates.factual_recall(rng, True)
        assert e.answer == f" {templates.COUNTRIES[e.truth['country']]}"
        other = next(c for c in templates.COUNTRIES if e.counterfactual == e.prompt.replace(e.truth["country"], c))
        assert e.distractor == f" {templates.COUNTRIES[other]}"


def test_only_words_that_the_tokenizer_keeps_whole_are_asked_for():
    tiny = tc.load_model("tiny")
    b = make_behaviour(tiny, "gendered_pronoun", sizes={"attribution": 4, "selection": 4, "report": 8})
    for clean, other, right, wrong in prompts(b):
        name, stranger = ((set(tiny.decode(x).split()) & set(words.NAMES)).pop() for x in (clean, other))
        pronouns = {"female": " she", "male": " he"}
        assert (
            tiny.token(right) == pronouns[words.GENDER[name]] != tiny.token(wrong) == pronouns[words.GENDER[stranger]]
        )
    with pytest.raises(InputError, match="splits only 0 different ones"):  # of all these capitals it has none
        make_behaviour(tiny, "factual_recall")


@pytest.mark.parametrize(
    ("task", "options", "problem"),
    [
        ("addition", {"base": 3}, "has no option base; its options are modulus"),
        ("parity", {"modulus": 3}, "has no option modulus; it has none"),
        ("addition", {"modulus": 2}, "at least 4"),
        ("ioi", None, "words that are no tokens"),
        ("addition", {"modulus": 200}, "words that are no tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused(task, options, problem):
    with pytest.raises(InputError, match=problem):
        make_behaviour(model_of(numbers(113)), task, options=options, sizes=SIZES)
