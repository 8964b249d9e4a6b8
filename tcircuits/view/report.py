"""A report as one HTML file without anything from elsewhere: a title, a caption, charts and tables."""

import html
from collections.abc import Sequence
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1b1e23 }}
h1 {{ font-size: 1.3rem; margin-bottom: .2rem }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .6rem }}
p {{ color: #555; margin-top: 0 }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }}
.wide {{ overflow-x: auto }} svg {{ width: 100%; height: auto; border-radius: 4px }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap }}
th, td {{ text-align: right; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e4e7eb }}
th:first-child, td:first-child {{ text-align: left }} th {{ font-weight: 600 }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16181c; color: #e6e8eb }} p {{ color: #aab }} th, td {{ border-color: #2c3036 }}
}}
</style>
<h1>{title}</h1><p>{caption}</p>
{body}
</html>
"""


def write_report(target: Path, title: str, caption: str, body: str) -> Path:
    """Write the page, which appears whole or not at all; `body` is HTML, the rest is text. Returns where it is."""
    page = PAGE.format(title=html.escape(title), caption=html.escape(caption), body=body)
    draft = target.with_name(f".{target.name}")
    draft.write_text(page, encoding="utf-8")
    draft.replace(target)
    return target.resolve()


def report_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its heading, as HTML; all cells are text."""

    def cells(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    lines = "".join(cells(row, "td") for row in rows)
    return f"<h2>{title}</h2><div class='wide'><table>{cells(columns, 'th')}{lines}</table></div>"
