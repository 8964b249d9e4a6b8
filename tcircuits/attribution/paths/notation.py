"""Components and paths in the paper's notation: `mlp8tc[355]@37: 4.8 <- attn7[7]@35: 3.6 <- embed0@35: 2.1`.

`mlpLtc[F]@T` is feature F of layer L at position T, `attnL[H]@S` head H of layer L with source S, `embed0@T` the
embedding at T; neurons are `mlpLneuron[F]@T`. The number after a component is its contribution along the path to the
root.
"""

from typing import Any

from tcircuits.attribution.paths.filters import EMBED, FEATURE, HEAD


def written(value: float) -> str:
    """A contribution with two digits, more where whole numbers have more."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def component(graph: Any, key: tuple[int, ...]) -> str:
    """A component of a path graph from its kind, layer, position and feature or head."""
    kind, layer, pos, index = (int(x) for x in key)
    if kind == FEATURE:
        without = graph.settings["layers_without_dictionary"]
        neuron = graph.settings["dictionary"]["kind"] == "neurons" or layer in without
        return f"mlp{layer}{'neuron' if neuron else 'tc'}[{index}]@{pos}"
    if kind == HEAD:
        return f"attn{layer}[{index}]@{pos}"
    if kind == EMBED:
        return f"embed0@{pos}"
    return f"{graph.target.kind}[{_printable(graph.target.label)}]@{pos}"


def _printable(text: str) -> str:
    """A token or label on one line, with nothing in it that a terminal acts on."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
