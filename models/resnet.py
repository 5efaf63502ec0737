"""The ResNet-20 of the CIFAR experiments (He et al., 2015, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

__all__ = ["ResNet20"]

from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import conv_norm, pooled_head, scaled


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs, stride=stride, activation=nn.ReLU(inplace=True))
        self.conv2 = conv_norm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet20(nn.Module):
    """A 3x3 stem and nine blocks of two 3x3 convolutions in three stages, with 1x1 convolutions as strided shortcuts.

    Shapes: ``(batch, 3, height, width)`` to ``(batch, num_classes)``.

    Args:
        width: Scales the 16, 32 and 64 channels of the stages.
        num_classes: Outputs of the classifier.

    Raises:
        ArgumentError: ``width`` is not positive and finite.
        ArgumentTypeError: ``width`` is not a number.
    """

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        stages = [scaled(channels, width) for channels in (16, 32, 64)]
        self.stem = conv_norm(3, stages[0], activation=nn.ReLU(inplace=True))
        blocks: list[nn.Module] = []
        inputs = stages[0]
        for stage, outputs in enumerate(stages):
            for block in range(3):
                blocks.append(_Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = pooled_head(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))
