"""Circuits on eight devices are those on one."""

import pytest

pytestmark = pytest.mark.slow  # two meshes are compiled in a process of their own

PROGRAM = """
import jax
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from experiments.toys import random_dictionary, random_model
from tcircuits.circuits import run_circuits, unit_scores, units_of
from tcircuits.models.model import Model
from tcircuits.models.params import spec
from tcircuits.parallel import make_mesh, shardings
from tests.circuits.cases import random_behaviour

assert jax.device_count() == 8
sizes = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 31, "n_ctx": 12}
model = random_model("llama", dtype="float64", **sizes, n_kv_heads=2)
d = random_dictionary(model, "plt-relu", np.arange(8), d_feature=24)
behaviour, units = random_behaviour(model), units_of(model.cfg, ("head", "feature"), d.cfg)
masks = (np.random.default_rng(0).uniform(size=(5, units.n)) < 0.5).astype(float)
how = {"dictionary": d, "ablation": "mean"}
one = run_circuits(model, behaviour, masks, units, **how)
scores = unit_scores(model, behaviour, units, **how)
for shape in ((8, 1), (2, 4)):
    mesh = make_mesh(shape)
    on = Model(model.cfg, jax.device_put(model.params, shardings(spec(model.cfg), mesh)), None, model.name)
    many = run_circuits(on, behaviour, masks, units, **how)
    for name in ("metric", "kl"):  # float64, summed in another order
        np.testing.assert_allclose(getattr(many.circuits, name), getattr(one.circuits, name), rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(many.circuits.choice, one.circuits.choice)
    spread = unit_scores(on, behaviour, units, **how)
    np.testing.assert_allclose(spread.by_prompt, scores.by_prompt, rtol=1e-8, atol=1e-10)
print("same")
"""


def test_eight_devices_are_one(run_python):
    done = run_python(PROGRAM, devices=8, x64=True)
    assert done.stdout.splitlines()[-1] == "same"
