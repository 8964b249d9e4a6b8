"""Circuits of a behaviour: units, running many of them, scores, discovery, and the test of what was found.

units = tc.units_of(model.cfg, ("head", "mlp"))
circuit, _, _ = tc.discover(model, behaviour, units, method="ig")
report = tc.validate(model, behaviour, circuit)

Hierarchies: `build_graph` (direct edges averaged over prompts), `hierarchy` (a tree of its nodes), `group_search`
(ablate groups down the tree), `trim` (a circuit out of what is left); `extract` does all of it.
"""

from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.behaviour_graph import (
    BehaviourGraph,
    capped,
    load_behaviour_graph,
    most_edges,
    most_influential,
    save_behaviour_graph,
)
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.coarse_quality import Quality, coarse_quality
from tcircuits.circuits.discover import discover
from tcircuits.circuits.edge_effects import edge_effects
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.extract import Extraction, ExtractOptions, extract
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.group_search import How, Search, group_search, single_search
from tcircuits.circuits.hierarchy import coarse_edges, hierarchy
from tcircuits.circuits.interchange import Interchange, interchange
from tcircuits.circuits.interpretability import Readability, readability
from tcircuits.circuits.learning import Learning, learned_scores
from tcircuits.circuits.meter import Meter, meter
from tcircuits.circuits.patching import Sweep, patching_sweep
from tcircuits.circuits.path_patching import PathSweep, path_sweep
from tcircuits.circuits.running import Answers, Runs, run_circuits
from tcircuits.circuits.scores import UnitScores, unit_scores
from tcircuits.circuits.stability import Stability, stability
from tcircuits.circuits.traversal import traverse
from tcircuits.circuits.tree import Hierarchy, load_hierarchy, save_hierarchy, shuffled
from tcircuits.circuits.tree_gates import tree_scores
from tcircuits.circuits.trimming import Trimmed, trim
from tcircuits.circuits.units import Units, units_of
from tcircuits.circuits.validate import Report, validate

__all__ = [
    "Answers",
    "BehaviourGraph",
    "Circuit",
    "Edges",
    "ExtractOptions",
    "Extraction",
    "Hierarchy",
    "How",
    "Interchange",
    "Learning",
    "Meter",
    "PathSweep",
    "Quality",
    "Readability",
    "Report",
    "Runs",
    "Search",
    "Stability",
    "Sweep",
    "Trimmed",
    "UnitScores",
    "Units",
    "acdc",
    "build_graph",
    "capped",
    "coarse_edges",
    "coarse_quality",
    "discover",
    "edge_effects",
    "edges_of",
    "eliminate",
    "extract",
    "group_search",
    "hierarchy",
    "interchange",
    "learned_scores",
    "load_behaviour_graph",
    "load_circuit",
    "load_hierarchy",
    "meter",
    "most_edges",
    "most_influential",
    "patching_sweep",
    "path_sweep",
    "readability",
    "run_circuits",
    "save_behaviour_graph",
    "save_circuit",
    "save_hierarchy",
    "shuffled",
    "single_search",
    "stability",
    "traverse",
    "tree_scores",
    "trim",
    "unit_scores",
    "units_of",
    "validate",
]
