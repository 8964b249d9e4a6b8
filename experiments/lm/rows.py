"""Rows for dictionaries on the small models: the text that a model saw last, drawn anew; and held-out text.

A row is a pure function of (corpus, seed, its number), so a run of training that was cut off goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from experiments.lm import corpus

BLOCK = 64  # rows that are drawn together
MIXTURE = corpus.LAST


@dataclass(frozen=True)
class Drawn:
    """Endless training rows of the last mixture: prose, grammars, a few repeated windows."""

    text: corpus.Corpus
    context: int
    seed: int

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows first .. first + n - 1: int32 [n, context]."""
        blocks = range(first // BLOCK, -(-(first + n) // BLOCK))
        drawn = [corpus.batch(self.text, BLOCK, self.context, self.seed, i, MIXTURE) for i in blocks]
        skip = first - blocks[0] * BLOCK
        return np.concatenate(drawn)[skip : skip + n]

    def describe(self) -> dict[str, Any]:
        """What decides the rows."""
        return {"mixture": "last", "context": self.context, "seed": self.seed, "tokens": len(self.text.train)}


def held_out(text: corpus.Corpus, n: int, context: int, seed: int = 0) -> np.ndarray:
    """Rows of held-out prose and held-out examples in the same mixture: int32 [n, context]."""
    return corpus.batch(text, n, context, seed, 0, MIXTURE, held_out=True)


def text_of(folder: Path) -> corpus.Corpus:
    """The corpus under the tokenizer of a model's folder."""
    return corpus.build(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
