"""Where boxes and lines of a layered picture go: rows, lanes for long edges, few crossings, straight lines, columns.

The steps are those of Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures"
(1981), with the coordinates found as by Gansner et al., "A technique for drawing directed graphs" (1993): least total
bend, which is a linear program. What is long is wrapped into columns, as text is.
"""

from __future__ import annotations

__all__ = ["Band", "Layout", "Rect", "arrange"]

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from fxprune.drawing.columns import Rows, cut_into_columns
from fxprune.drawing.ordering import order_rows

_LANE = 7.0
_MARGIN = 9.0
_GUTTER = 22.0
_STEP = 5.0
_ENTRY = 13.0

Point = tuple[float, float]


class Rect(NamedTuple):
    """A rectangle; ``y`` grows downwards, lengths are in points."""

    x: float
    y: float
    width: float
    height: float


class Band(NamedTuple):
    """Rows that belong together, both ends included."""

    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """Positions, in points from the upper left corner.

    Attributes:
        boxes: A rectangle for each box.
        bands: For each band the part of it in each column.
        lines: The edges in pieces, each once however many edges share it: points of a curve that is vertical at both
            ends; runs around columns have more than two points and right angles.
        sources: The box that each line comes from; what is in front of a box comes from the first of several.
        heads: Where arrows end, with the direction straight down.
        width, height: Of everything.
    """

    boxes: tuple[Rect, ...]
    bands: tuple[tuple[Rect, ...], ...]
    lines: tuple[tuple[Point, ...], ...]
    sources: tuple[int, ...]
    heads: tuple[Point, ...]
    width: float
    height: float


@dataclass
class _Item:
    """What stands in a row: a box, or the lane of the long edges of one source.

    Attributes:
        row: Of the rows with those that wrapping adds.
        width: Its width.
        box: The box, or -1.
        source: The box whose lane it is, or the box itself.
        x: The middle.
    """

    row: int
    width: float
    box: int
    source: int
    x: float = 0.0


class _Graph:
    """Boxes and lanes in rows, and the links from one row to the next.

    Args:
        sizes: Width and height of each box.
        rows: The row of each box in the wrapped picture.
        edges: From lower to higher rows.
        count: How many rows there are.
        breaks: Rows that begin a column.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[float, float]],
        rows: Sequence[int],
        edges: Sequence[tuple[int, int]],
        count: int,
        breaks: Sequence[int],
    ) -> None:
        self.items = [_Item(row, size[0], box, box) for box, (row, size) in enumerate(zip(rows, sizes, strict=True))]
        self.rows: list[list[int]] = [[] for _ in range(count)]
        for box, row in enumerate(rows):
            self.rows[row].append(box)
        self.links: list[tuple[int, int]] = []
        self.breaks = set(breaks)
        targets: dict[int, list[int]] = {}
        for a, b in edges:
            targets.setdefault(a, []).append(b)
        for source, ends in targets.items():
            self._connect(source, ends)

    def _connect(self, source: int, ends: Sequence[int]) -> None:
        """One lane for all the edges of a source, as far as the last of them goes."""
        last, at = max(self.items[end].row for end in ends), source
        by_row: dict[int, list[int]] = {}
        for end in ends:
            by_row.setdefault(self.items[end].row, []).append(end)
        for row in range(self.items[source].row + 1, last + 1):
            self.links += [(at, end) for end in by_row.get(row, ())]
            if row < last:
                self.items.append(_Item(row, _LANE, -1, source))
                self.links.append((at, len(self.items) - 1))
                at = len(self.items) - 1
                self.rows[row].append(at)


def arrange(
    sizes: Sequence[tuple[float, float]],
    rows: Sequence[int],
    edges: Sequence[tuple[int, int]],
    bands: Sequence[Band] = (),
    columns: int | None = None,
    aspect: float = 1.4,
) -> Layout:
    """Lay a layered graph out.

    Args:
        sizes: Width and height of each box, in points.
        rows: The row of each box, from 0; every row has a box.
        edges: Pairs of boxes, from lower to higher rows.
        bands: Rows that are shown as one, with room for a title above; they do not overlap.
        columns: How many columns the rows are wrapped into; None for what comes closest to ``aspect``.
        aspect: The width over the height that is wanted.
    """
    known = Rows.of(sizes, rows, edges, bands, _LANE, _MARGIN)
    starts = cut_into_columns(known, columns, aspect, _GUTTER)
    # Between two columns come a row in which what goes on leaves, and one in which it arrives.
    shift = [2 * sum(start <= row for start in starts) for row in range(known.count)]
    breaks = [start + shift[start] - 1 for start in starts]
    graph = _Graph(sizes, [row + shift[row] for row in rows], edges, known.count + 2 * len(starts), breaks)
    graph.rows = order_rows(graph.rows, graph.links)
    _place(graph)
    return _Drawn(graph, known, starts, shift, sizes).layout()


def _place(graph: _Graph) -> None:
    """Give every item its middle: as little sideways movement as the least distances allow."""
    links = [(a, b) for a, b in graph.links if graph.items[b].row not in graph.breaks]
    pairs = [(a, b) for row in graph.rows for a, b in pairwise(row)]
    count, edges = len(graph.items), len(links)
    if not links and not pairs:
        return
    apart = [-(graph.items[a].width + graph.items[b].width) / 2 - _MARGIN for a, b in pairs]
    # Straight above all: lanes in themselves, then what leads from box to box; lanes may bend where they begin and end.
    weight = {(False, False): 4.0, (True, True): 8.0}
    weights = [weight.get((graph.items[a].box < 0, graph.items[b].box < 0), 1.0) for a, b in links]
    a = np.array([link[0] for link in links], dtype=np.int64)
    b = np.array([link[1] for link in links], dtype=np.int64)
    left = np.array([pair[0] for pair in pairs], dtype=np.int64)
    right = np.array([pair[1] for pair in pairs], dtype=np.int64)
    bend = count + np.arange(edges)
    first, second, third = np.arange(edges), edges + np.arange(edges), 2 * edges + np.arange(len(pairs))
    rows = np.concatenate([first, first, first, second, second, second, third, third])
    columns = np.concatenate([a, b, bend, a, b, bend, left, right])
    ones = np.ones(edges)
    values = np.concatenate([ones, -ones, -ones, -ones, ones, -ones, np.ones(len(pairs)), -np.ones(len(pairs))])
    table = coo_array((values, (rows, columns)), shape=(2 * edges + len(pairs), count + edges)).tocsr()
    # A little pull to the left keeps what nothing holds in place.
    costs = np.concatenate([np.full(count, 1e-4), weights])
    limits = np.concatenate([np.zeros(2 * edges), apart])
    found = linprog(costs, A_ub=table, b_ub=limits, bounds=(0, None), method="highs")
    for item, x in zip(graph.items, found.x, strict=False):
        item.x = float(x)


class _Drawn:
    """From middles to rectangles and lines."""

    def __init__(
        self,
        graph: _Graph,
        known: Rows,
        starts: Sequence[int],
        shift: Sequence[int],
        sizes: Sequence[tuple[float, float]],
    ) -> None:
        self.graph, self.known, self.shift, self.sizes = graph, known, shift, sizes
        self.begins = [0, *starts]
        self.ends = [*starts, known.count]
        # First and last of the wrapped rows of each column, with those where lines arrive and leave.
        firsts = [0, *(start + shift[start] - 1 for start in starts)]
        self.columns = list(zip(firsts, [*(first - 1 for first in firsts[1:]), len(graph.rows) - 1], strict=True))
        self.top: list[float] = [0.0] * len(graph.rows)
        self.bottom: list[float] = [0.0] * len(graph.rows)
        self.left: list[float] = []
        self.right: list[float] = []
        # Lines that go round a column's upper end need room.
        self.head = max((_STEP * len(graph.rows[first]) for first in firsts[1:]), default=0.0)
        self._rows_down()
        self._columns_across()

    def _rows_down(self) -> None:
        for (first, last), begin, end in zip(self.columns, self.begins, self.ends, strict=True):
            self.top[first] = self.bottom[first] = self.head
            y = self.head + self.known.above(begin) + (_ENTRY if self.head else 0.0)
            for row in range(begin, end):
                at = row + self.shift[row]
                self.top[at], self.bottom[at] = y, y + self.known.heights[row]
                y = self.bottom[at] + self.known.gaps[row]
            if end < self.known.count:
                y = self.bottom[last - 1] + self.known.below(end - 1) + _ENTRY
                self.top[last] = self.bottom[last] = y

    def _columns_across(self) -> None:
        at, pad = 0.0, self.known.padding
        for first, last in self.columns:
            items = [self.graph.items[i] for row in self.graph.rows[first : last + 1] for i in row]
            low = min(item.x - item.width / 2 for item in items)
            high = max(item.x + item.width / 2 for item in items)
            for item in items:
                item.x += at + pad - low
            self.left.append(at)
            self.right.append(at + high - low + 2 * pad)
            at = self.right[-1] + _GUTTER + _STEP * (len(self.graph.rows[last]) - 1)

    def layout(self) -> Layout:
        """Put it all together."""
        boxes = [
            Rect(
                item.x - self.sizes[item.box][0] / 2,
                (self.top[item.row] + self.bottom[item.row] - self.sizes[item.box][1]) / 2,
                *self.sizes[item.box],
            )
            for item in self.graph.items
            if item.box >= 0
        ]
        items = self.graph.items
        lines = [(self._line(items[a], items[b]), items[a].source) for a, b in self.graph.links]
        made = {a for a, _ in self.graph.links}
        read = {b: items[a].source for a, b in reversed(self.graph.links)}
        for index, item in enumerate(items):
            top, bottom = self.top[item.row], self.bottom[item.row]
            if item.box < 0:
                lines.append((((item.x, top), (item.x, bottom)), item.source))
                continue
            box = boxes[item.box]
            if index in read:
                lines.append((((item.x, top), (item.x, box.y)), read[index]))
            if index in made:
                lines.append((((item.x, box.y + box.height), (item.x, bottom)), index))
        lines = [(line, source) for line, source in lines if line[0] != line[-1]]
        bands = self._bands()
        corners = [(rect.x + rect.width, rect.y + rect.height) for rect in (*boxes, *(r for b in bands for r in b))]
        corners += [point for line, _ in lines for point in line]
        return Layout(
            tuple(boxes),
            bands,
            tuple(line for line, _ in lines),
            tuple(source for _, source in lines),
            tuple((box.x + box.width / 2, box.y) for index, box in enumerate(boxes) if index in read),
            max((x for x, _ in corners), default=0.0),
            max((y for _, y in corners), default=0.0),
        )

    def _line(self, start: _Item, end: _Item) -> tuple[Point, ...]:
        """From the foot of a row to the head of the next."""
        if end.row in self.graph.breaks:
            return self._around(start, end)
        return (start.x, self.bottom[start.row]), (end.x, self.top[end.row])

    def _around(self, start: _Item, end: _Item) -> tuple[Point, ...]:
        """From the foot of a column, up beside it, to the head of the next; such lines lie in one another."""
        leaving = self.graph.rows[start.row]
        column = next(i for i, (_, last) in enumerate(self.columns) if last == start.row)
        number = next(i for i, k in enumerate(reversed(leaving)) if self.graph.items[k] is start)
        low = self.bottom[start.row] + _STEP * number
        side = self.right[column] + _GUTTER / 2 + _STEP * number
        high = self.head - _STEP * (len(leaving) - number)
        foot, head = (start.x, self.bottom[start.row]), (end.x, self.top[end.row])
        return foot, (start.x, low), (side, low), (side, high), (end.x, high), head

    def _reach(self, first: int, last: int) -> tuple[float, float]:
        """How far what stands in some rows reaches, with some room."""
        items = [self.graph.items[i] for row in self.graph.rows[first : last + 1] for i in row]
        pad = self.known.padding
        left = min(item.x - item.width / 2 for item in items) - pad
        return left, max(item.x + item.width / 2 for item in items) + pad

    def _bands(self) -> tuple[tuple[Rect, ...], ...]:
        found = []
        for band in self.known.bands:
            parts = []
            for begin, end in zip(self.begins, self.ends, strict=True):
                first, last = max(band.first, begin), min(band.last, end - 1)
                if first <= last:
                    top = self.top[first + self.shift[first]] - self.known.title
                    bottom = self.bottom[last + self.shift[last]] + self.known.padding
                    left, right = self._reach(first + self.shift[first], last + self.shift[last])
                    parts.append(Rect(left, top, right - left, bottom - top))
            found.append(tuple(parts))
        return tuple(found)
