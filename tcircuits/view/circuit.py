"""What a circuit's test shows: the circuit beside its nulls and baselines, and curves over the share of units kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.metrics import LEAST_ERRORS
from tcircuits.circuits.validate import NEEDED, Figures, Report
from tcircuits.transcoders.evaluation.intervals import Interval
from tcircuits.view.chart import Chart, Line
from tcircuits.view.report import report_table, write_report
from tcircuits.view.terminal import result_table

COLUMNS = ("kept", "units", "faithfulness", "phi", "KL", "A_ok", "A_err")
CURVES = {"signed": "ranked by score", "size": "ranked by the score's size"}


def _interval(x: Interval | None) -> str:
    if x is None:
        return "-"
    return f"{x.value:.3f}" if x.low is None or x.high is None else f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]"


def _row(name: str, f: Figures) -> list[str]:
    err = _interval(f.err.share) if f.err.share else f"n/a (n = {f.err.n})"
    shares = _interval(f.faithfulness), _interval(f.phi)
    return [name, f"{f.units:,}", *shares, f"{f.kl:.3f}", _interval(f.ok.share), err]


def rows(report: Report) -> list[list[str]]:
    """The table: the circuit, the controls, the baselines."""
    n = report.nulls
    chance = [f"{n.n} random, 95th percentile", f"{report.circuit.units:,}", f"{n.faithfulness_95:.3f}"]
    chance += [f"{n.phi_95:.3f}", "-", "-", "-"]
    named = [("the circuit", report.circuit), ("nothing", report.nothing), ("all but the circuit", report.complement)]
    table = [_row(name, f) for name, f in named]
    return [*table, chance, *(_row(f"best by {name}", f) for name, f in report.baselines.items())]


def remarks(report: Report) -> list[str]:
    """What else the test found, in sentences."""
    n = report.nulls
    found = [
        "phi: right answers as a share of the model's; A_ok and A_err: the model's own choice kept, where the model is "
        f"right and where it is wrong (told from {LEAST_ERRORS} errors on); KL in nats.",
        "Random circuits with as many units in every kind and layer (and position, if units have one) reach its "
        f"faithfulness with p = {n.p_faithfulness:.3f}, its phi with p = {n.p_phi:.3f}.",
        "Equivalence: does better than the model as often as worse, p = "
        f"{report.p_equivalence:.3g} (small: it does not).",
        "Independence: what is left without it knows nothing about the task, p = "
        f"{report.p_independence:.3g} (small: it knows something).",
    ]
    if report.needed is not None:
        share = f"{100 * report.needed:.0f} %"
        found.append(f"Minimality: {share} of its units cost more than {NEEDED} of faithfulness when taken out.")
    if report.minimality is not None:
        m = report.minimality
        found.append(
            f"Against insertions: removing {100 * m.beaten:.0f} % of its units moves the metric more than putting in "
            f"95 % of {m.insertions} random ones does; the least needed, {m.worst}, has p = {m.p_worst:.3f}."
        )
    stable = report.about["circuit"].get("stability")
    if stable:
        found.append(
            f"Stability: circuits from resampled prompts share {stable['mean']:.2f} of their units (Jaccard, mean over "
            f"pairs of {stable['draws']} resamples; 5th percentile {stable['low']:.2f}, chance {stable['chance']:.2f})."
        )
    for name, c in report.curves.items():
        areas = f"CMD {c.CMD:.3f}, CPR {c.CPR:.3f}, accuracy {c.accuracy_area:.3f}, KL {c.kl_area:.3f}"
        found.append(f"Areas over size, {CURVES[name]}: {areas}.")
    return found


def caption(report: Report) -> str:
    """What was measured on what."""
    b, m = report.about["behaviour"], report.model
    return (
        f"{b['model']}, {b['name']}: {report.about['prompts']} prompts that chose nothing; ablation: "
        f"{report.about['ablation']}, errors: {report.about['errors']}; {b['metric'].replace('_', ' ')} of the model "
        f"{m['metric']:.3f}, right {100 * m['right']:.0f} %. Brackets: 95 % intervals over prompts."
    )


def charts(report: Report) -> list[Chart]:
    """Faithfulness, share right and KL over the share of units kept."""
    names = ("faithfulness", "faithfulness"), ("right", "share of prompts"), ("kl", "nats")
    if not report.curves:
        return []

    def lines(what: str) -> list[Line]:
        return [
            Line(CURVES[name], c.shares, getattr(c, what), style, markers=True, name=CURVES[name])
            for style, (name, c) in enumerate(report.curves.items())
        ]

    levels = {"faithfulness": [("the model", 1.0), ("nothing", 0.0)], "right": [("the model", report.model["right"])]}
    titles = {"faithfulness": "Faithfulness", "right": "Share right", "kl": "KL from the model"}
    return [
        Chart(titles[what], "share of units kept", name, lines(what), levels.get(what, ()), log_x=True)
        for what, name in names
    ]


def show_report(report: Report) -> None:
    """Print the table and what else was found."""
    console = Console()
    shown = result_table("The circuit and its controls", *COLUMNS)
    for row in rows(report):
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown, "")
    for line in [*remarks(report), caption(report)]:
        console.print(Text(line))


def write_page(report: Report, circuit: Circuit, target: Path) -> Path:
    """The report as a page; returns where it is."""
    drawn = "".join(c.svg() for c in charts(report))
    labels = circuit.labels()
    units = [[str(i + 1), label, _score(circuit, label, i)] for i, label in enumerate(labels[:200])]
    more = "" if len(labels) <= len(units) else f"<p>and {len(labels) - len(units):,} more</p>"
    body = [
        report_table("The circuit and its controls", COLUMNS, rows(report)),
        "<ul>" + "".join(f"<li>{line}</li>" for line in remarks(report)) + "</ul>",
        f"<h2>By size</h2><div class='charts'>{drawn}</div>" if drawn else "",
        report_table("Units", ("", "unit", "score"), units) + more,
    ]
    b: Mapping[str, Any] = report.about["behaviour"]
    title = f"{b['name']} in {b['model']}: a circuit of {circuit.size} units"
    return write_report(target, title, caption(report), "".join(body))


def _score(circuit: Circuit, label: str, place: int) -> str:
    if circuit.scores is None:
        return "-"
    inside = circuit.mask.nonzero()[0]
    ranked = sorted(inside, key=lambda u: -abs(float(circuit.scores[u])) if circuit.scores is not None else 0.0)
    return f"{float(circuit.scores[ranked[place]]):.4g}"


def show_choice(circuit: Circuit, counts: Sequence[int], found: Sequence[float], taken: int | None) -> None:
    """Print the circuit and how its size was chosen."""
    console = Console()
    table = result_table(f"{circuit.size} of {circuit.units.n:,} units", "unit", "score")
    scores = [_score(circuit, label, i) for i, label in enumerate(circuit.labels()[:15])]
    for label, score in zip(circuit.labels()[:15], scores, strict=True):
        table.add_row(Text(label), score)
    console.print(table, "")
    at = list(counts).index(circuit.size)
    console.print(Text(f"faithfulness {found[at]:.3f} on the selection split"))
    if taken is None and circuit.about.get("size_given") is None:
        all_kept = circuit.size == circuit.units.n
        what = "all units are kept, or ask for a size" if all_kept else "the largest that was asked for is kept"
        console.print(Text(f"no size comes near the whole model: {what}"))
