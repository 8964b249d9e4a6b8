"""References to the hub; nothing here reaches for the network."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from tcircuits.transcoders.describing import inspect
from tcircuits.transcoders.dictionary import reconstruct
from tcircuits.transcoders.hub import Reference, parse_reference
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.types import InputError

from . import ct_files as ct


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mntss/clt-131k", ("mntss/clt-131k", "", None)),
        (
            "mwhanna/gemma-scope-2-4b/transcoder_all/width_262k",
            ("mwhanna/gemma-scope-2-4b", "transcoder_all/width_262k", None),
        ),
        ("org/repo@new-training", ("org/repo", "", "new-training")),
        ("org/repo/sub@refs/pr/1", ("org/repo", "sub", "refs/pr/1")),
        ("hf://org/repo/a/b?revision=v1.0", ("org/repo", "a/b", "v1.0")),
        ("hf://org/repo/layer_0.safetensors", ("org/repo", "layer_0.safetensors", None)),
        ("hf://org/repo", ("org/repo", "", None)),
    ],
)
def test_references(text, parts):
    assert parse_reference(text) == Reference(*parts)


@pytest.mark.parametrize(
    "text", ["", "name", "a/../b", "/a/b", "./a/b", "https://x.org/a/b", "a/b@", "a b/c", "org/.git"]
)
def test_no_references(text):
    assert parse_reference(text) is None


class ConnectError(Exception):
    """As the hub's library passes it on from the library that it connects with."""


ConnectError.__module__ = "httpx"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository; returns its folder and the list of what was asked."""
    asked = []

    def model_info(self, repository, *, revision, timeout):
        names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def hf_hub_download(repository, name, *, revision):
        asked.append((repository, revision, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return tmp_path, asked


def test_a_folder_of_a_repository(hub):
    top, asked = hub
    (top / "sub").mkdir()
    raw, x = ct.cross_layer(top / "sub"), ct.inputs()
    d = load_transcoders("org/repo/sub@v1", model=ct.model())
    np.testing.assert_allclose(reconstruct(d, x), ct.cross_layer_reconstruction(raw, x), rtol=2e-5, atol=2e-5)
    assert d.source == "org/repo/sub@v1"
    names = [f"sub/W_{part}_{i}.safetensors" for i in range(ct.L) for part in ("enc", "dec")]
    assert asked == [("org/repo", "v1", name) for name in names]
    with pytest.raises(InputError, match="no folder 'other' with dictionaries"):
        load_transcoders("org/repo/other")


def test_only_the_layers_that_are_wanted_are_downloaded(hub):
    top, asked = hub
    ct.per_layer(top)
    (top / "layer_0.safetensors").unlink()
    assert load_transcoders("org/repo", layers=(1,)).cfg.layers == (1,)
    assert asked == [("org/repo", None, "layer_1.safetensors")]


def test_a_single_file_of_a_repository(hub):
    top, asked = hub
    raw, x = ct.per_layer(top), ct.inputs()
    d = load_transcoders("org/repo/layer_1.safetensors")
    assert d.cfg.layers == (1,)
    np.testing.assert_allclose(
        reconstruct(d, x[1:2]), ct.per_layer_reconstruction(raw[1:2], x[1:2]), rtol=2e-5, atol=2e-5
    )
    assert asked == [("org/repo", None, "layer_1.safetensors")]
    (top / "layer_1.safetensors").rename(top / "middle.safetensors")
    with pytest.raises(InputError, match=r"nothing says which layer middle.safetensors .* give layers="):
        load_transcoders("org/repo/middle.safetensors", reads="mlp_in", writes="mlp_out")
    assert load_transcoders("org/repo/middle.safetensors", layers=(1,), reads="mlp_in", writes="mlp_out").cfg == (
        replace(d.cfg, reads="mlp_in")
    )


def test_the_local_cache_serves_without_network(hub, monkeypatch):
    top, asked = hub
    raw, x = ct.per_layer(top), ct.inputs()

    def snapshot_download(repository, *, revision, local_files_only):
        assert local_files_only
        asked.append((repository, revision))
        return str(top)

    def model_info(self, repository, *, revision, timeout):
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    d = load_transcoders("org/repo@v3")
    np.testing.assert_allclose(reconstruct(d, x), ct.per_layer_reconstruction(raw, x), rtol=2e-5, atol=2e-5)
    assert asked == [("org/repo", "v3")]


def test_a_published_set_by_name(hub):
    """Its files are listed one a layer; what their tensors do not say, the table of published sets does."""
    _, asked = hub
    with pytest.raises(InputError, match=r"params.npz .* there is no such file"):  # this hub downloads nothing
        load_transcoders("gemma-scope-2b", layers=(3,))
    name = "layer_3/width_16k/average_l0_54/params.npz"
    assert asked == [("google/gemma-scope-2b-pt-transcoders", None, name)]


def test_files_listed_by_address(hub, tmp_path_factory):
    top, asked = hub
    raw, x = ct.per_layer(top), ct.inputs()
    here = tmp_path_factory.mktemp("here")
    shutil.move(top / "layer_1.safetensors", here)
    files = ["hf://org/repo/layer_0.safetensors?revision=v2", "layer_1.safetensors", "hf://a/b/layer_2.safetensors"]
    ct.write_config(here, transcoders=files)
    d = load_transcoders(here)
    np.testing.assert_allclose(reconstruct(d, x), ct.per_layer_reconstruction(raw, x), rtol=2e-5, atol=2e-5)
    assert asked == [("org/repo", "v2", "layer_0.safetensors"), ("a/b", None, "layer_2.safetensors")]


@pytest.mark.parametrize("load", [load_transcoders, inspect])
def test_without_network(load):
    """The tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(InputError, match="no folder 'nobody/nothing' here, and the hub could not be reached"):
        load("nobody/nothing/sub@main")
    with pytest.raises(InputError, match="no folder 'nobody/nothing' here, and the hub could not be reached"):
        load("hf://nobody/nothing/sub")
