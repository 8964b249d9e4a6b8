"""Discovery and validation on a model whose circuit is known: one head copies what decides, all else is noise."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.discover import discover
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.units import Units, units_of
from tcircuits.circuits.validate import validate
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_planted_head_is_found_and_passes(planted, tmp_path):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    circuit, scores, choice = discover(model, behaviour, units, method="exact", least=0.0)
    assert circuit.labels()[0] == "head 0.1"
    assert circuit.size <= 2
    assert choice.taken is not None
    assert abs(1 - choice.faithfulness[choice.taken]) <= 0.1
    assert scores.forwards == 8 * (3 + 3)
    save_circuit(circuit, tmp_path / "found")
    again = load_circuit(tmp_path / "found.json")
    np.testing.assert_array_equal(again.mask, circuit.mask)
    assert again.units == units
    report = validate(model, behaviour, again, random=20)
    assert report.circuit.faithfulness.value == pytest.approx(choice.faithfulness[choice.taken], abs=0.1)
    assert report.circuit.phi.value == 1.0
    assert report.nothing.faithfulness.value == 0.0
    assert abs(report.complement.faithfulness.value) < 0.1
    assert report.needed is not None
    assert report.needed > 0
    runs = run_circuits(model, behaviour, again.mask[None] ^ np.eye(units.n, dtype=bool), units).circuits.metric.mean(1)
    moved = np.abs(runs - report.circuit.metric)
    inside, outside = moved[again.mask], moved[~again.mask]
    assert report.minimality is not None
    assert report.minimality.insertions == (~again.mask).sum()
    assert report.minimality.beaten == np.mean(inside > np.quantile(outside, 0.95)) > 0
    worst = max((1 + np.sum(outside >= x)) / (1 + len(outside)) for x in inside)
    assert report.minimality.p_worst == pytest.approx(worst)
    stable = again.about["stability"]
    assert stable["chance"] <= stable["low"] <= stable["mean"] <= 1
    assert report.baselines["gradient"].units == circuit.size
    assert 0 < report.nulls.p_faithfulness <= 1
    assert report.curves["size"].faithfulness[-1] == pytest.approx(1.0)
    json.dumps(report.as_dict(), allow_nan=False, default=lambda x: x.tolist())


def test_circuits_that_cannot_be_tested_are_refused(planted, tmp_path):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    nothing = Circuit(units, np.zeros(units.n, bool), model=model.name)
    with pytest.raises(InputError, match="no units"):
        validate(model, behaviour, nothing)
    some = replace(nothing, mask=np.ones(units.n, bool))
    with pytest.raises(InputError, match="of the model 'other'"):
        validate(model, behaviour, replace(some, model="other"))
    same = replace(behaviour, splits={k: replace(p, other=p.clean) for k, p in behaviour.splits.items()})
    with pytest.raises(InputError, match="too small to divide by"):
        discover(model, same, units, method="exact", least=0.0)
    with pytest.raises(InputError, match="give 1"):
        discover(model, behaviour, units, size=4, least=0.0)
    with pytest.raises(InputError, match="missing"):
        load_circuit(tmp_path / "absent")
    save_circuit(some, tmp_path / "c")
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="no file of tensors"):
        load_circuit(tmp_path / "c")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match="no circuit of version"):
        load_circuit(tmp_path / "c")


UNITS = {"kinds": ["head", "feature"], "n_layers": 2, "n_heads": 3, "layers": [0, 1], "d_feature": 4, "positions": None}
EDGES = {"kinds": ["edge"], "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "parallel": False, "attn_only": False}
DAMAGED = {
    "no object": ([], "units: a JSON list of 0 is no object"),
    "unknown": (UNITS | {"more": 1}, "'more' is unknown"),
    "kind": (UNITS | {"kinds": ["magic"]}, "of kinds"),
    "disorder": (UNITS | {"kinds": ["feature", "head"]}, "in this order"),
    "endless": (UNITS | {"n_layers": 10**9, "n_heads": 10**9}, "mask has shape"),
    "wrapping": (UNITS | {"kinds": ["head"], "n_layers": 2**52, "n_heads": 2**52}, "mask has shape"),
    "layers": (UNITS | {"layers": [0, 2]}, "dictionaries of layers"),
    "repeated": (UNITS | {"layers": [1, 1]}, "dictionaries of layers"),
    "positions": (UNITS | {"positions": 0}, "of sizes"),
    "infinite": (UNITS | {"d_feature": float("inf")}, "no whole number"),
    "edges": (EDGES | {"n_heads": 0}, "edges are of sizes"),
    "edges of text": (EDGES | {"parallel": "no"}, "no truth value"),
    "edges of some": (EDGES, "mask has shape"),
    "edges without end": (EDGES | {"n_layers": 9999, "n_heads": 9999, "n_kv_heads": 1}, "mask has shape"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_of_circuits_whose_units_cannot_be_are_refused(name, tmp_path):
    units, message = DAMAGED[name]
    own = Units(("head", "feature"), 2, 3, (0, 1), 4)
    save_circuit(Circuit(own, np.arange(14) % 2 == 0, model="m"), tmp_path / "c")
    said = json.loads((tmp_path / "c.json").read_text())
    assert said["units"] == UNITS
    (tmp_path / "c.json").write_text(json.dumps(said | {"units": units}))
    with pytest.raises(InputError, match=message) as error:
        load_circuit(tmp_path / "c")
    assert len(str(error.value)) < 1000
