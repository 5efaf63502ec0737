"""The readable summary of a run of the lab: tables and sentences, every figure in them taken from the results."""

from __future__ import annotations

__all__ = ["budget_table", "budget_text", "compare", "counted", "markdown_table", "remarks", "summarise"]

from collections.abc import Mapping, Sequence

from fxprune.lab.results import LabResults, Variant
from fxprune.profiling import Latency
from fxprune.reports import ShareTable

_MIB = 2**20


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table whose columns line up, so that it can be read as plain text too.

    Args:
        header: Titles of the columns.
        rows: Cells; the first of each row names it and is set to the left, the others to the right.
    """
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        aligned = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def summarise(results: LabResults, plots: Mapping[str, str] | None = None) -> str:
    """Return the summary as markdown.

    Args:
        results: Of the run.
        plots: Paths of the pictures by title, to be shown at the end.
    """
    settings = results.settings
    origin = (
        f"weights from {settings.checkpoint.name}"
        if settings.checkpoint is not None
        else f"trained for {counted(settings.epochs, 'epoch')}, of which the best by validation accuracy is kept"
    )
    pictures = "".join(f"\n## {title}\n\n![{title}]({path})\n" for title, path in (plots or {}).items())
    return f"""# The lab on {settings.data}

VGG of width {settings.width:g}, {origin}; fine-tuned for {counted(settings.finetune_epochs, "epoch")} after pruning.
{results.data_note}. Seed {settings.seed}. Latencies: {results.device}.

## Accuracy

{_accuracy_table(results)}

## Cost

{_cost_table(results)}

## Layers

{_layer_table(results)}

Accuracy with one layer pruned and all others dense is that of the validation images; without pruning it is \
{_percent(results.sensitivity.dense)}.

## And with a budget

{budget_text(results)}

## Comparison

{compare(results)}
{pictures}"""


def compare(results: LabResults) -> str:
    """Return what the figures say about the two ways of pruning, as a list in markdown."""
    return "\n".join(f"- {line}" for line in remarks(results))


def remarks(results: LabResults) -> tuple[str, ...]:
    """Return what the figures say about the two ways of pruning, sentence by sentence."""
    return (
        _size_line(results),
        _arithmetic_line(results),
        *(_speed_line(size, results) for size in results.settings.latency_batches),
        _choice_line(results),
        _accuracy_line(results),
        f"Proof: the channel-pruned networks compute what the original computes with the removed channels set to "
        f"zero, to a relative error of {max(results.errors.values()):.0e} in float64.",
        _budget_line(results),
        _advice(results),
    )


def budget_table(results: LabResults) -> ShareTable:
    """Return the choices by eye beside the calls that replace them, and what smaller budgets came to."""
    budgets, macs = results.budgets, results.dense.costs.profile.macs
    rows = {f"{row.limited}: {row.way}": (row.cost, row.accuracy, row.recovered) for row in budgets.rows}
    points = {
        f"channels, {100 * point.share:g} %: {point.way}": (point.macs / macs, point.accuracy, point.recovered)
        for point in budgets.points
    }
    return ShareTable(
        note="Asked for the sizes that the choices by eye came to, and for smaller ones. Recovered: without training, "
        f"from {counted(budgets.images, 'training image')} without labels; of weights the batch norms and variances "
        "alone. The cost is that of what is limited: non-zero parameters for weights, MACs for channels.",
        columns=("cost left", "as pruned", "recovered"),
        rows=rows | points,
    )


def budget_text(results: LabResults) -> str:
    """Return the section on budgets as markdown."""
    table = budget_table(results)
    rows = [[name, *map(_percent, shares)] for name, shares in table.rows.items()]
    return f"{table.note}\n\n{markdown_table(['', *table.columns], rows)}"


def _budget_line(results: LabResults) -> str:
    eye, asked, even, curves = results.budgets.rows
    return (
        f"Budgets: at {_percent(asked.cost)} of the weights, one call leaves {_percent(asked.accuracy)} as pruned and "
        f"{_percent(asked.recovered)} after recovery, the choice by eye {_percent(eye.accuracy)} and "
        f"{_percent(eye.recovered)}; at {_percent(curves.cost)} of the MACs, {_percent(curves.accuracy)} and "
        f"{_percent(curves.recovered)}, the same share of every layer {_percent(even.accuracy)} and "
        f"{_percent(even.recovered)}."
    )


def _size_line(results: LabResults) -> str:
    profile = results.dense.costs.profile
    weights = results.fine_grained.costs.profile.nonzero_parameters / profile.parameters
    channels = results.ranked.costs.profile.parameters / profile.parameters
    winner = "fine-grained pruning" if weights < channels else "channel pruning"
    return (
        f"Size: fine-grained pruning leaves {_percent(weights)} of the parameters ({1 / weights:.2f}x fewer, where "
        f"zeros are not stored), removing {100 * results.settings.ratio:g} % of the channels leaves "
        f"{_percent(channels)} ({1 / channels:.2f}x fewer, in any format). Here {winner} compresses more."
    )


def _arithmetic_line(results: LabResults) -> str:
    dense, sparse, small = (v.costs.profile.macs for v in (results.dense, results.fine_grained, results.ranked))
    kept = 1 - results.settings.ratio
    return (
        f"Arithmetic: removing channels leaves {_percent(small / dense)} of the MACs ({dense / small:.2f}x fewer), "
        f"because most layers shrink on both sides, inputs and outputs: {kept:g} x {kept:g} = {kept**2:.2f}. "
        f"Fine-grained pruning leaves {_percent(sparse / dense)}: ordinary hardware multiplies by zero as by any "
        f"other number."
    )


def _choice_line(results: LabResults) -> str:
    first, ranked = results.first.accuracy, results.ranked.accuracy
    return (
        f"Which channels: without fine-tuning, keeping the first k gives {_percent(first)}, keeping the k that matter "
        f"most to the next layer {_percent(ranked)} ({_points(ranked - first)})."
    )


def _accuracy_line(results: LabResults) -> str:
    dense = results.dense.accuracy
    after = [
        f"{name} {_percent(variant.tuned_accuracy)} ({_points(variant.tuned_accuracy - dense)})"
        for name, variant in results.variants.items()
        if variant.tuned_accuracy is not None
    ]
    return f"Accuracy after fine-tuning, against {_percent(dense)} of the dense network: {'; '.join(after)}."


def _speed_line(size: int, results: LabResults) -> str:
    dense, fine, ranked = (
        variant.costs.latencies[size].median for variant in (results.dense, results.fine_grained, results.ranked)
    )
    macs = results.dense.costs.profile.macs / results.ranked.costs.profile.macs
    speed_up = dense / ranked
    reason = (
        ", less than the MACs fall, because moving data and starting layers do not shrink with the arithmetic"
        if speed_up < macs
        else ""
    )
    return (
        f"Latency for {counted(size, 'image')}: without the channels {_times(speed_up)}{reason}; with zeros among the "
        f"weights {_times(dense / fine)}."
    )


def _advice(results: LabResults) -> str:
    weights, channels = results.fine_grained.costs, results.ranked.costs
    smaller = weights.profile.nonzero_parameters < channels.profile.nonzero_parameters
    faster = all(
        channels.latencies[size].median < weights.latencies[size].median for size in results.settings.latency_batches
    )
    if smaller and faster:
        return (
            "So fine-grained pruning is for where size counts most, or where the hardware can use zeros; on a phone, "
            "as on any ordinary device, one takes channel pruning, which is faster as it is."
        )
    if faster:
        return "So channel pruning is both smaller and faster here, and the choice at these settings."
    if smaller:
        return "So fine-grained pruning is smaller, and channel pruning gains no speed at every batch size here."
    return "So neither way shows the advantage that it is chosen for: the network is too small for it."


def _accuracy_table(results: LabResults) -> str:
    return markdown_table(
        ["test accuracy", "as pruned", "fine-tuned", "against dense"],
        [
            [
                name,
                _percent(variant.accuracy),
                "-" if variant.tuned_accuracy is None else _percent(variant.tuned_accuracy),
                "-" if variant.tuned_accuracy is None else _points(variant.tuned_accuracy - results.dense.accuracy),
            ]
            for name, variant in results.variants.items()
        ],
    )


def _cost_table(results: LabResults) -> str:
    columns = {"dense": results.dense, "fine-grained": results.fine_grained, "channels": results.ranked}
    profiles = [variant.costs.profile for variant in columns.values()]
    rows = [
        _cost_row("parameters", [p.parameters for p in profiles], "{:,}"),
        _cost_row("non-zero parameters", [p.nonzero_parameters for p in profiles], "{:,}"),
        ["share of the dense size", *(_percent(p.nonzero_parameters / profiles[0].parameters) for p in profiles)],
        _cost_row("MiB of non-zeros", [p.nonzero_bytes / _MIB for p in profiles], "{:.2f}"),
        _cost_row("MACs", [p.macs for p in profiles], "{:,}"),
        *(_latency_row(size, list(columns.values())) for size in results.settings.latency_batches),
    ]
    return markdown_table(["", *columns], rows)


def _cost_row(title: str, values: Sequence[float], shown: str) -> list[str]:
    first, *others = values
    compared = ["" if value == first else f" ({first / value:.2f}x less)" for value in others]
    return [title, *(shown.format(value) + note for value, note in zip(values, ["", *compared], strict=True))]


def _latency_row(size: int, variants: Sequence[Variant]) -> list[str]:
    latencies = [variant.costs.latencies[size] for variant in variants]
    first, *others = latencies
    return [
        f"latency, batch of {size}",
        _milliseconds(first),
        *(f"{_milliseconds(latency)} ({_times(first.median / latency.median)})" for latency in others),
    ]


def _layer_table(results: LabResults) -> str:
    scan = results.sensitivity
    sparsities = results.settings.sparsities
    header = ["layer", "channels", "kept", "sparsity", *(f"at {100 * sparsity:g} %" for sparsity in scan.sparsities)]
    rows = []
    for layer, curve in scan:
        before, after = results.widths_before.get(layer), results.widths_after.get(layer)
        rows.append(
            [
                layer,
                "-" if before is None else str(before),
                "-" if after is None else str(after),
                f"{100 * sparsities.get(f'{layer}.weight', 0.0):g} %",
                *(_percent(value) for value in curve),
            ]
        )
    return markdown_table(header, rows)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 epoch`` or ``5 epochs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _times(speed_up: float) -> str:
    return f"{speed_up:.2f}x faster" if speed_up >= 1 else f"{1 / speed_up:.2f}x slower"


def _milliseconds(latency: Latency) -> str:
    return f"{1e3 * latency.median:.2f} ± {1e3 * latency.spread:.2f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"
