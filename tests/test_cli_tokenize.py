"""`tcircuits tokenize`: what it writes and says, and what it refuses."""

import json

import pytest

import tcircuits as tc
from tcircuits import cli, data
from tcircuits.cli import common

pytestmark = pytest.mark.usefixtures("quick_compile")

MODEL = ("--model", "glassllm")
PROSE = "Once upon a time there was a big dog.\n\nThe dog ran to the cat.\n"


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture
def prose(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(PROSE)
    (tmp_path / "text" / "b.jsonl").write_text('{"body": "A cat sat. \u4e00"}\n{"body": "It ran."}\n')
    return tmp_path / "text"


@pytest.fixture
def run(capsys):
    def go(*arguments, code=0):
        assert cli.main(["tokenize", *map(str, arguments)]) == code
        told = capsys.readouterr()
        if code:
            assert told.out == ""
            assert told.err.startswith("tcircuits: ")
            assert told.err.count("\n") == 1
        return told.err if code else told.out

    return go


def test_a_folder(run, prose, tmp_path):
    out = tmp_path / "new" / "a.tokens"
    told = json.loads(run(prose, *MODEL, "--out", out, "--field", "body", "--context", "8", "--json"))
    model = tc.load_model("glassllm")
    texts = [PROSE, "A cat sat. \u4e00", "It ran."]
    ids = [model.encode(t) for t in texts]
    n, size = sum(map(len, ids)), sum(len(t.encode()) for t in texts)
    assert {k: told[k] for k in ("documents", "tokens", "bytes", "context", "rows", "vocab_size", "bos_id")} == {
        **{"documents": 3, "tokens": n + 3, "bytes": size, "context": 8, "rows": (n + 3) // 7},
        **{"vocab_size": 1024, "bos_id": 2},
    }
    assert told["tokens_per_byte"] == round(n / size, 4)
    assert told["unknown_share"] == pytest.approx(1 / n)
    tokens = data.open_tokens(out)
    assert [tokens.document(i).tolist() for i in range(3)] == [[*i, 3] for i in ids]
    assert (tokens.digest, tokens.name) == (told["digest"], "a")
    data.check_tokenizer(tokens, model)


def test_a_person_gets_a_table(run, prose, tmp_path):
    told = run(prose / "a.txt", *MODEL, "--out", tmp_path / "a.tokens", "--separator", "none")
    assert "tokens_per_byte" in told
    assert "documents" in told
    assert data.open_tokens(tmp_path / "a.tokens").about.separator is None


def test_text_of_the_model(run, prose, tmp_path):
    options = ("--sample", 600, "--context", 10, "--json")
    told = json.loads(run(*MODEL, "--out", tmp_path / "a.tokens", *options))
    assert (told["tokens"], told["rows"], told["bytes"]) == (128 * 9, 128, None)
    few = json.loads(run(*MODEL, "--out", tmp_path / "few.tokens", *options, "--batch", 8))
    assert few["rows"] == 72, "nine blocks of eight"
    run(prose, "--field", "body", *MODEL, "--out", tmp_path / "b.tokens", *options)
    tokens = data.open_tokens(tmp_path / "b.tokens")
    model = tc.load_model("glassllm")
    starts = {tuple(model.encode(t)[:4]) for t in (PROSE, "A cat sat. \u4e00", "It ran.") if len(model.encode(t)) >= 4}
    assert {tuple(tokens.document(i)[:4]) for i in range(tokens.n_documents)} == starts


def refused(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"ab\0c")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "spaces.txt").write_text(" \n")
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other.jsonl").write_text('{"body": "text"}\n')
    return [
        ((), "no text: give files"),
        (("nope.txt",), "nope.txt: no such file or folder"),
        ((tmp_path / "binary.txt",), "is binary: byte 2 is zero"),
        ((tmp_path / "empty.txt",), "is empty"),
        ((tmp_path / "spaces.txt",), "no document holds any token"),
        ((tmp_path / "other.jsonl",), "line 1: no field 'text'; there are body"),
        ((tmp_path / "other.jsonl", "--context", 1), "--context 1"),
        ((tmp_path / "other.jsonl", "--out", tmp_path / "there"), "there exists"),
        ((tmp_path / "other.jsonl", "--out", tmp_path / "file" / "x"), "cannot be written"),
        (("--sample", 0), "n_tokens=0"),
        (("--sample", 10, "--context", 500), "takes 2..128 tokens"),
        (("--sample", 10, "--seed", -1), "seed=-1"),
        (("--sample", 10, "--batch", 0), "batch=0"),
        (("--sample", 10, "--model", "nope"), "model 'nope' is unknown"),
        ((tmp_path / "other.jsonl", "--field", "body", "--model", "nope"), "model 'nope' is unknown"),
    ]


def test_what_is_refused(run, tmp_path):
    for arguments, message in refused(tmp_path):
        before = sorted(p.name for p in tmp_path.iterdir())
        assert message in run(*MODEL, "--out", tmp_path / "a.tokens", *arguments, code=2)
        assert sorted(p.name for p in tmp_path.iterdir()) == before, "nothing is left behind"


def test_the_tokenizer_comes_without_the_model(prose, tmp_path, run, monkeypatch):
    monkeypatch.setattr("tcircuits.models.loading.assemble", lambda *_: pytest.fail("tensors were read"))
    run(prose / "a.txt", *MODEL, "--out", tmp_path / "a.tokens")


def test_the_tokenizer_of_a_saved_model(prose, tmp_path, run):
    tc.save_model(tc.load_model("glassllm"), tmp_path / "model")
    run(prose / "a.txt", *MODEL, "--out", tmp_path / "a.tokens")
    run(prose / "a.txt", "--model", tmp_path / "model", "--out", tmp_path / "b.tokens")
    a, b = (data.open_tokens(tmp_path / f"{x}.tokens") for x in "ab")
    assert (a.digest, a.about.tokenizer) == (b.digest, b.about.tokenizer)
