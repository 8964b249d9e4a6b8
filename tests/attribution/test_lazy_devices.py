"""A set on disk on one device, on eight, and on two processes: the same graph, and its arrays are spread."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_dictionary, random_model

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import jax
count, shape, folder, out = int(sys.argv[1]), tuple(int(x) for x in sys.argv[2].split("x")), sys.argv[3], sys.argv[4]
jax.config.update("jax_num_cpu_devices", count)
import numpy as np
from tcircuits.parallel import initialize, make_mesh
initialize()
import tcircuits as tc
from tcircuits.attribution.narrowing import narrowed
from tcircuits.attribution.promote import promoted
mesh = None if shape == (1, 1) else make_mesh(shape)
model = tc.load_model(folder + "/model", mesh=mesh)
d = tc.open_transcoders(folder + "/set", model=model, mesh=mesh)
tokens = np.load(folder + "/tokens.npy")
graph = tc.attribute(model, d, tokens, targets=[3, 5])
words = promoted(model, d, graph, k=2)
some, _ = narrowed(model, d, [tokens], [False])
np.savez(out, features=graph.features, adjacency=graph.dense(), gap=graph.max_row_gap,
         words=[[t for t, _ in sum(words[i], [])] for i in sorted(words)],
         spread=[str(x) for x in (some.w_dec.sharding, some.w_enc.addressable_shards[0].data.shape, some.w_enc.shape)])
"""


def start(folder: Path, name: str, count: int, shape: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(count), shape, str(folder), str(folder / f"{name}.npz")],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*processes: subprocess.Popen) -> None:
    for p in processes:
        out, _ = p.communicate(timeout=500)
        assert p.returncode == 0, out


def test_the_graph_is_the_same_on_every_mesh(tmp_path):
    model = random_model("llama")
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 7)
    tc.save_model(model, tmp_path / "model")
    tc.save_transcoders(random_dictionary(model, "clt-jumprelu", tokens, d_feature=300, share=0.04), tmp_path / "set")
    np.save(tmp_path / "tokens.npy", tokens)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    finished(start(tmp_path, "one", 1, "1x1"))
    finished(start(tmp_path, "eight", 8, "2x4"))
    shared = {"TCIRCUITS_COORDINATOR": f"127.0.0.1:{port}", "TCIRCUITS_NUM_PROCESSES": "2"}
    finished(*[start(tmp_path, f"process{i}", 2, "2x2", TCIRCUITS_PROCESS_ID=str(i), **shared) for i in (0, 1)])
    one = np.load(tmp_path / "one.npz")
    for name, ways in (("eight", 4), ("process0", 2), ("process1", 2)):
        other = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(other["features"], one["features"])
        np.testing.assert_array_equal(other["words"], one["words"])
        # float32 sums over a sharded axis are taken in another order: a few ulp of the row's total
        total = np.abs(one["adjacency"]).sum(1, keepdims=True) + 1e-6
        assert np.abs((other["adjacency"] - one["adjacency"]) / total).max() < 1e-6, name
        assert float(other["gap"]) < 1e-6
        where, part, whole = other["spread"]
        assert "'model'" in where
        assert numbers(part)[1] * ways == numbers(whole)[1], "features are spread over the devices"


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.strip("()").split(",")]
