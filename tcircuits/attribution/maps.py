"""The transposed maps of one layer between the sites of a dictionary and the stream, with norm denominators held.

`hold` has denominators [L, T] of T places: the positions of a frozen prompt (`sweep.Sweep`, `descent.Descent`), or the
one place that input-invariant weights stand for (`weights.Still`). Attributions of a prompt and weights without one go
through these same maps, so they differ in activations, patterns and denominators and in nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from tcircuits.attribution.frozen import coverage
from tcircuits.attribution.linear import block_down, layer, norm_down
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold
from tcircuits.models.params import Params
from tcircuits.numerics import centre, wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float


@dataclass(frozen=True)
class Maps(ABC):
    """Maps that need no features; `Sweep`, `Descent` and `Still` say where denominators come from."""

    cfg: ModelConfig
    params: Params
    d: Transcoders

    @property
    @abstractmethod
    def hold(self) -> Hold:
        """Patterns (where there is a prompt) and denominators."""

    def at(self, m: Any) -> tuple[Any, Any]:
        """Parameters and held values of layer m."""
        h = self.hold
        return layer((self.params.blocks, Hold(h.pattern, h.norm1, h.norm1_post, h.norm2, h.norm2_post, None)), m)

    def along(self, scale: Float[Array, " T"]) -> Array:
        """Denominators of the places as they stand beside cotangents [B, T, D], without the last axis."""
        return scale

    def attention(self, m: Any, g: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Transpose of layer m's attention."""
        block, h = self.at(m)
        return block_down(self.cfg, block, h.pattern, h.norm1, h.norm1_post, g)

    def written(self, m: Any, g: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Cotangent at the site that the dictionary writes, from that at the MLP's output."""
        if self.d.cfg.writes == "mlp_out" or not self.cfg.post_norm:
            return g
        block, h = self.at(m)
        return norm_down(self.cfg, block.norm2_post, self.along(h.norm2_post), g)

    def to_stream(self, m: Any, g: Float[Array, "B T D"], reads: str) -> Float[Array, "B T D"]:
        """From what a dictionary reads at layer m to the stream before the MLP's norm."""
        block, h = self.at(m)
        if reads == "resid_mid" or block.norm2 is None:
            return g
        if reads == "normalized":
            return centre(self.cfg.norm, g) / self.along(h.norm2)[..., None]
        return norm_down(self.cfg, block.norm2, self.along(h.norm2), g)

    def skip(self, m: Any, g: Float[Array, "B T D"]) -> Array | float:
        """Transpose of layer m's affine skip, or 0."""
        if self.d.w_skip is None:
            return 0.0
        slots, covered = coverage(self.d.cfg)
        w = jnp.where(jnp.asarray(covered)[m], wide(self.d.w_skip[jnp.asarray(slots)[m]]), 0.0)
        return self.to_stream(m, jnp.einsum("...E,DE->...D", g, w), self.d.cfg.reads)
