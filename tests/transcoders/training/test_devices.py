"""Training on eight devices and in two processes against one device; its program lowered for accelerators."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training_meshes import CFG, FILL, RECIPES, computed, model_on, resumed
from tcircuits.transcoders.training.run import make_programs

PROGRAM = """
import json
import jax
jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation
from experiments.training_meshes import compare
wanted = (("topk, skip", (4, 2)), ("nothing divides", (2, 4)), ("clt jumprelu", (4, 2)))
rows = [compare((name,), (shape,)) for name, shape in wanted]
print(json.dumps(rows))
"""


def test_eight_devices_give_the_losses_of_one(run_python):
    even, odd, cross = json.loads(run_python(PROGRAM, devices=8).stdout.splitlines()[-1])
    for rows in (even, odd, cross):
        assert [r["apart"] < 1e-5 for r in rows] == [True, True], rows
        assert [r["state_bytes"] == r["state_bytes_computed"] for r in rows] == [True, True]
        assert all(0 < r["argument_bytes_compiled"] - r["state_bytes"] <= r["other_bytes"] + 4 for r in rows), rows
    assert even[1]["gigaflop"] < 0.3 * even[0]["gigaflop"]  # tokens over four, features over two
    assert even[1]["state_bytes"] < 0.65 * even[0]["state_bytes"]  # features over two; the skip matrices are on both
    assert odd[1]["state_bytes"] == odd[0]["state_bytes"]  # 63 features over four


def test_bytes_of_a_state_by_hand():
    by_array = 2 * 64 * 16 * 2 + 2 * 64 + 2 * 16 * 2 + 2 * 16 * 16  # encoder and decoder, bias; b_dec and b_in; skip
    assert computed(RECIPES["topk, skip"], 1) == 4 * (3 * by_array + 2 * 64 + 1 + 2 + 2 * 2)
    assert computed(RECIPES["nothing divides"], 4) == computed(RECIPES["nothing divides"], 1)


@pytest.mark.slow
def test_a_run_goes_on_elsewhere(tmp_path):
    rows = {row["run"]: row for row in resumed(tmp_path, ("topk, skip",))}
    ways = {"one", "4x2", "4x2 again", "1x8", "2x1", "two processes", "two processes from the start"}
    assert rows.keys() == ways
    assert {way: row["apart"] < 1e-5 for way, row in rows.items()} == dict.fromkeys(ways, True), rows
    assert all(row["fills"] == 25 for row in rows.values())
    assert rows["4x2 again"]["bits_of_4x2"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "name", ["topk, dense", "batchtopk", "jumprelu", "clt topk, dense", "clt jumprelu", "accumulate 2"]
)
def test_a_fill_lowers_for(name, platform):
    recipe, model = RECIPES[name], model_on(None)
    programs = make_programs(model, recipe, FILL, None)
    tokens = jax.ShapeDtypeStruct((FILL.chunks(recipe.batch), FILL.rows, FILL.context), jnp.int32)
    state = jax.eval_shape(programs.first, model.params, tokens)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    made = jax.export.export(programs.fill, platforms=[platform])(model.params, state, tokens, number)
    assert made.platforms == (platform,)
    assert len(made.mlir_module_serialized) > 1000
    assert [a.shape for a in made.out_avals[-6:]] == [(FILL.steps, CFG.n_layers)] * 6
    assert np.prod(made.in_avals[-2].shape) == FILL.n_rows(recipe.batch) * FILL.context
