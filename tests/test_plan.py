"""The plan as a value: what it says about every layer, and to which models it applies."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.plan import ChannelPlan, LayerPlan
from fxprune.planning import plan_channels, plan_sorting
from fxprune.verification import verify
from fxprune.vocabulary import Axis

IMAGE = torch.zeros(2, 3, 8, 8)


class Small(nn.Module):
    """A residual, a depthwise convolution, a flatten, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=4, groups=6)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.fc(self.depthwise(x + self.conv(x)).flatten(1))


@cache
def small() -> tuple[nn.Module, ChannelPlan]:
    model = randomize(Small()).eval()
    deps = DependencyGraph.from_model(model, IMAGE)
    return model, plan_channels(deps, 0.5, lambda group: [1.0, 5.0, 0.0, 4.0, 3.0, 2.0])


def test_a_plan_says_for_every_layer_what_it_keeps() -> None:
    _, plan = small()
    assert plan.layers["stem"] == LayerPlan(None, (1, 3, 4), (3, 6))
    assert plan.layers["norm"].outputs == (1, 3, 4)
    assert plan.layers["conv"] == LayerPlan((1, 3, 4), (1, 3, 4), (6, 6))
    assert plan.layers["depthwise"].outputs == (1, 3, 4)
    assert plan.layers["fc"] == LayerPlan((4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19), None, (24, 5))
    assert list(plan.layers) == ["stem", "norm", "conv", "depthwise", "fc"]


def test_a_plan_says_for_every_tensor_which_indices_of_which_dimension_stay() -> None:
    _, plan = small()
    found = {
        name: [(axis.dim, axis.groups, index.tolist()) for axis, index in cut.axes]
        for name, cut in plan.tensors.items()
    }
    keep = [1, 3, 4]
    assert found["stem.weight"] == found["stem.bias"] == [(0, 1, keep)]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert found[f"norm.{name}"] == [(0, 1, keep)]
    assert sorted(found["conv.weight"]) == [(0, 1, keep), (1, 1, keep)]
    assert found["depthwise.weight"] == [(0, 1, keep)]
    assert found["fc.weight"] == [(1, 1, [c * 4 + i for c in keep for i in range(4)])]
    assert set(found) == {n for n, _ in small()[0].state_dict().items()} - {"fc.bias", "norm.num_batches_tracked"}
    assert all(axis.tensor == name for name, cut in plan.tensors.items() for axis, _ in cut.axes)


def test_a_plan_says_what_becomes_of_attributes() -> None:
    _, plan = small()
    assert dict(plan.attributes) == {
        ("stem", "out_channels"): 3,
        ("norm", "num_features"): 3,
        ("conv", "in_channels"): 3,
        ("conv", "out_channels"): 3,
        ("depthwise", "in_channels"): 3,
        ("depthwise", "out_channels"): 3,
        ("depthwise", "groups"): 3,
        ("fc", "in_features"): 12,
    } | {k: v for k, v in plan.attributes.items() if k in (("stem", "in_channels"), ("fc", "out_features"))}


def test_sizes_that_the_author_wrote_down_are_changes_of_their_nodes() -> None:
    deps = DependencyGraph.from_model(randomize(ZOO["fixed_view"]()), example_inputs("fixed_view"))
    plan = plan_channels(deps, 0.5)
    assert plan.changes
    for name, change in plan.changes.items():
        node = next(n for n in plan.gm.graph.nodes if n.name == name)
        assert (change.op, change.target) == (node.op, node.target)
        assert change.args != node.args
    _, without = small()
    assert not without.changes


def test_a_grouped_convolution_keeps_columns_of_its_own_in_every_block() -> None:
    deps = DependencyGraph.from_model(randomize(ZOO["resnext"]()), example_inputs("resnext"))
    plan = plan_channels(deps, 0.5)
    (cut,) = [index for axis, index in plan.tensors["grouped.0.weight"].axes if axis.groups > 1]
    assert cut.size == 16
    assert [int((cut // 8 == g).sum()) for g in range(4)] == [4, 4, 4, 4]
    assert plan.layers["grouped.0"].inputs == tuple(cut.tolist())
    assert plan.layers["grouped.0"].size == (32, 32)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_plans_of_every_network_are_consistent(name: str) -> None:
    model = randomize(ZOO[name]())
    deps = DependencyGraph.from_model(model, example_inputs(name))
    plan = plan_channels(deps, 0.4)
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    assert plan.gm is deps.gm
    assert list(plan.layers) == list(deps.layers)
    assert not plan.kept.all()
    for tensor, cut in plan.tensors.items():
        assert cut.axes
        for axis, index in cut.axes:
            length = shapes[tensor][axis.dim] * axis.groups
            assert len(index) > 0
            assert len(set(index.tolist())) == len(index)
            assert 0 <= index.min() <= index.max() < length
    for layer, said in plan.layers.items():
        for side, size in zip((said.inputs, said.outputs), said.size, strict=True):
            if side is not None:
                assert 0 < len(side) <= size, layer
                assert set(side) <= set(range(size)), layer
    assert any(said.outputs is not None for said in plan.layers.values())


def test_a_sorting_plan_permutes_and_removes_nothing() -> None:
    model, _ = small()
    plan = plan_sorting(DependencyGraph.from_model(model, IMAGE), lambda group: [1.0, 5.0, 0.0, 4.0, 3.0, 2.0])
    assert plan.layers["stem"].outputs == (1, 3, 4, 5, 0, 2)
    assert plan.layers["conv"].inputs == plan.layers["conv"].outputs == (1, 3, 4, 5, 0, 2)
    assert plan.kept.all()
    assert not plan.inexact
    assert all(getattr(model.get_submodule(layer), name) == value for (layer, name), value in plan.attributes.items())


def test_inexact_nodes_are_named_with_the_reason() -> None:
    deps = DependencyGraph.from_model(randomize(ZOO["convnext"]()), example_inputs("convnext"))
    plan = plan_channels(deps, 0.3)
    assert {"blocks_0_norm", "blocks_1_norm", "norm"} == set(plan.inexact)
    assert "statistics over channels" in plan.inexact["norm"]
    inner = plan_channels(deps, {"blocks.0.widen": 0.5})  # the hidden channels of a block meet no norm
    assert not inner.inexact


def test_only_the_norm_whose_channels_go_is_inexact() -> None:
    deps = DependencyGraph.from_model(randomize(ZOO["group_norm"]()), example_inputs("group_norm"))
    assert set(plan_channels(deps, {"conv1": 0.5}).inexact) == {"norm1"}
    assert not plan_sorting(deps).inexact


def test_a_plan_cannot_be_reassigned() -> None:
    _, plan = small()
    with pytest.raises(FrozenInstanceError):
        plan.layers = {}  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan.layers["stem"].outputs = ()  # type: ignore[misc]
    assert hash(Axis("a", 0)) == hash(Axis("a", 0))


def test_making_a_plan_needs_no_weight_but_for_the_ranking() -> None:
    model = Small().to("meta")
    deps = DependencyGraph.from_model(model, IMAGE)
    plan = plan_channels(deps, 0.5, "first")
    result = plan.apply(model)
    assert result.get_parameter("conv.weight").shape == (3, 3, 1, 1)
    assert result.get_parameter("conv.weight").device.type == "meta"
    assert plan.layers == plan_channels(DependencyGraph.from_model(Small(), IMAGE), 0.5, "first").layers


# Applying -------------------------------------------------------------------------------------------------------------


def test_a_plan_applies_to_another_model_of_the_class_with_other_weights() -> None:
    _, plan = small()
    other = randomize(Small(), seed=7).eval()
    result = plan.apply(other)
    keep = torch.tensor([1, 3, 4])
    assert torch.equal(result.get_parameter("stem.weight"), other.get_parameter("stem.weight")[keep])
    assert torch.equal(result.get_buffer("norm.running_var"), other.get_buffer("norm.running_var")[keep])
    assert result(IMAGE).shape == (2, 5)


def test_a_plan_applies_any_number_of_times_with_the_same_result() -> None:
    model, plan = small()
    first, again = plan.apply(model), plan.apply(model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(first(x), again(x))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


def test_a_plan_made_before_training_holds_the_indices_it_was_made_with() -> None:
    model = randomize(Small())
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5)
    outputs = plan.layers["stem"].outputs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_().add_(1)
    result = plan.apply(model)
    assert plan.layers["stem"].outputs == outputs
    assert torch.equal(result.get_parameter("stem.bias"), model.get_parameter("stem.bias")[list(outputs or ())])


def test_a_model_without_a_layer_of_the_plan_is_refused() -> None:
    _, plan = small()
    with pytest.raises(ArgumentError, match=r"Sequential has no 'stem'.*model that it was made for"):
        plan.apply(nn.Sequential(nn.Linear(3, 3)))


def test_a_model_of_other_widths_is_refused_with_both_shapes() -> None:
    model, plan = small()
    other = copy.deepcopy(model)
    other.fc = nn.Linear(24, 7)
    with pytest.raises(ArgumentError, match=r"'fc\.weight'.*\(7, 24\).*\(5, 24\)"):
        plan.apply(other)
    without_bias = copy.deepcopy(model)
    without_bias.conv = nn.Conv2d(6, 6, 1, bias=False)
    with pytest.raises(FxpruneError, match=r"conv\.bias"):
        plan.apply(without_bias)


def test_a_refused_model_is_unchanged() -> None:
    _, plan = small()
    other = randomize(VGG(0.05))
    before = copy.deepcopy(other)
    with pytest.raises(ArgumentError):
        plan.apply(other)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in other.state_dict().items())
    assert repr(other) == repr(before)


def test_the_result_of_a_plan_can_be_planned_again() -> None:
    model, plan = small()
    once = plan.apply(model)
    twice = plan_channels(DependencyGraph.from_model(once, IMAGE), 0.5).apply(once)
    assert twice.get_parameter("conv.weight").shape == (2, 2, 1, 1)
    assert twice(IMAGE).shape == (2, 5)
    read_off = plan_channels(DependencyGraph(once), 0.5)  # the shapes of the result are on its nodes
    assert read_off.layers["conv"].size == (3, 3)


# The report -----------------------------------------------------------------------------------------------------------


def test_the_report_has_a_line_for_every_layer() -> None:
    _, plan = small()
    lines = plan.report().splitlines()
    assert lines[0].split() == ["layer", "inputs", "outputs", "note"]
    assert [line.split()[0] for line in lines[1:]] == list(plan.layers)
    table = {line.split()[0]: line for line in lines[1:]}
    assert table["stem"].split()[1:] == ["3", "6", "->", "3"]
    assert table["conv"].split()[1:] == ["6", "->", "3", "6", "->", "3"]
    assert table["fc"].split()[1:6] == ["24", "->", "12", "5", *table["fc"].split()[5:6]]
    assert "output of the network" in table["fc"]
    assert not any(line != line.rstrip() for line in lines)


def test_the_report_names_what_is_inexact_and_what_stays() -> None:
    deps = DependencyGraph.from_model(randomize(ZOO["convnext"]()), example_inputs("convnext"))
    text = plan_channels(deps, {"stem": 0.5}).report()
    assert "inexact: 'norm' is statistics over channels" in text
    assert "its group keeps all channels" in next(line for line in text.splitlines() if "blocks.0.widen" in line)


def test_kept_units_and_labels_agree() -> None:
    _, plan = small()
    assert plan.kept.dtype == np.bool_
    assert plan.kept.shape == (plan.structure.units,)
    assert plan.kept[0]
    assert int((~plan.kept).sum()) == 3


@pytest.mark.parametrize("layer", ["depthwise", "norm"])
def test_inputs_that_change_are_not_none(layer: str) -> None:
    """None is documented to mean that all stay as they are, and a size of 0 that there are none."""
    _, plan = small()
    assert plan.layers[layer] == LayerPlan((1, 3, 4), (1, 3, 4), (6, 6))


def test_two_weights_of_one_module_are_told_apart() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(6, 3, 1, 1))
            self.second = nn.Parameter(torch.randn(8, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(F.conv2d(x, self.first)), self.second)

    model = nn.Sequential(Pair(), nn.Conv2d(8, 2, 1))
    deps = DependencyGraph.from_model(model, IMAGE)
    assert len({g.producers for g in deps.groups}) == len(deps.groups)
    plan = plan_channels(deps, {deps.prunable[0].name: 0.5})
    assert sum(said.outputs is not None for said in plan.layers.values()) == 1


def test_ranking_weights_without_values_is_refused() -> None:
    with pytest.raises(FxpruneError, match="meta"):
        plan_channels(DependencyGraph.from_model(Small().to("meta"), IMAGE), 0.5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plan_made_without_weights_holds_for_the_model_with_them(device: str) -> None:
    empty = Small().to("meta")
    plan = plan_channels(DependencyGraph.from_model(empty, IMAGE.to(device)), 0.5, "first")
    assert plan.apply(empty).get_parameter("conv.weight").is_meta
    with pytest.raises(ArgumentError, match="meta device"):
        verify(empty, plan, IMAGE)
    model = randomize(Small())
    assert plan.apply(model)(torch.randn(3, 3, 8, 8)).shape == model(torch.randn(3, 3, 8, 8)).shape
    assert verify(model, plan, torch.randn(3, 3, 8, 8)).max_relative_error < 1e-12


def test_a_plan_is_shown_in_one_line_and_refuses_what_is_no_module() -> None:
    _, plan = small()
    assert len(repr(plan)) < 100
    assert "3 units removed" in repr(plan)
    with pytest.raises(ArgumentTypeError, match="not to a str"):
        plan.apply("model")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="ChannelPlan"):
        verify(Small(), None, IMAGE)  # type: ignore[arg-type]
