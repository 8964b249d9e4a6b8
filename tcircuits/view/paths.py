"""What `tcircuits paths` prints: the merged nodes with what each is made of, and the paths level by level."""

import numpy as np
from rich.console import Console
from rich.text import Text

from tcircuits.attribution.paths.filters import EMBED
from tcircuits.attribution.paths.graph import PathGraph
from tcircuits.view.terminal import result_table, visible


def show_paths(graph: PathGraph, nodes: int = 12, paths: int = 8) -> None:
    """The root and the largest nodes as a table, and the strongest paths of each length."""
    console, m = Console(), graph.merged
    order = [0, *(int(i) + 1 for i in np.argsort(-np.abs(m.value[1:]), kind="stable")[:nodes])]
    table = result_table("Nodes: value = kept + error + bias + pruned", *("node", "token", "value"))
    for name in ("kept", "error", "bias", "pruned"):
        table.add_column(name, justify="right")
    for i in order:
        token = Text(visible(graph.token_text[m.key[i, 2]]))
        leaf = i > 0 and m.key[i, 0] == EMBED
        parts = ["" if leaf else f"{x[i]:.3f}" for x in (m.kept, m.error, m.bias, m.pruned)]
        table.add_row(Text(graph.node_name(i)), token, f"{m.value[i]:.3f}", *parts)
    console.print(table)
    for level, found in enumerate(graph.levels, 1):
        title = f"{len(found)} paths of {level} node{'s' if level > 1 else ''} below the root"
        console.print(Text(f"\n{title}", style="bold"))
        for i in found[:paths]:
            console.print(Text(graph.path_text(i)), soft_wrap=True)
        if len(found) > paths:
            console.print(Text(f"... and {len(found) - paths} more"))


def summary(graph: PathGraph, paths: int = 10) -> dict[str, object]:
    """The same as plain values, for `--json`."""
    m = graph.merged

    def shown(i: int) -> dict[str, object]:
        return {"path": graph.path_text(i), "value": float(graph.value[i]), "score": float(graph.score[i])}

    root = {name: float(getattr(m, name)[0]) for name in ("value", "kept", "error", "bias", "pruned", "size")}
    return {
        "model": graph.model,
        "transcoders": graph.transcoders,
        "prompt": graph.prompt,
        "tokens": list(graph.token_text),
        "target": graph.node_name(0),
        "root": root,
        "n_paths": graph.n_paths,
        "n_nodes": len(m.key),
        "n_edges": len(m.weight),
        "max_gap": float(m.gap.max()),
        "levels": [[shown(i) for i in level[:paths]] for level in graph.levels],
        "settings": graph.settings,
    }
