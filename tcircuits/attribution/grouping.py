"""Which targets are swept together.

A sweep runs from the highest layer among its targets down to layer 0, over the positions up to their last source. At
every layer and position it costs so much a lane, and looks up decoder rows, or computes patterns, once for all lanes
(`Work`). So a sweep pays for targets of its own layer and place alone where these are many, and for targets of several
layers, which enter where they stand (`Targets.enter`), where they are few; a target is swept in vain above its layer
and behind its position. `arrange` takes the cheapest of some ways by that account.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.attribution.memory import carried, lean, outputs, streams
from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig

LANES, CPU_LANES, CPU_POSITIONS = 256, (56, 160), 3
FEEDING = 4096  # rows of a product with a layer's weights, from which more make it no faster
PER_WORD = {"cpu": 600}  # multiply-adds that take as long as one number of a decoder row or of a computed pattern
ELSEWHERE, LEAST = 60, 2.0  # the same of other devices; and what a chunk costs at least beside its lanes, in lanes
WIDTHS = 4
WORTH = 0.9  # of the cost by layers, below which targets of several layers are swept together


@dataclass(frozen=True)
class Work:
    """What a sweep does at one layer and position.

    Attributes:
        weights: multiply-adds with the attention's weights, for a lane.
        mixed: the same for each position that attention mixes.
        read: of decoder rows, for a lane; each number of them is looked up once for all.
        numbers: that are carried for a lane.
        made: numbers of the pattern that are computed once for all lanes, for each position that attention mixes.
    """

    weights: int
    mixed: int
    read: int
    numbers: int
    made: int

    def lane(self, n: np.ndarray | int) -> Any:
        """Multiply-adds of a lane over n positions."""
        return n * (self.weights + n / 2 * self.mixed + self.read)

    def fixed(self, n: np.ndarray | int, platform: str) -> Any:
        """The work that is done once for all lanes, in multiply-adds."""
        numbers = n * (self.read + n / 2 * self.made)
        return np.maximum(numbers * PER_WORD.get(platform, ELSEWHERE), LEAST * self.lane(n))


def work_of(cfg: ModelConfig, d: TranscoderConfig, T: int, slots: int, platform: str) -> Work:
    """Sizes of a sweep over a prompt of T tokens; cross-layer rows are those of the mean layer."""
    D, H, G, K = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head
    rows = slots * (outputs(d) / len(d.layers) if d.layers else 0)
    made = H if lean(cfg, d, T, slots, platform) else 0
    return Work(D * K * (H + G), H * K, int(rows * D), carried(cfg, d, slots), made)


@dataclass(frozen=True)
class Groups:
    """Chunks of targets.

    Attributes:
        members: [Q, B] number of the target in each lane; -1 is padding.
        layer: [Q] the highest layer of each.
        n_pos: [Q] positions to sweep, one of few.
        cost: multiply-adds, and what takes as long.
    """

    members: np.ndarray
    layer: np.ndarray
    n_pos: np.ndarray
    cost: float


def width(reach: np.ndarray | int, T: int) -> np.ndarray:
    """Positions to carry for targets before `reach`: one of few widths, so that few programs are compiled."""
    step = max(2, -(-T // WIDTHS))
    return np.minimum(T, -(-np.asarray(reach) // step) * step)


def layer_lanes(platform: str, per_layer: np.ndarray, T: int, numbers: int) -> int:
    """How many targets of one layer are swept together, with so many in each layer.

    Products of many targets are faster, but targets that stand far apart are all swept over the positions of the last.
    A CPU is well fed by few, so there they are those of about three positions of a layer. A layer's chunks are equal.
    What is carried at T positions bounds them where prompts are long.
    """
    lanes, (low, high), (L, most) = LANES, CPU_LANES, (len(per_layer), int(per_layer.max(initial=0)))
    if platform == "cpu":
        lanes = min(max(CPU_POSITIONS * int(per_layer.sum()) // max(L * T, 1), low), high)
    step = step_of(platform, T)
    lanes = min(lanes, streams(T, numbers))
    chunks = max(1, -(-most // lanes))
    return max(step, -(-most // (chunks * step)) * step)


def step_of(platform: str, T: int) -> int:
    """Lanes come in multiples of so many; where prompts are long a few feed the machine."""
    step = 8 if platform == "cpu" else 32
    return step if T * step < FEEDING else -(-FEEDING // T)


def lanes_to_try(platform: str, T: int, numbers: int) -> np.ndarray:
    """Numbers of lanes that feed the machine and fit: few, since each has programs of its own."""
    step, most = step_of(platform, T), CPU_LANES[1] if platform == "cpu" and T * 8 < FEEDING else LANES
    most = max(step, min(most, streams(T, numbers)))
    least = min(most, -(-FEEDING // (4 * T)))
    halves = most >> np.arange(most.bit_length())
    return np.unique(np.maximum(-(-halves // step) * step, -(-least // step) * step))


def arrange(
    layer: np.ndarray,
    reach: np.ndarray,
    T: int,
    work: Work,
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
        work: what a lane costs.
        platform: what sweeps them.
        lanes: B, where the caller says.
        multiple: B is one of these.
        by_layer: each chunk is of one layer.
    """
    order = np.lexsort((reach, -layer))
    layer, reach = layer[order], reach[order]

    def rounded(n: int) -> int:
        return -(-n // multiple) * multiple

    def cut(at: np.ndarray, key: np.ndarray, size: int) -> Groups:
        return _cut(order[at], layer[at], reach[at], key[at], size, T, work, platform)

    own = lanes or layer_lanes(platform, np.bincount(layer, minlength=1), T, work.numbers)
    every = np.arange(len(order))
    separate = cut(every, layer, rounded(own))
    if by_layer or not len(order):
        return separate
    # Targets of one layer together, of several, and of several that are swept over as many positions.
    wide = width(reach + 1, T)
    ways = (every, layer), (every, np.zeros_like(layer)), (np.lexsort((reach, -layer, -wide)), wide)
    tried = {lanes} if lanes else set(lanes_to_try(platform, T, work.numbers).tolist())
    best = min((cut(*way, rounded(n)) for n in sorted(tried) for way in ways), key=lambda g: g.cost)
    return best if best.cost < WORTH * separate.cost else separate


def _cut(
    order: np.ndarray,
    layer: np.ndarray,
    reach: np.ndarray,
    key: np.ndarray,
    lanes: int,
    T: int,
    work: Work,
    platform: str,
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
    cost = (top * (lanes * work.lane(n_pos) + work.fixed(n_pos, platform))).sum()
    return Groups(members, top, n_pos, float(cost))
