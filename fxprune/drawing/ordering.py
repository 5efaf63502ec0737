"""The order of what stands in a row: few crossings, by the medians of what it is linked with above and below."""

from __future__ import annotations

__all__ = ["crossings", "order_rows"]

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_SWEEPS = 12


def order_rows(rows: Sequence[Sequence[int]], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The rows in an order of few crossings.

    Args:
        rows: The items of each row, in the order to begin with.
        links: Pairs of items, each from one row to the next.

    Returns:
        The best of the orders that sweeps up and down gave.
    """
    above: dict[int, list[int]] = {item: [] for row in rows for item in row}
    below: dict[int, list[int]] = {item: [] for row in rows for item in row}
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    current = [list(row) for row in rows]
    best, fewest = [list(row) for row in rows], crossings(rows, links)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        known = current if down else current[::-1]
        for fixed, row in pairwise(known):
            place = {item: position for position, item in enumerate(fixed)}
            _sort(row, above if down else below, place)
        found = crossings(current, links)
        if found < fewest:
            best, fewest = [list(row) for row in current], found
    return best


def _sort(row: list[int], linked: dict[int, list[int]], place: dict[int, int]) -> None:
    """Sort a row in place by where its items' neighbours stand; what has none stays where it is."""
    keys = {item: sum(place[n] for n in linked[item]) / len(linked[item]) for item in row if linked[item]}
    ordered = iter(sorted((item for item in row if item in keys), key=keys.__getitem__))
    row[:] = [next(ordered) if item in keys else item for item in row]


def crossings(rows: Sequence[Sequence[int]], links: Sequence[tuple[int, int]]) -> int:
    """How many pairs of links cross."""
    place = {item: (number, position) for number, row in enumerate(rows) for position, item in enumerate(row)}
    by_row: dict[int, list[tuple[int, int]]] = {}
    for a, b in links:
        by_row.setdefault(place[a][0], []).append((place[a][1], place[b][1]))
    total = 0
    for found in by_row.values():
        if len(found) > 1:
            pairs = np.array(found)
            total += int(
                (np.subtract.outer(pairs[:, 0], pairs[:, 0]) * np.subtract.outer(pairs[:, 1], pairs[:, 1]) < 0).sum()
            )
    return total // 2
