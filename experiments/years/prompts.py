"""Prompts of the greater-than task and its measure, the probability difference (Hanna et al. 2023, arXiv 2305.00586).

A prompt ends in the century of the end year: any two digits above the start year's YY are right.
"""

from dataclasses import dataclass

import numpy as np

import tcircuits as tc
from tcircuits.tasks import grammars
from tcircuits.types import InputError


@dataclass(frozen=True)
class Prompts:
    """Token ids [N, T] padded at the end; of each the last position, that of the start year's YY, and YY itself.

    `years` are the tokens of "00" .. "99".
    """

    tokens: np.ndarray
    last: np.ndarray
    start: np.ndarray
    yy: np.ndarray
    years: np.ndarray

    def place(self, name: str) -> np.ndarray:
        """The positions [N] called `last` or `start`."""
        return {"last": self.last, "start": self.start}[name]


def years(model: tc.Model) -> np.ndarray:
    """The token of each of "00" .. "99".

    Raises:
        InputError: a model without tokenizer, or whose tokenizer splits two digits.
    """
    if model.tokenizer is None:
        raise InputError(f"model {model.name} has no tokenizer: greater-than needs one")
    found = [model.tokenizer.backend.token_to_id(f"{y:02d}") for y in range(100)]
    split = [f"{y:02d}" for y, token in enumerate(found) if token is None]
    if split:
        raise InputError(f"model {model.name} has no token for {', '.join(split[:5])}: greater-than needs 00..99")
    return np.asarray(found, np.int32)


def grammar_prompts(model: tc.Model, n: int, seed: int, *, held_out: bool) -> Prompts:
    """Up to `n` different prompts of the embedded model's grammar, of the years it saw or of those it never saw."""
    drawn = grammars.examples("greater_than", 2 * n, seed, held_out=held_out)
    different = list({e.prompt: e for e in drawn}.values())[:n]
    return _packed(model, [e.prompt for e in different], [e.truth["yy"] for e in different])


def template_prompts(model: tc.Model, template: str, *, odd: bool) -> Prompts:
    """The prompt for YY from 01 to 98, odd or even ones; `template` has `{yy}` in it.

    Raises:
        InputError: a template without `{yy}`.
    """
    if "{yy}" not in template:
        raise InputError(f"template {template!r} has no {{yy}}: write the start year as 17{{yy}}, say")
    chosen = [y for y in range(1, 99) if y % 2 == odd]
    return _packed(model, [template.replace("{yy}", f"{y:02d}") for y in chosen], chosen)


def _packed(model: tc.Model, texts: list[str], yy: list[int]) -> Prompts:
    digits, ids = years(model), [np.asarray(model.encode(text)) for text in texts]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own)] = own
    found = [np.flatnonzero(own == digits[y]) for own, y in zip(ids, yy, strict=True)]
    split = [text for text, places in zip(texts, found, strict=True) if not len(places)]
    if split:
        raise InputError(f"the tokenizer of {model.name} joins the year's digits in {split[0]!r}: try another template")
    last, start = np.asarray([len(i) - 1 for i in ids]), np.asarray([places[0] for places in found])
    return Prompts(tokens, last, start, np.asarray(yy), digits)


def difference(logits: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Probability of years above YY less that of years up to YY [N, ...], of a softmax over `logits` [N, ..., 100]."""
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    above = np.arange(100) > yy.reshape(-1, *[1] * (logits.ndim - 1))
    return (p * np.where(above, 1.0, -1.0)).sum(-1)
