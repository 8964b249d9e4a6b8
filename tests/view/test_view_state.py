"""What a reader chose: pins, supernodes, labels; how it travels in addresses, files and pictures."""

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.view.graphs import random_graph
from tests.view.oracle import HOSTILE, busiest, counts, settle, visible_ids

pytestmark = pytest.mark.browser


def box_sums(graph, groups):
    """Summed weights between groups of ids."""
    sums = {}
    owner = {i: name for name, ids in groups.items() for i in ids}
    for e in graph["links"]:
        s, t = owner.get(e["source"]), owner.get(e["target"])
        if s is not None and t is not None and s != t:
            sums[s, t] = sums.get((s, t), 0.0) + e["weight"]
    return sums


def test_pinned_nodes_and_a_supernode_show_summed_links(show):
    graph = random_graph(n_links=1500)
    page = show(graph)
    target = next(n["node_id"] for n in graph["nodes"] if n["feature_type"] == "logit")
    feeds = [e["source"] for e in sorted(graph["links"], key=lambda e: -abs(e["weight"])) if e["target"] == target]
    pins = [target, *[i for i in feeds if i in visible_ids(graph, 0.8)][:4]]
    for i in pins:
        page.locator(f'.nodes [data-key="{i}"]').click(modifiers=["Shift"])
    assert counts(page)["boxes"] == 5
    for i in pins[1:4]:
        page.locator(f'.box[data-id="{i}"]').click(modifiers=["Shift"])
    page.get_by_role("button", name="Group 3").click()
    page.fill(".group-name", "three sources")
    page.keyboard.press("Enter")
    assert counts(page)["boxes"] == 3
    assert "three sources" in page.locator(".box.group").text_content()
    expected = box_sums(graph, {"group:0": pins[1:4], target: [target], pins[4]: [pins[4]]})
    got = {(e["source"], e["target"]): e["weight"] for e in page.evaluate("tcircuits.boxLinks()")}
    assert got.keys() == expected.keys()
    assert ("group:0", target) in got
    for pair, weight in expected.items():
        assert got[pair] == pytest.approx(weight, rel=1e-12)
    page.get_by_role("button", name="Ungroup").click()
    assert counts(page)["boxes"] == 5


def chosen_state(page, graph):
    """Uses every control once; returns the state that this gives."""
    ids = sorted(visible_ids(graph, 0.6))[:4]
    page.locator("#node-threshold").fill("0.6")
    page.locator("#edge-threshold").fill("0.7")
    settle(page)
    for i in ids:
        page.evaluate("(i) => tcircuits.togglePin(i)", i)
    for i in ids[:2]:
        page.locator(f'.box[data-id="{i}"]').press("Space")
    page.get_by_role("button", name="Group 2").click()
    page.fill(".group-name", 'a & "b", =#%')
    page.keyboard.press("Enter")
    page.evaluate("(i) => tcircuits.select(i)", ids[3])
    page.fill(".label-input", "my label é")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Inputs").click()
    page.locator(f'.box[data-id="{ids[2]}"]').press("ArrowRight")
    settle(page)
    state = page.evaluate("tcircuits.state()")
    assert state["groups"] == [{"name": 'a & "b", =#%', "members": ids[:2]}]
    assert (state["node"], state["edge"], state["linkType"], state["selected"]) == (0.6, 0.7, "input", ids[3])
    assert set(state["pinned"]) == set(ids)
    assert state["labels"] == {ids[3]: "my label é"}
    assert list(state["places"]) == [ids[2]]
    return state


def test_a_name_that_is_being_typed_outlives_another_size_of_the_window(show):
    graph = random_graph()
    page = show(graph)
    ids = sorted(visible_ids(graph, 0.8))[:2]
    for i in ids:
        page.evaluate("(i) => tcircuits.togglePin(i)", i)
    for i in ids:
        page.locator(f'.box[data-id="{i}"]').press("Space")
    page.get_by_role("button", name="Group 2").click()
    before = page.locator(".sub-stage svg").get_attribute("width")
    page.locator(".group-name").press("Control+A")
    page.keyboard.type("half a ")
    page.set_viewport_size({"width": 1000, "height": 600})
    settle(page)
    assert page.locator(".sub-stage svg").get_attribute("width") != before
    page.keyboard.type("name")
    page.keyboard.press("Enter")
    assert page.evaluate("tcircuits.state()")["groups"] == [{"name": "half a name", "members": ids}]


def test_the_state_round_trips_through_the_address_and_through_the_file(show):
    graph = random_graph()
    page = show(graph)
    state = chosen_state(page, graph)
    again = show(graph, "#" + page.url.split("#", 1)[1])
    assert again.evaluate("tcircuits.state()") == state
    with page.expect_download() as download:
        page.click("#export-json")
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    from_file = show(exported)
    assert from_file.evaluate("tcircuits.state()") == state
    assert counts(from_file) == counts(page)
    assert "#" not in from_file.url


def test_the_exported_file_is_one_for_the_other_viewers(show):
    graph = random_graph()
    page = show(graph)
    state = chosen_state(page, graph)
    exported = page.evaluate("tcircuits.file()")
    assert exported["qParams"] | {"tcircuits": None} == {
        "pinnedIds": state["pinned"],
        "supernodes": [[g["name"], *g["members"]] for g in state["groups"]],
        "linkType": "input",
        "clickedId": state["selected"],
        "sg_pos": "",
        "pruningThreshold": 0.6,
        "tcircuits": None,
    }
    relabelled = {n["node_id"]: n["clerp"] for n in exported["nodes"]}
    assert relabelled[state["selected"]] == "my label é"
    assert exported["links"] == graph["links"]
    assert exported["metadata"] == graph["metadata"]
    schema = os.environ.get("TCIRCUITS_VIEWER_SCHEMA")
    if schema:
        import jsonschema

        jsonschema.validate(exported, json.loads(Path(schema).read_text(encoding="utf-8")))


def test_saved_state_may_hold_strings_where_lists_belong(show):
    graph = random_graph()
    ids = sorted(visible_ids(graph, 0.8))[:3]
    graph["qParams"] = {
        "pinnedIds": ",".join([*ids, "no such node"]),
        "supernodes": json.dumps([["pair", ids[0], ids[1]], ["empty"], "junk"]),
        "clickedId": ids[2],
        "clerps": json.dumps([[ids[2], "saved label"]]),
        "linkType": "?",
        "pruningThreshold": "0.75",
    }
    page = show(graph)
    state = page.evaluate("tcircuits.state()")
    assert state["pinned"] == ids
    assert state["groups"] == [{"name": "pair", "members": ids[:2]}]
    assert (state["selected"], state["linkType"], state["node"]) == (ids[2], "both", 0.75)
    assert page.inner_text(".node-heading h2") == "saved label"


@pytest.mark.parametrize(
    "fragment", ["#nodes=x&links=&pinned=%7B&groups=3&labels=[]&places=1&type=zz", "#%", "#&&=&nodes=9"]
)
def test_a_broken_address_leaves_the_files_own_state(show, fragment):
    page = show(random_graph(), fragment)
    state = page.evaluate("tcircuits.state()")
    assert state["pinned"] == []
    assert state["groups"] == []
    assert 0 <= state["node"] <= 1


def test_the_exported_picture_is_xml_and_holds_the_drawn_nodes(show):
    graph = random_graph()
    graph["metadata"]["prompt_tokens"][1] = HOSTILE + "\x00\x0b\ufffe\ud800"
    page = show(graph)
    page.evaluate("(i) => tcircuits.select(i)", busiest(graph)["node_id"])
    with page.expect_download() as download:
        page.click("#export-svg")
    assert download.value.suggested_filename == "random.svg"
    root = ElementTree.parse(download.value.path()).getroot()
    drawn = [e.get("data-node") for e in root.iter() if e.get("data-node")]
    assert sorted(drawn) == sorted(visible_ids(graph, 0.8))
    paths = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke") in ("#2166ac", "#cc5a12")]
    chosen = busiest(graph)["node_id"]
    shown = visible_ids(graph, 0.8)
    own = [e for e in graph["links"] if chosen in (e["source"], e["target"]) and {e["source"], e["target"]} <= shown]
    linked_errors = {e["source"] for e in own if "_-1_" in e["source"]}  # their outlines have the colour of the sign
    assert len(paths) == counts(page)["drawnLinks"] + len(own) + len(linked_errors)
    assert "France" in "".join(root.itertext())


def test_the_exported_subgraph_is_xml_and_holds_the_boxes(show):
    graph = random_graph()
    graph["nodes"][0]["clerp"] = HOSTILE
    page = show(graph)
    page.evaluate("(i) => tcircuits.togglePin(i)", graph["nodes"][0]["node_id"])
    page.get_by_role("button", name="Pin strongest path").click()
    root = ElementTree.fromstring(page.evaluate("tcircuits.subgraphSvg()"))
    assert len([e for e in root.iter() if e.get("data-id")]) == counts(page)["boxes"] >= 3
