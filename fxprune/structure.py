"""What the constraints come to: units, the classes in which they can stand in for one another, and groups."""

from __future__ import annotations

__all__ = ["Classes", "Refinement", "Structure"]

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import InternalError
from fxprune.labels import IntArray, Reason
from fxprune.recorder import Recorder
from fxprune.records import Freeze, Tie


@dataclass(frozen=True)
class Refinement:
    """What the second reading asked for on top of the first's constraints; it only grows.

    Attributes:
        pieces: Units of one group are peers only if they stand in the same pieces of every split.
        columns: Where blocks are interleaved and then split, every piece takes equally many from each block.
        order: Units whose order matters to an operator have no peers.
        ties: Further ties.
        freezes: Further freezes.
    """

    pieces: bool = False
    columns: bool = False
    order: bool = False
    ties: tuple[Tie, ...] = ()
    freezes: tuple[Freeze, ...] = ()


@dataclass(frozen=True)
class Classes:
    """The classes of one group.

    Attributes:
        index: The class of each of the group's members.
        sizes: How many of them are in each class.
        balance: Equations over the classes, shape ``(equations, classes)``: counts that leave all blocks of every
            constraint equal give 0.
        needs: The classes of which at least one unit must stay, shape ``(tensors, classes)``, 0 or 1.
        counts: What was found to stay of each class, by how many of the group should: an integer program is slow.
    """

    index: IntArray
    sizes: IntArray
    balance: NDArray[np.float64]
    needs: NDArray[np.float64]
    counts: dict[int, IntArray] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Structure:
    """Units, classes and groups.

    Attributes:
        recorder: The first reading.
        refinement: What was added to it.
        unit: The unit of each label; unit 0 is never removed.
        units: How many units there are.
        group: The group of each unit, or -1 for a unit that no ratio applies to.
        groups: How many groups there are, in the order of their first producer.
        kind: The class of each unit: units of one class can stand in for one another.
        rects: Unit by block and position of every rectangular constraint that matters; shape ``(blocks, size)``.
        derived: Ties and freezes that follow from the others and from what must stay rectangular.
    """

    recorder: Recorder
    refinement: Refinement
    unit: IntArray
    units: int
    group: IntArray
    groups: int
    kind: IntArray
    rects: tuple[IntArray, ...]
    derived: tuple[Tie | Freeze, ...]
    members: tuple[IntArray, ...] = field(default=())
    _classes: dict[int, Classes] = field(default_factory=dict, repr=False)

    def alive(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each label is kept, given whether each unit is."""
        return kept[self.unit]

    def kept_in(self, other: Structure, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each unit of this structure stays, given that of a refinement, whose units are unions of these."""
        label = np.zeros(self.units, dtype=np.int64)
        label[self.unit[::-1]] = np.arange(len(self.unit))[::-1]
        return kept[other.unit[label]]

    @cached_property
    def pieces(self) -> dict[int, list[IntArray]]:
        """By class, sets of its units of which one must stay: the channels of tensors that are parts of others."""
        sizes = np.bincount(self.kind)
        known: set[bytes] = set()
        found: dict[int, list[IntArray]] = {}
        for piece in {piece.tobytes(): piece for piece in self.recorder.pieces}.values():
            units = self.unit[piece]
            kind = self.kind[units[0]]
            if self.group[units[0]] < 0 or (self.kind[units] != kind).any():
                continue
            units = np.unique(units)
            if len(units) < sizes[kind] and units.tobytes() not in known:  # of a whole class, one stays anyway
                known.add(units.tobytes())
                found.setdefault(int(kind), []).append(units)
        return found

    @cached_property
    def rects_of(self) -> dict[int, list[IntArray]]:
        """The rectangular constraints that hold any unit of a group, by group."""
        found: dict[int, list[IntArray]] = {}
        for blocks in self.rects:
            owners = self.group[blocks]
            one = (owners == owners[0, 0]).all()  # as almost always
            for group in owners[:1, 0].tolist() if one else np.unique(owners).tolist():
                found.setdefault(group, []).append(blocks)
        return found

    @cached_property
    def _needed(self) -> dict[int, list[IntArray]]:
        """By group, the classes that hold all channels of a tensor, or of a piece of one, if all of them can go."""
        owner = np.full(int(self.kind.max(initial=0)) + 1, -1)
        owner[self.kind] = self.group
        several = np.bincount(owner[owner >= 0], minlength=self.groups) > 1
        if not several.any():
            return {}
        rows: dict[bytes, IntArray] = {}
        axes = {id(labels): labels.numpy() for labels in self.recorder.axes.values()}
        for labels in (*axes.values(), *self.recorder.pieces):
            units = self.unit[labels]
            if several[self.group[units]].any():  # else there would be no choice to restrict
                kinds = _distinct(self.kind[units])
                rows.setdefault(kinds.tobytes(), kinds)
        needed: dict[int, list[IntArray]] = {}
        for kinds in rows.values():
            groups = owner[kinds]
            if (groups >= 0).all():
                for group in np.unique(groups[several[groups]]):
                    needed.setdefault(int(group), []).append(kinds[groups == group])
        return needed

    def classes(self, group: int) -> Classes:
        """The classes of a group."""
        if group not in self._classes:
            members = self.members[group]
            owned = self.kind[members]
            several = bool((owned != owned[0]).any())
            kinds, index = np.unique(owned, return_inverse=True) if several else (owned[:1], np.zeros_like(owned))
            sizes = np.bincount(index)
            balance = _balance(self, kinds, sizes, group) if several else np.zeros((0, 1))
            needs = np.zeros((len(self._needed.get(group, ())), len(kinds)))
            for row, found in zip(needs, self._needed.get(group, ()), strict=True):
                row[np.searchsorted(kinds, found)] = 1
            self._classes[group] = Classes(index, sizes, balance, needs)
        return self._classes[group]

    def escalate(self, labels: IntArray, node: str, place: str) -> Refinement:
        """Answer a conflict: tell pieces apart, cut columns, then give up choices of single blocks, then freeze.

        After the first two each answer leaves fewer units.

        Raises:
            InternalError: There are none any more.
        """
        refinement = self.refinement
        if not refinement.pieces:
            return replace(refinement, pieces=True)
        if not refinement.columns:
            return replace(refinement, columns=True)
        units = np.unique(self.unit[labels])
        units = units[units > 0]
        touched = [rect for rect in self.rects if np.isin(rect, units).any()]
        ties = tuple(
            Tie(self._label_of(np.broadcast_to(rect[:1], rect.shape)), self._label_of(rect), node) for rect in touched
        )
        if ties:
            return replace(refinement, ties=(*refinement.ties, *ties))
        reason = Reason(f"what would be left of its channels does not fit: {place}", node)
        if not units.size:  # all of them stay already: what they stand for must, too, or something that is farther away
            behind = [
                cover.child.reshape(-1)
                for cover in self.recorder.covers
                if cover.parent is not None and np.isin(cover.parent, labels).any()
            ]
            labels = np.concatenate(behind) if behind else labels[:0]
            if not self.unit[labels].any():
                labels = np.arange(1, self.recorder.count)
                if not self.unit[labels].any():
                    raise InternalError(f"nothing is to be removed, and still the network does not fit: {place}")
        return replace(refinement, freezes=(*refinement.freezes, Freeze(labels, reason)))

    def _label_of(self, units: IntArray) -> IntArray:
        label = np.zeros(self.units, dtype=np.int64)
        label[self.unit[::-1]] = np.arange(len(self.unit))[::-1]
        return label[units].reshape(-1)


def _distinct(values: IntArray) -> IntArray:
    """What :func:`np.unique` gives; it sorts all, and equal ones mostly follow one another."""
    return np.unique(values[np.flatnonzero(np.diff(values, prepend=~values[:1]))])


def _balance(structure: Structure, kinds: IntArray, sizes: IntArray, group: int) -> NDArray[np.float64]:
    """One row for each block but the first: its share of every class, less that of the first."""
    rows: list[NDArray[np.float64]] = [np.zeros((0, len(kinds)))]
    for blocks in structure.rects_of.get(group, ()):
        inside = structure.group[blocks] == group
        position = np.searchsorted(kinds, structure.kind[blocks]) + len(kinds) * np.arange(len(blocks))[:, None]
        share = np.bincount(position[inside], minlength=len(blocks) * len(kinds)).reshape(len(blocks), -1)
        rows.append((share[1:] - share[:1]) / sizes)
    return np.concatenate(rows)
