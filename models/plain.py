"""Chains of layers: activations with weights, dropout, one and three dimensions, an operator that few tools know."""

from __future__ import annotations

__all__ = ["DropoutNet", "PReLUNet", "Spectral", "Temporal", "Volumetric"]

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class PReLUNet(Network):
    """Activations with a weight for each channel, with one weight for all, and as a function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.act1 = nn.PReLU(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.act2 = nn.PReLU()
        self.conv3 = nn.Conv2d(24, 32, 1)
        self.slope = nn.Parameter(torch.full((32,), 0.25))
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.act2(self.conv2(x))
        return self.head(F.prelu(self.conv3(x), self.slope))


class DropoutNet(Network):
    """Layers and functions that do something in training mode alone, and must still do so after pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 24, activation=nn.ReLU())
        self.drop = nn.Dropout2d(0.2)
        self.conv2 = conv_norm(24, 24)
        self.hidden = nn.Linear(24, 40)
        self.classifier = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv1(x))
        x = x + F.dropout2d(self.conv2(x), 0.1, training=self.training)
        x = F.relu(self.hidden(x.mean((2, 3))))
        return self.classifier(F.dropout(x, p=0.5, training=self.training))


class Temporal(Network):
    """One-dimensional convolutions, one of them causal and dilated, on a signal of 32 samples."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((4, 32),)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 16, 5, padding=2)
        self.norm1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 16, 3, dilation=2)
        self.up = nn.ConvTranspose1d(16, 12, 2, stride=2)
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = x + F.relu(self.conv2(F.pad(x, (4, 0))))
        return self.classifier(F.relu(self.up(x)).mean(-1))


class Volumetric(Network):
    """Three-dimensional convolutions on a volume of 8x8x8."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 8, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(16)
        self.classifier = nn.Linear(16 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool3d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.classifier(x.flatten(1))


class Spectral(Network):
    """A Fourier transform over space between layers: few tools have a rule for it, so what it reads may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 16, activation=nn.ReLU())
        self.conv2 = conv_norm(16, 20, activation=nn.ReLU())
        self.conv3 = conv_norm(20, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        return self.head(self.conv3(torch.fft.fft2(x, norm="ortho").real))
