"""Reading a published `config.json`: every field is read by name and type, and what is wrong is collected, not raised.

A field is known when something has read it; what nobody reads, and no table calls neutral, is unknown. `null` counts as
absent, as it does for the programs that write these files.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
# No size of a model is larger; loops over a number of layers out of a damaged file must end.
LARGEST, LARGEST_BY_NAME = 2**31 - 1, {"n_layer": 10_000, "num_hidden_layers": 10_000}


class Fields:
    """A JSON object being read. `problems` and `known` grow while its fields are read.

    Fields that are missing or wrong come back as 1, so that reading goes on to the end; nobody uses the result then.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "", problems: list[str] | None = None) -> None:
        self.raw, self.where = raw, where
        self.problems: list[str] = [] if problems is None else problems
        self.known: set[str] = set()
        self.sections: list[tuple[Fields, frozenset[str]]] = []

    def get(self, name: str) -> Any:
        """The field as it is, None where absent; from now on it is known."""
        self.known.add(name)
        return self.raw.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.raw.get(name) is not None

    def wrong(self, name: str, wanted: str) -> None:
        """Note that a field does not hold what is wanted."""
        given = f"{self.raw[name]!r:.200}" if name in self.raw else "absent"
        self.problems.append(f"{self.where}{name} is {given}; it must be {wanted}")

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.get(name)
        value = default if value is None else value
        largest = LARGEST_BY_NAME.get(name, LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            above = isinstance(value, int) and value > largest
            self.wrong(name, f"a whole number of at most {largest}" if above else "a whole number of at least 1")
            return 1
        return value

    def count(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.wrong(name, "a whole number of at least 0")
            return 0
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            self.wrong(name, "a number above zero")
            return 1.0
        return float(value)

    def cap(self, name: str, default: float | None) -> float | None:
        """A number above zero, or None where null stands; only an absent field has the default."""
        self.known.add(name)
        return self.number(name) if self.has(name) else None if name in self.raw else default

    def window(self, name: str, default: int | None) -> int | None:
        """A whole number of at least 1, or None where null stands; only an absent field has the default."""
        self.known.add(name)
        return self.size(name) if self.has(name) else None if name in self.raw else default

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return bool(value)

    def choice(self, name: str, table: Mapping[str, T], default: str) -> T:
        """What `table` has for the field's text."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in table:
            self.wrong(name, "one of " + ", ".join(table))
            return table[default]
        return table[value]

    def only(self, name: str, allowed: tuple[Any, ...]) -> None:
        """A field of which only these values are implemented (null and absent are fine)."""
        value = self.get(name)
        if value is not None and value not in allowed:
            self.wrong(name, " or ".join(map(repr, allowed)) or "null")

    def section(self, name: str, neutral: frozenset[str] = frozenset()) -> "Fields | None":
        """A nested object, of whose fields `neutral` change nothing; None where absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            self.wrong(name, "an object")
            value = None
        if value is None:
            return None
        part = Fields(value, f"{self.where}{name}.", self.problems)
        self.sections.append((part, neutral))
        return part

    def unknown(self, neutral: Iterable[str]) -> list[str]:
        """Fields that nobody has read and that are not neutral, in nested objects too."""
        here = [self.where + name for name in sorted(self.raw.keys() - self.known - set(neutral))]
        return here + [name for part, names in self.sections for name in part.unknown(names)]
