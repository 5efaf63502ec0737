"""Plots of what pruning does: every function returns a matplotlib figure and shows, saves and configures nothing."""

from __future__ import annotations

__all__ = ["comparison", "histograms", "sensitivity", "tradeoff", "widths"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, WeightError
from fxprune.masks import LAYERS, weight_places
from fxprune.plan import ChannelPlan
from fxprune.sensitivity import Sensitivity

_DENSE = "#c9ced6"
_PRUNED = "#2f6fb3"
_LIGHT = "#9dbfe0"
_ACCENT = "#c8553d"
_SOFT = "#5d6673"
_COLUMNS = 3
_MARKERS = "os^Dv<>Pp*Xh"
_MOST_NAMED = 12

Point = tuple[float, float]


def histograms(
    weights: nn.Module | Mapping[str, Tensor],
    *,
    bins: int = 128,
    nonzero_only: bool = False,
    title: str = "Weights",
) -> Figure:
    """Draw the distribution of the values of each tensor, one panel for each.

    Args:
        weights: A network, whose convolutions' and linear layers' weights are shown, masks applied; or tensors of any
            shape by name.
        bins: Bars in a panel at most; small tensors get fewer.
        nonzero_only: Whether to leave out the zeros, whose bar would hide all others in a pruned tensor.
        title: Of the figure.

    Raises:
        ArgumentTypeError: ``weights`` is neither, or holds something else than tensors.
        ArgumentError: There is nothing to draw, or ``bins`` is below 1.
        WeightError: A tensor holds NaN or Inf.
    """
    tensors = _weights_of(weights) if isinstance(weights, nn.Module) else weights
    _require(tensors, "weights", Tensor, "tensors")
    if bins < 1:
        raise ArgumentError(f"bins must be at least 1, not {bins}")
    rows = math.ceil(len(tensors) / _COLUMNS)
    columns = min(_COLUMNS, len(tensors))
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, tensor) in zip(panels, tensors.items(), strict=False):
        values = tensor.detach().float().cpu().numpy().ravel()
        if not np.isfinite(values).all():
            raise WeightError(f"'{name}' holds NaN or Inf: it has no distribution to draw")
        shown = values[values != 0] if nonzero_only else values
        if shown.size:
            # One patch for all bars: drawing one for each takes seconds.
            most = math.ceil(2 * math.sqrt(shown.size))
            panel.stairs(*np.histogram(shown, bins=min(bins, most), density=True), fill=True, color=_PRUNED)
        zeros = f", {np.mean(values == 0):.0%} zero" if nonzero_only else ""
        panel.set_title(f"{name}\n{values.size:,} values{zeros}", fontsize=9, parse_math=False)
        panel.tick_params(labelsize=8)
        _plain(panel)
    for panel in panels[len(tensors) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    figure.supxlabel("value of the weight", fontsize=10)
    figure.supylabel("density", fontsize=10)
    return figure


def sensitivity(curves: Sensitivity, *, title: str = "Sensitivity: one layer pruned, all others dense") -> Figure:
    """Draw accuracy against sparsity, one line for each layer, all in one panel to be compared.

    Of many layers those that lose the most are named, and the others are grey.

    Args:
        curves: What :func:`fxprune.sensitivity` returns.
        title: Of the figure.

    Raises:
        ArgumentTypeError: ``curves`` is something else.
    """
    if not isinstance(curves, Sensitivity):
        raise ArgumentTypeError(f"curves must come from fxprune.sensitivity, not {type(curves).__name__}")
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(curves.sparsities)
    shares = np.asarray(curves.sparsities)[order]
    worst = sorted(curves.accuracy, key=lambda layer: sum(curves.accuracy[layer]))[:_MOST_NAMED]
    named = [layer for layer in curves.accuracy if layer in worst]
    for layer, accuracy in curves:
        if layer not in named:
            axes.plot(shares, np.asarray(accuracy)[order], linewidth=0.8, color=_DENSE, zorder=1)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(named)))
    for i, layer in enumerate(named):
        axes.plot(
            shares,
            np.asarray(curves.accuracy[layer])[order],
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
    rest = len(curves) - len(named)
    heading = f"{len(named)} most sensitive layers\n({rest} others in grey)" if rest else None
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9, title=heading)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _plain(axes)
    return figure


def widths(
    plan: ChannelPlan | Mapping[str, tuple[int, int]], *, title: str = "Channels before and after pruning"
) -> Figure:
    """Draw the output channels of each layer before and after pruning, with the share that is kept.

    Args:
        plan: A plan, of which the layers that make channels are shown; or channels before and after, by layer.
        title: Of the figure.

    Raises:
        ArgumentTypeError: ``plan`` is neither.
        ArgumentError: There is no layer, or one has no channels before, or more of them after.

    Example:
        >>> fxprune.plot.widths(fxprune.plan_channels(deps, 0.5)).savefig("widths.png")
    """
    channels = _channels_of(plan) if isinstance(plan, ChannelPlan) else plan
    _require(channels, "plan", Sequence, "pairs of numbers")
    for layer, (before, after) in channels.items():
        if not 0 <= after <= before or not before:
            raise ArgumentError(f"'{layer}' cannot have {after} of {before} channels left")
    figure = Figure(figsize=(8.4, 1.3 + 0.24 * len(channels)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(channels))
    bars = axes.barh(at, [before for before, _ in channels.values()], height=0.74, color=_DENSE, label="before")
    axes.barh(at, [after for _, after in channels.values()], height=0.46, color=_PRUNED, label="after")
    texts = [
        f"{before}" if before == after else f"{before} → {after}  ({after / before:.0%})"
        for before, after in channels.values()
    ]
    axes.bar_label(bars, texts, fontsize=8, padding=4, color=_SOFT)
    axes.set_yticks(at, list(channels), fontsize=8, parse_math=False)
    axes.set_ylim(len(channels) - 0.4, -0.6)
    axes.margins(x=0.16)
    axes.set_ylabel("layer, in the order of the data")
    axes.set_xlabel("output channels")
    axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    _plain(axes)
    return figure


def tradeoff(
    points: Mapping[str, Point | Sequence[Point]], *, title: str = "Accuracy over multiply-accumulates"
) -> Figure:
    """Draw the accuracy of several networks over what they cost to run.

    Args:
        points: By name either one network as ``(MACs, accuracy)``, or several of them that are joined by a line, such
            as one criterion at several ratios. MACs are above 0, and an accuracy lies in [0, 1].
        title: Of the figure.

    Raises:
        ArgumentTypeError: ``points`` is no mapping, or one of them is no pair of numbers.
        ArgumentError: There are none, or a number is out of range.

    Example:
        >>> tradeoff({"dense": (606e6, 0.93), "input-l2": [(305e6, 0.92), (160e6, 0.89)]})
    """
    _require(points, "points", Sequence, "pairs (MACs, accuracy), or lists of such pairs")
    series = {name: _series(name, given) for name, given in points.items()}
    top = max(macs for found in series.values() for macs, _ in found)
    scale, unit = next(((s, u) for s, u in ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs")) if top >= s), (1.0, "MACs"))
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(series.items()):
        across, up = zip(*((macs / scale, accuracy) for macs, accuracy in sorted(found)), strict=True)
        colour, marker = colormaps["tab10"](i % 10), _MARKERS[i % len(_MARKERS)]
        axes.plot(across, up, color=colour, label=name, marker=marker, markersize=7, linewidth=1.5)
    axes.set_xlabel(f"multiply-accumulates of one forward pass ({unit})")
    axes.set_ylabel("accuracy")
    axes.set_xlim(left=0)
    heights = [accuracy for found in series.values() for _, accuracy in found]
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if max(heights) - min(heights) > 0.05 else 1))
    axes.grid(alpha=0.3)
    axes.set_title(title)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _plain(axes)
    return figure


def comparison(
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
    _require(accuracy, "accuracy", Mapping, "accuracies of networks")
    _require(costs, "costs", Mapping, "costs of networks")
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


def _weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers, a shared one once."""
    found: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    for name, place in weight_places(network).items():
        if isinstance(place.owner, LAYERS) and place.attribute == "weight":
            found.setdefault(place.identity, (name, place.value))
    return dict(found.values())


def _channels_of(plan: ChannelPlan) -> dict[str, tuple[int, int]]:
    groups = DependencyGraph.of(plan.gm, plan.structure).groups
    makers = {layer for group in groups for layer in group.producers}
    return {
        name: (layer.size[1], layer.size[1] if layer.outputs is None else len(layer.outputs))
        for name, layer in plan.layers.items()
        if name in makers
    }


def _series(name: str, given: Point | Sequence[Point]) -> list[Point]:
    """The points of one name."""
    single = len(given) == 2 and not isinstance(given[0], Sequence)
    found = [cast(Point, given)] if single else list(cast(Sequence[Point], given))
    if not found:
        raise ArgumentError(f"'{name}' has no points")
    for point in found:
        if not isinstance(point, Sequence) or len(point) != 2:
            raise ArgumentTypeError(f"'{name}' must have pairs (MACs, accuracy), not {point!r}")
        macs, accuracy = point
        if not (0 < macs < math.inf and 0 <= accuracy <= 1):
            raise ArgumentError(f"'{name}' needs MACs above 0 and an accuracy in [0, 1], not {point!r}")
    return found


def _require(given: object, name: str, kind: type, kinds: str) -> None:
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(f"{name} must give {kinds} by name, not a {type(given).__name__}")
    if not given:
        raise ArgumentError(f"{name} is empty: there is nothing to draw")
    for key, value in given.items():
        if not isinstance(value, kind):
            raise ArgumentTypeError(f"{name} must give {kinds} by name; {key!r} is a {type(value).__name__}")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
