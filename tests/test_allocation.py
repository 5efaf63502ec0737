"""Budgets: they are met, used up, and shared out as asked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import fxprune
from fxprune import Budget
from fxprune.allocation.knapsack import Curve, knapsack
from fxprune.allocation.widths import Meter, Widths
from fxprune.costs import Costs
from fxprune.criteria import unit_scores
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.sensitivity import Sensitivity

NETWORKS = ("residual", "dense", "resnext", "channel_shuffle", "inverted_residual", "self_attention", "vgg")
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)


def _deps(name: str) -> fxprune.DependencyGraph:
    return fxprune.DependencyGraph.from_model(randomize(ZOO[name]()), example_inputs(name))


def _curves(deps: fxprune.DependencyGraph, seed: int = 0) -> Sensitivity:
    rng = np.random.default_rng(seed)
    accuracy = {
        group.name: tuple((0.9 - 0.8 * rng.random() * np.array(POINTS) ** 2).tolist()) for group in deps.prunable
    }
    return Sensitivity("channels", POINTS, 0.9, accuracy)


def _next_steps(deps: fxprune.DependencyGraph, plan: fxprune.ChannelPlan) -> list[int]:
    """The MACs if one group kept the next larger number of units that its blocks allow."""
    structure = plan.structure
    costs = Costs.of(fxprune.DependencyGraph.of(deps.gm, structure))
    widths = Widths(structure, unit_scores(structure, (), "input-l2"), costs, [1] * structure.groups, 1)
    found = []
    for group, members in enumerate(structure.members):
        now = int(plan.kept[members].sum())
        for count in range(now + 1, len(members) + 1):
            more = widths.kept({group: count})[members]
            if more.sum() > now:
                kept = plan.kept.copy()
                kept[members] = more
                found.append(costs.macs(kept))
                break
    return found


@pytest.mark.parametrize("allocation", ["uniform", "global", "curves"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_of_macs_is_met_and_used_up(name: str, allocation: str) -> None:
    deps = _deps(name)
    how: Any = _curves(deps) if allocation == "curves" else allocation
    for share in (0.7, 0.4):
        plan = fxprune.plan_channels(deps, budget=Budget(macs=share), allocation=how)
        assert plan.allocation is not None
        (limit,) = plan.allocation.limits
        small = fxprune.profile(plan.apply(deps.gm), example_inputs(name))
        assert abs(limit.after - small.macs) <= 2
        assert limit.after <= limit.most == pytest.approx(share * limit.before)
        assert min(_next_steps(deps, plan)) > limit.most  # no group can keep any more
        assert set(plan.allocation.ratios) <= {group.name for group in deps.prunable}


def test_several_limits_hold_together() -> None:
    deps = _deps("vgg")
    plan = fxprune.plan_channels(deps, budget=Budget(macs=0.6, parameters=0.3))
    assert plan.allocation is not None
    macs, parameters = plan.allocation.limits
    assert parameters.after <= parameters.most
    assert macs.after <= macs.most
    small = fxprune.profile(plan.apply(deps.gm), example_inputs("vgg"))
    assert (macs.after, parameters.after) == (small.macs, small.parameters)
    assert "budget: parameters:" in plan.report()
    absolute = fxprune.plan_channels(deps, budget=Budget(parameters=parameters.most))
    assert absolute.allocation is not None
    assert absolute.allocation.limits[0].after == parameters.after


def test_uniform_gives_every_group_nearly_the_same_ratio() -> None:
    plan = fxprune.plan_channels(_deps("vgg"), budget=Budget(macs=0.5))
    assert plan.allocation is not None
    sizes = {group.name: group.size for group in _deps("vgg").prunable}
    ratios = np.array(list(plan.allocation.ratios.values()))
    assert (ratios > 0.2).all()
    assert np.ptp(ratios) <= 2 / min(sizes.values())


def test_global_keeps_the_units_of_highest_relative_score() -> None:
    deps = _deps("vgg")
    weak = deps.prunable[2].name

    def criterion(group: fxprune.ChannelGroup) -> np.ndarray[Any, Any]:
        scores = np.ones(group.size)
        scores[: group.size // 2] = 0.01 if group.name == weak else 0.9
        return scores

    plan = fxprune.plan_channels(deps, criterion=criterion, budget=Budget(macs=0.9), allocation="global")
    assert plan.allocation is not None
    ratios = plan.allocation.ratios
    assert ratios[weak] == max(ratios.values()) > 0
    assert plan.kept[plan.structure.members[0]].sum() >= deps.prunable[0].size / 2


def test_minimum_widths_multiples_and_exclusions() -> None:
    deps = _deps("vgg")
    names = [group.name for group in deps.prunable]
    sizes = {group.name: group.size for group in deps.prunable}
    plan = fxprune.plan_channels(
        deps, budget=Budget(macs=0.4), exclude=[names[0]], min_channels={names[1]: sizes[names[1]] - 1}, round_to=4
    )
    assert plan.allocation is not None
    kept = {name: round(sizes[name] * (1 - plan.allocation.ratios.get(name, 0.0))) for name in names}
    assert kept[names[0]] == sizes[names[0]]
    assert kept[names[1]] >= sizes[names[1]] - 1
    assert all(kept[name] % 4 == 0 or kept[name] == sizes[name] for name in names)
    wide = fxprune.plan_channels(deps, ratio=0.9, min_channels=5)
    assert all(int(wide.kept[members].sum()) >= 5 for members in wide.structure.members)


def test_a_budget_that_is_met_already_keeps_everything() -> None:
    deps = _deps("residual")
    plan = fxprune.plan_channels(deps, budget=Budget(macs=1.0))
    assert plan.kept.all()


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    deps = _deps("residual")
    with pytest.raises(fxprune.ArgumentError, match=r"cannot be met: macs of at most 10: the smallest .* has \d"):
        fxprune.plan_channels(deps, budget=Budget(macs=10))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, fxprune.ArgumentError, "needs a limit"),
        ({"macs": 0}, fxprune.ArgumentError, "above 0"),
        ({"macs": math.nan}, fxprune.ArgumentError, "above 0"),
        ({"latency_ms": -1.0}, fxprune.ArgumentError, "above 0"),
        ({"parameters": "half"}, fxprune.ArgumentTypeError, "must be a number"),
    ],
)
def test_wrong_budgets(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Budget(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"ratio": 0.5, "budget": Budget(macs=0.5)}, fxprune.ArgumentError, "not both"),
        ({"allocation": "uniform"}, fxprune.ArgumentError, "give budget"),
        ({"budget": Budget(macs=0.5), "allocation": "even"}, fxprune.ArgumentError, "must be 'uniform', 'global'"),
        ({"budget": 0.5}, fxprune.ArgumentTypeError, "fxprune.Budget"),
        ({"budget": Budget(macs=0.5), "min_channels": 0}, fxprune.ArgumentError, "min_channels"),
        ({"budget": Budget(macs=0.5), "min_channels": {"nowhere": 3}}, fxprune.UnknownNameError, "nowhere"),
        ({"budget": Budget(macs=0.5), "allocation": 3}, fxprune.ArgumentTypeError, "curves"),
    ],
)
def test_wrong_requests(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fxprune.plan_channels(_deps("residual"), **arguments)


def test_curves_of_weights_are_refused() -> None:
    curves = Sensitivity("weights", POINTS, 0.9, {})
    with pytest.raises(fxprune.ArgumentError, match="kind='channels'"):
        fxprune.plan_channels(_deps("residual"), budget=Budget(macs=0.5), allocation=curves)


def _brute_force(widths: Widths, meter: Meter, curves: dict[int, Curve]) -> float:
    groups = sorted(curves)
    levels = [sorted({widths.allowed(g, round(widths.sizes[g] * (1 - r))) for r in curves[g].ratios}) for g in groups]
    best = math.inf
    for counts in itertools.product(*levels):
        chosen = dict(zip(groups, counts, strict=True))
        if meter.cost(widths.dimensions(chosen)) <= meter.most:
            best = min(best, sum(curves[g].at(1 - n / widths.sizes[g]) for g, n in chosen.items()))
    return best


@pytest.mark.parametrize("name", ["residual", "dense", "inverted_residual"])
def test_the_knapsack_is_solved_exactly(name: str) -> None:
    deps = _deps(name)
    structure = deps.structure
    costs = Costs.of(deps)
    scores = np.random.default_rng(1).random(structure.units)
    widths = Widths(structure, scores, costs, [1] * structure.groups, 1)
    rng = np.random.default_rng(2)
    groups = range(min(5, structure.groups))
    curves = {g: Curve((0.0, 0.25, 0.5, 0.75), (0.0, *np.sort(rng.random(3) * rng.random()).tolist())) for g in groups}
    for share in (0.5, 0.7, 0.85):
        meter = Meter("macs", costs.terms["macs"], share * costs.macs())
        best = _brute_force(widths, meter, curves)
        start = {g: widths.allowed(g, 1) for g in groups}
        if best == math.inf:
            continue
        counts, bound = knapsack(widths, [meter], start, curves)
        damage = sum(curves[g].at(1 - n / widths.sizes[g]) for g, n in counts.items())
        assert meter.cost(widths.dimensions(counts)) <= meter.most * (1 + 1e-9)
        assert damage == pytest.approx(best, rel=1e-3)
        assert bound <= damage + 1e-9
        assert bound == pytest.approx(best, rel=1e-2)


def test_curves_lose_less_than_the_same_ratio_for_all() -> None:
    deps = _deps("vgg")
    curves = _curves(deps, 3)
    measured = {name: Curve.of(POINTS, accuracies, 0.9) for name, accuracies in curves}

    def lost(plan: fxprune.ChannelPlan) -> float:
        assert plan.allocation is not None
        return sum(measured[name].measured(ratio) for name, ratio in plan.allocation.ratios.items())

    even = fxprune.plan_channels(deps, budget=Budget(macs=0.4))
    best = fxprune.plan_channels(deps, budget=Budget(macs=0.4), allocation=curves)
    assert lost(best) < lost(even)
    assert best.allocation is not None
    assert best.allocation.damage == pytest.approx(lost(best))


def test_a_curve_is_cleared_of_noise() -> None:
    curve = Curve.of((0.5, 0.1, 0.3), (0.7, 0.95, 0.6), 0.9)
    assert curve.ratios == (0.0, 0.1, 0.3, 0.5)
    assert curve.damage == pytest.approx((0.0, 0.0, 0.3, 0.3))
    assert curve.measured(0.2) == pytest.approx(0.15)


def test_groups_without_a_curve_stay_whole() -> None:
    deps = _deps("vgg")
    some = dict(list(_curves(deps).accuracy.items())[:3])
    plan = fxprune.plan_channels(deps, budget=Budget(macs=0.8), allocation=Sensitivity("channels", POINTS, 0.9, some))
    assert plan.allocation is not None
    assert set(plan.allocation.ratios) == set(some)
    assert all(plan.kept[members].all() for members in plan.structure.members[3:])


def test_prune_channels_takes_a_budget() -> None:
    model, inputs = randomize(ZOO["residual"]()), example_inputs("residual")
    whole = fxprune.profile(model, inputs)
    small = fxprune.prune_channels(model, inputs, budget=Budget(macs=0.5), round_to=2)
    assert fxprune.profile(small, inputs).macs <= whole.macs / 2
    assert not torch.equal(next(small.parameters()), next(model.parameters()))
