"""Where the rows of a long picture are wrapped: columns of like height, cut where few lines go on."""

from __future__ import annotations

__all__ = ["Rows", "cut_into_columns"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fxprune.labels import IntArray

if TYPE_CHECKING:
    from fxprune.drawing.layout import Band

_MOST = 9
_GAP = 13.0
_TITLE = 15.0
_PADDING = 8.0
_LINE = 60.0
_INSIDE = 80.0


@dataclass(frozen=True)
class Rows:
    """What is known of the rows before anything has a place.

    Attributes:
        heights: Of each row.
        gaps: Below each row.
        widths: Of all that stands in each row.
        lines: How many lines go on below each row.
        bands: Rows that are shown as one.
        padding: Between a band's edge and what is in it.
        title: Room for a band's title, above its first row.
    """

    heights: tuple[float, ...]
    gaps: tuple[float, ...]
    widths: tuple[float, ...]
    lines: tuple[int, ...]
    bands: tuple[Band, ...]
    padding: float
    title: float

    @classmethod
    def of(
        cls,
        sizes: Sequence[tuple[float, float]],
        rows: Sequence[int],
        edges: Sequence[tuple[int, int]],
        bands: Sequence[Band],
        lane: float,
        margin: float,
    ) -> Rows:
        """Measure."""
        count = max(rows, default=-1) + 1
        heights, widths = [0.0] * count, [-margin] * count
        for (width, height), row in zip(sizes, rows, strict=True):
            heights[row] = max(heights[row], height)
            widths[row] += width + margin
        lines = [0] * count
        reach: dict[int, int] = {}
        for a, b in edges:
            reach[a] = max(reach.get(a, 0), rows[b])
        for source, last in reach.items():
            for row in range(rows[source], last):
                lines[row] += 1
                widths[row] += (lane + margin) * (row > rows[source])
        starts, ends = {band.first for band in bands}, {band.last for band in bands}
        gaps = [_GAP + _TITLE * (r + 1 in starts) + _PADDING * (r in ends) for r in range(count)]
        padding = _PADDING if bands else 0.0
        return cls(tuple(heights), tuple(gaps), tuple(widths), tuple(lines), tuple(bands), padding, _TITLE)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.heights)

    def above(self, row: int) -> float:
        """Room for a band's title where a row begins a column."""
        return self.title if any(band.first <= row <= band.last for band in self.bands) else 0.0

    def below(self, row: int) -> float:
        """Room for a band's edge where a row ends a column."""
        return self.padding if any(band.first <= row <= band.last for band in self.bands) else 0.0


def cut_into_columns(rows: Rows, columns: int | None, aspect: float, gutter: float) -> list[int]:
    """The rows that begin a column, but the first.

    Args:
        rows: What is known of them.
        columns: How many columns are wanted; None for what comes closest to ``aspect``.
        aspect: Width over height.
        gutter: Between two columns.
    """
    if columns is not None:
        return _cut(rows, min(columns, rows.count))
    best: tuple[float, list[int]] = (math.inf, [])
    for number in range(1, min(_MOST, rows.count) + 1):
        starts = _cut(rows, number)
        spans = list(zip([0, *starts], [*starts, rows.count], strict=True))
        height = max(_height(rows, first, end) for first, end in spans)
        width = sum(max(rows.widths[first:end]) + gutter for first, end in spans)
        off = abs(math.log(width / height / aspect)) + 0.04 * sum(rows.lines[start - 1] - 1 for start in starts)
        best = min(best, (off, starts))
    return best[1]


def _height(rows: Rows, first: int, end: int) -> float:
    return sum(rows.heights[first:end]) + sum(rows.gaps[first : end - 1])


def _cut(rows: Rows, columns: int) -> list[int]:
    """The best way to cut rows into so many columns: by heights that differ little, and what each cut costs."""
    inside = [any(band.first < row <= band.last for band in rows.bands) for row in range(rows.count)]
    price = np.array([_INSIDE * i + _LINE * max(0, rows.lines[row - 1] - 1) for row, i in enumerate(inside)])
    price[0] = 0.0
    goal = max(1.0, _height(rows, 0, rows.count) / columns)
    ahead = np.concatenate([[0.0], np.cumsum(np.add(rows.heights, rows.gaps))])
    # The least cost of the first rows, by how many they are, in the columns so far; and where the last of these begins.
    least = np.full(rows.count + 1, np.inf)
    least[0] = 0.0
    begins: list[IntArray] = []
    for _ in range(columns):
        level = np.full(rows.count + 1, np.inf)
        begin = np.zeros(rows.count + 1, dtype=np.int64)
        for end in range(1, rows.count + 1):
            costs = least[:end] + (ahead[end] - ahead[:end] - goal) ** 2 / goal + price[:end]
            begin[end] = np.argmin(costs)
            level[end] = costs[begin[end]]
        least = level
        begins.append(begin)
    starts: list[int] = []
    end = rows.count
    for begin in reversed(begins[1:]):
        end = int(begin[end])
        starts.append(end)
    return starts[::-1]
