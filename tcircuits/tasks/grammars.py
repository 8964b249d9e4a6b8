"""Text whose next words follow from a known computation: seven grammars, drawn at random, split by content.

Each example says which words can be computed and from what (`truth`), a wrong answer (`distractors`) and a
counterfactual: the same text up to the last answer with one variable changed, so that the distractor becomes right. No
example of the training split shares its content key with one of the held-out split: the key is the pair of names (IOI),
the year (greater-than), each pair of neighbouring words (induction), noun and verb or the two nouns (agreement), name
and template and place or object (pronouns), the unordered pair of numbers (modular addition), the city in the two-hop
sentence (capitals, whose one-hop facts must be seen and so are held out by sentence: fact and template).

IOI: Wang et al. 2022 (arXiv 2211.00593); greater-than: Hanna et al. 2023 (arXiv 2305.00586); induction: Olsson et al.
2022 (arXiv 2209.11895); agreement: Linzen et al. 2016 (arXiv 1611.01368).

>>> example = draw("modular", np.random.default_rng(0), held_out=True)
>>> (example.truth["a"] + example.truth["b"]) % 23 == int(example.answer)
True
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tcircuits.tasks import words
from tcircuits.types import InputError

MODULUS = 23
HELD_OUT = 5  # one key in this many is held out


@dataclass(frozen=True)
class Example:
    """One text of a grammar.

    Attributes:
        grammar: which.
        text: the whole.
        spans: where each computable answer stands in `text` (first and last character + 1, its space included).
        distractors: a wrong answer for each.
        counterfactual: a prompt whose right answer is the last distractor, as many words as `prompt`.
        truth: the variables that the answer is computed from, and what else varies.
    """

    grammar: str
    text: str
    spans: tuple[tuple[int, int], ...]
    distractors: tuple[str, ...]
    counterfactual: str
    truth: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The text before the last answer."""
        return self.text[: self.spans[-1][0]]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.text[slice(*self.spans[-1])]

    @property
    def distractor(self) -> str:
        """The wrong answer in its place."""
        return self.distractors[-1]


def is_held_out(*key: Any) -> bool:
    """Whether examples with this content are kept from training."""
    return zlib.crc32("|".join(map(str, key)).encode()) % HELD_OUT == 0


def example_of(
    grammar: str, prompt: str, answer: str, wrong: str, rest: str, other: str, truth: Mapping[str, Any]
) -> Example:
    """An example with one answer, `rest` behind it; `other` is its counterfactual."""
    span = (len(prompt), len(prompt) + len(answer))
    return Example(grammar, prompt + answer + rest, (span,), (wrong,), other, truth)


def _pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


IOI = (
    "When {a} and {b} went to the {place}, {s} gave a {object} to",
    "While {a} and {b} were working at the {place}, {s} gave a {object} to",
    "Then {a} and {b} went to the {place}, and {s} handed the {object} to",
    "After {a} and {b} left the {place}, {s} wanted to give a {object} to",
    "Friends {a} and {b} found a {object} at the {place}, and {s} gave it to",
    "The {place} that {a} and {b} visited sold a {object}, and {s} bought it for",
    "Today {a} and {b} had lunch at the {place}. Afterwards {s} brought a {object} to",
)
NEW_IOI = "Yesterday {a} and {b} met at the {place}, so {s} passed the {object} to"
"""A sentence that training never sees."""


def ioi(rng: np.random.Generator, held_out: bool, template: str | None = None) -> Example:
    """Indirect object identification: of two names, the one that is not repeated. ABBA and BABA alike."""
    while True:
        io, s = (words.NAMES[i] for i in rng.choice(len(words.NAMES), 2, replace=False))
        if is_held_out("ioi", *sorted((io, s))) == held_out:
            break
    number = int(rng.integers(len(IOI)))
    baba = bool(rng.integers(2))
    a, b = (s, io) if baba else (io, s)
    place, thing = _pick(rng, words.PLACES), _pick(rng, words.OBJECTS)
    prompt, other = (
        (template or IOI[number]).format(a=a, b=b, s=again, place=place, object=thing) for again in (s, io)
    )
    truth = {"io": io, "s": s, "order": "BABA" if baba else "ABBA", "template": -1 if template else number}
    return example_of("ioi", prompt, f" {io}", f" {s}", ".", other, truth | {"place": place, "object": thing})


YEARS = (
    "The {event} lasted from the year {xx}{yy} to the year {xx}",
    "The {event} began in {xx}{yy} and ended in {xx}",
    "From {xx}{yy} the {event} went on until {xx}",
)


def greater_than(rng: np.random.Generator, held_out: bool) -> Example:
    """An end year after the start year: any two digits above YY are right, drawn evenly; YY from 02 to 98."""
    while True:
        xx, yy = int(rng.integers(11, 20)), int(rng.integers(2, 99))
        if is_held_out("year", xx, yy) == held_out:
            break
    number, event = int(rng.integers(len(YEARS))), _pick(rng, words.EVENTS)
    end, below = int(rng.integers(yy + 1, 100)), int(rng.integers(1, yy))
    prompt, other = (YEARS[number].format(event=event, xx=xx, yy=f"{start:02d}") for start in (yy, below - 1))
    truth = {"xx": xx, "yy": yy, "end": end, "event": event, "template": number}
    return example_of("greater_than", prompt, f"{end:02d}", f"{below:02d}", ".", other, truth)


@cache
def _successors(held_out: bool) -> np.ndarray:
    """Whether a word may follow another in a random sequence of this split: bool [word, next word]."""
    n = len(words.FILLERS)
    mixed = (np.arange(n, dtype=np.uint64)[:, None] * 2654435761 + np.arange(n, dtype=np.uint64) * 40503 + 12345) >> 5
    allowed = (mixed % 1009 % HELD_OUT == 0) == held_out
    np.fill_diagonal(allowed, False)
    return allowed


def _sequence(rng: np.random.Generator, n: int, held_out: bool) -> list[int]:
    """`n` different words, in a ring whose neighbouring pairs are all of this split."""
    allowed = _successors(held_out)
    sequence = [int(rng.integers(len(words.FILLERS)))]
    while len(sequence) < n or not allowed[sequence[-1], sequence[0]]:
        if len(sequence) == n:  # the sequence begins again after its end
            sequence.pop()
        word = int(rng.integers(len(words.FILLERS)))
        if allowed[sequence[-1], word] and word not in sequence:
            sequence.append(word)
    return sequence


def induction(rng: np.random.Generator, held_out: bool) -> Example:
    """Random words, between them and their repetition 0 to 6 others: from its second word on the repetition follows."""
    n, gap = int(rng.integers(4, 21)), int(rng.integers(7))
    block = _sequence(rng, n + gap, held_out)
    first, between = block[:n], block[n:]
    names = [words.FILLERS[i] for i in (*first, *between, *first)]
    text, starts = "", []
    for name in names:
        starts.append(len(text))
        text += f" {name}" if text else name
    ends = [*starts[1:], len(text)]
    spans = tuple((starts[i], ends[i]) for i in range(n + gap + 1, 2 * n + gap))
    wrong = [words.FILLERS[i] for i in (*between, *first)][: len(spans)]
    wrong = [f" {w}" for w in wrong[:-1]] + [f" {words.FILLERS[first[0]]}"]
    swapped = [*names[: n - 1], names[0], *names[n:]]  # the first copy ends in the distractor
    truth = {"n": n, "gap": gap, "sequence": [words.FILLERS[i] for i in first]}
    other = " ".join(swapped[:-1])
    return Example("induction", text + ".", spans, tuple(wrong), other, truth)


PATTERNS = ("simple", "prepositional", "object relative", "subject relative")


def agreement(rng: np.random.Generator, held_out: bool, pattern: str | None = None) -> Example:
    """The verb in the number of its subject, alone, across a prepositional phrase, or across a relative clause."""
    pattern, nouns = pattern or _pick(rng, PATTERNS), list(words.NOUNS)
    while True:
        one, two = (nouns[i] for i in rng.choice(len(nouns), 2, replace=False))
        verb = _pick(rng, list(words.VERBS))
        if is_held_out("agreement", *((one, verb) if pattern == "simple" else (one, two))) == held_out:
            break
    plural, other_plural = (bool(rng.integers(2)) for _ in range(2))
    see, near = _pick(rng, list(words.SEES)), _pick(rng, words.NEAR)
    second = words.NOUNS[two] if other_plural else two
    forms = (verb, words.VERBS[verb])

    def prompt(plural: bool) -> str:
        first = words.NOUNS[one] if plural else one
        middle = {
            "simple": "",
            "prepositional": f" {near} the {second}",
            "object relative": f" that the {second} {words.SEES[see] if other_plural else see}",
            "subject relative": f" that {words.SEES[see] if plural else see} the {second}",
        }[pattern]
        return f"The {first}{middle}"

    rest = f" {_pick(rng, words.AFTER[verb].split() if verb in words.AFTER else words.ADVERBS)}."
    truth = {"pattern": pattern, "noun": one, "plural": plural, "verb": verb}
    if pattern != "simple":
        truth |= {"attractor": two, "attractor_plural": other_plural}
    right, wrong = f" {forms[plural]}", f" {forms[not plural]}"
    return example_of("agreement", prompt(plural), right, wrong, rest, prompt(not plural), truth)


PRONOUNS = (
    ("{name} went to the {place} because", ("he", "she"), " wanted a {object}."),
    ("{name} lost the {object}, so", ("he", "she"), " went back to the {place}."),
    ("{name} walked to the {place} with", ("his", "her"), " {object}."),
    ("{name} left the {object} at the {place}, and then", ("he", "she"), " went home."),
)


def pronoun(rng: np.random.Generator, held_out: bool) -> Example:
    """The pronoun in the gender of the name."""
    while True:
        name, number = _pick(rng, words.NAMES), int(rng.integers(len(PRONOUNS)))
        place, thing = _pick(rng, words.PLACES), _pick(rng, words.OBJECTS)
        if is_held_out("pronoun", name, number, thing if number == 1 else place) == held_out:
            break
    before, forms, after = PRONOUNS[number]
    female = words.GENDER[name] == "female"
    stranger = _pick(rng, words.MEN if female else words.WOMEN)
    prompt, other = (before.format(name=who, place=place, object=thing) for who in (name, stranger))
    rest = after.format(place=place, object=thing)
    truth = {"name": name, "gender": words.GENDER[name], "template": number, "place": place, "object": thing}
    return example_of("pronoun", prompt, f" {forms[female]}", f" {forms[not female]}", rest, other, truth)


def modular(rng: np.random.Generator, held_out: bool) -> Example:
    """Addition modulo 23."""
    while True:
        a, b = (int(x) for x in rng.integers(0, MODULUS, 2))
        if is_held_out("modular", *sorted((a, b))) == held_out:
            break
    changed = int((b + rng.integers(1, MODULUS)) % MODULUS)
    prompt, other = (f"Modulo 23, {a} + {second} =" for second in (b, changed))
    right, wrong = (a + b) % MODULUS, (a + changed) % MODULUS
    return example_of("modular", prompt, f" {right}", f" {wrong}", ".", other, {"a": a, "b": b, "c": right})


FACTS = {
    "capital": ("The capital of {state} is", "{state} has its capital in", "The capital city of {state} is"),
    "state": ("The city of {city} is in", "The state containing {city} is", "{city} is a city in"),
    "two hops": ("The capital of the state containing {city} is", "The capital of the state with {city} is"),
}


def _told(city: str, state: str, hop: str) -> bool:
    """Whether training tells the one-hop facts that an answer needs."""
    needs = {"capital": [("capital", state)], "state": [("state", city)]}
    facts = needs.get(hop, [("capital", state), ("state", city)])
    return all(any(not is_held_out(*fact, i) for i in range(len(FACTS[fact[0]]))) for fact in facts)


def capitals(rng: np.random.Generator, held_out: bool, hop: str | None = None) -> Example:
    """State to capital, city to state, and both in one: the capital of the state that contains a city.

    One-hop facts have to be seen: held out are pairs of fact and sentence. Of a held-out city the two-hop sentence is
    never seen. The few facts of which chance keeps every sentence from training are not asked for.
    """
    hop = hop or _pick(rng, tuple(FACTS))
    while True:
        number = int(rng.integers(len(FACTS[hop])))
        city, other_city = (list(words.CITIES)[i] for i in rng.choice(len(words.CITIES), 2, replace=False))
        state, other_state = words.CITIES[city], words.CITIES[other_city]
        key = {"capital": (state, number), "state": (city, number), "two hops": (city,)}[hop]
        known = not held_out or _told(city, state, hop)
        if is_held_out(hop, *key) == held_out and state != other_state and known:
            break
    capital, wrong = words.STATES[state][0], words.STATES[other_state][0]
    right, wrong = (state, other_state) if hop == "state" else (capital, wrong)
    prompt = FACTS[hop][number].format(state=state, city=city)
    other = FACTS[hop][number].format(state=other_state, city=other_city)
    truth = {"hop": hop, "state": state, "capital": capital, "template": number}
    truth |= {} if hop == "capital" else {"city": city}
    return example_of("capitals", prompt, f" {right}", f" {wrong}", ".", other, truth)


GRAMMARS: Mapping[str, Callable[..., Example]] = {
    f.__name__: f for f in (ioi, greater_than, induction, agreement, pronoun, modular, capitals)
}


def draw(grammar: str, rng: np.random.Generator, *, held_out: bool, **options: Any) -> Example:
    """One example.

    Raises:
        InputError: an unknown grammar.
    """
    if grammar not in GRAMMARS:
        raise InputError(f"grammar {grammar!r} is unknown; there are {', '.join(GRAMMARS)}")
    return GRAMMARS[grammar](rng, held_out, **options)


def examples(grammar: str, n: int, seed: int, *, held_out: bool, **options: Any) -> list[Example]:
    """`n` examples, the same for the same seed."""
    rng = np.random.default_rng([seed, zlib.crc32(grammar.encode())])
    return [draw(grammar, rng, held_out=held_out, **options) for _ in range(n)]
