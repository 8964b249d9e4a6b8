"""Circuits of a behaviour: units, running many of them, scores, discovery, and the test of what was found.

units = tc.units_of(model.cfg, ("head", "mlp"))
circuit, _, _ = tc.discover(model, behaviour, units, method="ig")
report = tc.validate(model, behaviour, circuit)
"""

from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.discover import discover
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.learning import Learning, learned_scores
from tcircuits.circuits.patching import Sweep, patching_sweep
from tcircuits.circuits.running import Answers, Runs, run_circuits
from tcircuits.circuits.scores import UnitScores, unit_scores
from tcircuits.circuits.units import Units, units_of
from tcircuits.circuits.validate import Report, validate

__all__ = [
    "Answers",
    "Circuit",
    "Edges",
    "Learning",
    "Report",
    "Runs",
    "Sweep",
    "UnitScores",
    "Units",
    "acdc",
    "discover",
    "edges_of",
    "eliminate",
    "learned_scores",
    "load_circuit",
    "patching_sweep",
    "run_circuits",
    "save_circuit",
    "unit_scores",
    "units_of",
    "validate",
]
