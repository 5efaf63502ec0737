"""More networks that were once pruned wrongly, or not at all: writes, pieces, kernels and gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from test_counterexamples import Stem, holds
from torch import Tensor, nn

from fxprune.dependency import DependencyGraph


class WriteByPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.flatten(2)
        F.relu(y, True)
        return self.head(x)


def test_a_write_that_is_asked_for_by_position() -> None:
    """Nothing used what ``relu`` gave, so that it was dropped from the graph, and its write with it."""
    holds(WriteByPosition(), (3, 4, 4))


class WriteIntoTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.head = Stem(), nn.Linear(16, 3), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = x.transpose(1, 2).reshape(x.shape[0], 4, 16)
        x += 1
        return self.read(y), self.head(x)


def test_a_transposed_copy_does_not_become_a_view() -> None:
    """With one channel left, the reshape gave a view, and ``x += 1`` went into it as well."""
    holds(WriteIntoTransposed(), (3, 4, 4))


class WriteIntoEverySecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, ::2].mul_(2)
        x[:, [1, 2, 3, 4]].mul_(3)
        return self.head(x)


def test_a_view_does_not_become_a_copy_nor_a_copy_a_view() -> None:
    """What is left of every second channel was written as a list, and what is left of a list as a slice."""
    holds(WriteIntoEverySecond(), (3, 4, 4))


class GatesOfHalvesInTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.head = Stem(8), nn.Parameter(torch.ones(1, 2, 1, 1)), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        p, q = x.reshape(x.shape[0] * 2, -1, 4, 4).chunk(2, dim=1)
        return self.head(torch.cat([p * self.first, q.sigmoid()], 1).reshape(x.shape[0], -1, 4, 4))


def test_a_piece_of_blocks_is_not_empty() -> None:
    """The first pieces of all blocks lost all of their channels."""
    holds(GatesOfHalvesInTheBatch(), (3, 4, 4))


class KernelInOneRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = Stem(8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        return self.head(F.conv2d(self.stem(x), w / w.view(w.size(0), -1).norm(dim=1).view(-1, 1, 1, 1)))


def test_a_kernel_in_one_row() -> None:
    """Rows and columns of the kernel were missed where the channels beside them went, so that nothing was pruned."""
    deps = DependencyGraph.from_model(KernelInOneRow(), torch.zeros(2, 3, 4, 4))
    assert {"stem.second": 8, "conv": 8}.items() <= {g.name: g.size for g in deps.prunable}.items()
    holds(KernelInOneRow(), (3, 4, 4))


class OneChannelNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = (
            Stem(8),
            nn.Sequential(nn.Conv2d(8, 1, 1), nn.BatchNorm2d(1)),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


def test_a_norm_of_one_channel_says_nothing() -> None:
    """Its single channel was tied to all that the gate is spread over."""
    deps = DependencyGraph.from_model(OneChannelNorm(), torch.zeros(2, 3, 4, 4))
    assert any(group.size == 8 for group in deps.prunable)
    holds(OneChannelNorm(), (3, 4, 4))


class PickedFromTwoColumns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.head = Stem(8), nn.Conv2d(2, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = x.reshape(x.shape[0], 4, 2, 4, 4).transpose(1, 2).flatten(1, 2)
        return self.read(x[:, [1, 3]]), self.head(y)


def test_a_piece_of_several_classes_is_not_empty() -> None:
    """Of each column something was left, but of what was picked from one of them nothing."""
    holds(PickedFromTwoColumns(), (3, 4, 4))


class SpreadToAShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.line, self.one = Stem(4), nn.Linear(4, 4), nn.Conv2d(4, 1, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.stem(x))
        return self.head(self.one(x).expand(x.shape))


def test_of_a_shape_only_what_must_stay_is_written_out() -> None:
    """The channels that one is spread to stay, and with them the whole shape was written out, the batch as well."""
    holds(SpreadToAShape(), (3, 4, 4))


class PickedByABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(4), nn.Conv2d(2, 3, 1)
        self.register_buffer("picked", torch.tensor([0, 3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x)[:, self.picked])


def test_indices_in_a_buffer_are_no_sizes() -> None:
    """They were taken for sizes of a shape, and read off it one by one."""
    holds(PickedByABuffer(), (3, 4, 4))


class OctaveConvolution(nn.Module):
    """One weight for two resolutions, sliced along both of its dimensions (Chen et al., 2019)."""

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sum(outputs), sum(inputs), 1, 1))
        self.read, self.made = inputs[0], outputs[0]

    def forward(self, high: Tensor, low: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = F.conv2d(high, self.weight[0 : self.made, 0 : self.read])
        second = F.conv2d(high, self.weight[self.made :, 0 : self.read])
        if low is None:
            return first, second
        first = first + F.conv2d(low, self.weight[0 : self.made, self.read :])
        return first, second + F.conv2d(low, self.weight[self.made :, self.read :])


class OctaveBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = Stem(8), OctaveConvolution((8, 0), (4, 4))
        self.inner, self.outer = OctaveConvolution((8, 0), (4, 4)), OctaveConvolution((4, 4), (4, 4))
        self.high, self.low = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = self.shortcut(x)
        high, low = self.outer(*self.inner(x))
        return self.high(high + kept[0]) + self.low(low + kept[1])


def test_a_slice_of_two_dimensions_may_be_empty_by_the_old_numbers() -> None:
    """With the bounds of the original nothing was left of one half, which ended the search for the right ones."""
    holds(OctaveBlock(), (3, 4, 4))
    deps = DependencyGraph.from_model(OctaveBlock(), torch.zeros(1, 3, 4, 4))
    assert [group.name for group in deps.groups if group.frozen] == ["high"]


class EmptyPart(nn.Module):
    """Apart from the first positions, of which there are none, as of an attention without prefix tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = Stem(8), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        none, rest = x.transpose(1, 2)[:, :0], x.transpose(1, 2)[:, 0:]
        y = torch.cat([none.transpose(1, 2) * self.scale, self.norm(rest.transpose(1, 2))], 2)
        return self.head(torch.cat([y[:0], y]))


def test_an_empty_part_has_channels() -> None:
    """Labels of no elements were none, so that nothing fitted, whatever was frozen: the analysis did not settle."""
    holds(EmptyPart(), (3, 4, 4))
    deps = DependencyGraph.from_model(EmptyPart(), torch.zeros(2, 3, 4, 4))
    assert [group.name for group in deps.groups if group.frozen] == ["head"]


class NoChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.head = Stem(8), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, last = self.other(x).split([8, 0], 1)
        return self.head(torch.cat([x, x.new_zeros(x.shape[0], 0, *x.shape[2:]), last, first], 1))


def test_a_part_without_channels_keeps_what_it_was_taken_from() -> None:
    holds(NoChannels(), (3, 4, 4))
    deps = DependencyGraph.from_model(NoChannels(), torch.zeros(1, 3, 4, 4))
    frozen = {group.name: group.frozen for group in deps.groups if group.frozen}
    assert "what is taken of it is empty" in frozen["other"]
    assert "stem.second" not in frozen
