"""How the rows of a graph fall into chunks, where features are spread evenly over layers and positions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tcircuits.attribution.expansion import width
from tcircuits.numerics import bucket
from tcircuits.planning.request import Request


@dataclass(frozen=True)
class Sweeps:
    """Chunks of targets.

    Attributes:
        per_layer: columns of one layer, rounded as `attribute` rounds them.
        chunks: chunks of features that are laid out, padding included.
        by_width: for each number of positions that a sweep covers, how many chunks start at each layer.
    """

    per_layer: int
    chunks: int
    by_width: Mapping[int, Mapping[int, int]]

    @property
    def runs(self) -> int:
        """Sweeps in all."""
        return sum(n for layers in self.by_width.values() for n in layers.values())


def sweeps(r: Request, chunk: int) -> Sweeps:
    """The chunks of a request; those of the outputs, at the last position, come first."""
    T, layers = r.tokens, r.dictionary.layers
    counts = [r.features // len(layers) + (i < r.features % len(layers)) for i in range(len(layers))]
    by_width: dict[int, Counter[int]] = {T: Counter({r.model.n_layers: 1})}
    total = 0
    for layer, count in zip(layers, counts, strict=True):
        n = -(-count // chunk)
        total += n
        for i in range(n if layer else 0):  # rows of layer 0 need no sweep
            # Features stand in order of their positions: the last of a chunk says how far it reaches.
            reach = -(-T * min(count, (i + 1) * chunk) // count)
            by_width.setdefault(width(reach, T), Counter())[layer] += 1
    return Sweeps(bucket(max(*counts, 1), 64), bucket(max(total, 1), 8), by_width)
