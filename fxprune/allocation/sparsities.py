"""Budgets for masks: how sparse every weight becomes so that what is left costs no more than was asked for."""

from __future__ import annotations

__all__ = ["sparsities_under"]

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, fx

from fxprune.allocation.budget import Budget
from fxprune.allocation.knapsack import Curve
from fxprune.counting import counted_products
from fxprune.errors import ArgumentError
from fxprune.masks import weight_places
from fxprune.selection import FloatArray

if TYPE_CHECKING:
    from fxprune.sensitivity import Sensitivity

_SECONDS = 20.0


def sparsities_under(
    gm: fx.GraphModule,
    weights: Sequence[str],
    budget: Budget,
    allocation: str | Sensitivity,
    score: Callable[[str], Tensor],
) -> dict[str, float]:
    """Find the sparsity of every weight.

    Args:
        gm: A traced network.
        weights: Names of the parameters that may become sparse.
        budget: What the sparse network may cost, multiplications by zero not counted. Parameters are those that are not
            zero.
        allocation: ``"uniform"``, the same sparsity for all; ``"global"``, one ranking of all weights; or the curves of
            :func:`fxprune.sensitivity` for weights.
        score: For ``"global"``, the importance of every element of a weight.

    Returns:
        Sparsities by name. No limit is passed.

    Raises:
        ArgumentError: The limits cannot be met even if all these weights are zero, the latency is limited, which zeros
            do not change.
    """
    if budget.latency_ms is not None:
        raise ArgumentError("zeros among the weights do not change the latency; limit macs= or parameters=")
    sizes, limits = _limits(gm, weights, budget)
    if isinstance(allocation, str):
        kept = _uniform(sizes, limits)
        if allocation == "global":
            kept = _ranked([score(name).detach().double().cpu().numpy().ravel() for name in weights], limits)
    else:
        kept = _by_curves(weights, sizes, limits, allocation)
    return {name: 1 - int(count) / int(size) for name, count, size in zip(weights, kept, sizes, strict=True)}


def _limits(
    gm: fx.GraphModule, weights: Sequence[str], budget: Budget
) -> tuple[FloatArray, list[tuple[FloatArray, float]]]:
    """How many elements each weight has; and for each limit, what an element of each costs, and the room for them."""
    places = weight_places(gm)
    sizes = np.array([places[name].value.numel() for name in weights], dtype=np.float64)
    macs, uses = _macs(gm, weights)
    limits = []
    for name, whole, each in (
        ("parameters", sum(p.numel() for p in gm.parameters()), np.ones(len(weights))),
        ("macs", macs, uses / sizes),
    ):
        if getattr(budget, name) is None:
            continue
        most = budget.most(name, whole)
        room = most - (whole - float(each @ sizes))
        if room < 0:
            raise ArgumentError(
                f"the budget cannot be met: {name} of at most {most:,.6g}, but what no weight can change has "
                f"{whole - float(each @ sizes):,.6g} of {whole:,.6g}"
            )
        limits.append((each, room))
    return sizes, limits


def _macs(gm: fx.GraphModule, weights: Sequence[str]) -> tuple[float, FloatArray]:
    """Multiply-accumulates of the network, and those of the calls that read each weight."""

    def sizes_of(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(sizes)

    places = weight_places(gm)
    products, _ = counted_products(gm, {}, lambda labels: labels.full, lambda name: _shape(gm, name), sizes_of)
    identity = {place.identity: name for name, place in reversed(places.items()) if name in weights}
    number = {name: i for i, name in enumerate(weights)}
    by_node = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            read = [f"{node.target}.weight"]
        else:
            read = [str(argument.target) for argument in node.all_input_nodes if argument.op == "get_attr"]
        found = [identity.get(places[name].identity) for name in read if name in places]
        by_node[node] = next((name for name in found if name is not None), None)
    total, uses = 0.0, np.zeros(len(weights))
    for product in products:
        macs = product.factor * math.prod(product.dims)
        total += macs
        name = by_node[product.node]
        if name is not None:
            uses[number[name]] += macs
    return total, uses


def _shape(gm: fx.GraphModule, name: str) -> tuple[int, ...]:
    owner, _, attribute = name.rpartition(".")
    return tuple(getattr(gm.get_submodule(owner), attribute).shape)


def _uniform(sizes: FloatArray, limits: Sequence[tuple[FloatArray, float]]) -> FloatArray:
    share = min((room / float(each @ sizes) for each, room in limits if float(each @ sizes)), default=1.0)
    kept: FloatArray = np.floor(sizes * min(1.0, share) + 1e-9)
    return kept


def _ranked(scores: Sequence[FloatArray], limits: Sequence[tuple[FloatArray, float]]) -> FloatArray:
    """As many of the best weights of all as the limits allow."""
    owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    order = owner[np.argsort(-np.concatenate(scores), kind="stable")]
    number = len(order)
    for each, room in limits:
        number = min(number, int(np.searchsorted(np.cumsum(each[order]), room * (1 + 1e-12), side="right")))
    return np.bincount(order[:number], minlength=len(scores)).astype(np.float64)


def _by_curves(
    weights: Sequence[str], sizes: FloatArray, limits: Sequence[tuple[FloatArray, float]], curves: Sensitivity
) -> FloatArray:
    """The points of the curves that lose the least together (an exact knapsack), and what is left of the room."""
    by_name = {name: accuracies for layer, accuracies in curves for name in (layer, f"{layer}.weight")}
    found = [
        Curve.of(curves.sparsities, by_name[name], curves.dense) if name in by_name else Curve((0.0,), (0.0,))
        for name in weights
    ]
    ratios = np.concatenate([curve.ratios for curve in found])
    damage = np.concatenate([[curve.at(ratio) for ratio in curve.ratios] for curve in found])
    owner = np.repeat(np.arange(len(found)), [len(curve.ratios) for curve in found])
    kept = np.floor(sizes[owner] * (1 - ratios) + 1e-9)
    constraints = [LinearConstraint((np.arange(len(found))[:, None] == owner).astype(np.float64), 1.0, 1.0)]
    for each, room in limits:
        scale = max(room, 1.0)
        constraints.append(LinearConstraint((each[owner] * kept / scale)[None], ub=room / scale))
    solution = milp(
        damage,
        integrality=np.ones(len(damage)),
        bounds=Bounds(0.0, 1.0),
        constraints=constraints,
        options={"time_limit": _SECONDS},
    )
    if solution.x is None:
        return _uniform(sizes, limits)
    count = np.array([kept[owner == i][np.argmax(solution.x[owner == i])] for i in range(len(found))])
    return _filled(count, sizes, limits, found)


def _filled(
    count: FloatArray, sizes: FloatArray, limits: Sequence[tuple[FloatArray, float]], curves: Sequence[Curve]
) -> FloatArray:
    """Use up what is left of the room, first where the next point of a curve saves the most for what it costs."""
    count = count.copy()

    def gain(i: int) -> float:
        now = 1 - count[i] / sizes[i]
        before = max((ratio for ratio in curves[i].ratios if ratio < now - 1e-9), default=0.0)
        cost = sum(float(each[i]) / max(room, 1.0) for each, room in limits) * sizes[i] * (now - before)
        return (curves[i].at(now) - curves[i].at(before)) / (cost or 1.0)

    for i in sorted(range(len(curves)), key=gain, reverse=True):
        if len(curves[i].ratios) == 1:
            continue
        rooms = [(room - float(each @ count)) / each[i] for each, room in limits if each[i] > 0]
        count[i] = min(sizes[i], count[i] + math.floor(max(0.0, min(rooms, default=0.0)) + 1e-9))
    return count
