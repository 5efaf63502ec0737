from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.labels import Labels, Layer, Lookup, Reason, arange, compact, first_per_line, inhabited, spread

SMALL = st.integers(0, 6)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[int], list[tuple[int, ...]]]:
    width, rows = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    tuples = draw(st.lists(st.tuples(*[SMALL] * width), min_size=rows, max_size=rows))
    values = draw(st.lists(st.integers(0, 100), min_size=rows, max_size=rows))
    asked = draw(st.lists(st.tuples(*[st.integers(0, 9)] * width), max_size=12))
    return tuples, values, asked


def columns(rows: list[tuple[int, ...]], width: int) -> list[np.ndarray]:
    return [np.array([row[i] for row in rows], dtype=np.int64) for i in range(width)]


@given(tables())
def test_a_lookup_gives_the_first_value_of_each_tuple(case: tuple[list, list, list]) -> None:
    tuples, values, asked = case
    lookup = Lookup(tuple(columns(tuples, len(tuples[0]))), np.array(values))
    found = lookup(*columns(asked, len(tuples[0])))
    assert found.tolist() == [values[tuples.index(key)] if key in tuples else -1 for key in asked]


@given(tables())
def test_a_counting_lookup_gives_the_kth_occurrence_the_kth_value(case: tuple[list, list, list]) -> None:
    tuples, values, asked = case
    lookup = Lookup(tuple(columns(tuples, len(tuples[0]))), np.array(values))
    remaining = list(zip(tuples, values, strict=True))
    expected = []
    for key in asked:
        at = next((i for i, (known, _) in enumerate(remaining) if known == key), None)
        expected.append(-1 if at is None else remaining.pop(at)[1])
    assert lookup(*columns(asked, len(tuples[0])), counting=True).tolist() == expected


@given(tables())
def test_a_lookup_has_what_its_table_has(case: tuple[list, list, list]) -> None:
    tuples, values, asked = case
    lookup = Lookup(tuple(columns(tuples, len(tuples[0]))), np.array(values))
    assert lookup.has(*columns(asked, len(tuples[0]))) == all(key in tuples for key in asked)
    assert lookup.has(*columns(tuples, len(tuples[0])))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
        lambda s: st.tuples(st.just(s), st.sets(st.integers(0, len(s) - 1)))
    )
)
def test_compacting_finds_the_dimensions_along_which_labels_vary(case: tuple[list[int], set[int]]) -> None:
    shape, wanted = case
    varying = {d for d in wanted if shape[d] > 1}
    small = [s if d in varying else 1 for d, s in enumerate(shape)]
    names = torch.arange(int(np.prod(small))).reshape(small)
    for whole in (names.expand(shape), names.expand(shape).contiguous()):
        layer = compact(whole)
        assert set(layer.dims) == varying
        assert torch.equal(layer.tensor, names)
        assert torch.equal(spread(layer, tuple(shape)), whole)


def test_compacting_sees_a_difference_beyond_the_second_position() -> None:
    assert compact(torch.tensor([[5, 5, 6]])).dims == (1,)
    assert compact(torch.tensor([[5, 5], [5, 6]])).dims == (0, 1)


def test_spreading_takes_no_memory() -> None:
    layer = Layer(arange(10, 4).reshape(1, 4, 1, 1), (1,))
    whole = spread(layer, (8, 4, 1000, 1000))
    assert whole.shape == (8, 4, 1000, 1000)
    assert whole.stride() == (0, 1, 0, 0)
    assert whole.untyped_storage().nbytes() == 4 * 8
    assert compact(whole).tensor.untyped_storage().nbytes() == 4 * 8


def test_labels_of_an_empty_value_are_those_it_would_have() -> None:
    layer = Layer(arange(10, 4).reshape(1, 4, 1), (1,))
    whole = spread(layer, (2, 4, 5))
    there = inhabited(whole[:, :, 5:])
    assert there is not None
    assert there.shape == (2, 4, 1)
    assert there[0, :, 0].tolist() == [10, 11, 12, 13]
    assert inhabited(whole) is whole
    assert inhabited(whole[:, 4:]) is None
    assert inhabited(whole[:, :, :0].clone()) is None


@pytest.mark.parametrize("dim", [1, 3])
def test_the_first_of_every_line(dim: int) -> None:
    tensor = torch.arange(6).reshape(1, 2, 1, 3)
    assert first_per_line(Layer(tensor, (1, 3)), dim).tolist() == {1: [0, 3], 3: [0, 1, 2]}[dim]


def test_labels_know_the_shape_of_the_network_that_is_read() -> None:
    value = Labels((2, 8, 6), (Layer(arange(1, 5).reshape(1, 5, 1), (1,)),))
    assert value.shape == (2, 5, 6)
    assert value.on([1]) == list(value.layers)
    assert value.on([0, 2]) == []
    assert value.off([2]) == list(value.layers)
    assert value.off([1, 2]) == []


def test_a_reason_says_where() -> None:
    assert str(Reason("it is so", "conv", "node 'conv' at net.py:3")) == "it is so (node 'conv' at net.py:3)"
    assert str(Reason("it is so")) == "it is so"


@given(st.integers(1, 2**20), st.integers(1, 50))
def test_new_names_follow_one_another(first: int, count: int) -> None:
    names = arange(first, count)
    assert names.dtype == torch.int64
    assert names.tolist() == list(range(first, first + count))
