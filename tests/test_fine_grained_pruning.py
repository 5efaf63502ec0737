from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint
from torch.nn.utils import parametrize

from fxprune.capture import trace
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, WeightError
from fxprune.masks import magnitude_mask, prunable_weights, weight_places
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.parametrizing import Mask
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.passes.fold_masks import FoldMasks


def traced(name: str) -> fx.GraphModule:
    return trace(randomize(ZOO[name]()).double().eval(), inputs(name))


def inputs(name: str) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in example_inputs(name))


def code(gm: fx.GraphModule) -> list[tuple[Any, ...]]:
    return [(n.name, n.op, n.target, str(n.args), str(n.kwargs)) for n in gm.graph.nodes]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_graph_stays_and_each_weight_gets_a_mask() -> None:
    gm = traced("residual")
    result = FineGrainedPruning(sparsity=0.5)(gm)
    assert result is not None
    sparse = result.graph_module
    assert result.modified
    assert code(sparse) == code(gm)
    places = weight_places(sparse)
    assert set(places) == set(weight_places(gm))
    masked = {n for n, p in places.items() if p.parametrization is not None}
    assert masked == set(prunable_weights(gm))
    for name in masked:
        assert isinstance(places[name].parametrization[0], Mask)
        expected = torch.where(magnitude_mask(gm.get_parameter(name), 0.5), gm.get_parameter(name), 0)
        assert torch.equal(places[name].value, expected)


def test_a_node_that_reads_a_masked_parameter_calls_its_parametrization() -> None:
    gm = traced("functional_layers")
    sparse = FineGrainedPruning(sparsity={"weight2": 0.5})(gm).graph_module
    changed = [(old[1:3], new[1:3]) for old, new in zip(code(gm), code(sparse), strict=True) if old != new]
    assert changed == [(("get_attr", "weight2"), ("call_module", "parametrizations.weight2"))]
    sparse.graph.lint()
    folded = FoldMasks()(sparse).graph_module
    assert code(folded) == code(gm)


def test_the_given_network_is_neither_changed_nor_shared() -> None:
    gm = traced("functional_layers")
    classes = [type(m) for m in gm.modules()]
    before, nodes = state(gm), code(gm)
    sparse = FineGrainedPruning(sparsity=0.7)(gm).graph_module
    assert_same_state(gm, before)
    assert code(gm) == nodes
    assert [type(m) for m in gm.modules()] == classes
    storages = {t.untyped_storage().data_ptr() for t in [*gm.parameters(), *gm.buffers()]}
    assert not storages & {t.untyped_storage().data_ptr() for t in [*sparse.parameters(), *sparse.buffers()]}


def test_a_failure_leaves_the_network_alone() -> None:
    gm = traced("vgg")
    with torch.no_grad():
        gm.get_parameter("classifier.weight")[0, 0] = torch.nan
    classes = [type(m) for m in gm.modules()]
    with pytest.raises(WeightError, match=r"'classifier\.weight' holds NaN"):
        FineGrainedPruning(sparsity=0.5)(gm)
    assert [type(m) for m in gm.modules()] == classes


def test_it_runs_in_the_pass_manager_of_torch_with_constraints() -> None:
    gm = traced("vgg")
    prune, fold = FineGrainedPruning(sparsity=0.6), FoldMasks()
    result = PassManager(passes=[fold, prune], constraints=[this_before_that_pass_constraint(prune, fold)])(gm)
    assert result.modified
    dense = result.graph_module
    assert list(dense.state_dict()) == list(gm.state_dict())
    weight = dense.get_parameter("backbone.conv3.weight")
    assert int((weight == 0).sum()) == round(0.6 * weight.numel())


def test_a_sparsity_of_zero_masks_nothing_but_registers() -> None:
    gm = traced("vgg")
    sparse = FineGrainedPruning(sparsity={"classifier.weight": 0})(gm).graph_module
    assert bool(sparse.get_submodule("classifier").parametrizations["weight"][0].mask.all())


def test_nothing_named_is_nothing_modified() -> None:
    gm = traced("vgg")
    result = FineGrainedPruning(sparsity={})(gm)
    assert result is not None
    assert not result.modified
    assert result.graph_module is not gm
    assert_same_state(result.graph_module, state(gm))


def test_masks_of_ones_own() -> None:
    gm = traced("vgg")
    mask = torch.rand(gm.get_parameter("classifier.weight").shape) < 0.3
    sparse = FineGrainedPruning(masks={"classifier.weight": mask})(gm).graph_module
    mask.fill_(True)
    kept = (sparse.get_submodule("classifier").weight != 0).double().mean()
    assert kept < 0.5


def test_pruning_again_keeps_the_zeros_and_one_mask() -> None:
    gm = traced("vgg")
    once = FineGrainedPruning(sparsity=0.3)(gm).graph_module
    twice = FineGrainedPruning(sparsity=0.8)(once).graph_module
    back = FineGrainedPruning(sparsity=0.0)(twice).graph_module
    for name, place in weight_places(twice).items():
        if place.parametrization is None:
            continue
        assert len(place.parametrization) == 1
        assert int((place.value == 0).sum()) == round(0.8 * place.value.numel())
        assert torch.equal(weight_places(back)[name].value, place.value)
        zero_before = weight_places(once)[name].value == 0
        assert not bool((place.value[zero_before] != 0).any())
        assert not bool((place.parametrization.original[place.value == 0] != 0).any())


def test_a_tied_weight_has_one_mask_everywhere() -> None:
    gm = traced("tied_autoencoder")
    x = inputs("tied_autoencoder")
    sparse = FineGrainedPruning(sparsity={"encode.weight": 0.5})(gm).graph_module
    reference = copy.deepcopy(gm)
    with torch.no_grad():
        weight = reference.get_parameter("encode.weight")
        weight.copy_(torch.where(magnitude_mask(weight, 0.5), weight, 0))
    assert torch.equal(sparse(*x), reference(*x))
    assert not torch.equal(sparse(*x), gm(*x))

    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = layer.weight
    shared = FineGrainedPruning(sparsity={"1.weight": 0.5})(trace(nn.Sequential(layer, other), torch.zeros(1, 4)))
    assert shared is not None
    first, second = (shared.graph_module.get_submodule(str(i)) for i in range(2))
    assert first.parametrizations["weight"].original is second.parametrizations["weight"].original
    assert first.parametrizations["weight"][0] is second.parametrizations["weight"][0]
    assert torch.equal(first.weight, second.weight)


def test_a_parametrization_of_the_users_own_goes_first() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 8, 8)
    before, kind = model(x), type(model[0])
    weight = model[0].weight.detach().clone()
    sparse = FineGrainedPruning(sparsity={"0.weight": 0.5, "0.bias": 0.5})(trace(model, x)).graph_module
    layer = sparse.get_submodule("0")
    assert torch.equal(layer.weight, torch.where(magnitude_mask(weight, 0.5), weight, 0))
    # The user's layer is of a class of its own still, and that one has no masked bias.
    assert type(model[0]) is kind
    assert not parametrize.is_parametrized(model[0], "bias")
    assert torch.equal(model(x), before)


def test_options_are_fields_that_later_changes_do_not_reach() -> None:
    wanted = {"classifier.weight": 0.5}
    pruning = FineGrainedPruning(sparsity=wanted)
    wanted["classifier.weight"] = 0.9
    assert dict(pruning.sparsity) == {"classifier.weight": 0.5}
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruning.sparsity = 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ArgumentError, "either sparsity or masks, but was given neither"),
        ({"sparsity": 0.5, "masks": {}}, ArgumentError, "but was given both"),
        ({"sparsity": 1.5}, ArgumentError, r"sparsity must lie in \[0, 1\].*not 1\.5"),
        ({"sparsity": {"w": -0.5}}, ArgumentError, r"the sparsity of 'w' must lie in \[0, 1\].*not -0\.5"),
        ({"sparsity": "much"}, ArgumentTypeError, r"must be a number in \[0, 1\], not 'much' of type str"),
        ({"masks": [1]}, ArgumentTypeError, "masks must be a mapping from parameter names .* not list"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FineGrainedPruning(**options)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"classifier.wait": torch.ones(1).bool()}, UnknownNameError, r"'classifier\.wait'; nearest: 'classifier\.w"),
        (
            {"classifier.weight": torch.ones(10, 2)},
            ArgumentTypeError,
            r"boolean tensor .* not a tensor of torch\.float",
        ),
        ({"classifier.weight": [True]}, ArgumentTypeError, r"boolean tensor .* not list"),
        ({"classifier.weight": torch.ones(1, 2).bool()}, ArgumentError, r"shape \(1, 2\), but .* shape \(10, 51\)"),
    ],
)
def test_bad_masks_are_errors(masks: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FineGrainedPruning(masks=masks)(trace(VGG(width=0.1), torch.zeros(1, 3, 32, 32)))
