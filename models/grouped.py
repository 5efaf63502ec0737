"""Grouped and depthwise convolutions, and the shuffles that go with them."""

from __future__ import annotations

__all__ = [
    "ChannelMultiplier",
    "ChannelShuffleNet",
    "DepthwiseSeparable",
    "GroupedShuffle",
    "InvertedResidual",
    "MixedDepthwise",
    "ResNeXt",
]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class ResNeXt(Network):
    """A bottleneck whose 3x3 convolution has four groups (Xie et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 48, activation=nn.ReLU())
        self.reduce = conv_norm(48, 32, 1, activation=nn.ReLU())
        self.grouped = conv_norm(32, 32, groups=4, activation=nn.ReLU())
        self.expand = conv_norm(32, 48, 1)
        self.head = pooled_head(48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.expand(self.grouped(self.reduce(x)))))


class DepthwiseSeparable(Network):
    """Depthwise and pointwise convolutions in turn (MobileNet, Howard et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(3, 16, activation=nn.ReLU()),
            conv_norm(16, 16, stride=2, groups=16, activation=nn.ReLU()),
            conv_norm(16, 32, 1, activation=nn.ReLU()),
            conv_norm(32, 32, groups=32, activation=nn.ReLU()),
            conv_norm(32, 40, 1, activation=nn.ReLU()),
        )
        self.head = pooled_head(40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class InvertedResidual(Network):
    """Wide inside, narrow and without activation outside (MobileNetV2, Sandler et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, stride=2, activation=nn.ReLU6())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv_norm(12, 48, 1, activation=nn.ReLU6(inplace=True)),
                conv_norm(48, 48, groups=48, activation=nn.Hardswish()),
                conv_norm(48, 12, 1),
            )
            for _ in range(2)
        )
        self.last = conv_norm(12, 40, 1, activation=nn.ReLU6())
        self.head = pooled_head(40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.last(x))


class ChannelMultiplier(Network):
    """A depthwise convolution that makes two outputs of each input: they go when their input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, activation=nn.ReLU())
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(32)
        self.pointwise = conv_norm(32, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depthwise(self.stem(x))))
        return self.head(self.pointwise(x))


class MixedDepthwise(Network):
    """Depthwise convolutions with a kernel size of their own for each part of the channels (Tan and Le 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 36, 1, activation=nn.ReLU())
        self.parts = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in ((18, 3), (12, 5), (6, 7)))
        self.norm = nn.BatchNorm2d(36)
        self.conv = conv_norm(36, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x).split((18, 12, 6), dim=1)
        x = torch.cat([conv(part) for conv, part in zip(self.parts, parts, strict=True)], 1)
        return self.head(self.conv(F.relu(self.norm(x))))


class _ShuffleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(24, 24, 1, activation=nn.ReLU()),
            conv_norm(24, 24, groups=24),
            conv_norm(24, 24, 1, activation=nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        b, _, h, w = x.shape
        return x.view(b, 2, 24, h, w).transpose(1, 2).contiguous().view(b, 48, h, w)


class ChannelShuffleNet(Network):
    """Halves, of which one passes by, interleaved with sizes that are written down (ShuffleNetV2, Ma et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 48, stride=2, activation=nn.ReLU())
        self.block1 = _ShuffleBlock()
        self.block2 = _ShuffleBlock()
        self.last = conv_norm(48, 40, 1, activation=nn.ReLU())
        self.head = pooled_head(40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.block2(self.block1(self.stem(x)))))


class GroupedShuffle(Network):
    """A shuffle between two grouped convolutions, in a residual (ShuffleNet, Zhang et al. 2018); sizes computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 36, activation=nn.ReLU())
        self.reduce = conv_norm(36, 24, 1, groups=3, activation=nn.ReLU())
        self.depthwise = conv_norm(24, 24, groups=24)
        self.expand = conv_norm(24, 36, 1, groups=3)
        self.shuffle = nn.ChannelShuffle(2)
        self.head = pooled_head(36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.reduce(x)
        b, c, h, w = out.shape
        out = out.reshape(b, 3, c // 3, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
        out = self.expand(self.depthwise(out))
        return self.head(self.shuffle(F.relu(x + out)))
