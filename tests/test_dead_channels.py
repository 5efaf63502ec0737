"""Channels without which a network computes the same, and how much of it that is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import fxprune
from fxprune.constancy import known_values
from fxprune.dead_channels import plan_dead_channels
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, WeightError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.plan import ChannelPlan
from fxprune.verification import verify

LIMIT = 1e-12


def thinned(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random rows and columns of all weights become zero, and some of what is left gets a bias of any sign."""
    generator = torch.Generator().manual_seed(seed)

    def some(size: int, share: float) -> Tensor:
        return torch.rand(size, generator=generator) < share

    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            if parameter.dim() > 1:
                parameter[some(parameter.shape[0], 0.5)] = 0
                parameter[:, some(parameter.shape[1], 0.4)] = 0
            else:
                parameter[some(parameter.shape[0], 0.3)] = 0
                parameter[some(parameter.shape[0], 0.2)] *= -1
    return model


def planned(model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> ChannelPlan:
    plan = plan_dead_channels(DependencyGraph.from_model(model, x))
    assert verify(model, plan, x).max_relative_error < LIMIT
    return plan


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_computes_the_same_without_its_dead_channels(name: str, seed: int) -> None:
    model = thinned(randomize(ZOO[name](), seed).eval(), seed)
    x = example_inputs(name)
    plan = planned(model, x)
    assert not plan.inexact
    small = plan.apply(copy.deepcopy(model).double())
    other = tuple(torch.randn(3, *t.shape[1:], dtype=torch.float64) for t in x)
    expected, found = model.double()(*other), small(*other)
    for a, b in zip(*([t] if isinstance(t, Tensor) else list(t) for t in (expected, found)), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_nothing_is_dead_in_a_network_without_zeros(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    assert planned(model, example_inputs(name)).kept.all()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(padding: int = 0, bias: bool = False, norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding, bias=bias)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    return randomize(nn.Sequential(*layers, nn.Conv2d(4, 2, 1))).eval()


def constant(model: nn.Sequential, channel: int, value: float) -> None:
    with torch.no_grad():
        model[0].weight[channel] = 0
        model[1].weight[channel] = 0
        model[1].bias[channel] = value


def outputs(plan: ChannelPlan, layer: str = "0") -> tuple[int, ...] | None:
    return plan.layers[layer].outputs


def test_channels_that_nothing_reads() -> None:
    model = chain(padding=1)
    with torch.no_grad():
        model[3].weight[:, [1, 4]] = 0
    assert outputs(planned(model, IMAGE)) == (0, 2, 3, 5)


def test_channels_that_only_dead_ones_read() -> None:
    model = chain(padding=1)
    with torch.no_grad():
        model[5].weight[:, 2] = 0
        model[3].weight[:, 1] = 0
        model[3].weight[2, 1] = 3.0
    plan = planned(model, IMAGE)
    assert outputs(plan, "3") == (0, 1, 3)
    assert outputs(plan) == (0, 2, 3, 4, 5)


@pytest.mark.parametrize("value", [2.0, 0.0, -1.0])
@pytest.mark.parametrize("padding", [0, 1])
def test_zero_padding_breaks_all_constants_but_zero(value: float, padding: int) -> None:
    model = chain(padding)
    constant(model, 3, value)
    goes = value <= 0 or padding == 0  # behind the ReLU
    assert outputs(planned(model, IMAGE)) == ((0, 1, 2, 4, 5) if goes else None)


def test_padding_that_repeats_the_image_breaks_none() -> None:
    model = chain()
    model[3] = randomize(nn.Conv2d(6, 4, 3, padding=2, padding_mode="reflect"))
    constant(model, 3, 2.0)
    assert outputs(planned(model, IMAGE)) == (0, 1, 2, 4, 5)


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, True), (True, False), (False, False)])
def test_where_constants_go(bias: bool, norm: bool) -> None:
    model = chain(bias=bias, norm=norm)
    constant(model, 0, 1.5)
    constant(model, 2, 0.5)
    plan = planned(model, IMAGE)
    assert outputs(plan) == (1, 3, 4, 5)
    assert plan.constants is not None
    assert plan.constants["3"].tolist() == [1.5, 0, 0.5, 0, 0, 0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = plan.apply(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(small(IMAGE), model(IMAGE))
    # Only where neither the layer nor what follows has a place for them is one made.
    assert (set(small.state_dict()) != set(before)) is (not bias and not norm)


def test_constants_of_the_last_layer_and_of_grouped_and_linear_readers() -> None:
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 6, 1, groups=2), nn.AvgPool2d(2), nn.Flatten())
    )
    model.append(randomize(nn.Linear(6 * 9, 5)))
    with torch.no_grad():
        for channel in (1, 6):
            model[0].weight[channel] = 0
        model[2].weight[2] = model[2].weight[5] = 0
    plan = planned(model.eval(), IMAGE)
    assert outputs(plan) == (0, 2, 3, 4, 5, 7)
    assert outputs(plan, "2") == (0, 1, 3, 4)
    assert plan.constants is not None
    assert set(plan.constants) == {"2", "5"}


def test_blocks_stay_equal() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)))
    with torch.no_grad():
        model[2].weight[:3, :3] = 0  # three of the first block, one of the second
        model[2].weight[3:, 0] = 0
    found = outputs(planned(model.eval(), IMAGE))
    assert found is not None
    assert len(found) == 6
    assert {3, 5, 6, 7} <= set(found)


def test_coupled_channels_go_if_each_is_dead() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x)) + F.relu(self.b(x)))

    model = randomize(Block()).eval()
    with torch.no_grad():
        model.a.weight[[0, 1]] = 0
        model.b.weight[[1, 2]] = 0
    plan = planned(model, IMAGE)
    assert outputs(plan, "a") == outputs(plan, "b") == (0, 2, 3)


def test_one_channel_stays_where_all_are_dead() -> None:
    model = chain()
    with torch.no_grad():
        model[3].weight.zero_()
    found = outputs(planned(model, IMAGE))
    assert found is not None
    assert len(found) == 1


def test_masked_networks_become_smaller_ones() -> None:
    model = chain(padding=1)
    mask = torch.ones(4, 6, 3, 3, dtype=torch.bool)
    mask[:, 2] = False
    gm = fxprune.trace(model, IMAGE)
    sparse = fxprune.passes.FineGrainedPruning(masks={"3.weight": mask}).call(gm).graph_module
    with pytest.raises(ArgumentError, match=r"fxprune\.finalize"):
        plan_dead_channels(DependencyGraph.from_model(sparse, IMAGE))
    assert outputs(planned(fxprune.finalize(sparse), IMAGE)) == (0, 1, 3, 4, 5)


def test_masks_of_torch_are_to_be_removed_first() -> None:
    model = chain(padding=1)
    prune.ln_structured(model[3], "weight", amount=2, n=2, dim=1)
    with pytest.raises(ArgumentError, match=r"prune\.remove\(module, 'weight'\)"):
        plan_dead_channels(DependencyGraph.from_model(model, IMAGE))
    prune.remove(model[3], "weight")
    found = outputs(planned(model, IMAGE))
    assert found is not None
    assert len(found) == 4


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(ArgumentTypeError, match="DependencyGraph"):
        plan_dead_channels(chain())  # type: ignore[arg-type]
    with pytest.raises(WeightError, match="meta"):
        plan_dead_channels(DependencyGraph.from_model(chain().to("meta"), IMAGE.to("meta")))


# What is known of values ----------------------------------------------------------------------------------------------

Body = Callable[[Tensor, Tensor], Tensor]
BODIES: dict[str, Body] = {
    "sum": lambda x, c: x + c,
    "product with zero": lambda x, c: x * (c * 0),
    "cat": lambda x, c: torch.cat([x, c.expand_as(x)], 1),
    "split": lambda x, c: torch.cat([x, c.expand_as(x)], 1).chunk(4, 1)[2],
    "pad": lambda x, c: F.pad(c.expand_as(x) + 0 * x.detach(), (1, 1, 0, 0), value=3.0),
    "pooled": lambda x, c: F.avg_pool2d(torch.cat([x, c.expand_as(x)], 2), 3, 1, padding=1),
    "largest": lambda x, c: F.max_pool2d(torch.cat([x, c.expand_as(x)], 2), 2, 1),
    "gated": lambda x, c: F.glu(torch.cat([c.expand_as(x), x], 1), 1),
    "compared": lambda x, c: torch.where(x > 0, c, -c),
    "softmax": lambda x, c: torch.cat([x, c.expand_as(x)], 1).softmax(1),
    "smallest": lambda x, c: torch.cat([x, c.expand_as(x)], 1).amin(1),
    "normed": lambda x, c: F.layer_norm(torch.cat([x, c.expand_as(x)], -1), (16,)),
    "sharpened": lambda x, c: F.interpolate(torch.cat([x, c.expand_as(x)], 2), scale_factor=2, mode="bicubic"),
    "in place": lambda x, c: (c.expand_as(x) + 0).clone().add_(x),
    "written": lambda x, c: _written(c.expand_as(x) + 0, x),
    "shifted": lambda x, c: torch.cat([x, c.expand_as(x)], 2).roll(3, 2).transpose(1, 2),
    "cast": lambda x, c: (c.expand_as(x).float() + 1.4).long().double(),
}


def _written(a: Tensor, x: Tensor) -> Tensor:
    view = a.view(a.shape[0], -1)
    view.add_(x.reshape(a.shape[0], -1))
    return a + 1


class _Body(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.c = nn.Parameter(torch.tensor([1.5, -2.0, 0.0]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, self.c)


@pytest.mark.parametrize("name", BODIES)
def test_what_is_known_is_true_of_every_input(name: str) -> None:
    model = _Body(BODIES[name]).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gm = fxprune.trace(model, x)
    known = known_values(gm)
    (last,) = gm.graph.find_nodes(op="output")[0].all_input_nodes
    results = [model(scale * torch.randn(2, 3, 8, 8, dtype=torch.float64)) for scale in (1.0, 5.0, 0.0)]
    if last.name in known:
        found = known[last.name]
        for result in results:
            torch.testing.assert_close(result[~found.open], found.value[~found.open])
    varies = (results[0] != results[1]) | (results[0] != results[2])
    expected = {"product with zero": 1.0, "cat": 0.5, "split": 1.0, "pad": 0.2, "shifted": 0.5, "cast": 0.0}
    share = float((~known[last.name].open).double().mean()) if last.name in known else 0.0
    assert share >= (expected.get(name, 0.0))
    assert share <= float((~varies).double().mean())


def test_however_deep_what_only_the_dead_read_is_dead() -> None:
    """Found one layer after the other, from the last one to the first."""
    network = nn.Sequential(*(nn.Conv2d(2, 2, 1, bias=False) for _ in range(80)), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        for layer in network:
            layer.weight.copy_(torch.eye(2)[-layer.out_channels :, :, None, None])
    x = torch.randn(1, 2, 4, 4)
    small = fxprune.plan_dead_channels(fxprune.DependencyGraph.from_model(network, x)).apply(network)
    assert {layer.out_channels for layer in small.children()} == {1}
    assert torch.equal(small(x), network(x))
