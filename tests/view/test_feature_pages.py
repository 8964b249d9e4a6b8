"""The pages of features in a browser, against numbers taken from the statistics by themselves."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tcircuits.transcoders.statistics.keeping import EMPTY
from tcircuits.transcoders.statistics.run import feature_statistics
from tcircuits.transcoders.statistics.viewer_file import FeatureFiles
from tcircuits.types import InputError
from tcircuits.view.examples import open_features, with_examples
from tcircuits.view.feature_data import Texts, collect
from tcircuits.view.features import write_dashboards
from tests import bridge
from tests.transcoders import evaluated
from tests.view.graphs import node, random_graph
from tests.view.oracle import HOSTILE, settle

pytestmark = pytest.mark.browser


def token_at(made, number):
    return int(made.case.rows[number // made.found.context, number % made.found.context])


def strongest(made, slot, feature):
    """The first three different tokens at which a feature is strongest."""
    numbers = [int(n) for n in made.found.token[slot, feature] if n != EMPTY]
    return list(dict.fromkeys(token_at(made, n) for n in numbers))[:3]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pages; the token at which the most frequent feature of layer 1 is strongest has a hostile text."""
    case = evaluated.case("gpt2", "plt-relu", n_rows=11)
    model, d = bridge.model(case, "float32"), bridge.transcoders(case.d, "float32")
    found = feature_statistics(model, d, case.rows, top=5)
    slot = case.d.cfg.layers.index(1)
    out = SimpleNamespace(case=case, found=found, slot=slot, feature=int(found.density[slot].argmax()))
    out.hostile = strongest(out, slot, out.feature)[0]
    words = SimpleNamespace(token=lambda i: HOSTILE if i == out.hostile else f"word{i}")
    model = dataclasses.replace(model, tokenizer=words)
    out.layers = collect(model, d, case.rows, found, width=2)
    out.folder = tmp_path_factory.mktemp("features")
    write_dashboards(out.folder, found, out.layers, Texts(model, case.rows, found))
    return out


@pytest.fixture
def opened(made, visit):
    """`opened(name)`: a page of the folder; on leaving it must have stayed clean."""
    pages = []

    def go(name, fragment=""):
        pages.append(visit((made.folder / name).as_uri() + fragment))
        return pages[-1]

    yield go
    for page in pages:
        assert page.seen.console == page.seen.errors == page.seen.dialogs == []
        assert all(url.startswith(made.folder.as_uri()) for url in page.seen.requests)
        assert page.evaluate("window.hacked") is None
        assert page.query_selector_all("img") == []


def keys(page):
    return [row.get_attribute("data-key") for row in page.query_selector_all(".table tbody tr")]


def number(text):
    return float(text.replace("−", "-").replace("%", ""))


def test_the_index_lists_every_feature_that_is_on(made, opened):
    page, density = opened("index.html"), made.found.density
    layers = made.case.d.cfg.layers
    alive = {f"{layers[s]}/{f}" for s, f in zip(*np.nonzero(density), strict=True)}
    assert 0 < len(alive) < density.size <= 200
    assert set(keys(page)) == alive
    assert len(keys(page)) == len(alive)
    assert page.inner_text("#found") == f"{len(alive)} of {density.size}"
    shown = [density[layers.index(int(k.split("/")[0])), int(k.split("/")[1])] for k in keys(page)]
    assert shown == sorted(shown, reverse=True)
    page.check("#dead")
    assert len(keys(page)) == density.size
    page.locator("th button", has_text="Largest").click()
    first = keys(page)[0].split("/")
    assert made.found.largest[layers.index(int(first[0])), int(first[1])] == made.found.largest.max()


def test_a_search_finds_tokens_and_numbers(made, opened):
    page, layers = opened("index.html"), made.case.d.cfg.layers
    page.fill("#search", HOSTILE.upper())
    wanted = {
        f"{layer.layer}/{f}"
        for layer in made.layers
        for f in range(made.case.d.cfg.d_feature)
        if made.found.density[layer.slot, f] > 0
        and made.hostile in strongest(made, layer.slot, f) + layer.promoted.high[f][:3].tolist()
    }
    assert set(keys(page)) == wanted
    assert f"1/{made.feature}" in wanted
    assert len(wanted) < (made.found.density > 0).sum()
    page.fill("#search", f"l1/{made.feature}")
    assert keys(page) == [f"1/{made.feature}"]
    page.fill("#search", f"#{made.feature}")
    assert set(keys(page)) == {
        f"{layer}/{made.feature}" for s, layer in enumerate(layers) if made.found.density[s, made.feature] > 0
    }
    page.fill("#search", "nothing has this text")
    assert keys(page) == []


def test_a_clicked_feature_shows_its_examples(made, opened):
    page, s, at = opened("index.html"), made.found, (made.slot, made.feature)
    page.locator(f'tr[data-key="1/{made.feature}"]').click()
    page.wait_for_url(f"**/layer_1.html#{made.feature}")
    page.wait_for_selector("#page:not([aria-busy])")
    assert page.inner_text(".detail h2") == f"Feature {made.feature}"
    assert len(keys(page)) == (s.density[made.slot] > 0).sum()
    group = page.locator('.detail section[aria-label="Top activations"]')
    peaks = [number(t) for t in group.locator(".peak").all_inner_texts()]
    np.testing.assert_allclose(peaks, s.value[at][s.token[at] != EMPTY], rtol=6e-3)
    chosen = [group.locator(".example").nth(i).locator(".tok.chosen") for i in range(len(peaks))]
    tokens = [token_at(made, int(n)) for n in s.token[at] if n != EMPTY]
    texts = [HOSTILE if t == made.hostile else f"word{t}" for t in tokens]
    assert [c.inner_text() for c in chosen] == texts
    assert texts[0] == HOSTILE
    title = chosen[0].get_attribute("title")
    assert title.startswith(HOSTILE)
    assert number(title.split()[-1]) == pytest.approx(s.largest[at], rel=6e-3)
    bins = np.flatnonzero(s.count[at])
    assert page.locator(".histogram rect").count() == bins[-1] - bins[0] + 1


def test_neighbours_and_arrows_lead_to_other_features(made, opened):
    page = opened("layer_1.html", f"#{made.feature}")
    nearest = made.layers[made.slot].near["decoder"][0][made.feature]
    link = page.locator(".near a").first
    assert link.get_attribute("href") == f"#{nearest[0]}"
    link.click()
    page.wait_for_selector(f".detail h2:text-is('Feature {nearest[0]}')")  # no string that the page would have to run
    page.evaluate(f"location.hash = '{made.case.d.cfg.d_feature}'")
    page.wait_for_selector(".detail .empty-page")
    assert "no such feature" in page.inner_text(".detail")


def test_the_page_of_a_graph_shows_where_features_are_strongest(made, show):
    graph, files = random_graph(), FeatureFiles(made.folder)
    texts, at = [HOSTILE if made.hostile == t else f"word{t}" for t in range(made.case.cfg.d_vocab)], made.feature
    own = node(f"1_{at}_0", "cross layer transcoder", 1, 0, influence=0.5)
    graph["nodes"] = [n for n in graph["nodes"] if n["feature_type"] != "cross layer transcoder"] + [own]
    ids = {n["node_id"] for n in graph["nodes"]}
    graph["links"] = [e for e in graph["links"] if {e["source"], e["target"]} <= ids]
    shown = with_examples(graph, files)
    assert [n for n in shown["nodes"] if "examples" in n] == [shown["nodes"][-1]]
    assert shown["nodes"][-1]["clerp"] == texts[strongest(made, made.slot, at)[0]] == HOSTILE
    assert own["clerp"] == ""
    page = show(shown)
    page.locator("#node-threshold").fill("1")
    settle(page)
    page.locator(f'.nodes [data-key="1_{at}_0"]').click()
    group = page.locator('section[aria-label="Strongest in the corpus"]')
    peaks = [number(t) for t in group.locator(".peak").all_inner_texts()]
    np.testing.assert_allclose(peaks, made.found.value[made.slot, at][: len(peaks)], rtol=6e-3)
    assert len(peaks) == min(5, made.found.n_active[made.slot, at])
    assert group.locator(".example").first.locator(".tok.chosen").inner_text() == HOSTILE
    assert page.evaluate("window.hacked") is None


def test_features_of_another_set_are_refused(made):
    c = bridge.transcoders(made.case.d, "float32").cfg
    with pytest.warns(UserWarning, match="was made for transcoders"):
        assert open_features(made.folder, c, "another set").layers == c.layers
    with pytest.raises(InputError, match="give the folder that `tcircuits features` wrote for them"):
        open_features(made.folder, dataclasses.replace(c, d_feature=c.d_feature + 1), "")
    with pytest.raises(InputError, match="has no features/index"):
        open_features(made.folder / "nowhere", c, "")
