"""Budgets: what a pruned network may cost."""

from __future__ import annotations

__all__ = ["Allocation", "Budget", "Limit"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from fxprune.allocation.latency import LatencyTable
from fxprune.errors import ArgumentError, ArgumentTypeError

LIMITS = ("macs", "parameters", "latency_ms")


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost at most; several limits hold together.

    Attributes:
        macs: Multiply-accumulates of a forward pass of the example inputs, as :func:`fxprune.profile` counts them:
            a fraction of the original's in (0, 1], or a number above 1.
        parameters: Elements of all parameters: a fraction or a number, likewise.
        latency_ms: Milliseconds of a forward pass of the example inputs on the model's own device, estimated from a
            measured table of its layers.
        table: That table, where it is at hand; else it is measured, on the device that the weights are on.

    Raises:
        ArgumentError: A limit is out of range or NaN, or there is none.
        ArgumentTypeError: A limit is no number.
    """

    macs: float | None = None
    parameters: float | None = None
    latency_ms: float | None = None
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LIMITS}
        if all(value is None for value in given.values()):
            raise ArgumentError("a budget needs a limit: macs=, parameters= or latency_ms=, as in Budget(macs=0.5)")
        for name, value in given.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ArgumentTypeError(f"{name} of a budget must be a number, not {type(value).__name__}")
            if not (math.isfinite(value) and float(value) > 0):
                raise ArgumentError(f"{name} of a budget is {value}; it must be above 0")

    def most(self, name: str, whole: float) -> float:
        """The limit of that name as a number; ``whole`` is what the original costs."""
        value = float(getattr(self, name))
        return value * whole if value <= 1 and name != "latency_ms" else value


@dataclass(frozen=True)
class Limit:
    """One limit of a budget, and what became of it.

    Attributes:
        name: ``"macs"``, ``"parameters"`` or ``"latency_ms"``.
        most: What was allowed.
        before: What the original costs.
        after: What the plan costs.
    """

    name: str
    most: float
    before: float
    after: float

    def __str__(self) -> str:
        """A line for a report."""
        title = {"macs": "MACs", "parameters": "parameters", "latency_ms": "latency (estimated, ms)"}[self.name]
        digits = 3 if self.name == "latency_ms" else 0
        before, after, most = (f"{value:,.{digits}f}" for value in (self.before, self.after, self.most))
        return f"{title}: {before} -> {after} of {most} allowed ({100 * self.after / self.before:.1f} %)"


@dataclass(frozen=True)
class Allocation:
    """How a budget was shared out.

    Attributes:
        ratios: The fraction that is removed from each group, by its name.
        limits: What was allowed, and what the plan costs.
        damage: Where sensitivity curves decided: the accuracy that they say is lost, summed over the groups.
        bound: The least that any choice among the points of the curves could lose under the same limits, as far as
            that was proven.
    """

    ratios: Mapping[str, float]
    limits: tuple[Limit, ...]
    damage: float | None = None
    bound: float | None = None
