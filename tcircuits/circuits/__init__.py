"""Circuits of a behaviour: units, running many of them, scores, discovery, and the test of what was found.

units = tc.units_of(model.cfg, ("head", "mlp"))
circuit, _, _ = tc.discover(model, behaviour, units, method="ig")
report = tc.validate(model, behaviour, circuit)
"""

from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.discover import discover
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.interchange import Interchange, interchange
from tcircuits.circuits.learning import Learning, learned_scores
from tcircuits.circuits.patching import Sweep, patching_sweep
from tcircuits.circuits.path_patching import PathSweep, path_sweep
from tcircuits.circuits.running import Answers, Runs, run_circuits
from tcircuits.circuits.scores import UnitScores, unit_scores
from tcircuits.circuits.stability import Stability, stability
from tcircuits.circuits.units import Units, units_of
from tcircuits.circuits.validate import Report, validate

__all__ = [
    "Answers",
    "Circuit",
    "Edges",
    "Interchange",
    "Learning",
    "PathSweep",
    "Report",
    "Runs",
    "Stability",
    "Sweep",
    "UnitScores",
    "Units",
    "acdc",
    "discover",
    "edges_of",
    "interchange",
    "learned_scores",
    "load_circuit",
    "patching_sweep",
    "path_sweep",
    "run_circuits",
    "save_circuit",
    "stability",
    "unit_scores",
    "units_of",
    "validate",
]
