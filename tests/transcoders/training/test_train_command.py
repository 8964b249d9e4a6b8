"""`tcircuits train`: a run from text to transcoders that trace, resuming, and bad input that ends with one line."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common
from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.presets import PAPER, dictionary, make, paper
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.types import InputError

needs_glassllm = pytest.mark.skipif(find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0")
pytestmark = pytest.mark.usefixtures("quick_compile")
SIZES = (
    *("--model", "glassllm", "--features", "32", "--k", "4", "--layers", "1-2", "--batch", "30", "--tokens", "180"),
    *("--context", "16", "--rows", "4", "--buffer", "2", "--checkpoint-every", "1", "--held-out", "0.2"),
)
GPT2 = ModelConfig("gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, position="learned")


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for i in range(12):
        story = f"Story {i}. Once upon a time there was a little dog who had {i} friends. " * 12
        (path / f"{i:02}.txt").write_text(story, encoding="utf-8")
    return path


@pytest.fixture
def run(capsys):
    def go(*arguments, code=0):
        found = cli.main(["train", *(str(a) for a in arguments)])
        told = capsys.readouterr()
        assert found == code, told.err
        return told.out if code == 0 else told.err

    return go


@needs_glassllm
def test_from_text_to_transcoders_that_trace(run, text, tmp_path):
    arguments = (tmp_path / "run", "--data", text, *SIZES)
    found = json.loads(run(*arguments, "--json"))
    assert (found["status"], found["step"], found["tokens"]) == ("done", 6, 180)
    assert found["l0"] == [4.0, 4.0]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert page.count("<polyline") == 8
    assert "layer 2" in page
    model = tc.load_model("glassllm")
    trained = tc.load_transcoders(found["transcoders"], model=model, fill="neurons")
    assert trained.cfg.layers == (1, 2)
    graph = tc.attribute(model, trained, "Once upon a time", max_features=20)
    assert graph.max_row_gap <= 1e-6
    again = json.loads(run(*arguments, "--json"))
    assert again == found
    assert [r["step"] for r in folder.read_metrics(tmp_path / "run")] == [2, 4, 6]
    told = run(*arguments)
    assert "Last buffer" in told
    assert f"{found['fvu'][1]:.4f}" in told
    assert "recipe.dictionary.k: 4 -> 5" in run(*arguments, "--k", "5", code=2)


@needs_glassllm
@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--layers", "1,9"), "layer 9 does not exist: the model has 0..3"),
        (("--k", "33"), "k=33 is outside 1..32"),
        (("--layers", "2-1"), "write all, 0,3 or 2-5"),
        (("--context", "2000"), "tokens"),
        (("--kind", "clt"), "covers all 4 layers"),
        (("--l1", "0.1"), "--l1 is for --activation relu"),
        (("--preset", "gpt2-l8"), "--preset needs --l1"),
        (("--preset", "gpt2-l8", "--l1", "1e-4"), "layer 8 does not exist"),
        (("--nested", "5;6"), "--nested '5;6': write some whole numbers"),
        (("--mesh", "2"), "--mesh '2': write 2 whole numbers"),
        (("--mesh", "2,2"), "does not cover the 1 devices"),
        (("--kind", "sae", "--site", "logits"), "an SAE is on one site"),
    ],
)
def test_bad_options_end_with_one_line(run, text, tmp_path, more, complaint):
    told = run(tmp_path / "run", "--data", text, *SIZES, *more, code=2)
    assert complaint in told
    assert told.count("\n") == 1


@needs_glassllm
def test_bad_data_ends_with_one_line(run, text, tmp_path):
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("One dog.", encoding="utf-8")
    binary.write_bytes(b"a\x00b" * 100)
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    for name, complaint in (("short.txt", "token"), ("binary.txt", "binary.txt"), ("empty.txt", "empty"), ("no", "no")):
        told = run(tmp_path / f"run {name}", "--data", tmp_path / name, *SIZES, code=2)
        assert complaint in told
        assert told.count("\n") == 1
    (tmp_path / "file").write_text("x")
    assert "is a file; give a folder" in run(tmp_path / "file", "--data", text, *SIZES, code=2)


def test_presets_are_the_papers():
    recipe = paper("gpt2-l8", GPT2, 1.4e-4)
    d = recipe.dictionary
    assert (d.layers, d.d_feature, d.activation, d.reads, d.writes) == ((8,), 24_576, "relu", "normalized", "mlp_out")
    assert (recipe.steps, recipe.batch, recipe.objective.l1) == (14_648, 4096, 1.4e-4)
    assert paper("gpt2-l8", GPT2, 1e-4, "sae").dictionary.reads == "mlp_out"
    for name, p in PAPER.items():
        with pytest.raises(InputError, match=r"does not exist"):
            paper(name, replace(GPT2, n_layers=p.layer), 1e-4)
    with pytest.raises(InputError, match="there are gpt2-l8"):
        paper("gpt3", GPT2, 1e-4)


@pytest.mark.parametrize("kind", ["transcoder", "clt", "sae"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "relu"])
def test_every_default_is_a_recipe(kind, activation):
    recipe = make(dictionary(GPT2, kind=kind, activation=activation, k=16), tokens=10_000_000, k=16)
    assert isinstance(recipe, Recipe)
    assert recipe.steps == 2441
    assert recipe.dictionary.d_feature == 8 * 768
    assert np.isclose(recipe.objective.l0_target or 16, 16)
