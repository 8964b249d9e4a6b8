"""Folders that SAELens and sparsify wrote give what they computed; with the tools at hand, every kind both ways.

The whole comparison runs where environment variables name interpreters that have the tools:
TCIRCUITS_CIRCUIT_TRACER_PYTHON, TCIRCUITS_SAE_LENS_PYTHON, TCIRCUITS_SPARSIFY_PYTHON.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, format_cases, format_readers
from experiments.rival_readers import TOOLS
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.loading import load_transcoders

GOLDEN = Path(__file__).parent / "golden" / "rival_folders"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/*/reconstruction.npz"))
ACTIVATIONS = {"jumprelu": "jumprelu", "jumprelu-skip": "jumprelu"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_folders_that_their_owners_wrote(folder, x64):
    """Within rounding of float64, and the same active features."""
    tool, name = folder.parent.name, folder.name
    d, wanted = load_transcoders(folder, dtype="float64"), np.load(folder / "reconstruction.npz")
    assert 0.1 < (wanted["f"] != 0).mean() < 0.9
    found = format_readers.judge(d, wanted["x"], (wanted["f"], wanted["y"]), None)
    assert found["verdict"] == "same", found
    assert d.cfg.skip == ("skip" in name)
    assert d.cfg.activation == ("topk" if tool == "sparsify" else ACTIVATIONS.get(name, "relu"))
    assert (d.cfg.reads, d.cfg.writes) == ("mlp_in", "mlp_raw" if tool == "sparsify" else "mlp_out")


def test_there_are_folders_of_both_tools():
    assert [path.parent.name for path in FOLDERS] == 4 * ["sae-lens"] + 3 * ["sparsify"]


def dictionary(**more):
    cfg = TranscoderConfig("transcoder", 2, 4, 12, (0, 1), skip=True, **more)
    return format_cases.double(format_cases.random_arrays(cfg, "float32", 3))


def wrong(d, name):
    match name:
        case "the skip is transposed":
            return dataclasses.replace(d, w_skip=d.w_skip.swapaxes(1, 2))
        case "a bias is left out":
            return dataclasses.replace(d, b_dec=d.b_dec.at[1, 2].set(0.0))
        case "layers are swapped":
            return jax.tree.map(lambda a: a[::-1], d)
        case "the decoder was rounded":
            return dataclasses.replace(d, w_dec=d.w_dec.astype(jnp.bfloat16).astype(jnp.float64))
        case "one feature more":
            return dataclasses.replace(d, threshold=d.threshold.at[0, 5].set(-10.0))


@pytest.mark.parametrize(
    "name",
    [
        *("the skip is transposed", "a bias is left out", "layers are swapped", "the decoder was rounded"),
        "one feature more",
    ],
)
def test_a_wrong_reader_is_found(x64, name):
    d, x = dictionary(activation="jumprelu"), np.random.default_rng(0).normal(size=(2, 9, 4))
    assert format_readers.judge(d, x, format_readers.computed(d, x), None)["verdict"] == "same"
    found = format_readers.judge(d, x, format_readers.computed(wrong(d, name), x), None)
    assert found["verdict"] == "differs"
    assert found["max_difference"] > 1e-4
    assert (found["other_active"] > 0) == (name in ("layers are swapped", "one feature more"))


def test_what_a_reader_ignores_is_named(x64):
    d, x = dictionary(activation="topk", k=3), np.random.default_rng(0).normal(size=(2, 9, 4))
    for verdict, other in format_readers.alternatives(d):
        theirs = format_readers.computed(other, x)
        assert format_readers.judge(d, x, theirs, None)["verdict"] == verdict
    assert format_readers.judge(d, x, theirs, format_readers.computed(d, x))["verdict"] == verdict
    neither = (theirs[0], theirs[1] + 1.0)
    assert format_readers.judge(d, x, neither, format_readers.computed(d, x))["verdict"] == "same as it reads back"


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_itself(tool):
    variable = f"TCIRCUITS_{tool.upper().replace('-', '_')}_PYTHON"
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"set {variable} to an interpreter that has {tool}")
    rows = format_readers.compare(tool, Path(python))["rows"]
    assert len(rows) >= 10
    assert [row for row in rows if not row["as_expected"]] == []


def test_the_committed_result_is_as_expected():
    found = json.loads((common.RESULTS / "format_readers.json").read_text(encoding="utf-8"))["figures"]
    assert set(found["tools"]) == set(TOOLS)
    rows = [row for tool in found["tools"].values() for row in tool["rows"]]
    assert len(rows) == found["summary"]["cases"] > 60
    assert [row for row in rows if not row["as_expected"]] == []
    for row in rows:
        assert (row["verdict"] == "same") or row["why"], row
        key = (row["tool"], row["way"], row["case"])
        assert row["expected"] == format_cases.EXPECTED.get(key, "same")
