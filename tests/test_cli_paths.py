"""`tcircuits paths` in this process: a prompt is all it needs, its numbers are the library's, what it refuses."""

import json

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common
from tcircuits.transcoders.presets import usual_set

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "Once upon a time"
MODEL = ("--model", "glassllm")


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture
def run(capsys):
    """`run(arguments)`: exit code, output, errors."""

    def go(*arguments):
        code = cli.main(["paths", *(str(a) for a in arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return go


def test_a_prompt_is_all_that_paths_needs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tc.load_model("tiny")
    prompt = model.decode(list(range(5, 12)))
    code, out, err = run(prompt)
    assert (code, err) == (0, "")
    graph = tc.find_paths(model, tc.load_transcoders(usual_set("tiny"), model=model), model.encode(prompt, bos="auto"))
    for text in (graph.node_name(0), graph.path_text(graph.levels[0][0]), graph.path_text(graph.levels[-1][0])):
        assert text in out
    assert "5 nodes below the root" in out
    assert list(tmp_path.iterdir()) == []


def test_files_and_the_json_object(run, tmp_path):
    options = ("--target", " the", "--position", "1", "--iterations", "2", "--branches", "4", "--filter", "kind=head")
    code, out, _ = run(PROMPT, *MODEL, *options, "--out", tmp_path / "out", "--json")
    assert code == 0
    found, graph = json.loads(out), tc.load_paths(tmp_path / "out" / "paths.npz")
    model = tc.load_model("glassllm")
    expected = tc.find_paths(
        model,
        tc.load_transcoders("neurons", model=model),
        PROMPT,
        target=tc.Logit(" the", 1),
        iterations=2,
        branches=4,
        filters="kind=head",
    )
    assert graph.text == expected.text == (tmp_path / "out" / "paths.txt").read_text()
    np.testing.assert_array_equal(graph.value, expected.value)
    assert found["n_paths"] == graph.n_paths <= 8
    root = found["root"]
    assert root["value"] == graph.value[0]
    total = root["kept"] + root["error"] + root["bias"] + root["pruned"]
    assert total == pytest.approx(root["value"], abs=1e-6 * root["size"])
    assert found["max_gap"] <= 1e-6
    assert found["levels"][0][0]["path"] == graph.path_text(graph.levels[0][0])
    assert found["settings"]["filters"]["nodes"] == "kind=head"


REFUSED = [
    (("--filter", "head=99"), "head=99 does not exist"),
    (("--filter", "depth=1"), "condition 'depth=1' is unknown"),
    (("--target", "feature:1/0/99999"), "feature 99999 of layer 1 does not exist"),
    (("--minus", " the"), "--minus needs a --target that is a token"),
    (("--position", "1"), "--position needs a --target"),
    (("--iterations", "0"), "iterations=0"),
    (("--suffix", "kind=embed", "--filter", "kind=head"), "no path is as the filters want it"),
    (("--filter", "layer>90"), "no node of this prompt matches the filter layer>90"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_with_one_line(run, options, message):
    code, out, err = run(PROMPT, *MODEL, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("tcircuits: ")
    assert err.count("\n") == 1
