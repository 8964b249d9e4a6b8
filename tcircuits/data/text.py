"""Documents from text: files, folders, JSON lines, data sets of the hub; read as a stream, never held whole.

    for document in open_text(["books/", "news.jsonl"]):
        document.text, document.source

A text file is one document; one longer than `part` characters is cut into several, at an empty line where there is one.
"""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tcircuits.files.limits import Budget, parse_json
from tcircuits.files.storage import MIB, MalformedError
from tcircuits.models.source import need
from tcircuits.types import InputError

LINES, TEXT = (".jsonl", ".ndjson"), (".txt", ".md")
CHUNK = 1 << 18  # bytes read at a time
PART = 1 << 16  # characters
MAX_LINE = 64 * MIB
MEMORY = 512 * MIB  # that the values of one line may take
HUB = re.compile(r"hf:(?P<path>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>[^:@]+))?")


@dataclass(frozen=True)
class Document:
    """One text, and where it is from."""

    text: str
    source: str


@dataclass(frozen=True)
class Corpus:
    """Texts that are known to be there; each pass over it reads them again.

    Attributes:
        entries: files with the names that people know them by, and data sets of the hub (`hf:OWNER/NAME`), in order.
        field: of a JSON line or of a data set's row, that holds the text.
        part: a text file with more characters is cut.
    """

    entries: tuple[tuple[Path, str] | str, ...]
    field: str = "text"
    part: int = PART

    @property
    def n_bytes(self) -> int | None:
        """Size of all files; None with a data set of the hub among them."""
        files = [entry[0] for entry in self.entries if not isinstance(entry, str)]
        return sum(f.stat().st_size for f in files) if len(files) == len(self.entries) else None

    def __iter__(self) -> Iterator[Document]:
        """All documents in order; those without any text are left out.

        Raises:
            InputError: bytes that are no text, a line that is no JSON, a missing field.
        """
        for entry in self.entries:
            if isinstance(entry, str):
                found = _rows(entry, self.field)
            elif entry[0].suffix.lower() in LINES:
                found = _lines(*entry, self.field)
            else:
                found = _parts(*entry, self.part)
            yield from (document for document in found if document.text.strip())


def open_text(sources: Iterable[str | PathLike[str]], *, field: str = "text", part: int = PART) -> Corpus:
    """Find the texts.

    Args:
        sources: text files in UTF-8; .jsonl files with one object a line; folders, of which all .txt, .md and .jsonl
            files are taken, sorted by name, below as well, hidden ones not; data sets of the Hugging Face hub, written
            hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME@SPLIT (the package `datasets` must be installed).
        field: of a JSON line or of a data set's row, that holds the text.
        part: characters of a text file that make one document at most.

    Raises:
        InputError: no source, one that does not exist, is empty or is given twice, a folder without text.
    """
    if part < 1:
        raise InputError(f"part={part}: a document has at least 1 character")
    entries = [entry for source in sources for entry in _found(str(source))]
    if not entries:
        raise InputError("no text: give files, folders, .jsonl files, or data sets of the hub as hf:OWNER/NAME")
    keys = [entry if isinstance(entry, str) else str(entry[0].resolve()) for entry in entries]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise InputError(f"{twice[0]} is given twice; each text is read once")
    return Corpus(tuple(entries), field, part)


def _found(source: str) -> list[tuple[Path, str] | str]:
    if source.startswith("hf:"):
        if HUB.fullmatch(source) is None:
            raise InputError(f"{source!r}: write hf:OWNER/NAME, with :CONFIG and @SPLIT where wanted")
        need("datasets", "datasets")
        return [source]
    path = Path(source).expanduser()
    if path.is_dir():
        return list(_in_folder(path))
    if not path.is_file():
        raise InputError(f"{source}: no such file or folder (a data set of the hub is written hf:OWNER/NAME)")
    if path.suffix.lower() == ".json":
        raise InputError(f"{source}: name it .jsonl if it holds one object a line, or .txt if it is text")
    if path.stat().st_size == 0:
        raise InputError(f"{source} is empty; give a text")
    return [(path, path.name)]


def _in_folder(folder: Path) -> list[tuple[Path, str]]:
    names = [f.relative_to(folder) for f in folder.rglob("*") if f.suffix.lower() in TEXT + LINES and f.is_file()]
    shown = sorted(n.as_posix() for n in names if not any(p.startswith(".") for p in n.parts))
    if not shown:
        raise InputError(f"{folder} holds no text: files ending in {', '.join(TEXT + LINES)} are read, below as well")
    return [(folder / name, f"{folder.resolve().name}/{name}") for name in shown]


def _decoded(path: Path) -> Iterator[str]:
    """The characters of a file, a stretch at a time; all line ends become newlines.

    Raises:
        InputError: a zero byte, or bytes that are no UTF-8; the message says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, at = io.IncrementalNewlineDecoder(decoder, translate=True), 0
    with path.open("rb") as file:
        while True:
            data = file.read(CHUNK)
            zero = data.find(b"\0")
            if zero >= 0:
                raise InputError(f"{path} is binary: byte {at + zero} is zero; give text in UTF-8")
            try:
                text = lines.decode(data, final=not data)
            except UnicodeDecodeError as error:
                byte = at + len(data) - len(error.object) + error.start  # the decoder kept what began a character
                raise InputError(f"{path} is no UTF-8 text at byte {byte}; give text in UTF-8") from None
            yield text.removeprefix("\ufeff") if at == 0 else text
            at += len(data)
            if not data:
                return


def _cut(text: str, most: int) -> int:
    """Where to end a document: after an empty line, a line or a word in the second half of what it may have."""
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, most // 2, most)
        if at >= 0:
            return at + len(mark)
    return most


def _parts(path: Path, name: str, part: int) -> Iterator[Document]:
    rest = ""
    for text in _decoded(path):
        rest += text
        while len(rest) > part:
            end = min(_cut(rest, part), part)
            yield Document(rest[:end], name)
            rest = rest[end:]
    yield Document(rest, name)


def _text_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: it holds a {type(row).__name__}; one object a line is read")
    if field not in row:
        raise InputError(f"{where}: no field {field!r}; there are {', '.join(map(str, row)) or 'none'}")
    text = row[field]
    if not isinstance(text, str):
        raise InputError(f"{where}: its field {field!r} is a {type(text).__name__}, not a text")
    return text


def _lines(path: Path, name: str, field: str) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                raise InputError(f"{where}: it has more than {MAX_LINE} bytes; split the document")
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                row = parse_json(line, Budget(MEMORY))
            except MalformedError as error:
                raise InputError(f"{where}: {error}") from None
            yield Document(_text_of(row, field, where), name)


def _rows(source: str, field: str) -> Iterator[Document]:
    """The rows of a data set of the hub, streamed."""
    found = HUB.fullmatch(source)
    assert found is not None, "checked when the corpus was opened"
    datasets = need("datasets", "datasets")
    try:
        stream = datasets.load_dataset(found["path"], found["config"], split=found["split"] or "train", streaming=True)
    except Exception as error:  # the library raises whatever its parts raise
        raise InputError(f"{source} cannot be opened: {' '.join(str(error).split())[:300]}") from error
    for number, row in enumerate(stream):
        yield Document(_text_of(row, field, f"{source}, row {number}"), source)
