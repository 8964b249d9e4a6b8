"""Maps of a descending sweep with targets first, for the few cotangents [B, T, D] of paths, heads and sums.

Rows of graphs, which have many, go through `descent`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, rows_in_slots
from tcircuits.attribution.maps import Maps
from tcircuits.models.forward import Hold
from tcircuits.numerics import wide
from tcircuits.types import Array, Float


@dataclass(frozen=True)
class Sweep(Maps):
    """The maps of one frozen prompt that a descending sweep applies; lives for one trace."""

    frozen: Frozen

    @property
    def hold(self) -> Hold:
        """The prompt's patterns and denominators."""
        return self.frozen.hold

    def read(self, i: Any, m: Any, g: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """<decoder row of layer i's features to layer m, g>, not yet times the activation."""
        if self.d.cfg.kind == "neurons":
            assert self.params.blocks.mlp is not None
            return jnp.einsum("BTD,CD->BTC", g, wide(self.params.blocks.mlp.w_out[m]))
        return jnp.einsum("BTD,TCD->BTC", g, rows_in_slots(self.d, self.frozen, i, m))

    def below(self, m: Any, g: Array, written: Array) -> Float[Array, "B T D"]:
        """From the stream after layer m to the stream before it."""
        middle = g + self.skip(m, written)
        return middle + self.attention(m, g if self.cfg.parallel else middle)


def source_reads(sweep: Sweep, m: Any, written: Array, acc: Any) -> tuple[Float[Array, "B T C"], Any]:
    """<decoders, g> of layer m's features: complete once layer m is read, as no feature writes below its own layer."""
    if sweep.d.cfg.kind != "clt":
        return sweep.read(m, m, written), acc
    acc = jax.lax.fori_loop(0, m + 1, lambda i, a: a.at[i].add(sweep.read(i, m, written)), acc)
    return acc[m], acc


def accumulator(sweep: Sweep, B: int) -> Any:
    """Cross-layer features collect from several layers: [L, B, T, C]."""
    L, T, C = sweep.frozen.index.shape
    return jnp.zeros((L, B, T, C), sweep.frozen.value.dtype) if sweep.d.cfg.kind == "clt" else ()
