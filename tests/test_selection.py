from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import Net, images, structure
from torch import nn

from fxprune import selection
from fxprune.analysis import resolve
from fxprune.records import numbers
from fxprune.selection import class_counts, keep_count, select
from fxprune.structure import Refinement, Structure

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@quick
@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.integers(1, 17))
def test_how_many_stay(size: int, ratio: float, step: int) -> None:
    count = keep_count(size, ratio)
    assert 1 <= count <= size
    assert count == max(1, int(round(size * (1 - ratio))))  # noqa: RUF046 - the formula as it is published
    rounded = keep_count(size, ratio, step)
    assert rounded == (count if ratio == 0 else min(size, -(-count // step) * step))


@quick
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 7.0]), min_size=2, max_size=40), st.data())
def test_the_best_stay_and_of_equals_the_first(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values) - 1))
    model = nn.Sequential(nn.Conv2d(3, len(values), 1), nn.ReLU(), nn.Conv2d(len(values), 2, 1))
    found = structure(model)
    members = found.members[0]
    scores = np.zeros(found.units)
    scores[members] = values
    kept = select(found, scores, {0: count})[members]
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert sorted(ranked[:count]) == np.flatnonzero(kept).tolist()


def cost(counts: np.ndarray, wanted: list[float]) -> float:
    """How far counts are from what is wanted, each by itself and, counting more, together."""
    return float(np.abs(counts - wanted).sum() + selection._SUM * abs(counts.sum() - sum(wanted)))


def cheapest(sizes: list[int], wanted: list[float], balance: np.ndarray) -> float:
    """The least cost, by trying all."""
    every = map(np.array, product(*(range(1, size + 1) for size in sizes)))
    return min(cost(counts, wanted) for counts in every if not (np.abs(balance @ counts) > 1e-9).any())


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[int], float, np.ndarray]:
    """Classes that fall into two or three blocks of equal size, in one way or in two that cross."""
    if draw(st.booleans()):
        base = draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
        sizes = [base[0], base[1], base[1], base[0]]
        ways = [np.array([[1, 1, 0, 0], [0, 0, 1, 1]]), np.array([[1, 0, 1, 0], [0, 1, 0, 1]])]
    else:
        total = draw(st.integers(1, 5))
        cuts = [
            sorted(draw(st.sets(st.integers(1, total), max_size=1)) | {0, total})
            for _ in range(draw(st.integers(2, 3)))
        ]
        parts = [np.diff(cut).tolist() for cut in cuts]
        sizes = [size for part in parts for size in part]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        ways = [(owner == np.arange(len(parts))[:, None]).astype(int)]
    rows = [way[1:] - way[:1] for way in ways]
    return sizes, draw(st.floats(0.05, 1)), np.concatenate(rows).astype(float)


@quick
@given(blocks())
@example(([2, 2, 2, 2], 0.859375, np.array([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])))
def test_counts_are_the_nearest_that_keep_blocks_equal(case: tuple[list[int], float, np.ndarray]) -> None:
    sizes, share, balance = case
    wanted = [size * share for size in sizes]
    counts = class_counts(np.array(sizes), np.array(wanted), balance)
    assert all(1 <= c <= s for c, s in zip(counts, sizes, strict=True))
    assert not (np.abs(balance @ counts) > 1e-9).any()
    # Rounding alone will do where it comes within one of the sum; otherwise nothing is nearer.
    assert abs(counts.sum() - sum(wanted)) < 1 or cost(counts, wanted) < cheapest(sizes, wanted, balance) + 1e-6


def test_classes_without_blocks_add_up_to_what_is_wanted() -> None:
    counts = class_counts(np.full(8, 3), np.full(8, 1.5), np.zeros((0, 8)))
    assert counts.sum() == 12


def test_where_no_counts_work_everything_stays() -> None:
    assert class_counts(np.array([2, 2]), np.array([1.0, 1.0]), np.array([[1.0, -3.0]])).tolist() == [2, 2]


def grouped(channels: int, *groups: int) -> Structure:
    layers = [nn.Conv2d(3, channels, 1), *(nn.Conv2d(channels, channels, 1, groups=g) for g in groups)]
    return structure(nn.Sequential(*layers, nn.Conv2d(channels, 5, 1)))


@pytest.mark.parametrize("groups", [(2,), (4,), (2, 3), (6, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_every_block_keeps_equally_many(groups: tuple[int, ...], seed: int) -> None:
    found = grouped(12, *groups)
    scores = np.random.default_rng(seed).random(found.units)
    for count in (1, 3, 6, 11):
        kept = select(found, scores, dict.fromkeys(range(found.groups), count))
        for rect in found.rects:
            assert len(set(kept[rect].sum(axis=1).tolist())) == 1


def test_counts_of_classes_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = grouped(12, 4)
    asked: list[float] = []

    def counted(sizes: Any, wanted: Any, *rest: Any) -> Any:
        asked.append(float(wanted.sum()))
        return class_counts(sizes, wanted, *rest)

    monkeypatch.setattr(selection, "class_counts", counted)
    scores = np.random.default_rng(0).random((3, found.units))
    kept = [select(found, row, {0: 6}) for row in (scores[0], scores[1], scores[0])]
    assert len(asked) == 1
    assert (kept[0] == kept[2]).all()
    assert (kept[0] != kept[1]).any()
    select(found, scores[2], {0: 5})
    assert asked == pytest.approx([6, 5])


def test_the_best_of_every_block_stay() -> None:
    found = grouped(12, 4)
    scores = np.random.default_rng(0).random(found.units)
    kept = select(found, scores, {0: 4})
    made = numbers(next(u.labels for u in found.recorder.uses if u.role == "producer" and u.layer == "0"))
    units = found.unit[made].reshape(4, 3)
    for block in units:
        assert kept[block].sum() == 1
        assert kept[block[np.argmax(scores[block])]]


def test_equal_scores_prefer_the_first() -> None:
    found = grouped(8)
    kept = select(found, np.ones(found.units), {0: 3})
    made = found.unit[numbers(next(u.labels for u in found.recorder.uses if u.role == "producer"))]
    assert kept[made].tolist() == [True] * 3 + [False] * 5


def test_groups_that_are_not_named_stay_whole_and_what_is_frozen_stays() -> None:
    found = grouped(8, 2)
    kept = select(found, np.ones(found.units), {1: 4})
    assert kept[found.members[0]].all()
    assert kept[found.members[1]].sum() == 4
    assert kept[0]
    assert select(found, np.ones(found.units), {}).all()
    assert select(found, np.ones(found.units), {0: 8, 1: 99}).all()


PIECES: list[Any] = [
    lambda s, y: torch.cat([s.p(y[:, :1].repeat(1, 2, 1, 1)), s.q(y[:, 1:])], 1),
    lambda s, y: torch.cat([s.p(y[:, :2]), s.q(y[:, 1:])], 1),
    lambda s, y: torch.cat([s.p(y[:, 2:4]), s.q(y[:, 1:])], 1),
]


@pytest.mark.parametrize("function", PIECES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_piece_is_empty(function: Any, count: int) -> None:
    members = {"p": nn.Conv2d(2, 3, 1), "q": nn.Conv2d(7, 3, 1), "b": nn.Conv2d(6, 6, 1)}
    found = structure(Net(lambda s, x: s.end(function(s, s.a(x))), **members), images())
    for seed in range(10):
        scores = np.random.default_rng(seed).random(found.units)
        kept = select(found, scores, dict.fromkeys(range(found.groups), count))
        for piece in found.recorder.pieces:
            units = np.unique(found.unit[piece])
            assert kept[units].any()
        assert kept[found.members[0]].sum() >= min(count, 2)


def test_giving_a_piece_its_channel_back_leaves_blocks_equal() -> None:
    def forward(s: Any, x: Any) -> Any:
        y = s.a(x)
        return s.end(torch.cat([*y.chunk(3, 1)[::-1], s.up(y)], 1))

    layers = {"a": nn.Conv2d(3, 12, 3), "up": nn.Conv2d(12, 4, 1, groups=2), "b": nn.Conv2d(16, 6, 1)}
    first = structure(Net(forward, **layers))
    for found in (first, resolve(first.recorder, Refinement(pieces=True))):
        for seed in range(10):
            scores = np.random.default_rng(seed).random(found.units)
            for count in (1, 2, 5):
                kept = select(found, scores, {0: count})
                for rect in found.rects:
                    assert len(set(kept[rect].sum(axis=1).tolist())) == 1
