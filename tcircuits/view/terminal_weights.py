"""What `tcircuits weights` and `attention` print."""

from typing import Any

from rich.console import Console
from rich.text import Text

from tcircuits.view.terminal import result_table, visible


def _words(side: list[Any], count: int = 10) -> str:
    return " ".join(f"{visible(token)} {value:+.2f}" for token, value in side[:count])


def _features(side: list[Any], count: int = 10) -> str:
    return " ".join(f"L{layer}f{index} {value:+.2f}" for layer, index, value in side[:count])


def show_weights(found: dict[str, Any]) -> None:
    """One feature from weights alone."""
    console, chain = Console(), "".join(f" through head {i}/{h}" for i, h in found["through"])
    name = f"L{found['layer']} f{found['feature']}"
    table = result_table(f"{name} of {found['transcoders']} (norm denominators: {found['denominators']})", "", "")
    table.columns[1].justify = "left"
    rows = {
        f"answers to tokens{chain}": _words(found["tokens"]["largest"]),
        f"silenced by tokens{chain}": _words(found["tokens"]["smallest"]),
        "promotes": _words(found["logits"]["promoted"]),
        "suppresses": _words(found["logits"]["suppressed"]),
        f"excited by{chain}": _features(found["earlier"]["excite"]),
        f"inhibited by{chain}": _features(found["earlier"]["inhibit"]),
        "excites": _features(found["later"]["excited"]),
        "inhibits": _features(found["later"]["inhibited"]),
    }
    for what, text in rows.items():
        table.add_row(what, Text(text or "-"))
    heads = result_table("Heads by OV norm", "head", "norm", "answers through it to")
    heads.columns[2].justify = "left"
    for head in found["heads"]:
        heads.add_row(
            f"{head['layer']}/{head['head']}", f"{head['norm']:.3f}", Text(_words(head.get("largest", []), 5) or "-")
        )
    console.print(table, "", heads)


def show_attention(found: dict[str, Any]) -> None:
    """A score of a head by pairs of sources."""
    console, (layer, head) = Console(), found["head"]
    places = [f"{visible(found[k]['token'])} @{found[k]['position']}" for k in ("query", "key")]
    title = f"Head {layer}/{head}: {places[0]} looks at {places[1]} with {100 * found['pattern']:.1f} %"
    pairs = result_table(f"{title}, score {found['score']:+.3f}", "query side", "key side", "adds")
    pairs.columns[1].justify = "left"
    for a, b, value in found["pairs"]:
        pairs.add_row(Text(visible(a)), Text(visible(b)), f"{value:+.3f}")
    pairs.add_row("all other pairs", f"(magnitudes {found['rest_abs']:.3f})", f"{found['rest']:+.3f}")
    sides = result_table("Each source with all of the other side", "query side", "adds", "key side", "adds")
    sides.columns[2].justify = "left"
    for (a, x), (b, y) in zip(found["by_query"], found["by_key"], strict=True):
        sides.add_row(Text(visible(a)), f"{x:+.3f}", Text(visible(b)), f"{y:+.3f}")
    console.print(pairs, "", sides, "", f"largest gap of the sum, of its magnitudes: {found['gap']:.1e}")


def show_edge(found: dict[str, Any]) -> None:
    """An edge of a graph by the heads that carry it."""
    console, (source, target) = Console(), (found["source"], found["target"])
    title = f"{source['name']} ({source['id']}) \u2192 {visible(target['name'])} ({target['id']})"
    table = result_table("", "path", "adds", "pattern")
    table.add_row("through no head", f"{found['direct']:+.3g}", "")
    for head in found["heads"]:
        name = f"through head {head['layer']}/{head['head']} alone"
        table.add_row(name, f"{head['adds']:+.3g}", f"{100 * head['pattern']:.1f} %")
    table.add_row("through each other head alone", f"{found['other_heads']:+.3g}", "")
    table.add_row("through several heads", f"{found['several']:+.3g}", "")
    table.add_row("all", f"{found['total']:+.3g}", "")
    stored = "" if found["in_graph"] is None else f" ({found['in_graph']:+.3g} in the graph)"
    console.print(Text(f"{title}: {found['edge']:+.3g}{stored}", "bold"))
    console.print(table)
    console.print(f"pattern: how much the head attends from {target['position']} to {source['position']}")
    console.print(f"largest gap of the sum, of its magnitudes: {found['gap']:.1e}")
