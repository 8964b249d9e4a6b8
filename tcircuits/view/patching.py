"""What a patching sweep shows: a heat map for every site, and the strongest places."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tcircuits.circuits.patching import HEADS, Sweep, strongest
from tcircuits.view.heat import HeatMap
from tcircuits.view.report import report_table, write_report
from tcircuits.view.terminal import result_table

COLUMNS = ("site", "layer", "head", "position", "share")


def maps(sweep: Sweep, words: Sequence[str]) -> list[HeatMap]:
    """One map a site; `words` name the positions."""
    found = []
    for site, values in sweep.places.items():
        wide = values.reshape(-1, values.shape[-1])
        heads = values.shape[1] if site in HEADS else 0
        rows = [f"{r // heads}.{r % heads}" if heads else f"layer {r}" for r in range(len(wide))]
        columns = [f"{word} {i - len(words)}" for i, word in enumerate(words)]
        found.append(HeatMap(site, wide, rows, columns))
    return found


def rows(sweep: Sweep, words: Sequence[str], n: int = 12) -> list[list[str]]:
    """The strongest places."""
    found = []
    for site, (layer, *head, position), share in strongest(sweep, n):
        where = [str(layer), str(head[0]) if head else "-", f"{position} {words[position]}"]
        found.append([site, *where, f"{share:.3f}"])
    return found


def caption(sweep: Sweep, told: str) -> str:
    """What was measured."""
    what = {
        "denoise": "the counterfactual with one value of the prompt put in: the share of the gap that comes back",
        "noise": "the prompt with one value of the counterfactual put in: the share of the gap that is lost",
    }[sweep.direction]
    return f"{told}; {what}. Metric of the prompts {sweep.clean:.3f}, of their counterfactuals {sweep.other:.3f}."


def show_sweep(sweep: Sweep, words: Sequence[str], told: str) -> None:
    """Print the strongest places."""
    console, table = Console(), result_table("Strongest places", *COLUMNS)
    for row in rows(sweep, words):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table, "")
    console.print(Text(caption(sweep, told)))


def write_page(sweep: Sweep, words: Sequence[str], told: str, target: Path) -> Path:
    """The page; returns where it is. Positions are named by the words of one prompt."""
    drawn = "".join(f"<p>{m.svg()}</p>" for m in maps(sweep, words))
    note = "<p>Columns are positions from the end, named by the words of one prompt.</p>"
    body = note + drawn + report_table("Strongest places", COLUMNS, rows(sweep, words, 40))
    return write_report(target, "Activation patching", caption(sweep, told), body)
