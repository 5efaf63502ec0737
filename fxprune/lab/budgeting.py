"""And with a budget: one call in place of a choice by eye, and most of the accuracy back before any training."""

from __future__ import annotations

__all__ = ["BudgetPoint", "BudgetRow", "Budgets", "share_budgets"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.allocation import Budget
from fxprune.criteria import ReconstructionLoss
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError
from fxprune.lab import steps
from fxprune.planning import plan_channels
from fxprune.profiling import profile
from fxprune.recovering import RUNGS, recover
from fxprune.recovery.curves import recovery_curves
from fxprune.sensitivity import Sensitivity
from fxprune.sparsity import prune_weights

_QUICK = ("batch-norms", "variances")
"""Rungs for masks: a least squares of its own for every output, which is what the last rung takes, needs a minute."""


@dataclass(frozen=True)
class BudgetRow:
    """One network that a limit was given for.

    Attributes:
        limited: What was limited: ``"weights"`` or ``"channels"``.
        way: How it was shared out, in words.
        cost: Non-zero parameters, or MACs, as a share of the dense network's.
        accuracy: Test accuracy (0 to 1) as pruned.
        recovered: The same after :func:`fxprune.recover`, without labels and without training.
    """

    limited: str
    way: str
    cost: float
    accuracy: float
    recovered: float


@dataclass(frozen=True)
class BudgetPoint:
    """One point of the curves of channels under smaller and smaller budgets.

    Attributes:
        share: Of the dense network's MACs that was asked for.
        way: How the budget was shared out, in words.
        macs: Of the network.
        accuracy: Test accuracy as pruned.
        recovered: The same after recovery.
    """

    share: float
    way: str
    macs: int
    accuracy: float
    recovered: float


@dataclass(frozen=True)
class Budgets:
    """What budgets came to.

    Attributes:
        images: How many unlabelled training images recovery and curves were given.
        rows: The choices by eye beside the calls that replace them.
        points: Channels under smaller and smaller budgets.
    """

    images: int
    rows: tuple[BudgetRow, ...]
    points: tuple[BudgetPoint, ...]


def share_budgets(
    lab: steps.Lab, dense: nn.Module, masked: fx.GraphModule, cut: steps.ChannelCut, curves: Sensitivity
) -> Budgets:
    """Ask for the sizes that were chosen by eye, and for smaller ones.

    Args:
        lab: Its images, and its ``settings.budgets``.
        dense: The network before pruning.
        masked: After fine-grained pruning with sparsities chosen by eye.
        cut: After removing the same share of every layer's channels.
        curves: Of the sensitivity scan of weights.
    """
    images = _unlabelled(lab)
    batches = list(torch.split(images, 64))
    whole = profile(dense, lab.example)

    def recovered(network: fx.GraphModule, rungs: Sequence[str] = RUNGS) -> float:
        return lab.test(recover(network, dense, batches, rungs=rungs).network)

    def weights(way: str, network: fx.GraphModule) -> BudgetRow:
        cost = profile(network, lab.example).nonzero_parameters / whole.parameters
        return BudgetRow("weights", way, cost, lab.test(network), recovered(network, _QUICK))

    def channels(way: str, network: fx.GraphModule) -> BudgetRow:
        cost = profile(network, lab.example).macs / whole.macs
        return BudgetRow("channels", way, cost, lab.test(network), recovered(network))

    limit = Budget(parameters=profile(masked, lab.example).nonzero_parameters / whole.parameters)
    asked = prune_weights(dense, lab.example, budget=limit, allocation=curves)
    deps = DependencyGraph.from_model(dense, lab.example)
    losses = recovery_curves(deps, batches[:1], progress=lab.settings.progress)
    ranking = ReconstructionLoss(batches[:1])

    def by_curves(budget: Budget) -> fx.GraphModule:
        return plan_channels(deps, criterion=ranking, budget=budget, allocation=losses).apply(dense)

    same = Budget(macs=profile(cut.network, lab.example).macs / whole.macs)
    rows = (
        weights("sparsities chosen by eye", masked),
        weights("one call, by the curves of the scan", asked),
        channels(f"{100 * lab.settings.ratio:g} % of every layer but the last", cut.network),
        channels("one call, by curves after recovery", by_curves(same)),
    )
    points = []
    for share in lab.settings.budgets:
        budget = Budget(macs=share)
        try:
            even, uneven = plan_channels(deps, budget=budget).apply(dense), by_curves(budget)
        except ArgumentError:  # a narrow network has no such small form
            break
        for way, network in (("the same ratio for all", even), ("by curves after recovery", uneven)):
            macs = profile(network, lab.example).macs
            points.append(BudgetPoint(share, way, macs, lab.test(network), recovered(network)))
    return Budgets(len(images), rows, tuple(points))


def _unlabelled(lab: steps.Lab) -> Tensor:
    """The first training images, as they are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lab.settings.seed)
        count = min(lab.settings.unlabelled, len(lab.data.train))  # type: ignore[arg-type]
        images = [lab.data.train[i][0] for i in range(count)]
    return torch.stack(images).to(lab.device)
