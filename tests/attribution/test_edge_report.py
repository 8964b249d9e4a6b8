"""An edge by heads as the command has it: against the graph's rows, and one head multiplied out by hand."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.attribution.edge_report import edge_report
from tcircuits.attribution.node_ids import parse_node, target_spec
from tcircuits.cli import common
from tcircuits.types import InputError

PROMPT = "From 1772 the strike went on until 17"


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def tiny():
    model = tc.load_model("tiny")
    return model, tc.load_transcoders("tiny-transcoders", model=model)


@pytest.fixture(scope="module")
def graph(tiny):
    """A logit, a difference, a feature and a direction; all edges."""
    model, d = tiny
    targets = [tc.Logit("95"), tc.Difference("95", "12"), tc.Direction(np.ones(128), "ones")]
    first = tc.attribute(model, d, PROMPT, targets=targets[:1])
    layer, pos, index = first.features[first.features[:, 0] == 3][-1].tolist()
    return tc.attribute(model, d, PROMPT, targets=[*targets, tc.Feature(layer, pos, index)], max_features=60)


@pytest.fixture
def run(capsys):
    def go(*arguments, code=0):
        assert cli.main([str(a) for a in arguments]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    return go


def balanced(found):
    total = found["direct"] + sum(h["adds"] for h in found["heads"]) + found["other_heads"] + found["several"]
    return abs(total - found["edge"]) <= 1e-6 * found["mass"] and found["gap"] <= 1e-6


def test_edges_of_a_saved_graph(run, graph, tmp_path):
    """Into a logit, a difference, features; from features, an error, a token; their weights are those of the file."""
    path = tc.save_graph(graph, tmp_path / "graph.npz")
    last, L = len(graph.tokens) - 1, graph.n_layers
    f = [x.tolist() for x in graph.features]
    logit, spec = f"{L + 1}_{graph.targets[0].token}_{last}", graph.targets[3]
    top = next(i for i, x in enumerate(f) if x[0] == 2 and x[1] == last)
    low = next(i for i, x in enumerate(f) if x[0] == 0)

    def name(i):
        return "_".join(map(str, (f[i][0], f[i][2], f[i][1])))

    token = (f"E_{graph.tokens[last - 1]}_{last - 1}", graph.n_features + graph.n_errors + last - 1)
    error = (f"1_-1_{last - 2}", graph.n_features + len(graph.tokens) + last - 2)
    edges = [
        (logit, graph.n_sources, *token),
        (logit.replace(f"_{last}", f"-{last}").replace(f"{L + 1}_", "L_"), graph.n_sources, name(low), low),
        (f"{L + 1}_{graph.d_vocab + 1}_{last}", graph.n_sources + 1, *error),
        (f"{L + 1}_{graph.d_vocab + 3}_{spec.pos}", graph.n_sources + 3, name(low), low),
        (name(top), top, *error),
    ]
    dense = graph.dense()
    for target, row, source, column in edges:
        found = json.loads(run("attention", "--graph", path, "--edge", target, source, "--json", "--top", 5))
        assert found["in_graph"] == pytest.approx(float(dense[row, column]), rel=1e-6)
        assert found["edge"] == pytest.approx(found["in_graph"], abs=1e-6 * found["mass"])
        assert balanced(found)
        assert found["prompt"] == PROMPT
        assert len(found["heads"]) == (4 if target == name(top) else 5), "of layer 2 alone"
        sizes = [abs(h["adds"]) for h in found["heads"]]
        assert sizes == sorted(sizes, reverse=True)
    shown = run("attention", "--graph", path, "--edge", logit, token[0])
    assert f"({token[0]}) \u2192 95 ({logit})" in shown
    assert "through several heads" in shown
    assert "in the graph" in shown
    assert "Head 1/2" in run("attention", "--graph", path, "--head", "1/2", "--query", 3)


def test_one_head_by_hand(tiny):
    """From a token to a feature of layer 1 through a head of layer 1: pattern, norms, OV and encoder, in float64."""
    model, d = tiny
    ids = np.asarray(model.encode(PROMPT, bos="auto"))
    sites = ("resid_pre", "resid_mid", "pattern")
    acts = {k: np.asarray(v[1, 0], np.float64) for k, v in tc.forward(
        model.cfg, model.params, jnp.asarray(ids)[None], sites=sites).acts.items()}  # fmt: skip
    first = tc.attribute(model, d, ids, targets=[3])
    _, pos, index = first.features[first.features[:, 0] == 1][-1].tolist()
    source = pos - 1
    p, eps, embed = model.params, model.cfg.norm_eps, np.asarray(model.params.embed, np.float64)
    attn = {k: np.asarray(getattr(p.blocks.attn, k), np.float64)[1] for k in ("w_v", "w_o")}
    gain1, gain2 = (np.asarray(n.w, np.float64)[1] for n in (p.blocks.norm1, p.blocks.norm2))

    def scale(x):
        return np.sqrt((x**2).mean() + eps)

    x = embed[ids[source]] * gain1 / scale(acts["resid_pre"][source])
    read = np.asarray(d.w_enc, np.float64)[1, index] * gain2 / scale(acts["resid_mid"][pos])
    found = edge_report(model, d, ids, f"1_{index}_{pos}", f"E_{ids[source]}_{source}", top=99)
    group = model.cfg.n_heads // model.cfg.n_kv_heads
    assert balanced(found)
    seen = {(h["layer"], h["head"]): h for h in found["heads"]}
    for h in range(model.cfg.n_heads):
        alone = x @ attn["w_v"][:, h // group] @ attn["w_o"][h] @ read * acts["pattern"][h, pos, source]
        assert seen[1, h]["adds"] == pytest.approx(alone, abs=2e-6 * found["mass"])
        assert seen[1, h]["pattern"] == pytest.approx(acts["pattern"][h, pos, source], rel=1e-5)


def test_a_prompt_needs_no_graph(run, tiny):
    model, _ = tiny
    ids = model.encode(PROMPT, bos="auto")
    found = json.loads(run("attention", PROMPT, "--edge", f"5_95_{len(ids) - 1}", f"E_{ids[3]}_3", "--json"))
    assert balanced(found)
    assert found["in_graph"] is None
    assert found["direct"] == 0, "no path between positions without a head"
    assert found["source"] == {"id": f"E_{ids[3]}_3", "name": f"{model.token(ids[3])!r} @3", "position": 3,
                               "token": model.token(ids[3])}  # fmt: skip


def test_targets_of_a_graph_are_read_from_its_file(tiny, graph):
    model, last = tiny[0], len(graph.tokens) - 1
    token = graph.targets[0].token
    assert target_spec(model, parse_node(f"5_{token}_{last}", 4), graph) == tc.Logit(token, last)
    d_vocab = model.cfg.d_vocab
    pair = target_spec(model, parse_node(f"5_{d_vocab + 1}_{last}", 4), graph)
    assert [model.token(t) for t in (pair.plus, pair.minus)] == ["95", "12"]
    with pytest.raises(InputError, match="is a direction that its file does not describe"):
        target_spec(model, parse_node(f"5_{d_vocab + 2}_{last}", 4), graph)
    with pytest.raises(InputError, match=f"no target of this graph; it has 5_{graph.targets[0].token}_{last}"):
        target_spec(model, parse_node(f"5_3_{last}", 4), graph)


def test_a_graph_of_other_weights_is_refused(tiny, graph):
    model, d = tiny
    row, start = graph.n_features, graph.row_start
    weight = graph.weight.copy()
    weight[start[row] : start[row + 1]] *= 1.1
    other = dataclasses.replace(graph, weight=weight)
    last = len(graph.tokens) - 1
    ends = (f"5_{graph.targets[0].token}_{last}", f"E_{graph.tokens[last]}_{last}")
    assert balanced(edge_report(model, d, "", *ends, graph=graph))
    with pytest.raises(InputError, match="in the graph, which was made of the model 'tiny'"):
        edge_report(model, d, "", *ends, graph=other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a",), "give one of --head"),
        (("a", "--head", "1/0", "--edge", "5_3_0", "E_1_0"), "give one of --head"),
        (("--head", "1/0"), "give one of a prompt and --graph"),
        (("a", "--edge", "5_3_0", "E_1_0", "--key", "1"), "--query and --key belong to --head"),
        (("a", "--edge", "5_3_0", "E_1_0", "--top", "0"), "--top 0"),
        (("a", "--edge", "x", "E_1_0"), "node 'x': give an id of the graph, such as 2_417_9"),
        (("a", "--edge", "5_3_0", "4_1_0"), "the model has layers 0..3; targets have 5"),
        (("a", "--edge", "5_3_0", "E_-1_0"), "only the error of a layer has -1"),
        (("a", "--edge", "5_3_0", "E_1_0"), "the token at position 0 of this prompt is 0"),
        (("a", "--edge", "5_3_9", "E_0_0"), "the prompt has positions 0..1"),
        (("a", "--edge", "5_5000_0", "E_0_0"), "only the file of a graph tells"),
        (("a", "--edge", "1_2000_0", "E_0_0"), "feature 2000 of layer 1: its dictionary has features 0..1023"),
        (("a", "--edge", "1_-1_1", "E_0_0"), "has no inputs"),
        (("a", "--edge", "5_3_1", "5_3_1"), "is a target: an edge comes from"),
        (("a", "--edge", "1_3_1", "1_-1_1"), "its layer is not below"),
        (("a", "--edge", "1_3_0", "0_-1_1"), "its position comes after"),
        (("a", "--edge", "5_3_1", "0_-1_0"), "MLPs at position 0 are one constant"),
        (("a", "--edge", "5_3_1", "0_0_1"), "feature 0 of layer 0 is not active at position 1"),
        (("--graph", "nowhere.npz", "--edge", "5_3_1", "E_0_0"), "cannot read nowhere.npz"),
    ],
)
def test_refused(run, arguments, message):
    assert message in run("attention", *arguments, code=2)
