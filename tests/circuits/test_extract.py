"""Extraction: a planted circuit is found, and a call that was cut off ends with the same bits."""

import importlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_dictionary
from tcircuits import checkpoint
from tcircuits.circuits.extract import BEGUN, SEARCH, ExtractOptions
from tcircuits.circuits.meter import OWN
from tcircuits.circuits.stages import Stages, of_arrays
from tcircuits.circuits.trimming import PIECES, PREFIXES
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
module = importlib.import_module("tcircuits.circuits.extract")  # the package's name for it is the function
STAGES = ("graph", "tree", "search", "circuits")


@pytest.fixture(scope="module")
def case(planted):
    model, behaviour = planted
    d = random_dictionary(model, "plt-relu", np.arange(4), d_feature=24)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    return model, behaviour, units, d


def run(case, folder=None, **changes):
    model, behaviour, units, d = case
    options = ExtractOptions(**{"share": 0.2, "budget": 90} | changes)
    return tc.extract(model, behaviour, units, dictionary=d, options=options, stages=folder)


def test_the_planted_head_is_the_circuit(case):
    found = run(case)
    assert found.circuit.labels() == ["head 0.1"]
    assert found.choice.counts[found.choice.taken] == 1
    assert found.choice.faithfulness[0] == pytest.approx(1, abs=0.02)
    round_ = PIECES + PREFIXES + 2 * OWN  # one that was begun within the budget ends
    assert BEGUN < found.evaluations < 90 + round_
    assert set(found.seconds) == {*STAGES, "choice"}
    report = tc.validate(*case[:2], found.circuit, dictionary=case[3], random=10)
    assert report.circuit.faithfulness.value == pytest.approx(1, abs=0.02)
    assert abs(report.complement.faithfulness.value) < 0.02
    scores, masks = found.circuit.scores, found.circuit.mask
    assert scores[masks].min() > scores[~masks].max()


@pytest.mark.parametrize("cut", STAGES)
def test_a_call_that_was_cut_off_goes_on(case, tmp_path, monkeypatch, cut):
    """Cut while a stage is computed: those before are kept, and the end is the same as without."""
    whole = run(case)

    def killed(*_args, **_more):
        raise KeyboardInterrupt

    part = {"graph": "build_graph", "tree": "hierarchy", "search": "group_search", "circuits": "trim"}[cut]
    with monkeypatch.context() as patch:
        patch.setattr(module, part, killed)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path)
    there = STAGES[: STAGES.index(cut)]
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", *there}
    assert all(checkpoint.is_checkpoint(tmp_path / name) for name in there)
    again = run(case, tmp_path)
    assert set(again.seconds) == {"choice", *STAGES} - set(there)
    np.testing.assert_array_equal(again.circuit.mask, whole.circuit.mask)
    np.testing.assert_array_equal(again.circuit.scores, whole.circuit.scores)
    assert json.dumps(again.circuit.about) == json.dumps(whole.circuit.about)


def test_stages_of_another_call_are_refused(case, tmp_path):
    run(case, tmp_path)
    with pytest.raises(InputError, match="another call \\(options differ\\)"):
        run(case, tmp_path, budget=100)


def test_damaged_stages_are_named_and_remains_are_written_anew(case, tmp_path):
    whole = run(case, tmp_path)
    (tmp_path / "circuits" / checkpoint.COMPLETE).unlink()  # killed while it was written
    (tmp_path / "circuits.orbax-checkpoint-tmp").mkdir()
    again = run(case, tmp_path)
    assert set(again.seconds) == {"choice", "circuits"}
    np.testing.assert_array_equal(again.circuit.mask, whole.circuit.mask)
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", *STAGES}
    work = Stages(tmp_path, None)
    with pytest.raises(InputError, match=r"search.* is damaged \(order has shape"):
        work.stage("search", dict, *of_arrays(SEARCH | {"order": ("iu", ("K", 2))}, {}))
    for file in (tmp_path / "search" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    shutil.rmtree(tmp_path / "circuits")
    with pytest.raises(InputError, match=r"search.* is damaged"):
        run(case, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 0}, "at least 60"),
        ({"share": 0.0}, "share=0.0"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"effect": -1.0}, "effect=-1.0"),
        ({"nodes": 1}, "nodes=1"),
        ({"edges": 0}, "edges=0"),
    ],
)
def test_options_that_cannot_be(changes, words):
    with pytest.raises(InputError, match=words):
        ExtractOptions(**changes)


def test_what_cannot_be_extracted(case):
    model, behaviour, units, d = case
    p = behaviour["selection"]
    other = replace(behaviour, splits=dict(behaviour.splits) | {"selection": replace(p, right=p.wrong, wrong=p.right)})
    with pytest.raises(InputError, match="cannot do"):
        tc.extract(model, other, units, dictionary=d)
    with pytest.raises(InputError, match="features among its nodes"):
        tc.extract(model, behaviour, tc.units_of(model.cfg, ("head", "mlp")), dictionary=d)
