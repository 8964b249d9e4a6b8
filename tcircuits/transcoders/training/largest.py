"""Which features of a batch are kept: the largest of each token (TopK), or of all tokens together (BatchTopK).

Sorting is slow on GPUs: a step's sort takes longer than its products. There one kernel holds a token's row in registers
and halves the interval of the cut's bits, and BatchTopK's cut is counted out in passes of a number known beforehand,
since a loop that ends early asks the host after each turn.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.types import Array, Float, Int

WIDEST = 32_768  # features of a row that a GPU's block holds in registers
BITS = 4  # of the cut that a pass settles


def on_one_gpu() -> bool:
    """Whether kernels can be used: XLA does not split them over devices."""
    return jax.default_backend() == "gpu" and jax.device_count() == 1


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def keep_largest(pre: Float[Array, "L B F"], k: int) -> Float[Array, "L B F"]:
    """TopK: each token's k largest positive values, 0 elsewhere; on a GPU all that equal the k-th as well.

    The gradient reaches what is kept.
    """
    if pre.dtype == jnp.float32 and pre.shape[-1] <= WIDEST and on_one_gpu():
        return by_kernel(pre, k)
    value, index = jax.lax.top_k(jax.nn.relu(pre), k)
    return spread(index, value, pre.shape[-1])


def _keep_backward(k: int, f: Array, g: Array) -> tuple[Array]:
    return (jnp.where(f > 0, g, 0.0),)


def _keep_forward(pre: Array, k: int) -> tuple[Array, Array]:
    f = keep_largest(pre, k)
    return f, f


keep_largest.defvjp(_keep_forward, _keep_backward)


def by_kernel(pre: Float[Array, "*B F"], k: int, *, interpret: bool = False) -> Float[Array, "*B F"]:
    """`keep_largest` as a Pallas kernel for GPUs, one row a block."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    width = pre.shape[-1]
    unit = max(16, 1 << max(0, width.bit_length() - 4))  # so that a row is at most four powers of two
    padded = -(-width // unit) * unit
    rows = jnp.pad(pre.reshape(-1, width), ((0, 0), (0, padded - width)))
    spec = pl.BlockSpec((None, padded), lambda i: (i, 0))
    warps = 1 << (min(16, max(4, padded // 1024)).bit_length() - 1)
    f = pl.pallas_call(
        partial(_kernel, k=k, pieces=_powers(padded)),
        grid=(len(rows),),
        in_specs=[spec],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        compiler_params=triton.CompilerParams(num_warps=warps),
        interpret=interpret,
    )(rows)
    return f[:, :width].reshape(pre.shape)


def _powers(width: int) -> list[tuple[int, int]]:
    """A width as powers of two, which is what a kernel's arrays must be: start and size, the largest first."""
    bits = [b for b in reversed(range(width.bit_length())) if width >> b & 1]
    return [(width >> (b + 1) << (b + 1), 1 << b) for b in bits]


def _kernel(x: Any, f: Any, *, k: int, pieces: list[tuple[int, int]]) -> None:
    """One row: the largest integer that k of its values' bits reach, bit by bit until just k do."""
    from jax.experimental import pallas as pl

    values = [jnp.maximum(x[pl.ds(start, size)], 0.0) for start, size in pieces]
    bits = [jax.lax.bitcast_convert_type(v, jnp.int32) for v in values]

    def count(cut: Array) -> Array:
        return sum((jnp.sum((b >= cut).astype(jnp.int32)) for b in bits), jnp.int32(0))

    def unsure(s: tuple[Array, Array, Array]) -> Array:
        _, bit, above = s
        return (bit > 0) & (above != k)

    def settle(s: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, bit, above = s
        n = count(low + bit)
        return jnp.where(n >= k, low + bit, low), bit // 2, jnp.where(n >= k, n, above)

    start = jnp.int32(0), jnp.int32(1 << 30), jnp.int32(2**30)
    low = jnp.maximum(jax.lax.while_loop(unsure, settle, start)[0], 1)
    for (at, size), v, b in zip(pieces, values, bits, strict=True):
        f[pl.ds(at, size)] = jnp.where(b >= low, v, 0.0)


def largest_of_batch(pre: Float[Array, "L B F"], n: int) -> tuple[Array, Array]:
    """BatchTopK: the n largest positive values of each layer's batch, and the smallest of them [L]."""
    find = cut_in_passes if jax.default_backend() == "gpu" else cut_of
    cut = jax.vmap(partial(find, n=n))(jax.lax.stop_gradient(pre))
    f = jnp.where(pre >= cut[:, None, None], pre, 0.0)
    smallest = jnp.min(jnp.where(f > 0, jax.lax.stop_gradient(f), jnp.inf), (1, 2))
    return f, jnp.where(jnp.isfinite(smallest), smallest, 0.0)


def cut_of(x: Array, n: int) -> Array:
    """A positive number that n of the entries reach, or, where no number separates them (ties), the n-th largest.

    Where fewer than n are positive it is the smallest positive float. Each turn counts once: between the bounds it
    tries by turns the point where a line through both counts' logarithms reaches n, and the middle of the bits
    (non-negative floats are ordered as the integers of their bits), so it ends after a few counts, 62 (126) at most.
    """
    wide = jnp.dtype(x.dtype).itemsize == 8
    whole: Any = jnp.int64 if wide else jnp.int32
    most = 126 if wide else 62

    def bits(v: Array) -> Array:
        return jax.lax.bitcast_convert_type(v, whole)

    def value(b: Array) -> Array:
        return jax.lax.bitcast_convert_type(b, x.dtype)

    def unsure(s: tuple[Array, ...]) -> Array:
        low, high, above, _, turn = s
        return (above != n) & (high - low > 1) & (turn < most)

    def halve(s: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, above, below, turn = s  # count(>= low) = above >= n, count(>= high) = below < n
        part = (jnp.log(above + 1.0) - jnp.log(n + 1.0)) / (jnp.log(above + 1.0) - jnp.log(below + 1.0))
        line = bits(value(low) + (value(high) - value(low)) * part.astype(x.dtype))
        middle = jnp.where(turn % 3 < 2, jnp.clip(line, low + 1, high - 1), low + (high - low) // 2)
        count = jnp.sum(x >= value(middle))
        enough = count >= n
        ends = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
        return *ends, jnp.where(enough, count, above), jnp.where(enough, below, count), turn + 1

    low, high = jnp.ones((), whole), bits(jnp.maximum(x.max(), 0)) + 1
    start = low, jnp.maximum(high, 2), jnp.sum(x > 0), jnp.zeros((), jnp.sum(x > 0).dtype), jnp.zeros((), jnp.int32)
    return value(jax.lax.while_loop(unsure, halve, start)[0])


def cut_in_passes(x: Array, n: int) -> Array:
    """`cut_of` in as many passes as a float has bits over `BITS`: each counts at all next digits of the cut at once."""
    wide = jnp.dtype(x.dtype).itemsize == 8
    whole: Any = jnp.uint64 if wide else jnp.uint32
    size, most = (64 if wide else 32), 2**BITS
    bits = jax.lax.bitcast_convert_type(jnp.maximum(x, 0), whole).ravel()
    digits = jnp.arange(1, most).astype(whole)

    def settle(turn: Array, low: Array) -> Array:
        shift = (size - BITS * (turn + 1)).astype(whole)
        reach = tuple((bits >= low + (d << shift)).astype(jnp.int32) for d in digits)
        counts = jax.lax.reduce(
            reach, (jnp.int32(0),) * len(reach), lambda a, b: tuple(i + j for i, j in zip(a, b, strict=True)), (0,)
        )
        digit = sum(((c >= n).astype(whole) for c in counts), jnp.zeros((), whole))
        return low + (digit << shift)

    low = jax.lax.fori_loop(0, size // BITS, settle, jnp.zeros((), whole))
    return jax.lax.bitcast_convert_type(jnp.maximum(low, 1), x.dtype)


def spread(index: Int[Array, "L B C"], value: Float[Array, "L B C"], n: int) -> Float[Array, "L B F"]:
    """Slots as a dense array."""
    zeros = jnp.zeros((*value.shape[:-1], n), value.dtype)
    return jnp.put_along_axis(zeros, index, value, axis=-1, inplace=False)
