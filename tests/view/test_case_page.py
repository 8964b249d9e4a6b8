"""The page of a case study in a browser: everything that was asked and said, as text, and the shaded prompts."""

import pytest

from tcircuits.view.case import Case, Cell, Passage, Step, case_page
from tcircuits.view.page import write_html
from tests.view.oracle import HOSTILE

pytestmark = pytest.mark.browser
ATTACK = "years </script><img src=x onerror=alert(1)>"
STEPS = (
    Step("2025-01-02 10:00:00", "Paths into it on prompt 0", ("mlp1tc[2]@3: 1.5 <- attn0[1]@2: 0.5", ATTACK)),
    Step("2025-01-02 10:01:00", "Feature 0/5 by its weights", (), ((Cell("answers to"), Cell(tokens=(
        (" the", 1.25), (HOSTILE, -0.5)))), (Cell("a mean"), Cell(value=-0.25)))),
    Step("2025-01-02 10:02:00", f"Hypothesis: {ATTACK}"),
    *(Step("2025-01-02 10:03:00", "many", (), tuple((Cell(str(i)),) for i in range(n))) for n in (20, 21)),
)  # fmt: skip
CASE = Case("tc1[2]", "failure", ATTACK, ("the text", "layer 0"), (("model", "tiny"),), STEPS,
            (Passage((" The", ATTACK, HOSTILE), (0.0, 1.0, 2.0), 2, True), Passage(("a",), (4.0,), 0)))  # fmt: skip


@pytest.fixture
def page(visit, tmp_path):
    page = visit(write_html(case_page(CASE), tmp_path / "page.html").as_uri())
    yield page
    assert page.seen.console == []
    assert page.seen.errors == []
    assert page.seen.dialogs == []
    assert [r for r in page.seen.requests if not r.startswith("file:")] == []


def test_what_was_said_is_text(page):
    assert page.inner_text("h1") == "Case study tc1[2]"
    assert page.inner_text(".verdict") == "failure"
    assert page.inner_text(".said") == f"Hypothesis: {ATTACK}"
    assert page.locator(".hidden-part li").all_inner_texts() == ["the text", "layer 0"]
    assert page.locator(".steps .question").all_inner_texts()[:3] == [s.question for s in STEPS[:3]]
    assert page.locator(".steps time").all_inner_texts()[0] == "2025-01-02 10:00:00"
    assert page.inner_text(".steps pre").splitlines() == list(STEPS[0].lines)
    assert page.locator(".case img, .steps b").count() == 0
    assert page.locator(".chips .weight").nth(0).inner_text().split() == ["·the", "+1.25"]
    assert page.locator(".chips .weight .negative").inner_text() == "\u22120.500"
    assert page.locator("td.number").inner_text() == "\u22120.250"
    assert [d.get_attribute("open") is not None for d in page.locator("details").all()] == [True, True, True, False]


def test_prompts_are_shaded_by_activation(page):
    lines = page.locator(".passages .example")
    assert lines.locator(".peak").all_inner_texts() == ["2.00", "4.00"]
    tokens = lines.nth(0).locator(".tok")
    assert tokens.nth(1).text_content() == ATTACK
    parts = [t.evaluate("e => e.style.getPropertyValue('--part')") for t in tokens.all()]
    assert parts == ["", "25%", "50%"]
    assert [t.get_attribute("class") for t in tokens.all()] == ["tok", "tok on", "tok on chosen"]
    assert [line.locator(".mark", has_text="…").count() for line in lines.all()] == [1, 0]
