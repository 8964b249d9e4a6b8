"""Measures of how a circuit reads, against counts by hand and the figures that HAGD's authors publish."""

import numpy as np
import pytest

from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.interpretability import readability
from tcircuits.circuits.units import Units
from tcircuits.types import InputError

N = 24_576  # features of four layers of GPT-2 small


def star() -> BehaviourGraph:
    """Nine features that write to a tenth, weights 1 to 9, and one feature outside that writes to all."""
    source, target = np.r_[np.arange(9), np.full(10, 10)], np.r_[np.full(9, 9), np.arange(10)]
    nodes = np.stack([np.full(11, 2), np.zeros(11), np.arange(11), np.full(11, -1)], 1).astype(int)
    weight, ones = np.r_[np.arange(1.0, 10), np.full(10, 100.0)], np.ones(19)
    unit, none = np.arange(11), np.zeros(11)
    units = Units(("feature",), 4, 12, (0, 1, 2, 3), N // 4)
    return BehaviourGraph(nodes, source, target, weight, weight, ones, none, none, unit, none, units)


def mask_of(n: int) -> np.ndarray:
    return np.arange(N) < n


def test_the_published_circuit():
    # ten nodes, nine edges, all in one module: .00041, 1.000, 408.4 bits (their table of the modular task)
    found = readability(mask_of(10), star(), np.zeros(11, int), np.ones((3, 10)))
    assert (found.units, found.edges, found.modularity) == (10, 9, 1.0)
    assert round(found.compression, 5) == 0.00041
    assert round(found.bits, 1) == 408.4


def test_modules_share_the_weight_of_the_circuits_own_edges():
    modules = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0])  # the hub with features 6, 7, 8: weights 7, 8, 9 of 45
    assert readability(mask_of(10), star(), modules, np.ones((1, 10))).modularity == pytest.approx(24 / 45)


def test_purity_counts_only_what_fires():
    always, never = np.array([2.0, 2.0, 2.0, 2.0]), np.zeros(4)
    half, wild = np.array([1.0, 3.0, 0.0, 0.0]), np.array([0.1, 0.1, 0.1, 100.0])  # sd / mean: 1/2, above 1

    def purity(*columns):
        return readability(mask_of(10), star(), np.zeros(11, int), np.stack(columns, 1)).purity

    assert purity(always, never) == 1.0
    assert purity(half) == pytest.approx(0.5)
    assert purity(always, half, wild) == pytest.approx((1 + 0.5 + 0) / 3)
    assert purity(never) is None


def test_a_circuit_without_edges_and_wrong_sizes():
    found = readability(mask_of(1), star(), np.zeros(11, int), np.ones((1, 1)))
    assert (found.edges, found.modularity) == (0, None)
    with pytest.raises(InputError, match="11 nodes"):
        readability(mask_of(2)[:7], star(), np.zeros(11, int), np.ones((1, 1)))
