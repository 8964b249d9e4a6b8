"""The page as a file: what goes in is escaped, what runs is named by its hash, what is wrong is said at once."""

import base64
import copy
import hashlib
import html
import json
import re

import pytest

from tcircuits.view.page import html_fragment, render, write_page
from tests.view.graphs import random_graph

HOSTILE = "</script><img src=x onerror=window.hacked=1> & \u2028 \ud800 שלום 🦜"


def data_block(page):
    return re.search(r'<script type="application/json" id="graph-json">(.*?)</script>', page, re.S).group(1)


def test_the_data_block_holds_the_graph_and_no_markup():
    graph = random_graph()
    graph["nodes"][0]["clerp"] = HOSTILE
    graph["metadata"]["prompt_tokens"][0] = HOSTILE
    block = data_block(render(graph))
    assert json.loads(block) == graph
    assert not set("<>&") & set(block)
    assert block.isascii()


def test_the_policy_names_exactly_the_script_and_the_style_by_hash():
    page = render(random_graph())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["img-src"] == rules["base-uri"] == "'none'"
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_names_no_address():
    page = render(random_graph())
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace; nothing is fetched by it
    assert not re.search(r"\b(?:src|href)\s*=\s*[\"']", page)


def test_extras_are_merged_over_those_of_the_file():
    graph = random_graph()
    before = copy.deepcopy(graph)
    shown = json.loads(data_block(render(graph, {"model": "other", "note": 1})))
    assert shown["metadata"]["tcircuits"] == {**before["metadata"]["tcircuits"], "model": "other", "note": 1}
    assert graph == before


def test_the_fragment_holds_the_page_in_a_frame_without_an_origin():
    graph = random_graph()
    fragment = html_fragment(graph, height=500)
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', fragment).group(1)) == render(graph)
    assert 'sandbox="allow-scripts allow-downloads"' in fragment
    assert "height:500px" in fragment


def break_graph(graph, case):
    match case:
        case "no nodes":
            del graph["nodes"]
        case "a node without a layer":
            del graph["nodes"][3]["layer"]
        case "a position that is none":
            graph["nodes"][3]["ctx_idx"] = -1
        case "a link without an end":
            del graph["links"][2]["source"]
        case "a weight that is no number":
            graph["links"][2]["weight"] = float("nan")
        case "an activation that is no number":
            graph["nodes"][0]["activation"] = float("inf")
    return graph


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("no nodes", "'nodes' is missing"),
        ("a node without a layer", r"nodes\[3\] has no layer"),
        ("a position that is none", r"nodes\[3\].ctx_idx is -1"),
        ("a link without an end", r"links\[2\] has no source"),
        ("a weight that is no number", r"links\[2\].weight is nan"),
        ("an activation that is no number", "numbers must be finite"),
    ],
)
def test_a_graph_that_cannot_be_shown_is_refused_and_nothing_is_written(tmp_path, case, says):
    graph = break_graph(random_graph(), case)
    with pytest.raises(ValueError, match=says):
        write_page(graph, tmp_path / "index.html")
    assert list(tmp_path.iterdir()) == []


def test_all_problems_come_in_one_message():
    graph = break_graph(break_graph(random_graph(), "a node without a layer"), "a link without an end")
    with pytest.raises(ValueError, match=r"(?s)nodes\[3\].*links\[2\]"):
        render(graph)


def test_a_page_replaces_the_one_that_was_there(tmp_path):
    path = tmp_path / "index.html"
    path.write_text("old")
    assert write_page(random_graph(), path) == path
    assert path.read_text() == render(random_graph())
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
