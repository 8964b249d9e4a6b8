"""What a circuit may consist of: heads, whole sublayers, features (or neurons), pooled over positions or one by one.

Units are numbered: kinds in the order of `KINDS`, layers in order within a kind. What is not among a circuit's kinds
stays as the model computes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.types import Array, InputError

KINDS = ("head", "attn", "mlp", "feature")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Units:
    """The units of a model: kinds, and the sizes that number them.

    Attributes:
        kinds: which, in the order of `KINDS`.
        n_layers, n_heads: of the model.
        layers: of the model, those that have a dictionary (empty without one).
        d_feature: features of each.
        positions: how many positions each unit has a number for, the last of them the prompt's last; prompts may be
            shorter. None pools them.
    """

    kinds: tuple[str, ...]
    n_layers: int
    n_heads: int
    layers: tuple[int, ...] = ()
    d_feature: int = 0
    positions: int | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The axes of each kind's mask: layer, head or feature, position (1 where they are pooled)."""
        sizes = {
            "head": (self.n_layers, self.n_heads),
            "attn": (self.n_layers, 1),
            "mlp": (self.n_layers, 1),
            "feature": (len(self.layers), self.d_feature),
        }
        return {kind: (*sizes[kind], self.positions or 1) for kind in self.kinds}

    @property
    def n(self) -> int:
        """How many units."""
        return sum(math.prod(shape) for shape in self.shapes.values())  # exact: a file may say any sizes

    @property
    def starts(self) -> dict[str, int]:
        """The first number of each kind."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes.values())])
        return dict(zip(self.kinds, ends[:-1].tolist(), strict=True))

    def split(self, mask: Any) -> dict[str, Array]:
        """A vector over units [U] by kind, in `shapes`."""
        found = {}
        for kind, shape in self.shapes.items():
            start = self.starts[kind]
            found[kind] = jnp.reshape(mask[start : start + int(np.prod(shape))], shape)
        return found

    def groups(self) -> np.ndarray:
        """Kind, layer and position of each unit as one number [U]: what random circuits are matched in."""
        found, number = [], 0
        for layers, n, positions in self.shapes.values():
            own = number + np.arange(layers * positions).reshape(layers, 1, positions)
            found.append(np.broadcast_to(own, (layers, n, positions)).ravel())
            number += layers * positions
        return np.concatenate(found)

    def where(self, unit: int) -> tuple[str, int, int, int | None]:
        """Kind, layer of the model, head or feature, and position (None: pooled; `positions` - 1: the last) of a unit.

        Raises:
            InputError: no such unit.
        """
        if not 0 <= unit < self.n:
            raise InputError(f"unit {unit} is outside 0..{self.n - 1}")
        kind = [k for k in self.kinds if self.starts[k] <= unit][-1]
        slot, index, position = np.unravel_index(unit - self.starts[kind], self.shapes[kind])
        layer = self.layers[slot] if kind == "feature" else int(slot)
        return kind, int(layer), int(index), None if self.positions is None else int(position)

    def label(self, unit: int) -> str:
        """How a unit is written: `head 1.3`, `mlp 2`, `feature 0/417`, with `@-1` for the last position."""
        kind, layer, index, position = self.where(unit)
        name = {"head": f"head {layer}.{index}", "feature": f"feature {layer}/{index}"}.get(kind, f"{kind} {layer}")
        return name if position is None or self.positions is None else f"{name}@{position - self.positions}"


def units_of(
    cfg: ModelConfig, kinds: Sequence[str], dictionary: TranscoderConfig | None = None, positions: int | None = None
) -> Units:
    """The units of a model; for edges see `edges.edges_of`.

    Raises:
        InputError: unknown kinds, a head beside its whole sublayer, features without a dictionary or beside whole MLPs,
            MLPs of a model that has none, features of a dictionary that stands for no MLP.
    """
    wrong = [f"kind {kind!r} is unknown; there are {', '.join(KINDS)}" for kind in kinds if kind not in KINDS]
    if not kinds:
        wrong.append(f"give at least one kind of unit: {', '.join(KINDS)}")
    for small, whole in (("head", "attn"), ("feature", "mlp")):
        if small in kinds and whole in kinds:
            wrong.append(f"{small} and {whole} overlap: give one of them")
    if "feature" in kinds and dictionary is None:
        wrong.append("features need a dictionary (`transcoders`; 'neurons' is one)")
    if dictionary is not None and "feature" in kinds and dictionary.kind == "sae":
        wrong.append("an SAE stands for a site, not for MLPs: give transcoders or neurons")
    if cfg.attn_only and {"mlp", "feature"} & set(kinds):
        wrong.append("the model has no MLPs")
    if positions is not None and positions < 1:
        wrong.append(f"positions={positions}: give at least 1, or None to pool them")
    if wrong:
        raise InputError("; ".join(wrong))
    own = tuple(kind for kind in KINDS if kind in kinds)
    if dictionary is None or "feature" not in own:
        return Units(own, cfg.n_layers, cfg.n_heads, positions=positions)
    return Units(own, cfg.n_layers, cfg.n_heads, tuple(dictionary.layers), dictionary.d_feature, positions)
