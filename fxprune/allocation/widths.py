"""How many units every group keeps, and what that costs."""

from __future__ import annotations

__all__ = ["Meter", "Widths"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fxprune.costs import Costs, Terms
from fxprune.labels import IntArray
from fxprune.selection import FloatArray, select
from fxprune.structure import Structure


@dataclass(frozen=True)
class Meter:
    """One kind of cost with its limit.

    Attributes:
        name: As in :class:`fxprune.Budget`.
        terms: The cost as a sum of products of dimensions.
        most: The limit.
    """

    name: str
    terms: Terms
    most: float

    def cost(self, sizes: IntArray) -> float:
        """The cost of a network whose dimensions have these sizes."""
        return float(self.terms.values(sizes).sum())


class Widths:
    """Numbers of kept units, and the network that they give, without building it.

    Args:
        structure: Units, classes and groups.
        scores: One for each unit; those of the highest scores stay.
        costs: What the network costs.
        least: The fewest units that each group may keep, shape ``(groups,)``.
        round_to: Counts are multiples of this, or the whole group.
    """

    def __init__(
        self, structure: Structure, scores: FloatArray, costs: Costs, least: Sequence[int], round_to: int
    ) -> None:
        self.structure = structure
        self.scores = scores
        self.costs = costs
        self.sizes = [len(members) for members in structure.members]
        self._least = least
        self._round_to = round_to
        self._masks: dict[tuple[int, int], tuple[NDArray[np.bool_], IntArray]] = {}
        columns = costs.units.tocsc()
        self._columns = [columns[:, members] for members in structure.members]

    def allowed(self, group: int, count: float) -> int:
        """The smallest allowed count that is not below ``count``."""
        step = self._round_to
        least = max(1, self._least[group], int(np.ceil(count)))
        return min(self.sizes[group], -(-least // step) * step)

    def next(self, group: int, count: int) -> int:
        """The allowed count after one, or the same if it is the whole group."""
        return self.allowed(group, count + 1)

    def larger(self, group: int, count: int) -> int:
        """The next allowed count of which more units really stay, as blocks go up by several at once."""
        now, found = self.removed(group, count), self.next(group, count)
        while found < self.sizes[group] and np.array_equal(self.removed(group, found), now):
            found = self.next(group, found)
        return found

    def dimensions(self, counts: Mapping[int, int]) -> IntArray:
        """The sizes of all dimensions."""
        sizes: IntArray = self.costs.whole.copy()
        for group, count in counts.items():
            if count < self.sizes[group]:
                sizes -= self._part(group, count)[1]
        return sizes

    def kept(self, counts: Mapping[int, int]) -> NDArray[np.bool_]:
        """Whether each unit stays."""
        kept = np.ones(self.structure.units, dtype=bool)
        for group, count in counts.items():
            if count < self.sizes[group]:
                kept[self.structure.members[group]] = self._part(group, count)[0]
        return kept

    @cached_property
    def owners(self) -> list[dict[int, int]]:
        """By dimension, the groups that it has channels of, and how many."""
        found: list[dict[int, int]] = [{} for _ in self.costs.whole]
        for group in range(len(self.sizes)):
            share = self.share(group)
            for dim in np.flatnonzero(share).tolist():
                found[dim][group] = int(share[dim])
        return found

    def share(self, group: int) -> IntArray:
        """How many channels of a group every dimension of the original network has."""
        share: IntArray = self._columns[group] @ np.ones(self.sizes[group], dtype=np.int64)
        return share

    def removed(self, group: int, count: int) -> IntArray:
        """How much smaller every dimension is if a group keeps ``count`` units."""
        if count >= self.sizes[group]:
            return np.zeros_like(self.costs.whole)
        return self._part(group, count)[1]

    def _part(self, group: int, count: int) -> tuple[NDArray[np.bool_], IntArray]:
        key = group, count
        if key not in self._masks:
            members = self.structure.members[group]
            kept = select(self.structure, self.scores, {group: count})[members]
            self._masks[key] = kept, self._columns[group] @ (~kept).astype(np.int64)
        return self._masks[key]
