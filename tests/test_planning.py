"""From a ratio to the channels that stay: the lab's figures, every form of a ratio, and every wrong argument."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from networks import kept, unchanged, vgg, widths
from torch import Tensor, nn
from torch.nn import functional as F
from torchprofile import profile_macs

from fxprune.dependency import DependencyGraph
from fxprune.errors import (
    ArgumentError,
    NothingToPruneError,
)
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.planning import plan_channels, plan_sorting
from fxprune.selection import keep_count

CIFAR = torch.zeros(1, 3, 32, 32)
IMAGE = torch.zeros(2, 3, 8, 8)
NAMES = sorted(ZOO)
RATIOS = [i / 10 for i in range(1, 10)]


@cache
def analysed(name: str) -> DependencyGraph:
    return DependencyGraph.from_model(randomize(ZOO[name]()), example_inputs(name))


# The lab's figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["first", "input-l2"])
def test_the_full_vgg_at_30_percent_has_the_widths_parameters_and_macs_of_the_lab(criterion: str) -> None:
    model, deps = vgg(1.0)
    plan = plan_channels(deps, ratio=0.3, criterion=criterion, exclude=("backbone.conv7",))
    assert widths(plan) == [45, 90, 179, 179, 358, 358, 358, 512]
    small = plan.apply(model)
    assert sum(p.numel() for p in small.parameters()) == 5_013_666
    assert profile_macs(small, CIFAR) == 305_388_064
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_full_vgg_has_the_same_widths_with_a_ratio_for_each_convolution_but_the_last() -> None:
    _, deps = vgg(1.0)
    by_list = plan_channels(deps, ratio=[0.3] * 7 + [0.0])
    by_name = plan_channels(deps, ratio={f"backbone.conv{i}": 0.3 for i in range(7)})
    assert widths(by_list) == widths(by_name) == [45, 90, 179, 179, 358, 358, 358, 512]
    assert by_list.layers == by_name.layers


def test_input_l2_keeps_what_the_lab_keeps() -> None:
    """Sort by the next layer's norms, then keep the first k: here without moving anything."""
    model, deps = vgg(1.0)
    plan = plan_channels(deps, ratio=0.3)
    for i in range(7):
        following = model.get_parameter(f"backbone.conv{i + 1}.weight")
        importance = [float(following[:, c].detach().double().norm()) for c in range(following.shape[1])]
        count = round(len(importance) * 0.7)
        best = sorted(range(len(importance)), key=lambda c: -importance[c])[:count]
        assert plan.layers[f"backbone.conv{i}"].outputs == tuple(sorted(best))
        assert plan.layers[f"backbone.bn{i}"].outputs == tuple(sorted(best))
        assert plan.layers[f"backbone.conv{i + 1}"].inputs == tuple(sorted(best))


@pytest.mark.parametrize(
    ("size", "ratio", "count"),
    [(64, 0.3, 45), (5, 0.5, 2), (3, 0.5, 2), (1, 0.9, 1), (10, 0.99, 1), (10, 0.0, 10), (128, 0.1, 115), (7, 0.04, 7)],
)
def test_keep_count_is_the_labs_rule(size: int, ratio: float, count: int) -> None:
    assert keep_count(size, ratio) == count == max(1, round(size * (1 - ratio)))


# Ratios ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, np.float32(0.5), np.float64(0.5)])
def test_a_number_holds_for_every_group(ratio: float) -> None:
    assert widths(plan_channels(vgg()[1], ratio)) == [3, 6, 13, 13, 26, 26, 26, 26]


@pytest.mark.parametrize("ratio", [0, 0.0, {}, [0] * 8, {"backbone.conv3": 0}])
def test_nothing_to_remove_is_a_plan_without_changes(ratio: Any) -> None:
    plan = plan_channels(vgg()[1], ratio)
    assert not plan.tensors
    assert not plan.changes
    assert all(layer.inputs is None and layer.outputs is None for layer in plan.layers.values())


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_holds_group_by_group(kind: type) -> None:
    ratios = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0]
    expected = [keep_count(n, r) for n, r in zip([6, 13, 26, 26, 51, 51, 51, 51], ratios, strict=True)]
    assert widths(plan_channels(vgg()[1], kind(ratios))) == expected
    assert widths(plan_channels(vgg()[1], kind([np.float32(r) for r in ratios]))) == expected
    assert widths(plan_channels(vgg()[1], kind([*ratios, 0.0]))) == expected  # one for the frozen classifier too


def test_a_mapping_names_any_layer_of_a_group_and_leaves_the_others() -> None:
    for name in ("backbone.conv2", "backbone.bn2"):
        assert widths(plan_channels(vgg()[1], {name: 0.5})) == [6, 13, 13, 26, 51, 51, 51, 51]


def test_a_mapping_may_repeat_itself_but_not_contradict_itself() -> None:
    deps = vgg()[1]
    assert widths(plan_channels(deps, {"backbone.conv0": 0.5, "backbone.bn0": 0.5}))[0] == 3
    with pytest.raises(ArgumentError, match=r"'backbone\.conv0' and 'backbone\.bn0' share.*ratios 0\.5 and 0\.4"):
        plan_channels(deps, {"backbone.conv0": 0.5, "backbone.bn0": 0.4})


class Halves(nn.Module):
    """Two groups that have their first producer in common."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 1)
        self.conv2 = nn.Conv2d(3, 6, 1)
        self.conv3 = nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, 1)
        return self.head(torch.cat([a + self.conv2(x), b * self.conv3(x)], 1))


def test_groups_with_a_producer_in_common_take_ratios_of_their_own() -> None:
    deps = DependencyGraph.from_model(randomize(Halves()), IMAGE)
    plan = plan_channels(deps, {"conv2": 0.5, "conv3": 1 / 3})
    assert [kept(plan, n) for n in ("conv1", "conv2", "conv3")] == [7, 3, 4]
    plan = plan_channels(deps, 0.5, exclude=("conv2",))
    assert [kept(plan, n) for n in ("conv1", "conv2", "conv3")] == [9, 6, 3]
    plan = plan_channels(deps, {"conv1": 0.5})
    assert [kept(plan, n) for n in ("conv1", "conv2", "conv3")] == [6, 3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_one_class_keeps_the_rounded_count(name: str) -> None:
    deps = analysed(name)
    for ratio in (0.3, 0.7):
        plan = plan_channels(deps, ratio)
        if plan.structure is not deps.structure:
            continue
        for number, members in enumerate(plan.structure.members):
            if len(np.unique(plan.structure.kind[members])) == 1:
                assert int(plan.kept[members].sum()) == keep_count(len(members), ratio), deps.groups[number].name


# What else can be chosen ----------------------------------------------------------------------------------------------


def test_excluded_layers_keep_their_outputs_and_their_group() -> None:
    plan = plan_channels(vgg()[1], 0.5, exclude=("backbone.bn0", "backbone.conv5", "classifier"))
    assert widths(plan) == [6, 6, 13, 13, 26, 51, 26, 26]
    residual = plan_channels(analysed("residual"), 0.5, exclude=iter(["layer1.conv2"]))
    assert kept(residual, "stem.0") == 16
    assert kept(residual, "layer1.conv1") == 8


@pytest.mark.parametrize("round_to", [1, 2, 4, 8, 16])
def test_kept_channels_are_rounded_up_where_there_are_that_many(round_to: int) -> None:
    plan = plan_channels(vgg()[1], 0.3, round_to=round_to)
    for size, count in zip([6, 13, 26, 26, 51, 51, 51, 51], widths(plan), strict=True):
        plain = keep_count(size, 0.3)
        assert count == min(size, math.ceil(plain / round_to) * round_to)


def test_a_global_ranking_removes_the_ratio_of_all_and_lets_groups_differ() -> None:
    deps = vgg()[1]
    plan = plan_channels(deps, 0.4, scope="global")
    sizes = [6, 13, 26, 26, 51, 51, 51, 51]
    counts = widths(plan)
    assert sum(counts) == pytest.approx(0.6 * sum(sizes), abs=4)
    assert len({round(c / s, 2) for c, s in zip(counts, sizes, strict=True)}) > 3
    for i in range(8):
        assert 1 <= counts[i] <= sizes[i]


def test_a_global_ranking_keeps_the_best_relative_to_their_groups_mean() -> None:
    model, deps = vgg()
    plan = plan_channels(deps, 0.4, scope="global")
    relative: dict[int, list[float]] = {}
    for i in range(8):
        following = model.get_parameter(f"backbone.conv{i + 1}.weight") if i < 7 else model.classifier.weight
        norms = following.double().flatten(2).norm(dim=(0, 2)) if i < 7 else following.double().norm(dim=0)
        relative[i] = (norms / norms.mean()).tolist()
    kept_scores, gone_scores = [], []
    for i in range(8):
        outputs = plan.layers[f"backbone.conv{i}"].outputs or tuple(range(len(relative[i])))
        if len(outputs) > 1:
            kept_scores += [relative[i][c] for c in outputs]
        gone_scores += [s for c, s in enumerate(relative[i]) if c not in outputs]
    assert min(kept_scores) >= max(gone_scores)


def test_a_global_ranking_leaves_out_what_has_no_ratio() -> None:
    plan = plan_channels(vgg()[1], {"backbone.conv3": 0.5, "backbone.conv4": 0.5}, scope="global")
    counts = widths(plan)
    assert counts[:3] + counts[5:] == [6, 13, 26, 51, 51, 51]
    assert counts[3] + counts[4] == pytest.approx((26 + 51) / 2, abs=1)


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("name", ["vgg", "residual", "channel_shuffle", "self_attention", "dense"])
def test_the_same_call_gives_the_same_plan(name: str, scope: str) -> None:
    first, again = (plan_channels(d, 0.4, scope=scope) for d in (analysed(name), _anew(name)))
    assert first.layers == again.layers
    assert dict(first.attributes) == dict(again.attributes)
    assert list(first.tensors) == list(again.tensors)


def _anew(name: str) -> DependencyGraph:
    return DependencyGraph.from_model(randomize(ZOO[name]()), example_inputs(name))


@pytest.mark.parametrize("name", NAMES)
def test_planning_leaves_model_and_analysis_alone(name: str) -> None:
    model = randomize(ZOO[name]()).train()
    before = copy.deepcopy(model)
    deps = DependencyGraph.from_model(model, example_inputs(name))
    groups, graph = deps.groups, str(deps.gm.graph)
    plan_channels(deps, 0.5)
    plan_sorting(deps)
    assert deps.groups == groups
    assert str(deps.gm.graph) == graph
    assert unchanged(model, before)


def test_a_count_that_must_divide_is_brought_to_the_nearest_that_does() -> None:
    plan = plan_channels(DependencyGraph.from_model(randomize(Shuffle()), IMAGE), 0.3)
    assert kept(plan, "a") in (24, 26)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.6])
def test_a_shuffle_in_a_residual_keeps_about_what_was_asked_for(ratio: float) -> None:
    count = kept(plan_channels(analysed("grouped_shuffle"), ratio), "stem.0")
    assert abs(count - 36 * (1 - ratio)) <= 3


@pytest.mark.parametrize(
    ("name", "group", "ratio", "nearest"),
    [
        ("channel_shuffle", "stem.0", 0.3, 67),
        ("grouped_shuffle", "reduce.0", 0.5, 12),
        ("multihead_attention", "attention", 0.1, 44),
    ],
)
def test_blocks_keep_the_nearest_count_that_allows_equal_blocks(
    name: str, group: str, ratio: float, nearest: int
) -> None:
    deps = analysed(name)
    number = [g.name for g in deps.groups].index(group)
    plan = plan_channels(deps, {group: ratio})
    size = len(deps.structure.members[number])
    assert abs(int(plan.kept[plan.structure.members[number]].sum()) - keep_count(size, ratio)) <= abs(
        nearest - keep_count(size, ratio)
    )


def test_blocks_of_one_unit_all_stay() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 12, 1)
            self.g = nn.Conv2d(12, 6, 1, groups=3)
            self.b = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.g(self.a(x)).view(-1, 3, 2, 8, 8)
            return self.b(F.relu(y[:, :, 0] + y[:, :, 1]))

    plan = plan_channels(DependencyGraph.from_model(randomize(Pairs()), IMAGE), 0.5)
    assert kept(plan, "g") == 6
    assert kept(plan, "a") == 6


def test_two_group_norms_of_different_blocks_constrain_the_same_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.GroupNorm(4, 12), nn.Conv2d(12, 4, 1))
    with pytest.raises(NothingToPruneError, match=r"'0': no smaller number .* blocks equally large"):
        plan_channels(DependencyGraph.from_model(randomize(model), IMAGE), 0.3)


def test_every_slice_keeps_a_channel() -> None:
    class Slice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 12, 1)
            self.b = nn.Conv2d(4, 4, 1)
            self.c = nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x).reshape(-1, 4, 3, 8, 8).flip(1).reshape(-1, 12, 8, 8)
            return self.b(y[:, 2:6]), self.c(y)

    plan = plan_channels(DependencyGraph.from_model(randomize(Slice()), IMAGE), 0.9, "first")
    assert plan.layers["b"].inputs is not None
    assert len(plan.layers["b"].inputs) >= 1


def test_channels_can_be_sorted_though_one_is_padded_to_a_pair() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 12, 1)
            self.b = nn.Conv2d(7, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            p, q = F.pad(self.a(x), (0, 0, 0, 0, 1, 1)).chunk(2, 1)
            return self.b(p * q.sigmoid())

    plan_sorting(DependencyGraph.from_model(randomize(Padded()), IMAGE))


# What is known not to hold yet ----------------------------------------------------------------------------------------


class Shuffle(nn.Module):
    """A shuffle of two blocks needs an even number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 36, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.b = nn.Conv2d(36, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.shuffle(self.a(x))))


def test_every_part_of_a_split_keeps_a_channel() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 24, 1)
            self.branches = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [branch(part) for branch, part in zip(self.branches, self.stem(x).split(8, 1), strict=True)]

    plan = plan_channels(DependencyGraph.from_model(randomize(Split()), IMAGE), 0.9, "first")
    assert [len(plan.layers[f"branches.{i}"].inputs or ()) for i in range(3)] == [1, 1, 1]


def test_equal_scores_do_not_defeat_a_global_ranking() -> None:
    plan = plan_channels(vgg()[1], 0.5, lambda group: [1.0] * group.size, scope="global")
    assert sum(widths(plan)) == pytest.approx(275 / 2, abs=8)


def test_infinite_scores_keep_a_channel_in_a_global_ranking() -> None:
    def criterion(group: Any) -> list[float]:
        return [math.inf if i < 2 else 1.0 for i in range(group.size)]

    plan = plan_channels(vgg()[1], 0.5, criterion, scope="global")
    assert sum(widths(plan)) == pytest.approx(275 / 2, abs=8)
