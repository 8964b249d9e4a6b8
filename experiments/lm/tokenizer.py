"""The tokenizer: byte-level BPE over words, with every word of the grammars as one token.

Text is normalised to single spaces with one before the first word, so that a word is the same token wherever it stands.
Digits are cut in pairs (1732 is " 17", "32"), and all pairs are tokens. Merges are learned on the prose. A word that is
in the vocabulary is never cut (`ignore_merges`), so that the words of the grammars need no merges of their own.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tcircuits.tasks import grammars, words
from tcircuits.types import InputError

BOS = "<bos>"
PIECES = r" ?[0-9]{1,2}| ?\p{L}+| ?[^\s\p{L}0-9]+|\s"
NUMBERS = (*(f"{i:02d}" for i in range(100)), *(f" {i:02d}" for i in range(100)), *(f" {i}" for i in range(10)))
SAMPLE = 4000  # examples of each grammar and split whose words become tokens


def _empty(model: models.BPE) -> tokenizers.Tokenizer:
    """Everything but the vocabulary."""
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([spaces, normalizers.Strip(), normalizers.Prepend(" ")])
    cut = pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_])
    backend.decoder = decoders.ByteLevel()
    return backend


def grammar_words() -> list[str]:
    """Every piece of text that a grammar writes, with its space; sorted."""
    found = {f" {word}" for word in words.FILLERS}
    cut = pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
    for name in grammars.GRAMMARS:
        for held_out in (False, True):
            for example in grammars.examples(name, SAMPLE, 0, held_out=held_out):
                found |= {piece for piece, _ in cut.pre_tokenize_str(" " + example.text)}
    found |= {piece for piece, _ in cut.pre_tokenize_str(" " + grammars.NEW_IOI.split("{a}")[0])}
    return sorted(found)


def train(prose: Iterable[str], size: int = 2048) -> tokenizers.Tokenizer:
    """A tokenizer of `size` tokens: <bos>, bytes, numbers, the grammars' words, and merges of the prose for the rest.

    Raises:
        InputError: `size` leaves no room for merges.
    """
    learner = _empty(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    learner.train_from_iterator(prose, learn)
    learned = json.loads(learner.to_str())["model"]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = ["".join(p for p, _ in to_bytes.pre_tokenize_str(w)) for w in (*NUMBERS, *grammar_words())]
    kept = list(dict.fromkeys([BOS, *sorted(alphabet), *whole]))
    if len(kept) >= size:
        raise InputError(f"size={size}: bytes and the grammars' words alone are {len(kept)} tokens")
    return _assemble(kept, [tuple(pair) for pair in learned["merges"]], size)


def _assemble(kept: Sequence[str], merges: Sequence[tuple[str, str]], size: int) -> tokenizers.Tokenizer:
    """The merges in their order, until the vocabulary is full."""
    ids = {token: i for i, token in enumerate(kept)}
    used = []
    for a, b in merges:
        if a + b not in ids and len(ids) == size:
            break
        ids.setdefault(a + b, len(ids))
        used.append((a, b))
    backend = _empty(models.BPE(ids, used, ignore_merges=True))
    backend.add_special_tokens([tokenizers.AddedToken(BOS, special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return backend


def write(backend: tokenizers.Tokenizer, path: Path) -> None:
    """As a `tokenizer.json`, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(backend.to_str(), encoding="utf-8")
    partial.replace(path)
