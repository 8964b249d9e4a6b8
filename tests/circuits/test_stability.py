"""Overlaps against sets, stability of scores that are sure and of scores that are noise."""

import numpy as np
import pytest

from tcircuits.circuits.stability import overlaps, stability
from tcircuits.types import InputError


def test_overlaps_are_those_of_sets():
    rng = np.random.default_rng(0)
    masks = np.concatenate([rng.random((4, 9)) < 0.5, np.zeros((2, 9), bool)])
    sets, expected = [set(np.flatnonzero(m)) for m in masks], []
    for i, a in enumerate(sets):
        expected += [len(a & b) / len(a | b) if a | b else 1.0 for b in sets[i + 1 :]]
    np.testing.assert_allclose(overlaps(masks), expected)


def test_sure_scores_are_stable_and_noise_is_not():
    rng = np.random.default_rng(0)
    sure = np.r_[np.full(5, -3.0), np.zeros(95)] + 0.01 * rng.normal(size=(40, 100))
    found = stability(sure, 5, signed=False)
    assert (found.mean, found.low, found.draws) == (1.0, 1.0, 100)
    assert stability(sure, 5).mean < 1  # by sign, the least negative are noise
    noise = stability(rng.normal(size=(40, 100)), 10)
    # two resamples share the prompts' own noise: far above chance (10 / 190), far below the bar
    assert noise.chance == pytest.approx(10 / 190)
    assert noise.chance <= noise.low < noise.mean < 0.8
    with pytest.raises(InputError, match="two prompts or more"):
        stability(sure[:1], 5)
    with pytest.raises(InputError, match="a size within"):
        stability(sure, 101)
