"""Gates: activations multiplied by weights that other layers compute from them."""

from __future__ import annotations

__all__ = [
    "EfficientChannelAttention",
    "GatedLinearUnit",
    "SelectiveKernel",
    "SpatialAttention",
    "SqueezeExcitationConv",
    "SqueezeExcitationLinear",
]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class SqueezeExcitationConv(Network):
    """Squeeze-and-excitation (Hu et al. 2018) with 1x1 convolutions on a pooled 1x1 map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, activation=nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(32, 12, 1)
        self.excite = nn.Conv2d(12, 32, 1)
        self.conv = conv_norm(32, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(self.pool(x)))))
        return self.head(self.conv(x * gate))


class SqueezeExcitationLinear(Network):
    """Squeeze-and-excitation with linear layers, so that channels change their dimension twice; inside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, activation=nn.ReLU())
        self.conv = conv_norm(32, 32)
        self.gate = nn.Sequential(nn.Linear(32, 8, bias=False), nn.ReLU(), nn.Linear(8, 32, bias=False), nn.Sigmoid())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv(x)
        b, c, _, _ = out.size()
        gate = self.gate(F.adaptive_avg_pool2d(out, 1).view(b, c)).view(b, c, 1, 1)
        return self.head(F.relu(x + out * gate.expand_as(out)))


class EfficientChannelAttention(Network):
    """A convolution along the channels (ECA, Wang et al. 2020): neighbouring channels depend on one another.

    No channel that this convolution slides over can go without changing its neighbours' gates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.conv = conv_norm(24, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        gate = torch.sigmoid(self.slide(gate)).transpose(-1, -2).unsqueeze(-1)
        return self.head(self.conv(x * gate))


class SpatialAttention(Network):
    """A gate from the mean and the maximum over channels (CBAM, Woo et al. 2018), both of which pruning changes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.gate = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.conv = conv_norm(24, 32, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(self.conv(x * self.gate(summary).sigmoid()))


class GatedLinearUnit(Network):
    """One half of the channels gates the other (Dauphin et al. 2017), once by ``chunk`` and once by ``F.glu``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 48)
        self.conv2 = conv_norm(24, 40)
        self.head = pooled_head(20)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv1(x).chunk(2, dim=1)
        x = F.glu(self.conv2(value * gate.sigmoid()), dim=1)
        return self.head(x)


class SelectiveKernel(Network):
    """Two branches stacked in a dimension of their own and weighted by a softmax over it (SKNet, Li et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, activation=nn.ReLU())
        self.branch3 = conv_norm(16, 24, activation=nn.ReLU())
        self.branch5 = conv_norm(16, 24, 5, activation=nn.ReLU())
        self.squeeze = conv_norm(24, 12, 1, activation=nn.ReLU())
        self.select = nn.Conv2d(12, 48, 1)
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = torch.stack([self.branch3(x), self.branch5(x)], dim=1)
        squeezed = self.squeeze(branches.sum(1).mean((2, 3), keepdim=True))
        weights = self.select(squeezed).view(x.size(0), 2, 24, 1, 1)
        return self.head((branches * torch.softmax(weights, 1)).sum(dim=1))
