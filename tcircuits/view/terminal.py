"""What the command line prints: short tables and progress bars (rich), on the lead process and to a person only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tcircuits.attribution.graph import Graph
from tcircuits.attribution.summary import heaviest, node_label, strongest_inputs, strongest_paths
from tcircuits.parallel import is_lead

STAGES = ("load", "compile", "forward", "attribute", "prune", "write")


@contextmanager
def progress(title: str, wanted: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal's error stream; nothing where nobody looks."""
    if not (wanted and is_lead() and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def visible(text: str) -> str:
    """A token with its spaces and newlines shown, and nothing that moves the cursor or turns the line around."""
    shown = text.replace(" ", "\u00b7").replace("\n", "\u23ce").replace("\t", "\u21e5")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)


def short_name(graph: Graph, node: int) -> str:
    """A node's short name, fit for a terminal."""
    return node_label(graph, node, visible)


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f} %"


def result_table(title: str, *columns: str) -> Table:
    """A table without lines, its first column to the left and the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    return table


def show_trace(graph: Graph, found: dict[str, Any], page: str, words_of: dict[int, Any] | None = None) -> None:
    """The summary of a trace: what it explains, through what, how completely, and how long it took."""
    console = Console()
    targets = result_table("Explained", "target", "probability")
    for t in graph.targets:
        targets.add_row(Text(visible(t.label)), _percent(t.prob))
    tokens = result_table("Tokens", "token", "position", "share of influence")
    for i, share in enumerate(found["token_shares"]):
        tokens.add_row(Text(visible(graph.token_text[i])), str(i), _percent(share))
    inputs = result_table(
        f"Strongest inputs of {visible(graph.targets[heaviest(graph)].label)}", "node", "adds", "promotes"
    )
    for node, weight in strongest_inputs(graph):
        words = " ".join(visible(t) for t, _ in (words_of or {}).get(node, ([], []))[0][:3])
        inputs.add_row(Text(short_name(graph, node)), f"{weight:+.2f}", Text(words))
    paths = result_table("Strongest paths", "path", "share of input", "sign")
    for p in strongest_paths(graph):
        steps = " \u2192 ".join(short_name(graph, n) for n in p.nodes)
        paths.add_row(Text(steps), f"{p.share:.2e}", "+" if p.sign > 0 else "-")
    scores = result_table("What the graph holds", "", "")
    for name, value in _figures(found):
        scores.add_row(name, value)
    seconds = result_table("Seconds", *STAGES)
    seconds.add_row(*(f"{found['seconds'].get(s, 0.0):.1f}" for s in STAGES))
    for table in (targets, tokens, inputs, paths, scores, seconds):
        console.print(table, "")
    console.print(Text(f"Page: {page}", style="bold"), soft_wrap=True)


def _figures(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("active features, of which expanded", f"{found['n_features']:,}, {found['n_selected']:,}"),
        ("nodes and edges after pruning", f"{found['n_nodes']:,}, {found['n_edges']:,}"),
        ("replacement score", f"{found['replacement_score']:.3f}"),
        (
            "completeness score (with inputs only)",
            f"{found['completeness_score']:.3f} ({found['completeness_score_inputs']:.3f})",
        ),
        ("influence that ends in errors", _percent(found["error_share"])),
        ("influence that ends in unexpanded features", _percent(found["unexpanded_share"])),
        ("input that is constant (biases)", _percent(found["bias_share"])),
        ("  of which MLPs at position 0", _percent(found["origin_share"])),
        ("largest gap of a row's sum, of its L1", f"{found['max_row_gap']:.1e}"),
    ]


def show_features(told: dict[str, Any], layers: list[dict[str, Any]]) -> None:
    """What a pass over a corpus found in each layer, and where the pages are."""
    console = Console()
    title = f"Features of {told['transcoders']} on {told['model']}, {told['positions']:,} positions"
    table = result_table(title, "layer", "features", "dead", "on for a token", "median density", "largest")
    for row in layers:
        share = f"{100 * row['median_density']:.3g} %"
        numbers = (f"{row['features']:,}", f"{row['dead']:,}", f"{row['l0']:.1f}", share, f"{row['largest']:.3g}")
        table.add_row(str(row["layer"]), *numbers)
    console.print(table, "")
    console.print(Text(f"Page: {told['page']}", style="bold"), soft_wrap=True)


def show_intervention(
    model: Any, clean: np.ndarray, edited: np.ndarray, changed: list[tuple[str, float, float]], count: int = 8
) -> None:
    """Next-token probabilities before and after, and the features that moved most."""
    console = Console()
    table = result_table("Next token", "token", "clean", "edited", "change")
    for i in np.argsort(-np.maximum(clean, edited), kind="stable")[:count]:
        table.add_row(
            Text(visible(model.token(int(i)))),
            _percent(clean[i]),
            _percent(edited[i]),
            f"{100 * (edited[i] - clean[i]):+.1f} %",
        )
    moved = result_table("Features that moved most", "feature", "clean", "edited")
    for name, before, after in changed:
        moved.add_row(name, f"{before:.3f}", f"{after:.3f}")
    console.print(table, "", moved)


def show_evaluation(found: dict[str, Any]) -> None:
    """The table of a set of dictionaries, from the JSON object of its evaluation."""

    def number(x: float | None, form: str = ".3f") -> str:
        return "-" if x is None else f"{x:{form}}"

    def ranged(x: dict[str, Any] | None) -> str:
        if x is None or x["value"] is None:
            return "-"
        return f"{x['value']:.3f}" + ("" if x["low"] is None else f" [{x['low']:.3f}, {x['high']:.3f}]")

    title = f"{found['dictionary']} ({found['kind']}, {found['reads']} to {found['writes']}) on {found['model']}"
    layers = result_table(title, "layer", "FVU", "L0", "dead", "bias", "L2 ratio", "shrinkage")
    for row in found["by_layer"]:
        rest = (number(row[k]) for k in ("bias", "l2_ratio", "shrinkage"))
        layers.add_row(str(row["layer"]), number(row["fvu"]), number(row["l0"], ".1f"), _percent(row["dead"]), *rest)
    all_ = found["overall"]
    layers.add_row("mean", number(all_["fvu"]), number(all_["l0"], ".1f"), _percent(all_["dead"]), "", "", "")
    names = ("CE change", "if zero", "if mean", "recovered of zero", "recovered of mean", "KL", "same top-1")
    losses = result_table(f"Replaced layers (original CE {found['ce_original']:.4f} nats)", "layers", *names)
    for row in found["replaced"]:
        delta, kept = row["delta"], row["recovered"]
        ablated = (number(delta[k]["value"]) for k in ("zero", "mean"))
        shares = (ranged(kept[k]) for k in ("zero", "mean"))
        last = (number(row["kl"]["dictionary"]), _percent(row["agree"]["dictionary"]))
        which = "all" if row["all"] else ",".join(map(str, row["layers"]))
        losses.add_row(which, ranged(delta["dictionary"]), *ablated, *shares, *last)
    console = Console()
    console.print(layers, "", losses)
    counts = f"{found['n_positions']:,} positions, {found['n_predictions']:,} predictions; brackets: "
    console.print(Text(counts + f"{100 * found['level']:.0f} % interval over rows"))


def show_facts(title: str, facts: dict[str, Any]) -> None:
    """A table of names and values."""
    table = result_table(title, "", "")
    for name, value in facts.items():
        table.add_row(
            name, Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
        )
    Console().print(table)


def show_known() -> None:
    """Models and sets of dictionaries that are known by name."""
    from tcircuits.models.builtin import BUILTIN
    from tcircuits.models.families import FAMILIES
    from tcircuits.transcoders.presets import EMBEDDED, PRESETS

    console = Console()
    console.print("Models by name: " + ", ".join(BUILTIN) + ". Families: " + ", ".join(FAMILIES) + ".", highlight=False)
    table = result_table("Transcoders by name", "name", "model", "kind", "reads", "writes")
    for preset in (*EMBEDDED.values(), *PRESETS.values()):
        table.add_row(preset.name, preset.model, preset.kind, preset.reads, preset.writes)
    console.print(table)


def show_rows(title: str, rows: list[dict[str, str]]) -> None:
    """A table of rows with the same names; all but the first are aligned to the right."""
    if not rows:
        return
    table = result_table(title, *rows[0])
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
