"""The page in a browser, against counts and sums that are computed here from the JSON alone."""

import copy
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from tcircuits.view.page import html_fragment, write_page
from tcircuits.view.server import address, make_server
from tests.view.graphs import node, random_graph
from tests.view.oracle import HOSTILE, busiest, counts, read_rows, settle, visible_ids, visible_links

pytestmark = pytest.mark.browser


def test_nodes_and_links_are_those_of_the_file(show):
    graph = random_graph()
    page = show(graph)
    shown = visible_ids(graph, 0.8)
    assert len(shown) < len(graph["nodes"])
    assert {e.get_attribute("data-key") for e in page.query_selector_all(".nodes .node")} == shown
    got = counts(page)
    assert got["nodes"] == got["drawnNodes"] == len(shown)
    assert got["links"] == got["drawnLinks"] == len(visible_links(graph, 0.8, 1))
    for kind, name in {"error": "mlp reconstruction error", "token": "embedding", "logit": "logit"}.items():
        expected = {n["node_id"] for n in graph["nodes"] if n["feature_type"] == name and n["node_id"] in shown}
        assert len(page.query_selector_all(f".nodes .node.{kind}")) == len(expected)


@pytest.mark.parametrize(("nodes", "links"), [(0.8, 0.9), (0.5, 0.6), (1, 1), (0.3, 0.985), (0, 0.5)])
def test_sliders_show_what_their_thresholds_say(show, nodes, links):
    graph = random_graph(seed=3)
    page = show(graph)
    page.locator("#node-threshold").fill(str(nodes))
    page.locator("#edge-threshold").fill(str(links))
    settle(page)
    got = counts(page)
    assert got["nodes"] == len(visible_ids(graph, nodes)) == len(page.query_selector_all(".nodes .node"))
    assert got["links"] == len(visible_links(graph, nodes, links))
    assert page.inner_text("#node-count") == f"{got['nodes']} of {len(graph['nodes'])}"


def test_the_errors_switch_hides_error_nodes_only(show):
    graph = random_graph()
    page = show(graph)
    before = counts(page)["nodes"]
    n_errors = len(page.query_selector_all(".nodes .node.error"))
    page.uncheck("#errors")
    settle(page)
    assert n_errors > 0
    assert counts(page)["nodes"] == before - n_errors
    assert page.query_selector_all(".nodes .node.error") == []


@pytest.mark.parametrize(
    ("section", "mine", "other"), [("Inputs", "target", "source"), ("Outputs", "source", "target")]
)
def test_a_clicked_node_lists_its_links_strongest_first_with_sign_and_size(show, section, mine, other):
    graph = random_graph()
    chosen = busiest(graph)
    page = show(graph)
    page.locator(f'.nodes [data-key="{chosen["node_id"]}"]').click()
    expected = sorted(
        ((e[other], e["weight"]) for e in graph["links"] if e[mine] == chosen["node_id"]), key=lambda x: -abs(x[1])
    )
    rows = read_rows(page, section)
    assert len(expected) > 0
    assert [key for key, _ in rows] == [key for key, _ in expected[:12]]
    np.testing.assert_allclose([w for _, w in rows], [w for _, w in expected[:12]], rtol=6e-3)


def test_a_clicked_node_says_what_it_promotes_and_suppresses(show):
    graph = random_graph()
    chosen = busiest(graph)
    page = show(graph)
    page.locator(f'.nodes [data-key="{chosen["node_id"]}"]').click()
    lists = [li.query_selector_all("bdi") for li in page.query_selector_all(".vocabulary")]
    shown = [[e.text_content() for e in items] for items in lists]
    expected = [[t for t, _ in chosen[key]] for key in ("top_logits", "bottom_logits")]
    assert shown == [[t.replace("\n", "⏎").replace(" ", "·") for t in tokens] for tokens in expected]
    facts = dict(re.findall(r"(\w+)\s*\n\s*([^\n]+)", page.inner_text(".facts")))
    assert float(facts["Activation"]) == pytest.approx(chosen["activation"], rel=6e-3)
    assert float(facts["Bias"].replace("−", "-")) == pytest.approx(chosen["bias"], rel=6e-3)


@pytest.mark.parametrize("text", ["France", "concept", "CAPITAL"])
def test_search_finds_tokens_features_and_labels(show, text):
    graph = random_graph()
    page = show(graph)
    page.fill("#search", text)
    settle(page)
    tokens = graph["metadata"]["prompt_tokens"]

    def holds(n):
        words = [t for key in ("top_logits", "bottom_logits") for t, _ in n.get(key, [])]
        return any(text.lower() in s.lower() for s in [n["clerp"], tokens[n["ctx_idx"]], *words])

    assert page.inner_text(".list-title") == f"{sum(map(holds, graph['nodes']))} found"


def test_search_finds_a_feature_by_its_number(show):
    graph = random_graph()
    layer, f, _ = busiest(graph)["node_id"].split("_")
    page = show(graph)
    page.fill("#search", f"L{layer}/{f}")
    settle(page)
    assert [r.get_attribute("data-key") for r in page.query_selector_all(".detail .row")] == [busiest(graph)["node_id"]]


def test_keys_move_select_and_pin(show):
    graph = random_graph()
    page = show(graph)
    page.locator(".nodes .node.token").first.focus()
    start = page.evaluate("document.activeElement.dataset.key")
    page.keyboard.press("ArrowUp")
    above = page.evaluate("document.activeElement.dataset.key")
    by_id = {n["node_id"]: n for n in graph["nodes"]}
    assert by_id[start]["layer"] == "E"
    assert by_id[above]["layer"] != "E"
    page.keyboard.press("Enter")
    page.keyboard.press("p")
    state = page.evaluate("tcircuits.state()")
    assert (state["selected"], state["pinned"]) == (above, [above])
    page.keyboard.press("Escape")
    assert page.evaluate("tcircuits.state().selected") is None
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def hostile_graph():
    tokens = [HOSTILE, "\n", " \t", "🦜🧑‍🚀", "שלום עולם", "\u202eabc\u2028", ""]
    graph = random_graph(tokens, targets=((HOSTILE, 0.5), ("مرحبا\n", 0.2)))
    for n in graph["nodes"][:8]:
        n["clerp"] = HOSTILE
        n["top_logits"] = [[HOSTILE, 1.0], ["\n\n", 0.5]]
        n["influence"] = 0.1
    graph["metadata"]["slug"] = "../" + HOSTILE
    graph["metadata"]["tcircuits"]["model"] = HOSTILE
    graph["metadata"]["tcircuits"]["transcoders"] = HOSTILE
    graph["qParams"]["supernodes"] = [[HOSTILE, graph["nodes"][0]["node_id"], graph["nodes"][1]["node_id"]]]
    return graph


def test_hostile_text_is_shown_literally_and_nothing_runs(show):
    graph = hostile_graph()
    page = show(graph)
    page.evaluate("(i) => tcircuits.select(i)", graph["nodes"][2]["node_id"])
    chips = [e.text_content() for e in page.query_selector_all(".chip bdi")]
    assert chips == [HOSTILE, "⏎", "·⇥", "🦜🧑‍🚀", "שלום עולם", "⟨202E⟩abc⟨2028⟩", "∅"]
    assert page.text_content(".node-heading h2") == HOSTILE
    assert page.text_content(".vocabulary bdi") == HOSTILE
    assert page.text_content(".target bdi") == HOSTILE
    assert page.text_content(".model bdi") == HOSTILE
    assert page.locator(".box.group title").text_content() == f"{HOSTILE}\n{HOSTILE}"
    assert all(e.get_attribute("dir") == "auto" for e in page.query_selector_all("bdi"))
    page.fill(".label-input", HOSTILE + " mine")
    page.keyboard.press("Enter")
    page.hover(f'.nodes [data-key="{graph["nodes"][2]["node_id"]}"]')
    settle(page)
    assert page.query_selector_all("img") == []
    assert page.evaluate("window.hacked") is None
    again = show(graph, "#" + page.url.split("#", 1)[1])
    assert again.text_content(".node-heading h2") == HOSTILE + " mine"
    assert again.evaluate("window.hacked") is None


@pytest.fixture
def listener():
    """A server that counts what reaches it."""
    hits = []

    class Count(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Count)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", hits
    server.shutdown()
    server.server_close()


def test_the_policy_keeps_even_a_script_in_the_page_from_the_network(visit, tmp_path, listener):
    where, hits = listener
    page = visit(write_page(random_graph(), tmp_path / "index.html").as_uri())
    tries = """(url) => Promise.all([
        fetch(url + '/fetch', {mode: 'no-cors'}).then(() => 'sent', (e) => e.name),
        new Promise((r) => {
            const i = new Image();
            i.onload = () => r('sent');
            i.onerror = () => r('refused');
            i.src = url + '/img';
        }),
        Promise.resolve(navigator.sendBeacon(url + '/beacon')),
        new Promise((r) => { try { document.body.innerHTML += '<b>'; r('set'); } catch (e) { r(e.name); } }),
        // Not at once: code that a debugger runs may evaluate strings until it returns.
        new Promise((r) => setTimeout(() => { try { r(new Function('return 1')()); } catch (e) { r(e.name); } }, 50)),
    ])"""
    fetched, image, _, markup, code = page.evaluate(tries, where)
    time.sleep(0.2)
    assert (fetched, image, markup) == ("TypeError", "refused", "TypeError")
    assert code in ("EvalError", "TypeError")
    assert hits == []


def test_ids_that_repeat_are_two_nodes_with_their_own_links(show):
    """Old error ids `0_{layer}_{pos}` equal the id of feature `layer` in layer 0; their jsNodeIds repeat too."""
    graph = random_graph(n_features=5)
    graph["nodes"] = [
        node("0_1_2", "cross layer transcoder", 0, 2, influence=0.1, feature=2, activation=1.0, clerp="the feature"),
        node("2_7_4", "cross layer transcoder", 2, 4, influence=0.1, feature=52, activation=1.0, clerp="the target"),
        node("0_1_2", "mlp reconstruction error", 1, 2, influence=0.2),
        node("0_1_4", "mlp reconstruction error", 1, 4, influence=0.2),
        *[n for n in graph["nodes"] if n["feature_type"] in ("embedding", "logit")],
    ]
    weights = [("E_9_2", "0_1_2", 0.5), ("0_1_2", "2_7_4", 0.25), ("0_1_2", "2_7_4", -0.75), ("0_1_4", "2_7_4", 0.125)]
    graph["links"] = [{"source": s, "target": t, "weight": w} for s, t, w in weights]
    graph["metadata"]["node_threshold"] = 1
    page = show(graph)
    assert len(page.query_selector_all(".nodes .node")) == counts(page)["nodes"] == 4 + 5 + 2
    assert counts(page)["links"] == 4
    page.locator('.nodes [aria-label^="Feature: the target"]').click()
    assert read_rows(page, "Inputs") == [("0_1_2#2", -0.75), ("0_1_2", 0.25), ("0_1_4", 0.125)]
    page.evaluate("tcircuits.select('0_1_2')")
    assert read_rows(page, "Inputs") == [("E_9_2", 0.5)]
    page.evaluate("tcircuits.select('0_1_2#2')")
    assert read_rows(page, "Inputs") == []
    assert "1 node id is used twice" in page.inner_text(".notices")


@pytest.mark.skipif("TCIRCUITS_SAMPLE_GRAPH" not in os.environ, reason="TCIRCUITS_SAMPLE_GRAPH is not set")
def test_a_graph_of_the_public_tracer_is_shown(show):
    graph = json.loads(Path(os.environ["TCIRCUITS_SAMPLE_GRAPH"]).read_text(encoding="utf-8"))
    page = show(graph)
    threshold = graph["metadata"]["node_threshold"]
    shown = visible_ids(graph, threshold)
    assert counts(page)["nodes"] == len(shown) == len(page.query_selector_all(".nodes .node"))
    assert counts(page)["links"] == len(visible_links(graph, threshold, 1))
    errors = [n for n in graph["nodes"] if n["feature_type"] == "mlp reconstruction error" and n["node_id"] in shown]
    assert all(re.fullmatch(rf"0_{n['layer']}_{n['ctx_idx']}", n["node_id"]) for n in errors)
    assert len(page.query_selector_all(".nodes .node.error")) == len(errors) > 0


def test_a_bare_file_is_enough(show):
    """The least that the format asks for: no extras, no probabilities, one layer, a link to nowhere."""
    keys = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp")
    graph = random_graph(n_layers=1, n_features=4, n_links=20)
    graph["nodes"] = [{k: n[k] for k in keys} for n in graph["nodes"]]
    graph["metadata"] = {k: graph["metadata"][k] for k in ("slug", "scan", "prompt_tokens", "prompt")}
    del graph["qParams"]
    graph["links"].append({"source": "nowhere", "target": graph["nodes"][0]["node_id"], "weight": 1.0})
    page = show(graph)
    assert counts(page)["nodes"] == len(graph["nodes"])
    assert counts(page)["links"] == len(graph["links"]) - 1
    assert "1 link names no pair" in page.inner_text(".notices")
    assert counts(show({**graph, "nodes": [], "links": []}))["nodes"] == 0


def test_a_large_graph_stays_readable_and_fast(show, record_property):
    tokens = ["<bos>"] + [f" word{i}" for i in range(31)]
    graph = random_graph(tokens, n_layers=30, n_features=2500, n_links=40000, seed=1)
    start = time.perf_counter()
    page = show(graph)
    record_property("seconds_to_show", round(time.perf_counter() - start, 2))
    milliseconds = page.evaluate(
        "() => { const t = performance.now(); for (let i = 0; i < 5; i++) tcircuits.select(i % 2 ? null : "
        f"'{busiest(graph)['node_id']}'); return (performance.now() - t) / 5; }}"
    )
    record_property("milliseconds_to_select", round(milliseconds, 1))
    got = counts(page)
    hidden = sum(int(e.get_attribute("data-count")) for e in page.query_selector_all(".more"))
    assert got["nodes"] == len(visible_ids(graph, 0.8)) == got["drawnNodes"] + hidden
    assert hidden > 0
    assert got["links"] <= 1200  # the first view shows what can be read
    page.locator("#edge-threshold").fill("1")
    settle(page)
    assert counts(page)["links"] == len(visible_links(graph, 0.8, 1)) > counts(page)["drawnLinks"]
    page.locator(".more").first.click()
    assert len(page.query_selector_all(".detail .row")) > 1


def test_dark_and_light_follow_the_system(show):
    graph = random_graph()
    colours = [
        show(graph, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_the_notebook_frame_shows_the_same_page(visit, tmp_path):
    graph = random_graph()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{html_fragment(graph)}</body>", encoding="utf-8")
    page = visit((tmp_path / "notebook.html").as_uri(), wait=False)
    frame = page.frames[1]
    frame.wait_for_selector("#page:not([aria-busy])")
    assert frame.evaluate("tcircuits.counts().nodes") == len(visible_ids(graph, 0.8))
    frame.locator(f'.nodes [data-key="{busiest(graph)["node_id"]}"]').click(modifiers=["Shift"])
    settle(frame)
    assert frame.evaluate("tcircuits.counts().boxes") == 1
    assert page.seen.errors == []


def test_the_server_shows_the_page(visit, tmp_path):
    graph = random_graph()
    write_page(graph, tmp_path / "index.html")
    with make_server(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = visit(address(server))
        assert counts(page)["nodes"] == len(visible_ids(graph, 0.8))
        assert page.seen.console == []
        server.shutdown()


def test_the_file_that_was_given_is_not_changed(show):
    graph = random_graph()
    before = copy.deepcopy(graph)
    show(graph)
    assert graph == before
