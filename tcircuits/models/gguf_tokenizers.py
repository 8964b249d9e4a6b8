"""The tokenizer that a GGUF file carries, rebuilt from its `tokenizer.ggml.*` fields.

`gpt2` is byte-level BPE: tokens, merges, and a rule by which text is split first. `llama` is SentencePiece's BPE:
tokens with scores and no merges. It always joins the two neighbours whose union has the highest score, the leftmost of
equals; so every way of cutting a token into two tokens is a merge, ranked by the score of the whole.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tcircuits.models.tokenizers import SPACE, Tokenizer
from tcircuits.types import InputError

AT = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the format's numbers for kinds of tokens

# How byte-level BPE splits text before merging, by `tokenizer.ggml.pre`.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DEFAULT_SPLITS = (r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer | None:
    """How a file's byte-level BPE splits text; None where we do not know it."""

    def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
        parts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match pre:
        case "gpt-2" | "olmo" | "jais" | "phi-2":
            return words
        case "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
        case "llama-bpe" | "llama3" | "llama-v3":
            return split(LLAMA3_SPLIT)
        case "qwen2":
            return split(QWEN2_SPLIT)
        case "default":
            return split(*DEFAULT_SPLITS)
    return None


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer | None:
    pre, merges = str(fields.get(AT + "pre", "default")), fields.get(AT + "merges")
    splitter = _splitter(pre)
    if splitter is None or merges is None:
        return None
    pairs = [(left, right) for left, _, right in (m.partition(" ") for m in merges)]
    bpe = models.BPE({t: i for i, t in enumerate(tokens)}, pairs, ignore_merges=pre.startswith("llama"))
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
    return backend


def merges_of(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE, best first; of one token, by the numbers of its parts."""
    ids = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (NORMAL, USER)}
    ranked = []
    for token, i in ids.items():
        cuts = ((token[:k], token[k:]) for k in range(1, len(token)))
        whole = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
        ranked += [(-scores[i], i, *cut) for cut in whole]
    return [(a, b) for *_, a, b in sorted(ranked)]


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer | None:
    scores, kinds = fields.get(AT + "scores"), fields.get(AT + "token_type")
    if scores is None or kinds is None or not len(scores) == len(kinds) == len(tokens):
        return None
    unknown = next((t for t, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    bpe = models.BPE(
        {t: i for i, t in enumerate(tokens)},
        merges_of(tokens, scores, kinds),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in kinds,
    )
    backend = tokenizers.Tokenizer(bpe)
    prefix = bool(fields.get(AT + "add_space_prefix", True))
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    shown = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*shown, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a GGUF file from its metadata; None where it has none.

    Of a kind that is not known, it warns and returns None: the model loads without a tokenizer.

    Raises:
        InputError: fields that contradict each other, or are of other types.
    """
    kind, tokens = fields.get(AT + "model"), fields.get(AT + "tokens")
    if kind is None or tokens is None:
        return None
    ids = [fields.get(f"{AT}{name}_token_id") for name in ("bos", "eos")]
    if not all(i is None or (type(i) is int and 0 <= i < len(tokens)) for i in ids):
        raise InputError(f"the file's tokenizer has {len(tokens)} tokens, and the special ones are {ids!s:.100}")
    try:
        return _rebuilt(fields, str(kind), tokens)
    except Exception as error:  # the library raises bare `Exception`, and damaged fields can be of any type
        raise InputError(f"the file's tokenizer cannot be rebuilt: {error!s:.200}") from error


def _rebuilt(fields: Mapping[str, Any], kind: str, tokens: Sequence[str]) -> Tokenizer | None:
    make = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    backend = None if make is None else make(fields, tokens)
    if backend is None:
        pre = fields.get(AT + "pre", "default")
        warnings.warn(
            f"the file's tokenizer (model {kind!r}, pre {pre!r}) cannot be rebuilt: text cannot be given", stacklevel=3
        )
        return None
    kinds = fields.get(AT + "token_type") or []
    backend.add_special_tokens([t for t, k in zip(tokens, kinds, strict=False) if k == CONTROL])
    # SentencePiece looks for these in text whose spaces are already written as it writes them. (Where it puts one
    # before a text, the library would put one before such a token too.)
    plain = kind == "llama" and not fields.get(AT + "add_space_prefix", True)
    user = [t for t, k in zip(tokens, kinds, strict=False) if k == USER]
    backend.add_tokens([tokenizers.AddedToken(t, normalized=plain) for t in user])
    bos, eos = fields.get(AT + "bos_token_id"), fields.get(AT + "eos_token_id")
    adds_bos = bool(fields.get(AT + "add_bos_token", kind == "llama"))
    return Tokenizer(backend, bos_id=bos, eos_id=eos, adds_bos=adds_bos)
