"""Edges as units: which writer each reader hears, heads' queries, keys and values apart.

Writers are the embedding, every head (through its output matrix) and every MLP; readers are every head's query, every
key/value head's key and value, every MLP, and the logits. `edge_forward` runs a model under a mask of edges.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.types import Array, Bool, InputError, Int

ROLES = ("q", "k", "v")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Edges:
    """The edges of a model, numbered reader by reader: layers in order, within one queries, keys, values, the MLP.

    Attributes:
        n_layers, n_heads, n_kv_heads: of the model.
        parallel: an MLP does not hear the heads of its own layer.
        attn_only: there are no MLPs.
        kinds, positions: what `Units` has too; edges are of one kind, and pooled.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    attn_only: bool = False
    kinds: tuple[str, ...] = ("edge",)
    positions: None = None

    @property
    def per_layer(self) -> int:
        """Writers of a layer."""
        return self.n_heads + (not self.attn_only)

    @property
    def n_writers(self) -> int:
        """The embedding, heads and MLPs."""
        return 1 + self.n_layers * self.per_layer

    @property
    def readers(self) -> int:
        """Readers of a layer."""
        return self.n_heads + 2 * self.n_kv_heads + (not self.attn_only)

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "R W"]:
        """Which writer a reader hears; the last row is the logits."""
        found = np.zeros((self.n_layers * self.readers + 1, self.n_writers), bool)
        for layer in range(self.n_layers):
            rows = slice(layer * self.readers, (layer + 1) * self.readers)
            found[rows, : 1 + layer * self.per_layer] = True
            if not self.attn_only and not self.parallel:
                found[rows.stop - 1, : 1 + layer * self.per_layer + self.n_heads] = True
        found[-1] = True
        return found

    @cached_property
    def pairs(self) -> Int[np.ndarray, "U 2"]:
        """Reader and writer of each edge."""
        return np.argwhere(self.allowed)

    @property
    def n(self) -> int:
        """How many edges; a sum, not the length of `pairs`: a file may say any sizes."""
        layers, heard = self.n_layers, self.per_layer * self.n_layers * (self.n_layers - 1) // 2
        own = 0 if self.attn_only or self.parallel else layers * self.n_heads  # an MLP hears its own layer's heads
        return self.readers * (layers + heard) + own + self.n_writers

    def split(self, mask: Any) -> dict[str, Array]:
        """A vector over edges [U] as matrices: readers by layer [L, R, W], and the logits' [W]."""
        reader, writer = self.pairs.T
        mask = jnp.asarray(mask)
        full = jnp.zeros(self.allowed.shape, mask.dtype).at[reader, writer].set(mask)
        return {"layers": full[:-1].reshape(self.n_layers, self.readers, -1), "logits": full[-1]}

    def groups(self) -> Int[np.ndarray, " U"]:
        """The reader's layer of each edge: what random circuits are matched in."""
        return self.pairs[:, 0] // self.readers

    def writer_name(self, writer: int) -> str:
        """`embed`, `head 1.3` or `mlp 2`."""
        if writer == 0:
            return "embed"
        layer, place = divmod(writer - 1, self.per_layer)
        return f"mlp {layer}" if place == self.n_heads else f"head {layer}.{place}"

    def reader_name(self, reader: int) -> str:
        """`head 1.3 q`, `head 1.0 k` (a key/value head), `mlp 2` or `logits`."""
        if reader == len(self.allowed) - 1:
            return "logits"
        layer, place = divmod(reader, self.readers)
        if place == self.readers - 1 and not self.attn_only:
            return f"mlp {layer}"
        sizes = np.cumsum([0, self.n_heads, self.n_kv_heads, self.n_kv_heads])
        role = int(np.searchsorted(sizes, place, "right")) - 1
        return f"head {layer}.{place - sizes[role]} {ROLES[role]}"

    def label(self, unit: int) -> str:
        """`head 0.1 -> head 2.3 q`.

        Raises:
            InputError: no such edge.
        """
        if not 0 <= unit < self.n:
            raise InputError(f"edge {unit} is outside 0..{self.n - 1}")
        reader, writer = self.pairs[unit]
        return f"{self.writer_name(int(writer))} -> {self.reader_name(int(reader))}"


def edges_of(cfg: ModelConfig) -> Edges:
    """The edges of a model.

    Raises:
        InputError: heads that do not add to the stream (post-norms), or whose queries are normed together.
    """
    wrong = []
    if cfg.post_norm:
        wrong.append("its sublayers are normed before they are added, so heads do not add to the stream")
    if cfg.qk_norm_whole:
        wrong.append("its queries are normed over all heads together")
    if wrong:
        raise InputError(f"the model ({cfg.family}) has no edges between heads: {'; '.join(wrong)}: use units")
    return Edges(cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.parallel, cfg.attn_only)
