"""The page of a hierarchy: its sets level by level, to go into, and where the circuit's units are among them.

The page is one file that opens from disk and can reach no network (`view.page`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.tree import Hierarchy, check_hierarchy
from tcircuits.types import InputError
from tcircuits.view.page import filled

SCRIPTS = ("text.js", "tree.js")


def tree_page(graph: BehaviourGraph, tree: Hierarchy, circuit: Circuit) -> str:
    """The page of a tree over a graph's units.

    Raises:
        InputError: a tree of other things than the graph's nodes, or a circuit of other units.
    """
    return filled("tree.html", ("style.css", "tree.css"), SCRIPTS, tree_data(graph, tree, circuit))


def tree_data(graph: BehaviourGraph, tree: Hierarchy, circuit: Circuit) -> Mapping[str, Any]:
    """What the page is told: sets as stretches of the units, which are listed in the tree's order.

    Raises:
        InputError: see `tree_page`.
    """
    check_hierarchy(tree)
    if tree.n != graph.n or (graph.unit < 0).any() or graph.unit.max() >= circuit.units.n:
        raise InputError(f"a tree of {tree.n} units, a graph of {graph.n} and a circuit do not belong together")
    unit = graph.unit[tree.order]
    value = np.abs(graph.importance[tree.order])
    behaviour = circuit.about.get("behaviour", {})
    return {
        "model": circuit.model,
        "task": behaviour.get("name", "") if isinstance(behaviour, Mapping) else "",
        "size": circuit.size,
        "of": circuit.units.n,
        "elsewhere": int(circuit.mask.sum() - circuit.mask[graph.unit].sum()),
        "labels": [circuit.units.label(int(u)) for u in unit],
        "value": [float(f"{v:.4g}") for v in value],
        "inside": circuit.mask[unit].astype(int).tolist(),
        "start": tree.start.tolist(),
        "stop": tree.stop.tolist(),
        "parent": tree.parent.tolist(),
    }
