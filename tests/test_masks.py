from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import fx, nn

from fxprune.capture import trace
from fxprune.errors import ArgumentError, ArgumentTypeError, NothingToPruneError, UnknownNameError, WeightError
from fxprune.masks import magnitude_mask, magnitude_masks, parameter_name, prunable_weights, weight_places
from fxprune.models import VGG, ZOO, example_inputs

SPARSITIES = [0.0, 0.01, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 0.999, 1.0]


def traced(name: str) -> fx.GraphModule:
    return trace(ZOO[name](), example_inputs(name))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_smallest_go_and_their_number_is_the_rounded_one(sparsity: float, dtype: torch.dtype) -> None:
    weight = torch.randperm(7 * 5 * 3 * 3).view(7, 5, 3, 3).to(dtype) + 1
    weight *= torch.where(torch.rand_like(weight) < 0.5, -1, 1)
    mask = magnitude_mask(weight, sparsity)
    zeros = round(sparsity * weight.numel())
    assert int((~mask).sum()) == zeros
    # The importances are 1 ... numel, so the mask can be written down.
    assert torch.equal(mask, weight.abs() > zeros)


def test_the_worked_example_of_the_lab() -> None:
    weight = torch.randn(5, 5)
    mask = magnitude_mask(weight, 1 - 10 / 25)
    assert int(mask.sum()) == 10
    assert weight[mask].abs().min() > weight[~mask].abs().max()


def test_what_ties_with_the_threshold_goes() -> None:
    weight = torch.tensor([[3.0, -1.0, 1.0, 2.0]])
    assert magnitude_mask(weight, 0.25).tolist() == [[True, False, False, True]]


def test_sparsity_zero_keeps_zeros_too() -> None:
    assert bool(magnitude_mask(torch.zeros(3, 3), 0.0).all())
    assert not bool(magnitude_mask(torch.ones(3, 3), 1.0).any())


def test_an_empty_tensor_has_an_empty_mask() -> None:
    assert magnitude_mask(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_the_mask_has_the_memory_format_of_the_weight_and_leaves_it_alone() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    before = weight.detach().clone()
    mask = magnitude_mask(weight, 0.5)
    assert mask.is_contiguous(memory_format=torch.channels_last)
    assert not mask.requires_grad
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_ranked_as_it_is(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 16, 3, 3).to(dtype)
    mask = magnitude_mask(weight, 0.5)
    assert int((~mask).sum()) >= round(0.5 * weight.numel())
    assert weight[mask].abs().min() > weight[~mask].abs().max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(bad: float) -> None:
    weight = torch.ones(4, 3)
    weight[1, 2] = bad
    with pytest.raises(WeightError, match=r"'layer\.weight' holds NaN or Inf in 1 of its 12 values"):
        magnitude_mask(weight, 0.5, "layer.weight")


def test_weights_without_values_are_an_error() -> None:
    with pytest.raises(WeightError, match=r"'w' is on the meta device .* load its weights first"):
        magnitude_mask(torch.empty(3, 3, device="meta"), 0.5, "w")


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, -1, 2])
def test_a_sparsity_out_of_range_is_an_error_that_names_value_and_range(bad: float) -> None:
    with pytest.raises(ArgumentError, match=r"the sparsity of 'w' must lie in \[0, 1\].*not " + repr(bad)):
        magnitude_mask(torch.ones(3), bad, "w")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        magnitude_masks(traced("residual"), bad)


@pytest.mark.parametrize("bad", ["0.5", None, [0.5], True])
def test_a_sparsity_that_is_no_number_is_an_error(bad: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="must be a number"):
        magnitude_masks(traced("residual"), bad)


def test_one_sparsity_is_for_convolutions_and_linear_layers() -> None:
    names = prunable_weights(trace(VGG(width=0.1), torch.zeros(1, 3, 32, 32)))
    assert names == (*(f"backbone.conv{i}.weight" for i in range(8)), "classifier.weight")


@pytest.mark.parametrize("name", sorted(ZOO))
def test_one_sparsity_spares_biases_and_norms(name: str) -> None:
    gm = traced(name)
    places = weight_places(gm)
    names = prunable_weights(gm)
    assert names
    assert all(places[n].value.dim() >= 2 for n in names)
    assert not any("bias" in n or "norm" in type(places[n].owner).__name__.lower() for n in names)
    # Every convolution and linear layer that is called has its weight among them, under one of its names.
    found = {places[n].identity for n in names}
    for module_name, module in gm.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
            assert places[f"{module_name}.weight"].identity in found


def test_a_weight_that_only_a_function_reads_is_found() -> None:
    gm = traced("functional_layers")
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    assert read & set(prunable_weights(gm))


def test_a_shared_weight_is_pruned_once() -> None:
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = layer.weight
    gm = trace(nn.Sequential(layer, other), torch.zeros(1, 4))
    assert prunable_weights(gm) == ("0.weight",)
    assert magnitude_masks(gm, {"1.weight": 0.5})["1.weight"].sum() == 8
    with pytest.raises(ArgumentError, match=r"'0\.weight' and '1\.weight' are one shared parameter.*0\.5 and 0\.6"):
        magnitude_masks(gm, {"0.weight": 0.5, "1.weight": 0.6})


def test_any_parameter_can_be_named() -> None:
    gm = trace(VGG(width=0.1), torch.zeros(1, 3, 32, 32))
    masks = magnitude_masks(gm, {"backbone.bn0.weight": 0.5, "classifier.bias": 0.1})
    assert {name: mask.shape for name, mask in masks.items()} == {"backbone.bn0.weight": (6,), "classifier.bias": (10,)}


def test_an_unknown_name_is_an_error_with_the_nearest_ones() -> None:
    gm = trace(VGG(width=0.1), torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        UnknownNameError, match=r"no parameter named 'backbone\.conv9\.weight'; nearest: 'backbone\.conv"
    ):
        magnitude_masks(gm, {"backbone.conv9.weight": 0.5})
    with pytest.raises(KeyError):
        magnitude_masks(gm, {"backbone.conv0": 0.5})


def test_a_network_without_weights_is_an_error() -> None:
    with pytest.raises(NothingToPruneError, match=r"neither a convolution nor a linear layer.*'1\.weight'"):
        magnitude_masks(trace(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), torch.zeros(2, 3, 4, 4)), 0.5)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("conv.weight", "conv.weight"),
        ("weight", "weight"),
        ("parametrizations.weight", "weight"),
        ("a.b.parametrizations.weight", "a.b.weight"),
    ],
)
def test_the_name_behind_a_parametrization(target: str, name: str) -> None:
    assert parameter_name(target) == name
