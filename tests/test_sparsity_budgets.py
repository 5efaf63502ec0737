"""Budgets for masks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxprune
from fxprune import Budget
from fxprune.allocation.knapsack import Curve
from fxprune.allocation.sparsities import sparsities_under
from fxprune.masks import prunable_weights
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.sensitivity import Sensitivity

POINTS = (0.2, 0.5, 0.8, 0.95)


def _traced(name: str) -> Any:
    return fxprune.trace(randomize(ZOO[name]()).eval(), example_inputs(name))


def _score(gm: Any) -> Any:
    parameters = dict(gm.named_parameters(remove_duplicate=False))

    def score(name: str) -> Tensor:
        return parameters[name].abs()

    return score


def _costs(name: str, gm: Any, sparsities: dict[str, float]) -> tuple[float, float]:
    """Non-zero parameters, and MACs with the multiplications by zero taken off, by an independent count."""
    parameters = dict(gm.named_parameters())
    nonzero = sum(p.numel() for p in parameters.values())
    nonzero -= sum(round(parameters[w].numel() * s) for w, s in sparsities.items())
    macs = float(fxprune.profile(gm, example_inputs(name)).macs)
    for weight, sparsity in sparsities.items():
        node = next(n for n in gm.graph.nodes if n.target == weight.removesuffix(".weight"))
        positions = node.meta["val"].numel() / parameters[weight].shape[0]
        macs -= round(parameters[weight].numel() * sparsity) * positions
    return nonzero, macs


def _curves(weights: tuple[str, ...]) -> Sensitivity:
    rng = np.random.default_rng(0)
    accuracy = {w: tuple((0.9 - 0.8 * rng.random() * np.array(POINTS) ** 3).tolist()) for w in weights}
    return Sensitivity("weights", POINTS, 0.9, accuracy)


@pytest.mark.parametrize("allocation", ["uniform", "global", "curves"])
@pytest.mark.parametrize("name", ["residual", "vgg", "resnext"])
def test_budgets_are_met_and_used_up(name: str, allocation: str) -> None:
    gm = _traced(name)
    weights = prunable_weights(gm)
    how: Any = _curves(weights) if allocation == "curves" else allocation
    whole = _costs(name, gm, {})
    for budget in (Budget(parameters=0.3), Budget(macs=0.4), Budget(parameters=0.5, macs=0.2)):
        sparsities = sparsities_under(gm, weights, budget, how, _score(gm))
        spent = _costs(name, gm, sparsities)
        limits = (budget.parameters or 1.0) * whole[0], (budget.macs or 1.0) * whole[1]
        assert all(s <= limit + 1e-6 for s, limit in zip(spent, limits, strict=True))
        assert any(s > 0.97 * limit for s, limit in zip(spent, limits, strict=True)), (spent, limits)


def test_uniform_is_the_same_for_all() -> None:
    gm = _traced("vgg")
    found = sparsities_under(gm, prunable_weights(gm), Budget(parameters=0.25), "uniform", _score(gm))
    assert np.ptp(list(found.values())) < 0.02


def test_global_keeps_the_best_of_all() -> None:
    gm = _traced("vgg")
    weights = prunable_weights(gm)
    found = sparsities_under(gm, weights, Budget(parameters=0.25), "global", _score(gm))
    score = _score(gm)
    kept, gone = [], []
    for name in weights:
        values = score(name).flatten().sort().values
        zeros = round(values.numel() * found[name])
        gone.append(values[:zeros])
        kept.append(values[zeros:])
    assert torch.cat(gone).max() <= torch.cat(kept).min()


def test_the_knapsack_over_curves_is_exact() -> None:
    gm = _traced("residual")
    weights = prunable_weights(gm)[:4]
    curves = _curves(weights)
    sizes = {w: gm.get_parameter(w).numel() for w in weights}
    total = sum(p.numel() for p in gm.parameters())
    budget = Budget(parameters=(total - 0.5 * sum(sizes.values())) / total)
    found = sparsities_under(gm, weights, budget, curves, _score(gm))
    measured = {w: Curve.of(POINTS, a, 0.9) for w, a in curves}
    best = np.inf
    for points in itertools.product((0.0, *POINTS), repeat=len(weights)):
        left = total - sum(round(sizes[w] * p) for w, p in zip(weights, points, strict=True))
        if left <= budget.most("parameters", total):
            best = min(best, sum(measured[w].at(p) for w, p in zip(weights, points, strict=True)))
    assert sum(measured[w].at(s) for w, s in found.items()) <= best + 1e-9


@pytest.mark.parametrize(
    ("budget", "allocation", "text"),
    [
        (Budget(latency_ms=1.0), "uniform", "latency"),
        (Budget(parameters=3), "uniform", "cannot be met"),
    ],
)
def test_what_cannot_be_done(budget: Budget, allocation: Any, text: str) -> None:
    gm = _traced("residual")
    with pytest.raises(fxprune.ArgumentError, match=text):
        sparsities_under(gm, prunable_weights(gm), budget, allocation, _score(gm))


@pytest.mark.parametrize("pattern", ["unstructured", "kernel", fxprune.patterns.Block(4, 2)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_prune_weights_takes_a_budget(pattern: Any, allocation: str) -> None:
    model, inputs = randomize(ZOO["vgg"]()).eval(), example_inputs("vgg")
    whole = fxprune.profile(model, inputs)
    sparse = fxprune.prune_weights(model, inputs, pattern=pattern, budget=Budget(parameters=0.3), allocation=allocation)
    found = fxprune.profile(sparse, inputs)
    assert 0.27 * whole.parameters < found.nonzero_parameters <= 0.3 * whole.parameters


def test_a_budget_follows_a_criterion_within_rows() -> None:
    model, inputs = randomize(ZOO["vgg"]()).eval(), example_inputs("vgg")
    wanda = fxprune.criteria.Wanda([inputs[0]])
    sparse = fxprune.prune_weights(model, inputs, criterion=wanda, budget=Budget(parameters=0.4))
    found = fxprune.profile(sparse, inputs)
    assert 0.36 * found.parameters < found.nonzero_parameters <= 0.4 * found.parameters


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sparsity": 0.5, "budget": Budget(macs=0.5)}, fxprune.ArgumentError, "not both"),
        ({"sparsity": 0.5, "allocation": "uniform"}, fxprune.ArgumentError, "give budget"),
        ({"budget": Budget(macs=0.5), "allocation": "even"}, fxprune.ArgumentError, "must be 'uniform'"),
        ({"budget": Budget(macs=0.5), "pattern": "2:4"}, fxprune.ArgumentError, "cannot follow a budget"),
        ({"budget": 0.5}, fxprune.ArgumentTypeError, "fxprune.Budget"),
        (
            {"budget": Budget(macs=0.5), "allocation": Sensitivity("channels", POINTS, 0.9, {})},
            fxprune.ArgumentError,
            "kind='weights'",
        ),
    ],
)
def test_wrong_requests(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fxprune.prune_weights(ZOO["residual"](), example_inputs("residual"), **arguments)
