"""What a feature does around its examples: its activations at the tokens before and after, from one more forward pass.

Only rows that hold an example run again. Keeping windows during the pass instead would carry 2 w + 1 values for every
candidate through all its steps, and nearly all candidates are dropped later.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import corpus
from tcircuits.transcoders.evaluation.replacement import features
from tcircuits.transcoders.statistics.result import Statistics
from tcircuits.transcoders.training.harvest import buffers
from tcircuits.types import Array, Float, InputError, Int

FEW = 8192  # examples that are read at once


def windows(
    model: Model,
    d: Transcoders,
    rows: Any,
    found: Statistics,
    slot: Int[np.ndarray, " N"],
    feature: Int[np.ndarray, " N"],
    token: Int[np.ndarray, " N"],
    *,
    width: int = 10,
    batch: int = 8,
    precision: str = "highest",
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N W"]:
    """Activations of features at tokens and at the `width` tokens on either side; 0 beyond the row and at its first.

    Args:
        model: as in the pass.
        d: as in the pass.
        rows: as in the pass.
        found: what the pass found.
        slot: of each example.
        feature: of each example.
        token: number of the token of each example.
        width: tokens on either side.
        batch: rows at once.
        precision: of matrix products.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: other rows than those of the pass.
    """
    text = corpus(model.cfg, rows, found.n_rows * found.context)
    if text.context != found.context or text.digest() != found.corpus:
        raise InputError("these are not the rows that the statistics were made from: give the same corpus and context")
    row, pos = np.divmod(np.asarray(token, np.int64), found.context)
    needed, row = np.unique(row, return_inverse=True)
    d, out = replace(d, source=""), np.zeros((len(token), 2 * width + 1), np.float32)
    order = np.lexsort((slot, row // batch))
    for first in range(0, len(needed), batch):
        some = needed[first : first + batch]
        tokens = np.concatenate([text.read(int(r), 1) for r in some] + [text.read(0, 1)] * (batch - len(some)))
        x = _inputs(model.cfg, model.params, d.cfg, np.asarray(tokens, np.int32), precision)
        begin, end = np.searchsorted(row[order] // batch, (first // batch, first // batch + 1))
        here = order[begin:end]
        for s in np.unique(slot[here]):
            for part in _parts(here[slot[here] == s]):
                n = len(part)
                at = np.zeros((3, 64 if n <= 64 else FEW), np.int32)
                at[:, :n] = row[part] - first, pos[part], feature[part]
                args = (model.cfg, model.params, d, int(s), d.cfg.layers[int(s)], x[int(s)], at)
                out[part] = host(_around(*args, width=width, precision=precision))[:n]
        if progress is not None:
            progress(min(first + batch, len(needed)), len(needed))
    return out


def _parts(numbers: np.ndarray) -> list[np.ndarray]:
    return [numbers[i : i + FEW] for i in range(0, len(numbers), FEW)]


@partial(jax.jit, static_argnames=("cfg", "c", "precision"))
def _inputs(cfg: ModelConfig, params: Params, c: Any, tokens: Int[Array, "R T"], precision: str) -> Array:
    """What dictionaries read, [S, R, T - 1, D]."""
    with jax.default_matmul_precision(precision):
        x = buffers(cfg, params, (c.reads,), c.layers, tokens[None])[c.reads]
    return x.reshape(len(x), tokens.shape[0], tokens.shape[1] - 1, -1)


@partial(jax.jit, static_argnames=("cfg", "width", "precision"))
def _around(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    slot: Any,
    layer: Any,
    x: Float[Array, "R T D"],
    at: Int[Array, "3 N"],
    *,
    width: int,
    precision: str,
) -> Float[Array, "N W"]:
    """Values around examples, each a row, a position in it (1 is the first of `x`) and a feature."""
    with jax.default_matmul_precision(precision):
        f = features(cfg, params, d, layer, slot, x)
    row, pos, feature = at
    near = pos[:, None] - 1 + jnp.arange(-width, width + 1)
    inside = (near >= 0) & (near < f.shape[1])
    values = f[row[:, None], jnp.clip(near, 0, f.shape[1] - 1), feature[:, None]]
    return jnp.where(inside, values, 0).astype(jnp.float32)
