"""What is written reads back bit for bit, in the layout that circuit-tracer has, whole or not at all."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tcircuits.transcoders import saving
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.describing import describe, inspect
from tcircuits.transcoders.dictionary import Transcoders, neurons, reconstruct, spec
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.types import InputError

from . import ct_files as ct

L, D, F = ct.L, ct.D, ct.F
ALL = tuple(range(L))
CONFIGS = {
    "plt relu": TranscoderConfig("transcoder", L, D, F, ALL),
    "plt jumprelu skip": TranscoderConfig("transcoder", L, D, F, ALL, "jumprelu", skip=True, reads="normalized"),
    "plt topk signed": TranscoderConfig("transcoder", L, D, F, ALL, "topk", 3, True, reads="resid_mid"),
    "plt topk": TranscoderConfig("transcoder", L, D, F, ALL, "topk", 3, writes="mlp_raw"),
    "plt batchtopk": TranscoderConfig("transcoder", L, D, F, ALL, "batchtopk"),
    "plt some layers": TranscoderConfig("transcoder", 6, D, F, (1, 4), skip=True, fill="neurons"),
    "plt square": TranscoderConfig("transcoder", L, D, D, ALL, skip=True),
    "plt one layer": TranscoderConfig("transcoder", 1, D, F, (0,)),
    "clt relu": TranscoderConfig("clt", L, D, F, ALL, reads="resid_mid"),
    "clt jumprelu skip": TranscoderConfig("clt", L, D, F, ALL, "jumprelu", skip=True),
}


def make(cfg, dtype="float32", seed=0) -> Transcoders:
    rng = np.random.default_rng(seed)
    d = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype), spec(cfg))
    positive = None if d.threshold is None else abs(d.threshold)
    return dataclasses.replace(d, cfg=cfg, source="test", threshold=positive)


def assert_same(a: Transcoders, b: Transcoders):
    assert a.cfg == b.cfg
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["circuit-tracer", "orbax"])
def test_round_trip(tmp_path, name, dtype, format):
    d = make(CONFIGS[name], dtype)
    save_transcoders(d, tmp_path / "out", format, model_name="toy")
    # Nobody says whether the model has post-norms; with one, `mlp_raw` stays what it is.
    assert_same(load_transcoders(tmp_path / "out", dtype=dtype), d)
    assert_same(load_transcoders(tmp_path / "out", dtype=dtype, model=ct.model(d.cfg.n_layers, post_norm=True)), d)
    facts = inspect(tmp_path / "out")
    assert facts.pop("format") == {"orbax": "tcircuits"}.get(format, format)
    assert facts.pop("model", None) in ("toy", None)
    assert facts == describe(d) | {"source": str(tmp_path / "out")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_files_of_a_per_layer_set(tmp_path):
    """The skip is transposed: circuit-tracer computes x @ W_skip.T."""
    d, x = make(CONFIGS["plt jumprelu skip"]), ct.inputs()
    save_transcoders(d, tmp_path / "out", model_name="toy")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml", "layer_0.safetensors", "layer_1.safetensors", "layer_2.safetensors",
    ]  # fmt: skip
    raw = [load_file(tmp_path / "out" / f"layer_{i}.safetensors") for i in ALL]
    assert {name: t.shape for name, t in raw[0].items()} == {
        "W_enc": (F, D), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D),
        "activation_function.threshold": (F,),
    }  # fmt: skip
    np.testing.assert_array_equal(raw[1]["W_skip"], d.w_skip[1].T)
    np.testing.assert_allclose(ct.per_layer_reconstruction(raw, x), reconstruct(d, x), rtol=2e-5, atol=2e-5)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config.pop("tcircuits")["layers"] == [0, 1, 2]
    assert config == {
        "model_name": "toy", "model_kind": "transcoder_set", "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
    }  # fmt: skip


def test_the_files_of_a_cross_layer_transcoder(tmp_path):
    """The skip is not transposed: circuit-tracer computes x @ W_skip."""
    d, x = make(CONFIGS["clt jumprelu skip"]), ct.inputs()
    save_transcoders(d, tmp_path / "out")
    names = [[f"W_enc_{i}.safetensors", f"W_dec_{i}.safetensors"] for i in ALL]
    raw = [load_file(tmp_path / "out" / enc) | load_file(tmp_path / "out" / dec) for enc, dec in names]
    assert {name: t.shape for name, t in raw[1].items()} == {
        "W_enc_1": (F, D), "b_enc_1": (F,), "b_dec_1": (D,), "threshold_1": (F,), "W_skip_1": (D, D),
        "W_dec_1": (F, 2, D),
    }  # fmt: skip
    np.testing.assert_array_equal(raw[1]["W_skip_1"], d.w_skip[1])
    got = ct.cross_layer_reconstruction(raw, x, "W_skip_{}")
    np.testing.assert_allclose(got, reconstruct(d, x), rtol=2e-5, atol=2e-5)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_kind"] == "cross_layer_transcoder"


def test_topk_is_said_by_the_config_and_by_no_tensor(tmp_path):
    """circuit-tracer's strict loader refuses a tensor `k`."""
    save_transcoders(make(CONFIGS["plt topk signed"]), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "layer_0.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 3)


@pytest.mark.parametrize("format", ["circuit-tracer", "orbax"])
def test_an_empty_folder_is_filled_and_another_refused(tmp_path, format):
    d = make(CONFIGS["plt relu"])
    (tmp_path / "out").mkdir()
    save_transcoders(d, tmp_path / "out", format)
    with pytest.raises(InputError, match="exists and is not empty; remove it or choose another name"):
        save_transcoders(d, tmp_path / "out", format)
    assert_same(load_transcoders(tmp_path / "out"), d)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a file; give a folder"):
        save_transcoders(d, tmp_path / "file", format)


def test_a_folder_that_its_own_section_contradicts(tmp_path):
    d = make(CONFIGS["plt some layers"])
    save_transcoders(d, tmp_path / "out")
    shutil.copy(tmp_path / "out" / "layer_1.safetensors", tmp_path / "out" / "layer_2.safetensors")
    with pytest.raises(InputError, match=r"does not list among its layers: layer_2.safetensors$"):
        load_transcoders(tmp_path / "out")
    assert load_transcoders(tmp_path / "out", layers=(1, 2)).cfg.layers == (1, 2)
    (tmp_path / "out" / "layer_2.safetensors").unlink()
    (tmp_path / "out" / "layer_4.safetensors").unlink()
    with pytest.raises(InputError, match=r"missing files: layer_4.safetensors$"):
        load_transcoders(tmp_path / "out")
    with pytest.raises(InputError, match="it was made for 6 layers, the model has 5"):
        load_transcoders(tmp_path / "out", model=ct.model(5))
    save_transcoders(d, tmp_path / "short")
    config = tmp_path / "short" / "config.yaml"
    config.write_text(config.read_text().replace("n_layers: 6", "n_layers: 4"))
    with pytest.raises(InputError, match="says n_layers: 4, but there are files up to layer 4"):
        load_transcoders(tmp_path / "short")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real, calls = saving.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(saving, "save_file", save_file)
    with pytest.raises(InputError, match=r"cannot be written to .*out: .*No space left"):
        save_transcoders(make(CONFIGS["plt relu"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="neurons are part of the model"):
        save_transcoders(neurons(2, 4, 6), tmp_path / "out")
    with pytest.raises(InputError, match="there are circuit-tracer, saelens, orbax"):
        save_transcoders(make(CONFIGS["plt relu"]), tmp_path / "out", "npz")
    d = make(CONFIGS["plt batchtopk"])
    negative = dataclasses.replace(d, threshold=-d.threshold)
    with pytest.raises(InputError, match="set the negative ones to 0"):
        save_transcoders(negative, tmp_path / "out")
    save_transcoders(negative, tmp_path / "out", "orbax")
    assert_same(load_transcoders(tmp_path / "out"), negative)


def test_a_checkpoint_of_another_model_or_with_other_options(tmp_path):
    save_transcoders(make(CONFIGS["clt relu"]), tmp_path / "out", "orbax")
    with pytest.raises(InputError, match=r"its width is 4, the model's d_model is 8; it was made for 3 layers.* has 2"):
        load_transcoders(tmp_path / "out", model=ct.model(2, 8))
    with pytest.raises(InputError, match="layers, activation cannot be changed"):
        load_transcoders(tmp_path / "out", layers=(0,), activation="relu")
    assert load_transcoders(tmp_path / "out", fill="neurons").cfg.fill == "neurons"


def test_a_checkpoint_with_nan_or_cut_off(tmp_path):
    d = make(CONFIGS["plt relu"])
    save_transcoders(dataclasses.replace(d, b_enc=d.b_enc.at[1, 2].set(np.nan)), tmp_path / "nan", "orbax")
    with pytest.raises(InputError, match="NaN or infinite in float32: b_enc"):
        load_transcoders(tmp_path / "nan")
    (tmp_path / "nan" / "commit_success.txt").unlink()
    with pytest.raises(InputError, match="cut off"):
        load_transcoders(tmp_path / "nan")


def test_a_mesh_writes_and_reads_the_same(tmp_path, run_python):
    program = f"""
import jax, numpy as np
from tests.transcoders.test_saving import CONFIGS, assert_same, make
from tcircuits.parallel import make_mesh, shardings
from tcircuits.transcoders.dictionary import spec
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.transcoders.saving import save_transcoders
mesh = make_mesh((2, 4))
for n, name in enumerate(("clt jumprelu skip", "plt jumprelu skip")):
    d = make(CONFIGS[name])
    places = jax.tree.leaves(shardings(spec(d.cfg), mesh))
    leaves, tree = jax.tree.flatten(d)
    spread = jax.tree.unflatten(tree, [jax.device_put(x, p) for x, p in zip(leaves, places, strict=True)])
    for format in ("circuit-tracer", "orbax"):
        path = rf"{tmp_path}/{{n}}-{{format}}"
        save_transcoders(spread, path, format)
        assert_same(load_transcoders(path), d)
        back = load_transcoders(path, mesh=mesh)
        assert back.w_dec.sharding == spread.w_dec.sharding
        assert_same(back, d)
"""
    run_python(program, devices=8)
