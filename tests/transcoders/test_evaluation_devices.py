"""An evaluation on eight devices, over a data axis, a model axis and both, is the one on a single device."""

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import dataclasses
import jax
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from tcircuits.models.model import Model
from tcircuits.models.params import spec as model_spec
from tcircuits.parallel import make_mesh, shardings
from tcircuits.transcoders.dictionary import spec
from tcircuits.transcoders.evaluation.table import evaluate
from tests import bridge
from tests.transcoders import evaluated

assert jax.device_count() == 8
cases = (evaluated.case("gpt2", "clt-jumprelu"), evaluated.case("gemma2", "plt-topk"), evaluated.sae("llama", "mlp_in"))
for case in cases:
    model, d = bridge.model(case), bridge.transcoders(case.d)
    one = evaluate(model, d, case.rows, batch=3, draws=5)
    for shape in ((2, 4), (8, 1), (1, 8)):
        mesh = make_mesh(shape)
        on = Model(model.cfg, jax.device_put(model.params, shardings(model_spec(model.cfg), mesh)), None, model.name)
        split = shardings(spec(d.cfg), mesh)
        named = [f.name for f in dataclasses.fields(d) if getattr(d, f.name) is not None]
        places = {n: getattr(split, n) for n in named if n not in ("cfg", "source")}
        put = {n: jax.device_put(getattr(d, n), place) for n, place in places.items()}
        assert not put["w_enc"].is_fully_replicated or shape[1] == 1
        many = evaluate(on, dataclasses.replace(d, **put), case.rows, batch=3, draws=5)
        for a, b in zip(jax.tree.leaves((one.sums, dataclasses.astuple(one.losses))),
                        jax.tree.leaves((many.sums, dataclasses.astuple(many.losses))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
        print("same", case.name, shape)
"""


def test_every_mesh_gives_the_same_figures(run_python):
    told = run_python(PROGRAM, devices=8, x64=True).stdout
    assert told.count("same") == 9
