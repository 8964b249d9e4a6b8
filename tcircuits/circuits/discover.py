"""Find a circuit: score units on one split, choose on another how many are kept."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.learning import Kind, learned_scores
from tcircuits.circuits.metrics import SHARES, check_range, counts_of, faithfulness, nested
from tcircuits.circuits.running import Ablation, run_circuits
from tcircuits.circuits.scores import POINTS, Method, UnitScores, unit_scores
from tcircuits.circuits.stability import stability
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour, told
from tcircuits.tasks.gate import LEAST, check_capability
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Bool, InputError

TOLERANCE = 0.1


@dataclass(frozen=True)
class Choice:
    """Circuits of growing size on the selection split: units, faithfulness, which was taken (None: none is near)."""

    counts: tuple[int, ...]
    faithfulness: tuple[float, ...]
    taken: int | None


def discover(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    *,
    method: Method | Kind = "ig",
    size: int | None = None,
    tolerance: float = TOLERANCE,
    signed: bool = True,
    least: float = LEAST,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    points: int = POINTS,
    batch: int = 16,
    seed: int = 0,
) -> tuple[Circuit, UnitScores, Choice]:
    """The smallest circuit of the best units whose faithfulness is within `tolerance` of 1 on the selection split.

    Args:
        model: from `load_model`.
        behaviour: units are scored on its attribution split, their number is chosen on its selection split.
        units: what a circuit may consist of.
        method: of `scores`, or of `learning`.
        size: take so many units instead.
        tolerance: how far from 1 the faithfulness may be, on either side.
        signed: rank by score; otherwise by its size.
        least: capability that is asked for on the selection split; 0 asks for none.
        dictionary: as in `run_circuits`.
        ablation: as there.
        errors: as there.
        points: of `ig`.
        batch: prompts that run together.
        seed: of `random`.

    Raises:
        InputError: the model cannot do it; all and nothing cannot be told apart; no such number of units.
    """
    _check(units, size, tolerance)
    gate = check_capability(model, behaviour, least=least)
    how: Any = {"dictionary": dictionary, "ablation": ablation, "errors": errors, "batch": batch}
    scored = score(model, behaviour, units, method, points=points, seed=seed, **how)
    counts = np.unique(counts_of(grid(units.n), units.n)) if size is None else np.array([size])
    masks = nested(scored.values, counts, signed=signed)
    choice = choose(model, behaviour, units, masks, tolerance, **how)
    chosen = 0 if size is not None else choice.taken if choice.taken is not None else len(counts) - 1
    about = {
        **{"method": method, "signed": signed, "ablation": ablation, "errors": errors, "points": points, "seed": seed},
        **{"dictionary": None if dictionary is None else dictionary.source or dictionary.cfg.kind},
        **{"tolerance": tolerance, "size_given": size, "behaviour": told(behaviour), "capability": asdict(gate)},
        "cost": {name: getattr(scored, name) for name in ("forwards", "backwards", "seconds")},
        "stability": _stability(scored, int(counts[chosen]), signed, seed),
        "selection": {"counts": list(choice.counts), "faithfulness": list(choice.faithfulness)},
    }
    return Circuit(units, masks[chosen], scored.values, model.name, about), scored, choice


def choose(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    masks: Bool[np.ndarray, "K U"],
    tolerance: float,
    **how: Any,
) -> Choice:
    """The first of some circuits whose faithfulness is within `tolerance` of 1 on the selection split.

    Args:
        model: from `load_model`.
        behaviour: whose selection split is run.
        units: what circuits consist of.
        masks: the circuits, of growing size.
        tolerance: on either side.
        how: `run_circuits`' dictionary, ablation, errors, batch.

    Raises:
        InputError: all and nothing cannot be told apart; what `run_circuits` refuses.
    """
    stacked = np.concatenate([masks, np.zeros((1, units.n), bool)])
    runs = run_circuits(model, behaviour, stacked, units, split="selection", **how)
    full, none = runs.model.metric, runs.circuits.metric[-1]
    check_range(full, none)
    f = faithfulness(runs.circuits.metric[:-1], full, none)
    taken = next((int(i) for i in np.flatnonzero(np.abs(1 - f) <= tolerance)), None)
    return Choice(tuple(masks.sum(1).tolist()), tuple(f.tolist()), taken)


def _stability(scored: UnitScores, size: int, signed: bool, seed: int) -> dict[str, Any] | None:
    """Overlap of the circuits that resampled prompts choose; None where scores are not a mean over prompts."""
    if scored.by_prompt is None or len(scored.by_prompt) < 2:
        return None
    return asdict(stability(scored.by_prompt, size, signed=signed, seed=seed))


def score(
    model: Model, behaviour: Behaviour, units: Units | Edges, method: Method | Kind, *, points: int, **how: Any
) -> UnitScores:
    """Scores by any method, computed or learned."""
    if method == "topk" or method == "pruning":
        learned = {name: how[name] for name in ("dictionary", "ablation", "errors", "seed")}
        return learned_scores(model, behaviour, units, kind=method, **learned)
    return unit_scores(model, behaviour, units, method=method, points=points, **how)


def _check(units: Units | Edges, size: int | None, tolerance: float) -> None:
    if size is not None and not 1 <= size <= units.n:
        raise InputError(f"a circuit of {size} units: give 1..{units.n}")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance={tolerance}: give a number between 0 and 1")


def grid(n: int) -> np.ndarray:
    """Shares of n units that are tried: all counts up to 64, then steps of a tenth, and the shares of the curves."""
    few = np.arange(1, min(n, 64) + 1)
    more = np.geomspace(64, n, max(2, int(np.log(n / 64) / np.log(1.1)))) if n > 64 else np.zeros(0)
    return np.unique(np.concatenate([few, more, np.asarray(SHARES) * n]).clip(1, n)) / n
