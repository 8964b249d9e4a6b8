"""From a table of values of which few are not zero to lists of those, in one pass over the table.

A table is read once, as bits: 32 columns are a word. What comes after (counts by word, their running sum, the search
for the n-th set bit) costs a fraction of that, and the table itself is read again at the found places only.

>>> import jax.numpy as jnp
>>> marks = marked(jnp.array([[0.0, 3.0, 0.0], [0.0, 0.0, 7.0]]) != 0)
>>> [x.tolist() for x in nth(marks, jnp.arange(2))]
[[0, 1], [1, 2]]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tcircuits.types import Array, Bool, Int

WORD = 32


class Marks(NamedTuple):
    """Where a table is true: bits of each word, the number of them in all words up to this one, words of a row."""

    word: Int[Array, " W"]
    until: Int[Array, " W"]
    in_row: int

    @property
    def n(self) -> Int[Array, ""]:
        """How many places are true."""
        return self.until[-1]


def marked(on: Bool[Array, "N F"]) -> Marks:
    """The marks of a table."""
    N, F = on.shape
    if F % WORD:
        on = jnp.pad(on, ((0, 0), (0, -F % WORD)))
    bits = on.reshape(N, -1, WORD).astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32)
    word = bits.sum(-1, dtype=jnp.uint32)
    return Marks(word.ravel(), jnp.cumsum(_ones(word.ravel())), word.shape[1])


def nth(marks: Marks, n: Int[Array, " C"]) -> tuple[Int[Array, " C"], Int[Array, " C"]]:
    """Row and column of the n-th place (from 0) in the order of rows; any place where there is none."""
    at = jnp.minimum(jnp.searchsorted(marks.until, n, side="right"), len(marks.word) - 1)
    word = marks.word[at]
    rank, bit = n - (marks.until[at] - _ones(word)), jnp.zeros_like(n)
    for half in (16, 8, 4, 2, 1):  # is it in the upper or the lower half of what is left of the word
        low = word & jnp.uint32(2**half - 1)
        upper = rank >= _ones(low)
        rank = rank - jnp.where(upper, _ones(low), 0)
        word = jnp.where(upper, word >> half, low)
        bit = bit + jnp.where(upper, half, 0)
    row, column = at // marks.in_row, (at % marks.in_row) * WORD + bit
    return row, column


def _ones(word: Array) -> Array:
    return jax.lax.population_count(word).astype(jnp.int32)
