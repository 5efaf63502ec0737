"""Sensitivity curves under a budget: a multiple-choice knapsack whose costs are products of the choices.

Every group takes one point of its curve. A layer's cost depends on the points of two groups, those that it reads and
those that it makes, so the choice of a pair gets variables of its own, which the marginals tie to the single choices
(the reformulation-linearisation of Sherali and Adams, 1986). SciPy's HiGHS solves it, and says how near it came.
"""

from __future__ import annotations

__all__ = ["Curve", "knapsack"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from fxprune.allocation.widths import Meter, Widths
from fxprune.labels import IntArray
from fxprune.selection import FloatArray

_PAIRS = 40_000
"""Up to how many variables there may be for pairs of points; curves are thinned out beyond."""

_SECONDS = 20.0
_EVEN = 1e-3
"""What the square of a removed share counts as, in accuracy: where curves are flat, all groups give a little."""


@dataclass(frozen=True)
class Curve:
    """What removing a part of a group costs.

    Attributes:
        ratios: Fractions removed, ascending from 0.
        damage: The accuracy that is lost at each, in [0, 1]; never falling.
    """

    ratios: tuple[float, ...]
    damage: tuple[float, ...]

    @classmethod
    def of(cls, sparsities: Sequence[float], accuracies: Sequence[float], dense: float) -> Curve:
        """A measured curve, cleared of noise: removing more never helps."""
        order = np.argsort(sparsities, kind="stable")
        lost = np.maximum(0.0, dense - np.asarray(accuracies, dtype=np.float64)[order])
        ratios = np.asarray(sparsities, dtype=np.float64)[order]
        inside = (ratios > 0) & (ratios < 1)
        damage = np.maximum.accumulate(lost[inside])
        return cls((0.0, *ratios[inside].tolist()), (0.0, *damage.tolist()))

    def measured(self, ratio: float) -> float:
        """The damage at a ratio, between the points by a straight line."""
        return float(np.interp(ratio, self.ratios, self.damage))

    def at(self, ratio: float) -> float:
        """What is made small: the damage, and a little for what is removed."""
        return self.measured(ratio) + _EVEN * ratio**2

    def gain(self, fewer: int, more: int, size: int) -> float:
        """What keeping ``more`` units of ``size`` saves against ``fewer``, per unit."""
        return (self.at(1 - fewer / size) - self.at(1 - more / size)) / (more - fewer)


def knapsack(
    widths: Widths, meters: Sequence[Meter], start: Mapping[int, int], curves: Mapping[int, Curve]
) -> tuple[dict[int, int], float]:
    """Choose a point of every curve so that the sum of the damages is least.

    Args:
        widths: The groups.
        meters: The limits.
        start: Counts that keep the limits; products of more than two dimensions that can change take the others from
            here.
        curves: The curve of each group that may lose units.

    Returns:
        Counts, and the least damage that any choice of points must have, as far as it was proven. The counts are those
        of ``start`` where none were found in time.
    """
    groups = sorted(curves)
    costs = [_Quadratic(widths, meter, start) for meter in meters]
    pairs = sorted({pair for cost in costs for pair in cost.pairs})
    levels = _levels(widths, curves, groups, len(pairs))
    first = np.cumsum([0, *(len(levels[g]) for g in groups)])
    offset = {g: int(first[i]) for i, g in enumerate(groups)}
    number = int(first[-1])
    damage = np.array(
        [curves[g].at(1 - count / widths.sizes[g]) for g in groups for count in levels[g]], dtype=np.float64
    )
    rows = _Rows()
    for g in groups:
        rows.add(range(offset[g], offset[g] + len(levels[g])), 1.0, 1.0, 1.0)
    places: dict[tuple[int, int], int] = {}
    for g, h in pairs:
        if g == h:
            continue
        places[g, h] = number
        shape = len(levels[g]), len(levels[h])
        numbers = number + np.arange(shape[0] * shape[1]).reshape(shape)
        for line, own in ((numbers, offset[g]), (numbers.T, offset[h])):
            for i, members in enumerate(line):
                rows.add([*members.tolist(), own + i], [*[1.0] * len(members), -1.0], 0.0, 0.0)
        number += shape[0] * shape[1]
    for cost in costs:
        rows.add(*cost.row(levels, offset, places))
    objective = np.concatenate([damage, np.zeros(number - len(damage))])
    solution = milp(
        objective,
        integrality=np.concatenate([np.ones(len(damage)), np.zeros(number - len(damage))]),
        bounds=Bounds(0.0, 1.0),
        constraints=[rows.constraint(number)],
        options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
    )
    bound = float(solution.mip_dual_bound) if solution.mip_dual_bound is not None else 0.0
    if solution.x is None:
        return dict(start), max(0.0, bound)
    chosen = {g: levels[g][int(np.argmax(solution.x[offset[g] : offset[g] + len(levels[g])]))] for g in groups}
    return chosen, max(0.0, bound)


def _levels(widths: Widths, curves: Mapping[int, Curve], groups: Sequence[int], pairs: int) -> dict[int, list[int]]:
    """The counts to choose from: those of the curve's points, fewer of them where there are many pairs."""
    most = max(3, int(np.sqrt(_PAIRS / max(1, pairs))))
    found = {}
    for g in groups:
        ratios = curves[g].ratios
        if len(ratios) > most:
            ratios = tuple(ratios[i] for i in np.unique(np.rint(np.linspace(0, len(ratios) - 1, most)).astype(int)))
        size = widths.sizes[g]
        found[g] = sorted({widths.allowed(g, round(size * (1 - ratio))) for ratio in ratios}, reverse=True)
    return found


class _Rows:
    """Constraints, one row at a time."""

    def __init__(self) -> None:
        self._columns: list[FloatArray] = []
        self._values: list[FloatArray] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def add(self, columns: Sequence[int] | range, values: float | Sequence[float], low: float, high: float) -> None:
        found = np.asarray(columns)
        self._columns.append(found)
        self._values.append(np.broadcast_to(np.asarray(values, dtype=np.float64), found.shape))
        self._low.append(low)
        self._high.append(high)

    def constraint(self, variables: int) -> LinearConstraint:
        lengths = [len(columns) for columns in self._columns]
        index = np.repeat(np.arange(len(lengths)), lengths)
        matrix = coo_array(
            (np.concatenate(self._values), (index, np.concatenate(self._columns))), shape=(len(lengths), variables)
        )
        return LinearConstraint(matrix.tocsr(), np.array(self._low), np.array(self._high))


class _Quadratic:
    """A cost as a sum over pairs of groups of a product of their parts of two dimensions."""

    def __init__(self, widths: Widths, meter: Meter, start: Mapping[int, int]) -> None:
        self._widths = widths
        self._most = meter.most
        sizes = widths.dimensions(start)
        owners = widths.owners
        free = {g for g in start if widths.sizes[g] > widths.allowed(g, 1)}
        self._fixed = 0.0
        self._single: dict[int, FloatArray] = {}
        self._double: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
        for factor, dims in zip(meter.terms.factor.tolist(), meter.terms.dims.tolist(), strict=True):
            variable = sorted((d for d in dims if free & owners[d].keys()), key=lambda d: -len(owners[d]))
            for d in [d for d in dims if d not in variable] + variable[2:]:
                factor *= int(sizes[d])
            self._expand(float(factor), variable[:2], owners, free)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The groups that meet in some product."""
        return list(self._double)

    def _expand(self, factor: float, dims: Sequence[int], owners: Sequence[Mapping[int, int]], free: set[int]) -> None:
        if not dims:
            self._fixed += factor
            return
        parts = [[g for g in owners[d] if g in free] for d in dims]
        rest = [
            int(self._widths.costs.whole[d]) - sum(owners[d][g] for g in p) for d, p in zip(dims, parts, strict=True)
        ]
        if len(dims) == 1:
            self._fixed += factor * rest[0]
            for g in parts[0]:
                self._add(g, factor, dims[0])
            return
        self._fixed += factor * rest[0] * rest[1]
        for g in parts[0]:
            if rest[1]:
                self._add(g, factor * rest[1], dims[0])
            for h in parts[1]:
                a, b = (dims[0], dims[1]) if g <= h else (dims[1], dims[0])
                self._double.setdefault((min(g, h), max(g, h)), []).append((factor, a, b))
        for h in parts[1]:
            if rest[0]:
                self._add(h, factor * rest[0], dims[1])

    def _add(self, group: int, factor: float, dim: int) -> None:
        line = self._single.setdefault(group, np.zeros(len(self._widths.costs.whole)))
        line[dim] += factor

    def row(
        self, levels: Mapping[int, Sequence[int]], offset: Mapping[int, int], places: Mapping[tuple[int, int], int]
    ) -> tuple[list[int], list[float], float, float]:
        """The limit as a row over the variables, scaled to 1."""
        columns: list[int] = []
        values: list[float] = []
        size = {g: [self._part(g, count) for count in counts] for g, counts in levels.items()}
        for g, line in self._single.items():
            columns += range(offset[g], offset[g] + len(levels[g]))
            values += [float(line @ part) for part in size[g]]
        for (g, h), products in self._double.items():
            factor, a, b = (np.array(column) for column in zip(*products, strict=True))
            left = np.stack([part[a] for part in size[g]]) * factor
            right = np.stack([part[b] for part in size[h]])
            if g == h:
                columns += range(offset[g], offset[g] + len(levels[g]))
                values += (left * right).sum(axis=1).tolist()
            else:
                columns += range(places[g, h], places[g, h] + len(left) * len(right))
                values += (left @ right.T).reshape(-1).tolist()
        scale = self._most or 1.0
        return columns, (np.array(values) / scale).tolist(), -np.inf, (self._most - self._fixed) / scale

    def _part(self, group: int, count: int) -> IntArray:
        """What a group adds to every dimension if it keeps ``count`` units."""
        return self._widths.share(group) - self._widths.removed(group, count)
