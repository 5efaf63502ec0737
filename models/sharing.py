"""Weights used twice or not through a layer, and networks with several inputs or outputs."""

from __future__ import annotations

__all__ = [
    "FunctionalLayers",
    "SeveralInputs",
    "SeveralOutputs",
    "SharedBlock",
    "SharedConvolution",
    "TiedAutoencoder",
]

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class SharedConvolution(Network):
    """One convolution applied twice in a row, each time with a batch norm of its own: its inputs are its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.norm2 = nn.BatchNorm2d(24)
        self.last = conv_norm(24, 32, 1, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm1(self.conv(x)))
        x = F.relu(self.norm2(self.conv(x)))
        return self.head(self.last(x))


class SharedBlock(Network):
    """A convolution with its batch norm, applied to two different tensors whose results are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, activation=nn.ReLU())
        self.other = conv_norm(3, 16, 5, activation=nn.ReLU())
        self.block = conv_norm(16, 20, activation=nn.ReLU())
        self.last = conv_norm(40, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.block(self.stem(x)), self.block(self.other(x))], 1)
        return self.head(self.last(x))


class FunctionalLayers(Network):
    """Convolution, batch norm and linear layer as functions of parameters and buffers that the network itself holds."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(24, 3, 3, 3))
        self.norm_weight = nn.Parameter(torch.ones(24))
        self.norm_bias = nn.Parameter(torch.zeros(24))
        self.register_buffer("running_mean", torch.zeros(24))
        self.register_buffer("running_var", torch.ones(24))
        self.weight2 = nn.Parameter(torch.empty(32, 24, 3, 3))
        self.bias2 = nn.Parameter(torch.zeros(32))
        self.weight3 = nn.Parameter(torch.empty(10, 32))
        for weight in (self.weight1, self.weight2, self.weight3):
            nn.init.kaiming_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight1, None, padding=1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.norm_weight, self.norm_bias, self.training)
        x = F.relu(F.conv2d(F.relu(x), self.weight2, self.bias2, stride=2, padding=1))
        return F.linear(x.mean((2, 3)), self.weight3)


class TiedAutoencoder(Network):
    """One weight for a convolution and for the transposed one that undoes it; the output has the input's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 24, 4, stride=2, padding=1)
        self.inner = conv_norm(24, 24, activation=nn.ReLU())
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.encode(x))
        code = code + self.inner(code)
        return F.conv_transpose2d(code, self.encode.weight, self.bias, stride=2, padding=1)


class SeveralInputs(Network):
    """An image and a vector, as in conditional networks: the vector scales and shifts the image's channels (FiLM)."""

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 16, 16), (6,))

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, activation=nn.ReLU())
        self.embed = nn.Linear(6, 16)
        self.modulate = nn.Linear(16, 48)
        self.conv = conv_norm(24, 32, activation=nn.ReLU())
        self.classifier = nn.Linear(48, 10)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        condition = F.silu(self.embed(condition))
        scale, shift = self.modulate(condition).chunk(2, -1)
        x = self.stem(image) * (1 + scale[:, :, None, None]) + shift[..., None, None]
        x = self.conv(x).mean((2, 3))
        return self.classifier(torch.cat([x, condition], -1))


class SeveralOutputs(Network):
    """A dictionary of results, one of which is an inner activation and another a pair.

    ``"logits"`` has the shape ``(batch, 10)``, ``"features"`` ``(batch, 16, 8, 8)``, ``"pair"`` twice ``(batch, 4)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=2, activation=nn.ReLU())
        self.features = conv_norm(24, 16, activation=nn.ReLU())
        self.conv = conv_norm(16, 32, activation=nn.ReLU())
        self.head = pooled_head(32)
        self.mean = nn.Linear(32, 4)
        self.log_variance = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        features = self.features(self.stem(x))
        x = self.conv(features)
        pooled = x.mean((2, 3))
        return {
            "logits": self.head(x),
            "features": features,
            "pair": (self.mean(pooled), self.log_variance(pooled)),
        }
