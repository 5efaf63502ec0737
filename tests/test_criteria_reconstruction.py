"""The criterion by what readers cannot make up for, against regressions written out, and the curves that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.allocation import Budget
from fxprune.criteria import ReconstructionLoss, unit_scores
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError
from fxprune.models import ResNet20, randomize
from fxprune.planning import plan_channels, relative_scores


def images(count: int = 24, seed: int = 0) -> Tensor:
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, 1, padding=1) * 3


def network(groups: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, groups=groups), nn.BatchNorm2d(4)]
    return randomize(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))).eval()


def left_over(model: nn.Sequential, kept: list[int]) -> float:
    """The share of the norm's output that regression on some channels cannot say, fitted anew from the images."""
    hidden = model[:2](images()).double()
    patches = F.unfold(hidden, 3, padding=1).unflatten(1, (6, 9))[:, kept].flatten(1, 2).transpose(1, 2).flatten(0, 1)
    wanted = model[:4](images()).double().flatten(2).transpose(1, 2).flatten(0, 1)
    patches, wanted = patches - patches.mean(0), wanted - wanted.mean(0)
    rest = wanted - patches @ torch.linalg.lstsq(patches, wanted, driver="gelsd").solution
    return float(rest.square().sum() / wanted.square().sum())


def scores(model: nn.Module, group: int = 0) -> np.ndarray:
    deps = DependencyGraph.from_model(model, images(2))
    found = unit_scores(deps.structure, deps.groups, ReconstructionLoss([images()]))
    return found[deps.structure.members[group]]


@torch.no_grad()
def test_it_is_what_a_new_fit_leaves_over_channel_by_channel() -> None:
    model = network()
    found = scores(model)
    order = np.argsort(found, kind="stable")
    kept = list(range(6))
    before, most = 0.0, 0.0
    for channel in order[:4].tolist():
        losses = {c: left_over(model, [k for k in kept if k != c]) - before for c in kept}
        assert channel == min(losses, key=losses.__getitem__)
        before += losses[channel]
        kept.remove(channel)
        most = max(most, losses[channel])
        assert found[channel] == pytest.approx(most, rel=0.05, abs=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_of_twins_one_goes_for_nothing_whatever_its_weights(groups: int) -> None:
    model = network(groups)
    for tensor in (model[0].weight, model[0].bias):
        tensor[1] = tensor[0] * 2
    model[2].weight[:, 0] *= 5  # of the first block, and of both if there are two
    found = scores(model)
    cheapest = sorted(found)[0]
    assert cheapest in (found[0], found[1])
    assert cheapest < 0.1 * sorted(found)[1]


def test_it_plans_residual_networks_and_keeps_its_data() -> None:
    model = randomize(ResNet20(0.25)).eval()
    deps = DependencyGraph.from_model(model, images(2))
    criterion = ReconstructionLoss(iter([images()])).prepared(deps.structure)
    plans = [fxprune.plan_channels(deps, ratio, criterion=criterion) for ratio in (0.25, 0.5)]
    assert all((a >= b).all() for a, b in [(plans[0].kept, plans[1].kept)])
    assert fxprune.verify(model, plans[1], images(2)).max_relative_error < 1e-10
    with pytest.raises(ArgumentError, match="another network"):
        fxprune.plan_channels(DependencyGraph.from_model(model, images(2)), 0.5, criterion=criterion)


@torch.no_grad()
def test_curves_say_what_is_lost_after_recovery() -> None:
    model = network()
    for tensor in (model[0].weight, model[0].bias):
        tensor[3:] = tensor[:3]  # half of the channels say nothing new
    deps = DependencyGraph.from_model(model, images(2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    many = images(400)
    curves = fxprune.recovery_curves(deps, [many], ratios=(0.34, 0.5, 0.84))
    assert curves.kind == "channels"
    assert set(curves.accuracy) == {"0", "2"}
    first, second = curves.accuracy["0"], curves.accuracy["2"]
    assert first[1] > 0.99 > first[2]
    assert second[0] < 0.99
    assert list(first) == sorted(first, reverse=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    plan = fxprune.plan_channels(
        deps, criterion=ReconstructionLoss([many]), budget=Budget(macs=0.55), allocation=curves
    )
    assert plan.layers["0"].outputs is not None
    assert plan.layers["2"].outputs is None
    small = fxprune.recover(plan.apply(model), model, [many])
    assert small.rungs[-1].error < 0.02
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        fxprune.recovery_curves(deps, [images()], ratios=(0.0, 0.5))


def test_groups_are_compared_after_division_by_their_means() -> None:
    model, images = randomize(ResNet20(0.25)).eval(), torch.rand(8, 3, 16, 16)
    deps = DependencyGraph.from_model(model, images[:1])
    prepared = ReconstructionLoss([images]).prepared(deps.structure)
    relative = relative_scores(deps.structure, unit_scores(deps.structure, (), prepared))
    plan = plan_channels(deps, 0.5, prepared, "global")
    removed = {int(g): int((~plan.kept[m]).sum()) for g, m in enumerate(plan.structure.members)}
    total = sum(len(members) for members in deps.structure.members)
    units = np.concatenate(deps.structure.members)
    lowest = units[np.argsort(relative[units], kind="stable")[: total // 2]]
    expected = np.bincount(deps.structure.group[lowest], minlength=deps.structure.groups)
    sizes = [len(members) for members in deps.structure.members]
    assert all(abs(removed[g] - min(n, sizes[g] - 1)) <= 1 for g, n in enumerate(expected.tolist()))
