"""What a compiled program does: floating-point operations, bytes, and what goes between devices, loops multiplied out.

XLA's own analysis counts the body of a loop once. Here every loop's body counts as often as it runs: the number that
the compiler noted, or the constant that its condition compares with. Loops that run a number of times which only the
data say (the sweep: a chunk's layer) get it from the caller: the outermost runs `top` times, and one within a loop of
n turns (n + 1) / 2 times on average, as loops over pairs of layers do.

    FLOPs: 2 a multiply-add of products and convolutions, 1 a number that elementwise arithmetic or a reduction takes
    bytes: operands and results of what the compiler left as one kernel, slices only where slices are read
    moved: all-reduce twice its operand, all others once their larger side; the (n - 1) / n of a ring is left out
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tcircuits.planning.hlo import Computation, Instruction, Module, Shape

ARITHMETIC = {
    *("abs", "add", "subtract", "multiply", "divide", "remainder", "power", "maximum", "minimum", "negate", "sign"),
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "sqrt", "rsqrt", "cbrt", "erf"),
    *("tanh", "tan", "sine", "cosine", "atan2", "floor", "ceil", "round-nearest-afz", "round-nearest-even"),
}
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain", "async-start", "async-update"),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Cost:
    """Work of one device: FLOPs, bytes of its main memory, and by collective how many run and the bytes they move."""

    flops: float = 0.0
    n_bytes: float = 0.0
    runs: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Cost") -> "Cost":
        runs, moved = Counter(self.runs), Counter(self.moved)
        runs.update(other.runs)
        moved.update(other.moved)
        return Cost(self.flops + other.flops, self.n_bytes + other.n_bytes, runs, moved)

    def times(self, n: float) -> "Cost":
        """The same n times."""
        return Cost(
            self.flops * n,
            self.n_bytes * n,
            Counter({k: v * n for k, v in self.runs.items()}),
            Counter({k: v * n for k, v in self.moved.items()}),
        )

    @property
    def moved_bytes(self) -> float:
        """Bytes that all collectives move from each device."""
        return float(sum(self.moved.values()))


def cost(module: Module, top: float = 1.0) -> Cost:
    """Work of one run of a module; `top` is how often the outermost loop of unknown length turns."""
    return _Counting(module, top).computation(module.entry.name, 1.0, fused=False)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a loop turns, None where only data say it."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition = module.computations[loop.called("condition") or ""]
    test = condition.root
    while test.opcode in ("copy", "bitcast", "convert"):
        test = condition.lines[test.operands[0]]
    if test.opcode not in ("compare", "fusion"):
        return None
    sides = [condition.lines[name] for name in test.operands if name in condition.lines]
    bounds = [int(s.inside) for s in sides if s.opcode == "constant" and re.fullmatch(r"-?\d+", s.inside)]
    if len(bounds) != 1 and test.opcode == "fusion":
        inner = module.computations[test.called("calls") or ""]
        bounds = [int(x.inside) for x in inner.lines.values() if x.opcode == "constant" and x.inside.isdecimal()]
    return bounds[0] if len(bounds) == 1 else None


class _Counting:
    """One walk over a module; every computation is counted once for each number of turns around it."""

    def __init__(self, module: Module, top: float) -> None:
        self.module, self.top = module, top
        self.known: dict[tuple[str, float, bool], Cost] = {}

    def computation(self, name: str, around: float, fused: bool) -> Cost:
        """Work of one run; `around` is the longest loop that it stands in. Inside a kernel nothing counts as bytes."""
        key = (name, around, fused)
        if key not in self.known:
            body = self.module.computations[name]
            total = Cost()
            for line in body.lines.values():
                total = total + self.instruction(body, line, around, fused)
            self.known[key] = total
        return self.known[key]

    def instruction(self, body: Computation, line: Instruction, around: float, fused: bool) -> Cost:
        """Work of one instruction, with all that it calls."""
        match line.opcode:
            case "while":
                return self.loop(line, around, fused)
            case "conditional":
                return self.branches(line, around, fused)
            case "call" | "async-start":
                target = line.called("to_apply") or line.called("calls")
                return Cost() if target is None else self.computation(target, around, fused)
            case "fusion":
                inner = self.computation(line.called("calls") or "", around, True)
                return inner if fused else inner + Cost(n_bytes=self.fusion_bytes(body, line))
        n_bytes = 0.0 if fused else _bytes(body, line)
        kind = next((k for k in COLLECTIVES if line.opcode in (k, k + "-start")), None)
        if kind is None:
            return Cost(_flops(body, line), n_bytes)
        return Cost(0.0, n_bytes, Counter({kind: 1}), Counter({kind: _moved(body, line, kind)}))

    def loop(self, line: Instruction, around: float, fused: bool) -> Cost:
        """The body as often as the loop turns."""
        turns: float | None = trip_count(self.module, line)
        if turns is None:
            turns = (around + 1) / 2 if around > 1 else self.top
        inside = max(around, turns)
        body = self.computation(line.called("body") or "", inside, fused)
        return (body + self.computation(line.called("condition") or "", inside, fused)).times(turns)

    def branches(self, line: Instruction, around: float, fused: bool) -> Cost:
        """The most expensive branch."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", line.attributes)
        names = re.findall(r"%?([\w.\-]+)", listed[1]) if listed else []
        names += [n for n in map(line.called, ("true_computation", "false_computation")) if n]
        return max((self.computation(n, around, fused) for n in names), key=lambda c: c.flops, default=Cost())

    def fusion_bytes(self, body: Computation, line: Instruction) -> float:
        """Results written, and of each operand what the kernel reads of it."""
        inner = self.module.computations[line.called("calls") or ""]
        root = inner.root
        while root.opcode in ("bitcast", "copy", "convert") and root.operands[0] in inner.lines:
            root = inner.lines[root.operands[0]]
        updates = root.opcode == "dynamic-update-slice"
        written = _shape(inner, root.operands[1]).n_bytes if updates else sum(s.n_bytes for s in line.shapes)
        read = sum(self.read(inner, i, _shapes(body, name)) for i, name in enumerate(line.operands))
        return written + read

    def read(self, inner: Computation, number: int, whole: tuple[Shape, ...]) -> float:
        """Bytes that a kernel reads of its operand: all of it, unless it only takes slices."""
        everything = sum(s.n_bytes for s in whole)
        parameter = inner.parameter(number)
        if parameter is None or not everything:
            return float(everything)
        return min(float(everything), self.used(inner, parameter.name, everything))

    def used(self, inner: Computation, name: str, everything: float) -> float:
        """Bytes that the users of a value take."""
        total = 0.0
        for user in inner.users.get(name, []):
            if user.opcode in SLICES and user.operands[0] == name:
                total += sum(math.prod(s.dims) * _item(s) for s in user.shapes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.opcode == "bitcast":
                total += self.used(inner, user.name, everything)
            elif user.opcode == "fusion":
                deeper = self.module.computations[user.called("calls") or ""]
                parameter = deeper.parameter(user.operands.index(name))
                total += everything if parameter is None else self.used(deeper, parameter.name, everything)
            else:
                return everything
        return total


def _item(shape: Shape) -> float:
    return Shape(shape.dtype, (1,)).n_bytes


def _shapes(body: Computation, name: str) -> tuple[Shape, ...]:
    return body.lines[name].shapes if name in body.lines else ()


def _shape(body: Computation, name: str) -> Shape:
    return next(iter(_shapes(body, name)), Shape("f32", (0,)))


def _flops(body: Computation, line: Instruction) -> float:
    out = sum(s.size for s in line.shapes)
    if line.opcode == "dot":
        left = _shape(body, line.operands[0]).dims
        return 2.0 * out * math.prod(left[i] for i in line.numbers("lhs_contracting_dims"))
    if line.opcode == "convolution":
        return _convolution(body, line)
    if line.opcode in ("reduce", "reduce-window"):
        return float(_shape(body, line.operands[0]).size)
    floats = bool(line.shapes) and line.shapes[0].dtype[0] in "fbc"
    return float(out) if line.opcode in ARITHMETIC and floats else 0.0


def _convolution(body: Computation, line: Instruction) -> float:
    """Multiply-adds that meet a number rather than padding: TPU programs write products, batches too, in this form."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    assert labels is not None
    left, right = _shape(body, line.operands[0]).dims, _shape(body, line.operands[1]).dims
    out = line.shapes[0].dims
    pairs = 1.0
    for number in (c for c in labels[1] if c.isdecimal()):
        sizes = (dims[names.index(number)] for dims, names in zip((left, right, out), labels.groups(), strict=True))
        pairs *= _valid(*sizes, **_window(line, int(number)))
    groups = int(found[1]) if (found := re.search(r"batch_group_count=(\d+)", line.attributes)) else 1
    features = out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    return 2.0 * pairs * features / groups


def _window(line: Instruction, number: int) -> dict[str, int]:
    """Stride, low padding and dilations of one spatial dimension."""
    text = re.search(r"window=\{([^}]*)\}", line.attributes)
    fields = dict(part.split("=", 1) for part in text[1].split()) if text else {}

    def part(name: str, default: str) -> str:
        return fields[name].split("x")[number] if name in fields else default

    return {
        "stride": int(part("stride", "1")),
        "low": int(part("pad", "0_0").split("_")[0]),
        "left_dilation": int(part("lhs_dilate", "1")),
        "right_dilation": int(part("rhs_dilate", "1")),
    }


def _valid(left: int, kernel: int, out: int, *, stride: int, low: int, left_dilation: int, right_dilation: int) -> int:
    """Pairs of an output's and a kernel's place that meet a number of the input."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * right_dilation - low
    inside = (at >= 0) & (at <= (left - 1) * left_dilation) & (at % left_dilation == 0)
    return int(inside.sum())


def _bytes(body: Computation, line: Instruction) -> float:
    if line.opcode in FREE or line.opcode.endswith("-done"):
        return 0.0
    out = sum(s.n_bytes for s in line.shapes)
    if line.opcode.endswith("-start"):
        return float(out)
    if line.opcode in SLICES:
        return 2.0 * out
    if line.opcode == "dynamic-update-slice":
        return 2.0 * _shape(body, line.operands[1]).n_bytes
    if line.opcode == "scatter":
        return 2.0 * _shape(body, line.operands[-1]).n_bytes
    return float(out + sum(s.n_bytes for name in line.operands for s in _shapes(body, name)))


def _moved(body: Computation, line: Instruction, kind: str) -> float:
    out = sum(s.size * _item(s) for s in line.shapes)
    given = sum(s.size * _item(s) for name in line.operands for s in _shapes(body, name))
    if line.opcode.endswith("-start"):
        out = max((s.size * _item(s) for s in line.shapes), default=0.0)
    return 2.0 * given if kind == "all-reduce" else float(max(out, given))
