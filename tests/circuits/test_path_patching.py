"""Sweeps of paths: each share from a run without that edge; a planted path; names; bad input; the page."""

import json

import numpy as np
import pytest

from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.path_patching import path_sweep, strongest_paths
from tcircuits.circuits.running import run_circuits
from tcircuits.types import InputError
from tcircuits.view.path_patching import as_dict, write_paths

from .cases import random_behaviour
from .test_running import sized

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_each_share_is_what_is_lost_without_the_edge(x64):
    model = sized("llama")
    edges, behaviour = edges_of(model.cfg), random_behaviour(model)
    sweep = path_sweep(model, behaviour, ("logits", "v", "head 1.1 q"))
    assert sweep.readers == ("head 0.0 v", "head 1.1 q", "head 1.0 v", "logits")
    assert sweep.writers == ("embed", "head 0.0", "head 0.1", "mlp 0", "head 1.0", "head 1.1", "mlp 1")
    assert np.isfinite(sweep.shares).sum() == 1 + 4 + 4 + 7
    labels = [edges.label(u) for u in range(edges.n)]
    for reader, writer in (("head 1.1 q", "mlp 0"), ("logits", "head 0.1"), ("head 0.0 v", "embed")):
        masks = np.ones((2, edges.n))
        masks[0, labels.index(f"{writer} -> {reader}")] = 0
        masks[1] = 0
        runs = run_circuits(model, behaviour, masks, edges)
        lost, gap = (
            runs.model.metric - runs.circuits.metric[0],
            runs.model.metric.mean() - runs.circuits.metric[1].mean(),
        )
        at = sweep.readers.index(reader), sweep.writers.index(writer)
        assert sweep.shares[at] == pytest.approx(lost.mean() / gap, abs=1e-9)
        assert sweep.errors[at] == pytest.approx(np.std(lost / gap) / np.sqrt(len(lost)), abs=1e-9)


def test_the_planted_path_carries_everything(planted, tmp_path):
    model, behaviour = planted
    sweep = path_sweep(model, behaviour, ("all",))
    first, second, third = strongest_paths(sweep, 3)
    assert {first[:2], second[:2]} == {("embed", "head 0.1 v"), ("head 0.1", "logits")}
    assert min(first[2], second[2]) > 0.8
    assert abs(third[2]) < 0.2
    told = as_dict(sweep)
    json.dumps(told, allow_nan=False)
    assert told["shares"][0][1] is None
    page = write_paths(sweep, "planted", tmp_path / "paths.html").read_text(encoding="utf-8")
    assert "head 0.1 v" in page
    with pytest.raises(InputError, match=r"unknown; there are head 0\.0 q"):
        path_sweep(model, behaviour, ("head 7.0 q",))
    with pytest.raises(InputError, match="unknown"):
        path_sweep(model, behaviour, ())
