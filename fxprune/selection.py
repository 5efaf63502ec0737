"""Which units stay: the best of every class, in numbers that leave every block equal."""

from __future__ import annotations

__all__ = ["class_counts", "keep_count", "select"]

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from fxprune.labels import IntArray
from fxprune.structure import Structure

_CLASSES = 64
"""Up to how many classes of a group the nearest sum is searched for, where rounding alone keeps the blocks equal."""

_SUM = 2.0
"""How much a unit too many or too few in the sum counts against one in a class. With more, coarse blocks that could
only hit the sum by emptying some layers and sparing others would do so."""

_SECONDS = 5.0
"""How long the integer program may look for something better than what it has."""

FloatArray = NDArray[np.float64]


def keep_count(size: int, ratio: float, round_to: int = 1) -> int:
    """How many of ``size`` channels stay at a pruning ratio: ``int(round(size * (1 - ratio)))``, at least 1.

    With ``round_to`` above 1 the count is raised to the next multiple, where there are that many.
    """
    count = max(1, round(size * (1 - ratio)))
    if round_to > 1 and ratio > 0:
        count = -(-count // round_to) * round_to
    return min(size, count)


def class_counts(sizes: IntArray, wanted: FloatArray, balance: FloatArray, needs: FloatArray | None = None) -> IntArray:
    """Whole numbers nearest to ``wanted`` that keep every block equal.

    Args:
        sizes: Units in each class.
        wanted: How many of each should stay.
        balance: One row for each equation over the classes; its product with the counts must be 0.
        needs: One row of 0 and 1 for each set of classes of which one unit must stay; each class by itself if None.

    Returns:
        Counts up to the sizes, near to what is wanted in each class and, counting :data:`_SUM` times as much, in the
        sum; found by rounding, or else by an integer program (SciPy's HiGHS).
    """
    n = len(sizes)
    needs = np.eye(n) if needs is None else needs
    least = np.zeros(n, dtype=np.int64)
    least[needs[needs.sum(axis=1) == 1].any(axis=0)] = 1
    counts = np.clip(np.rint(wanted), least, sizes).astype(np.int64)
    if not len(balance):
        counts = _apportioned(sizes, wanted, least)
        if (needs @ counts > 0).all():
            return counts
    elif not (balance @ counts).any() and (needs @ counts > 0).all():
        off = abs(counts.sum() - wanted.sum())
        if off < 1 or n > _CLASSES or np.linalg.matrix_rank(balance) >= n - 1:
            return counts
    # Variables: counts, by how much each is above and below what is wanted, and their sum above and below.
    eye, none = np.eye(n), np.zeros((len(balance), 2 * n + 2))
    several = needs[needs.sum(axis=1) > 1]
    rows = [
        np.hstack([eye, -eye, eye, np.zeros((n, 2))]),
        np.hstack([np.ones((1, n)), np.zeros((1, 2 * n)), [[-1, 1]]]),
        np.hstack([balance, none]),
        np.hstack([several, np.zeros((len(several), 2 * n + 2))]),
    ]
    equal = np.concatenate([wanted, [wanted.sum()], np.zeros(len(balance))])
    solution = milp(
        np.concatenate([np.zeros(n), np.ones(2 * n), [_SUM, _SUM]]),
        integrality=np.concatenate([np.ones(n), np.zeros(2 * n + 2)]),
        bounds=Bounds(
            np.concatenate([least, np.zeros(2 * n + 2)]), np.concatenate([sizes, np.full(2 * n + 2, np.inf)])
        ),
        constraints=LinearConstraint(
            np.vstack(rows),
            np.concatenate([equal, np.ones(len(several))]),
            np.concatenate([equal, np.full(len(several), np.inf)]),
        ),
        options={"time_limit": _SECONDS},
    )
    if solution.x is None:
        return sizes.astype(np.int64)
    result: IntArray = np.rint(solution.x[:n]).astype(np.int64)
    return result


def _apportioned(sizes: IntArray, wanted: FloatArray, least: IntArray) -> IntArray:
    """Whole numbers up to the sizes that add up to the rounded sum of what is wanted (largest remainders)."""
    counts = np.clip(np.floor(wanted), least, sizes).astype(np.int64)
    off = round(float(wanted.sum())) - int(counts.sum())
    while off:
        step = 1 if off > 0 else -1
        free = np.flatnonzero(counts < sizes if off > 0 else counts > least)
        if not free.size:
            break
        chosen = free[np.argsort(step * (counts - wanted)[free], kind="stable")[: abs(off)]]
        counts[chosen] += step
        off -= step * len(chosen)
    return counts


def select(structure: Structure, scores: FloatArray, keep: Mapping[int, int]) -> NDArray[np.bool_]:
    """Keep the units of highest score.

    Args:
        structure: Units, classes and groups.
        scores: One for each unit; equal scores prefer the unit that comes first.
        keep: How many units of a group stay; groups that are not named stay whole.

    Returns:
        Whether each unit stays.
    """
    kept = np.ones(structure.units, dtype=bool)
    for group, count in keep.items():
        members = structure.members[group]
        if count >= len(members):
            continue
        kinds = structure.kind[members]
        if not structure.pieces and (kinds == kinds[0]).all():  # as in most groups
            kept[members[_worst(scores[members], len(members) - count)]] = False
            continue
        classes = structure.classes(group)
        sizes = classes.sizes
        if count not in classes.counts:
            wanted = (sizes * (count / len(members))).astype(np.float64)
            single = len(sizes) == 1
            found = np.array([count]) if single else class_counts(sizes, wanted, classes.balance, classes.needs)
            classes.counts[count] = found
        counts = classes.counts[count]
        ranked = members[_ranking(scores[members], classes.index)]
        starts = np.cumsum(sizes) - sizes
        kept[ranked[np.arange(len(members)) - np.repeat(starts, sizes) >= np.repeat(counts, sizes)]] = False
        for number in np.flatnonzero(sizes > 1) if structure.pieces else ():
            order = ranked[starts[number] : starts[number] + sizes[number]]
            inside = structure.pieces.get(int(structure.kind[order[0]]))
            if inside is not None:
                _revive(kept, order, inside, scores)
    return kept


def _ranking(scores: FloatArray, index: IntArray) -> IntArray:
    """Positions class by class, in each the best first, of equal ones the first."""
    order = np.argsort(-scores, kind="stable")
    classes = index.astype(np.min_scalar_type(index.max()))  # small numbers are sorted by their digits
    return order[np.argsort(classes[order], kind="stable")]


def _worst(scores: FloatArray, count: int) -> IntArray:
    """Positions of the lowest scores, of equal ones the last; without sorting the others."""
    limit = np.partition(scores, count - 1)[count - 1]
    below, equal = np.flatnonzero(scores < limit), np.flatnonzero(scores == limit)
    return np.concatenate([below, equal[len(equal) + len(below) - count :]])


def _revive(kept: NDArray[np.bool_], order: IntArray, inside: Sequence[IntArray], scores: FloatArray) -> None:
    """Give a piece that would be empty its best unit back, at the cost of the worst that no other piece needs."""
    for piece in inside:
        if kept[piece].any():
            continue
        best = int(piece[np.argmax(scores[piece])])
        kept[best] = True
        for unit in order[::-1]:
            if not kept[unit] or unit == best:
                continue
            kept[unit] = False
            if all(kept[other].any() for other in inside if unit in other):
                break
            kept[unit] = True
