"""Filters of paths against brute force, and what is refused."""

import itertools
import operator

import jax
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.paths.filters import Condition, parse_filters, parse_nodes

from .. import bridge
from ..reference import builders
from .path_oracle import FEATURE, HEAD, of_graph
from .test_paths import everything, found, same_values, small

CASE = ("gpt2", "plt-skip")
OPS = {"=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
KINDS = ("feature", "head", "embed", "root")


def holds(node, text):
    """Whether a node (kind, layer, position, index) satisfies conditions, read from their text anew."""
    kind, layer, pos, index = node
    fields = {"layer": layer, "position": pos, "kind": kind}
    fields |= {"head": index} if kind == HEAD else {"feature": index} if kind == FEATURE else {}
    for part in (p for p in text.replace("*", "").split(",") if p):
        sign = max((s for s in OPS if s in part), key=len)
        field, value = part.split(sign)
        value = KINDS.index(value) if field == "kind" else int(value)
        value = value % 3 if field == "position" else value
        if not OPS[sign](fields[field], value) if field in fields else sign != "!=":
            return False
    return True


def contains(path, pattern, suffix=False):
    steps = pattern.split(" <- ")
    starts = [len(path) - len(steps)] if suffix else range(len(path) - len(steps) + 1)
    return any(i >= 0 and all(holds(n, s) for n, s in zip(path[i:], steps, strict=False)) for i in starts)


def brute(paths, filters="*", infix=(), not_infix=(), suffix=()):
    return {
        p: v
        for p, v in paths.items()
        if all(holds(n, filters) for n in p[1:])
        and all(contains(p, x) for x in infix)
        and not any(contains(p, x) for x in not_infix)
        and all(contains(p, x, suffix=True) for x in suffix)
    }


TABLE = {
    "one condition": {"filters": "kind=head"},
    "two conditions": {"filters": "layer<1,kind!=embed"},
    "a field that others lack": {"filters": "head!=1"},
    "positions from the end": {"filters": "position>=-2"},
    "numbers of features": {"filters": "feature<4"},
    "an infix": {"infix": ["kind=head <- kind=feature"]},
    "an infix at the root": {"infix": ["kind=root <- kind=head,layer=1"]},
    "a repeated step": {"infix": ["kind=head <- kind=head <- kind=embed"]},
    "no infix": {"not_infix": ["kind=head,layer=0"]},
    "no long infix keeps what is shorter": {"not_infix": ["kind=head <- * <- kind=embed"]},
    "a suffix": {"suffix": ["head=1 <- kind=embed"]},
    "everything at once": {
        "filters": "layer<=1",
        "infix": ["layer=1", "kind=head,position=2"],
        "not_infix": ["kind=feature <- kind=embed"],
        "suffix": ["position=2"],
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_all_paths_that_a_filter_wants_and_no_other(name):
    case, _ = small(*CASE)
    paths = {p: v for p, v in everything(*CASE).items() if len(p) <= 5}
    expected = brute(paths, **TABLE[name])
    assert 0 < len(expected) < len(paths)
    graph = found(case, tc.Difference(3, 5), iterations=4, branches=None, **TABLE[name])
    same_values(of_graph(graph), expected, graph.size[0])
    assert graph.gap.max() <= 1e-13, "what the filters leave out is pruned remainder"


def test_filters_act_before_the_best_are_chosen():
    """One path a level: a search that chose first and filtered then would lose it."""
    case, _ = small(*CASE)
    paths = {p: v for p, v in everything(*CASE).items() if len(p) == 2}
    expected = brute(paths, "kind=head,layer=0,position=0")
    best = max(expected, key=lambda p: abs(expected[p]))
    assert sorted(abs(v) for v in paths.values())[-5] > abs(expected[best])
    options = {"iterations": 1, "branches": 1}
    graph = found(case, tc.Difference(3, 5), filters="kind=head,layer=0,position=0", **options)
    same_values(of_graph(graph), {best: expected[best]}, graph.size[0])


def test_a_narrow_beam_keeps_paths_that_can_still_satisfy_a_pattern():
    case, _ = small(*CASE)
    pattern = "kind=head,layer=0,position=1,head=0 <- kind=embed"
    plain = found(case, tc.Difference(3, 5), iterations=3, branches=1)
    assert not any(contains(p, pattern, suffix=True) for p in of_graph(plain))
    graph = found(case, tc.Difference(3, 5), iterations=3, branches=1, suffix=pattern)
    assert graph.n_paths > 0
    assert all(contains(p, pattern, suffix=True) for p in of_graph(graph))
    assert not graph.listed[1:].all(), "beginnings stay, as they are on the way to what is listed"
    assert graph.gap.max() <= 1e-13


def random_pattern(rng):
    step = ["*", "kind=head", "kind=feature", "layer=0", "layer=1", "position=2", "kind!=embed", "head=0", "feature>3"]
    return " <- ".join(rng.choice(step, rng.integers(1, 4)))


def test_random_patterns_match_like_a_search_with_backtracking():
    """The one pass through a path finds what trying every start finds."""
    case, _ = small(*CASE)
    paths = {p: v for p, v in everything(*CASE).items() if len(p) <= 5}
    rng, tried = np.random.default_rng(0), 0
    for _ in range(12):
        given = {"infix": [random_pattern(rng)], "not_infix": [random_pattern(rng)], "suffix": [random_pattern(rng)]}
        expected = brute(paths, **given)
        if expected:
            graph = found(case, tc.Difference(3, 5), iterations=4, branches=None, **given)
            same_values(of_graph(graph), expected, graph.size[0])
            tried += 1
    assert tried > 3


def test_conditions_are_texts_or_objects():
    assert parse_nodes("layer<8,head!=3", 4) == (Condition("layer", "LT", 8), Condition("head", "NE", 3))
    assert parse_nodes([Condition("position", "EQ", -1), "kind=head"], 4) == (
        Condition("position", "EQ", 3),
        Condition("kind", "EQ", HEAD),
    )
    assert parse_nodes("*", 4) == ()
    for op, sign in itertools.product(("EQ", "NE", "GT", "GE", "LT", "LE"), ("layer", "head", "feature")):
        assert parse_nodes(Condition(sign, op, 2), 4) == (Condition(sign, op, 2),)
    given = parse_filters((), "head=1 <- kind=embed", ["layer=0", "layer=1"], (), 4)
    assert [len(p) for _, p in given.patterns] == [2, 1, 1]


REFUSED = [
    ({"filters": "layer"}, r"condition 'layer': write FIELD OP VALUE"),
    ({"filters": "depth=3"}, r"fields are layer, position, kind, head, feature"),
    ({"filters": "kind>head"}, r"kind GT head: kinds are feature, head, embed, root, with = or !="),
    ({"filters": "layer=two"}, r"layer EQ two: give a whole number"),
    ({"filters": "layer=-1"}, r"layer EQ -1: numbers start at 0"),
    ({"filters": "position=6"}, r"position EQ 6: the prompt has positions -6\.\.5"),
    ({"filters": "layer=3"}, r"layer=3 does not exist: there are 0\.\.2"),
    ({"filters": "head=4"}, r"head=4 does not exist: there are 0\.\.3"),
    ({"filters": "feature=24"}, r"feature=24 does not exist: there are 0\.\.23"),
    ({"infix": "head=9"}, r"head=9 does not exist"),
    ({"infix": [[]]}, r"a pattern of a path has no step"),
    ({"filters": 3}, r"filter 3: give a text or Conditions"),
    ({"filters": "kind=feature,layer=0"}, r"no path goes through features of layer 0: 'case' has no dictionary there"),
    ({"suffix": "layer=2,feature<4"}, r"no path goes through features of layer 2"),
    ({"target": tc.Feature(0, 1, 2)}, r"features of layer 0: 'case' has no dictionary there \(it has layers 1\)"),
    ({"target": tc.Feature(1, 1, 24)}, r"feature 24 of layer 1 does not exist: there are 0\.\.23"),
    ({"target": [1, 2]}, r"2 targets; paths lead to one"),
    ({"target": 99}, r"target token id 99 is outside the vocabulary"),
    ({"iterations": 0}, r"iterations=0, branches=15: give at least 1"),
    ({"branches": 0}, r"branches=0: give at least 1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_before_anything_is_run(options, message, monkeypatch):
    from tcircuits.attribution.paths import find

    case = builders.make_case("gpt2", "some-layers")
    monkeypatch.setattr(find, "_freeze", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(tc.InputError, match=message):
        tc.find_paths(*bridge.both(case, "float32"), case.tokens, **options)


def test_refused_where_a_filter_matches_nothing_on_the_prompt():
    case, _ = small(*CASE)
    m, d = bridge.both(case, "float32")
    inactive = min(set(range(8)) - {i for p in everything(*CASE) for k, _, _, i in p if k == FEATURE}, default=None)
    refusals = [
        ({"filters": "layer>5"}, r"no node of this prompt matches the filter layer>5"),
        ({"infix": "kind=head <- kind=feature,feature>7"}, r"matches kind=feature,feature>7, a step of a pattern"),
        ({"infix": "kind=head <- kind=root"}, r"matches kind=root, a step of a pattern"),
        ({"infix": "kind=embed <- kind=head"}, r"no path is as the filters want it"),
        ({"filters": "kind=feature", "suffix": "kind=embed"}, r"no path is as the filters want it"),
    ]
    refusals += [({"filters": f"feature={inactive}"}, "no node of this prompt")] if inactive is not None else []
    for options, message in refusals:
        with pytest.raises(tc.InputError, match=message):
            tc.find_paths(m, d, case.tokens, target=tc.Difference(3, 5), **options)


def test_more_paths_than_memory_holds(monkeypatch):
    from tcircuits.attribution.paths import find

    case, _ = small(*CASE)
    monkeypatch.setattr(find, "free_gb", lambda: 1e-6)
    with jax.enable_x64(False), pytest.raises(tc.InputError, match=r"256 paths a level .* give fewer branches"):
        tc.find_paths(*bridge.both(case, "float32"), case.tokens, branches=None)
