"""Statistics of features on eight devices, over a data axis, a model axis and both, are those of a single device."""

import pytest

pytestmark = pytest.mark.slow  # three meshes are compiled in a process of their own

PROGRAM = """
import dataclasses, tempfile
from pathlib import Path
import jax
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from tcircuits.models.model import Model
from tcircuits.models.params import spec as model_spec
from tcircuits.parallel import make_mesh, shardings
from tcircuits.transcoders.dictionary import spec
from tcircuits.transcoders.statistics import run
from tcircuits.transcoders.statistics.contexts import windows
from tcircuits.transcoders.statistics.keeping import EMPTY
from tcircuits.transcoders.statistics.run import feature_statistics
from tests import bridge
from tests.transcoders import evaluated

assert jax.device_count() == 8

class Cut(Exception):
    pass

def cut(done, total):
    raise Cut

def same(one, many):
    for name in ("token", "count", "in_bin", "drawn"):
        np.testing.assert_array_equal(getattr(many, name), getattr(one, name), err_msg=name)
    for name in ("value", "total", "least"):  # float64, summed in another order over at most 64 terms
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), rtol=1e-11, atol=1e-12, err_msg=name)

cases = (
    evaluated.case("gpt2", "plt-relu", n_rows=11),  # no multiple of a data axis
    evaluated.case("neox", "clt-jumprelu", n_rows=11),
    evaluated.case("gemma2", "neurons", n_rows=11),
)
for case in cases:
    model, d = bridge.model(case), bridge.transcoders(case.d)
    options = {"top": 3, "drawn": 4, "batch": 3, "parts": 2}
    one = feature_statistics(model, d, case.rows, **options)
    at = np.nonzero(one.token != EMPTY)
    around = windows(model, d, case.rows, one, at[0], at[1], one.token[at], width=2)
    run.SLOTS = 1  # steps are repeated with more room on some device
    for shape in ((2, 4), (8, 1), (1, 8)):
        mesh = make_mesh(shape)
        on = Model(model.cfg, jax.device_put(model.params, shardings(model_spec(model.cfg), mesh)), None, model.name)
        split = shardings(spec(d.cfg), mesh)
        named = [f.name for f in dataclasses.fields(d) if getattr(d, f.name) is not None]
        places = {n: getattr(split, n) for n in named if n not in ("cfg", "source")}
        put = {n: jax.device_put(getattr(d, n), place) for n, place in places.items()}
        spread = dataclasses.replace(d, **put)
        begun = run.Pass.begin(on, spread, run.corpus(on.cfg, case.rows, None), run.Keeping(3, 4), 3, 2, "highest")
        state = begun.start()
        if d.cfg.d_feature % shape[1] == 0:
            assert state.value.sharding.shard_shape(state.value.shape)[1] == d.cfg.d_feature // shape[1]
            print("split", shape[1])
        many = feature_statistics(on, spread, case.rows, **options)
        same(one, many)
        got = windows(on, spread, case.rows, many, at[0], at[1], many.token[at], width=2)
        np.testing.assert_allclose(got, around, rtol=1e-6, atol=1e-7)  # they are kept in float32
        if case is cases[0] and shape == (2, 4):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    feature_statistics(on, spread, case.rows, folder=Path(folder), every=0, progress=cut, **options)
                except Cut:
                    print("cut")
                again = feature_statistics(on, spread, case.rows, folder=Path(folder), every=1e9, **options)
            for name in ("value", "token", "count", "in_bin", "drawn", "total", "least"):
                np.testing.assert_array_equal(getattr(again, name), getattr(many, name), err_msg=name)
            print("resumed")
        print("same", case.name, shape)
"""


def test_every_mesh_finds_the_same(run_python):
    told = run_python(PROGRAM, devices=8, x64=True).stdout
    assert told.count("same") == 9
    assert told.count("cut") == told.count("resumed") == 1
    assert {f"split {n}" for n in (1, 4)} <= set(told.split("\n"))
