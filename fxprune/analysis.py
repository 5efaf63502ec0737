"""From the constraints of the first reading to units, classes and groups."""

from __future__ import annotations

__all__ = ["Refinement", "Structure", "read", "resolve"]

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx

from fxprune.labels import IntArray, Reason
from fxprune.recorder import Cover, Freeze, Recorder, Rect, Tie, numbers
from fxprune.rules import attention, elementwise, indexing, layers, movement, normalisation, pieces, spatial

RULE_MODULES = (attention, elementwise, indexing, layers, movement, normalisation, pieces, spatial)
"""The modules whose import fills the table of rules."""

_HASHES = 0x5EED
_REMOVABLE = "producer"


@dataclass(frozen=True)
class Refinement:
    """What the second reading asked for on top of the first's constraints; it only grows.

    Attributes:
        pieces: Units of one group are peers only if they stand in the same pieces of every split.
        order: Units whose order matters to an operator have no peers.
        ties: Further ties.
        freezes: Further freezes.
    """

    pieces: bool = False
    order: bool = False
    ties: tuple[Tie, ...] = ()
    freezes: tuple[Freeze, ...] = ()


@dataclass(frozen=True)
class Classes:
    """The classes of one group.

    Attributes:
        units: The units of each class.
        balance: Equations over the classes, shape ``(equations, classes)``: counts that leave all blocks of every
            constraint equal give 0.
    """

    units: tuple[IntArray, ...]
    balance: NDArray[np.float64]


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

    @cached_property
    def pieces(self) -> dict[int, list[IntArray]]:
        """By class, sets of its units of which one must stay: the channels of tensors that are parts of others."""
        sizes = np.bincount(self.kind)
        known: set[bytes] = set()
        found: dict[int, list[IntArray]] = {}
        for piece in self.recorder.pieces:
            units = self.unit[piece]
            kind = self.kind[units[0]]
            if self.group[units[0]] < 0 or (self.kind[units] != kind).any():
                continue
            units = np.unique(units)
            if len(units) < sizes[kind] and units.tobytes() not in known:  # of a whole class, one stays anyway
                known.add(units.tobytes())
                found.setdefault(int(kind), []).append(units)
        return found

    def classes(self, group: int) -> Classes:
        """The classes of a group."""
        if group not in self._classes:
            members = self.members[group]
            kinds, index = np.unique(self.kind[members], return_inverse=True)
            if len(kinds) == 1:
                self._classes[group] = Classes((members,), np.zeros((0, 1)))
            else:
                units = tuple(members[index == number] for number in range(len(kinds)))
                self._classes[group] = Classes(units, _balance(self, kinds, np.bincount(index), group))
        return self._classes[group]

    def escalate(self, labels: IntArray, node: str, place: str) -> Refinement:
        """Answer a conflict: first tell pieces apart, then give up choices of single blocks, then freeze."""
        refinement = self.refinement
        if not refinement.pieces:
            return replace(refinement, pieces=True)
        units = np.unique(self.unit[labels])
        units = units[units > 0]
        touched = [rect for rect in self.rects if np.isin(rect, units).any()]
        ties = tuple(
            Tie(self._label_of(np.broadcast_to(rect[:1], rect.shape)), self._label_of(rect), node) for rect in touched
        )
        if ties:
            return replace(refinement, ties=(*refinement.ties, *ties))
        reason = Reason(f"what would be left of its channels does not fit: {place}", node)
        if not units.size:  # all of them stay already: what they stand for must, too
            behind = [
                cover.child.reshape(-1)
                for cover in self.recorder.covers
                if cover.parent is not None and np.isin(cover.parent, labels).any()
            ]
            labels = np.concatenate(behind) if behind else np.arange(1, self.recorder.count)
        return replace(refinement, freezes=(*refinement.freezes, Freeze(labels, reason)))

    def _label_of(self, units: IntArray) -> IntArray:
        label = np.zeros(self.units, dtype=np.int64)
        label[self.unit[::-1]] = np.arange(len(self.unit))[::-1]
        return label[units].reshape(-1)


def _balance(structure: Structure, kinds: IntArray, sizes: IntArray, group: int) -> NDArray[np.float64]:
    """One row for each block but the first: its share of every class, less that of the first."""
    rows: list[NDArray[np.float64]] = [np.zeros((0, len(kinds)))]
    for blocks in structure.rects:
        inside = structure.group[blocks] == group
        if not inside.any():
            continue
        position = np.searchsorted(kinds, structure.kind[blocks]) + len(kinds) * np.arange(len(blocks))[:, None]
        share = np.bincount(position[inside], minlength=len(blocks) * len(kinds)).reshape(len(blocks), -1)
        rows.append((share[1:] - share[:1]) / sizes)
    return np.concatenate(rows)


def read(gm: fx.GraphModule) -> Recorder:
    """The first reading of a traced graph."""
    recorder = Recorder(gm)
    recorder.run()
    return recorder


def _components(count: int, ties: Sequence[tuple[IntArray, IntArray]]) -> tuple[IntArray, int]:
    """Unit of each label, with the labels tied to 0 in unit 0, numbered by their first label."""
    rows = np.concatenate([a for a, _ in ties]) if ties else np.zeros(0, dtype=np.int64)
    columns = np.concatenate([b for _, b in ties]) if ties else np.zeros(0, dtype=np.int64)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    units, raw = connected_components(graph, directed=False)
    first = np.zeros(units, dtype=np.int64)
    first[raw[::-1]] = np.arange(count - 1, -1, -1)  # of several values for one place the last stays
    rank = np.zeros(units, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(units)
    return rank[raw], int(units)


def resolve(recorder: Recorder, refinement: Refinement) -> Structure:
    """Solve the constraints.

    Args:
        recorder: The first reading.
        refinement: What the second asked for.

    Returns:
        The structure.
    """
    given: list[Tie | Freeze] = [*recorder.ties, *refinement.ties, *recorder.freezes, *refinement.freezes]
    ties = [_pair(constraint) for constraint in given]
    derived: list[Tie | Freeze] = []
    unit, units = _components(recorder.count, ties)
    while True:
        group = _by_producer(recorder, unit, units)
        rects: list[IntArray] = []
        more = [constraint for cover in recorder.covers for constraint in _settle_uniform(cover, unit)]
        if not more:
            rects, more = _settle_rects(recorder.rects, unit, group)
        if not more:
            more = _settle_lines(recorder.covers, unit, rects)
        if not more:  # last, as what stands for a line may only be held when the line is known to stay one
            more = [constraint for cover in recorder.covers for constraint in _hold_parents(cover, unit)]
        if not more:
            break
        derived += more
        ties += [_pair(constraint) for constraint in more]
        unit, units = _components(recorder.count, ties)
    group, kind = _couple(recorder, unit, units, group, rects, refinement)
    count = int(group.max()) + 1 if group.size else 0
    order = np.argsort(group, kind="stable")
    members = tuple(np.split(order, np.searchsorted(group[order], np.arange(count)))[1:]) if count else ()
    return Structure(recorder, refinement, unit, units, group, count, kind, tuple(rects), tuple(derived), members)


def _pair(constraint: Tie | Freeze) -> tuple[IntArray, IntArray]:
    """Labels that are held together; what is frozen goes with label 0."""
    if isinstance(constraint, Tie):
        return constraint.a, constraint.b
    return np.zeros_like(constraint.labels), constraint.labels


def _settle_uniform(cover: Cover, unit: IntArray) -> list[Tie | Freeze]:
    """What stands for a line of one unit goes with it; a position that stays holds it."""
    lines = unit[cover.child]
    owners = np.zeros(len(lines), dtype=np.int64) if cover.parent is None else cover.parent
    differs = (lines == lines[:, :1]).all(axis=1) & (unit[owners] != lines[:, 0])
    if not differs.any():
        return []
    if cover.parent is None:
        return [Freeze(cover.child[differs, 0], Reason(cover.text, cover.node))]
    return [Tie(owners[differs], cover.child[differs, 0], cover.node)]


def _hold_parents(cover: Cover, unit: IntArray) -> list[Tie | Freeze]:
    """What stands for a line of several units stays, as some of them do."""
    if cover.parent is None:
        return []
    lines = unit[cover.child]
    held = cover.parent[(lines != lines[:, :1]).any(axis=1) & (unit[cover.parent] != 0)]
    return [Freeze(held, Reason(cover.text, cover.node))] if held.size else []


def _settle_lines(covers: Sequence[Cover], unit: IntArray, rects: Sequence[IntArray]) -> list[Tie | Freeze]:
    """Lines that something stands for stay lines: either they are blocks of a constraint, or they go as a whole."""
    if not rects:
        return []
    weight = np.random.default_rng(_HASHES).integers(1, 2**63, int(unit.max()) + 1, dtype=np.uint64)
    blocks = {int(number) for rect in rects for number in weight[rect].sum(axis=1)}
    more: list[Tie | Freeze] = []
    for cover in covers:
        lines = unit[cover.child]
        if len(lines) < 2 or (lines == lines[:, :1]).all():
            continue
        if not blocks.issuperset(weight[lines].sum(axis=1).tolist()):
            more.append(Tie(np.repeat(cover.child[:, 0], lines.shape[1]), cover.child.reshape(-1), cover.node))
    return more


def _by_producer(recorder: Recorder, unit: IntArray, units: int) -> IntArray:
    """A number for each unit that is equal for units made by the same layers; -1 where nothing can be chosen."""
    rng = np.random.default_rng(_HASHES)
    signature = np.zeros(units, dtype=np.uint64)
    first = np.full(units, np.iinfo(np.int64).max)
    seen = set()
    for position, use in enumerate(recorder.uses):
        if use.role == _REMOVABLE and use.axis not in seen:
            seen.add(use.axis)
            made = unit[numbers(use.labels)]
            signature[made] += rng.integers(1, 2**63, dtype=np.uint64)  # once each, however often a unit is made
            first[made] = np.minimum(first[made], position)
    signature[0] = 0
    found = np.flatnonzero(signature)
    group = np.full(units, -1, dtype=np.int64)
    _, index = np.unique(signature[found], return_inverse=True)
    group[found] = index
    return _renumber(group, first)


def _renumber(group: IntArray, first: IntArray) -> IntArray:
    """Number groups by the first producer of any of their units."""
    count = int(group.max()) + 1 if group.size else 0
    if count <= 0:
        return group
    start = np.full(count, np.iinfo(np.int64).max)
    inside = group >= 0
    np.minimum.at(start, group[inside], first[inside] * len(group) + np.flatnonzero(inside))
    rank = np.argsort(np.argsort(start))
    result: IntArray = group.copy()
    result[inside] = rank[group[inside]]
    return result


def _settle_rects(rects: Sequence[Rect], unit: IntArray, group: IntArray) -> tuple[list[IntArray], list[Tie | Freeze]]:
    """The constraints left between units, as blocks that keep equally many; and ties where none works."""
    settled: list[IntArray] = []
    known: set[tuple[tuple[int, ...], bytes]] = set()
    signature = np.zeros(len(group), dtype=np.uint64)
    rng = np.random.default_rng(_HASHES)
    more: list[Tie | Freeze] = []
    for rect in rects:
        lines: IntArray = unit[rect.labels]
        free = rect.free
        whole = False
        for dim in reversed(range(lines.ndim)):
            first = lines.take([0], axis=dim)
            if lines.ndim > 1 and (lines == first).all():
                whole |= free == dim
                lines = np.take(lines, 0, axis=dim)
                free = None if free is None or free == dim else free - (free > dim)
        if whole and lines.size > 1:  # a block of one unit could only lose all that it has
            loose = np.unique(rect.labels[unit[rect.labels] > 0])
            text = "its channels lie in blocks of one, and every block must keep equally many"
            more += [Freeze(loose, Reason(text, rect.node))] if loose.size else []
            continue
        if lines.ndim < 2 or (group[lines] < 0).all():
            continue
        candidates = [free] if free is not None else list(reversed(range(lines.ndim)))
        options = [np.moveaxis(lines, d, -1).reshape(-1, lines.shape[d]) for d in candidates]
        # Where nothing else holds these units the fastest-varying dimension is free, else that which splits them least.
        loose_yet = not signature[lines].any()
        blocks = options[0] if loose_yet else min(options, key=lambda b: _refinement_count(b, signature, group))
        key = (blocks.shape, blocks.tobytes())
        if key in known:
            continue
        known.add(key)
        fixed = (group[blocks] < 0).sum(axis=1)
        if (fixed != fixed[0]).any():
            loose = np.unique(rect.labels[group[unit[rect.labels]] >= 0])
            text = "its channels lie in blocks of which some hold more channels that stay than others"
            more.append(Freeze(loose, Reason(text, rect.node)))
            continue
        settled.append(blocks)
        for row in blocks:
            np.add.at(signature, row, rng.integers(1, 2**63, dtype=np.uint64))
    return settled, more


def _refinement_count(blocks: IntArray, signature: NDArray[np.uint64], group: IntArray) -> int:
    """Into how many classes the units of these blocks would fall."""
    number = np.broadcast_to(np.arange(1, len(blocks) + 1, dtype=np.uint64)[:, None], blocks.shape)
    trial = signature + group.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    np.add.at(trial, blocks, number * np.uint64(0x9E3779B97F4A7C15))
    return len(np.unique(trial[blocks]))


def _couple(
    recorder: Recorder,
    unit: IntArray,
    units: int,
    group: IntArray,
    rects: Sequence[IntArray],
    refinement: Refinement,
) -> tuple[IntArray, IntArray]:
    """Join groups that only together keep blocks equal, and find the classes within groups."""
    rng = np.random.default_rng(_HASHES)
    signature = np.zeros(units, dtype=np.uint64)
    joins: list[tuple[IntArray, IntArray]] = []
    for blocks in rects:
        for row in blocks:
            np.add.at(signature, row, rng.integers(1, 2**63, dtype=np.uint64))
        found = np.unique(group[blocks])
        uneven = []
        for number in found[found >= 0]:
            share = (group[blocks] == number).sum(axis=1)
            if (share != share[0]).any():
                uneven.append(int(number))
        if len(uneven) > 1:
            joins.append((np.full(len(uneven), uneven[0]), np.array(uneven)))
    if refinement.order:
        for labels in recorder.in_order:
            loose = np.unique(unit[labels])
            signature[loose] += rng.integers(1, 2**63, loose.size, dtype=np.uint64)
        # Only units that stand equally often along an axis can change places.
        for axis in (*recorder.axes.values(), *recorder.fillers):
            np.add.at(signature, unit[numbers(axis)], rng.integers(1, 2**63, dtype=np.uint64))
    if refinement.pieces:
        for piece in recorder.pieces:
            signature[np.unique(unit[piece])] += rng.integers(1, 2**63, dtype=np.uint64)
    count = int(group.max()) + 1 if group.size else 0
    if joins:
        joined, _ = _components(count, joins)
        group = np.where(group >= 0, joined[group], -1)
        group = _renumber(group, np.arange(units))
    signature += rng.integers(1, 2**63, count + 1, dtype=np.uint64)[group]
    _, kind = np.unique(signature, return_inverse=True)
    return group, kind.astype(np.int64)
