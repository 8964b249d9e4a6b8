"""ACDC against the algorithm as a loop over single runs."""

import numpy as np
import pytest

from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.running import run_circuits
from tcircuits.types import InputError

from .cases import random_behaviour
from .test_running import sized

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize(("family", "ablation"), [("gpt2", "resample"), ("neox", "mean")])
def test_the_loop_keeps_what_single_runs_keep(family, ablation, x64):
    model = sized(family)
    edges, behaviour, threshold = edges_of(model.cfg), random_behaviour(model), 0.02
    mask = np.ones(edges.n)

    def divergence(mask):
        runs = run_circuits(model, behaviour, mask[None], edges, ablation=ablation, split="attribution")
        return float(runs.circuits.kl.mean())

    now = divergence(mask)
    for reader in range(len(edges.allowed))[::-1]:
        for writer in np.flatnonzero(edges.allowed[reader])[::-1]:
            unit = int(np.flatnonzero((edges.pairs == (reader, writer)).all(1))[0])
            tried = mask.copy()
            tried[unit] = 0
            after = divergence(tried)
            if after - now < threshold:
                mask, now = tried, after
    found = acdc(model, behaviour, edges, threshold=threshold, ablation=ablation)
    np.testing.assert_array_equal(found.mask, mask > 0)
    assert 0 < found.size < edges.n
    assert found.about["cost"]["forwards"] == 3 * (edges.n + 3)


def test_the_planted_edges_are_kept_and_no_threshold_is_refused(planted):
    model, behaviour = planted
    edges = edges_of(model.cfg)
    assert set(acdc(model, behaviour, edges, threshold=0.1).labels()) == {"embed -> head 0.1 v", "head 0.1 -> logits"}
    with pytest.raises(InputError, match="positive"):
        acdc(model, behaviour, edges, threshold=0.0)
