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

FloatArray = NDArray[np.float64]


def keep_count(size: int, ratio: float, round_to: int = 1) -> int:
    """How many of ``size`` channels stay at a pruning ratio: ``int(round(size * (1 - ratio)))``, at least 1.

    With ``round_to`` above 1 the count is raised to the next multiple, where there are that many.
    """
    count = max(1, round(size * (1 - ratio)))
    if round_to > 1 and ratio > 0:
        count = -(-count // round_to) * round_to
    return min(size, count)


def class_counts(sizes: IntArray, wanted: FloatArray, balance: NDArray[np.float64]) -> IntArray:
    """Whole numbers nearest to ``wanted`` that keep every block equal.

    Args:
        sizes: Units in each class.
        wanted: How many of each should stay.
        balance: One row for each equation over the classes; its product with the counts must be 0.

    Returns:
        Counts between 1 and the sizes, their sum as near to what is wanted as can be; found by rounding, or else by an
        integer program (SciPy's HiGHS).
    """
    n = len(sizes)
    if not len(balance):
        return _apportioned(sizes, wanted)
    counts = np.clip(np.rint(wanted), 1, sizes).astype(np.int64)
    if not (balance @ counts).any():
        off = abs(counts.sum() - wanted.sum())
        if off < 1 or n > _CLASSES or np.linalg.matrix_rank(balance) >= n - 1:
            return counts
    # Variables: counts, then their distances from what is wanted, last the distance of their sum, which counts most.
    eye, one, column = np.eye(n), np.ones((1, n)), np.zeros((n, 1))
    distance = LinearConstraint(
        np.block(
            [
                [eye, -eye, column],
                [-eye, -eye, column],
                [one, 0 * one, -np.ones((1, 1))],
                [-one, 0 * one, -np.ones((1, 1))],
            ]
        ),
        ub=np.concatenate([wanted, -wanted, [wanted.sum()], [-wanted.sum()]]),
    )
    equal = LinearConstraint(np.hstack([balance, np.zeros((len(balance), n + 1))]), lb=0, ub=0)
    solution = milp(
        np.concatenate([np.zeros(n), np.ones(n), [2.0 * n]]),
        integrality=np.concatenate([np.ones(n), np.zeros(n + 1)]),
        bounds=Bounds(np.concatenate([np.ones(n), np.zeros(n + 1)]), np.concatenate([sizes, np.full(n + 1, np.inf)])),
        constraints=[distance, equal],
    )
    if solution.x is None:
        return sizes.astype(np.int64)
    result: IntArray = np.rint(solution.x[:n]).astype(np.int64)
    return result


def _apportioned(sizes: IntArray, wanted: FloatArray) -> IntArray:
    """Whole numbers between 1 and the sizes that add up to the rounded sum of what is wanted (largest remainders)."""
    counts = np.clip(np.floor(wanted), 1, sizes).astype(np.int64)
    off = round(float(wanted.sum())) - int(counts.sum())
    while off:
        step = 1 if off > 0 else -1
        free = np.flatnonzero(counts < sizes if off > 0 else counts > 1)
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
        classes = structure.classes(group)
        sizes = np.array([len(units) for units in classes.units])
        wanted = (sizes * (count / len(members))).astype(np.float64)
        for units, number in zip(classes.units, class_counts(sizes, wanted, classes.balance), strict=True):
            order = units[np.argsort(-scores[units], kind="stable")]
            kept[order[number:]] = False
            inside = structure.pieces.get(int(structure.kind[units[0]]))
            if inside is not None:
                _revive(kept, order, inside, scores)
    return kept


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
