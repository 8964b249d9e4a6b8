"""Text that the model writes: its distribution, its form on disk, and going on after an interruption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.data import sampled
from tcircuits.data.rows import Rows
from tcircuits.data.sampled import sample_tokens, starts_of
from tcircuits.data.tokenizing import check_tokenizer
from tcircuits.models.tokenizers import Tokenizer
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

SHORT = {"context": 9, "batch": 16}


@pytest.fixture(scope="module")
def model():
    return tc.load_model("glassllm")


def test_rows_are_the_texts(model, tmp_path):
    tokens = sample_tokens(model, tmp_path / "a.tokens", 300, **SHORT, seed=3)
    assert (tokens.n_documents, tokens.n_tokens) == (48, 48 * 8), "whole blocks of 16 texts of 8 tokens"
    assert (tokens.bos_id, tokens.about.separator, tokens.vocab_size) == (2, None, 1024)
    rows = Rows(tokens, 9)
    assert rows.per_epoch == 48
    texts = sorted(tuple(tokens.document(i)) for i in range(48))
    got = rows.rows(0, 48)
    assert sorted(map(tuple, got[:, 1:])) == texts
    assert (got[:, 0] == 2).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tokens"]
    check_tokenizer(tokens, model)


def test_first_tokens_follow_the_model(model, tmp_path):
    """2,048 first tokens against the softmax at BOS: chi-square over the tokens expected 10 times or more."""
    tokens = sample_tokens(model, tmp_path / "a.tokens", 2048 * 2, context=3, batch=2048)
    first = np.array([tokens.document(i)[0] for i in range(2048)])
    logits = np.asarray(tc.forward(model.cfg, model.params, jnp.array([[2]])).logits[0, -1], np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    often = p * 2048 >= 10
    expected = np.append(p[often], p[~often].sum()) * 2048
    counts = np.bincount(first, minlength=1024)
    counts = np.append(counts[often], counts[~often].sum())
    freedom = len(expected) - 1
    assert freedom >= 5
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_seeds(model, tmp_path):
    digests = [
        sample_tokens(model, tmp_path / f"{i}.tokens", 100, **SHORT, seed=s).digest
        for i, s in enumerate([0, 0, 1, 2**32, 2**63 - 1])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_it_goes_on_after_an_interruption(model, tmp_path, monkeypatch):
    want = sample_tokens(model, tmp_path / "whole.tokens", 500, **SHORT).digest

    def stop(done, total):
        if done == 2 * 16 * 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_tokens(model, tmp_path / "a.tokens", 500, **SHORT, progress=stop)
    blocks = tmp_path / "a.tokens.blocks"
    assert sorted(p.name for p in blocks.iterdir()) == ["block-000000.npy", "block-000001.npy", "settings.json"]
    assert not (tmp_path / "a.tokens").exists()
    (blocks / ".block-000002.npy.1").write_bytes(b"half")  # as a process leaves it that is killed while it writes
    made, own = [], sampled._block

    def counted(*arguments):
        made.append(arguments[-2])
        return own(*arguments)

    monkeypatch.setattr(sampled, "_block", counted)
    seen = []
    got = sample_tokens(model, tmp_path / "a.tokens", 500, **SHORT, progress=lambda *p: seen.append(p))
    assert got.digest == want
    assert made == [2, 3]
    assert seen[-1] == (512, 512)
    assert not blocks.exists()


def test_blocks_of_another_run_are_refused(model, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_tokens(model, tmp_path / "a.tokens", 500, **SHORT, progress=stop)
    with pytest.raises(InputError, match="blocks of another run: seed=0 there, 1 now; remove it"):
        sample_tokens(model, tmp_path / "a.tokens", 500, **SHORT, seed=1)
    moved = jax.tree.map(lambda x: x * 1.001, model.params)
    with pytest.raises(InputError, match="model='glassllm "):
        sample_tokens(dataclasses.replace(model, params=moved), tmp_path / "a.tokens", 500, **SHORT)
    block = tmp_path / "a.tokens.blocks" / "block-000000.npy"
    for content in (block.read_bytes()[:-4], b"", b"\x93NUMPY"):
        block.write_bytes(content)
        with pytest.raises(InputError, match=r"block-000000.npy is damaged"):
            sample_tokens(model, tmp_path / "a.tokens", 100, **SHORT)
    np.save(block, np.zeros((3, 9), np.int32))
    with pytest.raises(InputError, match=r"is damaged \(it holds other than int32 \(16, 9\)\)"):
        sample_tokens(model, tmp_path / "a.tokens", 100, **SHORT)


def test_beginnings(model, tmp_path):
    starts = [model.encode("Once upon a")[:3], model.encode("The dog sat")[:3]]
    tokens = sample_tokens(model, tmp_path / "a.tokens", 300, **SHORT, starts=starts)
    texts = [tokens.document(i).tolist() for i in range(tokens.n_documents)]
    assert {tuple(t[:3]) for t in texts} == set(map(tuple, starts))
    assert {len(t) for t in texts} == {8}
    assert starts_of(texts, 3).tolist() == [t[:3] for t in texts]
    assert starts_of([[1], [2, 3, 4], [5, 6]], 2, most=1).tolist() == [[2, 3]]
    with pytest.raises(InputError, match="no document has 9 tokens"):
        starts_of(texts, 9)


def test_a_model_without_bos(model, tmp_path):
    bare = dataclasses.replace(model, tokenizer=Tokenizer(model.tokenizer.backend))
    with pytest.raises(InputError, match="has no BOS token: give `starts`"):
        sample_tokens(bare, tmp_path / "a.tokens", 100, **SHORT)
    tokens = sample_tokens(bare, tmp_path / "a.tokens", 100, **SHORT, starts=[[40], [50]])
    assert {len(tokens.document(i)) for i in range(tokens.n_documents)} == {9}, "a whole row each"
    got = Rows(tokens, 9).rows(0, 16)
    assert set(got[:, 0].tolist()) == {40, 50}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 129}, r"context=129: the model 'glassllm' takes 2\.\.128 tokens"),
        ({"context": 1}, "context=1"),
        ({"n_tokens": 0}, "n_tokens=0"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"starts": [[1024]]}, r"starts: ids 1024\.\.1024 leave the vocabulary"),
        ({"starts": [[-1]]}, r"starts: ids -1\.\.-1 leave"),
        ({"starts": [1, 2]}, r"starts of shape \(2,\)"),
        ({"starts": [[1.5]]}, "float64: give lists of token ids"),
        ({"starts": [[1] * 8]}, "context=9 leaves no room behind the starts"),
    ],
)
def test_options_out_of_range(model, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        sample_tokens(model, tmp_path / "a.tokens", **{"n_tokens": 100} | SHORT | options)
    assert list(tmp_path.iterdir()) == []
