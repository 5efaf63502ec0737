"""Normalisations other than a plain batch norm; those over channels compute something else once channels go."""

from __future__ import annotations

__all__ = [
    "ChannelNorm",
    "ConvNeXt",
    "GlobalResponse",
    "GroupNormNet",
    "InstanceNormNet",
    "StandardizedLayer",
    "WeightStandardized",
]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class GroupNormNet(Network):
    """Group norms with four groups and with one; every group must keep the same number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 24)
        self.conv2 = nn.Conv2d(24, 32, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, 32)
        self.conv3 = nn.Conv2d(32, 24, 1)
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(F.relu(self.conv3(x)))


class InstanceNormNet(Network):
    """Instance norms with weights, without, and as a function: each channel by itself, so nothing is inexact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm2d(16, affine=True)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm2d(24)
        self.conv3 = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(F.relu(F.instance_norm(self.conv3(x))))


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.narrow(F.gelu(self.widen(self.norm(out))))
        return x + (self.gamma * out).permute(0, 3, 1, 2)


class ConvNeXt(Network):
    """Layer norm and linear layers on channels last, and a layer scale (Liu et al. 2022) that matters: 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2, stride=2)
        self.blocks = nn.Sequential(_ConvNeXtBlock(24), _ConvNeXtBlock(24))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(self.norm(x.mean([-2, -1])))


class ChannelNorm(Network):
    """A layer norm over channels first, once written out and once as ``F.layer_norm`` between two permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.weight = nn.Parameter(torch.ones(24))
        self.bias = nn.Parameter(torch.zeros(24))
        self.conv2 = nn.Conv2d(24, 32, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(32))
        self.conv3 = nn.Conv2d(32, 24, 1)
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        x = F.relu(self.weight[:, None, None] * x + self.bias[:, None, None])
        x = F.layer_norm(self.conv2(x).permute(0, 2, 3, 1), (32,), self.scale, None, 1e-5).permute(0, 3, 1, 2)
        return self.head(F.relu(self.conv3(F.relu(x))))


class GlobalResponse(Network):
    """Each channel's norm over space, relative to their mean (ConvNeXt V2, Woo et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 24, activation=nn.ReLU())
        self.gamma = nn.Parameter(torch.ones(1, 24, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, 24, 1, 1))
        self.conv2 = conv_norm(24, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        response = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        response = response / (response.mean(dim=1, keepdim=True) + 1e-6)
        return self.head(self.conv2(self.gamma * (x * response) + self.beta + x))


def _standardize(weight: Tensor) -> Tensor:
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    deviation = weight.std(dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (weight - mean) / (deviation + 1e-5)


class WeightStandardized(Network):
    """Weights that the graph computes (Qiao et al. 2019): their statistics change with the inputs that remain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.weight = nn.Parameter(torch.empty(32, 24, 3, 3))
        self.norm = nn.BatchNorm2d(32)
        self.conv = conv_norm(32, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.stem(x), _standardize(self.weight), padding=1)
        return self.head(self.conv(F.relu(self.norm(x))))


class _StandardizedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = _standardize(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedLayer(Network):
    """The same as a subclass of ``nn.Conv2d`` with a forward of its own, which does more than a convolution does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _StandardizedConv2d(3, 24, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 24)
        self.conv1 = _StandardizedConv2d(24, 32, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv2 = conv_norm(32, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        return self.head(self.conv2(F.relu(self.norm2(self.conv1(x)))))
