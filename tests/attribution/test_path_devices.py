"""Paths with model and dictionary spread over eight devices are those of one device."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_dictionary, random_model

pytestmark = pytest.mark.slow  # a process of its own, for its devices

PROGRAM = """
import sys
import jax
folder = sys.argv[1]
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import tcircuits as tc
from tcircuits.parallel import make_mesh
from tcircuits.transcoders import dictionary
dictionary.BLOCK = 32 * 40  # encoders are read in parts, as large ones are
mesh = make_mesh((2, 4))
model = tc.load_model(folder + "/model", mesh=mesh)
d = tc.load_transcoders(folder + "/set", model=model, mesh=mesh)
graph = tc.find_paths(model, d, np.load(folder + "/tokens.npy"), target=tc.Difference(3, 5))
tc.save_paths(graph, folder + "/eight.npz")
print(len(d.w_enc.sharding.device_set), d.w_enc.shape[1] // d.w_enc.addressable_shards[0].data.shape[1])
"""


def test_the_paths_are_the_same_on_eight_devices(tmp_path):
    model = random_model("llama")
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 7)
    tc.save_model(model, tmp_path / "model")
    d = random_dictionary(model, "plt-jumprelu", tokens, d_feature=320, share=0.04)
    tc.save_transcoders(d, tmp_path / "set")
    np.save(tmp_path / "tokens.npy", tokens)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "4"], "the dictionary's features are spread"
    one = tc.find_paths(model, d, tokens, target=tc.Difference(3, 5))
    eight = tc.load_paths(tmp_path / "eight.npz")
    assert one.n_paths == 75
    for name in ("level", "parent", "kind", "layer", "pos", "index"):
        np.testing.assert_array_equal(getattr(eight, name), getattr(one, name))
    # float32 sums over a sharded axis are taken in another order: a few ulp of what the root reads
    for name in ("value", "error", "bias", "pruned"):
        np.testing.assert_allclose(getattr(eight, name), getattr(one, name), rtol=0, atol=1e-6 * one.size[0])
    assert eight.gap.max() < 1e-6
