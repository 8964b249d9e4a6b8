"""Line charts as SVG text, good enough to print: axes with round numbers, markers, intervals, levels across the chart.

Everything that decides how a chart looks is in its attributes, so that an `<svg>` that is copied out of a page stays as
it is.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 470, 340
LEFT, RIGHT, TOP, BOTTOM, STRIP, ROW = 64, 14, 56, 48, 46, 15
INK, GREY, FAINT = "#222222", "#666666", "#e8e8e8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#000000")  # Okabe and Ito
MARKERS = "osd^"


@dataclass(frozen=True)
class Line:
    """Points joined in order; `low` and `high` are their intervals, `notes` what stands beside each.

    `key` is its entry in the legend: lines of one key share it. `name` is shown where the pointer rests.
    """

    key: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    notes: Sequence[str] = ()
    name: str = ""
    opacity: float = 1.0
    markers: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers within the axis."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def axis(values: Sequence[float], *, log: bool = False, pad: float = 0.06) -> Axis:
    """An axis that holds all values, with some room."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** pad if high > low else 1.5
        return Axis(low / room, high * room, True)
    room = pad * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 2, 5), (1,)):
        found = [m * 10.0**p for p in powers for m in marks if low <= m * 10.0**p <= high]
        if len(found) <= 8:
            break
    return found if len(found) > 1 else [low, high]


@dataclass(frozen=True)
class Chart:
    """What a chart shows; `levels` are horizontal lines by name.

    Levels far above everything else are drawn in a strip of their own, above a break of the axis.
    """

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False

    def x_axis(self) -> Axis:
        """The horizontal axis, which holds all points; notes beside them need more room."""
        noted = any(any(line.notes) for line in self.lines)
        return axis([v for line in self.lines for v in line.x], log=self.log_x, pad=0.14 if noted else 0.04)

    def far(self) -> list[tuple[str, float]]:
        """The levels that are too far above everything else to share its axis."""
        drawn = [line for line in self.lines if len(line.x)]
        return self._vertical(drawn)[1] if drawn else []

    def svg(self) -> str:
        """The chart; empty where no line has a point."""
        drawn = [line for line in self.lines if len(line.x)]
        if not drawn:
            return ""
        y, far = self._vertical(drawn)
        head = TOP + ROW * _entries(drawn)[-1][1]
        place = _Place(self.x_axis(), y, head, STRIP if far else 0)
        parts = [_frame(self, place), _levels(self, place, far)]
        parts += [_line(line, place) for line in drawn]
        parts.append(_legend(drawn))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{html.escape(self.title)}" font-family="Helvetica, Arial, sans-serif" font-size="11">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>{"".join(parts)}</svg>'
        )

    def _vertical(self, drawn: Sequence[Line]) -> tuple[Axis, list[tuple[str, float]]]:
        """The axis, and the levels that are too far above it."""
        ends = [v for line in drawn for some in (line.y, line.low, line.high) for v in some if v is not None]
        top = max(ends)
        near = [v for _, v in self.levels if v <= top]
        low = min([*ends, *near])
        limit = top + 0.5 * (top - low)
        far = [(name, v) for name, v in self.levels if v > limit]
        values = [*ends, *(v for _, v in self.levels if v <= limit), *([0.0] if self.from_zero else [])]
        made = axis(values, log=self.log_y)
        return (Axis(0.0, made.high) if self.from_zero else made), sorted(far, key=lambda level: level[1])


@dataclass(frozen=True)
class _Place:
    """From values to points of the picture: above are a head of title and legend, and a strip for far levels."""

    x: Axis
    y: Axis
    head: int
    strip: int

    @property
    def top(self) -> int:
        return self.head + self.strip

    def at(self, x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - self.top
        return LEFT + wide * self.x.share(x), HEIGHT - BOTTOM - high * self.y.share(y)


def text(x: float, y: float, words: str, anchor: str = "start", more: str = f'fill="{INK}"') -> str:
    """Words at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def _frame(chart: Chart, place: _Place) -> str:
    """Title, axes, ticks with their numbers, names of axes."""
    bottom, right, ink = HEIGHT - BOTTOM, WIDTH - RIGHT, f'stroke="{INK}"'
    parts = [text(LEFT, 18, chart.title, more=f'fill="{INK}" font-size="13" font-weight="bold"')]
    for v in place.y.ticks():
        at = place.at(place.x.low, v)[1]
        parts.append(_rule(LEFT, at, right, at, f'stroke="{FAINT}"'))
        parts += [_rule(LEFT - 4, at, LEFT, at, ink), text(LEFT - 7, at + 4, f"{v:.6g}", "end")]
    for v in place.x.ticks():
        at = place.at(v, place.y.low)[0]
        parts += [_rule(at, bottom, at, bottom + 4, ink), text(at, bottom + 16, _short(v), "middle")]
    parts += [_rule(LEFT, bottom, right, bottom, ink), _rule(LEFT, place.top, LEFT, bottom, ink)]
    parts.append(text((LEFT + right) / 2, HEIGHT - 10, chart.x_name, "middle"))
    middle = (place.top + bottom) / 2
    turned = f'fill="{INK}" transform="rotate(-90 14 {middle:.1f})"'
    return "".join([*parts, text(14, middle, chart.y_name, "middle", turned)])


def _short(v: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(v) >= size:
            return f"{v / size:g}{unit}"
    return f"{v:g}"


def _levels(chart: Chart, place: _Place, far: Sequence[tuple[str, float]]) -> str:
    """Lines across; those far above in the strip, at a distance that means nothing: hence the break and the number."""
    parts, right = [], WIDTH - RIGHT
    dashed = f'stroke="{GREY}" stroke-dasharray="5 3"'
    halo = f'fill="{GREY}" stroke="#ffffff" stroke-width="3" paint-order="stroke"'
    for name, v in chart.levels:
        if (name, v) not in far:
            at = place.at(place.x.low, v)[1]
            parts += [_rule(LEFT, at, right, at, dashed), text(LEFT + 6, at - 4, f"{name} {v:.3f}", more=halo)]
    for i, (name, v) in enumerate(far):
        at = place.top - 14 - 16 * i
        parts += [_rule(LEFT, at, right, at, dashed), text(right, at - 3, f"{name} {v:.3f}", "end", halo)]
    if far:
        up = place.top
        parts.append(_rule(LEFT, place.head, LEFT, up - 8, f'stroke="{INK}"'))
        parts += [_rule(LEFT - 5, up + d + 3, LEFT + 5, up + d - 3, f'stroke="{INK}"') for d in (-8, -2)]
    return "".join(parts)


def _line(line: Line, place: _Place) -> str:
    colour = COLOURS[line.style % len(COLOURS)]
    points = [place.at(x, y) for x, y in zip(line.x, line.y, strict=True)]
    path = points
    if line.steps:
        path = [p for (x1, y1), (x2, _) in pairwise(points) for p in ((x1, y1), (x2, y1))]
        path = [*path, points[-1]]
    told = " ".join(f"{a:.1f},{b:.1f}" for a, b in path)
    parts = [f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round" points="{told}"/>']
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        if low is not None and high is not None:
            (at, one), (_, two) = place.at(x, low), place.at(x, high)
            parts.append(_rule(at, one, at, two, f'stroke="{colour}" stroke-width="1"'))
    if line.markers:
        parts += [_marker(MARKERS[line.style % len(MARKERS)], a, b, colour) for a, b in points]
    below = line.style % 2 == 0  # the first family is usually the lower one, and its notes stand under it
    for (a, b), note in zip(points, line.notes, strict=False):
        more = f'fill="{colour}" font-size="9" stroke="#ffffff" stroke-width="2.5" paint-order="stroke"'
        parts.append(text(a + (-6 if below else 6), b + (12 if below else -5), note, "end" if below else "start", more))
    return f'<g opacity="{line.opacity:.2f}"><title>{html.escape(line.name or line.key)}</title>{"".join(parts)}</g>'


def _marker(shape: str, x: float, y: float, colour: str) -> str:
    look = f'fill="{colour}" stroke="#ffffff" stroke-width="0.8"'
    if shape == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {look}/>'
    if shape == "s":
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" {look}/>'
    corners = {"d": ((0, -5), (5, 0), (0, 5), (-5, 0)), "^": ((0, -5), (4.6, 3.6), (-4.6, 3.6))}[shape]
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" {look}/>'


def _entries(lines: Sequence[Line]) -> list[tuple[float, int, Line]]:
    """The legend: where each key begins, its row, and a line of it; a row that is full goes on below."""
    found, at, row = [], float(LEFT), 0
    for line in {line.key: line for line in lines}.values():
        wide = 44 + 6.2 * len(line.key)
        if at > LEFT and at + wide - 16 > WIDTH:
            at, row = float(LEFT), row + 1
        found.append((at, row, line))
        at += wide
    return found


def _legend(lines: Sequence[Line]) -> str:
    parts = []
    for at, row, line in _entries(lines):
        colour, y = COLOURS[line.style % len(COLOURS)], 36 + ROW * row
        parts.append(_rule(at, y, at + 22, y, f'stroke="{colour}" stroke-width="1.6"'))
        if line.markers:
            parts.append(_marker(MARKERS[line.style % len(MARKERS)], at + 11, y, colour))
        parts.append(text(at + 28, y + 4, line.key))
    return "".join(parts)
