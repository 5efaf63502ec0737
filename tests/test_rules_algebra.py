from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune.capture import trace
from fxprune.labels import Labels, Layer, Reason
from fxprune.recorder import Recorder
from fxprune.rules.algebra import axis, broadcast_shape, contract, meet, only_axis, place, sum_over

NAMES = "abcde"


def recorder() -> Recorder:
    """A first reading at a node of which the rules ask nothing."""
    return Recorder(trace(nn.Identity(), torch.zeros(1)))


def value(ctx: Recorder, full: tuple[int, ...], *dims: Any) -> Labels:
    """A value with one layer of fresh labels for each entry of ``dims``: a dimension, or several."""
    layers = []
    for entry in dims:
        along = (entry,) if isinstance(entry, int) else tuple(entry)
        shape = [size if d in along else 1 for d, size in enumerate(full)]
        layers.append(Layer(ctx.fresh(int(np.prod(shape))).reshape(shape), along))
    return Labels(full, tuple(layers))


def tied(ctx: Recorder) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for tie in ctx.ties for a, b in zip(tie.a, tie.b, strict=True)}


def classes(ctx: Recorder) -> list[int]:
    """The smallest label that each label is tied to, found step by step."""
    found = list(range(ctx.count))
    pairs = [*tied(ctx), *((0, int(label)) for freeze in ctx.freezes for label in freeze.labels)]
    while True:
        before = list(found)
        for a, b in pairs:
            found[a] = found[b] = min(found[a], found[b])
        if found == before:
            return found


@st.composite
def operands(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], bool]]]:
    full = tuple(draw(st.lists(st.integers(2, 4), min_size=2, max_size=4)))
    channel = draw(st.integers(0, len(full) - 1))
    chosen = []
    for _ in range(draw(st.integers(1, 4))):
        shape = [draw(st.sampled_from([1, size])) for size in full]
        lead = draw(st.integers(0, len(full)))
        while lead and all(s == 1 for s in shape[:lead]) and lead <= channel:
            shape, lead = shape[lead:], 0
        chosen.append((tuple(shape), draw(st.booleans())))
    return full, [
        (shape, labelled and len(shape) == len(full) and shape[channel] > 1) for shape, labelled in chosen
    ] + [
        (full, True),
        (tuple(s if d == channel else 1 for d, s in enumerate(full)), True),
    ]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(operands())
def test_values_that_meet_are_tied_position_by_position(
    case: tuple[tuple[int, ...], list[tuple[tuple[int, ...], bool]]],
) -> None:
    full, shapes = case
    channel = next(d for d, s in enumerate(shapes[-1][0]) if s > 1)
    ctx = recorder()
    values = [value(ctx, shape, channel) if labelled else Labels(shape) for shape, labelled in shapes]
    result = meet(ctx, values, full)
    assert result.full == full
    held = any(v.full[channel - len(full)] > 1 for v in values if not v.layers and len(v.full) >= len(full) - channel)
    assert [layer.dims for layer in result.layers] == ([] if held else [(channel,)])
    found = classes(ctx)
    aligned = [
        v.layers[0].tensor.expand([full[d] if d == channel else 1 for d in range(len(full))]).reshape(-1)
        for v in (*values, result)
        if v.layers
    ]
    for position in zip(*aligned, strict=True):
        assert len({found[int(label)] for label in position}) == 1
    assert ({found[int(label)] for label in aligned[0]} == {0}) is held
    if not held:
        assert len({found[int(label)] for label in aligned[0]}) == full[channel]


def test_values_that_are_spread_along_each_others_channels_stay_apart() -> None:
    ctx = recorder()
    rows, columns = value(ctx, (2, 4, 1), 1), value(ctx, (5,), 0)
    result = meet(ctx, [rows, columns], (2, 4, 5))
    assert [layer.dims for layer in result.layers] == [(1,), (2,)]
    assert not ctx.ties
    assert not ctx.freezes


def test_a_value_that_is_spread_along_a_dimension_covers_it() -> None:
    ctx = recorder()
    both, one = value(ctx, (3, 4), (0, 1)), value(ctx, (3, 1), 0)
    result = meet(ctx, [both, one], (3, 4))
    assert [layer.dims for layer in result.layers] == [(0, 1)]
    (cover,) = ctx.covers
    assert cover.parent is not None
    assert cover.parent.tolist() == one.layers[0].tensor.reshape(-1).tolist()
    assert cover.child.tolist() == both.layers[0].tensor.tolist()


def test_a_value_of_full_size_without_labels_holds_positions_not_every_channel_at_them() -> None:
    ctx = recorder()
    both = value(ctx, (3, 4), (0, 1))
    meet(ctx, [both, Labels((3, 1))], (3, 4))
    assert not ctx.freezes
    (cover,) = ctx.covers
    assert cover.parent is None
    assert cover.child.tolist() == both.layers[0].tensor.tolist()


def test_a_reason_is_passed_on() -> None:
    ctx = recorder()
    why = Reason("the image has three")
    meet(ctx, [value(ctx, (2, 3), 1), Labels((2, 3), (), why)], (2, 3))
    assert ctx.freezes[0].reason.text == "it meets channels that stay: the image has three"


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [[0], [1], [-1], [1, 2], [0, 1, 2], [0, 2]])
def test_sums_have_the_shape_of_sums(dims: list[int], keepdim: bool) -> None:
    ctx = recorder()
    x = value(ctx, (2, 3, 4), 1)
    out = sum_over(ctx, x, dims, keepdim)
    assert out.full == torch.zeros(2, 3, 4).sum(dims, keepdim).shape
    if 1 in dims or -2 in dims:
        assert out.layers == ()
    else:
        assert out.layers[0].tensor.reshape(-1).tolist() == [1, 2, 3]
        assert out.layers[0].tensor.dim() == len(out.full)


def test_a_sum_over_one_of_two_dimensions_stands_for_its_line() -> None:
    ctx = recorder()
    x = value(ctx, (3, 4), (0, 1))
    out = sum_over(ctx, x, [1], False)
    assert out.full == (3,)
    (cover,) = ctx.covers
    assert cover.parent is not None
    assert cover.parent.tolist() == out.layers[0].tensor.tolist()
    assert cover.child.tolist() == x.layers[0].tensor.tolist()


@pytest.mark.parametrize(
    ("equation", "shapes", "labelled", "left"),
    [
        ("bcn,dc->bdn", [(2, 3, 4), (5, 3)], [1, (0, 1)], {1}),
        ("xy,yz->xz", [(3, 4), (4, 5)], [(0, 1), (0, 1)], {0, 1}),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], [1, 2], {1, 2}),
        ("bc,bc->b", [(2, 3), (2, 3)], [1, 1], set()),
    ],
)
def test_products_tie_what_is_summed_and_keep_the_rest(
    equation: str, shapes: Sequence[tuple[int, ...]], labelled: Sequence[Any], left: set[int]
) -> None:
    ctx = recorder()
    values = [
        value(ctx, shape, *([along] if isinstance(along, int) else along))
        for shape, along in zip(shapes, labelled, strict=True)
    ]
    out = contract(ctx, equation, values, range(len(values)))
    assert out.full == torch.einsum(equation, *(torch.zeros(s) for s in shapes)).shape
    assert {d for layer in out.layers for d in layer.dims} == left
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    found = classes(ctx)
    for letter in set(inputs) - set(output) - {","}:
        along = [
            layer.tensor.reshape(-1)
            for term, v in zip(terms, values, strict=True)
            for layer in v.layers
            if term[layer.dims[0]] == letter
        ]
        for position in zip(*along, strict=True):
            assert len({found[int(label)] for label in position}) == 1
    assert {read.position for read in ctx.reads_} == {
        i
        for i, (term, v) in enumerate(zip(terms, values, strict=True))
        if any(term[x.dims[0]] not in output for x in v.layers)
    }


def test_an_axis_is_tied_over_the_other_dimensions() -> None:
    ctx = recorder()
    x = value(ctx, (2, 3, 4), (1, 2))
    line = axis(ctx, x, 1)
    assert line.tolist() == x.layers[0].tensor[0, :, 0].tolist()
    found = classes(ctx)
    assert [len({found[int(label)] for label in row}) for row in x.layers[0].tensor[0]] == [1, 1, 1]
    assert len(set(found)) == 4


def test_an_axis_without_labels_stays() -> None:
    ctx = recorder()
    line = axis(ctx, Labels((2, 3), (), Reason("the image has three")), 1)
    assert line.tolist() == [1, 2, 3]
    assert ctx.freezes[0].labels.tolist() == [1, 2, 3]
    assert ctx.freezes[0].reason.text == "the image has three"


def test_what_a_layer_slides_over_stays() -> None:
    ctx = recorder()
    x = value(ctx, (2, 3, 4), 0, 1, 2)
    line, kept = only_axis(ctx, x, 1, [0], "it slides")
    assert line.tolist() == x.layers[1].tensor.reshape(-1).tolist()
    assert kept == [x.layers[0]]
    assert ctx.freezes[0].labels.tolist() == x.layers[2].tensor.reshape(-1).tolist()


def test_small_things() -> None:
    assert broadcast_shape((2, 1, 3), (4, 1)) == (2, 4, 3)
    layer = place(torch.arange(5), 1, 3)
    assert (layer.tensor.shape, layer.dims) == ((1, 5, 1), (1,))
