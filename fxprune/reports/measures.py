"""Figures in words: the table of before and after, and the few numbers at the top of the page."""

from __future__ import annotations

__all__ = ["Cell", "Measure", "Tile", "change", "measures", "short", "tiles"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fxprune.reports.data import NetworkColumn, Report

_MIB = 2**20
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Cell:
    """One network's figure.

    Attributes:
        text: The figure.
        note: How it compares with the first network's.
        share: Of the largest figure in the row, 0 to 1, for a bar; None without one.
    """

    text: str
    note: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Measure:
    """A row of the table: what is measured, and a cell for each network."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page.

    Attributes:
        title: What it is.
        figure: The number that matters.
        note: From what to what.
    """

    title: str
    figure: str
    note: str


def short(number: float) -> str:
    """A count in three digits: ``11.7 M``."""
    for size, unit in _UNITS:
        if abs(number) >= 0.9995 * size:
            value = number / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:g}"


def change(before: float, after: float) -> str:
    """How much less or more it became: ``−74.1 %``."""
    if before == after or not before:
        return "±0 %"
    percent = 100 * (after / before - 1)
    return f"{'−' if percent < 0 else '+'}{abs(percent):.1f} %"


def measures(report: Report) -> list[Measure]:
    """The rows of the table that there are figures for.

    Args:
        report: The report.
    """
    networks = list(report.networks.values())
    rows = [
        _row("Parameters", [n.profile.parameters for n in networks], "{:,.0f}", "fewer", "more"),
        _row("MACs", [n.profile.macs for n in networks], "{:,.0f}", "fewer", "more"),
        _row("Size", [n.profile.size_bytes / _MIB for n in networks], "{:,.2f} MiB", "smaller", "larger"),
    ]
    if any(n.profile.sparsity > 0.01 for n in networks):
        nonzero = [n.profile.nonzero_parameters for n in networks]
        stored = [n.profile.nonzero_bytes / _MIB for n in networks]
        rows.insert(1, _row("Non-zero parameters", nonzero, "{:,.0f}", "fewer", "more"))
        rows.append(_row("Size of non-zeros", stored, "{:,.2f} MiB", "smaller", "larger"))
    for what in dict.fromkeys(what for n in networks for what in n.latencies):
        times = [1e3 * n.latencies[what].median if what in n.latencies else None for n in networks]
        spreads = [f" ± {1e3 * n.latencies[what].spread:.2f} ms" if what in n.latencies else "" for n in networks]
        row = _row(f"Latency, {what}", times, "{:,.2f}", "faster", "slower")
        cells = [Cell(c.text + s, c.note, c.share) for c, s in zip(row.cells, spreads, strict=True)]
        rows.append(Measure(row.title, tuple(cells)))
    accuracies: tuple[tuple[str, Callable[[NetworkColumn], float | None]], ...] = (
        ("Accuracy as pruned" if any(n.tuned_accuracy is not None for n in networks) else "Accuracy", _accuracy),
        ("Accuracy after fine-tuning", _tuned),
    )
    for title, figure in accuracies:
        if any(figure(n) is not None for n in networks):
            rows.append(_accuracy_row(title, [figure(n) for n in networks], _accuracy(networks[0])))
    return rows


def tiles(report: Report) -> list[Tile]:
    """The few numbers that say most, of the last network against the first.

    Args:
        report: The report.
    """
    networks = list(report.networks.values())
    first, last = networks[0], networks[-1]
    found = []
    for title, before, after in (
        ("Parameters", first.profile.parameters, last.profile.parameters),
        ("MACs", first.profile.macs, last.profile.macs),
    ):
        found.append(Tile(title, change(before, after), f"{short(before)} → {short(after)}"))
    for what, time in first.latencies.items():
        if what in last.latencies:
            slow, fast = 1e3 * time.median, 1e3 * last.latencies[what].median
            found.append(Tile("Latency", _times(slow, fast, "faster", "slower"), f"{slow:.2f} → {fast:.2f} ms"))
            break
    reached = last.tuned_accuracy if last.tuned_accuracy is not None else last.accuracy
    if first.accuracy is not None and reached is not None:
        note = f"{100 * first.accuracy:.2f} → {100 * reached:.2f} %"
        found.append(Tile("Accuracy", _points(reached - first.accuracy), note))
    if report.proofs:
        worst = max(proof.max_relative_error for proof in report.proofs.values())
        exact = all(proof.exact for proof in report.proofs.values())
        found.append(Tile("Proof", "exact" if exact else "inexact by nature", f"relative error {worst:.0e}"))
    return found


def _accuracy(network: NetworkColumn) -> float | None:
    return network.accuracy


def _tuned(network: NetworkColumn) -> float | None:
    return network.tuned_accuracy


def _row(title: str, figures: Sequence[float | None], shown: str, less: str, more: str) -> Measure:
    known = [figure for figure in figures if figure is not None]
    most = max(known, default=0) or 1
    cells = []
    for i, figure in enumerate(figures):
        if figure is None:
            cells.append(Cell("–"))
            continue
        first = figures[0]
        note = _times(first, figure, less, more) if i and first and figure else ""
        cells.append(Cell(shown.format(figure), note, figure / most))
    return Measure(title, tuple(cells))


def _times(before: float, after: float, less: str, more: str) -> str:
    ratio = before / after
    if 0.995 < ratio < 1.005:
        return "the same"
    return f"{ratio:.2f}× {less}" if ratio > 1 else f"{1 / ratio:.2f}× {more}"


def _accuracy_row(title: str, figures: Sequence[float | None], dense: float | None) -> Measure:
    cells = []
    for i, figure in enumerate(figures):
        note = "" if dense is None or figure is None or i == 0 else _points(figure - dense)
        cells.append(Cell("–") if figure is None else Cell(f"{100 * figure:.2f} %", note, figure))
    return Measure(title, tuple(cells))


def _points(difference: float) -> str:
    sign = "−" if difference < 0 else "+" if difference > 0 else "±"
    return f"{sign}{abs(100 * difference):.2f} points"
