"""The keyed permutation against a scalar one, written from the definition; that it permutes, and shuffles."""

from collections import Counter
from math import ceil, factorial, isqrt

import numpy as np
import pytest

from tcircuits.data.permute import GOLDEN, ROUNDS, key_of, permuted

WORD = 2**64


def mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def by_hand(x, n, key):
    """Black and Rogaway's construction on Python's integers."""
    a = isqrt(n)
    a += a * a < n
    b = ceil(n / a)
    while True:
        left, right = x % a, x // a
        for i in range(ROUNDS):
            left = (left + mixed((mixed((key + (2 * i + 1) * GOLDEN) % WORD) + right) % WORD)) % a
            right = (right + mixed((mixed((key + (2 * i + 2) * GOLDEN) % WORD) + left) % WORD)) % b
        x = left + a * right
        if x < n:
            return x


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17, 100, 4096, 4099])
def test_equals_the_definition(n):
    key = key_of(n, 3)
    got = permuted(np.arange(n), n, key)
    assert got.tolist() == [by_hand(x, n, int(key[0])) for x in range(n)]


def test_permutes_every_size():
    for n in [*range(1, 800), 1023, 1024, 1025, 10_000, 65_537, 250_001]:
        np.testing.assert_array_equal(np.sort(permuted(np.arange(n), n, key_of(5, n))), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_are_as_likely(n):
    """Chi-square of the orders that 24,000 keys give, against its mean n! - 1 and deviation sqrt(2 (n! - 1))."""
    keys = key_of(np.arange(24_000))
    orders = Counter(zip(*(permuted(np.full(24_000, i), n, keys).tolist() for i in range(n)), strict=True))
    assert len(orders) == factorial(n)
    mean = 24_000 / factorial(n)
    freedom = factorial(n) - 1
    assert sum((c - mean) ** 2 / mean for c in orders.values()) < freedom + 5 * (2 * freedom) ** 0.5


def test_every_place_is_as_likely():
    n, keys = 50, key_of(np.arange(5000))
    counts = np.stack([np.bincount(permuted(np.full(5000, i), n, keys), minlength=n) for i in range(n)])
    chi = ((counts - 100) ** 2 / 100).sum()
    freedom = (n - 1) ** 2
    assert abs(chi - freedom) < 6 * (2 * freedom) ** 0.5


def test_neighbours_are_parted():
    """In a random order of n, 2 neighbours of 2 n stay neighbours on average: 2 in 2000, Poisson."""
    n = 2000
    kept = [np.count_nonzero(np.abs(np.diff(permuted(np.arange(n), n, key_of(9, s)))) == 1) for s in range(20)]
    assert abs(sum(kept) - 40) < 5 * 40**0.5


def test_a_key_for_each_number():
    n, epochs = 37, np.repeat(np.arange(4), 37)
    together = permuted(np.tile(np.arange(n), 4), n, key_of(1, 2, epochs))
    apart = [permuted(np.arange(n), n, key_of(1, 2, e)) for e in range(4)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert len({tuple(p) for p in apart}) == 4


def test_the_order_of_a_key_counts():
    keys = [key_of(0), key_of(1), key_of(0, 0), key_of(0, 1), key_of(1, 0), key_of(2**64 - 1), key_of(-1, 0)]
    assert len({int(k[0]) for k in keys}) == len(keys)


def test_huge_sizes_cost_nothing():
    n = 2**59 + 12345
    x = np.array([0, 1, n - 1, n // 2])
    y = permuted(x, n, key_of(4))
    assert len(set(y.tolist())) == 4
    assert y.tolist() == [by_hand(int(v), n, int(key_of(4)[0])) for v in x]
    assert permuted(np.empty(0, np.int64), 5, key_of(4)).size == 0
