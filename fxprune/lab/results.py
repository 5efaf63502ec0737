"""What a run of the lab measured, as one value that becomes the file of results."""

from __future__ import annotations

__all__ = ["PACKAGES", "LabResults", "Variant"]

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxprune.environment import versions
from fxprune.finetuning import EpochReport
from fxprune.lab.budgeting import Budgets
from fxprune.lab.settings import LabSettings
from fxprune.lab.steps import Costs
from fxprune.sensitivity import Sensitivity

PACKAGES = ("torchvision", "accelerate", "numpy", "scikit-learn")
"""On which the figures depend, besides fxprune and torch."""


@dataclass(frozen=True)
class Variant:
    """One network of the comparison.

    Attributes:
        accuracy: Test accuracy (0 to 1) as pruned.
        costs: Of the pruned network, which fine-tuning does not change.
        history: Epochs of the training that made it (dense) or that followed (pruned).
        tuned_accuracy: Test accuracy (0 to 1) after fine-tuning; None for the dense network.
    """

    accuracy: float
    costs: Costs
    history: tuple[EpochReport, ...]
    tuned_accuracy: float | None = None


@dataclass(frozen=True)
class LabResults:
    """All figures of a run.

    Attributes:
        settings: What was run.
        data_note: Where the images come from and how they were split.
        device: On which the latencies were measured, in words.
        dense: The network before pruning.
        fine_grained: Smallest weights set to zero.
        first: The first k channels kept.
        ranked: The k channels kept that matter most to the next layer.
        sensitivity: Validation accuracy with one layer pruned.
        widths_before: Output channels of each convolution.
        widths_after: The same after channel pruning.
        errors: By way of choosing the channels, the proof's largest relative error.
        budgets: What budgets came to.
        seconds: How long each step took.
    """

    settings: LabSettings
    data_note: str
    device: str
    dense: Variant
    fine_grained: Variant
    first: Variant
    ranked: Variant
    sensitivity: Sensitivity
    widths_before: Mapping[str, int]
    widths_after: Mapping[str, int]
    errors: Mapping[str, float]
    budgets: Budgets
    seconds: Mapping[str, float]

    @property
    def variants(self) -> dict[str, Variant]:
        """The four networks by the name that tables and plots give them."""
        return {
            "dense": self.dense,
            "fine-grained": self.fine_grained,
            "channels, first k": self.first,
            "channels, sorted": self.ranked,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything in the types of JSON; what differs from run to run is under ``timings`` alone."""
        return {
            "settings": {
                field.name: _plain(getattr(self.settings, field.name))
                for field in dataclasses.fields(self.settings)
                if field.name != "progress"
            },
            "versions": versions(*PACKAGES),
            "data": self.data_note,
            "networks": {name: _variant(variant) for name, variant in self.variants.items()},
            "sensitivity": {
                "sparsities": list(self.sensitivity.sparsities),
                "dense": self.sensitivity.dense,
                "accuracy": {layer: list(curve) for layer, curve in self.sensitivity},
            },
            "channels": {"before": dict(self.widths_before), "after": dict(self.widths_after)},
            "proof_max_relative_error": dict(self.errors),
            "budgets": dataclasses.asdict(self.budgets),
            "timings": {
                "device": self.device,
                "threads": torch.get_num_threads(),
                "latency_seconds": {
                    name: {
                        str(size): {"median": latency.median, "spread": latency.spread, "runs": latency.runs}
                        for size, latency in variant.costs.latencies.items()
                    }
                    for name, variant in self.variants.items()
                },
                "step_seconds": dict(self.seconds),
            },
        }


def _variant(variant: Variant) -> dict[str, Any]:
    profile = variant.costs.profile
    return {
        "accuracy": variant.accuracy,
        "accuracy_fine_tuned": variant.tuned_accuracy,
        "parameters": profile.parameters,
        "nonzero_parameters": profile.nonzero_parameters,
        "macs": profile.macs,
        "size_bytes": profile.size_bytes,
        "nonzero_bytes": profile.nonzero_bytes,
        "epochs": [dataclasses.asdict(report) for report in variant.history],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
