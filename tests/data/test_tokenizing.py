"""Tokens on disk are those that the tokenizer makes of each document; other tokenizers are told apart."""

import dataclasses

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.data import tokenizing
from tcircuits.data.summary import summary
from tcircuits.data.text import Document
from tcircuits.data.tokenizing import check_tokenizer, fingerprint, separator_of, tokenize, unknown_id
from tcircuits.data.writing import write_tokens
from tcircuits.models.tokenizers import Tokenizer, from_characters, from_json
from tcircuits.types import InputError

TEXTS = ["Once upon a time there was a dog.", "", "The cat sat.\nIt was \u4e00\u4e8c\u4e09 happy.", "A"]


@pytest.fixture(scope="module")
def model():
    return tc.load_model("glassllm")


def toy(special=("<pad>", "<unk>", "<bos>", "<eos>"), letters="abc \u2581"):
    return from_characters(sorted(set(letters)), [("a", "b")], special)


def test_documents_one_by_one(model, tmp_path):
    documents = [Document(t, f"file {i}") for i, t in enumerate(TEXTS)]
    tokens = tokenize(documents, model, tmp_path / "a.tokens")
    each = [model.encode(t) for t in TEXTS if t]
    assert [tokens.document(i).tolist() for i in range(3)] == [[*ids, model.tokenizer.eos_id] for ids in each]
    about = tokens.about
    assert about.n_bytes == sum(len(t.encode()) for t in TEXTS)
    assert about.n_unknown == 3, "three Chinese characters"
    assert (about.bos_id, about.vocab_size, about.dtype) == (2, 1024, "uint16")
    assert about.sources == tuple(f"file {i}" for i in range(4))
    told = summary(tokens, 8)
    n = sum(map(len, each))
    assert told["tokens_per_byte"] == pytest.approx(n / about.n_bytes, abs=1e-4)
    assert told["unknown_share"] == pytest.approx(3 / n)
    assert (told["tokens"], told["documents"], told["rows"]) == (n + 3, 3, (n + 3) // 7)


@pytest.mark.parametrize(("together", "characters"), [(1, 1000), (2, 1000), (512, 1), (512, 40)])
def test_batches_do_not_show(model, tmp_path, monkeypatch, together, characters):
    want = tokenize(TEXTS * 3, model, tmp_path / "a.tokens").digest
    monkeypatch.setattr(tokenizing, "TOGETHER", together)
    monkeypatch.setattr(tokenizing, "CHARACTERS", characters)
    seen = []
    got = tokenize(iter(TEXTS * 3), model, tmp_path / "b.tokens", n_bytes=999, progress=lambda *p: seen.append(p))
    assert got.digest == want
    assert [p[0] for p in seen] == sorted(p[0] for p in seen)
    assert seen[-1] == (3 * sum(len(t.encode()) for t in TEXTS), 999)


def test_separators(model, tmp_path):
    assert separator_of(model.tokenizer) == 3
    ids = {
        name: tokenize(["A"], model, tmp_path / name, separator=name).ids.tolist() for name in ("eos", "bos", "none")
    }
    assert ids["eos"][:-1] == ids["bos"][:-1] == ids["none"] == model.encode("A")
    assert (ids["eos"][-1], ids["bos"][-1]) == (3, 2)
    bare = Tokenizer(model.tokenizer.backend)
    assert separator_of(bare) is None
    assert separator_of(Tokenizer(bare.backend, bos_id=2)) == 2
    with pytest.raises(InputError, match="separator='eos', but the tokenizer has no such token"):
        separator_of(bare, "eos")
    with pytest.raises(InputError, match="separator='newline'; there are auto, eos, bos, none"):
        separator_of(bare, "newline")


def test_fingerprints(model):
    tokenizer = model.tokenizer
    again = from_json(tokenizer.to_json(), bos_id=2, eos_id=3)
    assert fingerprint(again) == fingerprint(tokenizer), "whatever file it came from"
    others = [toy(), toy(letters="abd \u2581"), toy(("<pad>", "<unk>", "<s>", "</s>"))]
    lower = from_json(tokenizer.to_json())
    from tokenizers import normalizers

    lower.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), lower.backend.normalizer])
    prints = [fingerprint(t) for t in (tokenizer, *others, lower)]
    assert len(set(prints)) == 5, "another vocabulary, other names, and the same vocabulary used otherwise"


def test_tokens_of_another_tokenizer_are_refused(model, tmp_path):
    own = tokenize(["A dog"], model, tmp_path / "own.tokens")
    check_tokenizer(own, model)
    other = tokenize(["ab"], toy(), tmp_path / "other.tokens")
    with pytest.raises(
        InputError, match=r"other.tokens was made by another tokenizer than that of the model 'glassllm'"
    ):
        check_tokenizer(other, model)
    check_tokenizer(other, dataclasses.replace(model, tokenizer=None))
    check_tokenizer(write_tokens(tmp_path / "ids.tokens", [[1, 2]], vocab_size=1024), model)
    large = write_tokens(tmp_path / "large.tokens", [[1, 2]], vocab_size=1025)
    with pytest.raises(InputError, match=r"has ids up to 1024, the model 'glassllm' 1024 tokens: tokenize the text"):
        check_tokenizer(large, model)


def test_unknown_tokens(model):
    assert unknown_id(model.tokenizer) == model.tokenizer.backend.token_to_id("<unk>") == 1
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    assert unknown_id(Tokenizer(Backend(models.BPE({"a": 0}, [])))) is None
    assert unknown_id(Tokenizer(Backend(models.Unigram([("a", 0.0), ("?", -1.0)], unk_id=1)))) == 1


def test_ids_that_the_model_does_not_have(tmp_path):
    tokenizer = toy()
    size = tokenizer.vocab_size
    assert tokenize(["ab"], tokenizer, tmp_path / "a.tokens").vocab_size == size
    with pytest.raises(InputError, match="leave the vocabulary"):
        tokenize(["ab"], tokenizer, tmp_path / "b.tokens", vocab_size=size - 1, separator="none")
    assert not (tmp_path / "b.tokens").exists()


def test_nothing_to_tokenize(model, tmp_path):
    with pytest.raises(InputError, match="no document holds any token"):
        tokenize([], model, tmp_path / "a.tokens")
    with pytest.raises(InputError, match="has no tokenizer"):
        tokenize(["A"], dataclasses.replace(model, tokenizer=None), tmp_path / "a.tokens")
    with pytest.raises(InputError, match="a text is not Unicode at character 1"):
        tokenize(["A\ud800"], model, tmp_path / "a.tokens")
    assert list(tmp_path.iterdir()) == []


def test_long_texts_of_many_documents(model, tmp_path):
    rng = np.random.default_rng(0)
    words = ["dog", "cat", "ran", "the", "a", "big"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 300))) for _ in range(700)]
    tokens = tokenize(texts, model, tmp_path / "a.tokens")
    assert tokens.n_documents == 700
    for i in (0, 511, 512, 699):
        assert tokens.document(i).tolist() == [*model.encode(texts[i]), 3]
