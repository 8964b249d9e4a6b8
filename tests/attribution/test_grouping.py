"""Which targets are swept together: every one once, within what bounds them, and never dearer than layer by layer."""

from dataclasses import replace

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.grouping import CPU_LANES, LANES, Work, arrange, lanes_to_try, layer_lanes, width

from . import compare

WORK = Work(weights=442368, mixed=576, read=18432, numbers=576, made=0)
"""SmolLM2's shape with 32 features at a position, patterns kept."""


def cost(groups, layer, reach, T, platform):
    """By the definition: lanes and what is looked up once, at every layer below and position up to the last source."""
    total = 0.0
    for row in groups.members:
        mine = row[row >= 0]
        n = int(width(reach[mine].max() + 1, T))
        lane = n * (442368 + n / 2 * 576 + 18432)
        total += layer[mine].max() * (len(row) * lane + max(n * 18432 * {"cpu": 600, "gpu": 60}[platform], 2 * lane))
    return total


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("T", [5, 64, 700, 8192])
@pytest.mark.parametrize("multiple", [1, 3])
def test_every_target_is_swept_once_and_far_enough(platform, T, multiple):
    rng, L = np.random.default_rng(T), 7
    layer, reach = rng.integers(1, L + 1, 300), rng.integers(0, T, 300)
    g = arrange(layer, reach, T, WORK, platform, multiple=multiple)
    assert np.array_equal(np.sort(g.members[g.members >= 0]), np.arange(300))
    assert g.members.shape[1] % multiple == 0
    for row, top, n_pos in zip(g.members, g.layer, g.n_pos, strict=True):
        mine = row[row >= 0]
        assert len(mine)
        assert (row[len(mine) :] == -1).all()
        assert layer[mine].max() == top
        assert reach[mine].max() < n_pos <= T
    assert g.cost == pytest.approx(cost(g, layer, reach, T, platform), rel=1e-12)
    separate = arrange(layer, reach, T, WORK, platform, multiple=multiple, by_layer=True)
    assert all(len(np.unique(layer[row[row >= 0]])) == 1 for row in separate.members)
    assert g.cost <= separate.cost


def test_few_targets_of_many_layers_are_swept_together():
    layer = np.repeat(np.arange(1, 31), 2)
    last = np.full(60, 8191)
    long = replace(WORK, made=9)  # patterns computed where they are used
    g = arrange(layer, last, 8192, long, "cpu")
    assert (g.members.shape, g.layer.tolist()) == ((2, 32), [30, 14])
    assert arrange(layer, last, 8192, long, "cpu", lanes=16).members.shape == (4, 16)


def test_many_targets_of_each_layer_keep_to_it():
    layer = np.repeat(np.arange(1, 13), 256)
    g = arrange(layer, np.full(len(layer), 63), 64, WORK, "gpu")
    assert g.members.shape == (12, LANES)
    assert all(len(set(layer[row])) == 1 for row in g.members)


def test_lanes_feed_the_machine_and_fit():
    every = np.full(30, 10**6)
    assert layer_lanes("gpu", every, 64, 576) == LANES
    assert layer_lanes("cpu", every, 64, 576) == CPU_LANES[1]
    assert layer_lanes("gpu", every, 8192, 576) == layer_lanes("cpu", every, 8192, 576) == 64
    assert lanes_to_try("gpu", 8192, 576).tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert lanes_to_try("gpu", 16, 576).tolist() == [64, 128, 256]
    assert lanes_to_try("cpu", 64, 576).tolist() == [16, 24, 40, 80, 160]


@pytest.mark.parametrize(("family", "name"), [("llama", "plt-jumprelu"), ("neox", "neurons"), ("gemma2", "clt-skip")])
@pytest.mark.parametrize("chunk", [4, 32])
def test_rows_do_not_depend_on_what_is_swept_with_them(family, name, chunk, x64):
    """Targets of several layers enter one sweep; each row is that of the oracle's graph."""
    both = compare.oracle(family, name)
    m, d = compare.bridge.both(both.case)
    targets = compare.bridge.specs(both.targets)
    whole = tc.attribute(m, d, both.case.tokens, targets=targets, position_zero="nodes", chunk=128)
    some = tc.attribute(m, d, both.case.tokens, targets=targets, position_zero="nodes", max_features=30, chunk=chunk)
    assert some.n_features == 30
    assert len(np.unique(some.features[:, 0])) > 1
    place = {tuple(f): i for i, f in enumerate(whole.features.tolist())}
    mine = [place[tuple(f)] for f in some.features.tolist()]
    others, targets = np.split(np.arange(whole.n_features, whole.n_nodes), [-len(whole.targets)])
    wanted = whole.dense()[np.ix_([*mine, *targets], [*mine, *others])]
    found = some.dense()[some.row_nodes, : some.n_sources]
    np.testing.assert_allclose(found, wanted, atol=1e-11 * np.abs(wanted).max())
    bias = whole.row_bias[[*mine, *(targets - len(others))]]
    np.testing.assert_allclose(some.row_bias, bias, atol=1e-11 * np.abs(whole.row_bias).max())
