from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxprune.masks import weight_places
from fxprune.parametrizing import Mask, attach_masks, copy_network, fold_masks, freeze_parametrizations


def masked_linear() -> nn.Linear:
    layer = nn.Linear(4, 3)
    attach_masks(layer, {"weight": torch.rand(3, 4) < 0.5})
    return layer


class Root(nn.Module):
    """A network whose parameters sit in the root and in a part that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.part = nn.Module()
        self.part.weight = nn.Parameter(torch.randn(5, 8))
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(nn.functional.conv2d(x, self.weight).relu())
        return nn.functional.linear(x.mean((2, 3)), self.part.weight)


def masked_root() -> fx.GraphModule:
    gm = fx.symbolic_trace(Root())
    masks = {name: torch.rand_like(gm.get_parameter(name)) < 0.5 for name in ("weight", "part.weight", "conv.weight")}
    attach_masks(gm, masks)
    return gm


def test_a_masked_weight_and_its_gradient_are_zero_whatever_comes() -> None:
    mask = torch.tensor([True, False, False])
    stored = torch.tensor([1.0, torch.nan, torch.inf], requires_grad=True)
    value = Mask(mask)(stored)
    assert value.tolist() == [1.0, 0.0, 0.0]
    value.backward(torch.tensor([2.0, torch.inf, torch.nan]))
    assert stored.grad is not None
    assert stored.grad.tolist() == [2.0, 0.0, 0.0]


def test_what_is_stored_is_zero_too_and_stays_so_on_assignment() -> None:
    layer = masked_linear()
    pruned = ~layer.parametrizations["weight"][0].mask
    assert not bool(layer.parametrizations["weight"].original[pruned].any())
    layer.weight = torch.ones(3, 4)
    assert torch.equal(layer.weight, (~pruned).float())
    assert not bool(layer.parametrizations["weight"].original[pruned].any())


def test_the_dtype_can_change_and_the_mask_stays_a_mask() -> None:
    layer = masked_linear()
    zeros = layer.weight == 0
    layer.bfloat16()
    assert layer.weight.dtype is torch.bfloat16
    assert layer.parametrizations["weight"][0].mask.dtype is torch.bool
    assert torch.equal(layer.weight == 0, zeros)


@pytest.mark.parametrize("again", [1, 2])
def test_a_copy_is_independent_of_its_original(again: int) -> None:
    layer = masked_linear()
    copied = layer
    for _ in range(again):
        copied = copy.deepcopy(copied)
    assert type(copied) is not type(layer)
    assert torch.equal(copied.weight, layer.weight)
    parametrize.remove_parametrizations(copied, "weight")
    assert type(copied) is nn.Linear
    assert parametrize.is_parametrized(layer, "weight")
    assert layer(torch.ones(4)).shape == (3,)


def test_a_whole_graph_module_is_copied_with_its_root_parameters() -> None:
    gm, x = masked_root(), torch.randn(2, 3, 6, 6)
    copied = copy.deepcopy(copy.deepcopy(gm))
    assert torch.equal(copied(x), gm(x))
    for name in ("weight", "part.weight", "conv.weight"):
        owner = copied.get_submodule(name.rpartition(".")[0])
        assert parametrize.is_parametrized(owner, "weight")
        assert torch.equal(owner.weight, weight_places(gm)[name].value)
    assert fold_masks(copied)
    assert torch.equal(copied(x), gm(x))
    assert isinstance(copied.weight, nn.Parameter)
    assert not isinstance(gm.weight, nn.Parameter)
    gm.recompile()
    assert torch.equal(copied(x), gm(x))


def test_a_user_parametrization_is_not_shared_between_a_copy_and_its_original() -> None:
    gm = fx.GraphModule(model := nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), fx.Graph())
    gm.add_submodule("0", model[0])
    copied = copy_network(gm)
    attach_masks(copied, {"0.bias": torch.zeros(3, dtype=torch.bool)})
    assert not parametrize.is_parametrized(model[0], "bias")
    assert isinstance(model[0].bias, nn.Parameter)


def test_a_layer_is_pickled() -> None:
    layer = masked_linear()
    loaded = pickle.loads(pickle.dumps(layer))
    assert parametrize.is_parametrized(loaded, "weight")
    assert parametrize.type_before_parametrizations(loaded) is nn.Linear
    assert torch.equal(loaded.weight, layer.weight)


def test_a_graph_module_is_pickled() -> None:
    gm, x = masked_root(), torch.randn(2, 3, 6, 6)
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), gm(x))
    assert torch.equal(loaded.weight, gm.weight)
    assert fold_masks(loaded)
    assert torch.equal(loaded(x), gm(x))


def test_a_shallow_copy_shares_the_parameters() -> None:
    layer = masked_linear()
    copied = copy.copy(layer)
    assert copied.parametrizations is layer.parametrizations
    assert copied.__dict__ is not layer.__dict__


def test_a_graph_module_made_of_another_one_is_mended_by_a_copy() -> None:
    gm, x = masked_root(), torch.randn(2, 3, 6, 6)
    rebuilt = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    assert torch.equal(rebuilt(x), gm(x))
    copied = copy_network(rebuilt)
    assert parametrize.is_parametrized(copied, "weight")
    assert torch.equal(copied.weight, gm.weight)
    assert fold_masks(copied)
    assert torch.equal(copied(x), gm(x))


def test_freezing_keeps_values_and_ties() -> None:
    gm, x = masked_root(), torch.randn(2, 3, 6, 6)
    before = gm(x)
    freeze_parametrizations(gm)
    assert not any(parametrize.is_parametrized(m) for m in gm.modules())
    assert torch.equal(gm(x), before)

    layer, other = masked_linear(), nn.Linear(4, 3)
    parametrize.register_parametrization(other, "weight", layer.parametrizations["weight"][0])
    other.parametrizations["weight"].original = layer.parametrizations["weight"].original
    both = nn.ModuleList([layer, other])
    freeze_parametrizations(both)
    assert layer.weight is other.weight
