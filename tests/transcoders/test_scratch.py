"""Decoders of a prompt's active features in a file: the same numbers, and the same graph."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tcircuits as tc
from experiments.toys import random_dictionary, random_model
from tcircuits.numerics import wide
from tcircuits.parallel import make_mesh
from tcircuits.transcoders import scratch as module
from tcircuits.transcoders.lazy import narrow
from tcircuits.transcoders.scratch import in_file
from tcircuits.types import InputError

TOKENS = np.random.default_rng(3).integers(1, 60, 9)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and the folders of a cross-layer set in float32 and in bfloat16."""
    model = random_model("llama", d_vocab=64)
    d = random_dictionary(model, "clt-jumprelu", TOKENS, d_feature=150, share=0.1)
    exact, short = (tmp_path_factory.mktemp(name) / "set" for name in ("exact", "short"))
    for folder in (exact, short):
        tc.save_transcoders(d, folder)
    for file in short.glob("*.safetensors"):
        save_file({k: x.astype(ml_dtypes.bfloat16) for k, x in load_file(file).items()}, file)
    return model, exact, short


@pytest.mark.parametrize("short", [False, True])
def test_graphs_are_those_of_decoders_in_memory(files, short, tmp_path):
    model, folder = files[0], files[1 + short]
    here = tc.attribute(model, tc.open_transcoders(folder, model=model), TOKENS, max_features=40)
    there = tc.attribute(model, tc.open_transcoders(folder, model=model, scratch=tmp_path), TOKENS, max_features=40)
    np.testing.assert_array_equal(here.features, there.features)
    np.testing.assert_array_equal(here.weight, there.weight)
    np.testing.assert_array_equal(here.influence, there.influence)
    assert not list(tmp_path.iterdir())


def test_bfloat16_files_lie_there_as_they_are(files, tmp_path):
    model, exact, short = files
    x = np.random.default_rng(0).normal(size=(model.cfg.n_layers, 5, model.cfg.d_model)).astype(np.float32)
    for folder, dtype in ((exact, jnp.float32), (short, jnp.uint16)):
        some = narrow(tc.open_transcoders(folder, model=model, scratch=tmp_path), x).transcoders
        usual = narrow(tc.open_transcoders(folder, model=model), x).transcoders
        assert some.w_dec.dtype == dtype
        np.testing.assert_array_equal(wide(some.w_dec), usual.w_dec)


def test_pages_are_taken_over_as_they_are(tmp_path):
    """No copy is made: the array's numbers lie in a mapping of the file."""
    wanted = np.random.default_rng(0).normal(size=(3, 40, 64)).astype(ml_dtypes.bfloat16)
    addresses = []

    def fill(buffer):
        addresses.append(buffer.ctypes.data)
        buffer[...] = wanted

    x = in_file(tmp_path, wanted.shape, ml_dtypes.bfloat16, fill)
    assert x.unsafe_buffer_pointer() == addresses[0]
    rows = jax.jit(lambda w, i: wide(w[1, i]))(x, jnp.asarray([3, 0]))
    np.testing.assert_array_equal(rows, wanted[1, [3, 0]].astype(np.float32))


def test_a_loop_that_looks_up_rows_widens_no_others():
    """What XLA's compiler for the CPU does to an array of bfloat16 up to JAX 0.10, and no more in 0.12."""

    def sums(w, index):
        return jax.lax.fori_loop(0, len(w), lambda i, total: total + wide(w[i, index]), jnp.zeros((2, 64)))

    bits, index = jax.ShapeDtypeStruct((16, 1000, 64), jnp.uint16), jax.ShapeDtypeStruct((2,), jnp.int32)
    found = jax.jit(sums).lower(bits, index).compile().memory_analysis()
    assert found.temp_size_in_bytes < bits.size // 10


def test_what_is_refused(files, tmp_path, monkeypatch):
    model, exact, _ = files
    with pytest.raises(InputError, match="is no folder; make it"):
        tc.open_transcoders(exact, model=model, scratch=tmp_path / "none")
    with pytest.raises(InputError, match="give float32 or bfloat16"):
        tc.open_transcoders(exact, model=model, scratch=tmp_path, dtype=jnp.float16)
    with pytest.raises(InputError, match="one CPU device"):
        tc.open_transcoders(exact, model=model, scratch=tmp_path, mesh=make_mesh((1, 1)))
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="give a scratch folder on another disk"):
        tc.attribute(model, tc.open_transcoders(exact, model=model, scratch=tmp_path), TOKENS, max_features=40)
