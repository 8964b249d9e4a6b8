"""Headless Chromium for the tests of the page."""

from types import SimpleNamespace

import pytest

from tcircuits.view.page import write_page


@pytest.fixture(scope="session")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address; `seen` collects everything that a clean page must not do."""
    contexts = []

    def go(address, wait=True, **options):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        seen = SimpleNamespace(console=[], errors=[], requests=[], dialogs=[])
        page.on("console", lambda m: seen.console.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: seen.errors.append(str(e)))
        page.on("request", lambda r: seen.requests.append(r.url))
        page.on("dialog", lambda d: (seen.dialogs.append(d.message), d.dismiss()))
        page.goto(address)
        assert seen.errors == []
        if wait:
            page.wait_for_selector("#page:not([aria-busy])", timeout=15000)
        page.seen = seen
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.fixture
def show(visit, tmp_path):
    """Writes a graph's page and opens it from disk; on leaving, it must have stayed clean."""
    pages = []

    def go(graph, fragment="", **options):
        path = write_page(graph, tmp_path / f"page{len(pages)}.html")
        page = visit(path.as_uri() + fragment, **options)
        pages.append(page)
        return page

    yield go
    for page in pages:
        address = page.url.split("#")[0]
        assert page.seen.console == []
        assert page.seen.errors == []
        assert page.seen.dialogs == []
        assert [url for url in page.seen.requests if url.split("#")[0] != address and not url.startswith("blob:")] == []
