"""Which features of a set on disk are active, without holding its encoders: they pass by in blocks.

A thread reads the next block while the device multiplies the last one, so the time is the longer of the two and memory
is a few blocks. What is left of each layer are the encoder rows of the features that are active anywhere; the encoders
are read once, whichever way their files turn them.

TopK is exact over all features: the k largest so far are merged with those of each block, and equal values go to the
lower feature number, as `dictionary.activate` has it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.parallel import aligned
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import activate, rank
from tcircuits.transcoders.opening import Opened
from tcircuits.transcoders.pieces import Piece
from tcircuits.types import Array, Float, InputError, Int

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ActiveRows:
    """The active features of one layer, ascending, and their rows of the arrays that have one row a feature."""

    index: Int[np.ndarray, " N"]
    w_enc: Float[np.ndarray, "N D"]
    b_enc: Float[np.ndarray, " N"]
    threshold: Float[np.ndarray, " N"] | None

    def only(self, keep: np.ndarray) -> "ActiveRows":
        """Those that a mask keeps."""
        threshold = None if self.threshold is None else self.threshold[keep]
        return ActiveRows(self.index[keep], self.w_enc[keep], self.b_enc[keep], threshold)


def active_rows(
    opened: Opened, dtype: Any, x: Float[np.ndarray, "L N D"], block_bytes: int, progress: Progress | None = None
) -> list[ActiveRows]:
    """The features of every dictionary that are active on what it reads, at any of N positions.

    Pre-activations are computed as `dictionary.encode` computes them, in the dtype that the arrays would be loaded in;
    sums may be taken in another order. So a feature can be judged otherwise than there only where its pre-activation is
    within rounding of its threshold (of the k-th largest), about D 2^-24 sum |x w| in float32.

    Args:
        opened: the set.
        dtype: of its arrays in memory.
        x: what each of its layers reads, in the order of its layers.
        block_bytes: bound for a block of an encoder, and for the block's pre-activations, in `dtype`.
        progress: called with (blocks read, blocks in all).

    Raises:
        InputError: values in the encoders that are not finite.
    """
    cfg = opened.cfg
    size = block_size(cfg, x.shape[1], np.dtype(dtype).itemsize, block_bytes)
    starts = list(range(0, cfg.d_feature, size))
    slots = range(len(cfg.layers))
    buffers = cycle([aligned((size, cfg.d_model), dtype) for _ in range(2)])  # one is filled while one is used
    jobs = [partial(read_block, opened, slot, first, next(buffers)) for slot in slots for first in starts]
    blocks, out = ahead(jobs), []
    for slot in slots:
        sieve = Sieve(cfg, jnp.asarray(x[slot]), dtype)
        for i in range(len(starts)):
            bad = sieve.add(next(blocks))
            if bad:
                raise not_finite(piece_of(opened, "w_enc", slot), bad, dtype)
            if progress:
                progress(slot * len(starts) + i + 1, len(jobs))
        out.append(sieve.found())
    return out


def block_size(cfg: TranscoderConfig, n_positions: int, item: int, block_bytes: int) -> int:
    """Features in a block: as many as the bound allows, evenly spread, so that the last block is about as full."""
    most = max(1, block_bytes // (item * max(cfg.d_model, n_positions)))
    return -(-cfg.d_feature // -(-cfg.d_feature // most))


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What the jobs return, in order; a thread does the next one while the caller uses the last."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for job in jobs:
            coming = pool.submit(job)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def not_finite(piece: Piece, count: int, dtype: Any) -> InputError:
    """The message that `loading` has for such values too."""
    where = f"tensor {piece.tensor} of {piece.path.name}"
    return InputError(f"{where} has {count} values that are NaN or infinite in {np.dtype(dtype)}")


def piece_of(opened: Opened, name: str, row: int) -> Piece:
    """What fills a row of one of our arrays."""
    return next(piece for piece in opened.pieces[name] if piece.row == row)


@dataclass(frozen=True)
class Block:
    """Encoder rows, biases and thresholds of `n` features from `first` on, and zeros behind them."""

    first: int
    n: int
    w_enc: Float[np.ndarray, "B D"]
    b_enc: Float[np.ndarray, " B"]
    threshold: Float[np.ndarray, " B"] | None


def read_block(opened: Opened, slot: int, first: int, buffer: Float[np.ndarray, "B D"]) -> Block:
    """A block of one layer, its rows in `buffer`.

    Raises:
        InputError: biases or thresholds that are not finite.
    """
    part = slice(first, min(first + len(buffer), opened.cfg.d_feature))
    n = part.stop - part.start

    def numbers(name: str) -> np.ndarray:
        piece, out = piece_of(opened, name, slot), np.zeros(len(buffer), buffer.dtype)
        out[:n] = opened.read(piece, (part,))
        bad = n - int(np.isfinite(out[:n]).sum())
        if bad:
            raise not_finite(piece, bad, buffer.dtype)
        return out

    with np.errstate(over="ignore"):
        buffer[:n] = opened.read(piece_of(opened, "w_enc", slot), (part, slice(0, opened.cfg.d_model)))
        buffer[n:] = 0
        threshold = numbers("threshold") if "threshold" in opened.pieces else None
        return Block(first, n, buffer, numbers("b_enc"), threshold)


class Sieve:
    """Takes the blocks of one layer's encoder in order and keeps the rows of active features."""

    def __init__(self, cfg: TranscoderConfig, x: Float[Array, "N D"], dtype: Any) -> None:
        none = np.zeros(0, dtype)
        threshold = none if cfg.gated else None
        self.cfg, self.x = cfg, x
        self.rows = ActiveRows(np.zeros(0, np.int64), np.zeros((0, cfg.d_model), dtype), none, threshold)
        shape = (x.shape[0], cfg.k or 0)
        self.best = (jnp.full(shape, -jnp.inf, jnp.result_type(x, none)), jnp.full(shape, -1, jnp.int32))

    def add(self, block: Block) -> int:
        """Look at a block; how many of its weights are not finite. When this returns, nothing reads the block."""
        w, n = jax.device_put(block.w_enc), block.n
        if self.cfg.activation == "topk":
            self.best, finite = _merge(self.cfg, self.x, w, block.b_enc, block.threshold, block.first, n, self.best)
            index = np.unique(np.asarray(self.best[1]))
            index = index[index >= 0]
        else:
            on, finite = _gate(self.cfg, self.x, w, block.b_enc, block.threshold, n)
            index = np.concatenate([self.rows.index, block.first + np.flatnonzero(np.asarray(on))])
        self._keep(index, block)
        # A weight that is not finite makes all pre-activations of its feature so: only then they are looked at.
        return 0 if finite else n * self.cfg.d_model - int(np.isfinite(block.w_enc[:n]).sum())

    def _keep(self, index: Int[np.ndarray, " N"], block: Block) -> None:
        """Drop the rows of features that are no longer among `index`, and take those of this block that are."""
        old, new = self.rows.only(np.isin(self.rows.index, index)), index[index >= block.first] - block.first

        def joined(name: str) -> Any:
            here, there = getattr(old, name), getattr(block, name)
            return None if here is None else np.concatenate([here, there[new]])

        self.rows = ActiveRows(index, joined("w_enc"), joined("b_enc"), joined("threshold"))

    def found(self) -> ActiveRows:
        """The active features of the blocks so far.

        Of TopK without signs those with the value 0 are none, though they may be among the k largest.
        """
        if self.cfg.activation != "topk" or self.cfg.signed_topk:
            return self.rows
        values, index = (np.asarray(x) for x in self.best)
        return self.rows.only(np.isin(self.rows.index, index[values > 0]))


def _pre(x: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """Pre-activations, as `dictionary.encode` computes them, and whether they are all finite."""
    with jax.default_matmul_precision("highest"):
        pre = jnp.einsum("ND,FD->NF", x, w) + b
    return pre, jnp.isfinite(pre).all()


@partial(jax.jit, static_argnames=("cfg",))
def _gate(cfg: TranscoderConfig, x: Array, w: Array, b: Array, threshold: Any, n: Any) -> Any:
    """Which of the first `n` features of a block are active at any position."""
    pre, finite = _pre(x, w, b)
    on = (activate(cfg, pre, threshold) != 0).any(0)
    return on & (jnp.arange(len(b)) < n), finite


@partial(jax.jit, static_argnames=("cfg",))
def _merge(cfg: TranscoderConfig, x: Array, w: Array, b: Array, threshold: Any, first: Any, n: Any, best: Any) -> Any:
    """The k largest of those before and of the first `n` features of a block: values [N, K], numbers [N, K]."""
    pre, finite = _pre(x, w, b)
    ranked = rank(cfg, pre, threshold)
    place = jnp.arange(len(b), dtype=jnp.int32)
    ranked = jnp.where(place < n, ranked, -jnp.inf)
    number = jnp.broadcast_to(first + place, ranked.shape)
    # Those before stand first, in rising order where they are equal: `top_k` takes the first of equals.
    values = jnp.concatenate([best[0], ranked], 1)
    values, chosen = jax.lax.top_k(values, best[0].shape[1])
    return (values, jnp.take_along_axis(jnp.concatenate([best[1], number], 1), chosen, 1)), finite
