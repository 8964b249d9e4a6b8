"""The viewers' JSON: what is written against `dense()` and two schemas, and that files of every kind are read back."""

import copy
import json
import os
import resource
from dataclasses import asdict, replace
from decimal import Decimal

import jsonschema
import numpy as np
import pytest

from tcircuits.attribution import viewer_read
from tcircuits.attribution.graph_io import graph_schema, read_viewer_json, viewer_json, write_viewer_json
from tcircuits.attribution.node_ids import parse_node
from tcircuits.attribution.prune import edge_scores, prune, scores
from tcircuits.attribution.viewer_json import cantor, short
from tcircuits.types import InputError

from ..reference import graph as gr
from .graphs import GRAPHS, HOSTILE, LOGITS, NAMES, NO_TOKEN, no_edges, random_graph

SAMPLE, PUBLISHED = os.environ.get("TCIRCUITS_SAMPLE_GRAPH"), os.environ.get("TCIRCUITS_VIEWER_SCHEMA")


def pruned(graph):
    return graph if graph.node_mask is not None else prune(graph)


def keys(g):
    """(kind, layer, position, number) of every node, from the order of nodes alone; by hand for targets."""
    T = len(g.tokens)
    out = [("feature", *map(int, f)) for f in g.features[:, [0, 1, 2]]]
    out += [("error", layer, t, None) for layer in range(g.n_layers) for t in range(T)]
    out += [("token", -1, t, int(g.tokens[t])) for t in range(T)]
    numbers = [g.d_vocab + i if t.kind != "logit" else t.token for i, t in enumerate(g.targets)]
    return out + [("target", g.n_layers + 1, t.pos, v) for t, v in zip(g.targets, numbers, strict=True)]


def matrix(graph, nodes):
    """The adjacency of a read file in the order of `nodes`."""
    place = {key: i for i, key in enumerate(nodes)}
    where = [place[n.kind, n.layer, n.pos, n.feature] for n in graph.nodes]
    assert len(set(where)) == len(where)
    out = np.zeros((len(nodes), len(nodes)))
    for s, t, w in zip(graph.source, graph.target, graph.weight, strict=True):
        assert out[where[t], where[s]] == 0, "a link stands once"
        out[where[t], where[s]] = w
    return out, sorted(where)


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_satisfies_our_schema(name):
    jsonschema.validate(viewer_json(GRAPHS[name]()), graph_schema())


@pytest.mark.skipif(PUBLISHED is None, reason="TCIRCUITS_VIEWER_SCHEMA names no file")
@pytest.mark.parametrize("name", NAMES)
def test_it_satisfies_the_published_schema(name):
    with open(str(PUBLISHED), encoding="utf-8") as file:
        jsonschema.validate(json.loads(json.dumps(viewer_json(GRAPHS[name]()))), json.load(file))


SPOILED = {
    "no clerp": lambda d: d["nodes"][0].pop("clerp"),
    "old error id": lambda d: first(d, "mlp reconstruction error").update(node_id="0_1_2"),
    "error with a bias": lambda d: first(d, "mlp reconstruction error").update(bias=0.0),
    "logit without (p=...)": lambda d: first(d, "logit").update(clerp="Paris"),
    "layer as number": lambda d: d["nodes"][0].update(layer=0),
    "link with more": lambda d: d["links"][0].update(more=1),
    "weight as text": lambda d: d["links"][0].update(weight="1"),
    "difference with an id": lambda d: d["metadata"]["tcircuits"]["targets"][-1].update(id=3),
    "share above one": lambda d: d["metadata"]["tcircuits"].update(error_share=1.2),
    "no scores": lambda d: d["metadata"]["tcircuits"].pop("replacement_score"),
    "a time": lambda d: d["metadata"]["info"].update(create_time_ms=1),
}


def first(document, kind):
    return next(node for node in document["nodes"] if node["feature_type"] == kind)


@pytest.mark.parametrize("name", SPOILED)
def test_our_schema_sees(name):
    document = viewer_json(random_graph(seed=4, targets=(*LOGITS, *NO_TOKEN)))
    jsonschema.validate(document, graph_schema())
    SPOILED[name](document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, graph_schema())


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique(name):
    nodes = viewer_json(GRAPHS[name]())["nodes"]
    for field in ("node_id", "jsNodeId"):
        assert len({node[field] for node in nodes}) == len(nodes)


@pytest.mark.parametrize("name", [n for n in NAMES if "one token twice" not in n.values])
def test_written_and_read_it_is_the_same_graph(name):
    g = pruned(GRAPHS[name]())
    back = read_viewer_json(json.loads(json.dumps(viewer_json(g))))
    got, present = matrix(back, keys(g))
    want = g.dense()
    kept = np.zeros(want.shape, bool)
    kept[g.row_nodes[g.edge_row[g.edge_mask]], g.source[g.edge_mask]] = True
    np.testing.assert_array_equal(got.astype(want.dtype), np.where(kept, want, 0))
    np.testing.assert_array_equal(present, np.flatnonzero(g.node_mask))
    assert back.tokens == g.token_text


def test_nodes_say_what_the_graph_says():
    g = prune(random_graph(seed=4, targets=(*LOGITS, *NO_TOKEN)))
    nodes = {node["node_id"]: node for node in viewer_json(g)["nodes"]}
    bias, unexpanded = g.bias, g.unexpanded.sum((1, 2), dtype=np.float64)
    for i, (kind, layer, pos, number) in enumerate(keys(g)):
        middle = -1 if kind == "error" else number
        node = nodes.pop(f"{'E' if layer < 0 else layer}_{middle}_{pos}", None)
        assert (node is not None) == g.node_mask[i]
        if node is None:
            continue
        assert (node["ctx_idx"], node["layer"]) == (pos, "E" if layer < 0 else str(layer))
        assert node["influence"] == (None if kind == "target" else g.cumulative[i])
        if kind in ("feature", "target"):
            assert (np.float32(node["bias"]), np.float32(node["unexpanded"])) == (bias[i], np.float32(unexpanded[i]))
        else:
            assert "bias" not in node
        if kind == "feature":
            s = layer + number
            assert node["feature"] == sum(range(s + 1)) + number
            assert np.float32(node["activation"]) == g.activations[i]
    assert nodes == {}


def test_targets_that_are_no_token_have_numbers_past_the_vocabulary():
    g = random_graph(targets=(LOGITS[0], *NO_TOKEN, LOGITS[0], replace(LOGITS[0], pos=1)))
    document = viewer_json(g)
    nodes = [node for node in document["nodes"] if node["feature_type"] == "logit"]
    assert [n["feature"] for n in nodes] == [7, 18, 19, 20, 21, 7]
    assert [n["node_id"] for n in nodes] == ["5_7_5", "5_18_5", "5_19_3", "5_20_4", "5_21_5", "5_7_1"]
    assert [n["token_prob"] for n in nodes] == [0.7, 0, 0, 0, 0.7, 0.7]
    assert [n["is_target_logit"] for n in nodes] == [True] + 5 * [False]
    assert [n["clerp"] for n in nodes[:2]] == ['Output " Paris" (p=0.700)', 'Target "a - b" (p=0.000)']
    facts = document["metadata"]["tcircuits"]["targets"]
    assert [(t["id"], t["prob"]) for t in facts] == [(7, 0.7), *3 * [(None, None)], (7, 0.7), (7, 0.7)]
    assert [t["kind"] for t in facts[:4]] == ["logit", "difference", "direction", "feature"]


def test_metadata():
    g = prune(random_graph(seed=2), 0.7, 0.9)
    document = viewer_json(g, slug="a b", scan="org/model")
    metadata, facts = document["metadata"], document["metadata"]["tcircuits"]
    assert (metadata["slug"], metadata["scan"], metadata["node_threshold"]) == ("a b", "org/model", 0.7)
    assert metadata["pruning_settings"] == {"node_threshold": 0.7, "edge_threshold": 0.9}
    assert metadata["generation_settings"]["max_feature_nodes"] == 40
    assert (facts["n_features"], facts["n_selected"]) == (90, 40)
    assert (facts["n_nodes"], facts["n_edges"]) == (len(document["nodes"]), len(document["links"]))
    found = asdict(scores(g))
    assert facts["completeness_score_inputs"] == found["completeness_inputs"]
    assert {
        name: facts[name] for name in ("unexpanded_share", "error_share", "bias_share", "origin_share")
    }.items() <= (found.items())
    assert facts["max_row_gap"] < 1e-6


def test_a_graph_that_is_not_pruned_is_pruned_with_the_defaults():
    assert viewer_json(random_graph()) == viewer_json(prune(random_graph(), 0.8, 0.98))


def test_hostile_text_arrives_unchanged(tmp_path):
    g = random_graph(targets=tuple(replace(LOGITS[0], label=text, token=i) for i, text in enumerate(HOSTILE)))
    write_viewer_json(g, tmp_path / "x.json")
    raw = (tmp_path / "x.json").read_bytes()
    assert raw.isascii()
    back = read_viewer_json(tmp_path / "x.json")
    assert back.tokens == HOSTILE
    assert [back.nodes[i].label for i in back.of_kind("target")] == [f'Output "{t}" (p=0.700)' for t in HOSTILE]


def test_what_nodes_promote():
    g = prune(random_graph())
    node = int(np.flatnonzero(g.node_mask)[0])
    document = viewer_json(g, promoted={node: ([(" Paris", np.float32(2.5))], [("x", -1)]), 10**6: ((), ())})
    assert document["nodes"][0]["top_logits"] == [[" Paris", 2.5]]
    assert document["nodes"][0]["bottom_logits"] == [["x", -1.0]]
    assert "top_logits" not in document["nodes"][1]
    jsonschema.validate(document, graph_schema())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_short_numbers_are_the_same_numbers(dtype):
    rng = np.random.default_rng(0)
    some = rng.normal(size=3000) * 10.0 ** rng.integers(-44, 38, 3000)
    x = np.concatenate([some, [0, -0.0, 1e-45, 3.4e38, 0.1, 1 / 3, 16777217]]).astype(dtype)
    back = np.array([float(repr(v)) for v in short(x)])
    np.testing.assert_array_equal(back.astype(dtype), x)
    if dtype == np.float32:
        usual = x[(np.abs(x) > 1e-13) & (np.abs(x) < 1e30)]
        digits = [len(Decimal(repr(v)).normalize().as_tuple().digits) for v in short(usual)]
        assert max(digits) == 9


# ---- fewer edges --------------------------------------------------------------------------------------------------


def oracle_scores(g):
    """The reference's edge influence on the kept nodes, as a matrix."""
    keep, A = g.node_mask, g.dense().astype(np.float64)
    mass = g._by_node(g.row_unexpanded_abs).astype(np.float64)
    A, mass = np.where(keep[:, None] & keep, A, 0), np.where(keep[:, None, None], mass, 0)
    return gr.edge_influence(A, g.target_weights, mass)


@pytest.mark.parametrize("name", ["float32", "pruned", "no token", "one layer"])
def test_edge_scores_are_the_references(name):
    g = pruned(GRAPHS[name]())
    got = np.zeros((g.n_nodes, g.n_nodes))
    got[g.row_nodes[g.edge_row], g.source] = edge_scores(g, g.node_mask[: g.n_sources])
    np.testing.assert_allclose(got, oracle_scores(g), rtol=1e-10, atol=1e-14)
    assert (got > 0).sum() >= g.edge_mask.sum() > 10


@pytest.mark.parametrize("budget", [0, 60, 90, 120])
def test_the_strongest_edges_are_kept_and_nothing_dangles(budget):
    g = prune(random_graph(n=60, seed=3), 0.9, 0.99)
    everything = viewer_json(g)
    document = viewer_json(g, max_edges=budget)
    names = [n["node_id"] for n in everything["nodes"]]
    assert [n["node_id"] for n in document["nodes"]] == names
    all_links = {(x["source"], x["target"]): x["weight"] for x in everything["links"]}
    shown = {(x["source"], x["target"]): x["weight"] for x in document["links"]}
    assert shown.items() <= all_links.items()

    score = {}
    place = dict(zip(names, np.flatnonzero(g.node_mask), strict=True))
    table = oracle_scores(g)
    for s, t in all_links:
        score[s, t] = table[place[t], place[s]]
    needed = set()
    for node in everything["nodes"]:
        into = [link for link in all_links if link[1] == node["node_id"]]
        out = [link for link in all_links if link[0] == node["node_id"] and node["feature_type"] != "embedding"]
        needed |= {max(links, key=score.__getitem__) for links in (into, out) if links}
    assert needed <= shown.keys()
    others = sorted(all_links.keys() - needed, key=lambda link: -score[link])
    assert shown.keys() - needed == set(others[: max(budget - len(needed), 0)])
    facts = document["metadata"]["tcircuits"]
    assert facts["edges_shown"] == len(shown) == max(budget, len(needed)) < facts["n_edges"] == len(all_links)
    assert document["metadata"]["pruning_settings"]["max_edges"] == budget


def test_a_budget_above_what_is_kept_changes_nothing_and_a_negative_one_is_refused():
    g = prune(random_graph())
    assert viewer_json(g, max_edges=10**6)["links"] == viewer_json(g)["links"]
    with pytest.raises(InputError, match="max_edges=-1"):
        viewer_json(g, max_edges=-1)


# ---- files --------------------------------------------------------------------------------------------------------


def test_a_folder_gets_the_file_and_the_list(tmp_path):
    g = random_graph()
    written = write_viewer_json(g, tmp_path / "new" / "folder", slug="one")
    folder = tmp_path / "new" / "folder"
    assert json.loads((folder / "one.json").read_text()) == json.loads(json.dumps(written))
    write_viewer_json(random_graph(seed=1), folder / "two.json")
    again = write_viewer_json(random_graph(seed=2), folder, slug="one", scan="other")
    graphs = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert [(x["slug"], x["scan"]) for x in graphs] == [("two", "model"), ("one", "other")]
    assert graphs[1] == json.loads(json.dumps(again["metadata"]))
    assert sorted(p.name for p in folder.iterdir()) == ["graph-metadata.json", "one.json", "two.json"]


def test_the_method_of_graph_writes_the_same(tmp_path):
    g = prune(random_graph())
    g.to_viewer_json(tmp_path / "a" / "x.json", max_edges=80)
    write_viewer_json(prune(random_graph()), tmp_path / "b", slug="x", max_edges=80)
    assert (tmp_path / "a" / "x.json").read_bytes() == (tmp_path / "b" / "x.json").read_bytes()
    assert '": ' not in (tmp_path / "a" / "x.json").read_text(), "compact"


@pytest.mark.parametrize("slug", ["", "../x", "a/b", "a\\b", ".hidden", "a\nb", "x" * 300, "graph-metadata", "a:b"])
def test_a_slug_that_names_no_file_is_refused(slug, tmp_path):
    with pytest.raises(InputError, match="slug"):
        write_viewer_json(random_graph(), tmp_path, slug=slug)
    assert list(tmp_path.iterdir()) == []


def test_a_slug_that_is_not_the_files_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the name of"):
        write_viewer_json(random_graph(), tmp_path / "a.json", slug="b")


@pytest.mark.parametrize("content", ["", "[]", '{"graphs": 3}', '{"graphs": [3]}', "[" * 10**5])
def test_a_list_that_is_none_is_left_alone(content, tmp_path):
    (tmp_path / "graph-metadata.json").write_text(content)
    with pytest.raises(InputError, match=r"graph-metadata\.json is no list of graphs"):
        write_viewer_json(random_graph(), tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == [content]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_viewer_json(random_graph(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="cannot write"):
            write_viewer_json(random_graph(seed=1), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_numbers_that_json_cannot_say_are_refused(tmp_path):
    g = prune(random_graph())
    bad = replace(g, activations=np.full_like(g.activations, np.nan))
    with pytest.raises(InputError, match="finite"):
        write_viewer_json(bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- reading ------------------------------------------------------------------------------------------------------


def test_old_error_ids_are_understood_where_they_equal_features_of_layer_0():
    # All edges that may be are there and kept: wherever an error reaches, the feature of layer 0 reaches too.
    g = prune(random_graph(n=70, density=1.0, seed=6), 1.0, 1.0)
    document = viewer_json(g)
    names = {n["node_id"]: f"0_{n['layer']}_{n['ctx_idx']}" for n in document["nodes"] if n["feature"] == -1}
    old = copy.deepcopy(document)
    for node in old["nodes"]:
        node["node_id"] = names.get(node["node_id"], node["node_id"])
    for link in old["links"]:
        link["source"] = names.get(link["source"], link["source"])
    ids = [node["node_id"] for node in old["nodes"]]
    assert len(ids) - len(set(ids)) > 5, "ids do collide"
    want, got = read_viewer_json(document), read_viewer_json(old)
    for field in ("source", "target", "weight"):
        np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
    assert [(n.kind, n.layer, n.pos, n.feature) for n in got.nodes] == [
        (n.kind, n.layer, n.pos, n.feature) for n in want.nodes
    ]


def test_an_ambiguous_source_is_the_node_below_the_target_in_any_order():
    error = {"node_id": "0_1_0", "layer": "1", "ctx_idx": 0, "feature_type": "mlp reconstruction error"}
    feature = {"node_id": "0_1_0", "layer": "0", "ctx_idx": 0, "feature_type": "cross layer transcoder"}
    top = {"node_id": "1_5_0", "layer": "1", "ctx_idx": 0, "feature_type": "cross layer transcoder"}
    links = [{"source": "0_1_0", "target": "1_5_0", "weight": 1.0}]
    for nodes in ([error, feature, top], [feature, error, top]):
        graph = read_viewer_json({"metadata": {}, "nodes": nodes, "links": links})
        assert [graph.nodes[i].kind for i in graph.source] == ["feature"]


@pytest.mark.skipif(SAMPLE is None, reason="TCIRCUITS_SAMPLE_GRAPH names no file")
def test_a_graph_of_the_public_tracer():
    with open(str(SAMPLE), encoding="utf-8") as file:
        document = json.load(file)
    graph = read_viewer_json(str(SAMPLE))
    kinds = [node.kind for node in graph.nodes]
    assert [kinds.count(k) for k in ("feature", "error", "token", "target")] == [24, 6, 9, 2]
    assert len(graph.tokens) == 9
    for node, raw in zip(graph.nodes, document["nodes"], strict=True):
        if node.kind == "feature":
            assert cantor(node.layer, node.feature) == raw["feature"]
        if node.kind == "error":
            assert raw["node_id"] == f"0_{node.layer}_{node.pos}"
    ids = [raw["node_id"] for raw in document["nodes"]]
    links = [(ids[s], ids[t], w) for s, t, w in zip(graph.source, graph.target, graph.weight, strict=True)]
    assert links == [(x["source"], x["target"], x["weight"]) for x in document["links"]]
    assert len(links) == 367


def minimal():
    """What every tool writes at least."""
    nodes = [
        {"node_id": "E_5_0", "layer": "E", "ctx_idx": 0, "feature_type": "embedding"},
        {"node_id": "b", "layer": 0, "ctx_idx": 0, "feature_type": "bias"},
        {"node_id": "l", "layer": 1, "ctx_idx": 0, "feature_type": "lorsa", "feature": 8},
        {"node_id": "le", "layer": 1, "ctx_idx": 0, "feature_type": "lorsa error"},
        {"node_id": "1_7_0", "layer": "1", "ctx_idx": 0, "feature_type": "cross layer transcoder"},
        {"node_id": "3_9_0", "layer": "3", "ctx_idx": 0, "feature_type": "logit", "feature": 9, "influence": None},
    ]
    links = [{"source": "E_5_0", "target": "3_9_0", "weight": 1}, {"source": "b", "target": "l", "weight": -0.5}]
    return {"metadata": {}, "nodes": nodes, "links": links}


def test_what_is_optional_may_be_missing():
    graph = read_viewer_json(minimal())
    assert [n.kind for n in graph.nodes] == ["token", "bias", "feature", "error", "feature", "target"]
    assert [n.feature for n in graph.nodes] == [5, None, cantor_inverse(8)[1], None, 7, 9]
    assert [n.layer for n in graph.nodes] == [-1, 0, 1, 1, 1, 3]
    assert (graph.tokens, graph.pinned, graph.supernodes, graph.params) == ((), (), (), {})
    assert graph.weight.tolist() == [1.0, -0.5]
    assert graph.nodes[0].influence is None


def cantor_inverse(number):
    return next((a, b) for a in range(9) for b in range(9) if sum(range(a + b + 1)) + b == number)


def test_feature_numbers_that_are_no_pair_of_the_layer_stay():
    document = minimal()
    document["nodes"][2]["feature"] = 100_123
    assert read_viewer_json(document).nodes[2].feature == 100_123


def test_numbers_of_thousands_of_digits_in_an_id_are_no_feature():
    document = minimal()
    node = document["nodes"][2]
    node["feature"], old, new = 100_123, node["node_id"], f"{node['layer']}_{'9' * 5000}_{node['ctx_idx']}"
    document = json.loads(json.dumps(document).replace(json.dumps(old), json.dumps(new)))
    assert read_viewer_json(document).nodes[2].feature == 100_123  # int() would refuse 5,000 digits
    with pytest.raises(InputError, match="give an id of the graph"):
        parse_node(new, 4)


@pytest.mark.parametrize("big", [0, 1, 7, 10**5, 2**31, 10**15])
def test_pair_numbers_come_apart_however_large(big):
    document = minimal()
    document["nodes"][2] |= {"layer": 3, "feature": (3 + big) * (4 + big) // 2 + big}
    assert read_viewer_json(document).nodes[2].feature == big


@pytest.mark.parametrize(
    ("pinned", "groups"),
    [
        (["a", "b"], [["name", "a", "b"]]),
        ("a,b", '[["name","a","b"]]'),
        ('["a","b"]', '[["name","a","b"]]'),
    ],
)
def test_saved_parameters_are_lists_or_texts(pinned, groups):
    graph = read_viewer_json(minimal() | {"qParams": {"pinnedIds": pinned, "supernodes": groups, "linkType": "both"}})
    assert graph.pinned == ("a", "b")
    assert graph.supernodes == (("name", "a", "b"),)
    assert graph.params == {"linkType": "both"}


def test_empty_parameters():
    for empty in (None, "", [], "[]"):
        graph = read_viewer_json(minimal() | {"qParams": {"pinnedIds": empty, "supernodes": empty}})
        assert (graph.pinned, graph.supernodes) == ((), ())


def node(**changes):
    return lambda d: d["nodes"][0].update(changes)


def link(**changes):
    return lambda d: d["links"][0].update(changes)


MALFORMED = {
    "no nodes": (lambda d: d.pop("nodes"), "nodes is missing"),
    "links as object": (lambda d: d.update(links={}), "links is missing or is no list"),
    "metadata as list": (lambda d: d.update(metadata=[]), "metadata is missing or is no object"),
    "qParams as list": (lambda d: d.update(qParams=[1]), "qParams is no object"),
    "tokens as numbers": (lambda d: d["metadata"].update(prompt_tokens=[1]), "prompt_tokens"),
    "node as text": (lambda d: d["nodes"].append("x"), r"nodes\[6\] is no object"),
    "id as number": (node(node_id=3), "node_id 3"),
    "no type": (node(feature_type=None), "feature_type None"),
    "layer as word": (node(layer="top"), "layer 'top'"),
    "layer beyond sense": (node(layer="9" * 5000), "has layer '999"),
    "layer true": (node(layer=True), "layer True"),
    "position negative": (node(ctx_idx=-1), "ctx_idx -1"),
    "position as fraction": (node(ctx_idx=0.5), "ctx_idx 0.5"),
    "same node twice": (lambda d: d["nodes"].append(d["nodes"][0]), r"two nodes \(token\) have the id 'E_5_0'"),
    "link to nothing": (link(target="x"), r"links\[0\] needs a source and a target"),
    "link from a list": (link(source=[1]), r"links\[0\]"),
    "link as text": (lambda d: d["links"].append("x"), r"links\[2\]"),
    "no weight": (lambda d: d["links"][0].pop("weight"), r"links\[0\]"),
    "weight as text": (link(weight="1"), r"links\[0\]"),
    "weight true": (link(weight=True), r"links\[0\]"),
    "weight infinite": (link(weight=float("inf")), r"links\[0\]"),
    "weight beyond floats": (link(weight=10**400), r"links\[0\]"),
    "pinned as number": (lambda d: d.update(qParams={"pinnedIds": 3}), "pinnedIds is neither"),
    "groups cut off": (lambda d: d.update(qParams={"supernodes": "[["}), "supernodes is neither"),
    "groups of texts": (lambda d: d.update(qParams={"supernodes": ["a"]}), "supernodes is no list of"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_graph_is_refused(name):
    document, (spoil, message) = minimal(), MALFORMED[name]
    spoil(document)
    with pytest.raises(InputError, match=message):
        read_viewer_json(document)


def test_many_problems_are_counted():
    document = minimal()
    document["links"] = [{"source": "x", "target": "y", "weight": 1}] * 50
    with pytest.raises(InputError, match=r"(?s)links\[7\].*and 42 more"):
        read_viewer_json(document)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"metadata": {', "cut off"),
        (b"[" * 10**5, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"metadata": {}, "nodes": [], "links": [], "x": NaN}', "NaN"),
        (b'{"metadata": {}, "nodes": [], "links": [], "x": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"3", "it is a int"),
    ],
)
def test_a_file_that_is_no_graph_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_viewer_json(tmp_path / "x.json")


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot read"):
        read_viewer_json(tmp_path / "none.json")
    write_viewer_json(no_edges(), tmp_path, slug="x")
    monkeypatch.setattr(viewer_read, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="MB"):
        read_viewer_json(tmp_path / "x.json")
