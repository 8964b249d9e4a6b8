"""Token ids come back from disk as they were written; files that cannot be what they say are refused."""

import json
import os
import pickle
from hashlib import blake2b

import numpy as np
import pytest

from tcircuits.data import writing
from tcircuits.data.tokens import ABOUT, DOCUMENTS, IDS, is_token_file, open_tokens
from tcircuits.data.writing import TokenWriter, write_tokens
from tcircuits.types import InputError

DOCS = [[5, 1, 2], [], np.array([7, 7], np.uint16), (9,)]


@pytest.fixture
def folder(tmp_path):
    write_tokens(tmp_path / "toy.tokens", DOCS, vocab_size=10, bos_id=0, separator=3, sources=["here"])
    return tmp_path / "toy.tokens"


def test_there_and_back(folder):
    tokens = open_tokens(folder)
    ids = [5, 1, 2, 3, 7, 7, 3, 9, 3]
    assert tokens.ids.tolist() == ids
    assert (tokens.n_tokens, tokens.n_documents, tokens.vocab_size, tokens.bos_id) == (9, 3, 10, 0)
    assert tokens.ends.tolist() == [4, 7, 9]
    assert [tokens.document(i).tolist() for i in range(3)] == [[5, 1, 2, 3], [7, 7, 3], [9, 3]]
    assert (folder / IDS).read_bytes() == np.array(ids, "<u2").tobytes()
    assert tokens.digest == blake2b(np.array(ids, "<u2").tobytes(), digest_size=16).hexdigest()
    assert (tokens.name, tokens.about.sources, tokens.about.separator) == ("toy", ("here",), 3)
    assert is_token_file(folder)
    assert not is_token_file(folder.parent)
    assert [p.name for p in folder.parent.iterdir()] == ["toy.tokens"], "no draft is left"
    assert (folder.stat().st_mode & 0o777) == 0o755
    with pytest.raises(InputError, match=r"document 3 is outside 0\.\.2"):
        tokens.document(3)


def test_without_separator(tmp_path):
    tokens = write_tokens(tmp_path / "a.tokens", DOCS, vocab_size=10)
    assert tokens.ids.tolist() == [5, 1, 2, 7, 7, 9]
    assert (tokens.bos_id, tokens.about.separator) == (None, None)


@pytest.mark.parametrize(("vocab_size", "width"), [(2**16, 2), (2**16 + 1, 4), (2**32, 4)])
def test_ids_take_the_bytes_they_need(tmp_path, vocab_size, width):
    tokens = write_tokens(tmp_path / "a.tokens", [[0, vocab_size - 1]], vocab_size=vocab_size)
    assert tokens.ids.dtype.itemsize == width
    assert tokens.ids.tolist() == [0, vocab_size - 1]


def test_equal_documents_have_equal_hashes(tmp_path):
    tokens = write_tokens(tmp_path / "a.tokens", [[1, 2], [3], [1, 2], [2, 1]], vocab_size=10, separator=0)
    h = tokens.hashes.tolist()
    assert h[0] == h[2]
    assert len(set(h)) == 3


def test_it_can_be_sent(folder):
    tokens = open_tokens(folder)
    sent = pickle.dumps(tokens)
    assert len(sent) < 500
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.ids, tokens.ids)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_tokens(folder, [[1]], vocab_size=10)
    with pytest.raises(InputError, match="is not what it was"):
        pickle.loads(sent)


def change(folder, **fields):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | fields))


HOSTILE = [
    ({"n_tokens": 10}, r"tokens.bin is cut short: it has 18 bytes, about.json says 20"),
    ({"n_tokens": 8}, r"tokens.bin is too long"),
    ({"n_tokens": 2**59}, "cut short"),
    ({"n_tokens": 2**62}, r"n_tokens=4611686018427387904 is outside 1\.\."),
    ({"n_tokens": 10**30}, "more than 64 bits"),
    ({"n_tokens": -9}, r"n_tokens=-9 is outside 1\.\."),
    ({"n_tokens": 0}, "n_tokens=0"),
    ({"n_tokens": 9.0}, "n_tokens=9.0"),
    ({"n_tokens": True}, "n_tokens=True"),
    ({"n_tokens": None}, "n_tokens=None"),
    ({"n_documents": 2}, "documents.bin is too long"),
    ({"n_documents": 2**58}, "documents.bin is cut short"),
    ({"n_documents": "3"}, "n_documents='3'"),
    ({"dtype": "uint32"}, "tokens.bin is cut short"),
    ({"dtype": "float64"}, "dtype='float64'; there are uint16, uint32"),
    ({"dtype": "object"}, "dtype='object'"),
    ({"dtype": ["uint16"]}, r"dtype=\['uint16'\]"),
    ({"vocab_size": 2**17}, r"vocab_size=131072 is outside 1\.\.65536"),
    ({"vocab_size": 0}, "vocab_size=0"),
    ({"vocab_size": "10"}, "vocab_size='10'"),
    ({"bos_id": 10}, r"bos_id=10 is outside 0\.\.9"),
    ({"bos_id": -1}, "bos_id=-1"),
    ({"separator": 1.5}, "separator=1.5"),
    ({"tokenizer": 3}, "tokenizer=3 is no text"),
    ({"digest": None}, "digest=None is no text"),
    ({"name": {}}, "name={} is no text"),
    ({"sources": "all"}, "sources is no list"),
    ({"sources": [1]}, "sources are no texts"),
    ({"n_bytes": -1}, "n_bytes=-1"),
    ({"format": "other"}, "is not of the format 'tcircuits.tokens'"),
    ({"version": 2}, "version 2; this release reads 1"),
    ({"version": True}, "version True"),
    ({"more": 1}, r"unknown fields \['more'\]"),
    ({"m" * 5000: 1}, r"unknown fields \['m{60}'\]"),
]


@pytest.mark.parametrize(("fields", "message"), HOSTILE)
def test_hostile_descriptions(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(InputError, match=message):
        open_tokens(folder)


def test_a_description_that_lacks_something(folder):
    about = json.loads((folder / ABOUT).read_text())
    del about["digest"]
    (folder / ABOUT).write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"missing fields \['digest'\]"):
        open_tokens(folder)
    (folder / ABOUT).write_text("[")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        open_tokens(folder)


@pytest.mark.parametrize(
    "ends", [[4, 7, 8], [4, 4, 9], [7, 4, 9], [0, 7, 9], [-1, 7, 9], [2**63 - 1, -(2**63), 9], [4, 10, 9]], ids=str
)
def test_documents_that_do_not_fit(folder, ends):
    raw = np.fromfile(folder / DOCUMENTS, [("end", "<i8"), ("hash", "<u8")])
    raw["end"] = ends
    raw.tofile(folder / DOCUMENTS)
    with pytest.raises(InputError, match=r"documents.bin is damaged: ends of documents do not ascend to 9"):
        open_tokens(folder)


def test_long_lists_of_documents_are_checked_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr("tcircuits.data.tokens.STRETCH", 4)
    write_tokens(tmp_path / "a.tokens", [[i] for i in range(10)], vocab_size=10)
    assert open_tokens(tmp_path / "a.tokens").n_documents == 10
    raw = np.fromfile(tmp_path / "a.tokens" / DOCUMENTS, [("end", "<i8"), ("hash", "<u8")])
    raw["end"][4] = 4  # as the last one of the stretch before
    raw.tofile(tmp_path / "a.tokens" / DOCUMENTS)
    with pytest.raises(InputError, match="do not ascend"):
        open_tokens(tmp_path / "a.tokens")


@pytest.mark.parametrize("name", [IDS, DOCUMENTS])
@pytest.mark.parametrize("cut", [1, 2, 16])
def test_files_cut_short(folder, name, cut):
    os.truncate(folder / name, (folder / name).stat().st_size - cut)
    with pytest.raises(InputError, match=rf"{name} is cut short.*write the tokens again"):
        open_tokens(folder)


@pytest.mark.parametrize("name", [IDS, DOCUMENTS, ABOUT])
def test_files_that_are_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"holds no tokens: {name} missing; `tcircuits tokenize` writes them"):
        open_tokens(folder)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([[1, 10]], {}, r"token ids 1\.\.10 leave the vocabulary 0\.\.9"),
        ([[-1, 3]], {}, r"token ids -1\.\.3 leave"),
        ([[1.0, 2.0]], {}, "a document is a list of integers, not float64"),
        ([[[1, 2]]], {}, r"not int64 of shape \(1, 2\)"),
        ([], {}, "no document holds any token: nothing is written"),
        ([[], []], {"separator": 3}, "no document holds any token"),
        ([[1]], {"separator": 10}, r"separator=10 is outside 0\.\.9"),
        ([[1]], {"bos_id": -1}, "bos_id=-1"),
        ([[1]], {"vocab_size": 2**33}, "vocab_size=8589934592"),
        ([[1]], {"vocab_size": 0}, "vocab_size=0"),
    ],
)
def test_what_is_not_written(tmp_path, documents, options, message):
    with pytest.raises(InputError, match=message):
        write_tokens(tmp_path / "a.tokens", documents, **{"vocab_size": 10} | options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(folder):
    before = (folder / IDS).read_bytes()
    with pytest.raises(InputError, match=r"toy.tokens exists"):
        write_tokens(folder, [[1]], vocab_size=10)
    assert (folder / IDS).read_bytes() == before
    file = folder / IDS
    with pytest.raises(InputError, match="cannot be written"):
        write_tokens(file / "below", [[1]], vocab_size=10)


def test_a_writer_that_stops_leaves_nothing(tmp_path):
    def documents():
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "new" / "a.tokens", documents(), vocab_size=10)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tokens(tmp_path / "a.tokens", [[1]], vocab_size=10)
    assert list(tmp_path.iterdir()) == []


def test_it_appears_when_it_is_whole(tmp_path):
    with TokenWriter(tmp_path / "a.tokens", vocab_size=10) as writer:
        writer.add([1, 2])
        assert not (tmp_path / "a.tokens").exists()
    assert open_tokens(tmp_path / "a.tokens").n_tokens == 2
