"""Extract a circuit by hierarchy: graph, tree, group search, elimination, and the choice of a size.

    graph     direct edges averaged over prompts, importance of nodes (`build_graph`); its most important units
    tree      cuts of that graph from the top down (`hierarchy`)
    search    group ablations down the tree with half of the budget (`group_search`), importance as prior
    circuits  backward elimination with the other half: nested circuits of growing size (`trim`)

Then the smallest that is as faithful as asked for on the selection split. The report split is not touched.

With a folder each stage is kept (`stages`), and a call that was cut off goes on after the last one, to the very same
circuit.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.circuits.behaviour_graph import (
    BehaviourGraph,
    capped,
    graph_from,
    graph_record,
    most_edges,
)
from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.discover import TOLERANCE, Choice, choose, grid
from tcircuits.circuits.forward import Errors
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.group_search import How, group_search
from tcircuits.circuits.hierarchy import Mode, hierarchy
from tcircuits.circuits.meter import OWN, Meter, meter
from tcircuits.circuits.metrics import counts_of
from tcircuits.circuits.running import Ablation
from tcircuits.circuits.scores import POINTS
from tcircuits.circuits.stages import Stages, of_arrays
from tcircuits.circuits.tree import Hierarchy, hierarchy_from, hierarchy_record
from tcircuits.circuits.trimming import trim
from tcircuits.circuits.units import Units
from tcircuits.files.archive import Wanted
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour, told
from tcircuits.tasks.gate import LEAST, check_capability
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Float, InputError, Int

PRIOR = 2 + 3 * POINTS  # evaluations of the importance: both prompts, a forward and a backward pass (2) a point
BEGUN = PRIOR + 2 + OWN  # and of all units and none
SEARCH: Wanted = {"order": ("iu", ("k",)), "density": ("f", ("U",)), "spent": ("iu", ())}
CIRCUITS: Wanted = {"masks": ("b", ("K", "U")), "spent": ("iu", ()), "measured": ("b", ())}


@dataclass(frozen=True)
class ExtractOptions:
    """What decides an extraction beside model, behaviour, units and dictionary.

    Attributes:
        budget: evaluations of search and elimination, those of the importance counted in; a circuit on all prompts of
            the attribution split is one.
        share: of all units, that the largest circuit has.
        tolerance: how far from 1 the faithfulness of the chosen circuit may be.
        effect: of a group that matters, as a part of what all units are worth.
        nodes: of the graph that becomes a tree, the most important.
        edges: kept out of and into each node, the strongest.
        lengths: prompts of so many lengths make the graph, the most frequent (None: all).
        mode: of `hierarchy`.
        ablation, errors: as in `run_circuits`.
        least: capability that is asked for on the selection split.
        seed: of the tree.
    """

    budget: int = 250
    share: float = 0.05
    tolerance: float = TOLERANCE
    effect: float = 0.002
    nodes: int = 4000
    edges: int = 16
    lengths: int | None = 2
    mode: Mode = "sound"
    ablation: Ablation = "resample"
    errors: Errors = "keep"
    least: float = LEAST
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if self.budget < 2 * BEGUN:
            wrong.append(f"budget={self.budget} (at least {2 * BEGUN}: scores and controls alone take {BEGUN})")
        for name in ("share", "tolerance"):
            value = getattr(self, name)
            wrong += [] if 0 < value < 1 else [f"{name}={value} (between 0 and 1)"]
        wrong += [] if self.effect >= 0 else [f"effect={self.effect} (0 or more)"]
        wrong += [] if self.nodes >= 2 else [f"nodes={self.nodes} (2 or more)"]
        wrong += [] if self.edges >= 1 else [f"edges={self.edges} (1 or more)"]
        if wrong:
            raise InputError("no circuit can be extracted with " + ", ".join(wrong))


@dataclass(frozen=True)
class Extraction:
    """What was extracted, and on the way.

    Attributes:
        circuit: the chosen one. Its scores rank units by the smallest circuit that they are in, then by importance.
        choice: the circuits of growing size on the selection split.
        graph: of the units that the tree is of.
        tree: of them.
        evaluations: circuits run on the attribution split, those of the importance counted in.
        seconds: of each stage that this call computed.
    """

    circuit: Circuit
    choice: Choice
    graph: BehaviourGraph
    tree: Hierarchy
    evaluations: int
    seconds: Mapping[str, float] = field(default_factory=dict)


def extract(
    model: Model,
    behaviour: Behaviour,
    units: Units,
    *,
    dictionary: Transcoders,
    options: ExtractOptions = ExtractOptions(),
    stages: Path | str | None = None,
    batch: int = 16,
    tell: Callable[[str], None] | None = None,
) -> Extraction:
    """Find a circuit of a behaviour by its hierarchy.

    Args:
        model: from `load_model`.
        behaviour: attributed and searched on its attribution split; the size is chosen on its selection split.
        units: heads and features, or features alone.
        dictionary: whose features they are.
        options: see there.
        stages: folder for what each stage found, an Orbax checkpoint each; a call with the same arguments goes on.
        batch: prompts that run together.
        tell: is told of each stage before it is computed.

    Raises:
        InputError: what `build_graph`, `hierarchy` and `run_circuits` refuse; a model that cannot do the task; a folder
            with the stages of another call.
    """
    check_capability(model, behaviour, least=options.least)
    work = Stages(None if stages is None else Path(stages).expanduser(), tell)
    work.begin(_settings(model, behaviour, units, dictionary, options))
    how: Any = {"dictionary": dictionary, "ablation": options.ablation, "errors": options.errors, "batch": batch}

    def graph_of() -> BehaviourGraph:
        whole = build_graph(model, behaviour, units, lengths=options.lengths, **how)
        return capped(most_edges(whole, options.edges, options.edges).only_units(), options.nodes, "importance")

    def tree_of() -> Hierarchy:
        return hierarchy(graph, options.mode, seed=options.seed)

    graph = work.stage("graph", graph_of, graph_record, graph_from)
    tree = work.stage("tree", tree_of, hierarchy_record, hierarchy_from)
    if tree.n != graph.n:
        raise InputError(f"the stages at {work.folder} do not belong together: remove that folder")
    search = _Searching(model, behaviour, units, options, how, graph, tree)
    order = work.stage("search", search.search, *of_arrays(SEARCH, search.sizes))
    masks = work.stage("circuits", lambda: search.circuits(order), *of_arrays(CIRCUITS, search.sizes))
    circuit, choice = work.timed("choice", lambda: _chosen(search, masks))
    return Extraction(circuit, choice, graph, tree, int(masks["spent"]), work.seconds)


def _settings(
    model: Model, behaviour: Behaviour, units: Units, d: Transcoders, options: ExtractOptions
) -> dict[str, Any]:
    """What two calls must agree in to share their stages."""
    about = {"model": model.name, "dictionary": d.source or d.cfg.kind, "behaviour": told(behaviour)}
    return json.loads(json.dumps(about | {"units": asdict(units), "options": asdict(options)}))


@dataclass
class _Searching:
    """Search and elimination, which share one meter where both are computed."""

    model: Model
    behaviour: Behaviour
    units: Units
    options: ExtractOptions
    how: Any
    graph: BehaviourGraph
    tree: Hierarchy
    measure: Meter | None = None

    @property
    def counts(self) -> Int[np.ndarray, " K"]:
        """Units of the circuits."""
        n = self.units.n
        counts = np.unique(counts_of(grid(n), n))
        return counts[counts <= max(1, round(self.options.share * n))]

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of the arrays that stages keep."""
        return {"U": self.units.n, "K": len(self.counts)}

    @property
    def importance(self) -> Float[np.ndarray, " U"]:
        """Of all units; 0 of those that the graph does not have."""
        found = np.zeros(self.units.n)
        found[self.graph.unit] = self.graph.importance
        return found

    def metered(self, spent: int) -> Meter:
        """The meter, with so many evaluations on it."""
        if self.measure is None:
            self.measure = meter(self.model, self.behaviour, self.units, **self.how)
        self.measure.spent = spent
        return self.measure

    def search(self) -> dict[str, np.ndarray]:
        """Candidates, the best first, and what each is worth."""
        measure = self.metered(BEGUN)
        half = (self.options.budget + BEGUN) // 2
        how = How(half, self.options.effect)
        found = group_search(measure, self.tree, self.graph.unit, how, self.importance / measure.gap)
        order = found.order
        if len(order) < self.counts[-1]:  # too few were left: the others follow, by their importance
            rest = np.setdiff1d(self.graph.unit, order)
            order = np.concatenate([order, rest[np.argsort(-np.abs(self.importance[rest]), kind="stable")]])
        order = order[: 2 * int(self.counts[-1])]
        return {"order": order, "density": found.density, "spent": np.array(found.spent)}

    def circuits(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Nested circuits out of the candidates."""
        measure = self.metered(int(found["spent"]))
        out = trim(measure, found["order"], self.counts.tolist(), budget=self.options.budget, values=found["density"])
        return {"masks": out.masks, "spent": np.array(out.spent), "measured": np.array(out.measured)}


def _chosen(search: _Searching, found: Mapping[str, np.ndarray]) -> tuple[Circuit, Choice]:
    """The smallest circuit that is near enough to the model on the selection split, else the largest."""
    masks, options, units = found["masks"], search.options, search.units
    choice = choose(search.model, search.behaviour, units, masks, options.tolerance, **search.how)
    chosen = len(masks) - 1 if choice.taken is None else choice.taken
    d = search.how["dictionary"]
    about = {"method": "extract", "options": asdict(options), "behaviour": told(search.behaviour)}
    about |= {"ablation": options.ablation, "errors": options.errors, "dictionary": d.source or d.cfg.kind}
    about |= {"tree": dict(search.tree.about), "evaluations": int(found["spent"])}
    about |= {"measured_to_the_end": bool(found["measured"])}
    about |= {"selection": {"counts": list(choice.counts), "faithfulness": list(choice.faithfulness)}}
    scores = _ranks(masks, masks.sum(1), search.importance)
    return Circuit(units, masks[chosen], scores, search.model.name, about), choice


def _ranks(masks: np.ndarray, counts: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """1 over the size of the smallest circuit that a unit is in; units of none come after, by their importance."""
    inside = masks.any(0)
    first = 1.0 / counts[masks.argmax(0)]
    size = np.abs(importance)
    rest = size / max(float(size.max()), 1e-300) / (2.0 * counts[-1])
    return np.where(inside, first, rest)
