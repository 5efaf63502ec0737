"""Small charts as SVG paths, which a template draws in the page's own colours."""

from __future__ import annotations

__all__ = ["HEIGHT", "WIDTH", "Dot", "Panel", "Tick", "curve_panels", "histogram_panel"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxprune.errors import ArgumentError
from fxprune.reports.data import Histogram

WIDTH, HEIGHT = 228, 132
LEFT, RIGHT, TOP, BOTTOM = 34, 15, 8, 22
"""Units of a panel's picture, and the margins of what it plots."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A value in a panel: where, and what it says when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: What it is of.
        note: A few words more.
        path: The line or the area, as the ``d`` of an SVG path.
        filled: Whether it is an area.
        dots: Values to point at.
        across: Marks on the horizontal axis.
        up: Marks on the vertical axis.
        level: Where a line for comparison is drawn, or None.
    """

    title: str
    note: str
    path: str
    filled: bool
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    level: float | None = None


def curve_panels(
    curves: Mapping[str, Mapping[float, float]], place: str, level: float | None = None, percent: bool = False
) -> list[Panel]:
    """A panel for each curve of shares, all with the same axes.

    Args:
        curves: By title, a share (0 to 1) for each place on the horizontal axis.
        place: What comes before a place in words: ``"at"``, ``"after epoch"``.
        level: A share to compare all with.
        percent: Whether the places are shares as well.

    Raises:
        ArgumentError: There is no curve, or one without a value.
    """
    if not curves or not all(curves.values()):
        raise ArgumentError("every curve needs at least one value")
    places = sorted({x for curve in curves.values() for x in curve})
    values = [y for curve in curves.values() for y in curve.values()] + ([] if level is None else [level])
    low, high, marks = _scale(min(values), max(values))

    def across(x: float) -> float:
        share = (x - places[0]) / (places[-1] - places[0]) if len(places) > 1 else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def said(x: float) -> str:
        return f"{100 * x:g} %" if percent else f"{x:g}"

    shown = places if len(places) <= 5 else [places[round(i * (len(places) - 1) / 4)] for i in range(5)]
    panels = []
    for title, curve in curves.items():
        dots = tuple(
            Dot(round(across(x), 1), round(up(y), 1), f"{100 * y:.2f} % {place} {said(x)}")
            for x, y in sorted(curve.items())
        )
        last = curve[max(curve)]
        panels.append(
            Panel(
                title=title,
                note=f"{100 * last:.1f} % {place} {said(max(curve))}",
                path="M" + " L".join(f"{dot.x:g} {dot.y:g}" for dot in dots),
                filled=False,
                dots=dots,
                across=tuple(Tick(round(across(x), 1), said(x)) for x in shown),
                up=tuple(Tick(round(up(y), 1), f"{100 * y:g} %") for y in marks),
                level=None if level is None else round(up(level), 1),
            )
        )
    return panels


def histogram_panel(histogram: Histogram) -> Panel:
    """The distribution of a tensor's values; the horizontal axis is the value, the height the share of values.

    Args:
        histogram: Of the tensor.
    """
    low, high = histogram.edges[0], histogram.edges[-1]
    most = max(histogram.counts) or 1
    bottom = HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + (x - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    steps = [f"M{across(low):.1f} {bottom}"]
    for count, right in zip(histogram.counts, histogram.edges[1:], strict=True):
        steps.append(f"V{bottom - count / most * (bottom - TOP):.1f} H{across(right):.1f}")
    steps.append(f"V{bottom} Z")
    zeros = f", {100 * histogram.zeros / histogram.values:.0f} % zero" if histogram.zeros else ""
    shown = sum(histogram.counts) or 1
    marks = [low, 0.0, high] if low < 0 < high else [low, high]
    if len(marks) == 3 and min(abs(across(x) - across(0)) for x in (low, high)) < 34:
        marks = [low, high]
    return Panel(
        title=histogram.name,
        note=f"{histogram.values:,} values{zeros}",
        path=" ".join(steps),
        filled=True,
        dots=(),
        across=tuple(Tick(round(across(x), 1), f"{x:.2g}") for x in marks),
        up=(Tick(bottom, "0"), Tick(TOP, f"{100 * most / shown:.1f} %")),
    )


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """The range of a vertical axis of shares, and its marks: at round numbers, three to six of them."""
    span = max(high - low, 1e-3)
    step = next(
        base * 10.0**power for power in range(-4, 1) for base in (1, 2, 2.5, 5) if span / (base * 10.0**power) <= 4
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    marks: Sequence[float] = [round(i * step, 6) for i in range(first, last + 1)]
    return marks[0], marks[-1], list(marks)
