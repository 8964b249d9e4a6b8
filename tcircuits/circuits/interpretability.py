"""How easily a circuit can be read: HAGD's four measures (arXiv 2601.12879; formulas from its authors' code).

    compression          |C| / n                              n: all units
    modularity           weight of the circuit's edges inside modules, of the weight of all its edges
    description length   |C| log2 n + 2 |E_C| log2 n          bits
    purity               mean over features of 1 - min(1, sd / mean) of the values with which they fire

Small compression and description length, large modularity and purity are easy to read. None of them says that a circuit
is right: a random one of the same size has the same compression.
"""

from dataclasses import dataclass

import numpy as np

from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.types import Bool, Float, InputError, Int


@dataclass(frozen=True)
class Readability:
    """A circuit's measures; `modularity` is None without an edge, `purity` where no feature fires.

    `edges` are those of the graph between the circuit's units.
    """

    units: int
    edges: int
    compression: float
    modularity: float | None
    bits: float
    purity: float | None


def readability(
    mask: Bool[np.ndarray, " U"],
    graph: BehaviourGraph,
    modules: Int[np.ndarray, " n"],
    strengths: Float[np.ndarray, "W F"],
) -> Readability:
    """Measure a circuit.

    Args:
        mask: its units.
        graph: between units of the same model.
        modules: the module of each node of the graph (`Hierarchy.labels` at a level).
        strengths: of the circuit's features at W places; 0 where one does not fire.

    Raises:
        InputError: a mask or modules of other sizes than the graph's.
    """
    if mask.shape != (graph.units.n,) or modules.shape != (graph.n,):
        raise InputError(f"mask {mask.shape} and modules {modules.shape} for {graph.units.n} units, {graph.n} nodes")
    inside = (graph.unit >= 0) & mask[graph.unit]
    edge = inside[graph.source] & inside[graph.target]
    weight, together = graph.weight[edge], modules[graph.source[edge]] == modules[graph.target[edge]]
    units, edges, each = int(mask.sum()), int(edge.sum()), float(np.log2(mask.size))
    return Readability(
        units,
        edges,
        units / mask.size,
        float(weight[together].sum() / weight.sum()) if edges else None,
        (units + 2 * edges) * each,
        _purity(strengths),
    )


def _purity(strengths: Float[np.ndarray, "W F"]) -> float | None:
    fires = strengths > 0
    n = fires.sum(0)
    strengths, fires, n = strengths[:, n > 0], fires[:, n > 0], n[n > 0]
    if not len(n):
        return None
    mean = strengths.sum(0, where=fires) / n
    sd = np.sqrt(((strengths - mean) ** 2).sum(0, where=fires) / n)
    return float(np.mean(1 - np.minimum(1, sd / mean)))
