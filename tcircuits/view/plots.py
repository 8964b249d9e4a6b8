"""The paper's Figure 3 by matplotlib, as a file to put into a text (the extra `plot`)."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tcircuits.types import InputError
from tcircuits.view.chart import COLOURS, GREY, MARKERS, Chart
from tcircuits.view.sweep import figure3, sets


def check_matplotlib(wanted: bool) -> None:
    """Raise, before anything is run, where a plot is wanted and cannot be drawn."""
    if wanted and find_spec("matplotlib") is None:
        raise InputError("--plot needs the package matplotlib: pip install 'tcircuits[plot]'")


def write_plot(told: Mapping[str, Any], run: Path, kind: str) -> Path:
    """`figure3.png` or `.pdf`: a panel for every set of layers."""
    figure_module = importlib.import_module("matplotlib.figure")  # no state of pyplot, no display
    charts = [figure3(told, layers) for layers in sets(told)]
    wide = min(len(charts), 3)
    high = -(-len(charts) // wide)
    figure = figure_module.Figure(figsize=(4.4 * wide, 3.5 * high), layout="constrained")
    for axes, chart in zip(figure.subplots(high, wide, squeeze=False).flat, charts, strict=False):
        _panel(axes, chart)
    for axes in list(figure.axes)[len(charts) :]:
        axes.set_visible(False)
    target = run / f"figure3.{kind}"
    draft = run / f".figure3.{kind}"
    figure.savefig(draft, dpi=200)
    draft.replace(target)
    return target.resolve()


def _panel(axes: Any, chart: Chart) -> None:
    """Levels far above the points are named at the upper end instead of stretching the axis."""
    named: set[str] = set()
    for line in chart.lines:
        colour, marker = COLOURS[line.style % len(COLOURS)], MARKERS[line.style % len(MARKERS)].replace("d", "D")
        ends = zip(line.y, line.low, line.high, strict=False)
        bars = [(y - a, b - y) for y, a, b in ends if a is not None and b is not None]
        whole = list(zip(*bars, strict=True)) if len(bars) == len(line.y) and bars else None
        key = None if line.key in named else line.key
        named.add(line.key)
        look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.3, "alpha": line.opacity}
        axes.errorbar(line.x, line.y, yerr=whole, label=key, elinewidth=0.8, **look)
        for x, y, note in zip(line.x, line.y, line.notes, strict=False):
            side: dict[str, Any] = {"xytext": (-5, -9), "ha": "right"} if line.style % 2 == 0 else {"xytext": (5, 4)}
            axes.annotate(note, (x, y), textcoords="offset points", fontsize=6, color=colour, **side)
    far = chart.far()
    for name, value in chart.levels:
        if (name, value) not in far:
            axes.axhline(value, color=GREY, linestyle="--", linewidth=0.9)
            axes.annotate(f"{name} {value:.3f}", (0.02, value), xycoords=("axes fraction", "data"), fontsize=7,
                          color=GREY, textcoords="offset points", xytext=(0, 2))  # fmt: skip
    if far:
        words = "above: " + ", ".join(f"{name} {value:.3f}" for name, value in far)
        axes.text(0.98, 0.98, words, transform=axes.transAxes, ha="right", va="top", fontsize=7, color=GREY)
    axes.set_title(chart.title, fontsize=9, loc="left")
    axes.set_xlabel(chart.x_name)
    axes.set_ylabel(chart.y_name)
    axes.set_xscale("log" if chart.log_x else "linear")
    ticks = chart.x_axis().ticks()
    axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
