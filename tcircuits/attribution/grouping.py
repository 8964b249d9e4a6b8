"""Which targets are swept together.

A sweep runs from the highest layer among its targets down to layer 0, over the positions up to their last source. It
costs, at every layer and position, as much as its lanes and some `FIXED` more: decoder rows are looked up, patterns
computed or read, weights read. So a sweep pays for targets of its own layer and place alone where these are many, and
for targets of several layers, which enter where they stand (`Targets.enter`), where they are few; a target is swept in
vain above its layer and behind its position. `arrange` takes the cheapest of some ways by that account.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tcircuits.attribution.memory import streams

LANES, CPU_LANES, CPU_POSITIONS = 256, (56, 160), 3
FEEDING = 4096  # rows of a product with a layer's weights, from which more make it no faster
FIXED = 10  # lanes that a chunk's own work costs
WIDTHS = 4
WORTH = 0.9  # of the cost by layers, below which targets of several layers are swept together


@dataclass(frozen=True)
class Groups:
    """Chunks of targets.

    Attributes:
        members: [Q, B] number of the target in each lane; -1 is padding.
        layer: [Q] the highest layer of each.
        n_pos: [Q] positions to sweep, one of few.
        cost: see above; in lanes times layers times positions.
    """

    members: np.ndarray
    layer: np.ndarray
    n_pos: np.ndarray
    cost: float


def width(reach: np.ndarray | int, T: int) -> np.ndarray:
    """Positions to carry for targets before `reach`: one of few widths, so that few programs are compiled."""
    step = max(2, -(-T // WIDTHS))
    return np.minimum(T, -(-np.asarray(reach) // step) * step)


def layer_lanes(platform: str, per_layer: np.ndarray, T: int, D: int) -> int:
    """How many targets of one layer are swept together, with so many in each layer.

    Products of many targets are faster, but targets that stand far apart are all swept over the positions of the last.
    A CPU is well fed by few, so there they are those of about three positions of a layer. A layer's chunks are equal.
    Cotangents of width D at T positions bound them where prompts are long.
    """
    lanes, (low, high), (L, most) = LANES, CPU_LANES, (len(per_layer), int(per_layer.max(initial=0)))
    if platform == "cpu":
        lanes = min(max(CPU_POSITIONS * int(per_layer.sum()) // max(L * T, 1), low), high)
    step = step_of(platform, T)
    lanes = min(lanes, streams(T, D))
    chunks = max(1, -(-most // lanes))
    return max(step, -(-most // (chunks * step)) * step)


def step_of(platform: str, T: int) -> int:
    """Lanes come in multiples of so many; where prompts are long a few feed the machine."""
    step = 8 if platform == "cpu" else 32
    return step if T * step < FEEDING else -(-FEEDING // T)


def lanes_to_try(platform: str, T: int, D: int) -> np.ndarray:
    """Numbers of lanes that feed the machine and fit: few, since each has programs of its own."""
    step, most = step_of(platform, T), CPU_LANES[1] if platform == "cpu" and T * 8 < FEEDING else LANES
    most = max(step, min(most, streams(T, D)))
    least = min(most, -(-FEEDING // (4 * T)))
    halves = most >> np.arange(most.bit_length())
    return np.unique(np.maximum(-(-halves // step) * step, -(-least // step) * step))


def arrange(
    layer: np.ndarray,
    reach: np.ndarray,
    T: int,
    D: int,
    platform: str,
    *,
    lanes: int | None = None,
    multiple: int = 1,
    by_layer: bool = False,
) -> Groups:
    """Chunks of the targets of one prompt.

    Args:
        layer: [R] of the targets.
        reach: [R] position of each one's last source.
        T: tokens.
        D: width of the model.
        platform: what sweeps them.
        lanes: B, where the caller says.
        multiple: B is one of these.
        by_layer: each chunk is of one layer.
    """
    order = np.lexsort((reach, -layer))
    layer, reach = layer[order], reach[order]

    def rounded(n: int) -> int:
        return -(-n // multiple) * multiple

    own = lanes or layer_lanes(platform, np.bincount(layer, minlength=1), T, D)
    separate = _cut(order, layer, reach, layer, rounded(own), T, D)
    if by_layer or not len(order):
        return separate
    tried = {lanes} if lanes else set(lanes_to_try(platform, T, D).tolist())
    best = min(_ways(order, layer, reach, {rounded(n) for n in tried}, T, D), key=lambda g: g.cost)
    return best if best.cost < WORTH * separate.cost else separate


def _ways(order: np.ndarray, layer: np.ndarray, reach: np.ndarray, sizes: set[int], T: int, D: int) -> Iterator[Groups]:
    """Targets of one layer together, of several, and of several that are swept over as many positions."""
    wide = width(reach + 1, T)
    by_width = np.lexsort((reach, -layer, -wide))
    for size in sorted(sizes):
        yield _cut(order, layer, reach, layer, size, T, D)
        yield _cut(order, layer, reach, np.zeros_like(layer), size, T, D)
        yield _cut(order[by_width], layer[by_width], reach[by_width], wide[by_width], size, T, D)


def _cut(
    order: np.ndarray, layer: np.ndarray, reach: np.ndarray, key: np.ndarray, lanes: int, T: int, D: int
) -> Groups:
    """Sorted targets in chunks of so many lanes, those with the same key."""
    if not len(order):
        empty = np.zeros(0, np.int64)
        return Groups(np.zeros((0, lanes), np.int64), empty, empty, 0.0)
    first = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    counts = np.diff(first, append=len(key))
    at = np.arange(len(key)) - np.repeat(first, counts)  # within the key
    begins = np.flatnonzero(at % lanes == 0)
    chunk = np.cumsum(at % lanes == 0) - 1
    members = np.full((len(begins), lanes), -1)
    members[chunk, at % lanes] = order
    top, n_pos = layer[begins], width(np.maximum.reduceat(reach, begins) + 1, T)
    # Attention between n positions costs n / 2 D of what attention's weights do.
    cost = (top * n_pos * (1 + n_pos / (2 * D))).sum() * (lanes + FIXED)
    return Groups(members, top, n_pos, float(cost))
