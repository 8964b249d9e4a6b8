"""Behaviours from grammars, algorithms, templates and benchmarks, in the tokens of any model.

What the model's tokenizer does not split rightly is left out.

An example is kept where prompt and counterfactual are as long as each other, and every answer is one token that
follows the prompt's own tokens.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcircuits.models.model import Model
from tcircuits.tasks import words
from tcircuits.tasks.algorithms import addition, addition_digits, parity, sorting
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Metric, Prompts, check_behaviour
from tcircuits.tasks.benchmarks import hellaswag, winogrande
from tcircuits.tasks.grammars import GRAMMARS, Example
from tcircuits.tasks.templates import factual_recall, gendered_pronoun
from tcircuits.types import InputError

PATIENCE = 40  # examples that may be drawn for each that is wanted
OTHERS = (addition, addition_digits, parity, sorting, gendered_pronoun, factual_recall, winogrande, hellaswag)
SOURCES: Mapping[str, Callable[..., Example]] = {**GRAMMARS, **{f.__name__: f for f in OTHERS}}
"""What examples are drawn from: `source(rng, held_out, **options)`."""


@dataclass(frozen=True)
class Task:
    """A source, how it is drawn, and which answers count."""

    source: str
    metric: Metric = "logit_difference"
    options: tuple[tuple[str, Any], ...] = ()
    answers: Callable[[Example], tuple[Sequence[str], Sequence[str]]] = lambda e: ((e.answer,), (e.distractor,))
    sizes: tuple[int, int, int] = (64, 64, 128)
    """Prompts of each split: sources differ in how many texts they have."""


def _years(e: Example) -> tuple[Sequence[str], Sequence[str]]:
    """All two-digit years above the start year, and all others."""
    yy = int(e.truth["yy"])
    return [f"{i:02d}" for i in range(yy + 1, 100)], [f"{i:02d}" for i in range(yy + 1)]


def _verbs(e: Example) -> tuple[Sequence[str], Sequence[str]]:
    """All verbs in the subject's number, and all in the other: which verb comes is chance."""
    singular, plural = ([f" {v}" for v in forms] for forms in (words.VERBS, words.VERBS.values()))
    return (plural, singular) if e.truth["plural"] else (singular, plural)


TASKS = {
    "ioi": Task("ioi"),
    "greater_than": Task("greater_than", "probability_difference", answers=_years),
    "induction": Task("induction"),
    "agreement": Task("agreement", "probability_difference", answers=_verbs),
    "agreement_across": Task("agreement", "probability_difference", (("pattern", "prepositional"),), _verbs),
    "pronoun": Task("pronoun"),
    "modular": Task("modular", sizes=(24, 24, 48)),
    "capitals": Task("capitals", options=(("hop", "capital"),), sizes=(4, 4, 7)),
    "two_hops": Task("capitals", options=(("hop", "two hops"),), sizes=(6, 6, 10)),
    "addition": Task("addition"),
    "addition_digits": Task("addition_digits", sizes=(16, 16, 32)),
    "parity": Task("parity"),
    "sorting": Task("sorting"),
    "gendered_pronoun": Task("gendered_pronoun", sizes=(32, 32, 64)),
    "factual_recall": Task("factual_recall", sizes=(12, 12, 24)),
    "winogrande": Task("winogrande", sizes=(16, 16, 48)),
    "hellaswag": Task("hellaswag", sizes=(16, 16, 64)),
}


def make_behaviour(
    model: Model,
    task: str,
    *,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    bos: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> Behaviour:
    """Draw a behaviour for a model.

    Args:
        model: whose tokenizer splits the texts.
        task: of `TASKS`.
        sizes: prompts of each split; the task's own where it says nothing.
        seed: of the draws.
        bos: as in `Model.encode`.
        options: of the task's source, instead of its own: `{"modulus": 31}` for addition, `{"shots": 5}` for
            benchmarks.

    Raises:
        InputError: an unknown task, split or option, fewer different texts that the tokenizer splits rightly than
            asked for, or a benchmark whose package is not installed.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} is unknown; there are {', '.join(TASKS)}")
    if set(sizes or {}) - set(SPLITS):
        raise InputError(f"splits are {', '.join(SPLITS)}; sizes were given for {', '.join(sizes or {})}")
    wanted = dict(zip(SPLITS, TASKS[task].sizes, strict=True)) | (sizes or {})
    if min(wanted.values()) < 1:
        raise InputError(f"sizes {wanted}: give each split at least one prompt")
    chosen = _with_options(TASKS[task], options or {})
    rows, drawn = _rows(model, chosen, sum(wanted.values()), seed, bos)
    if len(rows) < sum(wanted.values()):
        raise InputError(
            f"task {task!r}: of {drawn} texts drawn, the tokenizer of {model.name!r} splits only {len(rows)} different "
            f"ones rightly; {sum(wanted.values())} were asked for"
        )
    parts, at = {}, 0
    for split in SPLITS:
        parts[split] = _prompts(rows[at : at + wanted[split]])
        at += wanted[split]
    about = {"task": task, "seed": seed, "bos": bos, "drawn": drawn} | ({"options": dict(options)} if options else {})
    found = Behaviour(task, model.name, TASKS[task].metric, parts, about)
    check_behaviour(found, model.cfg.d_vocab)
    return found


def _with_options(task: Task, options: Mapping[str, Any]) -> Task:
    """A task with other options of its source."""
    known = [name for name in inspect.signature(SOURCES[task.source]).parameters if name not in ("rng", "held_out")]
    wrong = sorted(set(options) - set(known))
    if wrong:
        told = f"its options are {', '.join(known)}" if known else "it has none"
        raise InputError(f"{task.source} has no option {', '.join(wrong)}; {told}")
    return replace(task, options=tuple((dict(task.options) | dict(options)).items()))


def _drawn(task: Task, n: int, seed: int) -> list[Example]:
    """`n` held-out examples, the same for the same seed."""
    rng, source = np.random.default_rng([seed, zlib.crc32(task.source.encode())]), SOURCES[task.source]
    return [source(rng, True, **dict(task.options)) for _ in range(n)]


Row = tuple[list[int], list[int], list[int], list[int]]


def _rows(model: Model, task: Task, n: int, seed: int, bos: str) -> tuple[list[Row], int]:
    """Up to n examples as (prompt, counterfactual, right, wrong), no text twice; and how many were drawn."""
    rows: list[Row] = []
    seen: set[str] = set()
    drawn, size = 0, max(64, n)
    while len(rows) < n and drawn < PATIENCE * n:
        for e in _drawn(task, size, seed * 1000 + drawn // size):
            drawn += 1
            row = None if {e.prompt, e.counterfactual} & seen else _row(model, task, e, bos)
            if row is not None:
                seen |= {e.prompt, e.counterfactual}
                rows.append(row)
                if len(rows) == n:
                    break
    return rows, drawn


def _row(model: Model, task: Task, e: Example, bos: str) -> Row | None:
    """An example in tokens, or None where they do not fit."""
    clean, other = (model.encode(text, bos=bos) for text in (e.prompt, e.counterfactual))
    if len(clean) != len(other) or len(clean) > model.cfg.n_ctx or clean == other:
        return None
    right, wrong = (_answers(model, clean, e.prompt, texts, bos) for texts in task.answers(e))
    if right is None or wrong is None or set(right) & set(wrong):
        return None
    return clean, other, right, wrong


def _answers(model: Model, clean: list[int], prompt: str, texts: Sequence[str], bos: str) -> list[int] | None:
    found = []
    for text in texts:
        whole = model.encode(prompt + text, bos=bos)
        if len(whole) != len(clean) + 1 or whole[:-1] != clean:
            return None
        found.append(whole[-1])
    return found


def _prompts(rows: list[Row]) -> Prompts:
    length = max(len(clean) for clean, *_ in rows)
    width = [max(len(row[i]) for row in rows) for i in (2, 3)]

    def right_aligned(ids: list[int]) -> list[int]:
        return [ids[0]] * (length - len(ids)) + ids  # what stands in the padding is never read

    return Prompts(
        np.asarray([right_aligned(row[0]) for row in rows], np.int32),
        np.asarray([right_aligned(row[1]) for row in rows], np.int32),
        np.asarray([length - len(row[0]) for row in rows], np.int32),
        *[
            np.asarray([row[i] + [-1] * (w - len(row[i])) for row in rows], np.int32)
            for i, w in zip((2, 3), width, strict=True)
        ],
    )
