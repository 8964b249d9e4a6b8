"""The page of a blind rating: one feature after the other, without number or name, and what a person says of each.

The page is one file that opens from disk and can reach no network (`view.page`). What is said stays in the browser
until it is saved as JSON: `{"page": ..., "ratings": {item: {"rating", "context_free", "note"}}}`.

>>> item = Item("a1", (Example((" a", " b"), (0.0, 1.0), 1),))
>>> rating_page([item], "page-1").startswith("<!doctype html>")
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcircuits.types import InputError
from tcircuits.view.page import filled

SCRIPTS = ("text.js", "exports.js", "rating.js")
RATINGS = ("yes", "maybe", "no")
STEPS = 20  # shades of a token: parts of the largest activation are told to within one of so many


@dataclass(frozen=True)
class Example:
    """Words, each with its activation as a part of the feature's largest, and which of them the example is of."""

    words: tuple[str, ...]
    parts: tuple[float, ...]
    chosen: int


@dataclass(frozen=True)
class Item:
    """One feature under a name that says nothing, and its examples."""

    name: str
    examples: tuple[Example, ...]


def rating_page(items: Sequence[Item], page: str) -> str:
    """The page for items in this order; `page` names the rating in the saved file.

    Raises:
        InputError: no items, or two of one name.
    """
    names = [item.name for item in items]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{len(names)} items with {len(set(names))} names: give at least one, each with its own")
    numbers: dict[str, int] = {}

    def line(example: Example) -> list[Any]:
        words = [numbers.setdefault(w, len(numbers)) for w in example.words]
        return [words, [round(STEPS * p) / STEPS for p in example.parts], example.chosen]

    told = [{"name": item.name, "examples": [line(e) for e in item.examples]} for item in items]
    data = {"page": page, "items": told, "words": list(numbers), "ratings": list(RATINGS)}
    return filled("rating.html", ("style.css", "rating.css"), SCRIPTS, data)
