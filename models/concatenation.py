"""Concatenations and splits: one tensor holds the channels of several producers, or several readers share one."""

from __future__ import annotations

__all__ = ["CReLU", "CrossStagePartial", "Dense", "DenseLayer", "Inception", "Res2Net", "Slices", "SplitBranches"]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class DenseLayer(nn.Module):
    """A 1x1 convolution to ``inner`` channels and a 3x3 one to ``growth``, which are put behind the inputs."""

    def __init__(self, inputs: int, growth: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return torch.cat([x, out], 1)


class Dense(Network):
    """DenseNet (Huang et al. 2017): each layer reads all before it, so one channel is read at many offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*(DenseLayer(16 + 8 * i, 8, 16) for i in range(3)))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(*(DenseLayer(20 + 8 * i, 8, 16) for i in range(2)))
        self.norm = nn.BatchNorm2d(36)
        self.classifier = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        x = F.relu(self.norm(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class Inception(Network):
    """Branches of different widths and depths side by side (Szegedy et al. 2015), one of them behind a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.branch1 = conv_norm(24, 8, 1, activation=nn.ReLU())
        self.branch3 = nn.Sequential(
            conv_norm(24, 12, 1, activation=nn.ReLU()), conv_norm(12, 16, activation=nn.ReLU())
        )
        self.branch5 = nn.Sequential(
            conv_norm(24, 8, 1, activation=nn.ReLU()), conv_norm(8, 12, 5, activation=nn.ReLU())
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_norm(24, 8, 1, activation=nn.ReLU()))
        self.mix = conv_norm(44, 32, 1, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)]
        return self.head(self.mix(torch.cat(branches, dim=1)))


class SplitBranches(Network):
    """``torch.split`` into unequal, hard-coded sizes; each part goes its own way and they meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, activation=nn.ReLU())
        self.left = conv_norm(12, 20, activation=nn.ReLU())
        self.right = conv_norm(20, 20, 1, activation=nn.ReLU())
        self.mix = conv_norm(32, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.stem(x), [12, 20], dim=1)
        right = self.left(left) + self.right(right)
        return self.head(self.mix(torch.cat([right, left], 1)))


class Res2Net(Network):
    """A chain over equal parts of one tensor (Gao et al. 2019): each part is added to the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 40, activation=nn.ReLU())
        self.reduce = conv_norm(40, 32, 1, activation=nn.ReLU())
        self.chain = nn.ModuleList(conv_norm(8, 8, activation=nn.ReLU()) for _ in range(3))
        self.expand = conv_norm(32, 40, 1)
        self.head = pooled_head(40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = torch.split(self.reduce(x), 8, 1)
        outs = [parts[0]]
        for conv, part in zip(self.chain, parts[1:], strict=True):
            outs.append(conv(part if len(outs) == 1 else part + outs[-1]))
        return self.head(F.relu(x + self.expand(torch.cat(outs, 1))))


class Slices(Network):
    """Channels picked by hard-coded slices, two of which overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, activation=nn.ReLU())
        self.first = conv_norm(12, 16, activation=nn.ReLU())
        self.middle = conv_norm(16, 16, activation=nn.ReLU())
        self.last = conv_norm(12, 16, 1, activation=nn.ReLU())
        self.head = pooled_head(28)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.first(x[:, :12]) * torch.sigmoid(self.middle(x[:, 8:24])) + self.last(x[:, -12:])
        return self.head(torch.cat((mixed, x[:, 20:]), 1))


class CrossStagePartial(Network):
    """A chunk that passes by, and a chain every link of which is kept for one concatenation (CSPNet, YOLO's C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=2, activation=nn.SiLU())
        self.enter = conv_norm(24, 32, 1, activation=nn.SiLU())
        self.blocks = nn.ModuleList(conv_norm(16, 16, activation=nn.SiLU()) for _ in range(2))
        self.leave = conv_norm(64, 32, 1, activation=nn.SiLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        kept = list(self.enter(self.stem(x)).chunk(2, 1))
        for block in self.blocks:
            kept.append(kept[-1] + block(kept[-1]))
        return self.head(self.leave(torch.cat(kept, 1)))


class CReLU(Network):
    """Each channel twice, once negated (Shang et al. 2016): two positions of one tensor live and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 16)
        self.conv2 = conv_norm(32, 24)
        self.head = pooled_head(48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(F.relu(torch.cat([x, -x], 1)))
        return self.head(F.relu(torch.cat([x, x.neg()], dim=1)))
