"""Shuffles that nobody has to store: a keyed permutation of [0, n), computed for single numbers.

A generalised Feistel network with cycle walking (Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains,
methods 2 and 3): x = l + a r with 0 <= l < a, 0 <= r < b and a b >= n; each round adds to l a hash of r modulo a, then
to r a hash of l modulo b, both of which can be undone; where the result leaves [0, n), the network is applied again.
With a = ceil(sqrt(n)), a b - n < a, so that is rare. It is a good shuffle, not a cipher.
"""

from math import isqrt

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 [*] that spreads each bit over all (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = np.atleast_1d(np.asarray(x, np.uint64))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(*numbers: int | np.ndarray) -> np.ndarray:
    """A key uint64 [*] (at least [1]) from integers, which may be arrays; their order counts."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        part = np.asarray(number & MASK if isinstance(number, int) else number).astype(np.uint64)
        key = mixed(key + np.uint64(GOLDEN) + mixed(part))
    return key


def permuted(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where the permutation with this key puts each of `index`.

    Args:
        index: [*], int64 in [0, n).
        n: size of what is permuted, up to 2**60.
        key: uint64, [*] or [1]; each key is another permutation.

    Returns:
        [*], int64 in [0, n): for one key, all of [0, n) in another order.
    """
    index = np.asarray(index, np.int64)
    x = index.astype(np.uint64).ravel()
    key = np.broadcast_to(key, index.shape).ravel()
    y = _network(x, n, key)
    outside = np.flatnonzero(y >= n)
    while outside.size:
        y[outside] = _network(y[outside], n, key[outside])
        outside = outside[y[outside] >= n]
    return y.astype(np.int64).reshape(index.shape)


def _network(x: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    side = isqrt(n - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-n // side))
    left, right = x % a, x // a
    for i in range(ROUNDS):
        left = (left + mixed(mixed(key + np.uint64((2 * i + 1) * GOLDEN & MASK)) + right) % a) % a
        right = (right + mixed(mixed(key + np.uint64((2 * i + 2) * GOLDEN & MASK)) + left) % b) % b
    return left + a * right
