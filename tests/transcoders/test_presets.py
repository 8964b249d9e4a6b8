"""The table of published sets: consistent in itself, and the same as SAELens' registry where that is installed."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from tcircuits.transcoders.config import Reads, TranscoderConfig, Writes
from tcircuits.transcoders.hub import parse_reference
from tcircuits.transcoders.presets import PRESETS, find_preset

every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)


@every_preset
def test_references_are_one_or_one_a_layer(preset):
    parsed = [parse_reference(text) for text in preset.references]
    assert all(parsed)
    assert len(set(parsed)) in (1, preset.n_layers)
    if len(parsed) > 1:
        assert all(one.path.rsplit(".", 1)[1] in ("pt", "npz", "safetensors") for one in parsed)


@every_preset
def test_it_is_a_configuration(preset):
    assert preset.reads in get_args(Reads)
    assert preset.writes in get_args(Writes)
    assert TranscoderConfig(
        kind=preset.kind,
        n_layers=preset.n_layers,
        d_model=8,
        d_feature=preset.d_feature or 16384,
        layers=tuple(range(preset.n_layers)),
        activation=preset.activation or "relu",
        k=preset.k,
        signed_topk=preset.signed_topk,
        reads=preset.reads,
        writes=preset.writes,
        skip=preset.skip,
    )


@every_preset
def test_model_and_note(preset):
    assert parse_reference(preset.model)
    assert preset.note.endswith(".")
    assert len(preset.note) > 10


def test_names_and_aliases_are_unique_and_found():
    names = Counter(name for preset in PRESETS.values() for name in (preset.name, *preset.aliases))
    assert [name for name, times in names.items() if times > 1 or name != name.lower()] == []
    assert all(find_preset(name.upper()) in PRESETS.values() for name in names)
    assert {key: preset.name for key, preset in PRESETS.items()} == {key: key for key in PRESETS}
    assert find_preset("gpt5") is None


@pytest.mark.parametrize(
    ("name", "model", "layers", "reference"),
    [
        (
            "gemma",
            "google/gemma-2-2b",
            26,
            "hf://google/gemma-scope-2b-pt-transcoders/layer_11/width_16k/average_l0_5/",
        ),
        ("llama", "meta-llama/Llama-3.2-1B", 16, "mntss/transcoder-Llama-3.2-1B"),
        ("qwen3-8b", "Qwen/Qwen3-8B", 36, "mwhanna/qwen3-8b-transcoders"),
        ("gpt2", "openai-community/gpt2", 12, "blocks.11.ln2.hook_normalized_24576.pt"),
        ("gemma-scope-2-1b-it", "google/gemma-3-1b-it", 26, "transcoder_all/layer_25_width_16k_l0_small_affine/params"),
        ("gemma-scope-2-270m-pt", "google/gemma-3-270m", 18, "google/gemma-scope-2-270m-pt/transcoder_all/layer_17_w"),
        ("clt-gemma-scope-2-1b-pt", "google/gemma-3-1b-pt", 26, "gemma-scope-2-1b-pt/clt/width_262k_l0_medium_affine"),
    ],
)
def test_what_a_name_means(name, model, layers, reference):
    preset = find_preset(name)
    assert (preset.model, preset.n_layers) == (model, layers)
    assert any(reference in text for text in preset.references)


def test_skip_and_width_follow_the_folder_names():
    for name in (name for name in PRESETS if name.startswith("gemma-scope-2-")):
        preset = PRESETS[name]
        assert preset.skip == name.endswith("affine") == all("_affine/" in text for text in preset.references)
        assert ("-262k-" in name) == all("_262k_" in text for text in preset.references)


def test_files_are_those_of_saelens():
    found = importlib.util.find_spec("sae_lens")
    if found is None or found.origin is None:
        pytest.skip("sae-lens is not installed")
    yaml = pytest.importorskip("yaml")
    releases = yaml.safe_load((Path(found.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8"))
    published = {f"hf://{one['repo_id']}/{sae['path']}" for one in releases.values() for sae in one["saes"]}
    wanted = {
        text.rsplit("/params.", 1)[0] if "/params." in text else f"hf://{text}/layer_0.safetensors"
        for preset in PRESETS.values()
        for text in preset.references
        if text.startswith(("hf://google", "mwhanna/qwen3"))
    }
    assert len(wanted) > 2000
    assert wanted - published == set()
