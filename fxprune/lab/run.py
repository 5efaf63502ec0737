"""The whole lab in one call."""

from __future__ import annotations

__all__ = ["LabRun", "collect_results", "lab_figures", "run_lab", "save_run"]

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from fxprune import plot
from fxprune.environment import device_name
from fxprune.errors import ArgumentError
from fxprune.lab import steps
from fxprune.lab.budgeting import Budgets, share_budgets
from fxprune.lab.page import lab_report
from fxprune.lab.report import summarise
from fxprune.lab.results import LabResults, Variant
from fxprune.lab.settings import LabSettings
from fxprune.reports import Report, save_report
from fxprune.sensitivity import Sensitivity


@dataclass(frozen=True)
class LabRun:
    """What a run leaves: the figures as numbers and as plots.

    Attributes:
        results: The numbers.
        plots: The plots by file name without suffix.
        report: All of it, for a page.
    """

    results: LabResults
    plots: Mapping[str, Figure]
    report: Report


def run_lab(settings: LabSettings) -> LabRun:
    """Train or load the VGG, prune it both ways, fine-tune, measure and compare.

    With the same settings on the same machine every number is the same again, but for what a clock measures.

    Args:
        settings: Of the run.

    Raises:
        ArgumentError: The data set, the checkpoint or the device is not there.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "data"):
        lab = steps.prepare(settings)
    with _timed(seconds, "dense"):
        dense = steps.dense_network(lab)
    with _timed(seconds, "sensitivity"):
        curves = steps.scan_sensitivity(lab, dense.network)
    with _timed(seconds, "fine-grained"):
        masked = steps.prune_fine_grained(lab, dense.network)
        masked_tuned = steps.tune(lab, masked, "fine-tuning with masks")
    with _timed(seconds, "channels, first k"):
        first = steps.cut_channels(lab, dense.network, "first")
        first_tuned = steps.tune(lab, first.network, "fine-tuning, first k")
    with _timed(seconds, "channels, sorted"):
        ranked = steps.cut_channels(lab, dense.network, "input-l2")
        ranked_tuned = steps.tune(lab, ranked.network, "fine-tuning, sorted")
    with _timed(seconds, "budgets"):
        budgets = share_budgets(lab, dense.network, masked, ranked, curves)
    with _timed(seconds, "costs"):
        costs = steps.measure_costs(
            lab, {"dense": dense.network, "masked": masked_tuned.network, "cut": ranked_tuned.network}
        )
    results = collect_results(
        lab,
        dense=dense,
        masked=(masked, masked_tuned),
        first=(first, first_tuned),
        ranked=(ranked, ranked_tuned),
        curves=curves,
        costs=costs,
        budgets=budgets,
        seconds=seconds,
    )
    before, after = steps.layer_weights(dense.network), steps.layer_weights(masked)
    plots = {
        "histograms": plot.histograms(before, title="Weights of the dense network"),
        "histograms_pruned": plot.histograms(
            after, nonzero_only=True, title="Weights that fine-grained pruning leaves"
        ),
        **lab_figures(results),
    }
    return LabRun(results, plots, lab_report(results, ranked.plan, before, after))


def collect_results(
    lab: steps.Lab,
    *,
    dense: steps.Trained,
    masked: tuple[nn.Module, steps.Trained],
    first: tuple[steps.ChannelCut, steps.Trained],
    ranked: tuple[steps.ChannelCut, steps.Trained],
    curves: Sensitivity,
    costs: Mapping[str, steps.Costs],
    budgets: Budgets,
    seconds: Mapping[str, float] | None = None,
) -> LabResults:
    """Test every network and put all figures into one value.

    Args:
        lab: On whose test images the networks are tested.
        dense: The network before pruning.
        masked: After fine-grained pruning, and fine-tuned.
        first: With the first k channels, and fine-tuned.
        ranked: With the k channels that matter most to the next layer, and fine-tuned.
        curves: Of the sensitivity scan.
        costs: Of ``"dense"``, ``"masked"`` and ``"cut"``: both ways to choose channels give the same shapes.
        budgets: What budgets came to.
        seconds: How long each step took.
    """

    def variant(pruned: nn.Module, tuned: steps.Trained, cost: steps.Costs) -> Variant:
        return Variant(lab.test(pruned), cost, tuned.history, lab.test(tuned.network))

    return LabResults(
        settings=lab.settings,
        data_note=lab.data.note,
        device=f"{device_name(lab.device)}, float32",
        dense=Variant(lab.test(dense.network), costs["dense"], dense.history),
        fine_grained=variant(*masked, costs["masked"]),
        first=variant(first[0].network, first[1], costs["cut"]),
        ranked=variant(ranked[0].network, ranked[1], costs["cut"]),
        sensitivity=curves,
        widths_before=steps.channel_widths(dense.network),
        widths_after=steps.channel_widths(ranked[0].network),
        errors={"first": first[0].error, "input-l2": ranked[0].error},
        budgets=budgets,
        seconds=seconds or {},
    )


def lab_figures(results: LabResults) -> dict[str, Figure]:
    """Return the plots that need nothing but the numbers, by file name without suffix."""
    variants = results.variants
    costs = {
        "non-zero parameters": {name: float(v.costs.profile.nonzero_parameters) for name, v in variants.items()},
        "MACs": {name: float(v.costs.profile.macs) for name, v in variants.items()},
        **{
            f"latency, batch of {size}": {name: v.costs.latencies[size].median for name, v in variants.items()}
            for size in results.settings.latency_batches
        },
    }
    return {
        "sensitivity": plot.sensitivity(results.sensitivity),
        "widths": plot.widths(
            {name: (before, results.widths_after[name]) for name, before in results.widths_before.items()},
            title=f"Channels of each convolution, {100 * results.settings.ratio:g} % removed",
        ),
        "trade_off": plot.comparison(
            {
                "as pruned": {name: v.accuracy for name, v in variants.items()},
                "fine-tuned": {n: v.tuned_accuracy for n, v in variants.items() if v.tuned_accuracy is not None},
            },
            costs,
        ),
        "budgets": plot.tradeoff(_budget_series(results), title="Channels under a budget of multiply-accumulates"),
    }


def _budget_series(results: LabResults) -> dict[str, list[tuple[float, float]]]:
    dense = results.dense.costs.profile.macs
    *_, even, curves = results.budgets.rows
    series: dict[str, list[tuple[float, float]]] = {}
    for way, row in (("the same ratio for all", even), ("by curves after recovery", curves)):
        series[f"{way}, as pruned"] = [(row.cost * dense, row.accuracy)]
        series[f"{way}, recovered"] = [(row.cost * dense, row.recovered)]
    for point in results.budgets.points:
        series.setdefault(f"{point.way}, as pruned", []).append((point.macs, point.accuracy))
        series.setdefault(f"{point.way}, recovered", []).append((point.macs, point.recovered))
    return {"dense": [(dense, results.dense.accuracy)], **series}


def save_run(run: LabRun, out: Path) -> str:
    """Write the report, ``results.json``, ``summary.md`` and the plots as PNG into a folder, and return the summary.

    Args:
        run: What :func:`run_lab` returned.
        out: The folder; files of an earlier run in it are replaced.

    Raises:
        ArgumentError: The folder cannot be made or written.
    """
    save_report(run.report, out)
    titles = {
        "histograms": "Weights of the dense network",
        "histograms_pruned": "Weights that fine-grained pruning leaves",
        "sensitivity": "Sensitivity",
        "widths": "Channels",
        "trade_off": "Accuracy and cost",
        "budgets": "Accuracy under budgets",
    }
    summary = summarise(run.results, {titles[name]: f"{name}.png" for name in run.plots})
    try:
        for name, figure in run.plots.items():
            figure.savefig(out / f"{name}.png", dpi=120)
        (out / "summary.md").write_text(summary, encoding="utf-8")
        (out / "results.json").write_text(json.dumps(run.results.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"the results cannot be written to {str(out)!r}: {error}") from error
    return summary


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
