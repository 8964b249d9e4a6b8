"""What a sweep of paths shows: a heat map of readers by writers, and the strongest paths."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from tcircuits.circuits.path_patching import PathSweep, strongest_paths
from tcircuits.view.heat import HeatMap
from tcircuits.view.report import report_table, write_report
from tcircuits.view.terminal import result_table

COLUMNS = ("writer", "reader", "share", "standard error")


def as_dict(sweep: PathSweep) -> dict[str, Any]:
    """JSON values; None where a reader does not hear a writer."""

    def listed(values: np.ndarray) -> list[list[float | None]]:
        return [[None if np.isnan(x) else float(x) for x in row] for row in values]

    about = {"readers": list(sweep.readers), "writers": list(sweep.writers), "clean": sweep.clean, "none": sweep.none}
    return about | {"shares": listed(sweep.shares), "errors": listed(sweep.errors)}


def rows(sweep: PathSweep, n: int = 12) -> list[list[str]]:
    """The strongest paths."""
    return [[w, r, f"{share:.3f}", f"{error:.3f}"] for w, r, share, error in strongest_paths(sweep, n)]


def caption(sweep: PathSweep, told: str) -> str:
    """What was measured."""
    return (
        f"{told}; one reader hears one writer as on the counterfactual, all else follows: the share of the metric that "
        f"is lost. Metric of the prompts {sweep.clean:.3f}, with every path replaced {sweep.none:.3f}."
    )


def show_paths(sweep: PathSweep, told: str) -> None:
    """Print the strongest paths."""
    console, table = Console(), result_table("Strongest paths", *COLUMNS)
    for row in rows(sweep):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table, "")
    console.print(Text(caption(sweep, told)))


def write_paths(sweep: PathSweep, told: str, target: Path) -> Path:
    """The page; returns where it is. Readers that do not hear a writer are white there."""
    drawn = HeatMap("readers by writers", np.nan_to_num(sweep.shares), sweep.readers, sweep.writers).svg()
    body = f"<p>{drawn}</p>" + report_table("Strongest paths", COLUMNS, rows(sweep, 40))
    return write_report(target, "Path patching", caption(sweep, told), body)
