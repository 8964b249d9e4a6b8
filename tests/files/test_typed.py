"""JSON from strangers as dataclasses: what fits is built, everything that does not is named at once."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import built, checked
from tcircuits.types import InputError


@dataclass(frozen=True)
class Part:
    kind: Literal["a", "b", 3]
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    n: int
    name: str
    parts: tuple[Part, ...]
    flag: bool = False
    layers: tuple[tuple[int, ...], ...] = ()
    scale: float | None = None
    about: dict[str, Any] | None = None
    nothing: None = None
    any: Any = 0

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n={self.n} is negative")
        if self.n == 13:
            raise InputError("13 is no good number")


GOOD = {"n": 2, "name": "x", "parts": [{"kind": "a"}, {"kind": 3, "share": 1}]}


def test_what_fits_is_built():
    assert built(Whole, GOOD) == Whole(2, "x", (Part("a"), Part(3, 1)))
    more = {"flag": True, "layers": [[0, 1], []], "scale": 2, "about": {"k": [1]}, "nothing": None, "any": [None]}
    found = built(Whole, GOOD | more)
    assert (found.flag, found.layers, found.scale, found.about, found.any) == (
        True,
        ((0, 1), ()),
        2,
        {"k": [1]},
        [None],
    )
    assert checked({"a": 1}, {"a": int, "b": str}, frozenset({"b"})) == {"a": 1}


BAD = {
    "no object": ([], "a JSON list of 0 is no object"),
    "missing": ({"n": 1, "parts": []}, "name is missing"),
    "unknown": (GOOD | {"extra": 1}, "'extra' is unknown"),
    "truth for a number": (GOOD | {"n": True}, "n: true is no whole number"),
    "fraction": (GOOD | {"n": 1.0}, "n: 1.0 is no whole number"),
    "endless": (GOOD | {"n": 2**63}, "no whole number of up to 53 bits"),
    "not finite": (GOOD | {"scale": float("inf")}, "scale: Infinity is no finite number"),
    "number for a text": (GOOD | {"name": 3}, "name: 3 is no text"),
    "text for a list": (GOOD | {"parts": "ab"}, 'parts: "ab" is no list'),
    "list for a truth": (GOOD | {"flag": []}, "flag: a JSON list of 0 is no truth value"),
    "list for an object": (GOOD | {"about": [1]}, "about: a JSON list of 1 is no object"),
    "something for nothing": (GOOD | {"nothing": 0}, "nothing: 0 is no null"),
    "inner list": (GOOD | {"layers": [1]}, "layers: 1 is no list"),
    "inner part": (GOOD | {"parts": [{"kind": "c"}]}, 'parts: kind: "c" is none of a, b, 3'),
    "other type of the same value": (GOOD | {"parts": [{"kind": 3.0}]}, "kind: 3.0 is none of"),
    "its own check": (GOOD | {"n": -1}, "n=-1 is negative"),
    "its own error": (GOOD | {"n": 13}, "13 is no good number"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    given, message = BAD[name]
    with pytest.raises(MalformedError) as error:
        built(Whole, given)
    assert message in str(error.value)


def test_all_problems_are_named_and_messages_stay_short():
    with pytest.raises(MalformedError) as error:
        built(Whole, {"n": "a" * 10_000, "name": 1, "b" * 10_000: 0})
    told = str(error.value)
    assert all(part in told for part in ("n: ", "name: 1", "parts is missing", "is unknown"))
    assert len(told) < 400
    with pytest.raises(MalformedError, match="; and 92 more") as error:
        checked({str(i): 0 for i in range(100)}, {})
    assert len(str(error.value)) < 400
