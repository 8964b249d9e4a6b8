"""What the fuzzer found in sets of dictionaries and model folders: each was a hang, a crash or an endless message."""

import json
import shutil

import pytest

from tcircuits.models.loading import load_model
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.types import InputError
from tests.models.folders import folder_of

HUGE = "9" * 19


@pytest.mark.parametrize(
    ("folder", "old", "new"),
    [
        ("circuit_tracer_folders/plt-relu", "layer_1.safetensors", f"layer_{HUGE}.safetensors"),
        ("circuit_tracer_folders/clt-relu", "W_enc_1.safetensors", f"W_enc_{HUGE}.safetensors"),
        ("circuit_tracer_folders/clt-relu", "W_dec_1.safetensors", "W_dec_9999.safetensors"),
        ("rival_folders/sparsify/transcoder", "layers.1.mlp", f"layers.{HUGE}.mlp"),
        ("rival_folders/sparsify/transcoder", "layers.1.mlp", f"layers.{'1' * 120}.mlp"),
    ],
)
def test_a_huge_number_in_a_file_s_name(folder, old, new, golden, tmp_path):
    shutil.copytree(golden / folder, tmp_path / "x", ignore=shutil.ignore_patterns("reconstruction.npz"))
    (tmp_path / "x" / old).rename(tmp_path / "x" / new)
    refused(load_transcoders, tmp_path / "x")


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": ["jumprelu_transcoder"]},
        {"sae_lens_version": "1" * 5000},
        {"hook_name": "blocks." + "1" * 5000},
    ],
)
def test_fields_of_saelens(fields, golden, tmp_path):
    shutil.copytree(golden / "rival_folders/sae-lens/transcoder", tmp_path / "x")
    path = tmp_path / "x" / "layer_0" / "cfg.json"
    about = json.loads(path.read_text())
    about["metadata"] |= fields
    path.write_text(json.dumps(about | fields))
    if "sae_lens_version" in fields:
        load_transcoders(tmp_path / "x")  # no release has that number, and nothing depends on it
    else:
        refused(load_transcoders, tmp_path / "x")


@pytest.mark.parametrize("value", [2**62, 10_001, "1" * 5000])
def test_a_huge_number_of_layers(value, tmp_path):
    folder = folder_of("gpt2-plain", tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": value}))
    assert "n_layer" in refused(load_model, folder)


def test_a_long_name_in_an_index(tmp_path):
    folder = folder_of("gpt2-plain", tmp_path)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": "model-" + "1" * 5000 + ".safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names the file 'model-111" in refused(load_model, folder)


def refused(load, path) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    assert len(str(error.value)) < 4000
    return str(error.value)
