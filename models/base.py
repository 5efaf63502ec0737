"""What the small reference networks have in common."""

from __future__ import annotations

__all__ = ["Network", "conv_norm", "pooled_head", "scaled"]

import math
from typing import ClassVar

from torch import nn

from fxprune.errors import ArgumentError, ArgumentTypeError


class Network(nn.Module):
    """A small network that shows one pattern of the field, in realistic widths and below 100,000 parameters.

    Inputs are float32 tensors ``(batch, *shape)``, one for each ``shape`` of ``input_shapes``. Unless the class says
    otherwise, the output has the shape ``(batch, 10)``.
    """

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 16, 16),)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """A same-size convolution without bias, its batch norm, and the activation if there is one.

    Shapes: ``(batch, inputs, height, width)`` to ``(batch, outputs, height / stride, width / stride)``.
    """
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation]))


def pooled_head(channels: int, classes: int = 10) -> nn.Sequential:
    """Mean over space, then a linear classifier: ``(batch, channels, height, width)`` to ``(batch, classes)``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def scaled(channels: int, width: float) -> int:
    """Channels at some width of a network: ``max(1, round(channels * width))``.

    Raises:
        ArgumentError: ``width`` is not positive and finite.
        ArgumentTypeError: ``width`` is not a number.
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise ArgumentTypeError(f"width must be a number, such as 1.0 or 0.25, not {width!r}")
    if not (math.isfinite(width) and width > 0):
        raise ArgumentError(f"width must be positive and finite, such as 1.0 or 0.25, not {width!r}")
    return max(1, round(channels * float(width)))
