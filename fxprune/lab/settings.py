"""The settings of a run of the lab, with defaults that depend on the data set."""

from __future__ import annotations

__all__ = ["PUBLISHED_SPARSITIES", "LabSettings"]

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.lab.data import DATASETS

PUBLISHED_SPARSITIES: Mapping[str, float] = MappingProxyType(
    {
        "backbone.conv0.weight": 0.0,
        "backbone.conv1.weight": 0.6,
        "backbone.conv2.weight": 0.5,
        "backbone.conv3.weight": 0.5,
        "backbone.conv4.weight": 0.5,
        "backbone.conv5.weight": 0.6,
        "backbone.conv6.weight": 0.6,
        "backbone.conv7.weight": 0.75,
        "classifier.weight": 0.0,
    }
)
"""The choice of sparsities that the lab publishes; 38.48 % of the full-width VGG's parameters stay."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"width": 0.25, "epochs": 10, "finetune_epochs": 5, "batch_size": 64, "lr": 0.05, "finetune_lr": 0.03},
    "cifar10": {"width": 1.0, "epochs": 100, "finetune_epochs": 5, "batch_size": 512, "lr": 0.1, "finetune_lr": 0.01},
}

_OPTIONS = ("data_dir", "checkpoint", "device", "width", "epochs", "finetune_epochs", "seed", "batch_size")


@dataclass(frozen=True)
class LabSettings:
    """What a run of the lab depends on. :meth:`for_data` fills in the defaults of a data set.

    Attributes:
        data: ``"digits"`` or ``"cifar10"``.
        width: Of the VGG; 1.0 is the lab's.
        epochs: Of training, where there is no checkpoint.
        finetune_epochs: After each way of pruning.
        batch_size: Images in a step, per process.
        lr: First learning rate of training.
        finetune_lr: First learning rate of fine-tuning; the lab's is 0.01.
        weight_decay: Of training.
        finetune_weight_decay: Of fine-tuning; the lab's is 1e-4.
        data_dir: Where CIFAR-10 lies; the digits need no folder.
        checkpoint: File with the weights of the dense network, which is then not trained.
        device: Where everything runs, such as ``"cpu"`` or ``"cuda"``.
        seed: Of the split, the first weights, the order of the images and their augmentation.
        ratio: Share of the channels that channel pruning removes.
        sparsities: By parameter, for fine-grained pruning.
        scan: Sparsities that the sensitivity scan tries on each layer.
        latency_batches: Images in the batches on which latencies are measured.
        budgets: Shares of the dense network's MACs that channels are cut down to.
        unlabelled: Training images that recovery is given, without their labels.
        progress: Whether to show progress bars.
    """

    data: str
    width: float
    epochs: int
    finetune_epochs: int
    batch_size: int
    lr: float
    finetune_lr: float
    weight_decay: float = 5e-4
    finetune_weight_decay: float = 1e-4
    data_dir: Path | None = None
    checkpoint: Path | None = None
    device: str = "cpu"
    seed: int = 0
    ratio: float = 0.3
    sparsities: Mapping[str, float] = field(default_factory=lambda: PUBLISHED_SPARSITIES)
    scan: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    latency_batches: tuple[int, ...] = (1, 64)
    budgets: tuple[float, ...] = (0.25, 0.06)
    unlabelled: int = 256
    progress: bool = True

    @classmethod
    def for_data(cls, data: str, **changes: Any) -> LabSettings:
        """Return the settings for a data set: its defaults, and ``changes``, of which ``None`` means the default.

        Args:
            data: ``"digits"`` or ``"cifar10"``.
            changes: Any other attribute.

        Raises:
            UnknownNameError: There is no such data set or no such setting.
            ArgumentError: A number of epochs or a batch size is below 1, or ``epochs`` is given with a checkpoint.
            ArgumentTypeError: One of them is no integer.
        """
        if data not in _DEFAULTS:
            raise UnknownNameError(f"there is no data set {data!r}; {nearest_names(data, DATASETS)}")
        names = [known.name for known in dataclasses.fields(cls)]
        for name in changes:
            if name not in names:
                raise UnknownNameError(f"the lab has no setting {name!r}; {nearest_names(name, names)}")
        given = {name: value for name, value in changes.items() if value is not None}
        if "checkpoint" in given and "epochs" in given:
            raise ArgumentError(
                f"epochs={given['epochs']} has no effect with a checkpoint, because then the dense network is not "
                f"trained; leave one of them out, or set finetune_epochs"
            )
        for name in ("data_dir", "checkpoint"):
            if name in given:
                given[name] = Path(given[name])
        settings = cls(data=data, **{**_DEFAULTS[data], **given})
        for name in ("epochs", "finetune_epochs", "batch_size"):
            value = getattr(settings, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentTypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ArgumentError(f"{name} must be at least 1, not {value}")
        return settings

    @property
    def command(self) -> str:
        """The command line for these settings, as far as it has options for them."""
        defaults = LabSettings.for_data(self.data)
        words = ["fxprune", "lab", "--data", self.data]
        for name in _OPTIONS:
            value = getattr(self, name)
            if value != getattr(defaults, name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)
