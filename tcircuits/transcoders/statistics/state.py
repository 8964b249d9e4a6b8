"""The state of a pass: what was seen of every feature of every layer so far, and how a batch is added to it.

A batch comes as a list of activations: value (0: an empty place), feature and token, in any order. All figures but
`total` are the same however the corpus is cut into batches; `total` is so up to rounding, which is carried along (Kahan
1965) so that it does not grow with the number of batches.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.params import ArraySpec
from tcircuits.transcoders.statistics.keeping import EMPTY, N_BINS, Keeping, edges, priority
from tcircuits.transcoders.statistics.sparse import marked, nth
from tcircuits.types import Array, Float, Int

FEW = 65_536  # candidates that are sorted at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """By slot (S) and feature: the strongest activations and their tokens, in order; counts by bin; what was drawn.

    `in_bin` and `drawn` hold priorities (`keeping.priority`), the smallest of each bin and of each part of the corpus.
    `total` - `lost` is the sum of all values, `least` the smallest value that is not zero.
    """

    value: Float[Array, "S F K"]
    token: Int[Array, "S F K"]
    count: Int[Array, "S F H"]
    in_bin: Int[Array, "S F H"]
    drawn: Int[Array, "S F Q"]
    total: Float[Array, "S F"]
    lost: Float[Array, "S F"]
    least: Float[Array, "S F"]


def spec(keeping: Keeping, n_slots: int, n_features: int) -> State:
    """Shapes and logical axes: everything is split where features are."""

    def leaf(*last: int) -> Any:
        axes = ("layers", "feature", *(None for _ in last))
        return ArraySpec((n_slots, n_features, *last), axes, "zeros")

    top, bins, drawn = leaf(keeping.top), leaf(N_BINS), leaf(keeping.drawn)
    return State(top, top, bins, bins, drawn, leaf(), leaf(), leaf())


def empty(keeping: Keeping, n_slots: int, n_features: int, dtype: Any) -> State:
    """The state before any token."""
    shape = (n_slots, n_features)
    nothing = jnp.zeros(shape, dtype)
    return State(
        value=jnp.full((*shape, keeping.top), -jnp.inf, dtype),
        token=jnp.full((*shape, keeping.top), EMPTY),
        count=jnp.zeros((*shape, N_BINS), jnp.int32),
        in_bin=jnp.full((*shape, N_BINS), EMPTY),
        drawn=jnp.full((*shape, keeping.drawn), EMPTY),
        total=nothing,
        lost=nothing,
        least=jnp.full(shape, jnp.inf, dtype),
    )


def add(
    one: State, key: Int[Array, " F"], value: Float[Array, "N C"], index: Int[Array, "N C"], token: Int[Array, "N C"]
) -> State:
    """The state of one slot (its arrays without their first axis) after a batch."""
    F = len(key)
    value, index, token = value.ravel(), index.ravel(), token.ravel()
    feature = jnp.where(value != 0, index, F)  # an index beyond the last is dropped by every scatter
    drawn = priority(token, key[index])
    bin_ = jnp.searchsorted(edges(value.dtype), value, side="right")
    part = jnp.zeros_like(one.total).at[feature].add(value, mode="drop") - one.lost
    total = one.total + part
    top = strongest(one.value, one.token, feature, value, token)
    return replace(
        one,
        value=top[0],
        token=top[1],
        count=one.count.at[feature, bin_].add(1, mode="drop"),
        in_bin=one.in_bin.at[feature, bin_].min(drawn, mode="drop"),
        drawn=one.drawn.at[feature, drawn % one.drawn.shape[1]].min(drawn, mode="drop"),
        total=total,
        lost=(total - one.total) - part,
        least=one.least.at[feature].min(value, mode="drop"),
    )


def strongest(
    kept: Float[Array, "F K"],
    tokens: Int[Array, "F K"],
    feature: Int[Array, " M"],
    value: Float[Array, " M"],
    token: Int[Array, " M"],
) -> tuple[Float[Array, "F K"], Int[Array, "F K"]]:
    """The strongest K of each feature, of those kept and of a batch of later tokens; the earlier of equals.

    Only candidates that beat what is kept are sorted, `FEW` at a time: after a few batches there are not many.
    """
    F, M = len(kept), len(value)
    few = min(FEW, M)
    better = (feature < F) & (value > kept[jnp.minimum(feature, F - 1), -1])
    marks = marked(better[None])

    def more(carried: tuple[Array, ...]) -> Array:
        return carried[0] < marks.n

    def step(carried: tuple[Array, ...]) -> tuple[Array, ...]:
        first, kept, tokens = carried
        number = first + jnp.arange(few, dtype=first.dtype)
        _, at = nth(marks, number)
        real = jnp.where(number < marks.n, feature[at], F)
        return first + few, *merged(kept, tokens, *ranked(real, value[at], token[at], kept.shape))

    _, kept, tokens = jax.lax.while_loop(more, step, (jnp.zeros_like(marks.n), kept, tokens))
    return kept, tokens


def ranked(feature: Array, value: Array, token: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The strongest K of each feature among candidates, in order: values and tokens [F, K]."""
    feature, value, token = jax.lax.sort((feature, -value, token), num_keys=3)
    number = jnp.arange(len(feature))
    begins = jnp.where(feature != jnp.roll(feature, 1), number, 0)
    rank = number - jax.lax.cummax(begins)
    values = jnp.full(shape, -jnp.inf, value.dtype).at[feature, rank].set(-value, mode="drop")
    return values, jnp.full(shape, EMPTY).at[feature, rank].set(token, mode="drop")


def merged(a: Array, a_token: Array, b: Array, b_token: Array) -> tuple[Array, Array]:
    """The first K of two lists of K in order, value falling and token rising: the step of a bitonic merge, sorted."""
    b, b_token = b[:, ::-1], b_token[:, ::-1]
    first = (a > b) | ((a == b) & (a_token < b_token))
    value, token = jax.lax.sort((-jnp.where(first, a, b), jnp.where(first, a_token, b_token)), num_keys=2)
    return -value, token
