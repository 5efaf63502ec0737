"""A sheet on which boxes, lines and text are put down by their places in points, and which becomes a figure."""

from __future__ import annotations

__all__ = ["SETTINGS", "Canvas", "Ink"]

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from fxprune.drawing.layout import Point, Rect
from fxprune.drawing.lettering import font

_POINTS = 72
_HATCH = "///"
_ROUND = 3.2


class Ink(NamedTuple):
    """How something is drawn.

    Attributes:
        fill: Colour of the inside, ``"none"`` for none.
        line: Colour of the outline or line.
        width: Of that, in points.
        layer: What is drawn later lies above.
    """

    fill: str
    line: str = "none"
    width: float = 0.0
    layer: int = 1


class Canvas:
    """Collects what is drawn.

    Args:
        width, height: In points; ``y`` grows downwards.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _POINTS, height / _POINTS), facecolor="white")
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), frameon=False)
        self.axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        self._named: set[str] = set()
        self._paths: dict[tuple[int, str], list[tuple[Path, Ink]]] = {}

    def box(self, rect: Rect, ink: Ink, radius: float = _ROUND) -> None:
        """A box with round corners."""
        self._put(_rounded(rect, min(radius, rect.width / 2, rect.height / 2)), ink)

    def hatched(self, rect: Rect, ink: Ink, radius: float = _ROUND) -> None:
        """A box filled with slanting lines of the ink's line colour."""
        outline = _rounded(rect, min(radius, rect.width / 2, rect.height / 2))
        patch = PathPatch(outline, facecolor=ink.fill, edgecolor=ink.line, linewidth=0.0, hatch=_HATCH)
        patch.set_zorder(ink.layer)
        self.axes.add_patch(patch)

    def line(self, points: Sequence[Point], ink: Ink) -> None:
        """A line: of two points a curve that is vertical at its ends, else straight pieces with round corners."""
        self._put(_curve(*points) if len(points) == 2 else _bent(points), ink)

    def head(self, tip: Point, ink: Ink, size: float = 3.6) -> None:
        """An arrow's head that points down."""
        x, y = tip
        self._put(Path([(x, y), (x - size / 2, y - size), (x + size / 2, y - size), (x, y)], closed=True), ink)

    def text(
        self,
        at: Point,
        text: str,
        size: float,
        colour: str,
        *,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        name: str | None = None,
    ) -> None:
        """A line of text, its baseline at ``at``; what looks like mathematics is shown as it is.

        Args:
            at: The point on the baseline.
            text: The line.
            size: In points.
            colour: Of the text.
            bold: Whether it is bold.
            align: Which end of the text is at the point.
            name: Of the block that it belongs to: the first text of a name has ``block:name`` as its ``id`` in an SVG.
        """
        shown = self.axes.text(*at, text, color=colour, ha=align, va="baseline", fontproperties=font(size, bold))
        shown.set(parse_math=False, zorder=6)
        if name is not None and name not in self._named:
            self._named.add(name)
            shown.set_gid(f"block:{name}")

    def finish(self) -> Figure:
        """The figure with all that was put down."""
        for (layer, _), found in sorted(self._paths.items()):
            collection = PathCollection(
                [path for path, _ in found],
                facecolors=[ink.fill for _, ink in found],
                edgecolors=[ink.line for _, ink in found],
                linewidths=[ink.width for _, ink in found],
                transform=self.axes.transData,
                zorder=layer,
                capstyle="butt",
                snap=False,
            )
            self.axes.add_collection(collection, autolim=False)
        self._paths.clear()
        return self.figure

    def _put(self, path: Path, ink: Ink) -> None:
        self._paths.setdefault((ink.layer, "line" if ink.fill == "none" else "box"), []).append((path, ink))


def _rounded(rect: Rect, radius: float) -> Path:
    x, y, right, bottom = rect.x, rect.y, rect.x + rect.width, rect.y + rect.height
    r = radius
    points = [(x + r, y), (right - r, y), (right, y), (right, y + r), (right, bottom - r), (right, bottom)]
    points += [(right - r, bottom), (x + r, bottom), (x, bottom), (x, bottom - r), (x, y + r), (x, y), (x + r, y)]
    line, turn = [Path.LINETO], [Path.CURVE3, Path.CURVE3]
    return Path([*points, points[0]], [Path.MOVETO, *(line + turn) * 4, Path.CLOSEPOLY])


def _curve(start: Point, end: Point) -> Path:
    if start[0] == end[0]:
        return Path([start, end])
    straight = min(4.0, (end[1] - start[1]) / 3)  # so that an arrow's head meets its line
    last = (end[0], end[1] - straight)
    middle = (start[1] + last[1]) / 2
    points = [start, (start[0], middle), (end[0], middle), last, end]
    return Path(points, [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO])


def _bent(points: Sequence[Point], radius: float = 4.0) -> Path:
    path, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        path += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*path, points[-1]], [*codes, Path.LINETO])


def _towards(start: Point, end: Point, length: float) -> Point:
    """The point that lies so far on the way from one to another, but not beyond the middle."""
    whole = abs(end[0] - start[0]) + abs(end[1] - start[1])
    share = min(0.5, length / whole) if whole else 0.0
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


SETTINGS: dict[Any, Any] = {
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "fxprune",
}
"""Settings under which a figure is made and written: thin slanting lines, text that stays text, the same file again."""
