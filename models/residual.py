"""Residual networks: layers that must keep the same channels because their outputs are added."""

from __future__ import annotations

__all__ = ["Bottleneck", "PaddedShortcut", "PreActivation", "Residual"]

from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None if inputs == outputs and stride == 1 else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Residual(Network):
    """Basic blocks (ResNet, He et al. 2015): an identity shortcut and a strided 1x1 one; additions in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, activation=nn.ReLU(inplace=True))
        self.layer1 = _BasicBlock(16, 16)
        self.layer2 = _BasicBlock(16, 32, stride=2)
        self.layer3 = _BasicBlock(32, 32)
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer3(self.layer2(self.layer1(self.stem(x)))))


class PaddedShortcut(Network):
    """The shortcut without weights of ResNet's option A: every other pixel, and zeros for the channels it lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, activation=nn.ReLU())
        self.conv1 = conv_norm(16, 32, stride=2, activation=nn.ReLU())
        self.conv2 = conv_norm(32, 32)
        self.conv3 = conv_norm(32, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        x = F.relu(self.conv2(self.conv1(x)) + shortcut)
        return self.head(self.conv3(x))


class _PreActivationBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 20, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(out)))


class PreActivation(Network):
    """Batch norm before the convolution (He et al. 2016): one stream of channels feeds many batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.blocks = nn.Sequential(*(_PreActivationBlock(24) for _ in range(3)))
        self.norm = nn.BatchNorm2d(24)
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))))


class Bottleneck(Network):
    """1x1, 3x3 and 1x1 convolutions around a wide stream that three heads of different kinds read.

    The output is a tuple: scores ``(batch, 10)``, boxes ``(batch, 4, 8, 8)`` and the stream's mean ``(batch, 48)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 48, stride=2, activation=nn.ReLU())
        self.reduce = conv_norm(48, 12, 1, activation=nn.ReLU())
        self.spatial = conv_norm(12, 12, activation=nn.ReLU())
        self.expand = conv_norm(12, 48, 1)
        self.scores = pooled_head(48)
        self.boxes = nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        x = F.relu(x + self.expand(self.spatial(self.reduce(x))))
        return self.scores(x), self.boxes(x), x.mean(dim=(2, 3))
