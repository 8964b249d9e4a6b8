"""The papers' claims, one row each in `claims.json`, and the table of them in README.md.

    python -m experiments.claims            prints the table
    python -m experiments.claims --write    puts it between the markers in README.md

A row says what the paper claims (`claim`, `paper_figure`), what was found here (`ours`, `status`), by which module and
command, and where the numbers lie (`result`). Status:

| status | means | must have |
|---|---|---|
| holds | measured here, and it does | module, command, result, ours |
| does not | measured here, and it does not | module, command, result, ours |
| not reachable | cannot be measured here | why |
| open | not measured yet | why |
"""

import importlib.util
import json
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = ROOT / "experiments" / "claims.json"
BEGIN = "<!-- claims: written by `make claims` -->"
END = "<!-- end of claims -->"
MEASURED = ("holds", "does not")
UNMEASURED = ("not reachable", "open")


@dataclass(frozen=True)
class Claim:
    """One row of `claims.json`; `module` is importable, `result` is a path from the top of the repository."""

    id: str
    paper: str
    claim: str
    module: str | None
    command: str | None
    result: str | None
    model: str
    paper_figure: str
    ours: str | None
    status: str
    why: str | None


def load(path: Path = CLAIMS) -> list[Claim]:
    """Read the rows.

    Raises:
        ValueError: a row with other fields than `Claim` has; all such rows are named.
    """
    rows, names = json.loads(path.read_text(encoding="utf-8")), {f.name for f in fields(Claim)}
    wrong = [
        f"{row.get('id', f'row {i}')}: {sorted(names ^ row.keys())}" for i, row in enumerate(rows) if names ^ row.keys()
    ]
    if wrong:
        raise ValueError(f"{path.name}: fields missing or unknown: " + "; ".join(wrong))
    return [Claim(**row) for row in rows]


def problems(claims: list[Claim], root: Path = ROOT) -> list[str]:
    """Everything that is wrong with the rows: one line each, empty when all is well."""
    ids = [c.id for c in claims]
    found = [f"{name}: appears {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1]
    return found + [f"{c.id}: {text}" for c in claims for text in _row_problems(c, root)]


def _row_problems(c: Claim, root: Path) -> list[str]:
    required = ("module", "command", "result", "ours") if c.status in MEASURED else ("why",)
    found = [f"status {c.status!r} needs {name}" for name in required if not getattr(c, name)]
    if c.status not in MEASURED + UNMEASURED:
        found.append(f"status {c.status!r} is none of {MEASURED + UNMEASURED}")
    if c.module and not _exists(c.module):
        found.append(f"module {c.module} does not exist")
    if c.result and not (root / c.result).is_file():
        found.append(f"result {c.result} does not exist")
    return found


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def table(claims: list[Claim]) -> str:
    """The rows as Markdown, one table for each paper, with the count of each status above it."""
    parts = []
    for paper in dict.fromkeys(c.paper for c in claims):
        rows = [c for c in claims if c.paper == paper]
        counts = [f"{sum(c.status == s for c in rows)} {s}" for s in (*MEASURED, *UNMEASURED)]
        lines = [f"<details><summary><b>{paper}</b>: {len(rows)} rows: {', '.join(counts)}</summary>", ""]
        lines += ["| claim | model | the paper's figure | ours | status |", "|---|---|---|---|---|"]
        cells = ((c.claim, c.model, c.paper_figure, c.ours or "", c.status) for c in rows)
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in cells]
        parts.append("\n".join([*lines, "", "</details>"]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def with_table(readme: str, claims: list[Claim]) -> str:
    """The text of README.md with the table between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ValueError(f"README.md must hold the markers {BEGIN!r} and {END!r}, once each and in this order")
    return f"{head}{BEGIN}\n\n{table(claims)}\n\n{END}{tail}"


@dataclass(frozen=True)
class Config:
    """What to do with the table."""

    write: bool = False
    """Put the table into README.md instead of printing it."""


def main(cfg: Config) -> None:
    """Check the rows, then print the table or write it."""
    claims = load()
    if wrong := problems(claims):
        raise SystemExit("\n".join(wrong))
    if not cfg.write:
        print(table(claims))
        return
    readme = ROOT / "README.md"
    text = with_table(readme.read_text(encoding="utf-8"), claims)
    partial = readme.with_suffix(".md.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(readme)
    print(f"{len(claims)} claims written into {readme.name}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))
