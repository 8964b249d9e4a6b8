"""Writing token ids to disk: a folder appears under its name when it is complete, or not at all.

write_tokens("toy.tokens", [[5, 1, 2], [7, 7]], vocab_size=10, bos_id=0)
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from tcircuits.data.tokens import (
    ABOUT,
    DOCUMENT,
    DOCUMENTS,
    DTYPES,
    FORMAT,
    IDS,
    VERSION,
    About,
    TokenFile,
    open_tokens,
)
from tcircuits.types import InputError

MAX_SOURCES = 1000
BUFFER = 1 << 20  # bytes


def check_new(path: str | PathLike[str]) -> Path:
    """The folder to write.

    Raises:
        InputError: it exists, or nothing can be written beside it.
    """
    target = Path(path).expanduser().absolute()
    if target.exists() or target.is_symlink():
        raise InputError(f"{path} exists; tokens are written to a new folder: remove it or choose another name")
    there = next(p for p in target.parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror or problem}") from None
    return target


class TokenWriter:
    """Writes documents one by one, holding none of them; use it with `with`.

    Args:
        path: a new folder.
        vocab_size: ids are below it; up to 65,536 they take two bytes each, else four.
        bos_id: the token that rows of these tokens begin with.
        separator: put after each document.
        tokenizer: fingerprint of the tokenizer.
        name: how people call the tokens; None takes the folder's name without its ending.

    Raises:
        InputError: the folder exists or cannot be written, special tokens outside the vocabulary.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        vocab_size: int,
        bos_id: int | None = None,
        separator: int | None = None,
        tokenizer: str | None = None,
        name: str | None = None,
    ) -> None:
        self.path, self.vocab_size = check_new(path), vocab_size
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self.about: dict[str, Any] = {"name": name or self.path.stem, "dtype": dtype, "vocab_size": vocab_size}
        self.about |= {"bos_id": bos_id, "separator": separator, "tokenizer": tokenizer}
        About(**self.about, n_tokens=1, n_documents=1, digest="")  # refuses what could not be opened again
        self.dtype = DTYPES[dtype]
        self.end = np.asarray([] if separator is None else [separator], self.dtype)
        self.n_tokens = self.n_documents = 0
        self.hash = blake2b(digest_size=16)

    def __enter__(self) -> "TokenWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        with ExitStack() as stack:
            self.ids: BinaryIO = stack.enter_context((self.draft / IDS).open("wb", buffering=BUFFER))
            self.documents: BinaryIO = stack.enter_context((self.draft / DOCUMENTS).open("wb", buffering=BUFFER))
            self.open = stack.pop_all()
        return self

    def add(self, ids: np.ndarray | Sequence[int]) -> None:
        """Append one document; an empty one is left out.

        Raises:
            InputError: it is no list of integers, or one is outside the vocabulary.
        """
        given = np.asarray(ids)
        if given.size == 0:
            return
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise InputError(f"a document is a list of integers, not {given.dtype} of shape {given.shape}")
        if int(given.min()) < 0 or int(given.max()) >= self.vocab_size:
            least, most = int(given.min()), int(given.max())
            raise InputError(f"token ids {least}..{most} leave the vocabulary 0..{self.vocab_size - 1}")
        data = given.astype(self.dtype).tobytes()
        both = data + self.end.tobytes()
        self.n_tokens += len(both) // self.dtype.itemsize
        self.n_documents += 1
        self.ids.write(both)
        self.hash.update(both)
        own = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
        self.documents.write(np.array([(self.n_tokens, own)], DOCUMENT).tobytes())

    def facts(self, **about: Any) -> None:
        """What else `about.json` shall say: n_bytes, n_unknown, sources."""
        self.about |= about

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self.n_documents:
                raise InputError("no document holds any token: nothing is written")
            if kind is None:
                for file in (self.ids, self.documents):
                    synced(file)
            self.open.close()
            if kind is None:
                self._publish()
        finally:
            with suppress(OSError):  # of a full disk, once more
                self.open.close()
            shutil.rmtree(self.draft, ignore_errors=True)

    def _publish(self) -> None:
        counts = {"n_tokens": self.n_tokens, "n_documents": self.n_documents, "digest": self.hash.hexdigest()}
        sources = tuple(self.about.pop("sources", ()))[:MAX_SOURCES]
        about = About(**self.about, **counts, sources=sources)
        write_json(self.draft / ABOUT, {"format": FORMAT, "version": VERSION} | asdict(about))
        self.draft.chmod(0o755)  # a temporary folder is closed to others
        self.draft.rename(self.path)


def synced(file: BinaryIO) -> None:
    """Bring what was written to the disk, so that a rename after it never names a file that is not whole."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object in a file; it is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1).encode())
        synced(file)


def write_tokens(
    path: str | PathLike[str],
    documents: Iterable[np.ndarray | Sequence[int]],
    *,
    vocab_size: int,
    bos_id: int | None = None,
    separator: int | None = None,
    tokenizer: str | None = None,
    name: str | None = None,
    sources: Iterable[str] = (),
) -> TokenFile:
    """Write documents that are token ids already; they are taken one by one, in order.

    Args:
        path: a new folder.
        documents: ids of each.
        vocab_size: all ids are below it.
        bos_id: the token that rows begin with; None where there is none.
        separator: a token to put after each document.
        tokenizer: `fingerprint` of the tokenizer that made the ids, None if none did.
        name: how people call the tokens.
        sources: names of what the documents are from.

    Raises:
        InputError: the folder exists or cannot be written, ids outside the vocabulary, no token at all.
    """
    options = {"bos_id": bos_id, "separator": separator, "tokenizer": tokenizer, "name": name}
    with TokenWriter(path, vocab_size=vocab_size, **options) as writer:
        writer.facts(sources=tuple(sources))
        for document in documents:
            writer.add(document)
    return open_tokens(path)
