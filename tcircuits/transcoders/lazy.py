"""Dictionaries that stay on disk: only the rows of active features are loaded.

`narrow` makes an ordinary `Transcoders` whose feature axis holds the features that a prompt switches on, in the order
of their numbers, and nothing else: everything that reads dictionaries works on it unchanged, with small arrays. To find
these features every encoder passes by once (`streaming`); of the decoders, which are the larger part, above all of
cross-layer dictionaries, no other rows are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcircuits.numerics import bucket, wide
from tcircuits.parallel import place, shardings
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, spec
from tcircuits.transcoders.opening import Opened
from tcircuits.transcoders.pieces import Piece, scaled
from tcircuits.transcoders.scratch import check_scratch, in_file
from tcircuits.transcoders.streaming import (
    ActiveRows,
    Progress,
    active_rows,
    ahead,
    block_size,
    not_finite,
    piece_of,
)
from tcircuits.types import Array, Float, InputError

BLOCK_BYTES = 32 << 20
LEAST = 128  # features of a narrow set: prompts with fewer share their programs
Part = tuple[tuple[slice, ...], np.ndarray]  # where a part of an array lies in it, and its buffer


@dataclass(frozen=True, eq=False)
class LazyTranscoders:
    """A set of dictionaries on disk.

    `attribute`, `attribute_batch`, `steer`, `promoted`, `feature_weights`, `attention_report`, `edge_report` take it.

    Attributes:
        cfg: what the dictionaries are.
        source: where they came from.
        opened: the open files.
        dtype: that arrays get in memory.
        mesh: devices that arrays are spread over; None is the default device.
        block_bytes: the most of a matrix that is read at once.
        scratch: folder of a disk where decoders of a prompt's active features lie; None is the memory.
    """

    cfg: TranscoderConfig
    source: str
    opened: Opened
    dtype: np.dtype
    mesh: Mesh | None = None
    block_bytes: int = BLOCK_BYTES
    scratch: Path | None = None


@dataclass(frozen=True)
class Narrow:
    """Some features of a set as a set of their own.

    Attributes:
        transcoders: their feature axis holds the features, and behind them padding that is never active.
        features: for each slot the numbers of its features in the whole set, ascending.
    """

    transcoders: Transcoders
    features: tuple[np.ndarray, ...]

    def whole(self, layer: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Numbers in the whole set, from numbers in this one. Layers without dictionary keep theirs."""
        out = np.array(number)
        for slot, at in enumerate(self.transcoders.cfg.layers):
            out[layer == at] = self.features[slot][number[layer == at]]
        return out

    def here(self, layer: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """Numbers in this set, from numbers in the whole one; -1 where it does not have them."""
        out = np.array(feature)
        for slot, at in enumerate(self.transcoders.cfg.layers):
            wanted, known = feature[layer == at], self.features[slot]
            found = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
            there = known[found] == wanted if len(known) else np.zeros(len(wanted), bool)
            out[layer == at] = np.where(there, found, -1)
        return out


def open_lazy(
    opened: Opened,
    name: str,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
    scratch: Path | None = None,
) -> LazyTranscoders:
    """A set that stays on disk, from its open files; reads nothing.

    Raises:
        InputError: blocks of no bytes, or see `check_scratch`.
    """
    if block_bytes < 1:
        raise InputError(f"block_bytes={block_bytes}; give a number of bytes, at least 1")
    if scratch is not None:
        check_scratch(scratch, dtype, mesh)
    return LazyTranscoders(opened.cfg, name, opened, np.dtype(dtype), mesh, block_bytes, scratch)


def narrow(lazy: LazyTranscoders, x: Float[np.ndarray, "L N D"], progress: Progress | None = None) -> Narrow:
    """The features that are active at any of N positions, as a set of their own.

    Args:
        lazy: the set on disk.
        x: what each of its layers reads there, in the order of its layers.
        progress: called with (blocks of encoders read, blocks in all).

    Raises:
        InputError: values that are not finite in what is read.
    """
    with _named(lazy):
        found = active_rows(lazy.opened, lazy.dtype, x, lazy.block_bytes, progress)
        return _build(lazy, tuple(rows.index for rows in found), found, LEAST, lazy.scratch)


def decoders(lazy: LazyTranscoders, features: Mapping[int, Sequence[int]]) -> Narrow:
    """Given features (by layer) as a set of their own, without encoders (their arrays are None).

    Raises:
        InputError: values that are not finite in what is read.
    """
    chosen = tuple(np.unique(np.asarray(features.get(layer, ()), np.int64)) for layer in lazy.cfg.layers)
    with _named(lazy):
        return _build(lazy, chosen, None, 8)


def chosen(lazy: LazyTranscoders, features: Mapping[int, Sequence[int]]) -> Narrow:
    """Given features (by layer) as a set of their own, encoders, biases and thresholds included.

    Raises:
        InputError: values that are not finite in what is read.
    """
    numbers = tuple(np.unique(np.asarray(features.get(layer, ()), np.int64)) for layer in lazy.cfg.layers)

    def rows(name: str, slot: int) -> np.ndarray:
        piece = piece_of(lazy.opened, name, slot)
        axes = (slice(0, lazy.cfg.d_model),) if name == "w_enc" else ()
        out = np.zeros((len(numbers[slot]), *(axis.stop for axis in axes)), lazy.dtype)
        for k, i in enumerate(numbers[slot].tolist()):
            with np.errstate(over="ignore"):
                out[k] = lazy.opened.read(piece, (slice(i, i + 1), *axes))[0]
        _check(piece, out)
        return out

    with _named(lazy):
        kept = [
            ActiveRows(
                numbers[slot],
                rows("w_enc", slot),
                rows("b_enc", slot),
                rows("threshold", slot) if "threshold" in lazy.opened.pieces else None,
            )
            for slot in range(len(lazy.cfg.layers))
        ]
        return _build(lazy, numbers, kept, 8)


def products(
    lazy: LazyTranscoders, name: str, vectors: Mapping[int, Float[np.ndarray, " D"]], progress: Progress | None = None
) -> dict[int, Float[np.ndarray, " F"]]:
    """<each row of a matrix, a vector>, for some of the matrices `w_enc` or `w_dec`, by their row of our array.

    They pass by in blocks, once: what needs every feature's weight needs every row, but never all at the same time.

    Args:
        lazy: the set on disk.
        name: `w_enc` or `w_dec`.
        vectors: for each matrix what to multiply it with.
        progress: called with (blocks read, blocks in all).

    Raises:
        InputError: values that are not finite in what is read.
    """
    F, D = lazy.cfg.d_feature, lazy.cfg.d_model
    size = block_size(lazy.cfg, 1, lazy.dtype.itemsize, lazy.block_bytes)
    places = [(row, slice(i, min(i + size, F))) for row in vectors for i in range(0, F, size)]

    def read(row: int, part: slice) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(lazy.opened.read(piece_of(lazy.opened, name, row), (part, slice(0, D))), lazy.dtype)

    out = {row: np.zeros(F, np.result_type(v, np.float32)) for row, v in vectors.items()}
    with _named(lazy):
        blocks = ahead(partial(read, *place) for place in places)
        for i, ((row, part), block) in enumerate(zip(places, blocks, strict=True)):
            _check(piece_of(lazy.opened, name, row), block)
            out[row][part] = _product(block, vectors[row])
            if progress:
                progress(i + 1, len(places))
    return out


@jax.jit
def _product(block: Float[Array, "B D"], vector: Float[Array, " D"]) -> Float[Array, " B"]:
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("BD,D->B", wide(block), vector)


@contextmanager
def _named(lazy: LazyTranscoders) -> Iterator[None]:
    """What is wrong with a file is told with the name of the set."""
    try:
        yield
    except InputError as error:
        raise InputError(f"transcoders {lazy.source}: {error}") from error


def _build(
    lazy: LazyTranscoders,
    features: tuple[np.ndarray, ...],
    rows: list[ActiveRows] | None,
    least: int,
    scratch: Path | None = None,
) -> Narrow:
    """The arrays of a narrow set, each in its place: encoders from memory, everything else from disk."""
    width = max(bucket(max(map(len, features)), least), lazy.cfg.k or 0)  # one of few, so that programs are few
    cfg = replace(lazy.cfg, d_feature=min(width, lazy.cfg.d_feature))
    specs = spec(cfg)
    places = None if lazy.mesh is None else shardings(specs, lazy.mesh)
    off = float(jnp.finfo(lazy.dtype).min) / 2  # the bias of padding: no activation function lets it pass

    def put(name: str, fill: Any) -> Any:
        s = getattr(specs, name)
        where = None if places is None else getattr(places, name)
        return None if s is None else place(s.shape, lazy.dtype, where, fill)

    def memory(name: str, padding: float = 0.0) -> Any:
        if rows is None or getattr(specs, name) is None:
            return None
        kept = [getattr(r, name) for r in rows]
        return put(name, lambda parts: [_copy(kept, part, padding) for part in parts])

    def whole(name: str) -> Any:
        return put(name, lambda parts: [_fill_whole(lazy, name, part) for part in parts])

    def decoders_of(parts: list[Part]) -> None:
        _fill_decoders(lazy, features, parts)

    if scratch is None or specs.w_dec is None:
        w_dec = put("w_dec", decoders_of)
    else:
        every = tuple(slice(0, n) for n in specs.w_dec.shape)
        w_dec = in_file(scratch, specs.w_dec.shape, scratch_dtype(lazy), lambda b: decoders_of([(every, b)]))
    arrays = (memory("w_enc"), memory("b_enc", off), w_dec, whole("b_dec"), memory("threshold"), whole("w_skip"))
    return Narrow(Transcoders(cfg, lazy.source, *arrays), features)


def scratch_dtype(lazy: LazyTranscoders) -> np.dtype:
    """What decoders lie in scratch with: bfloat16 as the files have it, since they are widened to the same numbers."""
    plain = all(p.scale == 1.0 and p.factors is None and p.rule is None for p in lazy.opened.pieces["w_dec"])
    files = lazy.opened.files
    if plain and all(files[p.path].headers[p.tensor].dtype == "BF16" for p in lazy.opened.pieces["w_dec"]):
        return np.dtype(jnp.bfloat16) if lazy.dtype == np.float32 else lazy.dtype
    return lazy.dtype


def _copy(kept: list[np.ndarray], part: Part, padding: float) -> None:
    """One part of an array whose rows are in memory."""
    index, buffer = part
    buffer[...] = padding
    for row, rows in zip(buffer, kept[index[0]], strict=True):
        some = rows[index[1]][(..., *index[2:])]
        row[: len(some)] = some


def _fill_whole(lazy: LazyTranscoders, name: str, part: Part) -> None:
    """One part of an array that has no axis of features."""
    index, buffer = part
    for row, at in zip(buffer, range(index[0].start, index[0].stop), strict=True):
        piece = piece_of(lazy.opened, name, at)
        with np.errstate(over="ignore"):
            row[...] = lazy.opened.read(piece, index[1:])
        _check(piece, row)


def _fill_decoders(lazy: LazyTranscoders, features: tuple[np.ndarray, ...], parts: list[Part]) -> None:
    """Rows of decoders; those that one tensor holds for several outputs are read together."""
    for index, buffer in parts:
        buffer[...] = 0
        here = [p for p in lazy.opened.pieces["w_dec"] if index[0].start <= p.row < index[0].stop]
        of = partial(_tensor, lazy.cfg)
        for (slot, *_), group in groupby(sorted(here, key=of), of):
            pieces, some = list(group), features[slot][index[1]]
            rows = read_rows(lazy.opened, pieces, some, lazy.block_bytes)
            for piece, values in zip(pieces, rows, strict=True):
                row = buffer[piece.row - index[0].start, : len(some)]
                with np.errstate(over="ignore"):
                    row[...] = values[:, index[2]]
                _check(piece, row)


def _tensor(cfg: TranscoderConfig, piece: Piece) -> tuple[int, str, str, int]:
    """Whose features a piece of `w_dec` belongs to, and where they lie."""
    return source_slot(cfg, piece.row), str(piece.path), piece.tensor, piece.start


def source_slot(cfg: TranscoderConfig, row: int) -> int:
    """Whose features row `row` of `w_dec` belongs to; see `dictionary.pair`."""
    if cfg.kind != "clt":
        return row
    m = (math.isqrt(8 * row + 1) - 1) // 2
    return row - m * (m + 1) // 2


def _check(piece: Piece, row: np.ndarray) -> None:
    bad = row.size - int(np.isfinite(row).sum())
    if bad:
        raise not_finite(piece, bad, row.dtype)


def read_rows(
    opened: Opened, pieces: Sequence[Piece], features: np.ndarray, block_bytes: int
) -> list[Float[np.ndarray, "N D"]]:
    """Rows of some features (ascending) of pieces that lie in one tensor; scaled ones in float64, else as in the file.

    Where the file keeps a feature's numbers together ([F, D], or [F, L, D] of a cross-layer decoder) these are all that
    is read, for all outputs at once. Where it has them apart ([D, F]), all of it is read, `block_bytes` at a time.
    """
    first = pieces[0]
    if first.transposed:
        return [_columns(opened, piece, features, block_bytes) for piece in pieces]
    rows = opened.files[first.path].read_rows(first.tensor, features + first.start)
    factors = [None if p.factors is None else p.factors(slice(0, opened.cfg.d_feature))[features] for p in pieces]
    parts = [rows if p.step is None else rows[:, p.step] for p in pieces]
    return [scaled(*one) for one in zip(pieces, parts, factors, strict=True)]


def _columns(opened: Opened, piece: Piece, features: np.ndarray, block_bytes: int) -> Float[np.ndarray, "N D"]:
    """Rows of our array that are columns of the file's."""
    D, F = opened.cfg.d_model, opened.cfg.d_feature
    step = max(1, block_bytes // (8 * F))
    starts = range(0, D, step)
    return np.concatenate(
        [opened.read(piece, (slice(0, F), slice(i, min(i + step, D))))[features] for i in starts], axis=1
    )
