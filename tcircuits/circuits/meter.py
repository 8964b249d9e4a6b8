"""Run circuits and count what it costs: budgets of searches are in evaluations.

A circuit on all prompts of a split is one evaluation; a call of `run_circuits` adds two, for the prompts themselves and
their counterfactuals.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tcircuits.circuits.metrics import check_range, faithfulness
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.types import Bool, Float

TOGETHER = 32  # circuits of one call
OWN = 2  # evaluations of a call beside its circuits

Run = Callable[[Bool[np.ndarray, "C U"]], Float[np.ndarray, "C N"]]


class Meter:
    """Runs circuits and counts evaluations. The first call, of all units and of none, is part of the count.

    Attributes:
        full, none: the metric with all units and with none, [N].
        spent: evaluations so far.
    """

    def __init__(self, run: Run, n: int, overhead: int = 0) -> None:
        self.run, self.n, self.overhead, self.spent = run, n, overhead, 0
        self.full, self.none = self(np.stack([np.ones(n, bool), np.zeros(n, bool)]))
        check_range(self.full, self.none)

    @property
    def gap(self) -> float:
        """How much the metric differs between all units and none: effects are given as parts of it."""
        return float(self.full.mean() - self.none.mean())

    def __call__(self, masks: Bool[np.ndarray, "C U"]) -> Float[np.ndarray, "C N"]:
        """The metric of each circuit on each prompt."""
        self.spent += len(masks) + self.overhead
        return np.asarray(self.run(masks), float)

    def faithfulness(self, masks: Bool[np.ndarray, "C U"]) -> Float[np.ndarray, " C"]:
        """(m(C) - m(none)) / (m(all) - m(none)) of each circuit."""
        return faithfulness(self(masks), self.full, self.none)

    def lost(
        self, before: Float[np.ndarray, " N"], after: Float[np.ndarray, "C N"]
    ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """What ablations cost, as parts of `gap`, and the standard errors over prompts."""
        lost = (before - after) / self.gap
        n = lost.shape[1]
        return lost.mean(1), lost.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(len(lost))


def meter(model: Model, behaviour: Behaviour, units: Units, *, split: str = "attribution", **how: Any) -> Meter:
    """A meter of a model's circuits; `how` is `run_circuits`' dictionary, ablation, errors, batch.

    Raises:
        InputError: what `run_circuits` refuses; a metric that is the same for all units and none.
    """

    def run(masks: Bool[np.ndarray, "C U"]) -> Float[np.ndarray, "C N"]:
        # one compiled program for any number of circuits up to TOGETHER, and few beyond
        filled = np.concatenate([masks, np.ones((-len(masks) % TOGETHER, masks.shape[1]), bool)])
        found = run_circuits(model, behaviour, filled, units, split=split, at_once=TOGETHER, **how)
        return found.circuits.metric[: len(masks)]

    return Meter(run, units.n, OWN)
