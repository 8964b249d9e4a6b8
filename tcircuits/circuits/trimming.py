"""Make a set of candidates a circuit: take out what is missed least, the rest of the circuit held, again and again.

A unit's necessity against the whole model ranks units wrongly for a circuit (of two that stand in for each other,
neither is necessary); what counts is what its removal costs among those that are left. Each round measures the removal
of every piece of the circuit in one call (units of about equal cost so far are a piece), then that of the cheapest
quarter, half, three quarters and all that may go together, and takes out the most that cost no more than twice what
they cost alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.circuits.meter import Meter
from tcircuits.types import Bool, Float, InputError, Int

PIECES = 30  # of one round
SHARE = 0.25  # of the circuit that a round takes out
PREFIXES = 4  # of what a round may take out that are removed together
SLACK = 0.005  # of faithfulness that they may cost in any case


@dataclass(frozen=True)
class Trimmed:
    """Nested circuits.

    Attributes:
        masks: one for each wanted size, in the order in which the sizes were given, [K, U].
        removed: units in the order in which they went.
        spent: evaluations, those before counted.
        measured: whether the last removal still was measured, or the budget had run out before.
    """

    masks: Bool[np.ndarray, "K U"]
    removed: Int[np.ndarray, " r"]
    spent: int
    measured: bool


def trim(
    measure: Meter,
    order: Int[np.ndarray, " k"],
    sizes: Sequence[int],
    *,
    budget: int,
    values: Float[np.ndarray, " U"] | None = None,
    pieces: int = PIECES,
    share: float = SHARE,
) -> Trimmed:
    """Circuits of some sizes out of candidates, by backward elimination on |1 - faithfulness|.

    When the budget is used up, the rest goes by what was known last. Sizes beyond the candidates give all of them.

    Args:
        measure: from `meter.meter`.
        order: candidates, the best first.
        sizes: of the wanted circuits.
        budget: evaluations until which a round is begun, those spent so far among them.
        values: what each unit is thought to be worth, [U], 0 or more: the first guess at what its removal costs; units
            share what their piece costs by it. None: by place, and evenly.
        pieces: measured in a round.
        share: of the circuit that may go in a round.

    Raises:
        InputError: no candidates, candidates that are none, sizes below 1, no pieces, a share outside (0, 1).
    """
    wrong = [] if len(order) else ["there are no candidates"]
    if len(order) and (order.min() < 0 or order.max() >= measure.n or len(np.unique(order)) != len(order)):
        wrong.append(f"candidates are not different numbers in 0..{measure.n - 1}")
    if not len(sizes) or min(sizes) < 1 or pieces < 1 or not 0 < share < 1:
        wrong.append(
            f"sizes={list(sizes)}, pieces={pieces}, share={share}: give sizes and pieces >= 1, a share in (0, 1)"
        )
    if values is not None and (values.shape != (measure.n,) or not (values >= 0).all()):
        wrong.append(f"values have shape {values.shape}: give {measure.n} numbers of 0 or more")
    if wrong:
        raise InputError("nothing can be eliminated: " + "; ".join(wrong))
    worth = np.ones(len(order)) if values is None else np.asarray(values[order], float)
    known = -np.arange(len(order), dtype=float) if values is None else worth.copy()  # what each removal costs
    removed: list[Any] = []
    inside, found, measured = np.arange(len(order)), {}, True
    for size in sorted(set(sizes), reverse=True):
        while len(inside) > size:
            most = min(len(inside) - size, max(1, int(share * len(inside))))
            ranked = inside[_by_cost(known[inside])]
            split = np.array_split(ranked, min(pieces, len(ranked)))
            measured = measure.spent + len(split) + 1 + PREFIXES + 2 * measure.overhead <= budget
            gone = _round(measure, order, inside, split, known, worth, most) if measured else ranked[:most]
            removed.append(gone)
            inside = np.setdiff1d(inside, gone)
        found[size] = order[inside]
    masks = np.zeros((len(sizes), measure.n), bool)
    for mask, size in zip(masks, sizes, strict=True):
        mask[found[size]] = True
    gone = np.concatenate(removed) if removed else np.zeros(0, int)
    return Trimmed(masks, order[gone], measure.spent, measured)


def _by_cost(cost: Float[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Places from the least cost on; of equal ones the later first, which was ranked lower."""
    return np.lexsort((-np.arange(len(cost)), cost))


def _round(
    measure: Meter, order: Any, inside: Any, split: list[Any], known: Any, worth: Any, most: int
) -> Int[np.ndarray, " s"]:
    """Measure each piece's removal, keep in mind what it costs, and say which go: at most `most`, at least one unit."""
    rank = np.argsort(np.argsort(known)) * 1e-12  # what was known before tells units of one piece apart
    masks = np.zeros((len(split) + 1, measure.n), bool)
    masks[:, order[inside]] = True
    for row, piece in zip(masks, split, strict=False):
        row[order[piece]] = False
    miss = np.abs(1 - measure.faithfulness(masks))
    for i, piece in enumerate(split):
        cost, part = miss[i] - miss[-1], worth[piece] / max(worth[piece].sum(), 1e-300)
        known[piece] = (cost * part if cost > 0 and part.any() else cost / len(piece)) + rank[piece]
    gone = inside[_by_cost(known[inside])][:most]
    ends = np.unique(np.ceil(np.arange(1, PREFIXES + 1) * len(gone) / PREFIXES).astype(int))
    if len(gone) == 1:
        return gone
    masks = np.repeat(masks[-1:], len(ends), 0)
    for row, end in zip(masks, ends, strict=True):
        row[order[gone[:end]]] = False
    together = np.abs(1 - measure.faithfulness(masks)) - miss[-1]
    alone = np.array([np.maximum(known[gone[:end]], 0).sum() for end in ends])
    fine = together <= np.maximum(2 * alone, SLACK)
    last = len(ends) - 1 if fine.all() else int(np.argmin(fine)) - 1
    return gone[: ends[last]] if last >= 0 else gone[:1]
