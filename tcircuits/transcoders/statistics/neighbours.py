"""Which features of a layer point the same way: cosines of decoder rows and of encoder rows, in blocks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.types import Array, Float, Int

BLOCK = 1024


def nearest(
    rows: Float[Array, "F D"], k: int = 5, block: int = BLOCK
) -> tuple[Int[np.ndarray, "F K"], Float[np.ndarray, "F K"]]:
    """The `k` other rows of largest cosine for every row, and the cosines; rows of zeros are near to nothing (0).

    >>> index, cosine = nearest(jnp.array([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0]]), 1)
    >>> index.ravel().tolist()
    [1, 0, 1]
    """
    k = min(k, len(rows) - 1)
    if k < 1:
        return np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32)
    unit = _unit(rows)
    parts = [_nearest(unit, i, k, min(block, len(rows))) for i in range(0, len(rows), block)]
    index, cosine = (np.concatenate([host(p[i]) for p in parts])[: len(rows)] for i in (0, 1))
    return index, cosine


@jax.jit
def _unit(rows: Array) -> Array:
    rows = wide(rows)
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1)


@partial(jax.jit, static_argnames=("k", "block"))
def _nearest(unit: Array, first: Any, k: int, block: int) -> tuple[Array, Array]:
    number = first + jnp.arange(block)
    own = unit[jnp.minimum(number, len(unit) - 1)]
    cosine = jnp.einsum("bD,FD->bF", own, unit, precision="highest")
    cosine = jnp.where(number[:, None] == jnp.arange(len(unit)), -jnp.inf, cosine)
    value, index = jax.lax.top_k(cosine, k)
    return index, value


def encoders(params: Params, d: Transcoders, slot: int) -> Float[Array, "F D"]:
    """Encoder rows of a slot; of neurons what their linear branch reads."""
    if d.cfg.kind == "neurons":
        assert params.blocks.mlp is not None
        return params.blocks.mlp.w_in[d.cfg.layers[slot]].T
    assert d.w_enc is not None
    return d.w_enc[slot]


def decoders(params: Params, d: Transcoders, slot: int) -> Float[Array, "F D"]:
    """Decoder rows of a slot; those of a cross-layer dictionary for all the layers that it writes, side by side."""
    if d.cfg.kind == "neurons":
        assert params.blocks.mlp is not None
        return params.blocks.mlp.w_out[d.cfg.layers[slot]]
    assert d.w_dec is not None
    if d.cfg.kind != "clt":
        return d.w_dec[slot]
    return jnp.concatenate([d.w_dec[pair(d.cfg, slot, m)] for m in range(slot, len(d.cfg.layers))], -1)
