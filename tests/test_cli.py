"""The command line in this process: what it writes, and that its numbers are the library's and the forward pass's."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common, tracing
from tests.transcoders import ct_files

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "Once upon a time"
SMALL = ("--model", "glassllm", "--max-features", "60")
FILES = {"index.html", "graph.npz", "graph.json", "graph-metadata.json"}
SECONDS = {"load", "compile", "forward", "attribute", "prune", "write"}
KEYS = {
    *("model", "transcoders", "prompt", "tokens", "targets", "n_features", "n_selected", "n_nodes", "n_edges"),
    *("replacement_score", "completeness_score", "completeness_score_inputs", "unexpanded_share", "bias_share"),
    *("max_row_gap", "seconds"),
}


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def model():
    return tc.load_model("glassllm")


@pytest.fixture(scope="module")
def clean(model):
    """Logits [T, V] and the final norm's output [T, D] of the prompt."""
    tokens = jnp.asarray(model.encode(PROMPT))[None]
    out = tc.forward(model.cfg, model.params, tokens, sites=("final_norm",))
    return np.asarray(out.logits[0], np.float64), np.asarray(out.acts["final_norm"][0], np.float64)


WARNING = r"tcircuits: warning: transcoders [^\n]* leaves [\d.]+ of the variance unexplained[^\n]*\n"


@pytest.fixture
def run(capsys):
    """`run(arguments)`: what a successful command printed."""

    def go(*arguments):
        code = cli.main([str(a) for a in arguments])
        told = capsys.readouterr()
        assert (code, re.sub(WARNING, "", told.err)) == (0, "")
        return told.out

    return go


@pytest.fixture
def trace(run, tmp_path):
    """`trace(options)`: the JSON object and the graph of a trace of PROMPT."""

    def go(*options, prompt=PROMPT, out=tmp_path / "out"):
        found = json.loads(run("trace", prompt, *SMALL, "--out", out, "--json", *options))
        return found, tc.load_graph(out / "graph.npz")

    return go


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def demeaned(logits, position=-1):
    return logits[position] - logits[position].mean()


def test_trace_writes_its_files(trace, tmp_path):
    found, g = trace()
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    shown = json.loads((tmp_path / "out" / "graph.json").read_text(encoding="utf-8"))
    assert len(shown["nodes"]) == found["n_nodes"] == g.node_mask.sum()
    assert len(shown["links"]) == found["n_edges"] == len(g.weight)
    about = json.loads((tmp_path / "out" / "graph-metadata.json").read_text(encoding="utf-8"))
    assert about["graphs"][0]["prompt_tokens"] == [t["text"] for t in found["tokens"]]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert found["page"] == str((tmp_path / "out" / "index.html").resolve())
    assert all(f'"{node["node_id"]}"' in page for node in shown["nodes"])


def test_a_prompt_is_all_that_a_trace_needs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(
        run("trace", "While Robert and James were working at the beach, Robert gave a drink to", "--json")
    )
    assert (found["model"], found["transcoders"]) == ("tiny", "tiny-transcoders")
    assert {p.name for p in (tmp_path / "trace").iterdir()} == FILES
    assert found["targets"][0]["token"] == " James"
    assert found["targets"][0]["prob"] > 0.9
    assert found["n_selected"] == found["n_features"] < 20 * 4 * 16, "some sixteen features at each place"
    assert found["unexpanded_share"] == 0
    assert found["max_row_gap"] < 1e-6


def test_the_json_object_says_what_was_found(trace, model, clean):
    found, g = trace()
    assert found.keys() >= KEYS
    assert found["seconds"].keys() == SECONDS
    assert all(0 <= s < 300 for s in found["seconds"].values())
    assert (found["model"], found["transcoders"], found["prompt"]) == ("glassllm", "neurons", PROMPT)
    assert [t["id"] for t in found["tokens"]] == model.encode(PROMPT)
    assert "".join(t["text"] for t in found["tokens"]) == PROMPT
    p = softmax(clean[0][-1])
    best = np.argsort(-p)[:10]
    assert p[best].sum() < 0.95, "so ten are explained"
    assert [t["id"] for t in found["targets"]] == best.tolist()
    np.testing.assert_allclose([t["prob"] for t in found["targets"]], p[best], rtol=1e-5)
    assert [t["token"] for t in found["targets"]] == [model.token(int(i)) for i in best]
    L, T = model.cfg.n_layers, len(found["tokens"])
    assert found["n_features"] == L * T * model.cfg.d_mlp == g.n_active, "every neuron of a SiLU is active"
    assert found["n_selected"] == g.n_features == 60
    np.testing.assert_allclose(g.row_value[60:], demeaned(clean[0])[best], atol=1e-4)
    shares = [found[k] for k in ("replacement_score", "completeness_score", "completeness_score_inputs")]
    assert all(0 < s < 1 for s in shares)
    assert found["unexpanded_share"] == pytest.approx(1 - found["replacement_score"], abs=1e-6), (
        "neurons leave no error"
    )
    assert found["bias_share"] == 0, "this model has no biases"
    assert g.max_row_gap < 1e-6
    assert found["max_row_gap"] < 1e-6
    assert sum(found["token_shares"]) == pytest.approx(found["replacement_score"], abs=1e-6)


def test_a_second_trace_replaces_the_first_and_leaves_the_rest(trace, tmp_path):
    out = tmp_path / "out"
    _, first = trace()
    before = {name: (out / name).read_bytes() for name in FILES}
    (out / "notes.txt").write_text("mine")
    _, second = trace("--target", " the")
    assert (len(first.targets), len(second.targets)) == (10, 1)
    assert {p.name for p in out.iterdir()} == FILES | {"notes.txt"}
    assert all((out / name).read_bytes() != before[name] for name in FILES)
    trace()
    assert {name: (out / name).read_bytes() for name in FILES} == before, "the same again, byte for byte"


def test_a_person_gets_tables(run, tmp_path):
    told = run("trace", PROMPT, *SMALL, "--out", tmp_path / "out")
    for part in ("Explained", "Tokens", "Strongest paths", "Seconds", "replacement score", "·upon", "Page: "):
        assert part in told
    assert str((tmp_path / "out" / "index.html").resolve()) in told.replace("\n", "")


def test_tokens_as_targets(trace, model, clean):
    found, g = trace("--target", " the", "--target", " in")
    ids = [model.encode(" the")[0], model.encode(" in")[0]]
    assert [t["id"] for t in found["targets"]] == ids
    np.testing.assert_allclose([t["prob"] for t in found["targets"]], softmax(clean[0][-1])[ids], rtol=1e-5)
    np.testing.assert_allclose(g.row_value[-2:], demeaned(clean[0])[ids], atol=1e-4)


@pytest.mark.parametrize("position", [2, -3])
def test_another_position(trace, model, clean, position):
    _, g = trace("--target", " the", "--position", position)
    assert g.targets[0].pos == position % 6
    token = model.encode(" the")[0]
    np.testing.assert_allclose(g.row_value[-1], demeaned(clean[0], position)[token], atol=1e-4)
    assert g.features[:, 1].max() <= position % 6


def test_a_difference_of_tokens(trace, model, clean):
    found, g = trace("--target", " the", "--minus", " in", "--position", "3")
    assert found["targets"] == [{"token": " the -  in", "id": None, "prob": None, "kind": "difference"}]
    plus, minus = model.encode(" the")[0], model.encode(" in")[0]
    np.testing.assert_allclose(g.row_value[-1], clean[0][3, plus] - clean[0][3, minus], atol=1e-4)


def test_a_feature_as_target(trace, model):
    found, g = trace("--target", "feature:2/-2/5")
    assert [(t["id"], t["prob"], t["kind"]) for t in found["targets"]] == [(None, None, "feature")]
    acts = tc.intervene(model, tc.load_transcoders("neurons", model=model), PROMPT, []).clean_activations
    np.testing.assert_allclose(g.row_value[-1], acts[2, 4, 5], atol=1e-6)
    assert set(g.features[:, 0]) <= {0, 1}
    assert g.features[:, 1].max() <= 4


def test_a_direction_as_target(trace, clean, tmp_path):
    vector = np.random.default_rng(0).normal(size=128)
    np.save(tmp_path / "v.npy", vector)
    found, g = trace("--target", f"direction:{tmp_path / 'v.npy'}", "--position", "4")
    assert [(t["token"], t["kind"]) for t in found["targets"]] == [(str(tmp_path / "v.npy"), "direction")]
    np.testing.assert_allclose(g.row_value[-1], clean[1][4] @ vector, atol=1e-4)


def test_bos(trace, model):
    plain, _ = trace("--bos", "none", "--target", " the")
    auto, _ = trace("--target", " the")
    assert plain["tokens"] == auto["tokens"], "this model was made without one"
    added, g = trace("--bos", "add", "--target", " the", prompt="upon a time")
    assert added["tokens"][0]["id"] == model.tokenizer.bos_id
    assert len(added["tokens"]) == 1 + len(model.encode("upon a time"))
    assert g.settings["position_zero"] == "constant"


def test_thresholds(trace):
    loose, tight = trace("--target", " the")[0], trace("--target", " the", "--node-threshold", ".3")[0]
    all_of_it = trace("--target", " the", "--node-threshold", "1", "--edge-threshold", "1")[0]
    assert tight["n_nodes"] < loose["n_nodes"] < all_of_it["n_nodes"]
    assert tight["replacement_score"] == loose["replacement_score"], "scores are of the whole graph"


def test_a_smaller_page_of_the_same_graph(trace, tmp_path):
    found, g = trace("--target", " the", "--page-edges", "60", "--slug", "mine")
    shown = json.loads((tmp_path / "out" / "mine.json").read_text(encoding="utf-8"))
    assert len(shown["links"]) == 60 < len(g.weight) == found["n_edges"]


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory) -> Path:
    """A circuit-tracer folder of small random transcoders for the built-in model."""
    folder = tmp_path_factory.mktemp("dictionaries")
    ct_files.per_layer(folder, n_layers=4, d_model=128, d_feature=16)
    return folder


def test_transcoders_of_a_folder(trace, dictionaries):
    found, g = trace("--transcoders", dictionaries, "--target", " the")
    assert found["transcoders"] == str(dictionaries)
    assert found["n_features"] == g.n_active <= 4 * 6 * 16
    assert found["error_share"] > 0.1, "random transcoders explain little"


def test_converting_transcoders_there_and_back(run, dictionaries, tmp_path):
    saved, back = tmp_path / "saved", tmp_path / "back"
    assert str(saved) in run("convert", dictionaries, saved)
    run("convert", saved, back, "--to", "circuit-tracer")
    first, second, third = (tc.load_transcoders(f) for f in (dictionaries, saved, back))
    assert first.cfg == second.cfg == third.cfg
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        np.testing.assert_array_equal(getattr(first, name), getattr(third, name))
    told = run("info", back, "--what", "transcoders")
    assert "transcoder" in told
    assert "16" in told


def test_converting_a_model(run, model, clean, tmp_path):
    target = tmp_path / "there"
    target.mkdir()  # an empty folder is taken
    run("convert", "glassllm", target, "--what", "model")
    again = tc.load_model(target)
    assert again.cfg == model.cfg
    logits = tc.forward(again.cfg, again.params, jnp.asarray(again.encode(PROMPT))[None]).logits[0]
    np.testing.assert_allclose(logits, clean[0], atol=1e-5)
    assert "852,608" in run("info", target)


def test_info(run):
    told = run("info", "glassllm")
    lines = dict(line.split(maxsplit=1) for line in told.splitlines() if len(line.split()) > 1)
    assert lines["parameters"].strip() == "852,608"
    assert (lines["n_layers"].strip(), lines["d_model"].strip(), lines["n_ctx"].strip()) == ("4", "128", "128")
    assert "resid_post, final_norm, logits" in " ".join(told.split())


def test_intervene(run, model):
    found = json.loads(run("intervene", PROMPT, *SMALL[:2], "--edit", "2/5/7=3.5", "--edit", "1/all/0*=-2", "--json"))
    d = tc.load_transcoders("neurons", model=model)
    edits = [tc.feature_edit(2, 7, 3.5, position=5), tc.feature_edit(1, 0, -2, mode="scale")]
    before, after = tc.intervene(model, d, PROMPT, edits).probabilities()
    assert (found["prompt"], found["edits"]) == (PROMPT, ["2/5/7=3.5", "1/all/0*=-2"])
    ids = [row["id"] for row in found["next"]]
    np.testing.assert_allclose([row["clean"] for row in found["next"]], before[ids], rtol=1e-4)
    np.testing.assert_allclose([row["edited"] for row in found["next"]], after[ids], rtol=1e-4)
    assert [row["token"] for row in found["next"]] == [model.token(i) for i in ids]
    assert np.abs(after - before).max() > 1e-3


def test_intervene_for_a_person(run):
    told = run("intervene", PROMPT, *SMALL[:2], "--edit", "2/5/7+=30", "--free-attention")
    assert "Next token" in told
    assert "Features that moved most" in told
    assert "L2 f7 @5" in told


@pytest.mark.parametrize(
    ("text", "mode", "value", "start", "stop"),
    [
        ("3/4/1005=0", "set", 0.0, 4, 5),
        ("3/4/1005=-1.5e-2", "set", -0.015, 4, 5),
        ("3/0/1005+=2", "add", 2.0, 0, 1),
        ("3/all/1005*=.5", "scale", 0.5, 0, 2**31 - 1),
    ],
)
def test_edits_are_read(text, mode, value, start, stop):
    e = tracing.parse_edit(text)
    assert (e.mode, int(e.layer[0]), int(e.feature[0]), int(e.start[0]), int(e.stop[0])) == (mode, 3, 1005, start, stop)
    assert float(e.value[0]) == pytest.approx(value)


def test_the_program_itself(run_python, tmp_path, monkeypatch):
    """A fresh process on a terminal that knows ASCII only; its compiled programs are kept."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("TCIRCUITS_CACHE", str(tmp_path / "cache"))
    edit = ["--edit", "0/0/0=1"]
    done = run_python(["-m", "tcircuits.cli", "intervene", "Café 日本", "--model", "glassllm", *edit, "--json"])
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["prompt"] == "Café 日本"
    assert any((tmp_path / "cache" / "xla").iterdir())
