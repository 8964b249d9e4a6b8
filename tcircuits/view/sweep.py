"""What a sweep shows: the paper's Figure 3 by layer, families at equal L0, every member's figures, one page of it all.

Everything is drawn from the JSON object of the sweep (`sweep.json`) and the members' `metrics.jsonl`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from tcircuits.transcoders.training.folder import read_metrics
from tcircuits.view.chart import Chart, Line
from tcircuits.view.report import report_table, write_report
from tcircuits.view.terminal import result_table

LABELS = {"transcoder": "transcoders", "skip": "skip transcoders", "sae": "SAEs", "clt": "cross-layer transcoders"}
WIDE = 5.0  # L0 axes are logarithmic from this ratio on
Told = Mapping[str, Any]


def label(family: str) -> str:
    """A family as a person says it: `sae-relu-x16` is `SAEs, relu, x16`."""
    kind, *rest = family.split("-")
    return ", ".join([LABELS.get(kind, kind), *rest])


def families(told: Told) -> list[str]:
    """In order; a family's number is its colour."""
    return list(dict.fromkeys(m["family"] for m in told["members"]))


def sets(told: Told) -> list[tuple[int, ...]]:
    """The sets of layers that any member was replaced at: single layers first."""
    found = {tuple(r["layers"]) for m in measured(told) for r in m["evaluation"]["replaced"]}
    return sorted(found, key=lambda layers: (len(layers), layers))


def measured(told: Told) -> list[Told]:
    """Members with an evaluation."""
    return [m for m in told["members"] if m["evaluation"] is not None]


def set_name(layers: Sequence[int]) -> str:
    """`layer 3` or `layers 1, 2`."""
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))


def replaced(member: Told, layers: tuple[int, ...]) -> Told | None:
    """A member's losses with a set replaced."""
    return next((r for r in member["evaluation"]["replaced"] if tuple(r["layers"]) == layers), None)


def points(told: Told, layers: tuple[int, ...]) -> list[Line]:
    """L0 against cross-entropy with a set of layers replaced: a line for every family and seed."""
    base, found = told["ce_original"], []
    for style, family in enumerate(families(told)):
        own = [m for m in measured(told) if m["family"] == family]
        seeds = sorted({m["seed"] for m in own})
        for seed in seeds:
            rows = [_point(m, layers, base) for m in own if m["seed"] == seed]
            rows = sorted(r for r in rows if r is not None and r[0] > 0)
            x, y, low, high, notes = zip(*rows, strict=True) if rows else ((), (), (), (), ())
            notes = notes if seed == seeds[0] else ()
            more = {
                "opacity": 1.0 if len(seeds) == 1 else 0.7,
                "markers": True,
                "name": f"{label(family)}, seed {seed}",
            }
            found.append(Line(label(family), x, y, style, low, high, notes, **more))
    return found


def _point(member: Told, layers: tuple[int, ...], base: float) -> tuple[Any, ...] | None:
    """L0, cross-entropy, its interval (that of the change), and the penalty as the paper has it."""
    row = replaced(member, layers)
    if row is None:
        return None
    l0 = float(np.mean([b["l0"] for b in member["evaluation"]["by_layer"] if b["layer"] in layers]))
    change, (name, value) = row["delta"]["dictionary"], member["point"]
    low, high = (None if change[end] is None else base + change[end] for end in ("low", "high"))
    return l0, row["ce"]["dictionary"], low, high, f"{value:.1e}".replace("e-0", "e-") if name == "l1" else ""


def figure3(told: Told, layers: tuple[int, ...]) -> Chart:
    """The paper's figure for a set of layers."""
    lines = points(told, layers)
    every = [v for line in lines for v in line.x]
    row = next(r for r in (replaced(m, layers) for m in measured(told)) if r is not None)
    levels = [("original model", told["ce_original"])]
    levels += [(f"{name}-ablated", row["ce"][name]) for name in ("mean", "zero")]
    wide = bool(every) and max(every) > WIDE * min(every)
    names = ("L0: features on for a token", "cross-entropy (nats a token)")
    return Chart(f"MLP of {set_name(layers)} replaced", *names, lines, levels, log_x=wide)


def _strengths(told: Told) -> dict[str, float]:
    """How dark a member's line is: its place among the points of its family."""
    out = {}
    for family in families(told):
        own = [m for m in told["members"] if m["family"] == family]
        values = sorted({m["point"][1] for m in own})
        out |= {m["name"]: 0.35 + 0.65 * (values.index(m["point"][1]) + 1) / len(values) for m in own}
    return out


def curves(told: Told, run: Path) -> list[Chart]:
    """Loss and unexplained variance while training, means over layers, a line for every member."""
    strengths, order = _strengths(told), families(told)
    rows = {m["name"]: read_metrics(run / "members" / m["name"]) for m in told["members"]}

    def lines(what: str) -> list[Line]:
        out = []
        for m in told["members"]:
            own = rows[m["name"]]
            x, y = [r["tokens"] for r in own], [float(np.mean(r[what])) for r in own]
            more = {"name": m["name"], "opacity": strengths[m["name"]]}
            out.append(Line(label(m["family"]), x, y, order.index(m["family"]), **more))
        return out

    named = (("loss", "loss"), ("fvu", "fraction of variance unexplained"))
    return [
        Chart(
            f"{name[0].upper()}{name[1:]}, mean over layers", "tokens", name, lines(what), log_y=_positive(lines(what))
        )
        for what, name in named
    ]


def _positive(lines: Sequence[Line]) -> bool:
    return all(v > 0 for line in lines for v in line.y)


def densities(told: Told) -> list[Chart]:
    """How often features are on: a chart for every layer, a line for every member of the first seed."""
    have, strengths, order = measured(told), _strengths(told), families(told)
    first = min((m["seed"] for m in have), default=0)
    charts = []
    for layer in sorted({b["layer"] for m in have for b in m["evaluation"]["by_layer"]}):
        lines = []
        for m in (m for m in have if m["seed"] == first):
            density = next((b["density"] for b in m["evaluation"]["by_layer"] if b["layer"] == layer), None)
            if density is None:
                continue
            more = {"name": m["name"], "opacity": strengths[m["name"]], "steps": True}
            edges = m["evaluation"]["density_edges"]
            from_, to = _filled(have, layer)
            x, y = edges[from_ : to + 1], [*density[from_:to], 0]
            lines.append(Line(label(m["family"]), x, y, order.index(m["family"]), **more))
        names = ("log10 of the share of positions where a feature is on", "features")
        charts.append(Chart(f"Density, layer {layer} (seed {first})", *names, lines, from_zero=True))
    return charts


def _filled(members: Sequence[Told], layer: int) -> tuple[int, int]:
    """The bins of a layer that any member fills."""
    rows = [b["density"] for m in members for b in m["evaluation"]["by_layer"] if b["layer"] == layer]
    at = np.flatnonzero(np.sum(rows, 0))
    return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, len(rows[0]))


def interval(x: Told | None, form: str = "+.4f") -> str:
    """A figure with its interval."""
    if x is None or x["value"] is None:
        return "-"
    return f"{x['value']:{form}}" + ("" if x["low"] is None else f" [{x['low']:{form}}, {x['high']:{form}}]")


COLUMNS = (
    *("member", "point", "L0", "FVU", "dead", "CE change, one layer", "KL, one layer"),
    *("CE change, all layers", "KL, all layers"),
)


def table(told: Told) -> list[list[str]]:
    """A row for every member, under `COLUMNS`; figures of one layer are means over layers."""
    out = []
    for m in told["members"]:
        name, value = m["point"]
        cells = [m["name"], f"{name} {value:g}"]
        if m["evaluation"] is None:
            cells += [m["failed"] or "not measured", *[""] * (len(COLUMNS) - 3)]
        else:
            cells += _figures(m["evaluation"])
        out.append(cells)
    return out


def _figures(e: Told) -> list[str]:
    single = [r for r in e["replaced"] if len(r["layers"]) == 1]
    several = [r for r in e["replaced"] if len(r["layers"]) > 1]
    cells = [f"{e['overall']['l0']:.2f}", f"{e['overall']['fvu']:.4f}", f"{100 * e['overall']['dead']:.1f} %"]
    for rows in (single, several):
        changes = [r["delta"]["dictionary"] for r in rows]
        mean = f"{np.mean([c['value'] for c in changes]):+.4f}" if rows else "-"
        cells.append(interval(changes[0]) if len(rows) == 1 else mean)
        cells.append(f"{np.mean([r['kl']['dictionary'] for r in rows]):.4f}" if rows else "-")
    return cells


VERSUS = ("families", "replaced", "at L0", "CE, first - second")


def versus(told: Told) -> list[list[str]]:
    """A row for every two families, under `VERSUS`."""
    out = []
    for v in told["comparisons"]:
        who = f"{label(v['first'])} - {label(v['second'])}"
        what = "one layer" if v["replaced"] == "each" else "all layers"
        if v.get("overall") is None:
            out.append([who, what, "", v["why"]])
            continue
        l0s = [p["l0"] for p in v["pairs"]]
        ends = f"{min(l0s):.1f}" if max(l0s) - min(l0s) < 0.05 else f"{min(l0s):.1f} to {max(l0s):.1f}"
        out.append([who, what, ends, interval(v["overall"])])
    return out


def show_sweep(told: Told) -> None:
    """Print the tables."""
    console = Console()
    short = ("member", "L0", "FVU", "dead", "CE, one", "KL, one", "CE, all", "KL, all")  # fits a terminal of 80 columns
    members = [[row[0], *(cell.split(" [")[0] for cell in row[2:])] for row in table(told)]
    for title, columns, rows in (("Members", short, members), ("At equal L0", VERSUS, versus(told))):
        shown = result_table(title, *columns)
        for row in rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown, "")
    console.print(Text("CE: change with one layer replaced (mean over layers), with all. " + _caption(told)))


def _caption(told: Told) -> str:
    e = next((m["evaluation"] for m in measured(told)), None)
    if e is None:
        return f"{told['model']}: no member was measured"
    return (
        f"{told['model']}, {told['tokens']:,} tokens of training for each member; {e['n_predictions']:,} predictions "
        f"on held-out rows, original cross-entropy {e['ce_original']:.4f} nats; brackets: "
        f"{100 * e['level']:.0f} % interval over rows (at equal L0 also over layers and seeds)"
    )


def write_page(told: Told, run: Path) -> Path:
    """`report.html`: one file without anything from elsewhere."""
    figures = [figure3(told, layers) for layers in sets(told)]
    parts = [
        ("L0 against cross-entropy", figures),
        ("Density of features", densities(told)),
        ("Training", curves(told, run)),
    ]
    drawn = {title: "".join(c.svg() for c in charts) for title, charts in parts}
    body = [
        f"<h2>{title}</h2>{SHADES if i else BARS}<div class='charts'>{charts}</div>"
        for i, (title, charts) in enumerate(drawn.items())
        if charts
    ]
    tables = [("At equal L0", VERSUS, versus(told)), ("Members", COLUMNS, table(told))]
    body[1:1] = [report_table(*t) for t in tables if t[2]]
    return write_report(run / "report.html", f"Sweep {run.resolve().name}", _caption(told), "".join(body))


BARS = (
    "<p>Bars are 95 % intervals of the change against the original model, over rows; dashed lines are the original "
    "model and the model with the same MLPs replaced by their mean output, or by zero.</p>"
)
SHADES = "<p>Darker lines have a larger k or penalty; the pointer shows a line's name.</p>"
