"""Sharding rules, meshes and process start-up."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tcircuits.models.config import ModelConfig
from tcircuits.models.params import ArraySpec, spec
from tcircuits.parallel import RULES, initialize, make_mesh, partition
from tcircuits.types import InputError


@dataclasses.dataclass(frozen=True)
class Grid:
    """Stands for a mesh where only its sizes matter."""

    shape: dict


def test_axes_go_where_the_rules_say():
    mesh = Grid({"data": 2, "model": 4})
    assert partition(ArraySpec((6, 8, 4, 3), ("layers", "embed", "heads", "head")), mesh) == PartitionSpec(
        None, None, "model", None
    )
    both = {**RULES, "embed": "data"}
    assert partition(ArraySpec((8, 12), ("embed", "vocab")), mesh, both) == PartitionSpec("data", "model")


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = Grid({"data": 2, "model": 4})
    assert partition(ArraySpec((8, 10), ("embed", "vocab")), mesh) == PartitionSpec(None, None)
    assert partition(ArraySpec((8, 3), ("batch", "kv_heads")), mesh) == PartitionSpec("data", None)


def test_two_axes_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="one mesh axis"):
        partition(ArraySpec((8, 8), ("heads", "mlp")), Grid({"data": 1, "model": 2}))


def test_an_axis_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule for"):
        partition(ArraySpec((8,), ("colour",)), Grid({"data": 1, "model": 2}))


def test_every_axis_of_the_models_has_a_rule():
    cfg = ModelConfig("gpt2", 2, 8, 2, 2, 4, 16, 10, 32, norm="layer", gated=False, position="learned", qkv_bias=True)
    for leaf in jax.tree.leaves(spec(cfg)):
        partition(leaf, Grid({"data": 2, "model": 2}))


@pytest.mark.parametrize("shape", [(0, 1), (3, 5), (2, -1), (1,)])
def test_a_mesh_that_does_not_cover_the_devices(shape):
    with pytest.raises(InputError, match="does not cover the"):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"COORDINATOR": "localhost:1"}, "not TCIRCUITS_NUM_PROCESSES, TCIRCUITS_PROCESS_ID"),
        ({"COORDINATOR": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"}, "0 <= id < number"),
        ({"COORDINATOR": "localhost:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"}, "must be numbers"),
    ],
)
def test_start_up_settings_that_do_not_fit(settings, message, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(f"TCIRCUITS_{name}", value)
    with pytest.raises(InputError, match=message):
        initialize()


def test_one_process_needs_no_start_up(monkeypatch):
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "DISTRIBUTED"):
        monkeypatch.delenv(f"TCIRCUITS_{name}", raising=False)
    initialize()
    assert jax.process_count() == 1


MESHES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tcircuits.parallel import make_mesh, mesh_of, place, spread_of
assert make_mesh().shape == {"data": 1, "model": 8}
for shape in ((1, 8), (2, 4), (8, 1)):
    mesh = make_mesh(shape)
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    whole = np.arange(16 * 8.0).reshape(16, 8)
    for spec in (P(), P("data"), P("model", "data"), P(None, "model")):
        calls = []
        def fill(parts):
            calls.append(sum(b.size for _, b in parts))
            for index, buffer in parts:
                buffer[...] = whole[index]
        x = place(whole.shape, np.float32, NamedSharding(mesh, spec), fill)
        assert np.array_equal(x, whole) and x.dtype == np.float32
        assert calls == [whole.size], "each element is made once, however many devices hold it"
        assert mesh_of(x) == mesh

print("placed")
mesh = make_mesh((2, 4))
assert mesh_of(jax.numpy.ones(2)) is None and spread_of(None, 8) is None
other = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))  # somebody's own: targets stay where they are
assert mesh_of(jax.device_put(whole, NamedSharding(other, P("x")))) is None
for heads, parts, size, pieces in ((8, 2, 6, 2), (9, 8, 16, 8), (9, 8, 12, 1)):
    spread = spread_of(mesh, heads)
    assert spread.n == parts, heads
    laid = jax.jit(lambda x: spread(x * 2, 1))(np.ones((3, size)))
    assert len({str(s.index) for s in laid.addressable_shards}) == pieces, (heads, size)
print("spread")
"""


def test_meshes_and_placing_on_eight_devices(run_python):
    assert run_python(MESHES, devices=8).stdout.split() == ["placed", "spread"]


TWO = """
import sys, numpy as np, jax
from tcircuits.parallel import initialize, is_lead, make_mesh
initialize()
from tcircuits.models.loading import load_model
from tcircuits.models.model import save_model
mesh = make_mesh((2, 2))
model = load_model(sys.argv[1], mesh=mesh)
save_model(model, sys.argv[2])
back = load_model(sys.argv[2], mesh=make_mesh((1, 4)))
for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(back.params), strict=True):
    assert bool((a == b).all())
print("lead" if is_lead() else "other", jax.process_count(), float(model.params.embed.sum()))
"""


@pytest.mark.slow
def test_two_processes_load_and_save_one_model(tmp_path):
    """Each process reads and holds its own part; a checkpoint of both is read back in another layout."""
    import socket
    import subprocess
    import sys

    from tests.conftest import ROOT, python_env
    from tests.models.folders import folder_of, read

    folder = folder_of("llama-mha", tmp_path)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {"TCIRCUITS_COORDINATOR": f"127.0.0.1:{port}", "TCIRCUITS_NUM_PROCESSES": "2"}
    command = [sys.executable, "-c", TWO, str(folder), str(tmp_path / "saved")]
    started = [
        subprocess.Popen(
            command, env=python_env(2, **settings, TCIRCUITS_PROCESS_ID=str(i)), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    done = [p.communicate(timeout=240) for p in started]
    assert [p.returncode for p in started] == [0, 0], done
    total = float(read("llama-mha")[1]["model.embed_tokens.weight"].astype(np.float64).sum())
    for (out, _), who in zip(done, ("lead", "other"), strict=True):
        name, count, value = out.split()[-3:]
        assert (name, count) == (who, "2")
        assert abs(float(value) - total) < 1e-2
