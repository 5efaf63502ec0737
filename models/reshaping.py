"""Reshapes, flattening and sizes that the author wrote down."""

from __future__ import annotations

__all__ = ["ChannelPermutation", "Constants", "FixedView", "FlattenNet", "FlattenView", "Maxout"]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class FlattenNet(Network):
    """A linear layer over channels, height and width: each channel is a run of 16 columns of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 16, activation=nn.ReLU()),
            nn.MaxPool2d(2),
            conv_norm(16, 24, activation=nn.ReLU()),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(24 * 4 * 4, 40)
        self.classifier = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return self.classifier(F.relu(self.hidden(x)))


class FlattenView(Network):
    """The same with ``view(batch, -1)``, and channels last, so that a channel is every 20th column of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5)
        self.conv2 = nn.Conv2d(12, 20, 5)
        self.fc1 = nn.Linear(20 * 2 * 2, 32)
        self.norm = nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x)).permute(0, 2, 3, 1).contiguous()
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.norm(self.fc1(x))))


class FixedView(Network):
    """``view(b, 2, 24, h, w)`` written by hand: the two blocks are taken apart, swapped and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 48, activation=nn.ReLU())
        self.conv2 = conv_norm(48, 32, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        b, h, w = x.size(0), x.size(2), x.size(3)
        x = x.view(b, 2, 24, h, w).flip(1).reshape(b, 48, h, w)
        return self.head(self.conv2(x))


class Maxout(Network):
    """The largest of two blocks of channels (Goodfellow et al. 2013): position by position they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_norm(3, 48)
        self.conv2 = conv_norm(24, 40)
        self.head = pooled_head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        b, _, h, w = x.shape
        x = x.view(b, 2, 24, h, w).amax(1)
        first, second = self.conv2(x).unflatten(1, (2, 20)).unbind(1)
        return self.head(torch.maximum(first, second))


class Constants(Network):
    """A scale that is expanded to written sizes, zeros that the graph makes itself, and a written ``reshape``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=4, activation=nn.ReLU())
        self.scale = nn.Parameter(torch.ones(1, 24, 1, 1))
        self.shift = nn.Parameter(torch.zeros(24))
        self.mix = conv_norm(32, 24, activation=nn.ReLU())
        self.classifier = nn.Linear(24 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.scale.expand(-1, 24, 4, 4) + self.shift[None, :, None, None]
        x = torch.cat([x, x.new_zeros(x.size(0), 8, 4, 4)], 1)
        return self.classifier(self.mix(x).reshape(-1, 24 * 4 * 4))


class ChannelPermutation(Network):
    """Channels read once in order and once in another, which a buffer of indices gives."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.register_buffer("order", torch.arange(24).reshape(4, 6).t().reshape(-1))
        self.conv1 = conv_norm(24, 32, activation=nn.ReLU())
        self.conv2 = conv_norm(24, 32, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.conv1(x[:, self.order]) + self.conv2(x))
