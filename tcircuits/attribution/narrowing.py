"""Dictionaries on disk, for one attribution: the few features that it needs, as an ordinary small dictionary.

The graph is that of the whole set. Which features are active is decided twice: blockwise, on the encoders from disk,
and then by `freeze` on the rows that were kept. Both compute the same pre-activations in the same precision, but not in
the same order of summation, as is so on any two kinds of device; a feature within rounding of its threshold may be
judged differently, and then it is part of the error. All others are the same, and every row balances in any case.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from tcircuits.attribution.frozen import read_by
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.timing import Timings
from tcircuits.compiling import compiled
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders, Narrow, decoders, narrow
from tcircuits.transcoders.streaming import Progress
from tcircuits.types import Array


@partial(compiled, static_argnames=("cfg", "dictionaries"))
def _inputs(cfg: Any, params: Any, dictionaries: Any, tokens: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return read_by(cfg, params, dictionaries, tokens)


def narrowed(
    model: Any,
    transcoders: Transcoders | LazyTranscoders,
    prompts: list[np.ndarray],
    origins: list[bool],
    progress: Progress | None = None,
    times: Timings | None = None,
) -> tuple[Transcoders, Narrow | None]:
    """The features that are active on any of the prompts; a set in memory as it is.

    `origins` says of which prompts the MLPs at position 0 are a constant: features that are active there only are not
    read. `times` gets a stage `encode`, which is reading the encoders and finding those features.
    """
    if not isinstance(transcoders, LazyTranscoders):
        return transcoders, None
    with (Timings() if times is None else times).stage("encode"):
        # On this host: every process reads all blocks, and comes to the same features.
        reads = [host(_inputs(model.cfg, model.params, transcoders.cfg, ids)) for ids in prompts]
        x = [r[:, int(origin) :] for r, origin in zip(reads, origins, strict=True)]
        found = narrow(transcoders, np.concatenate(x, axis=1), progress)
    return found.transcoders, found


def whole_numbers(graph: Graph, some: Narrow | None) -> Graph:
    """A graph with the numbers that its features have in the whole set."""
    if some is None:
        return graph
    layer, pos, number = graph.features.T
    return replace(graph, features=np.stack([layer, pos, some.whole(layer, number)], 1).astype(np.int32))


def rows_of(transcoders: Transcoders | LazyTranscoders, features: np.ndarray) -> tuple[Transcoders, np.ndarray]:
    """A dictionary with the decoders of features [n, 3] (layer, position, feature), and their numbers in it."""
    if not isinstance(transcoders, LazyTranscoders):
        return transcoders, features
    layer, pos, number = features.T
    some = decoders(transcoders, {i: number[layer == i] for i in transcoders.cfg.layers})
    return some.transcoders, np.stack([layer, pos, some.here(layer, number)], 1)
