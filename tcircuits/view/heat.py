"""Heat maps as SVG text: rows by columns, blue below zero, red above, the value where the pointer rests."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcircuits.types import Float
from tcircuits.view.chart import INK, text

CELL_W, CELL_H, LEFT, TOP, BOTTOM = 30, 16, 76, 30, 86
COLD, HOT = (33, 102, 172), (178, 24, 43)


@dataclass(frozen=True)
class HeatMap:
    """Values [R, C] with names of rows and columns; colours are full at `most` (None: at the largest size)."""

    title: str
    values: Float[np.ndarray, "R C"]
    rows: Sequence[str]
    columns: Sequence[str]
    most: float | None = None

    def svg(self) -> str:
        """The map."""
        R, C = self.values.shape
        width, height = LEFT + C * CELL_W + 10, TOP + R * CELL_H + BOTTOM
        parts = [text(LEFT, 18, self.title, more=f'fill="{INK}" font-size="13" font-weight="bold"')]
        for r in range(R):
            parts.append(text(LEFT - 6, TOP + r * CELL_H + 12, self.rows[r], "end"))
            parts += [self._cell(r, c) for c in range(C)]
        for c in range(C):
            x, y = LEFT + c * CELL_W + CELL_W / 2, TOP + R * CELL_H + 10
            turned = f'fill="{INK}" transform="rotate(-50 {x:.1f} {y})"'
            parts.append(text(x, y, self.columns[c], "end", turned))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'style="max-width: {width}px" aria-label="{html.escape(self.title)}" '
            f'font-family="Helvetica, Arial, sans-serif" font-size="11">'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>'
        )

    def _cell(self, r: int, c: int) -> str:
        value, most = float(self.values[r, c]), self.most or float(np.abs(self.values).max()) or 1.0
        name = html.escape(f"{self.rows[r]}, {self.columns[c]}: {value:.3f}")
        place = f'x="{LEFT + c * CELL_W}" y="{TOP + r * CELL_H}" width="{CELL_W}" height="{CELL_H}"'
        return f'<rect {place} fill="{colour(value, most)}" stroke="#ececec"><title>{name}</title></rect>'


def colour(value: float, most: float) -> str:
    """White at zero, `HOT` at `most`, `COLD` at its negative.

    >>> colour(0.0, 1.0), colour(2.0, 1.0)
    ('#ffffff', '#b2182b')
    """
    share, end = min(abs(value) / most, 1.0), HOT if value > 0 else COLD
    return "#" + "".join(f"{round(255 + share * (x - 255)):02x}" for x in end)
