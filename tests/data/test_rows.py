"""Rows against the documents laid end to end by hand; what a row holds depends on nothing but its number."""

import pickle

import numpy as np
import pytest

from tcircuits.data import rows as module
from tcircuits.data.rows import Rows, local_rows, train_and_held_out
from tcircuits.data.tokens import IDS, open_tokens
from tcircuits.data.writing import write_tokens
from tcircuits.types import InputError

BOS, END, SIZE = 0, 1, 5000


def corpus(n=60, seed=0):
    """Documents of 1 to 40 ids; id // 40 - 1 tells which document it is from."""
    rng = np.random.default_rng(seed)
    return [40 * (i + 1) + np.arange(rng.integers(1, 41)) for i in range(n)]


@pytest.fixture
def tokens(tmp_path):
    return write_tokens(tmp_path / "toy.tokens", corpus(), vocab_size=SIZE, bos_id=BOS, separator=END)


def pieces_by_hand(documents, length, separator=END):
    stream = [i for d in documents for i in [*d, *([] if separator is None else [separator])]]
    return [tuple(stream[k : k + length]) for k in range(0, len(stream) - length + 1, length)]


def tuples(rows):
    return [tuple(r) for r in rows.tolist()]


@pytest.mark.parametrize("context", [2, 9, 33, 500])
def test_an_epoch_holds_every_piece_once(tokens, context):
    rows = Rows(tokens, context, seed=3)
    want = pieces_by_hand(corpus(), context - 1)
    got = rows.rows(0, rows.per_epoch)
    assert (got.dtype, got.shape) == (np.int32, (len(want), context))
    assert (got[:, 0] == BOS).all()
    assert sorted(tuples(got[:, 1:])) == sorted(want)
    assert rows.n_tokens == tokens.n_tokens
    if len(want) > 20:
        assert tuples(got[:, 1:]) != want, "shuffled"


def test_without_bos(tokens, tmp_path):
    want = pieces_by_hand(corpus(), 16)
    plain = Rows(tokens, 16, bos="none")
    assert plain.first_token is None
    assert sorted(tuples(plain.rows(0, plain.per_epoch))) == sorted(want)
    other = write_tokens(tmp_path / "b.tokens", corpus(), vocab_size=SIZE, separator=END)
    np.testing.assert_array_equal(Rows(other, 16).rows(0, 50), plain.rows(0, 50))
    with pytest.raises(InputError, match=r"bos='add', but .*b.tokens has no BOS token"):
        Rows(other, 16, bos="add")


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_share_no_document(tokens, seed):
    train, held = train_and_held_out(tokens, 8, held_out=0.2, split_seed=seed)
    mine, theirs = set(train.documents().tolist()), set(held.documents().tolist())
    assert mine | theirs == set(range(60))
    assert not mine & theirs
    assert len(theirs) == 12
    for rows, numbers in ((train, mine), (held, theirs)):
        got = rows.rows(0, rows.per_epoch)
        want = pieces_by_hand([d for i, d in enumerate(corpus()) if i in numbers], 7)
        assert sorted(tuples(got[:, 1:])) == sorted(want)
        text = got[:, 1:][got[:, 1:] != END]
        assert set((text // 40 - 1).tolist()) <= numbers
    assert train.n_tokens + held.n_tokens == tokens.n_tokens


def test_which_documents_are_held_out_is_up_to_its_own_seed(tokens):
    def held(**options):
        return tuple(Rows(tokens, 8, part="held_out", held_out=0.2, **options).documents().tolist())

    assert held(seed=0) == held(seed=1), "runs that differ in seed are evaluated on what neither saw"
    assert len({held(split_seed=s) for s in range(10)}) == 10
    everyone = np.concatenate([held(split_seed=s) for s in range(100)])
    counts = np.bincount(everyone, minlength=60)  # 100 draws of 1 in 5: 20 each, deviation 4
    assert (abs(counts - 20) < 20).all()
    assert abs(counts.std() - 4) < 2


def test_equal_documents_stay_together(tmp_path):
    documents = corpus(20) * 3
    tokens = write_tokens(tmp_path / "a.tokens", documents, vocab_size=SIZE, separator=END)
    for seed in range(10):
        held = Rows(tokens, 4, part="held_out", held_out=0.25, split_seed=seed).documents()
        assert len(held) % 3 == 0
        assert set(held % 20) == set(held[: len(held) // 3])


def test_epochs_differ_and_hold_the_same(tokens):
    rows = Rows(tokens, 9, seed=1)
    n = rows.per_epoch
    epochs = [tuples(rows.rows(e * n, n)) for e in range(4)]
    assert len({tuple(e) for e in epochs}) == 4
    assert len({tuple(sorted(e)) for e in epochs}) == 1
    assert tuples(Rows(tokens, 9, seed=2).rows(0, n)) != epochs[0]


def test_rows_do_not_depend_on_who_reads_them(tokens):
    rows = Rows(tokens, 9, seed=7, part="train", held_out=0.1)
    n = 2 * rows.per_epoch + 5
    whole = rows.rows(0, n)
    for batch in (1, 3, 64):
        parts = [rows.rows(k, min(batch, n - k)) for k in range(0, n, batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for count in (1, 2, 8):
        parts = [local_rows(rows, 8, 24, i, count) for i in range(count)]
        assert {len(p) for p in parts} == {24 // count}
        np.testing.assert_array_equal(np.concatenate(parts), whole[8:32])
    numbers = np.random.default_rng(0).integers(0, n, 50)
    np.testing.assert_array_equal(rows.take(numbers), whole[numbers])
    again = Rows(open_tokens(tokens.path), 9, seed=7, part="train", held_out=0.1)
    np.testing.assert_array_equal(again.rows(0, n), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows)).rows(0, n), whole)


def test_these_rows_stay_what_they_are(tmp_path):
    """Runs resume after years: rows of a given file and seed, computed with `test_permute.by_hand`."""
    tokens = write_tokens(tmp_path / "a.tokens", [np.arange(10, 40)], vocab_size=50, bos_id=0)
    first, late = Rows(tokens, 4, seed=5).rows(0, 3), Rows(tokens, 4, seed=5).rows(10**12, 2)
    assert first.tolist() == [[0, 19, 20, 21], [0, 13, 14, 15], [0, 25, 26, 27]]
    assert late.tolist() == [[0, 16, 17, 18], [0, 31, 32, 33]]


def test_huge_row_numbers(tokens):
    rows = Rows(tokens, 9)
    assert rows.rows(2**61, 3).shape == (3, 9)
    assert rows.rows(5, 0).shape == (0, 9)
    for first, n in ((-1, 3), (0, -1), (2**62, 1)):
        with pytest.raises(InputError, match="numbers run from 0"):
            rows.rows(first, n)
    with pytest.raises(InputError, match="row -2: numbers run from 0"):
        rows.take(np.array([3, -2]))


def test_what_is_too_short(tmp_path):
    tokens = write_tokens(tmp_path / "a.tokens", [[5] * 30, [6] * 30], vocab_size=10, bos_id=0)
    assert Rows(tokens, 61).rows(0, 1).tolist() == [[0, *[5] * 30, *[6] * 30]]
    with pytest.raises(InputError, match=r"a.tokens has 60 tokens; one row of context 62 needs 61: give more text"):
        Rows(tokens, 62)
    with pytest.raises(InputError, match=r"the held-out part of .* has 30 tokens; one row of context 40 needs 39"):
        Rows(tokens, 40, part="held_out", held_out=0.5)
    with pytest.raises(InputError, match=r"the training part of .* has 0 tokens"):
        Rows(tokens, 4, part="train", held_out=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "context=1: a row has at least 2 tokens"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"part": "test"}, "part='test'"),
        ({"bos": "yes"}, "bos='yes'"),
        ({"part": "train", "held_out": 0.0}, "held_out=0.0 is a share"),
        ({"part": "held_out", "held_out": 1.0}, "held_out=1.0 is a share"),
        ({"part": "train", "held_out": float("nan")}, "held_out=nan"),
    ],
)
def test_options_out_of_range(tokens, options, message):
    with pytest.raises(InputError, match=message):
        Rows(tokens, **{"context": 8} | options)


def test_processes_that_do_not_fit(tokens):
    rows = Rows(tokens, 8)
    with pytest.raises(InputError, match="10 rows cannot be split evenly over 4 processes"):
        local_rows(rows, 0, 10, 0, 4)
    with pytest.raises(InputError, match=r"process 4 is outside 0\.\.3"):
        local_rows(rows, 0, 8, 4, 4)


def test_ids_beyond_the_vocabulary_are_met_when_read(tokens):
    raw = np.fromfile(tokens.path / IDS, "<u2")
    raw[7] = SIZE
    raw.tofile(tokens.path / IDS)
    rows = Rows(open_tokens(tokens.path), 9)
    with pytest.raises(InputError, match=r"toy.tokens is damaged: id 5000 is outside 0\.\.4999"):
        rows.rows(0, rows.per_epoch)


def test_a_description_tells_rows_apart(tokens):
    rows = Rows(tokens, 9, seed=4)
    told = rows.describe()
    assert told == Rows(open_tokens(tokens.path), 9, seed=4).describe()
    changes = [{"seed": 5}, {"context": 10}, {"part": "train"}, {"held_out": 0.1}, {"split_seed": 1}, {"bos": "none"}]
    assert all(told != Rows(tokens, **{"context": 9, "seed": 4} | c).describe() for c in changes)


def test_stretches_of_neighbours():
    ends = np.array([3, 5, 9, 10])
    for documents, starts, shifts, length in [
        ([0, 1, 2, 3], [0], [0], 10),
        ([1], [0], [3], 2),
        ([0, 2, 3], [0, 3], [0, 2], 8),
        ([1, 3], [0, 2], [3, 7], 3),
        ([], [0], [0], 0),
    ]:
        got = module._stretches(ends, np.array(documents, np.int64))
        assert (got[0].tolist(), got[1].tolist(), got[2]) == (starts, shifts, length)
