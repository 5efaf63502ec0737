"""A small MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381)."""

from __future__ import annotations

__all__ = ["MobileNetV2"]

from torch import Tensor, nn

from fxprune.models.base import conv_norm, pooled_head, scaled

_STAGES = ((1, 16, 1, 1), (4, 24, 2, 1), (4, 32, 2, 2), (4, 64, 2, 2))
"""Expansion, channels, blocks and first stride of each stage."""


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv_norm(inputs, hidden, 1, activation=nn.ReLU6(inplace=True))] if expansion > 1 else []
        layers.append(conv_norm(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6(inplace=True)))
        layers.append(conv_norm(hidden, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Inverted residuals: wide and depthwise inside, narrow and linear where they are added.

    Shapes: ``(batch, 3, height, width)``, with height and width at least 4, to ``(batch, num_classes)``.

    Args:
        width: Scales the channels of every stage.
        num_classes: Outputs of the classifier.

    Raises:
        ArgumentError: ``width`` is not positive and finite.
        ArgumentTypeError: ``width`` is not a number.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        inputs = scaled(16, width)
        self.stem = conv_norm(3, inputs, activation=nn.ReLU6(inplace=True))
        blocks: list[nn.Module] = []
        for expansion, channels, count, stride in _STAGES:
            outputs = scaled(channels, width)
            for block in range(count):
                blocks.append(_InvertedResidual(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_norm(inputs, scaled(160, width), 1, activation=nn.ReLU6(inplace=True))
        self.head = pooled_head(scaled(160, width), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))))
