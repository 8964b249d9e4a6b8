"""What is known of every token of a grammar's example, as binary variables.

- `token=W`, `previous=W`: which token stands here or before; what a context-free feature tells;
- `class=C`: the word here is a name, a place, an event, a verb ... (`CLASSES`);
- `answer=W`, `an answer follows`: which token is right next, where it can be computed;
- `grammar=G`; `repeating`: in the second copy of an induction example;
- `V=X`: a variable of the example's truth, from the token on that tells it (all tokens where none does):
  `gender=female`, `s=Mary`, `plural=True`, `hop=capital`; numbers from 0 to 98 also as `yy>=40`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import tokenizers

from tcircuits.tasks import words
from tcircuits.tasks.grammars import Example

CLASSES: dict[str, frozenset[str]] = {
    "name": frozenset(words.NAMES),
    "woman": frozenset(words.WOMEN),
    "place": frozenset(words.PLACES),
    "object": frozenset(words.OBJECTS),
    "event": frozenset(words.EVENTS),
    "noun": frozenset(words.NOUNS),
    "plural noun": frozenset(words.NOUNS.values()),
    "verb": frozenset(words.VERBS),
    "plural verb": frozenset(words.VERBS.values()),
    "state": frozenset(words.STATES),
    "capital": frozenset(capital for capital, *_ in words.STATES.values()),
    "city": frozenset(words.CITIES),
    "filler": frozenset(words.FILLERS),
}
Sparse = Any  # see `scoring`
STEP = 10  # between thresholds of numbers


@dataclass(frozen=True)
class Annotated:
    """Tokens [N, T] after <bos>, padded; which are real [N, T]; variables of the real ones, sparse bool [tokens, V]."""

    tokens: np.ndarray
    real: np.ndarray
    names: tuple[str, ...]
    true: Sparse

    def only(self, names: tuple[str, ...]) -> "Annotated":
        """With these variables, in this order; one that is nowhere true has an empty column."""
        place = {n: i for i, n in enumerate(self.names)}
        there = [n in place for n in names]
        keep = scipy.sparse.csr_array(
            (np.ones(sum(there), np.int32), ([place[n] for n in names if n in place], np.flatnonzero(there))),
            shape=(len(self.names), len(names)),
        )
        return replace(self, names=names, true=scipy.sparse.csr_array(self.true @ keep))


def annotate(tokenizer: tokenizers.Tokenizer, examples: Sequence[Example]) -> Annotated:
    """All variables of all tokens of the examples (without <bos>, which is padded in front)."""
    found = [_tokens(tokenizer, e) for e in examples]
    longest = max(len(ids) for ids, _ in found)
    tokens, real = np.zeros((len(found), longest + 1), np.int32), np.zeros((len(found), longest + 1), bool)
    number: dict[str, int] = {}
    at, which, row = [], [], 0
    for i, (ids, variables) in enumerate(found):
        tokens[i, 1 : len(ids) + 1] = ids
        real[i, 1 : len(ids) + 1] = True
        for own in variables:
            for name in own:
                at.append(row)
                which.append(number.setdefault(name, len(number)))
            row += 1
    true = scipy.sparse.csr_array((np.ones(len(at), np.int32), (at, which)), shape=(row, len(number)))
    return Annotated(tokens, real, tuple(number), true)


def _tokens(tokenizer: tokenizers.Tokenizer, example: Example) -> tuple[list[int], list[set[str]]]:
    """Token ids of an example, and the names of what is true at each."""
    encoded = tokenizer.encode(example.text, add_special_tokens=False)
    ids, places = list(encoded.ids), list(encoded.offsets)
    texts = [example.text[a:b].strip() for a, b in places]
    out: list[set[str]] = [{f"grammar={example.grammar}"} for _ in ids]
    for i, text in enumerate(texts):
        out[i] |= {f"token={text}"} | {f"class={c}" for c, members in CLASSES.items() if text in members}
        if i:
            out[i].add(f"previous={texts[i - 1]}")
    starts = {a + (example.text[a : a + 1] == " ") for a, _ in example.spans}
    for i in range(len(ids) - 1):
        a = places[i + 1][0]
        if a + (example.text[a : a + 1] == " ") in starts:
            out[i] |= {f"answer={texts[i + 1]}", "an answer follows"}
    for name, first in _told(example):
        for i, (_, b) in enumerate(places):
            if b > first:
                out[i].add(name)
    return ids, out


def _told(example: Example) -> Iterator[tuple[str, int]]:
    """Variables of the truth, and the first character that tells each (0: all of the text)."""
    if example.grammar == "induction":
        yield "repeating", example.spans[0][0] - 1
        return
    for key, value in example.truth.items():
        for name in _names(key, value):
            yield name, _where(example, key, value)


def _names(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool | str):
        yield f"{key}={value}"
    elif isinstance(value, int):
        yield f"{key}={value}"
        yield from (f"{key}>={t}" for t in range(STEP, 100, STEP) if value >= t)


def _where(example: Example, key: str, value: Any) -> int:
    """The first character of what tells a variable; of a name that is repeated (`s`) its second mention."""
    text = f"{value:02d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    mentions = [m.start() for m in re.finditer(rf"(?<![A-Za-z]){re.escape(text)}(?![A-Za-z])", example.text)]
    if key == "yy":  # behind its century
        mentions = [m.start(2) for m in re.finditer(r"(\d\d)(\d\d)", example.text)]
    if key == "s" and len(mentions) > 1:
        return mentions[1]
    return mentions[0] if mentions else 0
