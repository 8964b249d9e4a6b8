"""Which layer's features write a layer's output: does a cross-layer transcoder skip hops?

A cross-layer set may write what layer m computes from features of an earlier layer, although the model takes the way
through the layers between: two hops become one. With y_m the target, m_m its mean and p_{i,m} what features of slot i
write to slot m,

    share[i, m] = E <p_{i,m} - E p_{i,m}, y_m - m_m> / E |y_m - m_m|^2

is the share of the variance that slot i accounts for. Rows add up to what the features explain together (1 where the
reconstruction is exact); of per-layer sets only the diagonal is not zero. `skipped` is the off-diagonal part of a
column over its total. It tells that work was moved, not that it was moved wrongly: an earlier layer may well write
directly what a later one only passes on. That takes an intervention (`experiments.cross_layer_shortcut`).
"""

import jax
import jax.numpy as jnp

from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders, encode, pair
from tcircuits.types import Array, Float, InputError


def shares(d: Transcoders, read: Float[Array, "S N D"], target: Float[Array, "S N D"]) -> Float[Array, "S S"]:
    """Share of the variance of each slot's target that each slot's features account for: [source, output]. Pure.

    Args:
        d: a per-layer or cross-layer set.
        read: what the dictionaries read, by slot and token.
        target: what they should write.

    Raises:
        InputError: neurons, which are no set of arrays.
    """
    if d.cfg.kind == "neurons" or d.w_dec is None:
        raise InputError("shares are of dictionaries; neurons write to their own layer only")
    w_dec, n = d.w_dec, len(d.cfg.layers)
    centred = wide(target) - wide(target).mean(1, keepdims=True)
    variance = jnp.sum(centred**2, (1, 2))
    out = jnp.zeros((n, n), centred.dtype)
    with jax.default_matmul_precision("highest"):
        for i in range(n):
            f = encode(d, i, wide(read[i]))
            f = f - f.mean(0)
            for m in range(i, n if d.cfg.kind == "clt" else i + 1):
                rows = w_dec[pair(d.cfg, i, m) if d.cfg.kind == "clt" else i]
                out = out.at[i, m].set(jnp.einsum("NF,FD,ND->", f, rows, centred[m]) / variance[m])
    return out


def skipped(share: Float[Array, "S S"]) -> Float[Array, " S"]:
    """Of what each slot's output owes to features, the part written by earlier slots; 0 of the first."""
    total = share.sum(0)
    return 1.0 - jnp.diagonal(share) / jnp.where(total == 0, 1.0, total)
