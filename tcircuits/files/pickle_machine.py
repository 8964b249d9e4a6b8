"""A machine for pickles that runs nothing of Python's: opcodes build plain values, globals stay names.

Python's own unpickler imports what a file names and calls it, and it allocates what a file declares. This one knows the
opcodes that protocols 2 to 5 write; a global becomes a `Global`, and what calling one or giving it state means is
decided by a `World` (see `pickles`), which knows a short list of names. Long byte strings are not read but remembered
by their place, so that tensors inside a pickle are as lazy as anywhere. Memory is counted as values are made.

Source: the comments of Python's `pickletools`.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tcircuits.files.limits import Budget
from tcircuits.files.storage import Fetch, MalformedError, Storage, part, read_bytes

BLOCK, MAX_NAME, MAX_INT = 1 << 16, 512, 64  # bytes: read at once, of a global's line, of an integer
# Bytes of memory that values take, rounded up: a place on the stack, in a dict or in the memo; objects of each kind.
PLACE, SLOT, NUMBER, TUPLE, LIST, DICT, SET, RECORD = 16, 110, 48, 72, 96, 88, 240, 500


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something in a Python module, and no more than the name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """A byte string, where it lies."""

    storage: Storage

    def read(self, largest: int) -> bytes:
        """Its bytes, up to `largest`.

        Raises:
            MalformedError: it has more.
        """
        if self.storage.size > largest:
            raise MalformedError(f"a byte string of {self.storage.size} bytes stands where up to {largest} are read")
        with self.storage.open() as fetch:
            return read_bytes(fetch, self.storage, 0, self.storage.size)


class World(Protocol):
    """What globals, calls, states and persistent names mean."""

    def find(self, name: Global) -> Any:
        """What a global's name stands for."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The value of a call."""

    def new(self, cls: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A new instance of a class."""

    def build(self, value: Any, state: Any) -> None:
        """Give a value its state."""

    def persistent(self, name: Any) -> Any:
        """What lies outside of the pickle under this name."""


class _Cursor:
    """A place in a storage that moves as bytes are taken."""

    def __init__(self, fetch: Fetch, storage: Storage, at: int) -> None:
        self.fetch, self.storage, self.at = fetch, storage, at
        self.block, self.first = b"", at

    def take(self, n: int) -> bytes:
        start = self.at - self.first
        if start + n > len(self.block):
            size = max(n, min(BLOCK, self.storage.size - self.at))
            self.block, self.first, start = read_bytes(self.fetch, self.storage, self.at, size), self.at, 0
        self.at += n
        return self.block[start : start + n]

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def line(self) -> str:
        data = bytearray()
        while (byte := self.take(1)) != b"\n":
            data += byte
            if len(data) > MAX_NAME:
                raise MalformedError("a global has a name without end")
        return _text(bytes(data))

    def rest(self) -> int:
        return self.storage.size - self.at


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("a text in the pickle is no UTF-8") from None


def run(storage: Storage, start: int, world: World, budget: Budget) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    Raises:
        MalformedError: a damaged pickle, an opcode or a global that no file of tensors needs, or too many values.
    """
    with storage.open() as fetch:
        machine = _Machine(_Cursor(fetch, storage, start), world, budget)
        try:
            while (code := machine.cursor.number(1)) != STOP:
                if code not in OPS:
                    raise MalformedError(f"the pickle has the opcode {bytes([code])!r}, which no file of tensors needs")
                OPS[code](machine)
            return machine.pop(), machine.cursor.at
        except IndexError:
            raise MalformedError("the pickle is damaged: it takes a value from an empty stack") from None


class _Machine:
    """Stack, marks and memo."""

    def __init__(self, cursor: _Cursor, world: World, budget: Budget) -> None:
        self.cursor, self.world, self.budget = cursor, world, budget
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any, cost: int = PLACE) -> None:
        self.budget.spend(cost)
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.budget.spend(LIST)
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marked.pop()
        return values

    def since_mark_as(self, kind: Callable[[list[Any]], Any], cost: int) -> None:
        values = self.since_mark()
        self.push(kind(values), cost + 8 * len(values))

    def put(self, i: int) -> None:
        self.budget.spend(SLOT)
        self.memo[i] = self.stack[-1]

    def get(self, i: int) -> None:
        if i not in self.memo:
            raise MalformedError("the pickle is damaged: it recalls a value that it did not store")
        self.push(self.memo[i])

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise MalformedError(
                f"the pickle adds items to a {type(self.stack[-1]).__name__}, not to a {kind.__name__}"
            )
        return self.stack[-1]

    def pack(self, n: int) -> None:
        values = [self.pop() for _ in range(n)][::-1]
        self.push(tuple(values), TUPLE)

    def text(self, width: int) -> None:
        n = self.cursor.number(width)
        if n > self.cursor.rest():
            raise MalformedError("it is cut off: a text is longer than the file")
        self.budget.spend(6 * n)  # the bytes once, and up to 4 a letter
        self.push(_text(self.cursor.take(n)), TUPLE)

    def raw(self, width: int) -> None:
        n, at = self.cursor.number(width), self.cursor.at
        if n > self.cursor.rest():
            raise MalformedError("it is cut off: a byte string is longer than the file")
        self.push(Raw(part(self.cursor.storage, at, n)), RECORD)
        self.cursor.at += n
        if self.cursor.at - self.cursor.first > len(self.cursor.block):
            self.cursor.block, self.cursor.first = b"", self.cursor.at

    def integer(self, width: int) -> None:
        n = self.cursor.number(width)
        if n > MAX_INT:
            raise MalformedError(f"the pickle has an integer of {n} bytes")
        self.push(int.from_bytes(self.cursor.take(n), "little", signed=True), NUMBER + n)

    def real(self) -> None:
        self.push(struct.unpack(">d", self.cursor.take(8))[0], NUMBER)

    def global_line(self) -> None:
        self.push(self.world.find(Global(self.cursor.line(), self.cursor.line())), SET)

    def global_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise MalformedError("the pickle is damaged: a global's name is no text")
        self.push(self.world.find(Global(module, name)), TUPLE)

    def append(self, values: list[Any]) -> None:
        self.budget.spend(16 * len(values))
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise MalformedError("the pickle is damaged: a dict has a key without value")
        self.budget.spend(SLOT * len(values))
        into = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            into[check_key(key)] = value

    def add_items(self) -> None:
        values = self.since_mark()
        self.budget.spend(SLOT * len(values))
        self.top(set).update(map(check_key, values))

    def frozen_set(self) -> None:
        values = self.since_mark()
        self.push(frozenset(map(check_key, values)), SET + SLOT * len(values))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.push(self.world.call(function, _arguments(arguments)), SET)

    def new(self, *, options: bool) -> None:
        named = self.pop() if options else {}
        arguments, cls = self.pop(), self.pop()
        if type(named) is not dict:
            raise MalformedError("the pickle is damaged: a class is called with no dict of options")
        self.push(self.world.new(cls, _arguments(arguments), named), RECORD)

    def build(self) -> None:
        state = self.pop()
        self.world.build(self.stack[-1], state)

    def frame(self) -> None:
        if self.cursor.number(8) > self.cursor.rest():
            raise MalformedError("it is cut off: a frame of the pickle is longer than the file")

    def protocol(self) -> None:
        if not 2 <= (version := self.cursor.number(1)) <= 5:
            raise MalformedError(f"it is a pickle of protocol {version}; 2 to 5 are read")


def _arguments(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise MalformedError("the pickle is damaged: it calls with something else than a tuple of arguments")
    return value


def check_key(key: Any) -> Any:
    """A key of a dict or item of a set: plain values only, since hashing deep tuples and huge integers is costly.

    Raises:
        MalformedError: it is none.
    """
    for x in key if type(key) is tuple and len(key) <= 8 else (key,):
        small = type(x) is int and -(2**63) <= x < 2**64
        if not small and type(x) not in (str, float, bool, type(None), Global):
            raise MalformedError(f"the pickle has a {type(x).__name__} as key")
    return key


STOP = ord(".")
OPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("0"): lambda m: m.pop() if m.stack else m.since_mark(),
    ord("1"): _Machine.since_mark,
    ord("2"): lambda m: m.push(m.stack[-1]),
    # Constants and numbers.
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.cursor.number(1)),
    ord("M"): lambda m: m.push(m.cursor.number(2), NUMBER),
    ord("J"): lambda m: m.push(struct.unpack("<i", m.cursor.take(4))[0], NUMBER),
    0x8A: lambda m: m.integer(1),
    0x8B: lambda m: m.integer(4),
    ord("G"): _Machine.real,
    # Texts and byte strings; "U" and "T" are Python 2's.
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("U"): lambda m: m.text(1),
    ord("T"): lambda m: m.text(4),
    ord("C"): lambda m: m.raw(1),
    ord("B"): lambda m: m.raw(4),
    0x8E: lambda m: m.raw(8),
    0x96: lambda m: m.raw(8),
    # Containers.
    ord(")"): lambda m: m.pack(0),
    0x85: lambda m: m.pack(1),
    0x86: lambda m: m.pack(2),
    0x87: lambda m: m.pack(3),
    ord("t"): lambda m: m.since_mark_as(tuple, TUPLE),
    ord("]"): lambda m: m.push([], LIST),
    ord("l"): lambda m: m.since_mark_as(list, LIST),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("}"): lambda m: m.push({}, DICT),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    0x8F: lambda m: m.push(set(), SET),
    0x90: _Machine.add_items,
    0x91: _Machine.frozen_set,
    # The memo.
    ord("q"): lambda m: m.put(m.cursor.number(1)),
    ord("r"): lambda m: m.put(m.cursor.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.cursor.number(1)),
    ord("j"): lambda m: m.get(m.cursor.number(4)),
    # What the world decides.
    ord("c"): _Machine.global_line,
    0x93: _Machine.global_stack,
    ord("R"): _Machine.reduce,
    0x81: lambda m: m.new(options=False),
    0x92: lambda m: m.new(options=True),
    ord("b"): _Machine.build,
    ord("Q"): lambda m: m.push(m.world.persistent(m.pop()), RECORD),
}
