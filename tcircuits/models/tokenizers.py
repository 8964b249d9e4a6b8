"""Text to token ids and back, whatever a model's tokenizer came from.

One small class over the `tokenizers` library. It never adds special tokens by itself: whether a prompt gets a BOS token
is decided, and shown, by who attributes it.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tcircuits.types import InputError

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model")
LARGEST = 128 << 20  # bytes of a `tokenizer.json`
SPACE = "\u2581"  # how SentencePiece writes a space
NO_TOKENIZER = "this model has no tokenizer (its source has no tokenizer files): give token ids instead of text"


@contextmanager
def _said(what: str) -> Generator[None]:
    """Turn what the library raises into an error that says what it was about.

    Raises:
        InputError: see above.
    """
    try:
        yield
    except BaseException as error:  # the library raises bare `Exception`, and where its own code gives up, no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(f"{what}: {error!s:.300}") from None
        raise


class Tokenizer:
    """A tokenizer and the two special tokens that matter here.

    Attributes:
        bos_id: id of the token that begins a text, None where there is none (0 is an id like any other).
        eos_id: id of the token that ends one.
        adds_bos: whether the model was made with a BOS token before every text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        adds_bos: bool = False,
    ) -> None:
        self.backend, self.bos_id, self.eos_id = backend, bos_id, eos_id
        self.adds_bos = adds_bos and bos_id is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones included; a model may have more rows than that."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added (those written out in the text are recognised).

        Raises:
            InputError: the tokenizer has no token for some of the text: one of words alone, or a damaged one.
        """
        with _said(f"{text[:80]!r} has words that are no tokens of this model"):
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts, on all cores.

        Raises:
            InputError: as `encode`.
        """
        with _said("a text has words that are no tokens of this model"):
            return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            InputError: the tokenizer is damaged.
        """
        with _said("the ids cannot be made a text"):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    @cached_property
    def _added(self) -> dict[int, str]:
        return {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in repr(self.backend.decoder)

    def token(self, token_id: int) -> str:
        """One token as shown to people: its text with its leading space; bytes that are no text as <0xE2>."""
        raw = self.backend.id_to_token(int(token_id))
        if raw is None:
            return f"<unused {int(token_id)}>"
        if int(token_id) in self._added:
            return raw
        if self._byte_level:
            return _show(bytes(_BYTES[c] for c in raw) if all(c in _BYTES for c in raw) else raw.encode())
        fallback = re.fullmatch("<0x([0-9A-F]{2})>", raw)
        return _show(bytes([int(fallback[1], 16)])) if fallback else raw.replace(SPACE, " ")

    def to_json(self) -> str:
        """The whole tokenizer in the format of `tokenizer.json`."""
        return self.backend.to_str()


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, and that byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTES = _byte_alphabet()


def _show(data: bytes) -> str:
    return re.sub("[\udc80-\udcff]", lambda m: f"<0x{ord(m[0]) - 0xDC00:02X}>", data.decode("utf-8", "surrogateescape"))


def _adds_bos(backend: tokenizers.Tokenizer, bos_id: int | None) -> bool:
    ids = backend.encode("a").ids if bos_id is not None else []
    return bool(ids) and ids[0] == bos_id


def from_json(
    text: str, *, bos_id: int | None = None, eos_id: int | None = None, adds_bos: bool | None = None
) -> Tokenizer:
    """A tokenizer from the text of a `tokenizer.json`.

    Raises:
        InputError: it cannot be read.
    """
    with _said("the tokenizer cannot be read"):
        backend = _whole(tokenizers.Tokenizer.from_str(text))
        adds = _adds_bos(backend, bos_id) if adds_bos is None else adds_bos
    return Tokenizer(backend, bos_id=bos_id, eos_id=eos_id, adds_bos=adds)


def _whole(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Without the padding and the truncation that a file may ask for: a text's ids are all of its ids and no others."""
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return backend


def read_text(path: Path) -> str:
    """The text of a `tokenizer.json`.

    Raises:
        InputError: no such file, no UTF-8, or more than `LARGEST` bytes.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes; tokenizers of up to {LARGEST} are read")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _first_id(value: Any) -> int | None:
    """An id of `config.json`, where several may stand in a list."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def from_folder(path: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model folder, None where it has no tokenizer files.

    A lone `tokenizer.json` is read as it is, with the special tokens of `config.json`; anything else goes through
    `transformers.AutoTokenizer`, without running code from the folder.

    Raises:
        InputError: tokenizer files that cannot be read, or a kind without a fast version.
    """
    there = [name for name in FILES if (path / name).is_file()]
    if not there:
        return None
    if there == ["tokenizer.json"]:
        text = read_text(path / "tokenizer.json")
        return from_json(
            text, bos_id=_first_id(config.get("bos_token_id")), eos_id=_first_id(config.get("eos_token_id"))
        )
    from transformers import AutoTokenizer

    with _said(f"the tokenizer of {path} ({', '.join(there)}) cannot be read"):
        auto: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    backend = getattr(auto, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise InputError(
            f"the tokenizer of {path} ({type(auto).__name__}) has no fast version; save one as tokenizer.json"
        )
    bos = auto.bos_token_id
    with _said(f"the tokenizer of {path} cannot be used"):
        adds = _adds_bos(_whole(backend), bos)
    return Tokenizer(backend, bos_id=bos, eos_id=auto.eos_token_id, adds_bos=adds)


def from_characters(alphabet: Sequence[str], merges: Sequence[Sequence[str]], special: Sequence[str]) -> Tokenizer:
    """Character BPE over text in normal form C, spaces written as U+2581; words keep the spaces before them.

    Args:
        alphabet: the characters; ids follow those of `special`, then come the merges.
        merges: pairs in the order in which they merge.
        special: pad, unknown, begin, end.
    """
    vocabulary = [*special, *alphabet, *(a + b for a, b in merges)]
    ids: dict[str, int] = {}
    for i, token in enumerate(vocabulary):
        ids[token] = i
    backend = tokenizers.Tokenizer(models.BPE(ids, [(a, b) for a, b in merges], unk_token=special[1]))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", SPACE)])
    words = tokenizers.Regex(rf"\n|{SPACE}*[^{SPACE}\n]+|{SPACE}+")
    backend.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    return Tokenizer(backend, bos_id=ids[special[2]], eos_id=ids[special[3]])


def from_words(vocabulary: Sequence[str]) -> Tokenizer:
    """One token a word, words apart by white space; a word that is not in the vocabulary is an error."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<none>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend)
