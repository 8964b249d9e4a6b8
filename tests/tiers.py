"""Which rows of a table of cases `make test-fast` runs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(table: Iterable[Any], quick: Collection[Any], rest: Collection[Any] = ()) -> list[Any]:
    """The rows as parameters: all that are not in `quick` are marked slow, those in `rest` exhaustive."""
    rows = list(table)
    assert set(quick) | set(rest) <= set(rows)
    assert not set(quick) & set(rest)

    def marked(row: Any) -> Any:
        marks = [pytest.mark.slow] * (row not in quick) + [pytest.mark.exhaustive] * (row in rest)
        return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=marks)

    return [marked(row) for row in rows]
