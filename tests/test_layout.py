"""The layout by itself: few crossings, straight lines, columns of like height."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fxprune.drawing.layout import Band, arrange
from fxprune.drawing.ordering import crossings, order_rows

Sizes = list[tuple[float, float]]


def _crossings_by_hand(rows: list[list[int]], links: list[tuple[int, int]]) -> int:
    place = {item: (number, row.index(item)) for number, row in enumerate(rows) for item in row}
    total = 0
    for (a, b), (c, d) in itertools.combinations(links, 2):
        if place[a][0] == place[c][0]:
            total += (place[a][1] - place[c][1]) * (place[b][1] - place[d][1]) < 0
    return total


def _random_rows(seed: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    rng = np.random.default_rng(seed)
    rows = [list(range(5 * k, 5 * k + 5)) for k in range(4)]
    links = [(int(a), int(b)) for k in range(3) for a in rows[k] for b in rng.permutation(rows[k + 1])[:2]]
    return rows, links


@pytest.mark.parametrize("seed", range(5))
def test_crossings_are_counted_and_reduced(seed: int) -> None:
    rows, links = _random_rows(seed)
    assert crossings(rows, links) == _crossings_by_hand(rows, links)
    ordered = order_rows(rows, links)
    assert [sorted(row) for row in ordered] == rows
    assert crossings(ordered, links) < crossings(rows, links)


def test_what_need_not_cross_does_not() -> None:
    rows = [[0, 1, 2], [3, 4, 5]]
    links = [(0, 5), (1, 4), (2, 3)]
    assert crossings(order_rows(rows, links), links) == 0


def _chain(count: int) -> tuple[Sizes, list[int], list[tuple[int, int]]]:
    return (
        [(60.0 + 7 * (k % 3), 20.0) for k in range(count)],
        list(range(count)),
        [(k, k + 1) for k in range(count - 1)],
    )


def test_a_chain_is_straight() -> None:
    layout = arrange(*_chain(6), columns=1)
    assert len({round(box.x + box.width / 2, 6) for box in layout.boxes}) == 1
    assert all(start[0] == pytest.approx(end[0]) for start, end in layout.lines)
    tops = [box.y for box in layout.boxes]
    assert tops == sorted(tops)


def test_a_long_edge_goes_round_the_boxes_that_it_passes() -> None:
    sizes, rows, edges = _chain(6)
    layout = arrange(sizes, rows, [*edges, (0, 5)], columns=1)
    box = layout.boxes[2]
    beside = [line for line in layout.lines if line[0][1] <= box.y and line[-1][1] >= box.y + box.height]
    assert [line for line in beside if not box.x < line[0][0] < box.x + box.width]


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
def test_columns_are_as_many_as_asked_for_and_of_like_height(columns: int) -> None:
    layout = arrange(*_chain(12), columns=columns)
    heads = [box for a, box in zip(layout.boxes, layout.boxes[1:], strict=False) if box.y < a.y]
    assert len(heads) == columns - 1
    assert max(np.diff([0, *(layout.boxes.index(box) for box in heads), 12])) == 12 // columns


def test_the_picture_comes_near_the_shape_that_is_wanted() -> None:
    shapes = {aspect: arrange(*_chain(60), aspect=aspect) for aspect in (0.5, 1.0, 2.0)}
    for aspect, layout in shapes.items():
        assert layout.width / layout.height == pytest.approx(aspect, rel=0.35)


def test_columns_are_cut_where_one_line_goes_on() -> None:
    sizes, rows, edges = _chain(12)
    edges += [(0, 6), (7, 11)]  # only between rows 6 and 7 there is no second line
    layout = arrange(sizes, rows, edges, columns=2)
    assert layout.boxes[7].y < layout.boxes[6].y


def test_bands_hold_their_rows_and_no_others() -> None:
    layout = arrange(*_chain(12), bands=[Band(0, 2), Band(3, 7)], columns=2)
    for band, parts in zip([(0, 2), (3, 7)], layout.bands, strict=True):
        for number, box in enumerate(layout.boxes):
            inside = any(
                part.x < box.x
                and part.y < box.y
                and box.x + box.width < part.x + part.width
                and box.y + box.height < part.y + part.height
                for part in parts
            )
            assert inside == (band[0] <= number <= band[1])


def test_a_single_box() -> None:
    layout = arrange([(40.0, 10.0)], [0], [])
    assert (layout.width, layout.height, layout.lines) == (40.0, 10.0, ())
