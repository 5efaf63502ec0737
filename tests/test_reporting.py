"""The report accounts for every layer, with nothing missing and nothing false."""

from __future__ import annotations

import pytest
import torch
from networks import images
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.dependency import DependencyGraph
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.reporting import groups_table
from fxprune.verification import verify


class Opaque(nn.Module):
    """Something that depends on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.inner(x)
        return x


class Everything(nn.Module):
    """Layers that are shared, of two names, parametrized, opaque, hooked, held and unused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 1)
        self.again = self.first
        self.second = nn.Conv2d(8, 8, 1, bias=False)
        self.second.weight = self.first.weight
        self.act = nn.PReLU()
        self.mid = nn.Conv2d(8, 8, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1))
        self.opaque = Opaque()
        self.hooked = nn.Conv2d(6, 6, 1)
        self.hooked.register_forward_hook(lambda module, args, out: None)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.free = nn.Conv2d(6, 10, 1)
        self.unused = nn.Linear(4, 4)
        self.loose = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.second(self.again(self.first(x)))
        x = self.opaque(self.normed(self.mid(self.act(x))))
        x = F.relu(self.free(self.hooked(x) * self.scale))
        return self.head(x.mean((2, 3)))


def notes(plan: ChannelPlan) -> dict[str, str]:
    """By layer, all that its line says."""
    table = plan.report().split("\n\n")[0]
    return {line.split()[0]: line.partition(" ")[2].strip() for line in table.splitlines()[1:]}


def every_layer(model: nn.Module) -> set[str]:
    """Modules with tensors of their own, and the parameters of modules that have layers."""
    names = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if name and not any(module.children()) and any(True for _ in module.parameters()):
            names.add(name)
    return names


def test_every_layer_has_a_line_and_every_line_is_true() -> None:
    model = randomize(Everything()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, images()), 0.5)
    found = notes(plan)
    for name in every_layer(model):
        assert name in found or name.startswith(("normed.", "opaque.")), name
    assert found["stem"] == "3        8 -> 4"
    assert found["norm"] == "8 -> 4   8 -> 4"
    assert found["first"] == "8 -> 4   8 -> 4"
    assert found["again"] == "is 'first'"
    assert "shares its weights with 'first'" in found["second"]
    assert "passes on channels of the group 'stem'" in found["act"]
    assert "parametrized" in found["mid"]
    assert "parametrized" in found["normed"]
    assert "could not be traced" in found["opaque"]
    assert "has a forward hook" in found["hooked"]
    assert "cannot" not in found["free"]
    assert found["free"].startswith("6        10 -> 5")
    assert "output of the network" in found["head"]
    assert "not used" in found["unused"]
    assert "not used" in found["loose"]
    assert verify(model, plan, images(3)).max_relative_error < 1e-12


def test_what_is_not_used_stays_in_the_state_dict() -> None:
    model = randomize(Everything()).eval()
    small = plan_channels(DependencyGraph.from_model(model, images()), 0.5).apply(model)
    assert set(small.state_dict()) == set(model.state_dict())
    assert torch.equal(small.get_parameter("unused.weight"), model.get_parameter("unused.weight"))
    assert small.get_submodule("again") is small.get_submodule("first")
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {p.data_ptr() for p in small.parameters()}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_no_layer_of_any_network_is_missing(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, example_inputs(name)), 0.5)
    found = notes(plan)
    small = plan.apply(model)
    assert set(small.state_dict()) == set(model.state_dict())
    for layer in every_layer(model):
        assert any(layer == n or layer.startswith(f"{n}.") or n.startswith(f"{layer}.") for n in found), layer
    for layer, module in small.named_modules():
        if isinstance(module, nn.Conv2d) and layer in plan.layers and plan.layers[layer].size[1]:
            assert str(module.out_channels) in found[layer]


def test_a_group_that_is_one_unit_says_so() -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(7, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y[:, 1:] * y[:, :-1]))

    plan = plan_channels(DependencyGraph.from_model(randomize(Neighbours()), images()), 0.5)
    assert "go together, and one must stay" in notes(plan)["a"]


def test_the_groups_are_a_table() -> None:
    deps = DependencyGraph.from_model(Everything(), images())
    lines = groups_table(deps.groups).splitlines()
    assert len(lines) == len(deps.groups) + 1
    assert [line.split()[0] for line in lines[1:]] == [group.name for group in deps.groups]
