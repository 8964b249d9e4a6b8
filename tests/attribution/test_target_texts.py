"""Targets given as text: the token that reads exactly so, whatever the tokenizer puts before a text."""

import pytest

import tcircuits as tc
from tcircuits.attribution.specify import token_id
from tcircuits.types import InputError

MODEL = tc.load_model("tiny")


@pytest.mark.parametrize("text", ["95", " 95", "02", " James", "s"])
def test_a_text_names_the_token_that_reads_so(text):
    assert MODEL.token(token_id(MODEL, text)) == text


def test_digits_behind_a_century_are_its_answer():
    ids = MODEL.encode("From 1772 the strike went on until 1795")
    assert token_id(MODEL, "95") == ids[-1] != token_id(MODEL, " 95")


def test_a_text_of_several_tokens_is_refused():
    with pytest.raises(InputError, match="not one; mind the leading space"):
        token_id(MODEL, " Robert gave")
