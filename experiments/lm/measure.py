"""What a small model has learned: accuracies on held-out examples of each grammar, and cross-entropies.

Each prompt stands alone after <bos>. Of the logits before an answer:

- `top`: the answer is the most likely of all tokens (greater-than: the most likely token is two digits above YY);
- `pair`: the answer is more likely than the distractor (agreement: the same verb in the other number);
- `flip`: after the counterfactual prompt the distractor is more likely than the answer;
- `mass`: greater-than: the probability of two digits above YY, of all two-digit tokens; agreement: that of the verbs in
  the right number, of all verbs.

The headline `accuracy` is `top`; for agreement it is `pair`, since any verb may follow. Prompts that were drawn twice
count once. Intervals: Wilson's, 95 %, for shares; mean +- 1.96 standard errors for `mass`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.lm import corpus
from experiments.lm.trainer import token_losses
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.params import Params
from tcircuits.tasks import grammars, words
from tcircuits.types import Array

HEADLINE = {"agreement": "pair"}  # else "top"
REQUIRED = ("ioi", "greater_than", "agreement", "induction")
TARGET = 0.95
BATCH = 64


@partial(jax.jit, static_argnums=0)
def _at(cfg: ModelConfig, params: Params, tokens: Array, row: Array, place: Array) -> Array:
    return forward(cfg, params, tokens).logits[row, place]


def answer_logits(model: tc.Model, ids: Sequence[np.ndarray], places: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [answers, V] from which each answer is predicted; `ids` with <bos>, `places` of the answers in them."""
    out, longest = [], max(len(x) for x in ids)
    most = max(len(p) for p in places)
    for first in range(0, len(ids), BATCH):
        tokens = np.zeros((BATCH, longest), np.int32)
        where = [(i, p - 1) for i, ps in enumerate(places[first : first + BATCH]) for p in ps]
        for i, x in enumerate(ids[first : first + BATCH]):
            tokens[i, : len(x)] = x
        padded = np.zeros((BATCH * most, 2), np.int32)
        padded[: len(where)] = where
        found = _at(model.cfg, model.params, jnp.asarray(tokens), jnp.asarray(padded[:, 0]), jnp.asarray(padded[:, 1]))
        out.append(np.asarray(found)[: len(where)])
    return np.concatenate(out)


def wilson(right: np.ndarray) -> dict[str, float]:
    """A share, its 95 % interval (Wilson 1927) and how many it is of."""
    n, p, z = len(right), float(np.mean(right)), 1.96
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return {"value": p, "low": (middle - half) / (1 + z**2 / n), "high": (middle + half) / (1 + z**2 / n), "n": n}


def mean_of(x: np.ndarray) -> dict[str, float]:
    """A mean, its 95 % interval by the normal distribution, and how many it is of."""
    half = 1.96 * float(np.std(x, ddof=1)) / math.sqrt(len(x))
    return {"value": float(np.mean(x)), "low": float(np.mean(x)) - half, "high": float(np.mean(x)) + half, "n": len(x)}


def _token(model: tc.Model, text: str) -> int:
    """The one token of a word with its space, or of two digits without."""
    assert model.tokenizer is not None
    found = model.tokenizer.backend.token_to_id(text.replace(" ", "\u0120"))
    assert found is not None, text
    return found


def _distinct(drawn: list[grammars.Example]) -> list[grammars.Example]:
    return list({e.prompt: e for e in drawn}.values())


def _probability(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _above(model: tc.Model, drawn: list[grammars.Example], logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greater-than: whether the most likely token is two digits above YY, and the mass above YY."""
    digits = np.asarray([_token(model, f"{i:02d}") for i in range(100)])
    allowed = np.arange(100) > np.asarray([e.truth["yy"] for e in drawn])[:, None]
    best = logits.argmax(-1)
    p = _probability(logits[:, digits])
    return (np.where(allowed, digits, -1) == best[:, None]).any(1), (p * allowed).sum(1)


def _verb_mass(model: tc.Model, drawn: list[grammars.Example], logits: np.ndarray) -> np.ndarray:
    """Agreement: the mass of verbs in the right number."""
    forms = np.asarray([[_token(model, f" {one}"), _token(model, f" {many}")] for one, many in words.VERBS.items()])
    p = _probability(logits[:, forms.ravel()]).reshape(len(drawn), -1, 2).sum(1)
    return p[np.arange(len(drawn)), [int(e.truth["plural"]) for e in drawn]]


def scores(model: tc.Model, drawn: list[grammars.Example]) -> dict[str, np.ndarray]:
    """The measures of the module's docstring for each answer of the examples (`flip`: for each example)."""
    assert model.tokenizer is not None
    backend = model.tokenizer.backend
    ids, places = zip(*(corpus.answer_positions(backend, e) for e in drawn), strict=True)
    logits = answer_logits(model, ids, places)
    right = np.asarray([ids[i][p] for i, ps in enumerate(places) for p in ps])
    wrong = np.asarray([_token(model, w) for e in drawn for w in e.distractors])
    rows = np.arange(len(right))
    found = {"top": logits.argmax(-1) == right, "pair": logits[rows, right] > logits[rows, wrong]}
    if drawn[0].grammar == "greater_than":
        found["top"], found["mass"] = _above(model, drawn, logits)
    if drawn[0].grammar == "agreement":
        found["mass"] = _verb_mass(model, drawn, logits)
    other = [np.asarray(backend.encode(e.counterfactual).ids, np.int32) for e in drawn]
    changed = answer_logits(model, other, [[len(x)] for x in other])
    last = np.cumsum([len(ps) for ps in places]) - 1
    found["flip"] = changed[np.arange(len(drawn)), wrong[last]] > changed[np.arange(len(drawn)), right[last]]
    log_p = np.take_along_axis(logits, right[:, None], 1)[:, 0] - np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    return found | {"answer_ce": -log_p}


def figures(model: tc.Model, drawn: list[grammars.Example]) -> dict[str, Any]:
    """Measures with intervals; `accuracy` repeats the headline."""
    drawn = _distinct(drawn)
    found = scores(model, drawn)
    out: dict[str, Any] = {k: wilson(found[k]) for k in ("top", "pair", "flip")}
    out |= {k: mean_of(found[k]) for k in ("mass", "answer_ce") if k in found}
    return {"accuracy": out[HEADLINE.get(drawn[0].grammar, "top")], **out}


def _parts(name: str) -> dict[str, Callable[[grammars.Example], bool]]:
    """Subsets of a grammar's examples that are worth a figure of their own."""

    def other(e: grammars.Example) -> bool:
        return "attractor" in e.truth and e.truth["plural"] != e.truth["attractor_plural"]

    if name == "agreement":
        return {p: partial(_has, "pattern", p) for p in grammars.PATTERNS} | {"attractor of the other number": other}
    if name == "ioi":
        return {order: partial(_has, "order", order) for order in ("ABBA", "BABA")}
    if name == "capitals":
        return {hop: partial(_has, "hop", hop) for hop in grammars.FACTS}
    return {}


def _has(variable: str, value: str, e: grammars.Example) -> bool:
    return e.truth[variable] == value


def grammar_figures(model: tc.Model, n: int, seed: int) -> dict[str, Any]:
    """For each grammar the figures of held-out and of training content, and of its parts."""
    out: dict[str, Any] = {}
    for name in grammars.GRAMMARS:
        out[name] = {}
        for split, held_out in (("held_out", True), ("train", False)):
            drawn = grammars.examples(name, n, seed, held_out=held_out)
            parts = {part: [e for e in drawn if keep(e)] for part, keep in _parts(name).items()}
            out[name][split] = figures(model, drawn)
            out[name][split]["parts"] = {part: figures(model, chosen) for part, chosen in parts.items()}
    new = grammars.examples("ioi", n, seed, held_out=True, template=grammars.NEW_IOI)
    out["ioi"]["held_out"]["parts"]["a sentence never seen"] = figures(model, new)
    return out


def cross_entropies(model: tc.Model, text: corpus.Corpus, n: int, seed: int) -> dict[str, float]:
    """Nats a token on held-out content, without the first position: prose (also bits a byte), and each grammar."""
    rows = corpus.prose_rows(text, model.cfg.n_ctx)
    total = sum(_row_losses(model, rows[i : i + BATCH]).sum() for i in range(0, len(rows), BATCH))
    tokens = rows.shape[0] * (rows.shape[1] - 1)
    per_byte = total / math.log(2) / (text.held_out_bytes * tokens / len(text.held_out))
    out = {"prose": total / tokens, "prose_bits_per_byte": per_byte}
    for name in grammars.GRAMMARS:
        out[name] = _grammar_loss(model, grammars.examples(name, n, seed, held_out=True))
    return {k: float(v) for k, v in out.items()}


def _row_losses(model: tc.Model, rows: np.ndarray) -> np.ndarray:
    padded = np.zeros((BATCH, rows.shape[1]), np.int32)
    padded[: len(rows)] = rows
    losses = jax.jit(token_losses, static_argnums=0)(model.cfg, model.params, jnp.asarray(padded))
    return np.asarray(losses, np.float64)[: len(rows)]


def _grammar_loss(model: tc.Model, drawn: list[grammars.Example]) -> float:
    assert model.tokenizer is not None
    ids = [model.tokenizer.backend.encode(e.text).ids for e in drawn]
    longest, total = max(map(len, ids)), 0.0
    for first in range(0, len(ids), BATCH):
        part = ids[first : first + BATCH]
        losses = _row_losses(model, np.asarray([x + [0] * (longest - len(x)) for x in part], np.int32))
        total += sum(float(row[: len(x) - 1].sum()) for row, x in zip(losses, part, strict=True))
    return total / sum(len(x) - 1 for x in ids)
