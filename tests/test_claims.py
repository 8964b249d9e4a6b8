"""`experiments/claims.json`: every row is complete and names what exists; README.md shows the same rows."""

import dataclasses

import pytest

from experiments.claims import BEGIN, END, load, problems, table, with_table


def test_every_row_is_complete_and_names_what_exists():
    assert problems(load()) == []


def test_both_papers_are_there():
    papers = {c.paper for c in load()}
    assert any("2406.11944" in p for p in papers)
    assert any("2601.12879" in p for p in papers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "experiments.nothing_of_the_kind"}, "module experiments.nothing_of_the_kind does not exist"),
        ({"module": "no_such_package.thing"}, "module no_such_package.thing does not exist"),
        ({"result": "experiments/results/nothing.json"}, "result experiments/results/nothing.json does not exist"),
        ({"status": "holds"}, "status 'holds' needs module"),
        ({"status": "does not"}, "status 'does not' needs ours"),
        ({"status": "maybe"}, "status 'maybe' is none of"),
        ({"status": "open", "why": None}, "status 'open' needs why"),
    ],
)
def test_a_wrong_row_is_found(change, message):
    unmeasured = next(c for c in load() if c.module is None and c.ours is None)
    assert any(message in line for line in problems([dataclasses.replace(unmeasured, **change)]))


def test_a_row_that_appears_twice_is_found():
    claims = load()
    assert problems([*claims, claims[3]]) == [f"{claims[3].id}: appears 2 times"]


def test_a_row_with_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "claims.json").write_text('[{"id": "one", "verdict": "holds"}]')
    with pytest.raises(ValueError, match=r"one: .*verdict"):
        load(tmp_path / "claims.json")


def test_readme_shows_the_rows_as_they_are(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert with_table(text, load()) == text, "run `make claims`"


def test_the_table_goes_between_the_markers_and_nowhere_else():
    claims = load()[:2]
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", claims)
    assert text == f"before\n{BEGIN}\n\n{table(claims)}\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        with_table("no markers", claims)


def test_cells_cannot_break_the_table():
    claim = dataclasses.replace(load()[0], claim="a | b <b>")
    assert "| a \\| b &lt;b> |" in table([claim])
