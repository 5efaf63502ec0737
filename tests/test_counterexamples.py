"""Networks that were once pruned wrongly, or not at all: each found by growing networks at random, then made small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from strategies import Wish, check
from torch import Tensor, nn

from fxprune.models import randomize

RATIOS = (0.3, 0.5, 0.75)


def holds(model: nn.Module, *shapes: tuple[int, ...], ratios: tuple[float, ...] = RATIOS) -> None:
    """Check a network with several plans, also at another batch size."""
    randomize(model.double()).eval()
    example, more = (tuple(torch.randn(n, *s, dtype=torch.float64) for s in shapes) for n in (2, 3))
    for ratio in ratios:
        for criterion in ("random", "first"):
            assert check(model, example, Wish(criterion=criterion, ratios=(ratio,)), more), "nothing was pruned"


class Stem(nn.Module):
    """Two convolutions, of which the first can always be pruned."""

    def __init__(self, out: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


# Capture --------------------------------------------------------------------------------------------------------------


class AugmentedAssignment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = Stem(), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = x
        y += F.relu(x)
        return self.a(x), self.b(y)


def test_augmented_assignment_changes_every_name_of_a_value() -> None:
    """torch.fx records ``y += x`` as ``y = y + x``, so that another name of ``y`` kept its old value."""
    holds(AugmentedAssignment(), (3, 4, 4))


class NewTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + torch.zeros(x.shape[0], 4, 4, 4, dtype=x.dtype))


def test_a_new_tensor_without_a_device() -> None:
    """It was made on the CPU while shapes were inferred on the meta device."""
    holds(NewTensor(), (3, 4, 4))


class NamedResult(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.max(self.stem(x), dim=3, keepdim=True).values)


def test_values_of_a_named_tuple() -> None:
    """``.values`` was taken for the method of a dictionary."""
    holds(NamedResult(), (3, 4, 4))


class LiteralTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).index_select(1, torch.tensor([1, 0])))


def test_a_tensor_made_in_the_code_adds_no_name() -> None:
    """It went into the state_dict as a buffer that the original does not have."""
    holds(LiteralTensor(), (3, 4, 4))


class HiddenBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)
        self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) * self.scale)


def test_a_buffer_that_is_not_saved_stays_so() -> None:
    """torch.fx registers every buffer as persistent."""
    holds(HiddenBuffer(), (3, 4, 4))


# Rules ----------------------------------------------------------------------------------------------------------------


class Assignment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).clone()
        y[:, :1] = 0.5
        return self.head(y)


def test_assignment_to_channels() -> None:
    """``setitem`` has no result, so it was taken for arithmetic on sizes and froze nothing."""
    holds(Assignment(), (3, 4, 4))


class NeighbouringChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = Stem(), nn.LocalResponseNorm(3), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)))


def test_local_response_norm_depends_on_the_order() -> None:
    """Channels were sorted across it."""
    holds(NeighbouringChannels(), (3, 4, 4))


class TwoLayersOnOneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bias, self.head = Stem(), nn.Parameter(torch.ones(4, 4, 4)), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.stem(x) + self.bias).flatten(2))


def test_labels_of_two_dimensions_that_become_one() -> None:
    """Layers were compared element by element, not by identity."""
    holds(TwoLayersOnOneDimension(), (3, 4, 4))


class OneChannelMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask, self.head = Stem(), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 3, 1)
        self.weight = nn.Parameter(torch.ones(4, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.stem(x), self.weight, groups=2)
        return self.head((y * torch.sigmoid(self.mask(y)))[:, :, :1])


def test_a_mask_of_one_channel_over_channels_that_stay() -> None:
    """The one channel's label gave the product a size of 1."""
    holds(OneChannelMask(), (3, 4, 4))


class TokensFoldedWithTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = Stem(), nn.Conv2d(1, 1, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.middle(x.reshape(x.shape[0] * 4, 1, 4, 4))
        return self.head(y.view(x.shape[0], 4, 4, 4))


def test_channels_folded_into_the_batch_leave_the_batch_free() -> None:
    """The product of batch and channels was written out as a number."""
    holds(TokensFoldedWithTheBatch(), (3, 4, 4))


class ChannelsFoldedIntoTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c = x.shape[:2]
        return self.head(F.relu(x.reshape(n * 4, c // 4, 4, 4)).view(n, -1, 4, 4))


def test_channels_folded_into_the_batch_leave_it_free() -> None:
    """``n * 4`` was written out as the number that is left for two images, and only two could be verified."""
    holds(ChannelsFoldedIntoTheBatch(), (3, 4, 4))


class VarianceOverFoldedChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x.reshape(x.shape[0] * 4, -1, 4, 4).view(x.shape[0], -1, 4, 4).var(1, unbiased=False)


def test_computed_sizes_beside_a_free_one() -> None:
    """Only one size can be -1: ``n * 4`` became a number where the author had left another open."""
    holds(VarianceOverFoldedChannels(), (3, 4, 4))


# Constraints ----------------------------------------------------------------------------------------------------------


class Layers(nn.Sequential):
    """Layers in a row after a stem, and a head."""

    def __init__(self, width: int, *layers: nn.Module, last: int) -> None:
        super().__init__(Stem(width), *layers, nn.Conv2d(last, 3, 1))


def test_groups_of_one_output_channel() -> None:
    """A block of one channel was no constraint, so a group could lose its only output."""
    holds(Layers(4, nn.Conv2d(4, 2, 1, groups=2), last=2), (3, 4, 4))


def test_groups_of_one_input_channel_transposed() -> None:
    holds(Layers(4, nn.ConvTranspose2d(4, 12, 1, groups=4), last=12), (3, 4, 4))


def test_blocks_that_cross() -> None:
    """Three blocks of four and four blocks of three over the same channels were taken for one constraint."""
    layers = (nn.ConvTranspose2d(12, 12, 1, groups=3), nn.Conv2d(12, 4, 1, groups=4))
    holds(Layers(12, *layers, last=4), (3, 4, 4))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-2, -1), dim=-1) @ v


class AsManyTokensAsHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(5, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, 4, -1).permute(2, 0, 3, 1, 4)
        return self.head(_attend(q, k, v).transpose(1, 2).reshape(x.shape[0], 4, 8))


def test_two_heads_are_not_four_of_half_the_size() -> None:
    """Whole heads went while ``reshape(n, 4, 3, 4, -1)`` still made four: wrong by 1.3 and called exact."""
    holds(AsManyTokensAsHeads(), (4, 5))


class FixedValuesOfHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = Stem(3), nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.qkv(self.stem(x).flatten(1, 2))
        q, k, v = (t.reshape(x.shape[0], 18, 3, 2).transpose(1, 2) for t in x.chunk(3, dim=-1))
        return _attend(q, k, v)


def test_a_head_that_stays_keeps_a_channel() -> None:
    """The values of the heads stay, but the queries and keys of one could all go: the analysis did not settle."""
    holds(FixedValuesOfHeads(), (3, 6, 6))


class HeadsOfComputedTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(12, 1)
        self.weight = nn.Parameter(torch.ones(4, 8))
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).amax(2) @ self.weight
        return self.attention(y, y, y, need_weights=False)[0]


def test_heads_over_a_product_with_a_parameter() -> None:
    """No plan that keeps 30 % of the channels could be carried out."""
    holds(HeadsOfComputedTokens(), (1, 4, 4))


class AsManyGroupsAsChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.group_norm(self.stem(x), 4))


def test_functional_group_norm_with_a_group_for_each_channel() -> None:
    """Its number of groups stayed while channels went."""
    holds(AsManyGroupsAsChannels(), (3, 4, 4))


class PartOfABlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.depthwise = Stem(), nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(7, 7, 1, groups=7)
        self.head, self.other = nn.Conv2d(7, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.head(self.depthwise(self.grouped(x).narrow(1, 0, 7))), self.other(x)


def test_sorting_exchanges_units_of_equal_size() -> None:
    """One unit had two channels of the layer and another one: an index was out of bounds."""
    holds(PartOfABlock(), (3, 4, 4))


class AttentionInAResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out, self.head = Stem(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (t.reshape(x.shape[0], 16, 4, 2).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        x = self.out(_attend(q, k, v).transpose(1, 2).flatten(2)) + x
        return self.head(x.amax(1, keepdim=True).transpose(1, 2).unsqueeze(-1))


def test_sorting_keeps_the_heads_of_queries_and_values_together() -> None:
    """No order of the channels could be carried out."""
    holds(AttentionInAResidual(), (3, 4, 4))


class WriteAfterShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.reshape(x.shape[0], 2, 2, 4, 4).transpose(1, 2).flatten(1, 2)
        x.add_(1)
        return self.head(torch.cat([y, x], 1))


def test_a_copy_does_not_become_a_view() -> None:
    """With one channel in every group, flatten gave a view, and the write into ``x`` went into ``y`` as well."""
    holds(WriteAfterShuffle(), (3, 4, 4))


class OneChannelTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask, self.middle, self.head = (
            Stem(),
            nn.Conv2d(4, 1, 1),
            nn.Conv2d(2, 3, 1),
            nn.Conv2d(3, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mask(self.stem(x))
        x = self.middle(torch.cat([x, -x], 1))
        return self.head(x.reshape(x.shape[0], 3, 1, 4, 4).squeeze(2))


def test_one_channel_twice() -> None:
    """The layer of labels went past the convolution: along no dimension, it counted as one of the batch."""
    holds(OneChannelTwice(), (3, 4, 4))


class GroupedParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight, self.head = Stem(), nn.Parameter(torch.ones(4, 2, 1, 1)), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(self.stem(x), self.weight, groups=2))


def test_a_grouped_functional_convolution() -> None:
    """Its weight's columns were indexed twice: as a parameter's, and as the inputs of every group."""
    holds(GroupedParameter(), (3, 4, 4))
