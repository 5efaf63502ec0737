"""From what a user asks for to counts: the budget of a plan."""

from __future__ import annotations

__all__ = ["Share", "check_budget", "fewest"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fxprune.allocation.budget import LIMITS, Allocation, Budget, Limit
from fxprune.allocation.knapsack import Curve
from fxprune.allocation.latency import LatencyTable
from fxprune.allocation.requests import check_request
from fxprune.allocation.strategies import allocate
from fxprune.allocation.widths import Meter, Widths
from fxprune.costs import Costs, Terms
from fxprune.errors import NothingToPruneError
from fxprune.ratios import Ratio, whole_number
from fxprune.selection import FloatArray

if TYPE_CHECKING:
    from fxprune.dependency import DependencyGraph
    from fxprune.sensitivity import Sensitivity


def check_budget(
    deps: DependencyGraph,
    ratio: Ratio | None,
    scope: str,
    budget: Budget | None,
    allocation: str | Sensitivity | None,
) -> Share | None:
    """What a budget comes to, or None if there is none.

    Raises:
        FxpruneError: As from :func:`fxprune.allocation.requests.check_request`.
    """
    how = check_request(budget, allocation, scope, ratio, "channels")
    if budget is None or how is None:
        return None
    table = budget.table
    if budget.latency_ms is not None and table is None:
        table = LatencyTable.measure(deps)
    return Share(budget, how, table)


def fewest(deps: DependencyGraph, min_channels: int | Mapping[str, int]) -> Sequence[int]:
    """The fewest units that each group that can be pruned may keep.

    Raises:
        ArgumentError: A number is not a whole number of at least 1.
        UnknownNameError: A layer is unknown.
    """
    groups = deps.structure.groups
    if not isinstance(min_channels, Mapping):
        return [whole_number(min_channels, "min_channels")] * groups
    least = [1] * groups
    number = {group.name: i for i, group in enumerate(deps.prunable)}
    for layer, value in min_channels.items():
        count = whole_number(value, f"min_channels of '{layer}'")
        for group in deps.group_of(layer):
            if group.name in number:
                least[number[group.name]] = max(count, least[number[group.name]])
    return least


@dataclass(frozen=True)
class Share:
    """A budget that is to be shared out.

    Attributes:
        budget: The limits.
        allocation: How.
        table: The measured times, if the latency is limited.
    """

    budget: Budget
    allocation: str | Sensitivity
    table: LatencyTable | None

    def out(
        self,
        deps: DependencyGraph,
        scores: FloatArray,
        relative: FloatArray,
        active: NDArray[np.bool_],
        least: Sequence[int],
        round_to: int,
    ) -> tuple[dict[int, int], Allocation]:
        """Share the budget out.

        Args:
            deps: The dependency graph.
            scores: One for each unit.
            relative: The same, so that units of different groups can be compared.
            active: Whether each group may lose units.
            least: The fewest that it may keep.
            round_to: Counts are multiples of this.

        Returns:
            How many units each group keeps, and what is to be said about it.

        Raises:
            ArgumentError: Even the smallest network passes a limit.
        """
        costs = Costs.of(deps, traffic=self.table is not None)
        meters = [
            Meter(name, terms, self.budget.most(name, float(terms.values(costs.whole).sum())))
            for name, terms in self._terms(costs).items()
        ]
        widths = Widths(deps.structure, scores, costs, least, round_to)
        numbers = np.flatnonzero(active).tolist()
        curves = None if isinstance(self.allocation, str) else _curves(deps, self.allocation)
        if curves is not None:
            curves = {g: curve for g, curve in curves.items() if active[g]}
            numbers = sorted(curves)
            if not numbers:
                raise NothingToPruneError("no group that may be pruned has a curve")
        strategy = self.allocation if isinstance(self.allocation, str) else curves or {}
        counts, bound = allocate(widths, meters, numbers, strategy, relative)
        sizes = widths.dimensions(counts)
        names = [group.name for group in deps.prunable]
        ratios = {names[g]: 1 - count / widths.sizes[g] for g, count in counts.items()}
        damage = None
        if curves is not None:
            damage = sum(curves[g].measured(1 - count / widths.sizes[g]) for g, count in counts.items())
        limits = tuple(Limit(m.name, m.most, m.cost(costs.whole), m.cost(sizes)) for m in meters)
        return counts, Allocation(ratios, limits, damage, bound)

    def _terms(self, costs: Costs) -> dict[str, Terms]:
        found = {
            name: costs.terms[name] for name in LIMITS if getattr(self.budget, name) is not None and name in costs.terms
        }
        if self.table is not None and self.budget.latency_ms is not None:
            found["latency_ms"] = self.table.terms(costs)
        return found


def _curves(deps: DependencyGraph, curves: Sensitivity) -> dict[int, Curve]:
    """The curve of each group that one was measured for; layers of one group have the same."""
    number = {group.name: i for i, group in enumerate(deps.prunable)}
    found: dict[int, Curve] = {}
    for layer, accuracies in curves:
        for group in deps.group_of(layer):
            if group.name in number:
                found.setdefault(number[group.name], Curve.of(curves.sparsities, accuracies, curves.dense))
    return found
