"""From text to token ids on disk, and whether ids on disk are those of a model.

tokenize(open_text(["books/"]), tc.load_model("glassllm"), "books.tokens")
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from json import dumps, loads
from os import PathLike
from typing import Any, Literal

import numpy as np

from tcircuits.data.text import Document
from tcircuits.data.tokens import TokenFile, open_tokens
from tcircuits.data.writing import MAX_SOURCES, TokenWriter
from tcircuits.models.model import Model
from tcircuits.models.tokenizers import NO_TOKENIZER, Tokenizer
from tcircuits.types import InputError

TOGETHER, CHARACTERS = 512, 1 << 20  # documents, and characters, that are tokenized together on all cores
Separator = Literal["auto", "eos", "bos", "none"]
# Letters of several scripts, cases, spaces, digits, marks, an emoji: tokenizers that differ make other tokens of it.
PROBE = (
    "Hello, world! It's 1,234.5 tokens\u2014don't   SPLIT\tit\n\n  def f(x): return x**2 # caf\u00e9 \u00c9TUDE "
    "na\u0131ve \ufb01ne \u65e5\u672c\u8a9e \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u05e9\u05dc\u05d5\u05dd "
    "\U0001f600 unbelievable antidisestablishmentarianism\r\n"
)


def fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary (with ids) and of what the tokenizer makes of a probe text.

    It is not the hash of `tokenizer.json`, whose form changes with the release of the library that writes it.
    """
    vocabulary = sorted((i, token) for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items())
    text = dumps([vocabulary, tokenizer.encode(PROBE)], ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands for text that the tokenizer does not know; None where there is none (byte-level BPE)."""
    model: dict[str, Any] = loads(tokenizer.to_json())["model"]
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    name = model.get("unk_token")
    return tokenizer.backend.token_to_id(name) if isinstance(name, str) else None


def tokenizer_of(model: Model | Tokenizer) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        InputError: it has none.
    """
    tokenizer = model if isinstance(model, Tokenizer) else model.tokenizer
    if tokenizer is None:
        raise InputError(NO_TOKENIZER)
    return tokenizer


def separator_of(tokenizer: Tokenizer, separator: Separator = "auto") -> int | None:
    """The token put after each document: `auto` is EOS where the tokenizer has one, else BOS, else nothing.

    Raises:
        InputError: a token that the tokenizer does not have.
    """
    if separator not in ("auto", "eos", "bos", "none"):
        raise InputError(f"separator={separator!r}; there are auto, eos, bos, none")
    ids = {"eos": tokenizer.eos_id, "bos": tokenizer.bos_id, "none": None}
    if separator == "auto":
        return next((i for i in (ids["eos"], ids["bos"]) if i is not None), None)
    if separator != "none" and ids[separator] is None:
        raise InputError(f"separator={separator!r}, but the tokenizer has no such token: use 'none'")
    return ids[separator]


def check_tokenizer(tokens: TokenFile, model: Model) -> None:
    """Refuse tokens that mean something else to this model.

    Raises:
        InputError: ids beyond its vocabulary, or made by another tokenizer than the model's.
    """
    if tokens.vocab_size > model.cfg.d_vocab:
        sizes = f"{tokens.path} has ids up to {tokens.vocab_size - 1}, the model {model.name!r} {model.cfg.d_vocab}"
        raise InputError(f"{sizes} tokens: tokenize the text for this model")
    made, own = tokens.about.tokenizer, model.tokenizer
    if made is not None and own is not None and made != fingerprint(own):
        raise InputError(
            f"{tokens.path} was made by another tokenizer than that of the model {model.name!r}: tokenize the text "
            f"again with --model {model.name}"
        )


def tokenize(
    documents: Iterable[Document | str],
    model: Model | Tokenizer,
    path: str | PathLike[str],
    *,
    separator: Separator = "auto",
    vocab_size: int | None = None,
    name: str | None = None,
    n_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """Tokenize texts as they come and write their ids; special tokens written out in a text are recognised.

    Args:
        documents: texts; `open_text` gives them.
        model: whose tokenizer is used.
        path: a new folder.
        separator: token after each document.
        vocab_size: of the model, where only a tokenizer is given: it may know more tokens than the model has rows, and
            such ids are refused.
        name: how people call the tokens.
        n_bytes: size of all texts, where known, for the progress.
        progress: called with the bytes done, and with `n_bytes` or the same again.

    Raises:
        InputError: no tokenizer, a folder that exists, no text at all, and what `documents` raises.
    """
    tokenizer = tokenizer_of(model)
    size = model.cfg.d_vocab if isinstance(model, Model) else vocab_size or tokenizer.vocab_size
    unknown, done, missed = unknown_id(tokenizer), 0, 0
    sources: dict[str, None] = {}
    options = {"bos_id": tokenizer.bos_id, "tokenizer": fingerprint(tokenizer), "name": name}
    with TokenWriter(path, vocab_size=size, separator=separator_of(tokenizer, separator), **options) as writer:
        for texts in _batches(documents, sources):
            done += _size(texts)
            for encoded in tokenizer.encode_batch(texts):
                ids = np.asarray(encoded, np.int64)
                writer.add(ids)
                missed += 0 if unknown is None else int(np.count_nonzero(ids == unknown))
            if progress is not None:
                progress(done, max(n_bytes or 0, done))
        writer.facts(n_bytes=done, n_unknown=missed, sources=tuple(sources))
    return open_tokens(path)


def _batches(documents: Iterable[Document | str], sources: dict[str, None]) -> Iterator[list[str]]:
    """Texts to tokenize together; notes the names of the first sources."""
    texts: list[str] = []
    size = 0
    for document in documents:
        text, source = (document, "") if isinstance(document, str) else (document.text, document.source)
        if source and len(sources) < MAX_SOURCES:
            sources[source] = None
        texts.append(text)
        size += len(text)
        if len(texts) == TOGETHER or size >= CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _size(texts: list[str]) -> int:
    """Bytes in UTF-8.

    Raises:
        InputError: a text with half a surrogate pair, which is no Unicode.
    """
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as problem:
        raise InputError(f"a text is not Unicode at character {problem.start}") from None
