"""A small DenseNet with bottlenecks and compression (DenseNet-BC; Huang et al., 2017, arXiv:1608.06993)."""

from __future__ import annotations

__all__ = ["DenseNet"]

from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import pooled_head, scaled
from fxprune.models.concatenation import DenseLayer


class DenseNet(nn.Module):
    """Three blocks in which each layer reads all before it, halved in channels and size between them.

    Shapes: ``(batch, 3, height, width)``, with height and width at least 4, to ``(batch, num_classes)``.

    Args:
        width: Scales the 12 channels that every layer adds.
        num_classes: Outputs of the classifier.
        depth: Layers in each block.

    Raises:
        ArgumentError: ``width`` is not positive and finite.
        ArgumentTypeError: ``width`` is not a number.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 10, depth: int = 4) -> None:
        super().__init__()
        growth = scaled(12, width)
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for block in range(3):
            if block:
                parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(depth):
                parts.append(DenseLayer(channels, growth, 4 * growth))
                channels += growth
        self.blocks = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(channels)
        self.head = pooled_head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))))
