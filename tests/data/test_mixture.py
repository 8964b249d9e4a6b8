"""A mixture uses every source's rows in order, each once, in the proportions asked for."""

import numpy as np
import pytest

from tcircuits.data.mixture import BLOCK, Mixture
from tcircuits.data.rows import Rows, local_rows
from tcircuits.data.writing import write_tokens
from tcircuits.types import InputError


@pytest.fixture
def sources(tmp_path):
    """Three files; the ids of the second begin at 1000, those of the third at 2000."""
    files = [
        write_tokens(tmp_path / f"{i}.tokens", [1000 * i + np.arange(1, 900)], vocab_size=3000, bos_id=0)
        for i in range(3)
    ]
    return tuple(Rows(f, 9, seed=i) for i, f in enumerate(files))


def test_proportions_and_order(sources):
    mixed = Mixture(sources, (5, 2, 1))
    n = 3 * BLOCK
    got = mixed.rows(0, n)
    owner = got[:, 1] // 1000
    counts = [3 * BLOCK * w // 8 for w in (5, 2, 1)]
    assert np.bincount(owner).tolist() == counts
    for i, rows in enumerate(sources):
        for block in range(3):
            share = counts[i] // 3
            want = rows.rows(block * share, share)
            part = got[block * BLOCK : (block + 1) * BLOCK]
            assert sorted(map(tuple, part[part[:, 1] // 1000 == i])) == sorted(map(tuple, want))
    # In windows far shorter than a block the shares are those of independent draws, or nearer.
    windows = (owner == 0).reshape(-1, 64).sum(1)
    assert abs(windows.mean() - 40) < 1e-9
    assert windows.std() < 1.3 * (64 * 5 / 8 * 3 / 8) ** 0.5


def test_rows_do_not_depend_on_who_reads_them(sources):
    mixed = Mixture(sources, (0.5, 0.3, 0.2), seed=3)
    first = BLOCK - 20
    whole = mixed.rows(first, 40)
    np.testing.assert_array_equal(np.concatenate([mixed.rows(first + k, 8) for k in range(0, 40, 8)]), whole)
    np.testing.assert_array_equal(np.concatenate([local_rows(mixed, first, 40, i, 4) for i in range(4)]), whole)
    numbers = np.array([17, 3, 39, 3])
    np.testing.assert_array_equal(mixed.take(first + numbers), whole[numbers])
    assert mixed.rows(0, 0).shape == (0, 9)


def test_mixtures_of_mixtures(sources):
    inner = Mixture(sources[:2], (1, 1))
    outer = Mixture((inner, sources[2]), (3, 1))
    owner = outer.rows(0, BLOCK)[:, 1] // 1000
    assert np.bincount(owner).tolist()[2] == BLOCK // 4
    assert (outer.context, outer.vocab_size, outer.first_token) == (9, 3000, 0)


def test_a_single_source_is_itself_in_another_order(sources):
    mixed = Mixture(sources[:1], (1,)).rows(0, BLOCK)
    assert sorted(map(tuple, mixed)) == sorted(map(tuple, sources[0].rows(0, BLOCK)))


def test_seeds_and_descriptions(sources):
    a, b = Mixture(sources, (1, 1, 1)), Mixture(sources, (1, 1, 1), seed=1)
    assert (a.rows(0, 64) != b.rows(0, 64)).any()
    told = [m.describe() for m in (a, b, Mixture(sources, (1, 1, 2)), Mixture(sources[:2], (1, 1)))]
    assert all(x != y for i, x in enumerate(told) for y in told[:i])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 1), "3 sources with 2 weights"),
        ((1, 1, 0), "give positive numbers"),
        ((1, 1, -1), "give positive numbers"),
        ((1, 1, float("inf")), "give positive numbers"),
        ((1, 1, float("nan")), "give positive numbers"),
        ((1, 1, 1e-5), "the smallest is below 1/4096"),
    ],
)
def test_weights_that_cannot_be(sources, weights, message):
    with pytest.raises(InputError, match=message):
        Mixture(sources, weights)


def test_sources_that_do_not_fit(sources, tmp_path):
    other = write_tokens(tmp_path / "o.tokens", [np.arange(99)], vocab_size=100)
    for rows, message in [
        (Rows(sources[0].tokens, 10), "the sources differ in context: 9, 10"),
        (Rows(sources[0].tokens, 9, bos="none"), "differ in first_token: 0, None"),
        (Rows(other, 9), "differ in vocab_size: 3000, 100"),
    ]:
        with pytest.raises(InputError, match=message):
            Mixture((sources[0], rows), (1, 1))
    with pytest.raises(InputError, match="0 sources"):
        Mixture((), ())
    with pytest.raises(InputError, match="numbers run from 0"):
        Mixture(sources, (1, 1, 1)).rows(-1, 4)
