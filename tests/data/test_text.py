"""Texts as they lie on disk become documents, in order, in stretches; what is no text is refused, with its place."""

import json
import sys
import types

import pytest

from tcircuits.data import text
from tcircuits.data.text import Document, open_text
from tcircuits.types import InputError


def texts(*sources, **options):
    return [d.text for d in open_text(sources, **options)]


def test_a_folder_is_read_in_order(tmp_path):
    for name, content in {
        "b.txt": "two",
        "a/z.md": "# one",
        "c.jsonl": '{"text": "three"}\n\n{"text": "four", "id": 4}\n{"text": "  "}\n',
        "d.py": "print()",
        ".hidden/e.txt": "no",
        "empty.txt": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = list(open_text([tmp_path]))
    top = tmp_path.name
    assert found == [
        Document("# one", f"{top}/a/z.md"),
        Document("two", f"{top}/b.txt"),
        Document("three", f"{top}/c.jsonl"),
        Document("four", f"{top}/c.jsonl"),
    ]
    assert texts(tmp_path / "c.jsonl", tmp_path / "a") == ["three", "four", "# one"], "in the order given"
    assert (
        open_text([tmp_path]).n_bytes == sum(len(s) for s in ("two", "# one")) + (tmp_path / "c.jsonl").stat().st_size
    )


def test_each_pass_reads_again(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    corpus = open_text([tmp_path])
    assert list(corpus) == list(corpus) != []


def test_marks_and_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "caf\xc3\xa9"}\r\n')
    assert texts(tmp_path) == ["one\ntwo\nthree\n", "café"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_stretches_do_not_show(tmp_path, monkeypatch, chunk):
    content = "Ünïcödé 日本語 😀\r\nline\n\n" * 5
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    monkeypatch.setattr(text, "CHUNK", max(chunk, 3))
    assert texts(tmp_path) == [content.replace("\r\n", "\n")]


def test_long_files_are_cut_between_paragraphs(tmp_path):
    content = "".join(f"paragraph {i} " + "word " * (i % 7) + "\n\n" for i in range(200))
    (tmp_path / "a.txt").write_text(content)
    found = texts(tmp_path, part=300)
    assert "".join(found) == content
    assert all(len(t) <= 300 for t in found)
    assert all(t.endswith("\n\n") for t in found)
    assert len(found) <= 2 * len(content) / 300 + 1


@pytest.mark.parametrize(
    ("content", "ends"),
    [("line\n" * 100, "\n"), ("word " * 100, " "), ("x" * 500, "x")],
    ids=["lines", "words", "neither"],
)
def test_long_files_without_paragraphs(tmp_path, content, ends):
    (tmp_path / "a.txt").write_text(content)
    found = texts(tmp_path, part=64)
    assert "".join(found) == content
    assert all(t.endswith(ends) and 32 <= len(t) <= 64 for t in found[:-1])


def test_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": 3}\n')
    assert texts(tmp_path, field="body") == ["one"]


BAD = {
    "zero": ("a.txt", b"text\0more", "a.txt is binary: byte 4 is zero"),
    "latin": ("a.txt", "café".encode("latin-1"), "a.txt is no UTF-8 text at byte 3"),
    "cut": ("a.txt", "日本語".encode()[:-1], "a.txt is no UTF-8 text at byte 6"),
    "utf-16": ("a.txt", "text".encode("utf-16"), "at byte 0|byte 3 is zero"),
    "late": ("a.txt", b"\xef\xbb\xbf" + b"x" * 1000 + b"\xff", "a.txt is no UTF-8 text at byte 1003"),
    "no JSON": ("a.jsonl", b'{"text": "one"}\n{"text": \n', "a.jsonl, line 2: it is no JSON"),
    "list": ("a.jsonl", b'["text"]\n', "line 1: it holds a list; one object a line"),
    "no field": (
        "a.jsonl",
        b'{"text": "one"}\n\n{"body": "two", "id": 1}\n',
        "line 3: no field 'text'; there are body, id",
    ),
    "number": ("a.jsonl", b'{"text": 3}\n', "line 1: its field 'text' is a int, not a text"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*surrogate"),
    "deep": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: "),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("chunk", [3, text.CHUNK])
def test_what_is_no_text(tmp_path, monkeypatch, name, chunk):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(text, "CHUNK", chunk)
    with pytest.raises(InputError, match=message):
        texts(tmp_path)


def test_a_line_without_end(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 100 + '"}')
    monkeypatch.setattr(text, "MAX_LINE", 50)
    with pytest.raises(InputError, match="line 1: it has more than 50 bytes"):
        texts(tmp_path)


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "folder").mkdir()
    for sources, message in [
        ([], "no text: give files"),
        (["nope.txt"], "nope.txt: no such file or folder .*hf:OWNER/NAME"),
        ([tmp_path / "empty.txt"], "empty.txt is empty"),
        ([tmp_path / "a.json"], "name it .jsonl"),
        ([tmp_path / "folder"], "folder holds no text: files ending in .txt"),
        ([tmp_path / "a.txt", tmp_path], "a.txt is given twice"),
        (["hf:"], "write hf:OWNER/NAME"),
        (["hf:a/b@c@d"], "write hf:OWNER/NAME"),
    ]:
        with pytest.raises(InputError, match=message):
            open_text(sources)
    with pytest.raises(InputError, match="part=0"):
        open_text([tmp_path / "a.txt"], part=0)


def test_a_data_set_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="this needs the package 'datasets': pip install datasets"):
        open_text(["hf:owner/name"])


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, streaming):
        asked.append((path, config, split, streaming))
        if path == "owner/gone":
            raise FileNotFoundError("no such\ndata set")
        return iter([{"text": "one"}, {"text": ""}, {"text": "three"}, {"other": 1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    corpus = open_text(["hf:owner/name:config-1@test"])
    assert corpus.n_bytes is None
    stream = iter(corpus)
    assert [next(stream).text, next(stream).text] == ["one", "three"]
    with pytest.raises(InputError, match=r"hf:owner/name:config-1@test, row 3: no field 'text'; there are other"):
        next(stream)
    with pytest.raises(InputError, match="hf:owner/gone cannot be opened: no such data set"):
        list(open_text(["hf:owner/gone"]))
    assert asked == [("owner/name", "config-1", "test", True), ("owner/gone", None, "train", True)]


def test_nothing_is_held(tmp_path):
    """Documents come before the file's end is read: the fault at the end is met after them."""
    lines = [json.dumps({"text": f"text {i}"}) for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    stream = iter(open_text([tmp_path]))
    assert [next(stream).text for _ in range(10)] == [f"text {i}" for i in range(10)]
    with pytest.raises(InputError, match="line 11"):
        next(stream)
