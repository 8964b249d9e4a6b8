"""Token ids on disk, mapped into memory: a folder (say `prose.tokens`) of three files.

| file | holds |
|---|---|
| `tokens.bin` | ids, uint16 or uint32, little endian: documents one after the other, each with its separator |
| `documents.bin` | for each document where it ends (int64, in tokens) and a hash of its ids (uint64), little endian |
| `about.json` | sizes, vocabulary, special tokens, which tokenizer it was, and a hash of all ids |

    tokens = open_tokens("prose.tokens")
    tokens.n_tokens, tokens.ids[:10]
"""

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import read_json
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.tokens", 1
IDS, DOCUMENTS, ABOUT = "tokens.bin", "documents.bin", "about.json"
DOCUMENT = np.dtype([("end", "<i8"), ("hash", "<u8")])
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
LARGEST = 2**60
STRETCH = 1 << 20  # documents that are looked at together


@dataclass(frozen=True)
class About:
    """What `about.json` says.

    Attributes:
        name: how people call these tokens.
        dtype: `uint16` or `uint32`.
        n_tokens: ids in the file, separators included.
        n_documents: documents.
        vocab_size: all ids are below it.
        bos_id: the token that begins a text, None where there is none.
        separator: the token that ends each document here, None where nothing does.
        tokenizer: `fingerprint` of the tokenizer, None for ids that no tokenizer made.
        digest: hash of all ids: two files with the same digest, context and seed give the same rows.
        n_bytes: of the text in UTF-8, None where there was none.
        n_unknown: ids that stand for text the tokenizer does not know, None as before.
        sources: names of the first texts.
    """

    name: str
    dtype: str
    n_tokens: int
    n_documents: int
    vocab_size: int
    bos_id: int | None
    separator: int | None
    tokenizer: str | None
    digest: str
    n_bytes: int | None = None
    n_unknown: int | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [f"{n}={getattr(self, n)!r:.40} is no text" for n in ("name", "digest") if not _is(self, n, str)]
        if self.tokenizer is not None and not _is(self, "tokenizer", str):
            wrong.append(f"tokenizer={self.tokenizer!r:.40} is no text")
        if not all(isinstance(source, str) for source in self.sources):
            wrong.append("sources are no texts")
        if self.dtype not in list(DTYPES):  # it may be anything, and not hashable
            wrong.append(f"dtype={self.dtype!r:.40}; there are {', '.join(DTYPES)}")
        bits = 16 if self.dtype == "uint16" else 32
        wrong += self._outside("n_tokens", 1, LARGEST) + self._outside("vocab_size", 1, 2**bits)
        wrong += self._outside("n_documents", 1, LARGEST)
        for name, most in (("bos_id", self.vocab_size), ("separator", self.vocab_size)):
            wrong += self._outside(name, 0, most - 1 if isinstance(most, int) else 0, optional=True)
        for name in ("n_bytes", "n_unknown"):
            wrong += self._outside(name, 0, LARGEST, optional=True)
        if wrong:
            raise InputError("; ".join(wrong))

    def _outside(self, name: str, least: int, most: int, *, optional: bool = False) -> list[str]:
        value = getattr(self, name)
        fine = value is None if optional and value is None else _is(self, name, int) and least <= value <= most
        return [] if fine else [f"{name}={value!r:.40} is outside {least}..{most}"]


def _is(about: About, name: str, kind: type) -> bool:
    return type(getattr(about, name)) is kind  # a bool is no number here


@dataclass(frozen=True, eq=False)
class TokenFile:
    """Open tokens; nothing of them is in memory. It can be sent to other processes, which open it again.

    Attributes:
        path: the folder.
        about: what is in it.
        ids: [n_tokens], uint16 or uint32, read only.
        ends: [n_documents], int64: one past the last token of each document, its separator included.
        hashes: [n_documents], uint64: of the ids of each document; documents that are equal have the same.
    """

    path: Path
    about: About
    ids: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray

    @property
    def name(self) -> str:
        """How people call it."""
        return self.about.name

    @property
    def n_tokens(self) -> int:
        """Ids, separators included."""
        return self.about.n_tokens

    @property
    def n_documents(self) -> int:
        """Documents."""
        return self.about.n_documents

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""
        return self.about.vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self.about.bos_id

    @property
    def digest(self) -> str:
        """Hash of all ids."""
        return self.about.digest

    def document(self, number: int) -> np.ndarray:
        """Ids of one document, int32, its separator included.

        Raises:
            InputError: there are not as many documents.
        """
        if not 0 <= number < self.n_documents:
            raise InputError(f"document {number} is outside 0..{self.n_documents - 1}")
        start = int(self.ends[number - 1]) if number else 0
        return self.ids[start : int(self.ends[number])].astype(np.int32)

    def __reduce__(self) -> Any:
        return _again, (str(self.path), self.digest)


def _again(path: str, digest: str) -> TokenFile:
    tokens = open_tokens(path)
    if tokens.digest != digest:
        raise InputError(f"{path} is not what it was: other tokens were written there")
    return tokens


def is_token_file(path: str | PathLike[str]) -> bool:
    """Whether `path` looks like what `write_tokens` writes."""
    return all((Path(path) / name).is_file() for name in (IDS, DOCUMENTS, ABOUT))


def open_tokens(path: str | PathLike[str]) -> TokenFile:
    """Map tokens into memory. Sizes and documents are checked now; ids are compared with the vocabulary when read.

    Raises:
        InputError: no such folder, files missing or cut short, counts or types that cannot be.
    """
    folder = Path(path).expanduser()
    missing = [name for name in (ABOUT, IDS, DOCUMENTS) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{path} holds no tokens: {', '.join(missing)} missing; `tcircuits tokenize` writes them")
    about = _about(folder)
    ids = _mapped(folder / IDS, DTYPES[about.dtype], about.n_tokens)
    documents = _mapped(folder / DOCUMENTS, DOCUMENT, about.n_documents)
    ends, hashes = documents["end"], documents["hash"]
    if not _ascending(ends, about.n_tokens):
        raise InputError(f"{folder / DOCUMENTS} is damaged: ends of documents do not ascend to {about.n_tokens}")
    return TokenFile(folder, about, ids, ends, hashes)


def _about(folder: Path) -> About:
    raw = read_json(folder / ABOUT)
    where = folder / ABOUT
    if raw.pop("format", None) != FORMAT:
        raise InputError(f"{where} is not of the format {FORMAT!r}")
    version = raw.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise InputError(f"{where} has version {version!r:.40}; this release reads {VERSION}")
    known = {f.name for f in fields(About)}
    unknown, missing = sorted(raw.keys() - known), sorted(known - raw.keys())
    if unknown or missing:
        raise InputError(f"{where}: unknown fields {[f'{name:.60}' for name in unknown[:5]]}, missing fields {missing}")
    if not isinstance(raw["sources"], list):
        raise InputError(f"{where}: sources is no list")
    try:
        return About(**raw | {"sources": tuple(raw["sources"])})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size, wanted = path.stat().st_size, count * dtype.itemsize
    if size != wanted:
        what = "cut short" if size < wanted else "too long"
        raise InputError(f"{path} is {what}: it has {size} bytes, {ABOUT} says {wanted}; write the tokens again")
    return np.memmap(path, dtype, mode="r", shape=(count,))


def _ascending(ends: np.ndarray, last: int) -> bool:
    before = 0
    for at in range(0, len(ends), STRETCH):
        stretch = np.concatenate([[before], ends[at : at + STRETCH]])
        if not (stretch[1:] > stretch[:-1]).all():  # a difference could overflow
            return False
        before = int(stretch[-1])
    return before == last
