"""The public names, the three steps in one, and what a user's model goes through."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import DependencyGraph, FxpruneError, plan_channels, prune_channels, verify
from fxprune.models import VGG, ZOO, example_inputs, randomize

CIFAR = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def same(model: nn.Module, before: nn.Module) -> bool:
    """Whether weights, modes, attributes and hooks are those of an earlier copy."""
    state, old = model.state_dict(), before.state_dict()
    return (
        list(state) == list(old)
        and all(
            torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(state.values(), old.values(), strict=True)
        )
        and [m.training for m in model.modules()] == [m.training for m in before.modules()]
        and [set(m.__dict__) for m in model.modules()] == [set(m.__dict__) for m in before.modules()]
        and [len(m._forward_pre_hooks) for m in model.modules()]
        == [len(m._forward_pre_hooks) for m in before.modules()]
        and repr(model) == repr(before)
    )


class Detector(nn.Module):
    """A backbone of plain layers, and a head that nothing can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, threshold: float = 0.0) -> Tensor:
        y = self.head(self.backbone(x).mean((2, 3)))
        return y[y.sum(1) > threshold] if float(y.detach().sum()) > -1e9 else y


def test_every_public_name_is_there_and_documented() -> None:
    assert len(set(fxprune.__all__)) == len(fxprune.__all__)
    for name in fxprune.__all__:
        assert getattr(fxprune, name).__doc__, name
    promised = "trace DependencyGraph plan_channels prune_channels prune_weights finalize verify profile sensitivity"
    assert set(promised.split()) <= set(fxprune.__all__)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": 0.6, "criterion": "first"},
        {"ratio": {"backbone.conv3": 0.5}, "criterion": "output-l2"},
        {"ratio": [0.1] * 8, "scope": "global", "round_to": 2},
        {"exclude": ("backbone.conv7",), "criterion": lambda group: torch.arange(group.size)},
    ],
)
def test_one_call_is_the_three_steps(options: dict[str, Any]) -> None:
    model = randomize(VGG(0.1)).eval()
    small = prune_channels(model, CIFAR, **options)
    expected = plan_channels(DependencyGraph.from_model(model, CIFAR), **options).apply(model)
    assert isinstance(small, fx.GraphModule)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert torch.equal(small(CIFAR), expected(CIFAR))


def test_the_default_removes_30_percent() -> None:
    small = prune_channels(VGG(0.5), CIFAR)
    assert small.get_submodule("backbone.conv1").out_channels == 45
    assert small.get_submodule("backbone.conv7").out_channels == 179


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_can_be_pruned_in_one_call_and_is_left_alone(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    before = copy.deepcopy(model)
    small = prune_channels(model, example_inputs(name), 0.5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert same(model, before)
    small(*example_inputs(name, batch=3))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ratio": 1.0}, ValueError),
        ({"ratio": "a"}, TypeError),
        ({"ratio": {"nothing": 0.5}}, KeyError),
        ({"ratio": {"classifier": 0.5}}, ValueError),
        ({"criterion": "nothing"}, KeyError),
        ({"exclude": ["nothing"]}, KeyError),
        ({"scope": "nothing"}, ValueError),
        ({"round_to": -1}, ValueError),
        ({"example_inputs": torch.randn(2, 4, 32, 32)}, FxpruneError),
        ({"example_inputs": ()}, FxpruneError),
        ({"example_inputs": "image"}, TypeError),
        ({"criterion": lambda group: [math.nan] * group.size}, ValueError),
        ({"submodule": "nothing"}, KeyError),
        ({"submodule": ""}, KeyError),
    ],
)
def test_every_failure_is_an_error_of_fxprune_and_leaves_the_model_alone(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    model = randomize(VGG(0.1)).train()
    model.backbone.eval()
    before = copy.deepcopy(model)
    with pytest.raises(error) as caught:
        prune_channels(model, **({"example_inputs": CIFAR} | arguments))
    assert isinstance(caught.value, FxpruneError)
    assert same(model, before)


def test_weights_that_cannot_be_ranked_leave_the_model_alone() -> None:
    model = randomize(VGG(0.1))
    with torch.no_grad():
        model.get_parameter("backbone.conv2.weight")[0, 0, 0, 0] = math.nan
    before = copy.deepcopy(model)
    with pytest.raises(fxprune.WeightError, match=r"backbone\.conv2\.weight"):
        prune_channels(model, CIFAR)
    assert same(model, before)


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module, not str"):
        prune_channels("model", CIFAR)  # type: ignore[arg-type]


def test_a_model_can_be_pruned_again_and_again() -> None:
    model: nn.Module = randomize(VGG(0.2)).eval()
    widths = []
    for _ in range(4):
        model = prune_channels(model, CIFAR, 0.3)
        widths.append(model.get_submodule("backbone.conv7").out_channels)
    assert widths == [71, 50, 35, 24]
    assert model(CIFAR).shape == (2, 10)


def test_a_pruned_model_can_be_compared_with_the_zeroed_original_by_hand() -> None:
    """The proof, written out for a chain: zero the channels where the next layer reads them."""
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    model = model.double().eval()
    x = IMAGE.double()
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.5)
    first, second = plan.layers["0"].outputs, plan.layers["2"].outputs
    assert first is not None
    assert second is not None
    y = model[1](model[0](x))
    y[:, [c for c in range(6) if c not in first]] = 0
    y = model[3](model[2](y))
    y[:, [c for c in range(4) if c not in second]] = 0
    torch.testing.assert_close(plan.apply(model)(x), model[4](y), rtol=1e-12, atol=1e-12)


def test_arguments_with_defaults_are_no_obstacle() -> None:
    class Default(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, times: int = 2, mask: Tensor | None = None) -> Tensor:
            y = self.b(F.relu(self.a(x)))
            for _ in range(times):
                y = y * 0.5
            return y if mask is None else y * mask

    model = randomize(Default()).eval()
    small = prune_channels(model, IMAGE, 0.5)
    assert small(IMAGE).shape == (2, 2, 8, 8)
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5)
    assert verify(model, plan, IMAGE).max_relative_error < 1e-10


def test_named_results_are_followed() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(F.relu(self.a(x)))
            return x.max(1).values + x.sort(1).values[:, 0]

    assert prune_channels(randomize(Named()), IMAGE, 0.5).get_submodule("a").out_channels == 4


@pytest.mark.parametrize("flip", [False, True])
def test_a_gate_of_one_channel_on_the_input_is_no_obstacle(flip: bool) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g = nn.Conv2d(3, 1, 1)
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.sigmoid(self.g(x))
            return self.b(F.relu(self.a(x.flip(1) if flip else x)))

    assert prune_channels(randomize(Gate()), IMAGE, 0.5).get_submodule("a").out_channels == 4


# One part of a model --------------------------------------------------------------------------------------------------


def test_one_part_is_pruned_in_its_place() -> None:
    model = randomize(Detector()).eval()
    before = copy.deepcopy(model)
    small = prune_channels(model, IMAGE, 0.5, submodule="backbone")
    assert type(small) is Detector
    assert isinstance(small.backbone, fx.GraphModule)
    assert small.backbone.get_submodule("0").out_channels == 4
    assert small.backbone.get_submodule("3").out_channels == 6
    assert small(IMAGE).shape[1] == 2
    assert same(model, before)
    pointers = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    assert not pointers & {p.untyped_storage().data_ptr() for p in small.state_dict().values()}
    assert set(small.state_dict()) == set(model.state_dict())


def test_names_are_relative_to_the_part() -> None:
    small = prune_channels(randomize(Detector()).eval(), IMAGE, {"0": 0.25}, submodule="backbone")
    assert small.get_submodule("backbone.0").out_channels == 6


@pytest.mark.parametrize("training", [True, False])
def test_modes_of_model_and_part_are_kept(training: bool) -> None:
    model = randomize(Detector()).train(training)
    model.backbone[1].train(not training)
    before = copy.deepcopy(model)
    small = prune_channels(model, IMAGE, 0.5, submodule="backbone")
    assert same(model, before)
    assert small.training is training
    assert small.get_submodule("backbone.1").training is not training
    assert small.get_submodule("backbone.3").training is training


def test_a_part_that_is_never_called_is_refused() -> None:
    model = Detector()
    before = copy.deepcopy(model)
    with pytest.raises(fxprune.TraceError, match="never calls its submodule 'unused'"):
        prune_channels(model, IMAGE, submodule="unused")
    assert same(model, before)
    with pytest.raises(fxprune.UnknownNameError, match="no submodule 'backbon'; nearest: 'backbone'"):
        prune_channels(model, IMAGE, submodule="backbon")


def test_wrong_inputs_for_a_part_leave_no_hook_behind() -> None:
    model = randomize(VGG(0.1))
    before = copy.deepcopy(model)
    with pytest.raises(FxpruneError):
        prune_channels(model, (), submodule="backbone")
    assert same(model, before)


def test_inputs_that_the_model_around_a_part_refuses() -> None:
    with pytest.raises(fxprune.TraceError):
        prune_channels(randomize(Detector()), torch.randn(2, 4, 8, 8), submodule="head")


def test_a_single_channel_joined_with_itself_is_no_obstacle() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = nn.Conv2d(3, 8, 1)
            self.a = nn.Conv2d(8, 1, 1)
            self.b = nn.Conv2d(2, 1, 1)
            self.c = nn.Conv2d(1, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.h(x))
            return self.c(y + self.b(torch.cat([y, y], 1)))

    assert prune_channels(randomize(Single()), IMAGE, 0.5).get_submodule("h").out_channels == 4
