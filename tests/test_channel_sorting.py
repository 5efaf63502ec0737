"""Sorting: another order, the same function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager
from torch.utils._pytree import tree_leaves

from fxprune.capture import trace
from fxprune.criteria import CRITERIA, unit_scores
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentTypeError, UnknownNameError, WeightError
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.passes import ChannelSorting
from fxprune.planning import plan_channels, plan_sorting

NAMES = sorted(ZOO)


def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [v for v in tree_leaves(model(*inputs)) if isinstance(v, Tensor)]


@cache
def doubles(name: str) -> tuple[nn.Module, tuple[Tensor, ...], fx.GraphModule]:
    model = randomize(ZOO[name]()).double().eval()
    inputs = tuple(x.double() for x in example_inputs(name))
    return model, inputs, trace(model, inputs)


@cache
def sorted_by(name: str, criterion: str) -> fx.GraphModule:
    return ChannelSorting(criterion)(doubles(name)[2]).graph_module


def shuffled(group: ChannelGroup) -> Tensor:
    """A criterion that asks for a random order."""
    return torch.rand(group.size, generator=torch.Generator().manual_seed(group.size))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_output_of_every_network_is_unchanged(name: str) -> None:
    model, inputs, _ = doubles(name)
    assert difference(outputs(model, inputs), outputs(sorted_by(name, "input-l2"), inputs)) <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_unchanged_in_any_order(name: str) -> None:
    model, inputs, gm = doubles(name)
    result = ChannelSorting(shuffled)(gm)
    assert result.modified
    assert difference(outputs(model, inputs), outputs(result.graph_module, inputs)) <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_something_to_sort(name: str) -> None:
    model, result = doubles(name)[0], sorted_by(name, "input-l2")
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, result.state_dict()[key])]
    assert moved
    for key in moved:
        old, new = model.state_dict()[key].flatten(), result.state_dict()[key].flatten()
        assert torch.equal(old.sort()[0], new.sort()[0]), key


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_modes_are_those_of_the_original(name: str) -> None:
    model, result = doubles(name)[0], sorted_by(name, "input-l2")
    assert {k: (v.shape, v.dtype) for k, v in result.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    pointers = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    assert not pointers & {p.untyped_storage().data_ptr() for p in result.state_dict().values()}


@pytest.mark.parametrize("name", NAMES)
def test_the_original_is_unchanged(name: str) -> None:
    sorted_by(name, "input-l2")
    fresh = randomize(ZOO[name]()).double().state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in doubles(name)[0].state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_interchangeable_units_come_out_in_descending_order(name: str) -> None:
    deps = DependencyGraph(sorted_by(name, "input-l2"))
    refined = plan_sorting(deps, "first").structure  # with the classes within which units may change places
    scores = unit_scores(refined, deps.groups, "input-l2")
    for members in refined.members:
        for kind in np.unique(refined.kind[members]):
            values = scores[members[refined.kind[members] == kind]]
            assert (np.diff(values) <= 1e-9 * abs(values).max()).all()


@pytest.mark.parametrize("name", NAMES)
def test_sorting_what_is_sorted_changes_nothing(name: str) -> None:
    again = ChannelSorting()(sorted_by(name, "input-l2"))
    assert not again.modified


def test_the_vgg_is_sorted_as_the_lab_sorts_it() -> None:
    """Norms of the next convolution's slices, in descending order, on every side of the channels."""
    model = randomize(VGG(0.2)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = ChannelSorting()(trace(model, x)).graph_module
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for i in range(8):
        following = f"backbone.conv{i + 1}.weight" if i < 7 else "classifier.weight"
        importance = expected[following].flatten(2).norm(dim=(0, 2)) if i < 7 else expected[following].norm(dim=0)
        order = importance.argsort(descending=True)
        for key in (f"conv{i}.weight", *(f"bn{i}.{n}" for n in ("weight", "bias", "running_mean", "running_var"))):
            expected[f"backbone.{key}"] = expected[f"backbone.{key}"][order]
        expected[following] = expected[following][:, order]
    assert all(torch.equal(value, expected[key]) for key, value in result.state_dict().items())


def test_the_first_of_the_sorted_are_the_best_of_the_unsorted() -> None:
    model = randomize(VGG(0.2)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = ChannelSorting()(trace(model, x)).graph_module
    first = plan_channels(DependencyGraph(result), 0.3, "first").apply(result)
    best = plan_channels(DependencyGraph.from_model(model, x), 0.3, "input-l2").apply(model)
    assert difference(outputs(best, (x,)), outputs(first, (x,))) <= 1e-9
    for key, value in best.state_dict().items():
        assert torch.equal(value.flatten().sort()[0], first.state_dict()[key].flatten().sort()[0]), key
    unsorted = plan_channels(DependencyGraph.from_model(model, x), 0.3, "first").apply(model)
    assert difference(outputs(best, (x,)), outputs(unsorted, (x,))) > 1e-3


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_sorting_by_position_changes_nothing(criterion: str) -> None:
    _, _, gm = doubles("residual")
    assert ChannelSorting(criterion)(gm).modified is (criterion != "first")


def test_sorting_keeps_the_graph() -> None:
    for name in ("fixed_view", "channel_shuffle", "self_attention"):
        assert sorted_by(name, "input-l2").code == doubles(name)[2].code


def test_channels_of_one_block_stay_in_it() -> None:
    model, _, gm = doubles("resnext")
    plan = plan_sorting(DependencyGraph(gm))
    outputs_ = plan.layers["grouped.0"].outputs
    assert outputs_ is not None
    assert [c // 8 for c in outputs_] == [i // 8 for i in range(32)]
    weight = model.get_parameter("grouped.0.weight")
    assert sorted_by("resnext", "input-l2").get_parameter("grouped.0.weight").shape == weight.shape


def test_the_pass_composes_with_itself_in_the_pass_manager() -> None:
    model, inputs, gm = doubles("residual")
    result = PassManager([ChannelSorting("output-l2"), ChannelSorting(shuffled), ChannelSorting()])(gm)
    assert result.modified
    assert difference(outputs(model, inputs), outputs(result.graph_module, inputs)) <= 1e-9


def test_wrong_graphs_criteria_and_weights_are_refused() -> None:
    model, inputs, gm = doubles("residual")
    with pytest.raises(ArgumentTypeError, match=r"fxprune\.trace"):
        ChannelSorting()(fx.symbolic_trace(model))
    with pytest.raises(UnknownNameError, match="no criterion 'inputs-l2'; nearest: 'input-l2'"):
        ChannelSorting("inputs-l2")(gm)
    broken = randomize(ZOO["residual"]())
    with torch.no_grad():
        broken.get_parameter("layer1.conv2.weight").fill_(torch.nan)
    arguments: dict[str, Any] = {"x": inputs[0].float()}
    with pytest.raises(WeightError, match=r"'layer1\.conv2\.weight'"):
        ChannelSorting()(trace(broken, arguments))
