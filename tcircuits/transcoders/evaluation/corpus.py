"""The rows that an evaluation runs over, batch by batch, on one device or spread over a mesh."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.evaluation.measure import FIRST
from tcircuits.types import InputError, Int

SHORTEST = FIRST + 2  # one prediction counts


@dataclass(frozen=True)
class Corpus:
    """The first `n` rows of a source, each `context` tokens of which the first is BOS; `read(first, n)` gives some."""

    n: int
    context: int
    read: Callable[[int, int], Int[np.ndarray, "B T"]]

    @property
    def n_positions(self) -> int:
        """Positions that figures count."""
        return self.n * (self.context - FIRST)

    @property
    def n_predictions(self) -> int:
        """Predictions that losses count."""
        return self.n * (self.context - FIRST - 1)

    def batches(self, size: int, mesh: Mesh | None) -> Iterator[tuple[Any, Any, int]]:
        """Tokens [B, T], weights [B] and how many rows count; the last batch is filled with rows of weight 0."""
        spread = 1 if mesh is None else mesh.shape["data"]
        size = -(-min(size, self.n) // spread) * spread
        for first in range(0, self.n, size):
            count = min(size, self.n - first)
            rows = np.asarray(self.read(first, count), np.int32)
            rows = np.concatenate([rows, np.repeat(rows[-1:], size - count, 0)])
            weight = (np.arange(size) < count).astype(np.float32)
            yield _placed(rows, mesh), _placed(weight, mesh), count

    def digest(self) -> str:
        """A name for these very rows: figures of different dictionaries are compared on one corpus only."""
        found = hashlib.sha256(f"{self.n} {self.context}".encode())
        for first in range(0, self.n, 256):
            rows = self.read(first, min(256, self.n - first))
            found.update(np.ascontiguousarray(rows, "<i4").tobytes())
        return found.hexdigest()[:16]


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters lie on, or None."""
    sharding = jax.tree.leaves(params)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def _placed(x: np.ndarray, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return jax.device_put(x)
    where = NamedSharding(mesh, PartitionSpec("data"))
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def corpus(cfg: ModelConfig, rows: Any, n_tokens: int | None) -> Corpus:
    """As many whole rows as `n_tokens` tokens make (None: all of them).

    Args:
        cfg: the model's sizes.
        rows: an array [n, T] of token ids, or an object with `rows(first, n)`, and `per_epoch` (`tcircuits.data.Rows`:
            no row is read twice) or `n`; without either it is endless.
        n_tokens: how many tokens to read.

    Raises:
        InputError: rows of another form, too short or too long for the model, too few, or ids outside its vocabulary.
    """
    if isinstance(rows, np.ndarray | jax.Array | list | tuple):
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.dtype.kind not in "iu":
            raise InputError(f"rows have shape {rows.shape} and dtype {rows.dtype}: give token ids [n, T]")
        available, context, read = len(rows), rows.shape[1], _reader(rows)
    else:
        available, read = getattr(rows, "per_epoch", getattr(rows, "n", None)), rows.rows
        context = np.asarray(read(0, 1)).shape[1]
    if not SHORTEST <= context <= cfg.n_ctx:
        raise InputError(f"rows have {context} tokens; give {SHORTEST} to {cfg.n_ctx} (the model's context)")
    if n_tokens is None and available is None:
        raise InputError("the rows have no end: say how many tokens to evaluate (n_tokens)")
    n = available if n_tokens is None else n_tokens // context
    if n is None or n < 1 or (available is not None and n > available):
        have = "" if available is None else f" and the corpus {available} rows ({available * context} tokens)"
        wanted = "the corpus has no whole row" if n_tokens is None else f"{n_tokens} tokens were asked for"
        raise InputError(
            f"{wanted}; a row has {context} tokens{have}: give more text, or fewer tokens or a shorter row"
        )
    return Corpus(n, context, _checked(cfg, read))


def _reader(rows: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda first, n: rows[first : first + n]


def _checked(cfg: ModelConfig, read: Callable[[int, int], np.ndarray]) -> Callable[[int, int], np.ndarray]:
    def checked(first: int, n: int) -> np.ndarray:
        rows = np.asarray(read(first, n))
        if rows.min() < 0 or rows.max() >= cfg.d_vocab:
            raise InputError(
                f"rows {first}..{first + n - 1} hold token ids {rows.min()}..{rows.max()}; the model's vocabulary has "
                f"0..{cfg.d_vocab - 1}: were they made with another tokenizer?"
            )
        return rows

    return checked
