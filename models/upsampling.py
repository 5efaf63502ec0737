"""Networks that make images larger: transposed convolutions, pixel shuffles and feature pyramids."""

from __future__ import annotations

__all__ = ["FeaturePyramid", "GroupedTransposed", "PixelShuffleNet", "SpaceToDepth", "UNet"]

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class UNet(Network):
    """Transposed convolutions (inputs first in the weight) whose result is joined with an early one.

    The output has the shape ``(batch, 2, height, width)``. After Ronneberger et al. 2015.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm(3, 12, activation=nn.ReLU())
        self.down2 = conv_norm(12, 24, activation=nn.ReLU())
        self.bottom = conv_norm(24, 32, activation=nn.ReLU())
        self.up2 = nn.ConvTranspose2d(32, 24, 2, stride=2)
        self.merge2 = conv_norm(48, 24, activation=nn.ReLU())
        self.up1 = nn.ConvTranspose2d(24, 12, 3, stride=2, padding=1, output_padding=1)
        self.merge1 = conv_norm(24, 12, activation=nn.ReLU())
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        middle = self.down2(F.max_pool2d(high, 2))
        low = self.bottom(F.max_pool2d(middle, 2))
        middle = self.merge2(torch.cat([self.up2(low), middle], 1))
        high = self.merge1(torch.cat([high, self.up1(middle)], 1))
        return self.out(high)


class GroupedTransposed(Network):
    """Transposed convolutions with groups and depthwise; the output has the shape ``(batch, 3, 16, 16)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, stride=4, activation=nn.ReLU())
        self.grouped = nn.ConvTranspose2d(32, 24, 4, stride=2, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.ConvTranspose2d(24, 24, 4, stride=2, padding=1, groups=24)
        self.out = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(self.stem(x))))
        return self.out(F.relu(self.depthwise(x)))


class PixelShuffleNet(Network):
    """Super-resolution (Shi et al. 2016): four channels become one of twice the size, inside and at the end.

    The output has the shape ``(batch, 3, 4 * height, 4 * width)``.
    """

    input_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, 5, activation=nn.Tanh())
        self.widen = nn.Conv2d(24, 48, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.conv = conv_norm(12, 16, activation=nn.ReLU())
        self.out = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.shuffle(self.widen(self.stem(x)))))
        return F.pixel_shuffle(self.out(x), 2)


class SpaceToDepth(Network):
    """The inverse: four pixels of a channel become four channels, which go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, activation=nn.ReLU())
        self.conv = conv_norm(48, 32, 1, activation=nn.ReLU())
        self.last = conv_norm(128, 24, 1, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pixel_unshuffle(self.stem(x), 2))
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.head(self.last(x))


class FeaturePyramid(Network):
    """Lateral 1x1 convolutions added to enlarged maps, read by one head at every scale (Lin et al. 2017).

    The output is a dictionary: ``"fine"`` ``(batch, 5, 8, 8)`` and ``"coarse"`` ``(batch, 5, 4, 4)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm(3, 16, stride=2, activation=nn.ReLU())
        self.down2 = conv_norm(16, 24, stride=2, activation=nn.ReLU())
        self.lateral1 = nn.Conv2d(16, 20, 1)
        self.lateral2 = nn.Conv2d(24, 20, 1)
        self.smooth = nn.Conv2d(20, 20, 3, padding=1)
        self.predict = nn.Conv2d(20, 5, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.down1(x)
        coarse = self.lateral2(self.down2(fine))
        fine = self.lateral1(fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return {"fine": self.predict(F.relu(self.smooth(fine))), "coarse": self.predict(F.relu(coarse))}
