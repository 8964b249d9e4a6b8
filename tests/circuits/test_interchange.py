"""Interchange: the planted head alone moves the answer; expectations of a causal model; bad input."""

from dataclasses import replace

import numpy as np
import pytest

from tcircuits.circuits.interchange import choices, interchange
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_answer_follows_the_planted_head(planted):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    labels = [units.label(u) for u in range(units.n)]
    head = np.array([name == "head 0.1" for name in labels])
    p = behaviour["report"]
    np.testing.assert_array_equal(choices(model, behaviour), p.wrong[:, 0])  # the answer to the other first token
    found = interchange(model, behaviour, units, head, random=30)
    assert (found.accuracy.value, found.kept, found.prompts) == (1.0, 0.0, p.n)
    chosen = (found.random == 1.0).mean()  # random circuits of one head are this head, or the other, which does nothing
    assert 0 < chosen < 1
    assert found.p == pytest.approx((1 + chosen * 30) / 31)
    rest = interchange(model, behaviour, units, ~head, random=2)
    assert (rest.accuracy.value, rest.kept) == (0.0, 1.0)
    told = interchange(model, behaviour, units, head, expected=p.wrong, random=1)
    assert told.accuracy.value == 1.0
    half = np.where(
        np.arange(p.n)[:, None] % 2 == 0, p.right, p.wrong
    )  # where the model's own is expected, none counts
    mixed = interchange(model, behaviour, units, head, expected=half, random=1)
    assert (mixed.prompts, mixed.accuracy.value) == (p.n // 2, 1.0)


def test_what_cannot_be_told_is_refused(planted):
    model, behaviour = planted
    units = units_of(model.cfg, ("head", "mlp"))
    head = np.eye(units.n, dtype=bool)[1]
    with pytest.raises(InputError, match="0 units"):
        interchange(model, behaviour, units, np.zeros(units.n, bool))
    with pytest.raises(InputError, match=r"give ids \[16, answers\]"):
        interchange(model, behaviour, units, head, expected=np.zeros((3, 1), int))
    with pytest.raises(InputError, match="nothing can be told"):
        interchange(model, behaviour, units, head, expected=behaviour["report"].right)
    with pytest.raises(InputError, match="at least 1 random"):
        interchange(model, behaviour, units, head, random=0)
    same = replace(behaviour, splits={k: replace(p, other=p.clean) for k, p in behaviour.splits.items()})
    with pytest.raises(InputError, match="nothing can be told"):
        interchange(model, same, units, head)
