"""The figures of a report: plain values, from which the page is drawn and which JSON holds as they are."""

from __future__ import annotations

__all__ = ["GroupRow", "Histogram", "LayerRow", "NetworkColumn", "Report", "ShareTable"]

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.drawing.page import GraphComponent
from fxprune.errors import ArgumentError
from fxprune.finetuning import EpochReport
from fxprune.profiling import Latency, Profile
from fxprune.sensitivity import Sensitivity
from fxprune.verification import Proof

_FORMAT = "fxprune report"
_VERSION = 1


@dataclass(frozen=True)
class NetworkColumn:
    """One network of the comparison.

    Attributes:
        profile: Parameters, multiply-accumulates and bytes.
        latencies: Time of a forward pass, by what was passed (``"1 image"``).
        accuracy: Between 0 and 1, as pruned; None where it is not known.
        tuned_accuracy: The same after fine-tuning.
        history: Epochs of the training that made the network, or that followed its pruning.
    """

    profile: Profile
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    accuracy: float | None = None
    tuned_accuracy: float | None = None
    history: tuple[EpochReport, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """In the types of JSON; the profile's figures directly, bytes and seconds."""
        costs = dataclasses.asdict(self.profile)
        return {
            **{name: value for name, value in costs.items() if not name.startswith("latency")},
            "latency": {what: dataclasses.asdict(time) for what, time in self.latencies.items()},
            "accuracy": self.accuracy,
            "accuracy_fine_tuned": self.tuned_accuracy,
            "epochs": [dataclasses.asdict(epoch) for epoch in self.history],
        }


@dataclass(frozen=True)
class LayerRow:
    """What became of one layer, or of an operator that computes.

    Attributes:
        name: Qualified name, or the graph node's.
        kind: Class of the layer, or what the operator is called.
        detail: Kernel, stride, groups ... in words.
        role: ``"maker"``, ``"follower"`` (an entry for each channel, such as a batch norm) or ``"operator"``.
        inputs: Channels read, before and after; 0 where it reads none.
        outputs: Channels made, before and after.
        parameters: Before and after.
        macs: Multiply-accumulates of a pass of the example inputs, before and after.
        stays: Why it keeps all of its output channels; empty where it does not.
    """

    name: str
    kind: str
    detail: str
    role: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    stays: str


@dataclass(frozen=True)
class GroupRow:
    """What became of one group of channels.

    Attributes:
        name: Of the group.
        size: Its units before and after.
        producers: Layers that make them.
        followers: Layers with an entry for each.
        consumers: Layers that read them.
        frozen: Why none can go, or None.
    """

    name: str
    size: tuple[int, int]
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str | None


@dataclass(frozen=True)
class Histogram:
    """How the values of one tensor are distributed.

    Attributes:
        name: Of the tensor.
        edges: Of the bars, one more than there are bars.
        counts: Values in each bar.
        values: How many values the tensor has.
        zeros: How many of them are zero.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    values: int
    zeros: int

    @classmethod
    def of(cls, name: str, tensor: Tensor, bins: int = 48, nonzero_only: bool = False) -> Histogram:
        """Count a tensor.

        Args:
            name: Of the tensor.
            tensor: Any shape.
            bins: How many bars at most; small tensors get fewer.
            nonzero_only: Leave out zeros, whose bar would hide all others in a pruned tensor.

        Raises:
            ArgumentError: ``bins`` is below 1.
        """
        if bins < 1:
            raise ArgumentError(f"bins must be at least 1, not {bins}")
        values = tensor.detach().float().cpu().numpy().ravel()
        finite = values[np.isfinite(values)]
        shown = finite[finite != 0] if nonzero_only else finite
        most = max(1, math.ceil(2 * math.sqrt(shown.size)))
        counts, edges = np.histogram(shown, bins=min(bins, most))
        return cls(name, tuple(edges.tolist()), tuple(counts.tolist()), values.size, int((values == 0).sum()))


@dataclass(frozen=True)
class ShareTable:
    """A table of shares.

    Attributes:
        note: What it is about.
        columns: Titles of the columns.
        rows: By name, a share (0 to 1) for each column.
    """

    note: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    Attributes:
        title: Of the page.
        made: When, as in ISO 8601.
        asked: What was asked for, by name: model, inputs, ratio, criterion ...
        versions: Of Python, fxprune, torch and the packages that the model comes from.
        device: Where it ran, in words.
        networks: By name, the first being the one that the others are compared with.
        layers: In the order of the data.
        untouched: Layers whose channels the analysis does not know, and why they stay.
        groups: Those that can be pruned in the order of the data, then the frozen ones.
        proofs: By name, what :func:`fxprune.verify` found.
        inexact: Nodes that compute something else with fewer channels, and why.
        sensitivity: Accuracy curves of single layers, or None.
        histograms: By title, of weights.
        tables: By title, further figures.
        remarks: Sentences that the figures come to.
        graph: The network with what the plan does to it, to look around in; or None.
        commands: By title, what to type to get all this again.
    """

    title: str
    made: str
    asked: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    networks: Mapping[str, NetworkColumn]
    layers: tuple[LayerRow, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[GroupRow, ...] = ()
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    inexact: Mapping[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    histograms: Mapping[str, tuple[Histogram, ...]] = field(default_factory=dict)
    tables: Mapping[str, ShareTable] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    graph: GraphComponent | None = None
    commands: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything in the types of JSON."""
        curves = self.sensitivity
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "title": self.title,
            "made": self.made,
            "asked": dict(self.asked),
            "versions": dict(self.versions),
            "device": self.device,
            "networks": {name: network.as_dict() for name, network in self.networks.items()},
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "untouched": dict(self.untouched),
            "groups": [dataclasses.asdict(group) for group in self.groups],
            "proofs": {name: dataclasses.asdict(proof) for name, proof in self.proofs.items()},
            "inexact": dict(self.inexact),
            "sensitivity": None
            if curves is None
            else {
                "kind": curves.kind,
                "sparsities": list(curves.sparsities),
                "dense": curves.dense,
                "accuracy": {layer: list(curve) for layer, curve in curves},
            },
            "histograms": {
                title: [dataclasses.asdict(histogram) for histogram in found]
                for title, found in self.histograms.items()
            },
            "tables": {title: dataclasses.asdict(table) for title, table in self.tables.items()},
            "remarks": list(self.remarks),
            "graph": None if self.graph is None else self.graph.scene.as_dict(),
            "commands": dict(self.commands),
        }
