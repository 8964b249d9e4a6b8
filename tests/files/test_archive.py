"""One npz of arrays and a JSON text: what is opened, and what is refused before an array is read."""

import json

import numpy as np
import pytest

from tcircuits.files import archive
from tcircuits.files.archive import fitting, open_archive, read_all
from tcircuits.files.storage import MalformedError

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(2), "c": np.array([True, False, True])}
WANTED = {"a": ("f", ("N", "D")), "b": ("iu", ("N",)), "c": ("b", ("D",))}


def write(path, about, **changes):
    text = about if isinstance(about, str) else json.dumps({"format": "x", "version": 2} | about)
    np.savez_compressed(path, about=text, **{k: v for k, v in (ARRAYS | changes).items() if v is not None})
    return path


def test_what_is_written_comes_back(tmp_path):
    about, file = open_archive(write(tmp_path / "a.npz", {"n": 1}), "about", "x", 2)
    assert about == {"n": 1}
    assert fitting(file, WANTED, {"N": 2}) == {"N": 2, "D": 3}
    back = read_all(file)
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)


TEXTS = {
    "no JSON": ("{", "no JSON"), "no object": ("[]", "format 'x'"), "another": ('{"format": "y"}', "format 'x'"),
    "no version": ('{"format": "x"}', "version None; this release reads version 2"),
    "true for 1": ('{"format": "x", "version": true}', "version True"), "deep": ("[" * 10**5, "deeply|values"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_refused(name, tmp_path):
    text, message = TEXTS[name]
    with pytest.raises(MalformedError, match=message):
        open_archive(write(tmp_path / "a.npz", text), "about", "x", 2)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(MalformedError, match="no such file"):
        open_archive(tmp_path / "none.npz", "about", "x", 2)
    np.savez(tmp_path / "b.npz", about=np.arange(3))
    with pytest.raises(MalformedError, match="no text 'about'"):
        open_archive(tmp_path / "b.npz", "about", "x", 2)
    path = write(tmp_path / "c.npz", {}, more=np.array("text"))
    with pytest.raises(MalformedError, match="other texts"):
        open_archive(path, "about", "x", 2)
    path = write(tmp_path / "d.npz", {}, a=np.array([None]))
    with pytest.raises(MalformedError, match="Python objects"):
        open_archive(path, "about", "x", 2)


ARRAYS_THAT_DO_NOT_FIT = {
    "missing": ({"a": None}, "a is missing"), "more": ({"z": np.ones(1)}, "'z' is not expected"),
    "type": ({"b": np.ones(2)}, "b holds F64"),
    "rank": ({"b": np.ones((2, 1), int)}, r"b has shape \(2, 1\), not \(2\)"),
    "known size": ({"b": np.arange(3)}, r"b has shape \(3,\), not \(2\)"),
    "another array": ({"c": np.ones(4, bool)}, r"c has shape \(4,\), not \(3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS_THAT_DO_NOT_FIT)
def test_arrays_that_do_not_fit_are_refused_unread(name, tmp_path, monkeypatch):
    changes, message = ARRAYS_THAT_DO_NOT_FIT[name]
    _, file = open_archive(write(tmp_path / "a.npz", {}, **changes), "about", "x", 2)
    monkeypatch.setattr(archive, "read_all", pytest.fail)
    with pytest.raises(MalformedError, match=message):
        fitting(file, WANTED, {"N": 2})
