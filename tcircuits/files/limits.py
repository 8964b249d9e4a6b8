"""JSON and YAML from strangers: bounded in size, depth and memory before they are parsed.

A text of a few megabytes can become a hundred times as much memory (`[[],[],[], ...`), so what it would take at most is
estimated from the characters that make values.
"""

import json
import re
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from tcircuits.files.storage import MIB, MalformedError, of_file, read_bytes
from tcircuits.types import InputError

MAX_JSON, MAX_YAML, MAX_YAML_NODES, MAX_DEPTH = 16 * MIB, MIB, 20_000, 64
MEMORY = 40 * MIB  # for values, where nothing else is said
SURROGATE = re.compile("[\ud800-\udfff]")
# Bytes of CPython 3.11 to 3.13 that a value may take which this character begins or ends, rounded up.
COST = {b"{": 280, b"[": 100, b",": 80, b":": 100, b'"': 40}


class Budget:
    """Memory that values from a file may still take."""

    def __init__(self, left: int = MEMORY) -> None:
        self.left = left

    def spend(self, n: int) -> None:
        """Take `n` bytes.

        Raises:
            MalformedError: more than was left.
        """
        self.left -= n
        if self.left < 0:
            raise MalformedError("it holds more values beside its tensors than are read")


def weigh(data: bytes, budget: Budget) -> None:
    """Spend the most memory that the values of a JSON text can take.

    Raises:
        MalformedError: more than the budget has.
    """
    wide = 1 if data.isascii() and b"\\u" not in data else 4  # one rare letter widens all others of its text
    budget.spend(2 * wide * len(data) + sum(cost * data.count(mark) for mark, cost in COST.items()))


def parse_json(data: bytes, budget: Budget, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that a JSON text says; `pairs` makes what stands for an object.

    Raises:
        MalformedError: no JSON in UTF-8, nested too deeply, or larger than the budget.
    """
    weigh(data, budget)
    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except RecursionError:
        raise MalformedError("its JSON is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, an integer of thousands of digits
        raise MalformedError(f"it is no JSON: {error}") from None
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Refuse what would break a reader further on.

    Raises:
        MalformedError: values nested more than `MAX_DEPTH` deep, integers beyond 64 bits, texts that cannot be printed.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(x, int) and not -(2**63) <= x < 2**64 for x in level):
            raise MalformedError("it holds an integer of more than 64 bits")
        keys = (key for x in level if isinstance(x, dict) for key in x)
        if any(isinstance(x, str) and not x.isascii() and SURROGATE.search(x) for x in chain(level, keys)):
            raise MalformedError("it holds half of a surrogate pair, which is no text")
        level = [
            y for x in level if isinstance(x, dict | list | tuple) for y in (x.values() if isinstance(x, dict) else x)
        ]
        if not level:
            return
    raise MalformedError(f"its values are nested more than {MAX_DEPTH} deep")


def _text(path: Path, largest: int) -> bytes:
    storage = of_file(path)
    if storage.size > largest:
        raise MalformedError(f"it has {storage.size} bytes; up to {largest} are read")
    try:
        with storage.open() as fetch:
            return read_bytes(fetch, storage, 0, storage.size)
    except OSError as error:
        raise MalformedError(str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: no such file, no JSON, not an object, or larger than `MAX_JSON`.
    """
    try:
        value = parse_json(_text(path, MAX_JSON), Budget(MEMORY + 3 * path.stat().st_size))
    except (MalformedError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; it must be an object")
    return value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file: plain values only, no aliases, which a few lines can multiply without end.

    Raises:
        InputError: no such file, no YAML of that kind, or larger than `MAX_YAML`.
    """
    try:
        return parse_yaml(_text(path, MAX_YAML))
    except MalformedError as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error


def parse_yaml(data: bytes) -> Any:
    """The value that a YAML text says.

    Raises:
        MalformedError: no YAML in UTF-8, aliases, values that are not plain, too many or too deep ones.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader without aliases."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            """One node.

            Raises:
                MalformedError: it stands for another one.
            """
            if self.check_event(yaml.AliasEvent):
                raise MalformedError("it has an alias (*name); write the value out")
            return super().compose_node(parent, index)

    if sum(map(data.count, (b"\n", b",", b":", b"[", b"{", b"- ", b"? "))) > MAX_YAML_NODES:
        raise MalformedError(f"it has more than {MAX_YAML_NODES} values")
    open_brackets = accumulate(1 if bracket in b"[{" else -1 for bracket in re.findall(rb"[\[\]{}]", data))
    if max(open_brackets, default=0) > MAX_DEPTH:  # the library's time grows with the square of the depth
        raise MalformedError("it is nested too deeply")
    try:
        value = yaml.load(data.decode("utf-8"), Loader)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise MalformedError(" ".join(str(error).split())[:300] or type(error).__name__) from None
    check_plain(value)
    return value
