"""From the constraints of the first reading to units, classes and groups."""

from __future__ import annotations

__all__ = ["read", "resolve"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx

from fxprune.labels import IntArray, Reason
from fxprune.recorder import Recorder
from fxprune.records import Cover, Freeze, Rect, Tie, numbers
from fxprune.rules import (
    attention,
    constants,
    elementwise,
    indexing,
    layers,
    movement,
    normalisation,
    pieces,
    recurrent,
    regions,
    spatial,
)
from fxprune.structure import Refinement, Structure
from fxprune.vocabulary import Axis

RULE_MODULES = (
    *(attention, constants, elementwise, indexing, layers, movement, normalisation, pieces, recurrent, regions),
    spatial,
)
"""The modules whose import fills the table of rules."""

_HASHES = 0x5EED
_REMOVABLE = "producer"


def read(gm: fx.GraphModule) -> Recorder:
    """The first reading of a traced graph."""
    recorder = Recorder(gm)
    recorder.run()
    return recorder


def _components(count: int, ties: Sequence[tuple[IntArray, IntArray]]) -> tuple[IntArray, int]:
    """Unit of each label, with the labels tied to 0 in unit 0, numbered by their first label."""
    rows = np.concatenate([a for a, _ in ties]) if ties else np.zeros(0, dtype=np.int64)
    columns = np.concatenate([b for _, b in ties]) if ties else np.zeros(0, dtype=np.int64)
    edges = rows.astype(np.int32), columns.astype(np.int32)  # as SciPy stores them, and would look for itself
    graph = coo_array((np.ones(len(rows)), edges), shape=(count, count)).tocsr()
    units, raw = connected_components(graph, directed=False)
    first = np.zeros(units, dtype=np.int64)
    first[raw[::-1]] = np.arange(count - 1, -1, -1)  # of several values for one place the last stays
    leads = np.zeros(count, dtype=np.int64)
    leads[first] = 1
    rank = np.cumsum(leads)[first] - 1
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
        blocks: list[IntArray] = []
        more = [constraint for cover in recorder.covers for constraint in _settle_uniform(cover, unit)]
        if not more:
            blocks, more = _settle_rects(recorder.rects, unit, group)
        if not more and refinement.columns:
            more = _settle_columns(recorder, blocks, unit, group)
        rects = tuple(unit[labels] for labels in blocks)
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
    return Structure(recorder, refinement, unit, units, group, count, kind, rects, tuple(derived), members)


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
    signature = np.zeros(units, dtype=np.uint64)
    first = np.full(units, np.iinfo(np.int64).max)
    makers: dict[Axis, Tensor] = {}
    for use in recorder.uses:
        if use.role == _REMOVABLE:
            makers.setdefault(use.axis, use.labels)
    number = np.random.default_rng(_HASHES).integers(1, 2**63, len(makers), dtype=np.uint64)
    for position, labels in reversed(list(enumerate(makers.values()))):  # of several, the first is set last
        made = unit[numbers(labels)]
        signature[made] += number[position]  # once each, however often a unit is made
        first[made] = position
    signature[0] = 0
    found = np.flatnonzero(signature)
    group = np.full(units, -1, dtype=np.int64)
    group[found] = _ranks(signature[found])
    return _renumber(group, first)


def _ranks(values: NDArray[np.uint64]) -> IntArray:
    """The rank of each value among those that there are; equal ones mostly follow one another, and are sorted once."""
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    _, rank = np.unique(values[starts], return_inverse=True)
    result: IntArray = np.repeat(rank, np.diff(starts, append=len(values)))
    return result


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
    """The constraints left between units, as labels in blocks that keep equally many; and ties where none works."""
    settled: list[IntArray] = []
    seen: set[tuple[int | None, tuple[int, ...], bytes]] = set()
    known: set[tuple[tuple[int, ...], bytes]] = set()
    loose_yet = np.ones(len(group), dtype=bool)
    # A number for each unit, equal for those of one group that stand in the same blocks.
    signature = group.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    scratch = np.zeros(len(group), dtype=np.uint64)
    rng = np.random.default_rng(_HASHES)
    more: list[Tie | Freeze] = []
    for rect in rects:
        labels, lines = rect.labels, unit[rect.labels]
        free = rect.free
        whole = False
        for dim in reversed(range(lines.ndim)):
            first = lines.take([0], axis=dim)
            if lines.ndim > 1 and (lines == first).all():
                whole |= free == dim
                lines, labels = np.take(lines, 0, axis=dim), np.take(labels, 0, axis=dim)
                free = None if free is None or free == dim else free - (free > dim)
        if whole and lines.size > 1:  # a block of one unit could only lose all that it has
            loose = np.unique(rect.labels[unit[rect.labels] > 0])
            text = "its channels lie in blocks of one, and every block must keep equally many"
            more += [Freeze(loose, Reason(text, rect.node))] if loose.size else []
            continue
        layout = (free, lines.shape, lines.tobytes())
        if lines.ndim < 2 or layout in seen or (group[lines] < 0).all():
            continue
        seen.add(layout)
        candidates = [free] if free is not None else list(reversed(range(lines.ndim)))
        options = [np.moveaxis(labels, d, -1).reshape(-1, lines.shape[d]) for d in candidates]
        # Where nothing else holds these units the fastest-varying dimension is free, else that which splits them least.
        if loose_yet[lines].all() or len(options) == 1:
            chosen = options[0]
        else:
            chosen = min(options, key=lambda b: _refinement_count(unit[b], signature, scratch))
        blocks: IntArray = unit[chosen]
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
        settled.append(chosen)
        loose_yet[blocks] = False
        _count_in(signature, blocks, rng)
    return settled, more


def _settle_columns(recorder: Recorder, rects: list[IntArray], unit: IntArray, group: IntArray) -> list[Tie | Freeze]:
    """Parts of blocks that keep equally many by themselves, added to ``rects``; ties of columns that a piece cuts.

    Blocks that are interleaved stand column by column, and what a block keeps moves up: only if every block keeps as
    many in front of a cut as the others does the cut fall between the same channels as it did.
    """
    more: list[Tie | Freeze] = []
    # What was tied since then may stand on both sides of a cut.
    given: list[Tie | Freeze] = [*recorder.ties, *recorder.freezes]
    own, count = _components(recorder.count, [_pair(constraint) for constraint in given])
    among = np.zeros(count, dtype=bool)
    lines = (*recorder.pieces, *(row for labels in rects for row in labels))  # what blocks hold is cut out as well
    cuts = {units.tobytes(): units for units in (np.unique(own[line]) for line in lines)}
    known = {(labels.shape, unit[labels].tobytes()) for labels in rects}
    for labels in list(rects):
        for units in cuts.values():
            among[units] = True
            inside = among[own[labels]]
            among[units] = False
            whole = inside.all(axis=0)
            split = inside.any(axis=0) & ~whole
            if split.sum() > 1:  # not a cut of what is interleaved
                continue
            for column in labels[:, split].T:
                if (unit[column] != unit[column[0]]).any():
                    more.append(Tie(np.repeat(column[:1], len(column)), column, ""))
            part = labels[:, whole]
            key = (part.shape, unit[part].tobytes())
            fixed = (group[unit[part]] < 0).sum(axis=1)
            if part.size and key not in known and (fixed == fixed[0]).all():
                known.add(key)
                rects.append(part)
    return more


def _count_in(signature: NDArray[np.uint64], blocks: IntArray, rng: np.random.Generator) -> None:
    """Add a number of each block to those of its units, as often as they stand in it."""
    number = rng.integers(1, 2**63, (len(blocks), 1), dtype=np.uint64)
    np.add.at(signature, blocks, number)


def _refinement_count(blocks: IntArray, signature: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> int:
    """Into how many classes the units of these blocks would fall; ``scratch`` is 0, and left so."""
    number = np.arange(1, len(blocks) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    np.add.at(scratch, blocks, number[:, None])
    trial = signature[blocks] + scratch[blocks]
    scratch[blocks] = 0
    return len(np.unique(trial))


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
        _count_in(signature, blocks, rng)
        owners = group[blocks]
        if (owners == owners[:, :1]).all() and (owners[:, 0] == owners[0, 0]).all():
            continue  # as most are: of one group
        uneven = []
        for number in np.unique(owners[owners >= 0]):
            share = (owners == number).sum(axis=1)
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
    return group, _ranks(signature)
