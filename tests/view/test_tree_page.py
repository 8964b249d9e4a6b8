"""The page of a hierarchy in a browser: go into sets by click and by key, read their members."""

from dataclasses import replace

import numpy as np
import pytest

from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.tree import Hierarchy
from tcircuits.circuits.units import Units
from tcircuits.types import InputError
from tcircuits.view.page import write_html
from tcircuits.view.tree import tree_data, tree_page
from tests.view.oracle import HOSTILE

UNITS = Units(("head", "feature"), 1, 2, (0,), 6)
VALUE = np.array([0.5, -2.0, 0.0, 1.0, 0.25, 0.25])  # importance of heads 0.0, 0.1, features 0..3


def parts():
    """Six of eight units in two sets of four and two; of the first, one unit and three are cut apart."""
    n = 6
    nodes = np.array([[3, 0, 0, -1], [3, 0, 1, -1], *([2, 0, i, -1] for i in range(4))])
    edge, none = np.zeros(1, int), np.zeros(n)
    graph = BehaviourGraph(
        nodes, edge, edge + 1, np.ones(1), np.ones(1), np.ones(1), none, none, np.arange(n), VALUE, UNITS
    )
    order = np.array([5, 0, 3, 1, 2, 4])
    tree = Hierarchy(order, np.array([0, 0, 4, 0, 1]), np.array([6, 4, 6, 1, 4]), np.array([-1, 0, 0, 1, 1]))
    mask = np.zeros(UNITS.n, bool)
    mask[[0, 3, 7]] = True  # head 0.0, feature 1, and feature 5, which the tree does not have
    return graph, tree, Circuit(UNITS, mask, None, f"tiny {HOSTILE}", {"behaviour": {"name": "ioi"}})


def test_the_page_is_told_members_in_the_order_of_the_tree():
    data = tree_data(*parts())
    assert data["labels"] == ["feature 0/3", "head 0.0", "feature 0/1", "head 0.1", "feature 0/0", "feature 0/2"]
    assert data["inside"] == [0, 1, 1, 0, 0, 0]
    assert data["value"] == [0.25, 0.5, 1.0, 2.0, 0.0, 0.25]
    assert (data["size"], data["of"], data["elsewhere"]) == (3, 8, 1)


def test_what_does_not_belong_together():
    graph, tree, circuit = parts()
    with pytest.raises(InputError, match="do not belong together"):
        tree_page(graph.with_nodes(np.arange(6) < 5), tree, circuit)
    with pytest.raises(InputError, match="do not belong together"):
        tree_page(graph, tree, replace(circuit, units=Units(("head",), 1, 2), mask=np.ones(2, bool)))


@pytest.fixture
def page(visit, tmp_path):
    page = visit(write_html(tree_page(*parts()), tmp_path / "tree.html").as_uri())
    yield page
    assert page.seen.console == []
    assert page.seen.errors == []
    assert page.seen.dialogs == []
    assert [r for r in page.seen.requests if not r.startswith("file:")] == []


def bars(page):
    return [bar.get_attribute("title").split(":")[0] for bar in page.query_selector_all("#bars .set")]


@pytest.mark.browser
def test_sets_by_click(page):
    assert bars(page) == ["6 units", "4 units", "feature 0/3", "3 units", "2 units"]
    assert "img" in page.inner_text("#title")  # the model's name is shown as it is
    assert "1 of the circuit's are not in the tree" in page.inner_text("#told")
    assert page.is_disabled("#up")
    page.click("#bars .set[title^='4 units']")
    assert bars(page) == ["4 units", "feature 0/3", "3 units"]
    members = page.query_selector_all("#members li")
    assert [m.inner_text().split("\n")[0] for m in members] == ["feature 0/1", "head 0.0", "head 0.1", "feature 0/3"]
    assert [m.get_attribute("class") for m in members] == ["inside", "inside", "", ""]
    assert "2 kept; 93.8 % of the importance" in page.inner_text("#members")  # 3.75 of 4
    wide = page.query_selector("#bars .set").bounding_box()["width"]
    part = page.query_selector("#bars .set[title^='3 units']").bounding_box()["width"]
    assert part == pytest.approx(0.75 * wide, abs=1)
    page.click("#whole")
    assert len(bars(page)) == 5


@pytest.mark.browser
def test_sets_by_key(page):
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.inner_text("#members h2") == "A set of 2 units"
    for key in ("ArrowLeft", "Enter", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.inner_text("#members h2") == "A set of 3 units"
    assert bars(page) == ["4 units", "feature 0/3", "3 units"], "a set that is not cut does not fill the width"
    page.keyboard.press("Escape")
    assert len(bars(page)) == 5
