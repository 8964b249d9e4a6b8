"""`tcircuits features`: what it writes and says, how a cut-off pass goes on, and what it refuses."""

import json

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common
from tcircuits.transcoders.statistics import run as passes
from tcircuits.transcoders.statistics.result import load_statistics
from tcircuits.transcoders.statistics.viewer_file import FeatureFiles

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = ("--layers", "1", "--tokens", "128", "--context", "16", "--top", "3", "--drawn", "4", "--width", "2")


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture
def run(capsys):
    """`run(arguments, code=0)`: what the command printed; with code 2 the one line in which it refused."""

    def go(*arguments, code=0):
        assert cli.main(["features", *map(str, arguments)]) == code
        told = capsys.readouterr()
        if code:
            assert told.out == ""
            assert told.err.startswith("tcircuits: ")
            assert told.err.count("\n") == 1
        return told.err if code else told.out

    return go


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("From 1772 the strike went on until 17. The cat sat and the dog ran to the cat.\n" * 30)
    return path


class CutError(Exception):
    """What kills a command."""


def cut(*_args, **_options):
    raise CutError


@pytest.mark.slow  # a pass, its files and pages, and a trace with them: three programs of the whole model
def test_a_cut_off_pass_goes_on_and_ends_in_pages_and_files(run, text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("tcircuits.view.feature_data.collect", cut)
        with pytest.raises(CutError):
            cli.main(["features", str(text), "--out", str(out), *SMALL])
    told = run(text, "--out", out, *SMALL, code=2)
    assert "exists and is not empty; give a new folder, or --resume" in told
    assert "other settings (keeping.top: 3 -> 2)" in run(text, "--out", out, *SMALL, "--top", "2", "--resume", code=2)
    with monkeypatch.context() as patch:
        patch.setattr(passes.Pass, "step", cut)  # every row was read before
        told = json.loads(run(text, "--out", out, *SMALL, "--resume", "--json"))
    assert "is done; there is nothing to resume" in run(text, "--out", out, *SMALL, "--resume", code=2)
    assert not (out / "state").exists()
    found = load_statistics(out / "statistics.npz")
    assert found.cfg.layers == (1,)
    assert told["positions"] == found.n_positions == 8 * 15
    assert told["layers"] == found.table()
    assert told["page"] == str((out / "index.html").resolve())
    assert (out / "layer_1.html").exists()
    model = tc.load_model("tiny")
    d = passes.only_layers(tc.load_transcoders("tiny-transcoders", model=model), (1,))
    rows = rows_of(text, model)
    again = tc.feature_statistics(model, d, rows, n_tokens=128, top=3, drawn=4)
    for name in ("value", "token", "count", "in_bin", "drawn", "total", "least"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name), err_msg=name)
    files, chosen = FeatureFiles(out), int(found.density[0].argmax())
    record = files.read(1, chosen)
    best = record["examples_quantiles"][0]["examples"][0]
    row, pos = divmod(int(found.token[0, chosen, 0]), 16)
    assert best["tokens"][best["train_token_ind"]] == model.token(int(rows[row][pos]))
    assert max(best["tokens_acts_list"]) == pytest.approx(found.largest[0, chosen], rel=1e-3)

    told = traced(tmp_path / "trace", out, capsys)
    page = (tmp_path / "trace" / "index.html").read_text()
    graph = json.loads((tmp_path / "trace" / "graph.json").read_text())
    n = sum(n["feature_type"] == "cross layer transcoder" and n["layer"] == "1" for n in graph["nodes"])
    assert page.count('"examples":') == n > 0
    assert told["page"] == str((tmp_path / "trace" / "index.html").resolve())


def traced(out, folder, capsys):
    """A trace whose page shows the features of a folder."""
    options = ("--features", str(folder), "--max-features", "60", "--json")
    assert cli.main(["trace", "From 1772 the strike went on until 17", "--out", str(out), *options]) == 0
    return json.loads(capsys.readouterr().out)


def rows_of(text, model):
    """The rows that the command reads, by the library."""
    from tcircuits.transcoders.evaluation.data import open_rows

    with open_rows(str(text), model, context=16, part="all") as rows:
        return np.asarray(rows.rows(0, 8))


def test_the_model_writes_the_text_where_none_is_given(run, tmp_path):
    told = run("--out", tmp_path / "out", *SMALL)
    assert "index.html" in told
    assert (tmp_path / "out" / "sampled.tokens").exists()
    assert load_statistics(tmp_path / "out" / "statistics.npz").n_positions == 8 * 15


def not_empty(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    return tmp_path / "out"


REFUSALS = [
    (("--layers", "9"), "layers [9] have no dictionary; there are [0, 1, 2, 3]"),
    (("--layers", "some"), "some"),
    (("--tokens", "15"), "--tokens 15: give at least one row of --context 16"),
    (("--context", "1"), "give at least 2, 0 and 1"),
    (("--width", "-1"), "give at least 2, 0 and 1"),
    (("--top", "0"), "keep at least 1 of each"),
    (("--seed", "-1"), "give a number in 0..2**32 - 1"),
    (("--transcoders", "nowhere"), "nowhere"),
    (("--model", "nope"), "model 'nope' is unknown"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_bad_options(run, text, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(passes.Pass, "step", cut)
    assert message in run(text, "--out", tmp_path / "out", *SMALL, *options, code=2)
    assert not (tmp_path / "out").exists()


def test_bad_folders_and_texts(run, text, tmp_path, monkeypatch):
    monkeypatch.setattr(passes.Pass, "step", cut)
    assert "exists and is not empty" in run(text, "--out", not_empty(tmp_path), *SMALL, code=2)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert "is a file; give a folder" in run(text, "--out", text, *SMALL, code=2)
    (tmp_path / "short.txt").write_text("a cat")
    for name in ("short.txt", "absent.txt"):
        assert name.split(".")[0] in run(tmp_path / name, "--out", tmp_path / "new", *SMALL, code=2)
        assert not (tmp_path / "new").exists()
