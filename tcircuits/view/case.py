"""The page of a finished case study: what was hidden, what was asked and answered, what was said, what it was.

The page is one file that opens from disk and can reach no network (`view.page`).

>>> step = Step("12:00", "Paths into it on prompt 0", (), ((Cell("attn1[0]@-2"), Cell("", value=0.5)),))
>>> case_page(Case("tc2[7]", "failure", "years", ("the text",), (("layer", "2"),), (step,), ())).startswith("<!doctype")
True
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tcircuits.view.page import filled

SCRIPTS = ("text.js", "case.js")


@dataclass(frozen=True)
class Cell:
    """Of an answer's table: a text, a number, or tokens each with its number."""

    text: str = ""
    value: float | None = None
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """What was done when, and its answer: lines of text, or rows of cells."""

    time: str
    question: str
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()


@dataclass(frozen=True)
class Passage:
    """A revealed prompt: words, the feature's activation at each, the chosen one; `cut` where it began earlier."""

    words: tuple[str, ...]
    values: tuple[float, ...]
    chosen: int
    cut: bool = False


@dataclass(frozen=True)
class Case:
    """A study: its feature, the verdict on the hypothesis, what was hidden, facts, steps in order, the reveal."""

    title: str
    verdict: str
    hypothesis: str
    hidden: Sequence[str]
    facts: Sequence[tuple[str, str]]
    steps: Sequence[Step]
    prompts: Sequence[Passage]


def case_page(case: Case) -> str:
    """The page of a study."""
    return filled("case.html", ("style.css", "features.css", "case.css"), SCRIPTS, asdict(case))
