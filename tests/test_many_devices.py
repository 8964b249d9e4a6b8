"""One graph on one device, on eight, and on two processes: the same features, the same edges to rounding."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.transcoders import ct_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0"),
]

PROGRAM = """
import sys
import jax
count, shape = int(sys.argv[1]), tuple(int(x) for x in sys.argv[2].split("x"))
out, folder = sys.argv[3:]
jax.config.update("jax_num_cpu_devices", count)
jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation
import numpy as np
from tcircuits.parallel import initialize, make_mesh
initialize()
import tcircuits as tc
mesh = None if shape == (1, 1) else make_mesh(shape)
model = tc.load_model("glassllm", mesh=mesh)
neurons = tc.load_transcoders("neurons", model=model)
# Scores of the last that is taken and of the next are .08 % apart: rounding must move them by less.
graph = tc.attribute(model, neurons, "Once upon a time", max_features=200)
kept = tc.prune(graph)
run = tc.intervene(model, neurons, "Once upon a time", tc.feature_edit(1, 5, 2.0))
from tcircuits.transcoders.selfcheck import check_sites
loaded = tc.load_transcoders(folder, model=model, mesh=mesh, check=False)
whole = tc.attribute(model, loaded, "Once upon a time", max_features=100, targets=[" the"])
np.savez(out, fvu=np.array(list(check_sites(model, loaded).fvu.values())), whole_features=whole.features,
         whole=whole.dense(), features=graph.features, adjacency=graph.dense(), influence=graph.influence,
         nodes=kept.node_mask, gap=graph.max_row_gap, logits=run.logits)
"""


def run(folder: Path, name: str, count: int, shape: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(count), shape, str(folder / f"{name}.npz"), str(folder / "dictionary")],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*processes: subprocess.Popen) -> None:
    for p in processes:
        out, _ = p.communicate(timeout=400)
        assert p.returncode == 0, out


def test_the_graph_is_the_same_on_every_mesh(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "dictionary").mkdir()
    ct_files.per_layer(tmp_path / "dictionary", n_layers=4, d_model=128, d_feature=64, threshold=True, skip=True)
    finished(run(tmp_path, "one", 1, "1x1"))
    finished(run(tmp_path, "eight", 8, "2x4"))
    shared = {"TCIRCUITS_COORDINATOR": f"127.0.0.1:{port}", "TCIRCUITS_NUM_PROCESSES": "2"}
    pair = [run(tmp_path, f"process{i}", 2, "2x2", TCIRCUITS_PROCESS_ID=str(i), **shared) for i in (0, 1)]
    finished(*pair)
    one = np.load(tmp_path / "one.npz")
    for name in ("eight", "process0", "process1"):
        other = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(other["features"], one["features"])
        # float32 sums over a sharded axis are taken in another order: a few ulp of the row's total
        total = np.abs(one["adjacency"]).sum(1, keepdims=True) + 1e-6
        assert np.abs((other["adjacency"] - one["adjacency"]) / total).max() < 1e-6, name
        np.testing.assert_allclose(other["influence"], one["influence"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-5, atol=1e-4)
        assert float(other["gap"]) < 1e-6
        np.testing.assert_array_equal(other["whole_features"], one["whole_features"])
        total = np.abs(one["whole"]).sum(1, keepdims=True) + 1e-6
        assert np.abs((other["whole"] - one["whole"]) / total).max() < 2e-6, name
        np.testing.assert_allclose(other["fvu"], one["fvu"], rtol=1e-4)
    first, second = (np.load(tmp_path / f"process{i}.npz") for i in (0, 1))
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key])


WORK = """
import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from tcircuits.models.config import ModelConfig
from tcircuits.parallel import make_mesh
from tcircuits.planning.programs import abstracted, stages
from tcircuits.planning.request import Request
from tcircuits.transcoders.config import TranscoderConfig

jax.config.update("jax_enable_compilation_cache", False)  # a program that is read back has no text
alone = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
cfg = ModelConfig("llama", 4, 96, 3, 3, 32, 384, 512, 128, rotary_dim=32)
d = TranscoderConfig("transcoder", 4, 96, 256, (0, 1, 2, 3), "relu")
for mesh in (alone, make_mesh((2, 2)), make_mesh((1, 4)), make_mesh((4, 1))):
    made = list(stages(abstracted(Request(cfg, d, 32, 200, 16, 4, 64), mesh)))
    own = [s.cost.flops for s in made if s.name.startswith(("rows", "influence sketch"))]
    print(*own, sum(s.cost.flops for s in made))
"""


def test_a_device_of_four_does_its_share_of_the_work_where_heads_do_not_divide(run_python):
    """Three heads divide by no number of devices: targets and probes are spread over all of them instead. Positions
    are spread over data while the model runs.
    """
    out = run_python(WORK, devices=4).stdout
    one, *others = [np.array(line.split(), float) for line in out.splitlines()]
    assert len(others) == 3
    for other in others:
        assert (other <= one / 3.6).all(), other / one
