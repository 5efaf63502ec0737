from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]


def moved(function: Function, channels: int = 8, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = nn.Conv2d(channels, 6, 3) if "b" not in members else members.pop("b")
    return Net(lambda s, x: s.end(function(s, s.a(x))), b=last, **members)


# Views ----------------------------------------------------------------------------------------------------------------


def _shuffled(s: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)


def _tokens(s: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.size()
    z = y.permute(0, 2, 3, 1).reshape(b * h * w, c)
    return s.l(z).view(b, h, w, 8).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (_shuffled, 8),
        (lambda s, y: F.channel_shuffle(y, 2), 8),
        (lambda s, y: s.m(y), 8),
        (lambda s, y: y.view(y.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6), 8),
        (lambda s, y: y.view(y.size()).reshape(*y.shape).view([y.shape[0], -1, 6, 6]), 8),
        (lambda s, y: torch.reshape(y, shape=(y.shape[0], -1, 12, 3)), 8),
        (lambda s, y: y.flatten(2).reshape_as(y), 8),
        (lambda s, y: torch.flatten(input=y, start_dim=2).unflatten(-1, (6, -1)), 8),
        (lambda s, y: y.flatten(2).transpose(1, 2).view(y.shape[0], 6, 6, 8).permute(0, 3, 1, 2), 8),
        (lambda s, y: torch.permute(torch.permute(y, dims=(0, -2, -1, 1)), (0, 3, 1, 2)), 8),
        (lambda s, y: y.movedim(1, -1).swapaxes(-1, 1).mT, 8),
        (lambda s, y: y[:, None].squeeze(1).unsqueeze(-1).squeeze(), 8),
        (lambda s, y: torch.unsqueeze(y, dim=2).squeeze(dim=2), 8),
        (lambda s, y: y.flip(1), 8),
        (lambda s, y: torch.flip(y, dims=(1, -1)), 8),
        (lambda s, y: torch.roll(y, 3, 1), 8),
        (lambda s, y: torch.roll(y, shifts=(2, 1), dims=(1, 3)), 8),
        (lambda s, y: y.repeat(1, 3, 1, 1), 24),
        (lambda s, y: y.repeat((2, 1, 1, 1))[: y.shape[0]], 8),
        (lambda s, y: torch.tile(y, (2, 1, 1)), 16),
        (lambda s, y: y.repeat_interleave(2, 1), 16),
        (lambda s, y: torch.repeat_interleave(y, 3, dim=1), 24),
        (lambda s, y: F.pixel_unshuffle(y, 2), 32),
        (lambda s, y: torch.stack([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2), 32),
        (lambda s, y: torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2]], 1), 16),
        (lambda s, y: torch.rot90(y, 1, (2, 3)), 8),
    ],
)
def test_views_and_copies_move_every_channel(function: Function, channels: int) -> None:
    layers = {"b": nn.Conv2d(channels, 6, 1), "m": nn.ChannelShuffle(4)}
    assert sizes(holds(moved(function, channels, **layers))) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    ("function", "channels", "units"),
    [
        (lambda s, y: F.pixel_shuffle(y, 2), 2, 2),
        (lambda s, y: y.view(y.shape[0], 2, 4, 6, 6).amax(1), 4, 4),
        (lambda s, y: y.unflatten(1, (2, -1)).sum(dim=1), 4, 4),
        (lambda s, y: torch.unflatten(y, -3, (-1, 4)).mean(1), 4, 4),
        (lambda s, y: sum(torch.unbind(y.unflatten(1, (2, 4)), dim=1)), 4, 4),
        (lambda s, y: y[:, :4] * torch.sigmoid(y[:, 4:]), 4, 4),
        (lambda s, y: y[:, ::2] * torch.sigmoid(y[:, 1::2]), 4, 4),
        (lambda s, y: y + y.flip(1), 8, 4),
        (lambda s, y: y.view(-1, 4, 2, 6, 6)[:, :, 0] - y.view(-1, 4, 2, 6, 6)[:, :, 1], 4, 4),
        (lambda s, y: F.glu(y, 1), 4, 4),
        (lambda s, y: s.m(y), 4, 4),
    ],
)
def test_channels_that_meet_are_one_unit(function: Function, channels: int, units: int) -> None:
    layers = {"b": nn.Conv2d(channels, 6, 1), "m": nn.GLU(1)}
    assert sizes(holds(moved(function, channels, **layers))) == {"a": units, "b": 6}


def test_tokens_and_back() -> None:
    assert sizes(holds(moved(_tokens, l=nn.Linear(8, 8)))) == {"a": 8, "l": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.view(y.size(0), -1),
        lambda s, y: y.view(-1, 288),
        lambda s, y: y.view(2, 288),
        lambda s, y: torch.flatten(y, 1),
        lambda s, y: s.flat(y),
        lambda s, y: y.reshape((y.shape[0], y.shape[1] * 36)),
        lambda s, y: y.permute(0, 2, 3, 1).flatten(1),
        lambda s, y: torch.cat([y.flatten(1)[:, :100], y.flatten(1)[:, 100:]], 1),
        lambda s, y: s.norm(y.flatten(1)),
    ],
)
def test_flattening_makes_one_unit_of_the_positions_of_a_channel(function: Function) -> None:
    members = {"flat": nn.Flatten(), "norm": nn.BatchNorm1d(288), "out": nn.Linear(288, 5)}
    found = prove(Net(lambda s, x: s.out(function(s, s.a(x))), b=None, h=None, **members))
    assert sizes(found.deps) == {"a": 8}
    assert found.proof.max_relative_error < 1e-10
    out: Any = found.small.get_submodule("out")
    assert out.in_features == 144


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.squeeze(),
        lambda s, y: y.squeeze(-1).squeeze(-1),
        lambda s, y: y.squeeze((2, 3)),
        lambda s, y: y[:, :, 0, 0],
        lambda s, y: y[..., 0, 0],
        lambda s, y: y.flatten(1),
        lambda s, y: torch.squeeze(torch.squeeze(input=y, dim=3), dim=2),
    ],
)
@pytest.mark.parametrize("channels", [8, 2])
def test_a_dimension_that_only_pruning_made_1_is_not_squeezed(function: Function, channels: int) -> None:
    layers = {"a": nn.Conv2d(3, channels, 3), "out": nn.Linear(channels, 5)}
    model = Net(lambda s, x: s.out(function(s, F.adaptive_avg_pool2d(s.a(x), 1))), b=None, h=None, **layers)
    assert sizes(holds(model)) == {"a": channels}
    assert prove(model, ratio=0.9).small(images()).shape == (2, 5)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, g, y: g.expand(-1, -1, 6, 6),
        lambda s, g, y: g.expand(y.shape),
        lambda s, g, y: g.expand_as(y),
        lambda s, g, y: g.expand(2, 8, 6, 6),
        lambda s, g, y: g.expand((y.shape[0], 8, *y.shape[2:])),
        lambda s, g, y: g.repeat(1, 1, 6, 6),
        lambda s, g, y: g.view(y.shape[0], 8, 1, 1),
    ],
)
def test_a_gate_is_spread_over_space(function: Callable[[Any, Any, Any], Any]) -> None:
    def gated(s: Any, y: Tensor) -> Tensor:
        return y * function(s, torch.sigmoid(s.g(y.mean((2, 3))))[:, :, None, None], y)

    assert sizes(holds(moved(gated, g=nn.Linear(8, 8)))) == {"a": 8, "b": 6}


# Constants of the graph -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y: y.view(y.shape[0], 2, 4, 36).transpose(1, 2).reshape(y.shape[0], 8, 6, 6), ("view", "2, 2, 36")),
        (lambda y: torch.cat([y[:, 4:], y[:, :4]], 1), ("slice(2, 4", "slice(0, 2")),
        (lambda y: y.expand(y.shape[0], 8, 6, 6), ("4, 6, 6",)),
        (lambda y: torch.cat(y.split([4, 4], 1)[::-1], 1), ("[2, 2]",)),
    ],
)
def test_sizes_that_the_author_wrote_follow(function: Callable[[Any], Any], expected: tuple[str, ...]) -> None:
    best = [1.0, 1.0, 0.0, 0.0] * 2
    found = prove(moved(lambda s, y: function(y)), criterion=lambda g: best if g.size == 8 else [1.0] * g.size)
    assert found.plan.layers["a"].outputs == (0, 1, 4, 5)
    assert found.proof.max_relative_error < 1e-10
    for text in expected:
        assert text in found.small.code


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.softmax(y.view(y.shape[0] * y.shape[1], -1), -1).view(y.shape),
        lambda s, y: F.softmax(y.view(y.shape[0] * 8, -1), -1).view(y.shape[0], 8, 6, 6),
        lambda s, y: s.one(y.reshape(y.shape[0] * 8, 1, 6, 6)).view(y.shape[0], -1, 6, 6),
        lambda s, y: y.expand(y.shape[0], 8, 6, 6).reshape(y.shape[0], 8 * 36).view(-1, 8, 6, 6),
    ],
)
def test_the_batch_stays_free(function: Function) -> None:
    found = prove(moved(function, one=nn.Conv2d(1, 1, 1)), criterion="first")
    assert sizes(found.deps)["a"] == 8
    small, three = found.small.double(), images(3).double()
    torch.testing.assert_close(small(three), torch.cat([small(image[None]) for image in three]))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y / y.numel(),
        lambda y: y / (y.shape[1] * y.shape[2] * y.shape[3]),
        lambda y: y / (y.shape[1] + y.shape[2]),
        lambda y: y * (y.flatten(1).shape[1] ** -0.5),
        lambda y: y / math.prod(y.shape),
        lambda y: y / math.sqrt(y.size(1) * y.size(0) + y.shape.numel()),
        lambda y: y / torch.ones(y.shape[0], *y.shape[2:]).numel() * y.shape[1:].numel(),
    ],
)
def test_numbers_that_are_calculated_with_follow_the_image_but_not_the_channels(function: Callable[[Any], Any]) -> None:
    small: Any = prove(moved(lambda s, y: function(y)), criterion="first").small.double()
    for other in (images(), images(3), images(height=12, width=10)):
        y = small.a(other.double())
        scale = function(torch.ones(y.shape[0], 8, *y.shape[2:], dtype=torch.float64))[0, 0, 0, 0]
        torch.testing.assert_close(small(other.double()), small.h(small.b(y * scale).mean((2, 3))))
