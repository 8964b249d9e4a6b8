"""How the rows of a graph fall into chunks, where features are spread evenly over layers and positions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tcircuits.attribution.grouping import arrange, work_of
from tcircuits.numerics import bucket
from tcircuits.planning.request import Request


@dataclass(frozen=True)
class Sweeps:
    """Chunks of targets.

    Attributes:
        lanes: targets of one chunk.
        per_layer: columns of one layer, rounded as `attribute` rounds them.
        chunks: chunks that are laid out, padding included.
        by_width: for each number of positions that a sweep covers, how many chunks start at each layer.
    """

    lanes: int
    per_layer: int
    chunks: int
    by_width: Mapping[int, Mapping[int, int]]

    @property
    def runs(self) -> int:
        """Sweeps in all."""
        return sum(n for layers in self.by_width.values() for n in layers.values())


def sweeps(r: Request, platform: str, slots: int, *, multiple: int = 1, by_layer: bool = False) -> Sweeps:
    """The chunks of a request with so many slots, as `attribute` makes them on a platform (see `arrange`)."""
    T, layers = r.tokens, np.asarray(r.dictionary.layers)
    layer = np.sort(np.resize(layers, r.features))
    counts = np.bincount(layer, minlength=r.model.n_layers)
    place = np.arange(len(layer)) - np.repeat(np.cumsum(counts) - counts, counts)
    reach = (place + 1) * T // counts[layer] - 1
    swept = layer > 0  # rows of layer 0 need no sweep
    found = arrange(
        np.concatenate([layer[swept], np.full(r.targets, r.model.n_layers)]),
        np.concatenate([np.maximum(reach[swept], 0), np.full(r.targets, T - 1)]),
        T,
        work_of(r.model, r.dictionary, T, slots, platform),
        platform,
        lanes=r.chunk,
        multiple=multiple,
        by_layer=by_layer,
    )
    by_width: dict[int, Counter[int]] = {}
    for width, top in zip(found.n_pos.tolist(), found.layer.tolist(), strict=True):
        by_width.setdefault(width, Counter())[top] += 1
    per_layer = bucket(int(counts.max(initial=1)), 64)
    return Sweeps(found.members.shape[1], per_layer, bucket(len(found.layer), 8), by_width)
