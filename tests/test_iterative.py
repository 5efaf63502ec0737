"""Pruning in rounds: where it ends, what every round gets to see, and that the model stays."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.allocation import Budget
from fxprune.costs import Costs
from fxprune.criteria import Taylor
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from fxprune.finetuning import fine_tune
from fxprune.iterative import PruningRound, prune_iteratively
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.planning import plan_channels
from fxprune.profiling import profile

IMAGE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 3), nn.ReLU(), nn.Flatten()]
    return randomize(nn.Sequential(*layers, nn.Linear(320, 10)))


def kept(model: nn.Module) -> nn.Module:
    """No tuning."""
    return model


def widths(model: nn.Module) -> list[int]:
    return [len(p) for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("schedule", "share"),
    [("geometric", 0.2**0.5), ("linear", 0.6), ("cubic", 0.3), (lambda progress, ratio: ratio * progress**2, 0.8)],
)
def test_the_rounds_follow_the_schedule(schedule: Any, share: float) -> None:
    seen: list[list[int]] = []
    result = prune_iteratively(
        network(), IMAGE, kept, 0.8, schedule=schedule, rounds=2, on_round=lambda _, net: seen.append(widths(net))
    )
    assert seen == [[40, 20, 10], *([round(40 * s), round(20 * s), 10] for s in (share, 0.2))]
    assert widths(result.network) == seen[-1]


@pytest.mark.parametrize("name", ["residual", "dense", "resnext", "multihead_attention", "inverted_residual"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_it_ends_with_the_widths_of_one_plan(name: str, rounds: int) -> None:
    model, x = randomize(ZOO[name]()).eval(), example_inputs(name)
    once = plan_channels(DependencyGraph.from_model(model, x), 0.6).apply(model)
    result = prune_iteratively(model, x, kept, 0.6, rounds=rounds)
    assert {n: p.shape for n, p in result.network.named_parameters()} == {
        n: p.shape for n, p in once.named_parameters()
    }
    if rounds == 1:
        assert all(torch.equal(p, once.get_parameter(n)) for n, p in result.network.named_parameters())


def test_rounding_does_not_add_up() -> None:
    for rounds in (1, 2, 5, 9):
        result = prune_iteratively(network(), IMAGE, kept, 0.77, rounds=rounds)
        assert widths(result.network) == [round(40 * 0.23), round(20 * 0.23), 10]


@pytest.mark.parametrize("ratio", [{"0": 0.5}, [0.5, 0.0]])
def test_ratios_of_single_groups(ratio: Any) -> None:
    assert widths(prune_iteratively(network(), IMAGE, kept, ratio, rounds=2).network) == [20, 20, 10]


def test_the_settings_of_a_plan_hold_in_every_round() -> None:
    seen: list[list[int]] = []

    def on_round(_: PruningRound, net: nn.Module) -> None:
        seen.append(widths(net))

    prune_iteratively(network(), IMAGE, kept, 0.6, exclude=("3",), round_to=8, rounds=3, on_round=on_round)
    assert [w[1] for w in seen] == [20] * 4
    assert [w[0] for w in seen] == [40, 32, 24, 16]
    seen.clear()
    prune_iteratively(network(), IMAGE, kept, 0.5, scope="global", min_channels={"3": 15}, rounds=2, on_round=on_round)
    assert seen[-1][1] >= 15


def test_globally_the_number_of_all_channels_follows() -> None:
    result = prune_iteratively(network(), IMAGE, kept, 0.5, "random", "global", rounds=3)
    assert sum(widths(result.network)[:2]) == pytest.approx(30, abs=1)


@pytest.mark.parametrize("budget", [Budget(macs=0.3), Budget(parameters=0.4), Budget(macs=0.5, parameters=0.4)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_budget_is_reached_in_steps(budget: Budget, allocation: str) -> None:
    model = network()
    deps = DependencyGraph.from_model(model, IMAGE)
    one = plan_channels(deps, budget=budget, allocation=allocation)
    result = prune_iteratively(model, IMAGE, kept, budget=budget, allocation=allocation, rounds=3)
    first, last = result.rounds[0], result.rounds[-1]
    assert (first.macs, first.parameters) == (Costs.of(deps).macs(), Costs.of(deps).parameters())
    measured = profile(result.network, IMAGE)
    assert (last.macs, last.parameters) == (measured.macs, measured.parameters)
    assert one.allocation is not None
    for limit in one.allocation.limits:
        spent = [float(getattr(r, limit.name)) for r in result.rounds]
        share = limit.most / limit.before
        for number, value in enumerate(spent[1:], 1):
            assert value <= limit.before * share ** (number / 3) * (1 + 1e-9)
    tightest = max(getattr(last, n.name) / n.most for n in one.allocation.limits)
    assert tightest > 0.85


def test_every_round_tunes_and_scores_what_it_pruned() -> None:
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))) for _ in range(2)]
    model = network().train()
    before, reports, tuned = copy.deepcopy(model.state_dict()), [], []

    def tune(net: nn.Module) -> nn.Module:
        assert isinstance(net, fx.GraphModule)
        tuned.append(widths(net))
        return fine_tune(net, data, epochs=1, lr=0.01, teacher=model, progress=False)

    def evaluate(net: nn.Module) -> float:
        assert not net.training
        assert not torch.is_grad_enabled()
        return float(sum(widths(net)))

    result = prune_iteratively(
        model, IMAGE, tune, 0.5, Taylor(data), rounds=2, evaluate=evaluate, on_round=lambda r, _: reports.append(r)
    )
    assert result.rounds == tuple(reports)
    assert [r.number for r in reports] == [0, 1, 2]
    assert [r.progress for r in reports] == [0.0, 0.5, 1.0]
    assert [r.score for r in reports] == [70.0, float(sum(tuned[0])), float(sum(tuned[1]))]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not result.network.get_parameter("0.weight").equal(model[0].weight[:20])


def test_names_hold_through_all_rounds() -> None:
    """A function that knows layers by name finds them, and the state of one network fits the names of the other."""
    seen: list[tuple[str, int]] = []

    def criterion(group: ChannelGroup) -> list[float]:
        seen.append((group.name, group.size))
        return list(range(group.size))

    model = network()
    result = prune_iteratively(model, IMAGE, kept, 0.75, criterion, rounds=2)
    assert seen == [("0", 40), ("3", 20), ("0", 20), ("3", 10)]
    assert torch.equal(result.network.get_parameter("0.weight"), model[0].weight[30:])
    assert result.network.state_dict().keys() == model.state_dict().keys()


def test_a_round_that_removes_nothing_still_tunes_but_never_the_model_itself() -> None:
    model, tuned = network(), []

    def tune(net: nn.Module) -> nn.Module:
        tuned.append(widths(net))
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        return net

    prune_iteratively(model, IMAGE, tune, 0.05, schedule=lambda p, r: 0.0 if p < 1 else r, rounds=3)
    assert tuned == [[40, 20, 10], [40, 20, 10], [38, 19, 10]]
    assert all(bool((p != 0).any()) for p in model.parameters())


def test_whole_heads() -> None:
    model, x = randomize(ZOO["multihead_attention"]()), example_inputs("multihead_attention")
    deps = DependencyGraph.from_model(model, x)
    once = plan_channels(deps, 0.5, heads=True).apply(model)
    result = prune_iteratively(model, x, kept, 0.5, heads=True, rounds=2)
    assert shapes(result.network) == shapes(once)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ArgumentError, "a ratio or a budget to get to, and not both"),
        ({"ratio": 0.5, "budget": Budget(macs=0.5)}, ArgumentError, "and not both"),
        ({"ratio": 0.5, "rounds": 0}, ArgumentError, "rounds"),
        ({"ratio": 0.5, "schedule": "cubical"}, UnknownNameError, "no schedule 'cubical'; nearest: 'cubic'"),
        ({"ratio": 0.5, "schedule": 3}, ArgumentTypeError, "schedule must be a name or a function, not int"),
        ({"ratio": 0.5, "schedule": lambda p, r: 2.0}, ArgumentError, r"gives 2\.0 at 0\.25 of the way to 0\.5"),
        ({"ratio": 0.5, "schedule": lambda p, r: r * (1 - p)}, ArgumentError, "removed does not come back"),
        ({"budget": Budget(macs=0.5), "allocation": 3}, ArgumentTypeError, "'uniform' or 'global' in rounds"),
        ({"ratio": 1.5}, ArgumentError, r"1\.5"),
        ({"ratio": 0.5, "tune": 5}, ArgumentTypeError, "tune must be a function from a network to a network"),
        ({"ratio": 0.5, "tune": lambda net: None}, ArgumentTypeError, "must return the network that it trained"),
    ],
)
def test_what_cannot_be_done(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    tune: Callable[[nn.Module], nn.Module] = arguments.pop("tune", kept)
    with pytest.raises(error, match=message):
        prune_iteratively(network(), IMAGE, tune, **arguments)


def test_it_reads_as_in_the_documentation() -> None:
    model, images = network(), torch.randn(4, 3, 8, 8)
    batches: list[tuple[Tensor, Tensor]] = [(images, torch.tensor([1, 2, 3, 4]))]
    tune = functools.partial(fine_tune, train_batches=batches, epochs=1, teacher=model, progress=False)
    result = prune_iteratively(model, images[:1], tune, budget=Budget(macs=0.25), rounds=2)
    assert result.rounds[-1].macs <= 0.25 * result.rounds[0].macs
