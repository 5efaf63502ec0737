from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxprune.capture import trace
from fxprune.errors import WeightError
from fxprune.masks import weight_places
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.passes.fold_masks import FoldMasks


def fold(gm: fx.GraphModule) -> fx.GraphModule:
    result = FoldMasks()(gm)
    assert result is not None
    assert result.modified
    folded: fx.GraphModule = result.graph_module
    return folded


def sparse_of(model: nn.Module, x: tuple[Tensor, ...], **sparsity: float) -> fx.GraphModule:
    wanted = {name.replace("__", "."): value for name, value in sparsity.items()}
    result = FineGrainedPruning(sparsity=wanted or 0.5)(trace(model, x))
    assert result is not None
    sparse: fx.GraphModule = result.graph_module
    return sparse


@pytest.mark.parametrize("name", ["residual", "shared_convolution", "functional_layers", "tied_autoencoder", "vgg"])
def test_the_network_computes_the_same_with_plain_layers(name: str) -> None:
    model = randomize(ZOO[name]()).double().eval()
    x = tuple(t.double() for t in example_inputs(name))
    sparse = sparse_of(model, x)
    before = {key: tensor.clone() for key, tensor in sparse.state_dict().items()}
    folded = fold(sparse)
    assert torch.equal(folded(*x), sparse(*x))
    assert not any(parametrize.is_parametrized(m) for m in folded.modules())
    assert [type(m) for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [
        type(m) for m in trace(model, x).modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert set(folded.state_dict()) == set(model.state_dict())
    model.load_state_dict(folded.state_dict())
    assert torch.equal(model(*x), sparse(*x))
    # The sparse network is left as it was, masks and all.
    assert list(sparse.state_dict()) == list(before)
    assert all(torch.equal(sparse.state_dict()[key], tensor) for key, tensor in before.items())
    storages = {t.untyped_storage().data_ptr() for t in sparse.parameters()}
    assert not storages & {t.untyped_storage().data_ptr() for t in folded.parameters()}


def test_tied_weights_stay_tied_and_trainable() -> None:
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = layer.weight
    other.bias.requires_grad_(False)
    folded = fold(sparse_of(nn.Sequential(layer, other), (torch.zeros(1, 4),)))
    first, second = folded.get_submodule("0"), folded.get_submodule("1")
    assert first.weight is second.weight
    assert isinstance(first.weight, nn.Parameter)
    assert first.weight.requires_grad
    assert not second.bias.requires_grad


def test_without_masks_nothing_is_modified() -> None:
    gm = trace(ZOO["residual"](), example_inputs("residual"))
    result = FoldMasks()(gm)
    assert result is not None
    assert not result.modified
    assert result.graph_module is not gm
    assert str(result.graph_module.graph) == str(gm.graph)


def test_other_parametrizations_stay() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = nn.Sequential(normed, nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3))).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sparse = sparse_of(model, (x,), **{"0__weight": 0.4, "0__bias": 0.5})
    folded = fold(sparse)
    assert parametrize.is_parametrized(folded.get_submodule("0"), "weight")
    assert not parametrize.is_parametrized(folded.get_submodule("0"), "bias")
    assert parametrize.is_parametrized(folded.get_submodule("2"), "weight")
    torch.testing.assert_close(folded(x), sparse(x), rtol=1e-12, atol=1e-12)
    assert set(folded.state_dict()) == set(model.state_dict())
    assert torch.equal(weight_places(folded)["2.weight"].value, model[2].weight)


def test_a_parametrization_that_cannot_hold_the_zeros_is_an_error() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    sparse = sparse_of(model, (torch.zeros(1, 4),), **{"0__weight": 1.0})
    with pytest.raises(WeightError, match=r"'0\.weight' is computed by .*_WeightNorm.*remove_parametrizations"):
        FoldMasks()(sparse)
    assert bool((sparse.get_submodule("0").weight == 0).all())


class _Scale(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


def test_a_mask_under_another_parametrization_is_taken_from_below_it() -> None:
    x = torch.randn(3, 4)
    sparse = sparse_of(nn.Sequential(nn.Linear(4, 5)), (x,))
    parametrize.register_parametrization(sparse.get_submodule("0"), "weight", _Scale())
    folded = fold(sparse)
    kept = folded.get_submodule("0").parametrizations["weight"]
    assert [type(m) for m in kept] == [_Scale]
    assert torch.equal(folded(x), sparse(x))
