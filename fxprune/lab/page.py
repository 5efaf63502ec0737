"""The lab's figures as a report, in the form that every report has."""

from __future__ import annotations

__all__ = ["lab_report"]

from collections.abc import Mapping

from torch import Tensor

from fxprune.environment import versions
from fxprune.lab.report import budget_table, counted, remarks
from fxprune.lab.results import PACKAGES, LabResults
from fxprune.plan import ChannelPlan
from fxprune.reports import Histogram, NetworkColumn, Report
from fxprune.reports.building import now, plan_facts
from fxprune.verification import Proof


def lab_report(
    results: LabResults, plan: ChannelPlan, dense_weights: Mapping[str, Tensor], sparse_weights: Mapping[str, Tensor]
) -> Report:
    """Put a run of the lab into a report.

    Args:
        results: All its figures.
        plan: By which the channels were cut, those that matter most to the next layer being kept.
        dense_weights: Of the dense network, by name.
        sparse_weights: The same after fine-grained pruning.
    """
    settings = results.settings
    names = {"first": "channels, first k", "input-l2": "channels, sorted"}
    return Report(
        title=f"The lab on {settings.data}: a VGG pruned both ways",
        made=now(),
        asked={
            "data": settings.data,
            "width": settings.width,
            "checkpoint": None if settings.checkpoint is None else settings.checkpoint.name,
            "epochs": settings.epochs,
            "epochs_of_fine-tuning": settings.finetune_epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.lr,
            "learning_rate_of_fine-tuning": settings.finetune_lr,
            "weight_decay": settings.weight_decay,
            "weight_decay_of_fine-tuning": settings.finetune_weight_decay,
            "ratio_of_channels": settings.ratio,
            "seed": settings.seed,
            "images": results.data_note,
            "sparsities_of_fine-grained_pruning": dict(settings.sparsities),
        },
        versions=versions(*PACKAGES),
        device=results.device,
        networks={
            name: NetworkColumn(
                profile=variant.costs.profile,
                latencies={counted(size, "image"): time for size, time in variant.costs.latencies.items()},
                accuracy=variant.accuracy,
                tuned_accuracy=variant.tuned_accuracy,
                history=variant.history,
            )
            for name, variant in results.variants.items()
        },
        proofs={
            names[criterion]: Proof(error, not plan.inexact, list(plan.inexact))
            for criterion, error in results.errors.items()
        },
        sensitivity=results.sensitivity,
        histograms={
            "The dense network": tuple(Histogram.of(name, weight) for name, weight in dense_weights.items()),
            "After fine-grained pruning, zeros left out": tuple(
                Histogram.of(name, weight, nonzero_only=True) for name, weight in sparse_weights.items()
            ),
        },
        tables={"And with a budget": budget_table(results)},
        remarks=remarks(results),
        commands={"Run the lab": settings.command},
        **plan_facts(plan),
    )
