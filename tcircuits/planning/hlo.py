"""The text of a compiled XLA module as computations of instructions: what the counter needs of it, and no more.

>>> module = parse('''ENTRY %main (x: f32[2,3]) -> f32[2,3] {
...   %x = f32[2,3]{1,0} parameter(0)
...   ROOT %y = f32[2,3]{1,0} tanh(%x)
... }''')
>>> module.entry.root.opcode, module.entry.root.shapes[0].size
('tanh', 6)
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ITEM = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


@dataclass(frozen=True)
class Shape:
    """One array: dtype, sizes, and whether it lies in the device's main memory (not in a core's own)."""

    dtype: str
    dims: tuple[int, ...]
    main: bool = True

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def n_bytes(self) -> float:
        """Bytes that it takes in main memory."""
        return self.size * item_bytes(self.dtype) if self.main else 0.0


@dataclass(frozen=True)
class Instruction:
    """One line: what it makes (a tuple has several shapes), of which operands, with which attributes (as text)."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    def called(self, name: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return None if found is None else found[1]

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list attribute such as `lhs_contracting_dims={1}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return () if found is None or not found[1] else tuple(int(x) for x in found[1].split(","))


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    lines: Mapping[str, Instruction]
    users: Mapping[str, list[Instruction]] = field(repr=False)

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(line for line in self.lines.values() if line.root)

    def parameter(self, number: int) -> Instruction | None:
        """The parameter of that number."""
        lines = (x for x in self.lines.values() if x.opcode == "parameter" and x.inside == str(number))
        return next(lines, None)


@dataclass(frozen=True)
class Module:
    """All computations, and the one that runs."""

    computations: Mapping[str, Computation]
    entry: Computation


def item_bytes(dtype: str) -> float:
    """Bytes of one number."""
    if dtype in ITEM:
        return ITEM[dtype]
    width = re.search(r"\d+", dtype)
    return 1 if width is None else int(width[0]) / 8


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(d.replace("<=", "")) for d in dims.split(",") if d)
        found.append(Shape(dtype, sizes, not re.search(r"S\([1-9]", layout)))
    return tuple(found)


def _balanced(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text) - 1


def _instruction(line: str, head: re.Match[str]) -> Instruction | None:
    rest = line[head.end() :]
    end = _balanced(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opening = rest.find("(", end + 1)
    if end < 0 or opening < 0:
        return None
    close = _balanced(rest, opening)
    inside = rest[opening + 1 : close]
    return Instruction(
        name=head[2],
        opcode=rest[end:opening].strip(),
        shapes=_shapes(rest[:end]),
        operands=tuple(_NAME.findall(inside)),
        inside=inside,
        attributes=rest[close + 1 :],
        root=head[1] is not None,
    )


def parse(text: str) -> Module:
    """Read a module as `compiled.as_text()` writes it."""
    computations: dict[str, Computation] = {}
    entry, name, lines = "", None, {}
    for line in text.splitlines():
        opening = _HEAD.match(line)
        if opening:
            name, lines = opening[2], {}
            entry = name if opening[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name] = _computation(name, lines)
            name = None
        elif name is not None and (head := _LINE.match(line)):
            made = _instruction(line, head)
            if made is not None:
                lines[made.name] = made
    return Module(computations, computations[entry])


def _computation(name: str, lines: dict[str, Instruction]) -> Computation:
    users: dict[str, list[Instruction]] = {}
    for line in lines.values():
        for operand in dict.fromkeys(line.operands):
            users.setdefault(operand, []).append(line)
    return Computation(name, lines, users)
