"""Ways to share a budget out: the same ratio for all, one ranking of all units, or what sensitivity curves say."""

from __future__ import annotations

__all__ = ["Counts", "allocate"]

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fxprune.allocation.knapsack import Curve, knapsack
from fxprune.allocation.widths import Meter, Widths
from fxprune.errors import ArgumentError
from fxprune.selection import FloatArray

Counts = dict[int, int]
_HALVINGS = 60


def allocate(
    widths: Widths,
    meters: Sequence[Meter],
    active: Sequence[int],
    strategy: str | Mapping[int, Curve],
    relative: FloatArray,
) -> tuple[Counts, float | None]:
    """Find how many units every group keeps so that no limit is passed.

    Args:
        widths: The network's groups.
        meters: The limits.
        active: The groups that may lose units.
        strategy: ``"uniform"``, ``"global"``, or a curve of the damage for each active group.
        relative: For ``"global"``: the score of every unit, comparable between groups.

    Returns:
        Counts for the active groups, so many that one unit more of some group would pass a limit; and with curves the
        least damage that was proven to be necessary, else None.

    Raises:
        ArgumentError: Even the smallest network passes a limit.
    """

    def fits(counts: Counts) -> bool:
        sizes = widths.dimensions(counts)
        return all(meter.cost(sizes) <= meter.most for meter in meters)

    whole = {group: widths.sizes[group] for group in active}
    if fits(whole):
        return whole, None
    smallest = {group: widths.allowed(group, 1) for group in active}
    if not fits(smallest):
        raise ArgumentError(_too_small(widths, meters, smallest))
    if strategy == "uniform":
        return _filled(widths, fits, _walked(widths, fits, *_uniform(widths, fits, active))), None
    if strategy == "global":
        return _filled(widths, fits, _walked(widths, fits, *_ranked(widths, fits, active, relative))), None
    assert not isinstance(strategy, str)
    start, _ = _uniform(widths, fits, active)
    counts, bound = knapsack(widths, meters, start, strategy)
    if not fits(counts):  # what was linearised, or the time was over
        counts = _shrunk(widths, fits, counts)
    return _grown(widths, fits, counts, strategy), bound


def _uniform(widths: Widths, fits: Callable[[Counts], bool], active: Sequence[int]) -> tuple[Counts, Counts]:
    """Counts for the smallest ratio that fits, and for one a little smaller that does not."""

    def at(ratio: float) -> Counts:
        return {g: widths.allowed(g, round(widths.sizes[g] * (1 - ratio))) for g in active}

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if at(low) == at(high):
            break
        if fits(at(middle)):
            high = middle
        else:
            low = middle
    return at(high), at(low)


def _ranked(
    widths: Widths, fits: Callable[[Counts], bool], active: Sequence[int], relative: FloatArray
) -> tuple[Counts, Counts]:
    """Counts for as many of the best units of all as fit, and for one more."""
    members = [widths.structure.members[group] for group in active]
    owner = np.repeat(np.array(active), [len(units) for units in members])
    best = owner[np.argsort(-np.concatenate([relative[units] for units in members]), kind="stable")]

    def at(number: int) -> Counts:
        found = np.bincount(best[:number], minlength=len(widths.sizes))
        return {g: widths.allowed(g, int(found[g])) for g in active}

    low, high = 0, len(best)  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(at(middle)):
            low = middle
        else:
            high = middle
    return at(low), at(high)


def _walked(widths: Widths, fits: Callable[[Counts], bool], counts: Counts, beyond: Counts) -> Counts:
    """Go from counts that fit towards such that do not, group by group, as far as it fits."""
    counts = dict(counts)
    for group in counts:
        while counts[group] < beyond[group]:
            more = {**counts, group: widths.next(group, counts[group])}
            if not fits(more):
                break
            counts = more
    return counts


def _filled(widths: Widths, fits: Callable[[Counts], bool], counts: Counts) -> Counts:
    """Use up what is left of the budget, much where blocks are coarse: the group that lost most comes first."""
    counts = dict(counts)
    open_ = {group for group, count in counts.items() if count < widths.sizes[group]}
    while open_:
        group = min(open_, key=lambda g: counts[g] / widths.sizes[g])
        more = {**counts, group: widths.larger(group, counts[group])}
        if not fits(more):
            open_.discard(group)
            continue
        counts = more
        if counts[group] == widths.sizes[group]:
            open_.discard(group)
    return counts


def _grown(widths: Widths, fits: Callable[[Counts], bool], counts: Counts, curves: Mapping[int, Curve]) -> Counts:
    """Use up what is left of the budget, always where a unit more saves the most."""
    counts = dict(counts)
    open_ = {group for group, count in counts.items() if count < widths.sizes[group]}
    while open_:
        group = max(open_, key=lambda g: curves[g].gain(counts[g], widths.larger(g, counts[g]), widths.sizes[g]))
        more = {**counts, group: widths.larger(group, counts[group])}
        if fits(more):
            counts = more
            if counts[group] == widths.sizes[group]:
                open_.discard(group)
        else:
            open_.discard(group)
    return counts


def _shrunk(widths: Widths, fits: Callable[[Counts], bool], counts: Counts) -> Counts:
    """Take the same share from every group until it fits."""

    def at(share: float) -> Counts:
        return {g: min(count, widths.allowed(g, round(count * share))) for g, count in counts.items()}

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if fits(at(middle)):
            low = middle
        else:
            high = middle
    return at(low)


def _too_small(widths: Widths, meters: Sequence[Meter], smallest: Counts) -> str:
    whole, least = widths.costs.whole, widths.dimensions(smallest)
    lines = [
        f"{meter.name} of at most {meter.most:,.6g}: the smallest network that the groups allow has "
        f"{meter.cost(least):,.6g}, the original {meter.cost(whole):,.6g}"
        for meter in meters
        if meter.cost(least) > meter.most
    ]
    return (
        f"the budget cannot be met: {'; '.join(lines)}. Ask for less, or allow more: fewer names in exclude, a smaller "
        "min_channels or round_to"
    )
