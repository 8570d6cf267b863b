"""Tables of results: medians, spread, ratios, and readable numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_MILLISECONDS_BELOW = 0.1  # seconds


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest value of some measurements."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        scale = 1.0 if self.median >= _MILLISECONDS_BELOW else 1e3
        return f"{seconds(self.median)} ({short(scale * self.least)}-{short(scale * self.most)})"


def short(value: float) -> str:
    """Return a number with three digits."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Return a time like `1.42 s` or `3.14 ms`."""
    if value >= _MILLISECONDS_BELOW:
        return f"{short(value)} s"
    return f"{short(1e3 * value)} ms"


def size(num_bytes: float) -> str:
    """Return a size like `1.42 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{short(num_bytes)} {unit}"
        num_bytes /= 1000
    return f"{short(num_bytes)} TB"


def in_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column aligned left and all others right.

    The last cell of a row with fewer cells than the head is aligned left, and may be long.
    """
    whole = [row for row in [head, *rows] if len(row) == len(head)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
    widths[0] = max(len(row[0]) for row in [head, *rows])
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        complete = len(row) == len(head)
        for i, cell in enumerate(row[1:], start=1):
            loose = not complete and i == len(row) - 1
            cells.append(cell if loose else cell.rjust(widths[i]))
        lines.append("  ".join(cells).rstrip())
    return lines
