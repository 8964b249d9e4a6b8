"""What a source is, what a set needs, and choices as the command line writes them; no matrix is read."""

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.transcoders import hub
from tcircuits.transcoders.describing import needs, what_is
from tcircuits.transcoders.dictionary import reconstruct
from tcircuits.transcoders.formats.place import UnreachableError
from tcircuits.transcoders.loading import load_transcoders, open_transcoders
from tcircuits.transcoders.options import parse_choices
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.types import InputError

from . import ct_files as ct


def test_needs_of_a_folder(tmp_path):
    raw = ct.per_layer(tmp_path)
    facts, n = needs(tmp_path), sum(tensor.size for layer in raw for tensor in layer.values())
    assert (facts["layers"], facts["format"], facts["parameters"]) == ("0..2", "circuit-tracer", n)
    assert facts["fits"] == "any model with d_model 4 and at least 3 layers"
    assert facts["memory"] == f"{4e-9 * n:.2f} GB in float32, {2e-9 * n:.2f} GB in bfloat16"
    assert needs(tmp_path, layers=(0, 2))["layers"] == [0, 2]


def test_needs_of_a_cross_layer_transcoder(tmp_path):
    ct.cross_layer(tmp_path)
    assert needs(tmp_path)["fits"] == "any model with d_model 4 and 3 layers"


def test_a_published_set_is_described_without_network(monkeypatch):
    """The tests run with HF_HUB_OFFLINE=1."""
    facts = needs("gemma-scope-2b")
    assert (facts["fits"], facts["kind"], facts["reads"]) == ("google/gemma-2-2b", "transcoder", "normalized")
    assert "hf download google/gemma-scope-2b-pt-transcoders --local-dir DIR" in facts["files"]
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda reference: asked.append(reference) or _unreachable())
    with pytest.raises(InputError, match="out of reach"):
        load_transcoders("gemma-scope-2b")
    assert len(asked) == 1  # the other 25 files are not tried


def _unreachable():
    raise UnreachableError("out of reach")


def test_what_a_source_is(tmp_path):
    (tmp_path / "set").mkdir()
    ct.per_layer(tmp_path / "set")
    save_transcoders(load_transcoders(tmp_path / "set"), tmp_path / "ours", format="orbax")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    kinds = {"set": "transcoders", "ours": "transcoders", "model": "model"}
    assert {name: what_is(str(tmp_path / name)) for name in kinds} == kinds
    assert what_is("smollm2-135m") == what_is("any.gguf") == what_is("unknown") == "model"
    assert what_is("neurons") == what_is("qwen3-4b") == "transcoders"
    assert what_is("neurons", "model") == "model"
    with pytest.raises(InputError, match="could not be reached"):
        what_is("nobody/nothing")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("layers=0,2", (0, 2)), ("l0=70", 70.0), ("l0=small", "small"), ("width=16k", "16k"), ("k=5", 5),
        ("allow_unknown=a,b", ("a", "b")), ("fill=neurons", "neurons"),
    ],
)  # fmt: skip
def test_choices(text, value):
    assert parse_choices([text]) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k", "write NAME=VALUE, with NAME one of layers, fill"),
        ("colour=red", "with NAME one of"),
        ("k=", "write NAME=VALUE"),
        ("layers=0,x", "layers takes whole numbers"),
        ("k=2.5", "k takes whole numbers"),
        ("reads=mlp", "there are resid_mid, normalized, mlp_in"),
        ("l0=0", "l0=0.0; it is above 0"),
        ("max_decoded=0", "it is a number of bytes"),
    ],
)
def test_choices_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        parse_choices([text])


def test_options_that_do_not_exist(tmp_path):
    ct.per_layer(tmp_path)
    with pytest.raises(InputError, match="options colour are unknown; there are layers"):
        load_transcoders(tmp_path, colour="red")


def test_sets_that_cannot_stay_on_disk(tmp_path):
    ct.per_layer(tmp_path)
    save_transcoders(load_transcoders(tmp_path), tmp_path / "ours", format="orbax")
    with pytest.raises(InputError, match="not read by rows: write it in the format of circuit-tracer"):
        open_transcoders(tmp_path / "ours")
    with pytest.raises(InputError, match="'neurons' are in the model's own memory"):
        open_transcoders("neurons")
    assert isinstance(open_transcoders(tmp_path), tc.LazyTranscoders)


def test_saelens_reads_back_what_was_saved(tmp_path):
    raw, x = ct.per_layer(tmp_path, skip=True), ct.inputs()
    save_transcoders(load_transcoders(tmp_path), tmp_path / "out", format="saelens", model_name="toy")
    d = load_transcoders(tmp_path / "out", model=ct.model())
    got = reconstruct(d, x)
    np.testing.assert_allclose(got, ct.per_layer_reconstruction(raw, x), rtol=2e-5, atol=2e-5)
    assert needs(tmp_path / "out")["fits"] == "toy"
