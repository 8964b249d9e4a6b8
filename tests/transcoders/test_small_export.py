"""The export of two layers of SmolLM2 that is kept with the source: what it is, and that it belongs where it says."""

import json
import warnings

import numpy as np
import pytest

import tcircuits as tc
from experiments.common import RESULTS, ROOT
from tcircuits.models.known import known_config
from tcircuits.transcoders.selfcheck import check_sites

FOLDER = ROOT / "experiments" / "models" / "smollm2-transcoders"


def test_the_export_is_what_its_result_says():
    d = tc.load_transcoders(FOLDER, model=known_config("smollm2-135m"))
    told = json.loads((RESULTS / "smollm2_transcoders_export.json").read_text(encoding="utf-8"))
    assert (d.cfg.kind, d.cfg.layers, d.cfg.d_feature, d.cfg.k) == ("transcoder", (2, 6), 3 * 576, 32)
    assert told["figures"]["held_out"]["features"] == 2 * d.cfg.d_feature
    assert told["figures"]["held_out"]["all"]["layers"] == [2, 6]
    assert np.isfinite(np.asarray(d.w_dec)).all()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 9e6


@pytest.mark.slow
@pytest.mark.smollm2
def test_it_explains_the_layers_that_it_names(smollm2):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = tc.load_transcoders(FOLDER, model=smollm2)
    found = check_sites(smollm2, d)
    assert found.best == found.stated == ("mlp_in", "mlp_out")
    assert max(found.layers) < 1
