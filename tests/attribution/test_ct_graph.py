"""Graph files of circuit-tracer: what it makes of them is what the package makes of them, and no file can do harm."""

import json
import os
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.graph_io import graph_schema, viewer_json
from tcircuits.attribution.prune import prune
from tcircuits.attribution.summary import summary
from tcircuits.types import InputError

from ..reference import attribution as at
from ..reference import golden
from . import compare
from .ct_pickles import FOLDER, Name, View, config, values_of, write
from .test_circuit_tracer import compare_pruned
from .test_graph_io import Mine, assert_same

NAMES = ("plt", "clt", "ranked", "direction")
PUBLISHED = os.environ.get("TCIRCUITS_VIEWER_SCHEMA")


def load(name: str, **options) -> tuple[Graph, dict[str, np.ndarray]]:
    return tc.load_graph(FOLDER / f"{name}.pt", **options), golden.read(FOLDER / f"{name}.npz")


@pytest.mark.parametrize("name", NAMES)
def test_edges_masks_and_scores_are_its_own(name):
    graph, made = load(name)
    chosen = made["selected_features"]
    np.testing.assert_array_equal(graph.dense(), made["adjacency_matrix"])
    np.testing.assert_array_equal(graph.features, made["active_features"][chosen])
    np.testing.assert_array_equal(graph.activations, made["activation_values"][chosen])
    np.testing.assert_array_equal(graph.tokens, made["input_tokens"])
    np.testing.assert_array_equal(graph.target_weights, made["logit_probabilities"])
    assert graph.n_active == len(made["active_features"])
    assert graph.weight.all(), "zeros are no edges"
    compare_pruned(graph, made)


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_is_what_constants_and_unselected_features_add(name):
    """Against the oracle, which has never seen the file: biases, position 0, and columns that the file lacks."""
    graph, made = load(name)
    case, stored = golden.load(str(made["case"]))
    targets = [at.Target("direction", 3, vector=stored["vector"])] if "vector" in stored else None
    a = at.attribute(case.cfg, case.params, case.d, case.tokens[:4], targets, "constant")
    chosen = made["selected_features"]
    np.testing.assert_array_equal(a.features, made["active_features"])
    gone = np.setdiff1d(np.arange(len(a.features)), chosen)
    expected = a.bias[chosen] + a.A[np.ix_(chosen, gone)].sum(1)
    # Each stored number is rounded once; bfloat16 has 8 bits, and what was rounded stays in the rest.
    step = {"plt": 2.0**-23, "ranked": 2.0**-23, "direction": 2.0**-8, "clt": 1e-13}[name]
    size = np.abs(a.A[chosen]).sum(1) + np.abs(a.activations[chosen]) + np.abs(expected)
    assert (np.abs(graph.row_bias[: len(chosen)] - expected) <= step * size).all()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(graph.row_sums()[0], graph.row_value, rtol=0, atol=4e-7 * size.max())
    assert (graph.row_bias[len(chosen) :] == 0).all()


@pytest.mark.parametrize("generation", ["ids", "tokens", "scan_name"])
def test_older_and_newer_keys_are_the_same_graph(generation):
    graph, again = load("plt")[0], tc.load_graph(FOLDER / f"plt@{generation}.pt")
    if generation == "scan_name":
        return assert_same(graph, again)
    assert [t.label for t in graph.targets] == ["w12", "w16", "w0", "w10", "w1"]
    assert [t.label for t in again.targets] == ["#12", "#16", "#0", "#10", "#1"], "the texts are not in such a file"
    unnamed = tuple(replace(t, label=f"#{t.token}") for t in graph.targets)
    assert_same(replace(graph, targets=unnamed, token_text=again.token_text), again)


def test_what_the_file_says_beside_numbers():
    graph, _ = load("ranked")
    assert (graph.model, graph.transcoders, graph.prompt) == ("tiny-gpt2", "tiny/0, tiny/1, tiny/2", "w0 w5 w11 w3")
    assert (graph.n_layers, graph.d_vocab, graph.n_features, graph.n_active) == (3, 17, 20, 51)
    assert graph.token_text == ("w0", "#5", "#11", "#3"), "only tokens that are targets too have a text"
    s = graph.settings
    assert (s["source"], s["bias"], s["unexpanded"], s["max_features"]) == ("circuit-tracer", "rest", "unknown", 20)
    assert (load("plt")[0].settings["unexpanded"], load("clt")[0].transcoders) == ("none", "unknown")
    assert [(t.kind, t.token, t.prob, t.label, t.layer, t.pos) for t in load("direction")[0].targets] == [
        ("direction", None, None, "direction", 3, 3)
    ]


def named(n_layers=3, d_vocab=17):
    return SimpleNamespace(cfg=SimpleNamespace(n_layers=n_layers, d_vocab=d_vocab), name="mine", token="<{}>".format)


def test_a_model_names_the_tokens():
    graph, _ = load("plt", model=named())
    assert graph.token_text == ("<0>", "<5>", "<11>", "<3>")
    assert graph.targets[0].label == "w12", "the file's own text stays"
    assert tc.load_graph(FOLDER / "plt@ids.pt", model=named()).targets[0].label == "<12>"
    for wrong in (named(n_layers=4), named(d_vocab=16)):
        with pytest.raises(InputError, match=r"3 layers and tokens up to 16; 'mine' has"):
            load("plt", model=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_it_can_be_made(name, tmp_path):
    graph = prune(load(name)[0])
    document = viewer_json(graph)
    jsonschema.validate(document, graph_schema())
    if PUBLISHED:
        with open(PUBLISHED, encoding="utf-8") as file:
            jsonschema.validate(json.loads(json.dumps(document)), json.load(file))
    assert document["metadata"]["scan"] == ("tiny/plt" if graph.transcoders == "tiny/plt" else graph.model)
    assert len(document["links"]) == compare.dense_edges(graph).sum()
    assert "w0 w5 w11 w3" in tc.write_page(document, tmp_path / "index.html").read_text(encoding="utf-8")
    assert_same(graph, tc.load_graph(tc.save_graph(graph, tmp_path / "graph.npz")))
    assert tc.load_graph(tc.save_graph(graph.compact(), tmp_path / "graph.npz")).settings["bias"] == "rest"


# ---- files that are written here ----------------------------------------------------------------------------------


def changed(path, name="plt", drop=(), **changes):
    values = {k: v for k, v in (values_of(name) | changes).items() if k not in drop}
    return write(path / "graph.pt", values)


def test_the_writer_writes_what_pytorch_does(tmp_path):
    for name in (*NAMES, "plt@ids", "plt@tokens"):
        assert_same(tc.load_graph(FOLDER / f"{name}.pt"), tc.load_graph(changed(tmp_path, name)))


def test_nodes_in_another_order_are_the_same_graph(tmp_path):
    """Features in the order in which a tracer visited them."""
    values, n = values_of("ranked"), 20
    order = np.random.default_rng(0).permutation(n)
    whole = np.concatenate([order, np.arange(n, len(values["adjacency_matrix"]))])
    values["adjacency_matrix"] = values["adjacency_matrix"][np.ix_(whole, whole)]
    values["selected_features"] = values["selected_features"][order]
    assert_same(load("ranked")[0], tc.load_graph(write(tmp_path / "graph.pt", values)))


def test_large_matrices_are_compressed_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("tcircuits.attribution.ct_graph.BLOCK", 200)
    for name in NAMES:
        graph, made = load(name)
        np.testing.assert_array_equal(graph.dense(), made["adjacency_matrix"])


def test_all_active_features_are_nodes_where_nothing_is_selected(tmp_path):
    assert_same(load("plt")[0], tc.load_graph(changed(tmp_path, drop=["selected_features"])))


@pytest.mark.parametrize("change", [{"drop": ["activation_values"]}, {"activation_values": None}])
def test_activations_that_are_not_there_are_not_made_up(tmp_path, change):
    graph = tc.load_graph(changed(tmp_path, **change))
    assert graph.settings["activations"] == "unknown"
    assert not graph.row_bias.any()
    document = viewer_json(graph)
    jsonschema.validate(document, graph_schema())
    assert {node["activation"] for node in document["nodes"]} == {None}
    compare_pruned(graph, load("plt")[1])


def test_a_graph_without_features(tmp_path):
    values, keep = values_of("plt"), slice(51, None)
    empty = {"active_features": np.zeros((0, 3), np.int64), "selected_features": np.zeros(0, np.int64)}
    empty |= {"activation_values": np.zeros(0, np.float32), "adjacency_matrix": values["adjacency_matrix"][keep, keep]}
    graph = tc.load_graph(write(tmp_path / "graph.pt", values | empty))
    assert (graph.n_features, graph.n_active, len(graph.row_start)) == (0, 0, 6)
    jsonschema.validate(viewer_json(graph), graph_schema())


def spoil(key, index, value):
    """A file in which one number is another."""

    def change():
        x = values_of("plt")[key].copy()
        x[index] = value
        return {key: x}

    return change


def cut(key, *index):
    return lambda: {key: values_of("plt")[key][index]}


TARGET = ("circuit_tracer.attribution.targets", "LogitTarget")
WRONG = {
    "no matrix": (lambda: {"drop": ["adjacency_matrix"]}, "missing: adjacency_matrix"),
    "no targets": (lambda: {"drop": ["logit_targets"]}, "no logit_targets"),
    "targets of another class": (lambda: {"logit_targets": [config(token_str="a")] * 5}, "no logit_targets"),
    "target without id": (lambda: {"logit_targets": [Name(*TARGET, arguments=("a",))] * 5}, "no logit_targets"),
    "too few targets": (lambda: {"logit_targets": [("a", 1)] * 4}, "4 targets and 5 probabilities"),
    "no probabilities": (
        lambda: {"logit_targets": [], "logit_probabilities": np.zeros(0, np.float32)},
        "it has no targets",
    ),
    "no prompt": (lambda: {"input_string": 3}, "no text 'input_string'"),
    "no configuration": (lambda: {"cfg": None}, "no 'cfg'"),
    "no layers": (lambda: {"cfg": config(n_layers="3", d_vocab=17)}, r"cfg\.n_layers is '3'"),
    "other layers": (lambda: {"cfg": config(n_layers=4, d_vocab=17)}, r"\[N, N\] = \[76, 76\]"),
    "a thousand million layers": (lambda: {"cfg": config(n_layers=10**9, d_vocab=17)}, r"adjacency_matrix has shape"),
    "no vocabulary": (lambda: {"cfg": config(n_layers=3), "vocab_size": None}, "size of the vocabulary is None"),
    "small vocabulary": (lambda: {"vocab_size": 4}, r"tokens is in 0\.\.11"),
    "scan of numbers": (lambda: {"scan": [1, 2]}, "scan is"),
    "not square": (cut("adjacency_matrix", slice(0, 70)), r"shape \[70, 72\]"),
    "one axis": (cut("adjacency_matrix", 0), r"F32 of shape \[72\]; it must be F64 or F32"),
    "matrix of integers": (lambda: {"adjacency_matrix": np.zeros((72, 72), np.int64)}, "is I64"),
    "two columns": (cut("active_features", slice(None), slice(0, 2)), r"\[A, 3\] = \[51, 3\]"),
    "few activations": (cut("activation_values", slice(0, 9)), r"activation_values has shape \[9\]"),
    "selected past the end": (spoil("selected_features", 3, 51), r"selected_features is in 0\.\.51"),
    "selected below zero": (spoil("selected_features", 3, -1), r"selected_features is in -1\.\."),
    "selected twice": (spoil("selected_features", 3, 4), "stands twice"),
    "more selected than active": (lambda: {"selected_features": np.arange(52)}, "52 selected features, and 51 active"),
    "feature above the model": (spoil("active_features", (50, 0), 3), r"layer of a feature is in 0\.\.3"),
    "feature past the prompt": (spoil("active_features", (50, 1), 4), "position of a feature"),
    "feature of a huge number": (spoil("active_features", (50, 2), 2**62), "index of a feature"),
    "token below zero": (spoil("input_tokens", 1, -5), r"tokens is in -5\.\."),
    "edge from its own layer": (spoil("adjacency_matrix", (0, 1), 1.0), "edges must go up"),
    "edge into a token": (spoil("adjacency_matrix", (64, 1), 1.0), "into errors or tokens"),
    "edge into an error that is no number": (spoil("adjacency_matrix", (52, 1), np.nan), "into errors or tokens"),
    "edge out of a target": (spoil("adjacency_matrix", (50, 71), 1.0), "out of targets"),
    "not a number": (spoil("adjacency_matrix", (50, 1), np.nan), "weight holds numbers that are not finite"),
    "infinite": (spoil("adjacency_matrix", (70, 1), np.inf), "weight holds numbers that are not finite"),
    "activation without end": (spoil("activation_values", 7, np.inf), "activations holds numbers"),
    "probability above one": (spoil("logit_probabilities", 0, 1.5), "probability 1.5"),
    "probability below zero": (spoil("logit_probabilities", 0, -0.5), "probability -0.5"),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("name", WRONG)
def test_contents_that_do_not_fit_are_refused(name, tmp_path):
    change, message = WRONG[name]
    path = changed(tmp_path, **change())
    with pytest.raises(InputError, match=message) as found:
        tc.load_graph(path)
    assert str(path) in str(found.value)


def test_a_graph_without_targets_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"names no targets \(logit_targets or logit_tokens\)"):
        tc.load_graph(changed(tmp_path, drop=["logit_tokens"], logit_targets=[]))


def test_all_problems_come_at_once(tmp_path):
    path = changed(tmp_path, scan=3, input_string=None, drop=["input_tokens"])
    with pytest.raises(InputError, match=r"(?s)input_string.*scan is 3.*missing: input_tokens"):
        tc.load_graph(path)
    wrong = spoil("input_tokens", 0, 99)() | spoil("adjacency_matrix", (64, 1), 1.0)()
    with pytest.raises(InputError, match=r"(?s)into errors.*tokens is in"):
        tc.load_graph(changed(tmp_path, **wrong))


def test_a_matrix_that_the_file_does_not_hold_is_not_allocated(tmp_path):
    """One stored number, repeated to 64 MiB: tensors of repeated numbers are lawful, but no tracer saves any."""
    side, n = 4096, 4096 - 21
    active = np.stack([np.zeros(n), np.arange(n) % 4, np.arange(n) // 4], 1).astype(np.int64)
    wide = {"active_features": active, "activation_values": np.ones(n, np.float32)}
    wide["adjacency_matrix"] = View(np.ones(1, np.float32), (side, side), (0, 0))
    with pytest.raises(InputError, match=r"would take \d+ bytes, more than the \d+ of the file"):
        tc.load_graph(changed(tmp_path, drop=["selected_features"], **wide))
    huge = View(np.ones(1, np.float32), (10**7, 10**7), (0, 0))
    with pytest.raises(InputError, match="would decode to"):
        tc.load_graph(changed(tmp_path, adjacency_matrix=huge))
    long = View(np.ones(72, np.float32), (72, 72), (72, 1))
    with pytest.raises(InputError, match="ends at byte"):
        tc.load_graph(changed(tmp_path, adjacency_matrix=long))


def test_no_code_of_a_file_is_run(tmp_path):
    path, trace = tmp_path / "graph.pt", tmp_path / "code ran"
    call = Name("os", "mkdir", (str(trace),))
    for values in (values_of("plt") | {"cfg": call}, values_of("plt") | {"extra": [call]}, call):
        with pytest.raises(InputError, match=r"asks for os\.mkdir"):
            tc.load_graph(write(path, values))
    for name in (("builtins", "eval"), ("torch", "load"), ("circuit_tracer_evil", "run"), ("numpy", "load")):
        with pytest.raises(InputError, match="not loaded"):
            tc.load_graph(changed(tmp_path, cfg=Name(*name, arguments=("1",))))
    assert not trace.exists()
    assert Mine(trace).__reduce__()[0] is os.mkdir, "which is what a pickle would call"


@pytest.mark.parametrize(
    "value", [{}, [], 3, {"state_dict": {"w": np.ones(3, np.float32)}}, np.ones((2, 2), np.float32)]
)
def test_other_files_of_pytorch_are_refused(value, tmp_path):
    with pytest.raises(InputError, match=r"graph\.pt"):
        tc.load_graph(write(tmp_path / "graph.pt", value))


def test_a_cut_or_changed_file_is_refused_or_means_the_same(tmp_path):
    graph, path = load("plt")[0], tmp_path / "graph.pt"
    whole, rng, refused = (FOLDER / "plt.pt").read_bytes(), np.random.default_rng(0), 0
    for size in (0, 3, 100, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"graph\.pt"):
            tc.load_graph(path)
    for at_byte in rng.integers(0, len(whole), 80):
        bytes_ = bytearray(whole)
        bytes_[at_byte] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes_)
        try:
            assert_same(graph, tc.load_graph(path))
        except InputError:
            refused += 1
    assert refused > 60


def test_a_name_does_not_decide_what_a_file_is(tmp_path):
    graph, _ = load("plt")
    (tmp_path / "graph.npz").write_bytes((FOLDER / "plt.pt").read_bytes())
    assert_same(graph, tc.load_graph(tmp_path / "graph.npz"))
    tc.save_graph(graph, tmp_path / "graph.pt")
    assert_same(graph, tc.load_graph(tmp_path / "graph.pt"))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(InputError, match="no graph of tcircuits or circuit-tracer"):
        tc.load_graph(tmp_path / "other.pt")


def test_a_rest_is_not_called_a_bias():
    """The sums of these rows balance by construction, so no gap is told."""
    found = summary(prune(tc.load_graph(FOLDER / "plt.pt")))
    assert (found["bias"], found["max_row_gap"]) == ("rest", None)
    assert found["bias_share"] > 0
