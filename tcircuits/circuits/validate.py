"""Test a circuit on prompts that did not choose it, beside what it must beat.

Nulls: nothing kept; random circuits with as many units in every kind and layer, and at every position where units are
apart by it. Baselines of the same size: by activation, by the size of the gradient, by integrated gradients, of edges
by EAP-IG. All circuits go through the model in one call.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tcircuits.circuits import metrics
from tcircuits.circuits.circuit import Circuit, check_circuit
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.metrics import SHARES, Agreement
from tcircuits.circuits.running import Ablation, Runs, run_circuits
from tcircuits.circuits.scores import Method, unit_scores
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour, told
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.intervals import Interval
from tcircuits.types import InputError

BASELINES: tuple[Method, ...] = ("activation", "gradient", "ig")
RANDOM = 100
MOST_MINIMAL = 256  # units whose removal is measured one by one
NEEDED = 0.01  # of faithfulness that a unit's removal must cost to count as needed


@dataclass(frozen=True)
class Figures:
    """What one circuit does on the report split.

    `kl` in nats; `ok` and `err` are agreement with the model where it is right and where it is wrong.
    """

    units: int
    metric: float
    faithfulness: Interval
    phi: Interval
    kl: float
    ok: Agreement
    err: Agreement


@dataclass(frozen=True)
class Nulls:
    """Random circuits of the same profile: 95th percentiles, and how often they reach the circuit."""

    n: int
    faithfulness_95: float
    phi_95: float
    p_faithfulness: float
    p_phi: float


@dataclass(frozen=True)
class Minimality:
    """Is each unit of the circuit needed more than a random unit that is put in (Shi et al. 2024, section 3.3)?

    Attributes:
        insertions: random units from outside, each put in alone: how much the metric moves is the null.
        beaten: share of the circuit's units whose removal moves it more than 95 % of insertions do.
        p_worst: the largest p-value of a unit, that of the circuit's least needed one.
        worst: its name.
    """

    insertions: int
    beaten: float
    p_worst: float
    worst: str


@dataclass(frozen=True)
class Curve:
    """Nested circuits of the best units: shares of all units, and what each does."""

    shares: tuple[float, ...]
    counts: tuple[int, ...]
    faithfulness: tuple[float, ...]
    right: tuple[float, ...]
    kl: tuple[float, ...]
    CPR: float
    CMD: float
    accuracy_area: float
    kl_area: float


@dataclass(frozen=True)
class Report:
    """A circuit's test.

    Attributes:
        about: circuit, behaviour, ablation, errors, number of prompts.
        model: metric and share right of the whole model.
        circuit: the circuit; `nothing` and `complement`: the empty one and all units outside.
        nulls: random circuits.
        baselines: other rankings at the same size.
        curves: by the circuit's own scores, signed and by size; empty where it has none.
        needed: share of its units whose removal costs more than `NEEDED`; None for large circuits.
        minimality: each unit against random insertions; None for large circuits, or where nothing is outside.
        p_equivalence: a small one says that circuit and model differ.
        p_independence: a small one says that the complement still knows about the task.
    """

    about: Mapping[str, Any]
    model: Mapping[str, float]
    circuit: Figures
    nothing: Figures
    complement: Figures
    nulls: Nulls
    baselines: Mapping[str, Figures]
    curves: Mapping[str, Curve]
    needed: float | None
    minimality: Minimality | None
    p_equivalence: float
    p_independence: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def validate(
    model: Model,
    behaviour: Behaviour,
    circuit: Circuit,
    *,
    dictionary: Transcoders | None = None,
    ablation: Ablation | None = None,
    errors: Errors | None = None,
    random: int = RANDOM,
    batch: int = 16,
    at_once: int = 16,
    seed: int = 0,
) -> Report:
    """Test a circuit on the report split.

    Args:
        model: from `load_model`.
        behaviour: the circuit must not have seen its report split.
        circuit: what is tested.
        dictionary: whose features are units.
        ablation: None takes what the circuit was found with.
        errors: likewise.
        random: random circuits.
        batch: prompts that run together.
        at_once: circuits that run together.
        seed: of random circuits and permutations.

    Raises:
        InputError: an empty circuit, one of another model or behaviour, a model that is never right, a metric that is
            the same for all and nothing.
    """
    check_circuit(circuit)
    if circuit.model and circuit.model != model.name:
        raise InputError(f"the circuit is of the model {circuit.model!r}, not of {model.name!r}")
    if random < 1:
        raise InputError(f"random={random}: give at least 1 random circuit")
    how: Any = {
        "dictionary": dictionary,
        "ablation": ablation or circuit.about.get("ablation", "resample"),
        "errors": errors or circuit.about.get("errors", "keep"),
        "batch": batch,
    }
    masks, counts = _masks(model, behaviour, circuit, how, random, seed)
    runs = run_circuits(model, behaviour, masks.stacked(), circuit.units, split="report", at_once=at_once, **how)
    return _report(behaviour, circuit, how, masks, runs, counts)


def _masks(
    model: Model, behaviour: Behaviour, circuit: Circuit, how: Any, random: int, seed: int
) -> tuple["Masks", np.ndarray]:
    """All circuits that go through the model, and how many units those of the curves have."""
    masks, units, mask = Masks(), circuit.units, circuit.mask
    masks.add("nothing", np.zeros_like(mask))
    masks.add("circuit", mask)
    masks.add("complement", ~mask)
    masks.add("random", metrics.matched(mask, units.groups(), random, seed))
    published: tuple[Method, ...] = ("eap-ig",) if isinstance(units, Edges) and how["ablation"] == "resample" else ()
    for name in BASELINES + published:
        scores = unit_scores(model, behaviour, units, method=name, **how).values
        masks.add(name, metrics.nested(scores, np.array([circuit.size]), signed=False))
    counts = metrics.counts_of(SHARES, units.n)
    if circuit.scores is not None:
        for name in ("signed", "size"):
            masks.add(f"curve {name}", metrics.nested(circuit.scores, counts, signed=name == "signed"))
    inside = np.flatnonzero(mask)
    if len(inside) <= MOST_MINIMAL:
        less = np.repeat(mask[None], len(inside), 0)
        less[np.arange(len(inside)), inside] = False
        masks.add("less", less)
        outside = np.flatnonzero(~mask)
        drawn = np.random.default_rng(seed).permutation(outside)[:random]
        if len(drawn):
            more = np.repeat(mask[None], len(drawn), 0)
            more[np.arange(len(drawn)), drawn] = True
            masks.add("more", more)
    return masks, counts


class Masks:
    """Named groups of masks, stacked for one run."""

    def __init__(self) -> None:
        self.groups: dict[str, np.ndarray] = {}

    def add(self, name: str, mask: np.ndarray) -> None:
        """A group of masks [n, U], or a single one [U]."""
        self.groups[name] = np.atleast_2d(mask)

    def stacked(self) -> np.ndarray:
        """All of them, [C, U]."""
        return np.concatenate(list(self.groups.values()))

    def rows(self, name: str) -> slice:
        """Where a group lies."""
        sizes = np.cumsum([0, *(len(m) for m in self.groups.values())])
        at = list(self.groups).index(name)
        return slice(int(sizes[at]), int(sizes[at + 1]))


def _report(
    behaviour: Behaviour,
    circuit: Circuit,
    how: Mapping[str, Any],
    masks: Masks,
    runs: Runs,
    counts: np.ndarray,
) -> Report:
    found, full = runs.circuits, runs.model
    none = found.metric[masks.rows("nothing")][0]
    metrics.check_range(full.metric, none)

    def figures(name: str) -> Figures:
        at, kept = masks.rows(name).start, masks.groups[name][0]
        return Figures(
            int(kept.sum()),
            float(found.metric[at].mean()),
            metrics.faithful(found.metric[at], full.metric, none),
            metrics.preserved(found.right[at], full.right),
            float(found.kl[at].mean()),
            metrics.agreement(found.choice[at], full.choice, full.right),
            metrics.agreement(found.choice[at], full.choice, ~full.right, metrics.LEAST_ERRORS),
        )

    own = figures("circuit")
    nulls, needed = _nulls(masks, runs, none, own), _needed(masks, runs, none, own)
    curves = {
        name: _curve(runs, masks.rows(f"curve {name}"), counts, circuit.units.n, none)
        for name in ("signed", "size")
        if f"curve {name}" in masks.groups
    }
    settings = {key: how[key] for key in ("ablation", "errors")}
    about = {"circuit": dict(circuit.about), "behaviour": told(behaviour), "prompts": len(none)} | settings
    at = masks.rows("circuit").start
    return Report(
        about,
        {"metric": float(full.metric.mean()), "right": float(full.right.mean())},
        own,
        figures("nothing"),
        figures("complement"),
        nulls,
        {name: figures(name) for name in (*BASELINES, "eap-ig") if name in masks.groups},
        curves,
        needed,
        _minimality(circuit, masks, runs),
        metrics.equivalence(found.metric[at], full.metric),
        metrics.independence(found.metric[masks.rows("complement").start], full.metric),
    )


def _nulls(masks: Masks, runs: Runs, none: np.ndarray, own: Figures) -> Nulls:
    chance = masks.rows("random")
    f = metrics.faithfulness(runs.circuits.metric[chance], runs.model.metric, none)
    phi = runs.circuits.right[chance].mean(1) / runs.model.right.mean()
    return Nulls(
        len(f),
        float(np.quantile(f, 0.95)),
        float(np.quantile(phi, 0.95)),
        metrics.share_above(own.faithfulness.value, f),
        metrics.share_above(own.phi.value, phi),
    )


def _needed(masks: Masks, runs: Runs, none: np.ndarray, own: Figures) -> float | None:
    if "less" not in masks.groups:
        return None
    less = metrics.faithfulness(runs.circuits.metric[masks.rows("less")], runs.model.metric, none)
    return float(np.mean(own.faithfulness.value - less > NEEDED))


def _minimality(circuit: Circuit, masks: Masks, runs: Runs) -> Minimality | None:
    if "more" not in masks.groups:
        return None
    mean = runs.circuits.metric.mean(-1)
    own = mean[masks.rows("circuit").start]
    removed, put_in = (np.abs(mean[masks.rows(name)] - own) for name in ("less", "more"))
    p = np.array([metrics.share_above(effect, put_in) for effect in removed])
    worst = circuit.units.label(int(np.flatnonzero(circuit.mask)[p.argmax()]))
    beaten = float(np.mean(removed > np.quantile(put_in, 0.95)))
    return Minimality(len(put_in), beaten, float(p.max()), worst)


def _curve(runs: Runs, rows: slice, counts: np.ndarray, n: int, none: np.ndarray) -> Curve:
    found = runs.circuits
    f = metrics.faithfulness(found.metric[rows], runs.model.metric, none)
    right, kl = found.right[rows].mean(1), found.kl[rows].mean(1)
    both = metrics.areas(f, np.asarray(SHARES))
    return Curve(
        SHARES,
        tuple(counts.tolist()),
        tuple(f.tolist()),
        tuple(right.tolist()),
        tuple(kl.tolist()),
        both["CPR"],
        both["CMD"],
        metrics.area(right, np.asarray(SHARES)),
        metrics.area(kl, np.asarray(SHARES)),
    )
