"""Rows of a graph on the host: allocated once at their final size, filled block by block while the device goes on.

What a row can depend on is known before it is computed: a target at layer l and position p has as sources the
features, errors and tokens at layers below l and positions up to p (all positions in encoders); of layer l - 1 only
those at p itself where no attention stands between, and of the tokens likewise. So all rows of one layer and position
have the same columns, each row's place in the graph is known, and a block of rows is copied from where the device left
it to where it stays, once. Where more turn out to be exactly 0 (a sliding window, say) they are taken out at the end; a
stray 0 stays, since it would cost a copy of everything.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

PER_ROW = ("bias", "origin", "value")
STRAY = 1e-3  # share of zeros that stays


@dataclass
class RowStore:
    """Edges and per-row numbers of n selected features and k targets.

    Attributes:
        layer, pos: [R] of the rows, features first, sorted by layer and position.
        reach: [R] the last position that a row's sources can stand at: its own, but for encoders the prompt's last.
        n: selected features.
        live: [L, T] errors that are not 0 throughout.
        direct: [R] rows that read what layer l - 1 leaves, with no attention between (outputs; parallel blocks).
        dtype: of the weights.
        leaves: whether there are features that are not selected, so that rows have sums over them.
    """

    layer: np.ndarray
    pos: np.ndarray
    reach: np.ndarray
    n: int
    live: np.ndarray
    direct: np.ndarray
    dtype: np.dtype
    leaves: bool
    zeros: list[int] = field(default_factory=list, init=False)  # of each block; threads append

    def __post_init__(self) -> None:
        R, edges = len(self.layer), int(self.row_start[-1])
        self.source, self.weight = np.empty(edges, np.int32), np.empty(edges, self.dtype)
        self.bias, self.origin, self.value = (np.zeros(R, self.dtype) for _ in PER_ROW)
        shape = (R, *self.live.shape)
        if self.leaves:
            self.unexpanded, self.unexpanded_abs = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)
        else:  # one zero, seen R L T times
            self.unexpanded = self.unexpanded_abs = np.broadcast_to(self.dtype.type(0), shape)

    @cached_property
    def counts(self) -> np.ndarray:
        """[L, T] selected features of each layer and position."""
        L, T = self.live.shape
        out = np.zeros((L, T), np.int64)
        np.add.at(out, (self.layer[: self.n], self.pos[: self.n]), 1)
        return out

    @cached_property
    def first(self) -> np.ndarray:
        """[L, T + 1] number of the first feature of each layer and position, and behind the layer's last."""
        L, T = self.live.shape
        ends = np.cumsum(self.counts).reshape(L, T)
        return np.concatenate([ends[:, :1] - self.counts[:, :1], ends], 1)

    @cached_property
    def row_start(self) -> np.ndarray:
        """[R + 1] where each row's edges begin."""
        here = self.counts + self.live
        sources = here.cumsum(1)  # of one layer, up to a position
        below = np.concatenate([np.zeros_like(sources[:1]), sources.cumsum(0)])
        last = self.layer - 1  # where it is -1 there is nothing, and nothing is taken away
        others = (sources[last, self.reach] - here[last, self.pos]) * (self.direct & (self.layer > 0))
        size = below[self.layer, self.reach] - others + np.where(self.bare, 1, self.reach + 1)
        return np.concatenate([[0], np.cumsum(size)]).astype(np.int64)

    @cached_property
    def bare(self) -> np.ndarray:
        """[R] rows that read the embedding itself: of the tokens, their own alone."""
        return self.direct & (self.layer == 0)

    def tokens(self, row: int) -> np.ndarray:
        """Tokens that a row can depend on."""
        return self.pos[row : row + 1] if self.bare[row] else np.arange(self.reach[row] + 1)

    def cone(self, row: int) -> np.ndarray:
        """[l, p + 1] layers and positions that a row at layer l with sources up to position p can depend on."""
        layer = int(self.layer[row])
        out = np.ones((layer, int(self.reach[row]) + 1), bool)
        if layer and self.direct[row]:
            out[-1] = False
            out[-1, self.pos[row]] = True
        return out

    def columns(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns of a row: features, and errors with tokens counted from n."""
        (L, T), inside = self.live.shape, self.cone(row)
        here = slice(0, inside.shape[0]), slice(0, inside.shape[1])
        many, first = self.counts[here][inside], self.first[here][inside]
        # Consecutive numbers within each place, which start anew where the next place begins.
        features = np.repeat(first - np.cumsum(many) + many, many) + np.arange(many.sum())
        layer, pos = np.nonzero(inside & self.live[here])
        others = np.concatenate([layer * T + pos, L * T + self.tokens(row)])
        return features, others

    def _block(self, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for the weights of rows lo..hi [rows, columns], their sources written; and columns of others."""
        edges = slice(self.row_start[lo], self.row_start[hi])
        features, others = self.columns(lo)
        self.source[edges].reshape(hi - lo, -1)[:] = np.concatenate([features, self.n + others])
        return self.weight[edges].reshape(hi - lo, -1), others

    def blocks(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """Lanes [a, b) with consecutive rows at one layer and position, of lanes that hold `rows`."""
        same = (np.diff(rows) == 1) & (np.diff(self.layer[rows]) == 0) & (np.diff(self.pos[rows]) == 0)
        ends = [*(np.flatnonzero(~same) + 1).tolist(), len(rows)]
        return list(zip([0, *ends[:-1]], ends, strict=True)) if len(rows) else []

    def _per_row(self, rows: np.ndarray, lanes: np.ndarray, **found: np.ndarray) -> None:
        for name, values in found.items():
            getattr(self, name)[rows] = values[lanes]

    def put_cone(self, c: Any, rows: np.ndarray, lanes: np.ndarray, value: np.ndarray) -> None:
        """Copy what `cone` gave for `lanes` (consecutive), which hold `rows`: a `Cone` of host arrays, slots packed."""
        self._per_row(rows, lanes, bias=c.bias, origin=c.origin)
        self.value[rows] = value
        for a, b in self.blocks(rows):
            lo, here, at = int(rows[a]), slice(int(lanes[a]), int(lanes[a]) + b - a), 0
            block, _ = self._block(lo, lo + b - a)
            inside = self.cone(lo)
            layers, places = inside.shape
            for m, q, count in zip(*np.nonzero(inside), self.counts[:layers, :places][inside].tolist(), strict=True):
                if count:
                    block[:, at : at + count] = c.features[m, q, here, :count]
                    at += count
            errors = c.errors[:layers, :places, here][inside & self.live[:layers, :places]]
            block[:, at : at + len(errors)] = errors.T
            block[:, at + len(errors) :] = c.tokens[self.tokens(lo), here].T
            self._count(block)

    def _count(self, block: np.ndarray) -> None:
        self.zeros.append(int(np.count_nonzero(block == 0)))

    def put_rows(self, r: Any, rows: np.ndarray, lanes: np.ndarray) -> None:
        """Copy what `rows` gave for `lanes` of one chunk, which hold `rows`: `Rows` of host arrays, of that chunk."""
        self._per_row(rows, lanes, bias=r.bias, origin=r.origin, value=r.value)
        if self.leaves:
            self._per_row(rows, lanes, unexpanded=r.unexpanded, unexpanded_abs=r.unexpanded_abs)
        behind = r.weight.shape[-1] - self.live.size - self.live.shape[1]  # columns of features, with padding
        for a, b in self.blocks(rows):
            lo = int(rows[a])
            block, others = self._block(lo, lo + b - a)
            found, features = r.weight[lanes[a] : lanes[a] + b - a], block.shape[1] - len(others)
            np.take(found, self.source[self.row_start[lo] :][:features], axis=1, out=block[:, :features])
            block[:, features:] = found[:, behind + others]
            self._count(block)

    def put_first_layer(self, edges: np.ndarray, bias: np.ndarray, value: np.ndarray) -> None:
        """Rows of layer 0, which have tokens alone as sources: edges [rows, T]."""
        rows = np.arange(len(edges))
        self._per_row(rows, rows, bias=bias, value=value)
        for lo, hi in self.blocks(rows):
            block, others = self._block(lo, hi)
            block[:] = edges[lo:hi, others - self.live.size]
            self._count(block)

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`row_start`, `source` and `weight` of the edges."""
        if sum(self.zeros) <= STRAY * len(self.weight):
            return self.row_start, self.source, self.weight
        real = self.weight != 0
        before = np.concatenate([[0], np.cumsum(real)])
        return before[self.row_start].astype(np.int64), self.source[real], self.weight[real]
