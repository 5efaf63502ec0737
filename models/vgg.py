"""The VGG of the lab (MIT 6.5940, Lab 1), with the names that its published checkpoint uses."""

from __future__ import annotations

__all__ = ["VGG"]

from collections import Counter, OrderedDict

from torch import Tensor, nn

from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.models.base import scaled

_LAYOUT: tuple[int | None, ...] = (64, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)
"""Output channels of each convolution at full width; ``None`` is a 2x2 max pooling."""


class VGG(nn.Module):
    """Eight 3x3 convolutions with batch norm and ReLU, four poolings, a mean over space and a linear classifier.

    Layers are named as in the lab's checkpoint: ``backbone.conv0``, ``backbone.bn0``, ``backbone.relu0``,
    ``backbone.pool0``, ... and ``classifier``. At full width there are 9,228,362 parameters, and one 3x32x32
    image costs 606,164,480 multiply-accumulate operations.

    Shapes: ``(batch, 3, height, width)``, with height and width at least 16, to ``(batch, num_classes)``.

    Args:
        width: Scales the channels of every convolution: ``max(1, int(round(channels * width)))``.
        num_classes: Outputs of the classifier.

    Raises:
        ArgumentError: ``width`` is not positive and finite, or ``num_classes`` is below 1.
        ArgumentTypeError: One of them is not a number.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise ArgumentTypeError(f"num_classes must be an integer, such as 10, not {num_classes!r}")
        if num_classes < 1:
            raise ArgumentError(f"num_classes must be at least 1, not {num_classes}")

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        counts: Counter[str] = Counter()

        def add(kind: str, layer: nn.Module) -> None:
            layers[f"{kind}{counts[kind]}"] = layer
            counts[kind] += 1

        channels = 3
        for full in _LAYOUT:
            if full is None:
                add("pool", nn.MaxPool2d(2))
                continue
            out = scaled(full, width)
            add("conv", nn.Conv2d(channels, out, 3, padding=1, bias=False))
            add("bn", nn.BatchNorm2d(out))
            add("relu", nn.ReLU(inplace=True))
            channels = out

        self.backbone = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits
