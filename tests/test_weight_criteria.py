"""Criteria for single weights, each against a loop or a network that has one weight only."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.capture import trace
from fxprune.criteria import WEIGHT_CRITERIA, Snip, Taylor, Wanda, WeightCriterion
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, UnknownNameError, WeightError
from fxprune.masks import LAYERS, prunable_weights, weight_places
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.nested import leaves
from fxprune.passes import FineGrainedPruning
from fxprune.sparsity import prune_weights

NETWORKS = (
    "residual",
    "dense",
    "resnext",
    "inverted_residual",
    "multihead_attention",
    "grouped_transposed",
    "temporal",
)


def loss_of(output: Any, targets: Any) -> Tensor:
    return sum(((y.flatten(1).sin() * targets[:, None]).square()).sum(1).mean() for y in leaves(output))


@cache
def case(name: str) -> tuple[nn.Module, fx.GraphModule, list[tuple[Any, Tensor]]]:
    model = randomize(ZOO[name]()).double().eval()
    inputs = tuple(x.double() for x in example_inputs(name))
    second = tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) for x in inputs)
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64)
    return model, trace(model, inputs), [(inputs, factors), (second, factors + 1)]


def gradients(model: nn.Module, batch: tuple[Any, Tensor], names: list[str]) -> list[Tensor]:
    twin = copy.deepcopy(model)
    loss_of(twin(*batch[0]), batch[1]).backward()
    return [twin.get_parameter(name).grad for name in names]  # type: ignore[misc]


@pytest.mark.parametrize("name", NETWORKS)
def test_taylor_and_snip_are_products_with_gradients(name: str) -> None:
    model, gm, batches = case(name)
    names = list(prunable_weights(gm))
    found = [gradients(model, batch, names) for batch in batches]
    taylor = Taylor(batches, loss_of).importance(gm, names)
    snip = Snip(batches, loss_of).importance(gm, names)
    for i, parameter in enumerate(names):
        w = model.get_parameter(parameter).detach()
        first, second = found[0][i], found[1][i]
        torch.testing.assert_close(taylor[parameter], ((w * first) ** 2 + (w * second) ** 2) / 2, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(snip[parameter], (w * (first + second) / 2).abs(), rtol=1e-9, atol=1e-15)


def energy(layer: nn.Module, calls: list[Tensor], index: tuple[int, ...]) -> float:
    """The sum of the squares of what one weight multiplies: the layer with this weight alone, which is 1."""
    single = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in single.parameters():
            parameter.zero_()
        single.weight[index] = 1.0  # type: ignore[index, operator]
        return sum(float(single(x).square().sum()) for x in calls)


@pytest.mark.parametrize("name", NETWORKS)
def test_wanda_is_the_weight_times_the_norm_of_what_it_multiplies(name: str) -> None:
    model, gm, batches = case(name)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    layers = {path: m for path, m in model.named_modules() if type(m) in kinds}
    calls: dict[str, list[Tensor]] = {path: [] for path in layers}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, path=path: calls[path].append(args[0].detach()))
        for path, m in layers.items()
    ]
    for inputs, _ in batches:
        model(*inputs)
    for hook in hooks:
        hook.remove()
    # What a decomposed attention reads by is a layer in the graph alone.
    names = [
        n for n in prunable_weights(gm) if n.removesuffix(".weight") in layers and calls[n.removesuffix(".weight")]
    ]
    assert names
    found = Wanda(batches).importance(gm, names)
    generator = torch.Generator().manual_seed(2)
    for parameter in names:
        path = parameter.removesuffix(".weight")
        weight = model.get_parameter(parameter)
        for _ in range(4):
            index = tuple(int(torch.randint(size, (), generator=generator)) for size in weight.shape)
            expected = abs(float(weight[index])) * math.sqrt(energy(layers[path], calls[path], index))
            assert float(found[parameter][index]) == pytest.approx(expected, rel=1e-9)


def test_wanda_of_a_linear_layer_is_the_papers() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    batches = [torch.randn(5, 6).double(), torch.randn(2, 6).double()]
    x = torch.cat(batches)
    found = Wanda(batches).importance(trace(model, batches[0]), ["0.weight", "2.weight"])
    hidden = model[0](x).relu()
    torch.testing.assert_close(found["0.weight"], model[0].weight.abs() * x.norm(dim=0))
    torch.testing.assert_close(found["2.weight"], model[2].weight.abs() * hidden.norm(dim=0))


def test_weights_that_functions_read_count() -> None:
    model, gm, batches = case("functional_layers")
    names = list(prunable_weights(gm))
    assert any(not isinstance(weight_places(gm)[n].owner, LAYERS) for n in names)
    found = Wanda(batches).importance(gm, names)
    assert all(bool((found[n] > 0).any()) and found[n].shape == gm.get_parameter(n).shape for n in names)

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6).double())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) + F.linear(2 * x, weight=self.weight)

    model, x = Function(), torch.randn(3, 6).double()
    found = Wanda([x]).importance(trace(model, x), ["weight"])
    torch.testing.assert_close(found["weight"], model.weight.abs() * x.norm(dim=0) * math.sqrt(5))


def test_wanda_prunes_every_output_alike() -> None:
    _, gm, batches = case("residual")
    sparse = FineGrainedPruning(0.5, criterion=Wanda(batches))(gm).graph_module
    importance = Wanda(batches).importance(gm, list(prunable_weights(gm)))
    for name, found in importance.items():
        kept = sparse.get_parameter(name.replace("weight", "parametrizations.weight.original")) != 0
        for row, mask in zip(found.flatten(1), kept.flatten(1), strict=True):
            wanted = round(0.5 * row.numel())
            assert int((~mask).sum()) == wanted
            assert float(row[~mask].max()) <= float(row[mask].min())


def test_a_masked_network_is_scored_with_its_zeros() -> None:
    _, gm, batches = case("residual")
    sparse = FineGrainedPruning(0.5)(gm).graph_module
    for criterion in (Taylor(batches, loss_of), Snip(batches, loss_of), Wanda(batches)):
        names = list(prunable_weights(sparse))
        found = criterion.importance(sparse, names)
        places = weight_places(sparse)
        assert all(bool((found[n][places[n].value == 0] == 0).all()) for n in names)
        again = FineGrainedPruning(0.7, criterion=criterion)(sparse).graph_module
        places = weight_places(again)
        for n in names:
            assert float((places[n].value == 0).double().mean()) == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("kind", [Taylor, Snip, Wanda])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_changes(kind: Any, fails: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5)).train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,)))] + [(torch.zeros(1, 9), torch.zeros(1))] * fails
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    if fails:
        with pytest.raises(FxpruneError):
            prune_weights(model, batches[0][0], 0.5, kind(batches))
    else:
        prune_weights(model, batches[0][0], 0.5, kind(batches))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


# Errors ---------------------------------------------------------------------------------------------------------------


def small() -> tuple[nn.Sequential, Tensor]:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(3, 4)


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        ("taylor", ArgumentError, r"looks at data: pass fxprune.criteria.Taylor\(batches, loss\)"),
        ("snip", ArgumentError, r"pass fxprune.criteria.Snip\(batches, loss\)"),
        ("wanda", ArgumentError, r"pass fxprune.criteria.Wanda\(batches\)"),
        ("magnitud", UnknownNameError, "no criterion 'magnitud' for weights; nearest: 'magnitude'"),
        (0.5, ArgumentTypeError, "the name of a criterion for weights or a WeightCriterion, not float"),
        (Wanda([]), ArgumentError, "there is no batch"),
        (Wanda([torch.full((1, 4), math.nan)]), ArgumentError, r"the inputs that '0\.weight' multiplies are NaN"),
        (
            Snip([(torch.zeros(1, 4), 0)], lambda y, _: (y * 0).sum().sqrt()),
            ArgumentError,
            "the gradient of '0.weight'",
        ),
    ],
)
def test_what_cannot_be_ranked_by(criterion: Any, error: type[Exception], message: str) -> None:
    model, x = small()
    with pytest.raises(error, match=message):
        prune_weights(model, x, 0.5, criterion)


def test_no_input_is_multiplied_by_a_norms_scale() -> None:
    model, x = small()
    with pytest.raises(ArgumentError, match=r"multiplied an input by '1\.weight' on these batches; leave it out"):
        prune_weights(model, x, {"1.weight": 0.5}, Wanda([x]))


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_weights_that_are_not_finite_name_the_tensor(criterion: str) -> None:
    model, x = small()
    with torch.no_grad():
        model[2].weight[1, 1] = math.inf
    given: Any = Wanda([x]) if criterion == "wanda" else criterion
    with pytest.raises(WeightError, match=r"'2\.weight' holds NaN or Inf in 1 of its 8"):
        prune_weights(model, x, 0.5, given, pattern="kernel")


def test_a_criterion_of_your_own() -> None:
    class Position(WeightCriterion):
        def importance(self, gm: fx.GraphModule, names: Any) -> dict[str, Tensor]:
            return {n: torch.arange(gm.get_parameter(n).numel()).reshape(gm.get_parameter(n).shape) for n in names}

    model, x = small()
    sparse = prune_weights(model, x, {"2.weight": 0.25}, Position())
    assert (sparse.get_submodule("2").weight == 0).tolist() == [[True, True, False, False], [False] * 4]  # type: ignore[union-attr]
    assert set(WEIGHT_CRITERIA) == {"magnitude"}
