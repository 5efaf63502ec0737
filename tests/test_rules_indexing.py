from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.dependency import DependencyGraph
from fxprune.labels import Labels
from fxprune.rules.indexing import _Index, _index

Function = Callable[[Any, Any], Any]
P = nn.Parameter


def moved(function: Function, channels: int = 8, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = members.pop("b", nn.Conv2d(channels, 6, 1))
    return Net(lambda s, x: s.end(function(s, s.a(x))), b=last, **members)


@pytest.mark.parametrize(
    ("function", "channels", "units"),
    [
        (lambda s, y: y[:, [2, 0, 1, 7]] * y[:, [3, 4, 5, 6]], 4, 4),
        (lambda s, y: y[:, s.order] + y, 8, 4),
        (lambda s, y: y[:, [-1, -2, 0]], 3, 8),
        (lambda s, y: y.index_select(1, torch.tensor([0, 2, 4, 6])) + y[:, 1::2], 4, 4),
        (lambda s, y: y[:, [0, 0, 1, 1, 2, 2]], 6, 8),
        (lambda s, y: y[:, ::2] + y[:, 1::2], 4, 4),
        (lambda s, y: torch.cat([y[:, 2::3], y[:, ::3], y[:, 1::3]], 1), 8, 8),
        (lambda s, y: F.channel_shuffle(y, 2)[:, ::2] + F.channel_shuffle(y, 2)[:, 1::2], 4, 4),
        (lambda s, y: y.narrow(1, -3, 3) + y[:, 2:5], 3, 5),
        (lambda s, y: y[:, :, [0, 2, 4]][..., torch.tensor([1, 2])], 8, 8),
        (lambda s, y: y[:, [1, 0], :3][:, :, ::2], 2, 8),
        (lambda s, y: y.flatten(2).gather(2, s.best(y)[:, None].expand(-1, 8, -1))[..., None], 8, 8),
    ],
)
def test_what_is_picked_is_known_by_name(function: Function, channels: int, units: int) -> None:
    model = moved(function, channels)
    model.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
    model.best = lambda y: y.flatten(2).sum(1).topk(4, 1)[1]
    assert sum(size for name, size in sizes(holds(model)).items() if name != "b") == units


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (lambda y: torch.cat([y[:, ::2], y[:, 1::2]], 1), "slice(None, None, 2)"),
        (lambda y: torch.cat([y[:, 1::3], y[:, ::3], y[:, 2::3]], 1), "slice(1, 3, None)"),
        (lambda y: torch.cat([y[:, 4:], y[:, :4]], 1), "slice(2, 4, None)"),
        (lambda y: y[:, [7, 5, 4, 6, 1, 0, 2, 3]], "[3, 2, 1, 0]"),
        (lambda y: torch.index_select(y, 1, torch.tensor([5, 4, 0])), "[3, 2, 0]"),
    ],
)
def test_an_index_is_written_for_the_channels_that_are_left(function: Callable[[Any], Any], written: str) -> None:
    best = [1.0, 1.0, 0.0, 0.0] * 2
    model = Net(lambda s, x: (s.end(s.a(x)), s.c(function(s.a(x)))), c=nn.LazyConv2d(2, 1))
    model(images())
    found = prove(model, criterion=lambda g: best if g.size == 8 else [1.0] * g.size)
    assert found.proof.max_relative_error < 1e-10
    assert found.plan.layers["a"].outputs == (0, 1, 4, 5)
    assert written in found.small.code


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y[:, y.flatten(2).sum((0, 2)).topk(4)[1]],
        lambda s, y: y.index_select(1, y.sum((0, 2, 3)).argsort()),
        lambda s, y: y.gather(1, y.argsort(1)),
        lambda s, y: y[:, [[0, 1], [2, 3]]].flatten(1, 2),
        lambda s, y: y[[0, 1], [1, 2]][None],
    ],
)
def test_what_is_picked_by_values_stays(function: Function) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return s.end(s.c(x)), function(s, s.a(x)).mean()

    deps = holds(Net(forward, c=nn.Conv2d(3, 8, 3)))
    assert {"c": 8, "b": 6}.items() <= sizes(deps).items()
    assert "a" in frozen(deps)


def test_a_list_beside_a_number_is_left_alone() -> None:
    deps = holds(moved(lambda s, y: y[:, [0, 1, 2], 0][..., None], 3))
    assert "a tensor of indices picks from it" in frozen(deps)["a"]


def test_constants_without_values_are_left_alone() -> None:
    model = moved(lambda s, y: y[:, s.order])
    model.register_buffer("order", torch.arange(8, device="meta"))
    deps = DependencyGraph(trace(model.to("meta"), images().to("meta")))
    assert "a tensor of indices picks from it" in frozen(deps)["a"]


@pytest.mark.parametrize("full", [(5,), (2, 3), ()])
@pytest.mark.parametrize(
    "parts",
    [
        lambda i: (i,),
        lambda i: (slice(None), i),
        lambda i: (slice(1, None), None, i, slice(None, 2)),
        lambda i: (None, slice(None), slice(None), i),
        lambda i: (0, i),
        lambda i: (i, slice(None), 1),
    ],
)
def test_what_is_the_same_everywhere_is_picked_without_being_copied(full: tuple[int, ...], parts: Any) -> None:
    index = _Index(Labels(full))
    positions = index.positions.clone()
    for labels in (torch.arange(3)[:, None, None], torch.arange(4)[:, None], torch.arange(3)):
        spread = labels.expand(3, 4, 3)
        found = _index(spread, parts(index))
        assert torch.equal(found, spread.clone()[parts(positions)])
