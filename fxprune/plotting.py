"""Plots of what pruning does: every function returns a matplotlib figure and shows, saves and configures nothing."""

from __future__ import annotations

__all__ = ["sensitivity_curves", "trade_off", "weight_histograms", "width_bars"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from fxprune.errors import ArgumentError
from fxprune.sensitivity import Sensitivity

_DENSE = "#b8bcc4"
_PRUNED = "#2f6fb3"
_LIGHT = "#9dbfe0"
_ACCENT = "#c8553d"
_COLUMNS = 3
_MARKERS = "os^Dv<>Pp*Xh"


def weight_histograms(
    weights: Mapping[str, Tensor], *, bins: int = 128, nonzero_only: bool = False, title: str = "Weights"
) -> Figure:
    """Draw the distribution of the values of each tensor, one panel for each.

    Args:
        weights: Tensors of any shape by name.
        bins: Bars in a panel at most; small tensors get fewer.
        nonzero_only: Whether to leave out the zeros, whose bar would hide all others in a pruned tensor.
        title: Of the figure.

    Raises:
        ArgumentError: ``weights`` is empty, or ``bins`` is below 1.
    """
    _require(weights, "weights")
    if bins < 1:
        raise ArgumentError(f"bins must be at least 1, not {bins}")
    rows = math.ceil(len(weights) / _COLUMNS)
    columns = min(_COLUMNS, len(weights))
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, tensor) in zip(panels, weights.items(), strict=False):
        values = tensor.detach().float().cpu().numpy().ravel()
        shown = values[values != 0] if nonzero_only else values
        if shown.size:
            # One patch for all bars: drawing one for each takes seconds.
            most = math.ceil(2 * math.sqrt(shown.size))
            panel.stairs(*np.histogram(shown, bins=min(bins, most), density=True), fill=True, color=_PRUNED)
        zeros = f", {np.mean(values == 0):.0%} zero" if nonzero_only else ""
        panel.set_title(f"{name}\n{values.size:,} values{zeros}", fontsize=9)
        panel.tick_params(labelsize=8)
        _plain(panel)
    for panel in panels[len(weights) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    figure.supxlabel("value of the weight", fontsize=10)
    figure.supylabel("density", fontsize=10)
    return figure


def sensitivity_curves(
    curves: Sensitivity, *, title: str = "Sensitivity: one layer pruned, all others dense"
) -> Figure:
    """Draw accuracy against sparsity, one line for each layer, all in one panel to be compared.

    Args:
        curves: What :func:`fxprune.sensitivity` returns.
        title: Of the figure.
    """
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    order = np.argsort(curves.sparsities)
    for i, (layer, accuracy) in enumerate(curves):
        axes.plot(
            np.asarray(curves.sparsities)[order],
            np.asarray(accuracy)[order],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5,
            linewidth=1.6,
            color=colours[i],
            label=layer,
        )
    axes.axhline(curves.dense, color=_ACCENT, linestyle="--", linewidth=1.2, label="dense")
    axes.set_xlabel(f"share of the {curves.kind} of this layer that is removed")
    axes.set_ylabel("accuracy")
    axes.set_xticks(sorted(set(curves.sparsities)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.set_title(title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    _plain(axes)
    return figure


def width_bars(
    before: Mapping[str, int], after: Mapping[str, int], *, title: str = "Channels before and after pruning"
) -> Figure:
    """Draw the channels of each layer before and after pruning, with the share that is kept.

    Args:
        before: Channels by layer.
        after: Channels by layer, for the same layers.
        title: Of the figure.

    Raises:
        ArgumentError: ``before`` is empty, or the two name different layers.
    """
    _require(before, "before")
    if list(before) != list(after):
        raise ArgumentError(f"before and after must name the same layers, not {list(before)} and {list(after)}")
    figure = Figure(figsize=(max(5.0, 1.0 + 0.9 * len(before)), 4.2), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(before))
    axes.bar(at, list(before.values()), width=0.74, color=_DENSE, label="before")
    bars = axes.bar(at, list(after.values()), width=0.5, color=_PRUNED, label="after")
    axes.bar_label(
        bars,
        [f"{kept}\n{kept / before[name]:.0%}" for name, kept in after.items()],
        fontsize=8,
        label_type="center",
        color="white",
    )
    axes.set_xticks(at, [name.rpartition(".")[2] for name in before], rotation=30 if len(before) > 10 else 0)
    axes.set_xlabel("layer")
    axes.set_ylabel("output channels")
    axes.set_title(title)
    axes.legend(frameon=False, loc="upper left")
    _plain(axes)
    return figure


def trade_off(
    accuracy: Mapping[str, Mapping[str, float]],
    costs: Mapping[str, Mapping[str, float]],
    *,
    title: str = "What accuracy is left, and what it costs",
) -> Figure:
    """Draw the accuracy of several networks beside what each costs relative to the first.

    Args:
        accuracy: By stage (such as ``"as pruned"`` and ``"fine-tuned"``), the accuracy (0 to 1) of each network. The
            first stage names all networks, a later one may leave some out.
        costs: By measure (such as ``"MACs"``), what each of the networks costs, in any unit. A measure may leave
            networks out, but not the first.
        title: Of the figure.

    Raises:
        ArgumentError: ``accuracy`` or ``costs`` is empty, a measure lacks the first network, or one of them names a
            network that the first stage does not.
    """
    _require(accuracy, "accuracy")
    _require(costs, "costs")
    names = list(next(iter(accuracy.values())))
    for what, by_name in [*accuracy.items(), *costs.items()]:
        if not by_name.keys() <= set(names):
            raise ArgumentError(f"{what!r} may name no networks but {names}; it names {list(by_name)}")
    for measure, by_name in costs.items():
        if not by_name.get(names[0]):
            raise ArgumentError(
                f"{measure!r} needs a cost above 0 for {names[0]!r}, which the others are compared with, not "
                f"{by_name.get(names[0])}"
            )
    shares = {
        measure: {name: cost / by_name[names[0]] for name, cost in by_name.items()}
        for measure, by_name in costs.items()
    }
    figure = Figure(figsize=(12.5, 1.5 + 0.24 * len(names) * max(len(costs), len(accuracy))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.3))
    _grouped_bars(left, names, accuracy, (_LIGHT, _PRUNED, _ACCENT), "{:.2f} %")
    _grouped_bars(right, names, shares, list(colormaps["viridis"](np.linspace(0.15, 0.85, len(costs)))), "{:.0f} %")
    left.set_yticks(np.arange(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("accuracy")
    right.set_xlabel(f"cost relative to {names[0]}")
    figure.suptitle(title)
    return figure


def _grouped_bars(
    axes: Axes, names: Sequence[str], series: Mapping[str, Mapping[str, float]], colours: Sequence[Any], shown: str
) -> None:
    height = 0.8 / len(series)
    for i, (label, by_name) in enumerate(series.items()):
        # A network with a single bar has it in the middle of its row.
        rows = [
            row - 0.4 + (i + 0.5) * height if sum(name in other for other in series.values()) > 1 else row
            for row, name in enumerate(names)
            if name in by_name
        ]
        values = [by_name[name] for name in names if name in by_name]
        bars = axes.barh(rows, values, height=0.92 * height, color=colours[i % len(colours)], label=label)
        axes.bar_label(bars, [shown.format(100 * value) for value in values], padding=3, fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(x=0.14)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(series), frameon=False, fontsize=9)
    _plain(axes)


def _require(mapping: Mapping[str, object], name: str) -> None:
    if not mapping:
        raise ArgumentError(f"{name} is empty: there is nothing to draw")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
