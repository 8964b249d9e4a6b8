"""The rating page in a browser: rate by key and by click, save, and come back."""

import json

import pytest

from tcircuits.types import InputError
from tcircuits.view.page import write_html
from tcircuits.view.rating import Example, Item, rating_page
from tests.view.oracle import HOSTILE

pytestmark = pytest.mark.browser
ITEMS = [
    Item(f"{n:03d}", (Example((" the", " war", HOSTILE), (0.0, 0.5, 1.0), 2), Example((" a", str(n)), (1.0, 0.0), 0)))
    for n in range(3)
]


@pytest.fixture
def page(visit, tmp_path):
    path = write_html(rating_page(ITEMS, "p1"), tmp_path / "rate.html")
    page = visit(path.as_uri())
    yield page
    assert page.seen.console == []
    assert page.seen.errors == []
    assert page.seen.dialogs == []
    assert [r for r in page.seen.requests if not r.startswith(("file:", "blob:"))] == []


def _saved(page):
    with page.expect_download() as download:
        page.click("#save")
    with open(download.value.path(), encoding="utf-8") as file:
        return json.load(file)


def test_ratings_by_key_and_click_are_saved(page):
    assert page.inner_text("#progress") == "0 of 3 rated"
    page.keyboard.press("1")
    assert page.inner_text(".examples h2") == "Feature 2"
    page.check("#context-free")
    page.fill("#note", "wars <b>")
    page.locator("#note").blur()
    page.click('.answer button[data-focus="no"]')
    assert page.inner_text(".examples h2") == "Feature 3"
    assert page.inner_text("#progress") == "2 of 3 rated"
    assert _saved(page) == {
        "page": "p1",
        "ratings": {
            "000": {"rating": "yes", "context_free": False, "note": ""},
            "001": {"rating": "no", "context_free": True, "note": "wars <b>"},
        },
    }
    page.reload()
    page.wait_for_selector("#page:not([aria-busy])")
    assert page.inner_text("#progress") == "2 of 3 rated"


def test_text_is_shown_as_text_and_shaded(page):
    tokens = page.query_selector_all(".examples .passage:first-of-type .tok")
    assert [t.evaluate("e => getComputedStyle(e).getPropertyValue('--part')") for t in tokens] == ["", "50%", "100%"]
    assert "chosen" in tokens[2].get_attribute("class")
    assert "<script>" in tokens[2].inner_text() or "onerror" in tokens[2].inner_text()
    assert page.query_selector_all(".examples img, .examples script") == []


def test_items_need_names():
    with pytest.raises(InputError, match="names"):
        rating_page([], "p")
    with pytest.raises(InputError, match="names"):
        rating_page([ITEMS[0], ITEMS[0]], "p")
