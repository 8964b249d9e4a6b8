"""Values from JSON of strangers, compared with the types that are wanted; all problems at once.

@dataclass(frozen=True)
class Size:
    rows: int
    names: tuple[str, ...] = ()

built(Size, {"rows": 3, "names": ["a"]})      # Size(rows=3, names=('a',))
built(Size, {"rows": True, "cols": 1})        # MalformedError: cols is unknown; rows is true, no whole number
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tcircuits.files.storage import MalformedError
from tcircuits.types import InputError

T = TypeVar("T")
LARGEST = 2**53  # whole numbers that every JSON reader keeps
SHOWN = 8  # problems that a message names
PLAIN = {str: "text", bool: "truth value", NoneType: "null", dict: "object"}


def checked(given: Any, types: Mapping[str, Any], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The members of a JSON object, each as the value of its type: lists become tuples, objects become dataclasses.

    Args:
        given: what the JSON says.
        types: by name: int, float (finite), bool, str, None, dict, Any, `Literal`, `tuple[X, ...]`, a dataclass, and
            unions of those.
        optional: names that may be missing, and then are missing in the result.

    Raises:
        MalformedError: no object, members that are unknown, missing or of another type.
    """
    if not isinstance(given, dict):
        raise MalformedError(f"{_shown(given)} is no object")
    wrong = [f"{name!r:.60} is unknown" for name in sorted(given.keys() - types.keys())]
    wrong += [f"{name} is missing" for name in sorted(types.keys() - given.keys() - optional)]
    found = {}
    for name in types.keys() & given.keys():
        try:
            found[name] = _value(given[name], types[name])
        except MalformedError as problem:
            wrong.append(f"{name}: {problem}")
    if wrong:
        rest = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise MalformedError("; ".join(sorted(wrong)[:SHOWN]) + rest)
    return found


def built(cls: type[T], given: Any) -> T:
    """A dataclass out of a JSON object; fields that have a default may be missing.

    Raises:
        MalformedError: see `checked`, or what the class itself says of the values.
    """
    known: Any = cls
    hints, named = get_type_hints(cls), [f for f in fields(known) if f.init]
    absent = frozenset(f.name for f in named if f.default is not MISSING or f.default_factory is not MISSING)
    values = checked(given, {f.name: hints[f.name] for f in named}, absent)
    try:
        return cls(**values)
    except (ValueError, InputError) as problem:
        raise MalformedError(f"{problem!s:.400}") from None


def _value(given: Any, kind: Any) -> Any:
    """`given` as a value of the type `kind`."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _one_of(given, get_args(kind))
    if origin is Literal:
        if not any(type(given) is type(x) and given == x for x in get_args(kind)):
            raise MalformedError(f"{_shown(given)} is none of {', '.join(map(str, get_args(kind)))}")
        return given
    if origin is tuple:
        if not isinstance(given, list):
            raise MalformedError(f"{_shown(given)} is no list")
        return tuple(_value(x, get_args(kind)[0]) for x in given)
    if is_dataclass(kind) and isinstance(kind, type):
        return built(kind, given)
    return given if kind is Any else _plain(given, NoneType if kind is None else origin or kind)


def _one_of(given: Any, kinds: tuple[Any, ...]) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _value(given, kind)
        except MalformedError as problem:
            problems.append(str(problem))
    raise MalformedError(problems[0])


def _plain(given: Any, kind: type) -> Any:
    if kind is int:
        if type(given) is not int or not -LARGEST <= given <= LARGEST:
            raise MalformedError(f"{_shown(given)} is no whole number of up to 53 bits")
        return given
    if kind is float:
        if type(given) not in (int, float) or not math.isfinite(given):
            raise MalformedError(f"{_shown(given)} is no finite number")
        return given
    if type(given) is not kind:
        raise MalformedError(f"{_shown(given)} is no {PLAIN[kind]}")
    return given


def _shown(given: Any) -> str:
    """A value for a message."""
    if isinstance(given, dict | list):
        return f"a JSON {type(given).__name__} of {len(given)}"
    return f"{json.dumps(given):.60}"
