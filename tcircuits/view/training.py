"""What a training run shows: a line of figures while it goes, a table and a page when it ends."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tcircuits.parallel import is_lead
from tcircuits.transcoders.training.folder import read_metrics
from tcircuits.view.terminal import result_table

Row = Mapping[str, Any]
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 240, 56, 34


@contextmanager
def watching(total: int, wanted: bool = True) -> Iterator[Callable[[Row], None]]:
    """A bar of `total` steps with the newest figures, on the lead process's error stream; a line a fill elsewhere."""
    if not (wanted and is_lead()):
        yield lambda row: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda row: console.print(figures(row), highlight=False)
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=total)
        yield lambda row: bar.update(task, completed=row["step"], description=figures(row))


def figures(row: Row) -> str:
    """The figures of one fill in a line; means over layers, dead features counted."""
    return (
        f"step {row['step']:,}  loss {np.mean(row['loss']):.4g}  FVU {np.mean(row['fvu']):.3f}  "
        f"L0 {np.mean(row['l0']):.1f}  dead {sum(row['dead']):,}  {row['tokens_per_second']:,.0f} tokens/s"
    )


def show_outcome(run: Path, layers: Sequence[int], outcome: Any, *, quiet: bool = False) -> dict[str, Any]:
    """Write the run's page, print its last figures by layer, and return them."""
    rows = read_metrics(run)
    found: dict[str, Any] = {"status": outcome.status, "step": outcome.step, "run": str(run)}
    if rows:
        page = write_report(run, layers, rows)
        last = rows[-1]
        found |= {"page": str(page), "tokens": last["tokens"]} | {n: last[n] for n in ("fvu", "l0", "dead", "loss")}
    if outcome.status == "done":
        found["transcoders"] = str(run / "transcoders")
    if quiet:
        return found
    console = Console()
    if rows:
        table = result_table("Last buffer", "layer", "FVU", "L0", "dead", "loss")
        for slot, layer in enumerate(layers):
            last = rows[-1]
            cells = (f"{last['fvu'][slot]:.4f}", f"{last['l0'][slot]:.1f}", f"{last['dead'][slot]:,}")
            table.add_row(str(layer), *cells, f"{last['loss'][slot]:.4g}")
        console.print(table)
    more = "the transcoders are in" if outcome.status == "done" else "stopped; the same command goes on in"
    console.print(f"{more} {found.get('transcoders', run)}")
    if rows:
        console.print(f"page: {found['page']}")
    return found


def write_report(run: Path, layers: Sequence[int], rows: Sequence[Row]) -> Path:
    """`report.html`: curves of the run, by layer, as one file without anything from elsewhere."""
    tokens = [row["tokens"] for row in rows]
    charts = [
        _chart("fraction of variance unexplained", tokens, [[r["fvu"][i] for r in rows] for i in range(len(layers))]),
        _chart("features on for a token (L0)", tokens, [[r["l0"][i] for r in rows] for i in range(len(layers))]),
        _chart("loss", tokens, [[r["loss"][i] for r in rows] for i in range(len(layers))]),
        _chart("dead features", tokens, [[r["dead"][i] for r in rows] for i in range(len(layers))]),
    ]
    names = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>layer {layer}</span>'
        for i, layer in enumerate(layers)
    )
    page = _PAGE.format(title=html.escape(run.name), names=names, charts="".join(charts), last=figures(rows[-1]))
    target = run / "report.html"
    draft = target.with_name(".report.html")
    draft.write_text(page, encoding="utf-8")
    draft.replace(target)
    return target.resolve()


def _chart(title: str, x: Sequence[float], lines: Sequence[Sequence[float]]) -> str:
    """One chart as SVG; a line a layer."""
    top = max((max(line) for line in lines), default=1.0) or 1.0
    right, wide, high = max(x), WIDTH - LEFT - 10, HEIGHT - BOTTOM - 24

    def place(a: float, b: float) -> str:
        return f"{LEFT + wide * a / right:.1f},{24 + high * (1 - b / top):.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.5" '
        f'points="{" ".join(place(a, b) for a, b in zip(x, line, strict=True))}"/>'
        for i, line in enumerate(lines)
    )
    marks = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{24 + high * (1 - s):.1f}" y2="{24 + high * (1 - s):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{28 + high * (1 - s):.1f}" text-anchor="end">{top * s:.3g}</text>'
        for s in (0, 0.25, 0.5, 0.75, 1)
    )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 12}">0</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 12}" text-anchor="end">{right / 1e6:.3g}M tokens</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><text class="title" x="{LEFT}" y="14">'
        f"{title}</text><g class='grid'>{marks}</g>{ends}{drawn}</svg>"
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1e23 }}
h1 {{ font-size: 1.3rem }} p {{ color: #555 }}
.names {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem }}
.names i {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; border-radius: 2px }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.5rem; margin-top: 1rem }}
svg {{ width: 100%; height: auto }} svg text {{ font-size: 11px; fill: #555 }}
svg .title {{ font-size: 13px; fill: #1b1e23 }} .grid line {{ stroke: #e4e7eb }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16181c; color: #e6e8eb }} p, svg text {{ color: #aab; fill: #aab }}
  svg .title {{ fill: #e6e8eb }}
  .grid line {{ stroke: #2c3036 }}
}}
</style>
<h1>{title}</h1><p>{last}</p>
<div class="names">{names}</div>
<div class="charts">{charts}</div>
</html>
"""
