from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]


def moved(function: Function, channels: int = 8, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = nn.Conv2d(channels, 6, 3) if "b" not in members else members.pop("b")
    return Net(lambda s, x: s.end(function(s, s.a(x))), b=last, **members)


# Pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda s, y: y[:, ::2], 4),
        (lambda s, y: y[:, 1::3], 3),
        (lambda s, y: y[:, -4:], 4),
        (lambda s, y: y[:, :-3], 5),
        (lambda s, y: y[:, 2:7:2, 1:, :-1], 3),
        (lambda s, y: y[..., 2:6, :, :], 4),
        (lambda s, y: y.narrow(1, 2, 4), 4),
        (lambda s, y: torch.narrow(y, dim=-3, start=-4, length=4), 4),
        (lambda s, y: torch.cat([y[:, :5], y[:, 3:]], 1), 10),
        (lambda s, y: torch.cat(y.chunk(3, 1)[::-1], 1), 8),
        (lambda s, y: torch.cat(torch.split(y, 3, dim=1)[::-1], dim=-3), 8),
        (lambda s, y: torch.cat(torch.split(tensor=y, split_size_or_sections=[2, 6], dim=1), 1), 8),
        (lambda s, y: torch.cat(y.split(split_size=3, dim=1)[1:], 1), 5),
        (lambda s, y: torch.cat(torch.tensor_split(y, (3, 5), dim=1)[::-1], 1), 8),
        (lambda s, y: torch.cat(y.tensor_split(3, 1), 1), 8),
        (lambda s, y: torch.cat((y, y[:, :2], y), dim=1), 18),
        (lambda s, y: torch.concat([y, -y], axis=1), 16),
        (lambda s, y: torch.cat(list(y.unbind(2)), 2).view(y.shape), 8),
        (lambda s, y: y[:, torch.arange(7, -1, -1)], 8),
        (lambda s, y: y[:, [3, 1, 5]], 3),
        (lambda s, y: y.index_select(1, torch.tensor([3, 1, 5])), 3),
    ],
)
def test_pieces_take_what_is_left_of_them(function: Function, channels: int) -> None:
    deps = holds(moved(function, channels))
    assert sum(size for name, size in sizes(deps).items() if name.startswith("a")) == 8
    assert not frozen(deps)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.view(size=(y.shape[0], 4, 2, 6, 6)).flatten(1, 2),
        lambda y: y.expand(size=(y.shape[0], 8, 6, 6)),
        lambda y: torch.cat(torch.chunk(input=y, chunks=2, dim=1)[::-1], 1),
        lambda y: y.repeat(repeats=(1, 1, 1, 1)),
        lambda y: y.reshape(shape=(y.shape[0], 8, 36)).unflatten(dim=-1, sizes=(6, 6)),
    ],
)
def test_keywords_say_the_same(function: Callable[[Any], Any]) -> None:
    assert sizes(holds(moved(lambda s, y: function(y)))) == {"a": 8, "b": 6}


def test_no_piece_is_ever_empty() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        p, q, r = y.split([1, 2, 5], 1)
        return torch.cat([s.c(q), s.d(r)], 1) * torch.sigmoid(p)

    model = moved(forward, 8, c=nn.Conv2d(2, 4, 1), d=nn.Conv2d(5, 4, 1))
    deps = holds(model)
    assert "it is the only channel that is left of a selection" in frozen(deps)["a#2"]
    for seed in range(5):
        plan = prove(model, ratio=0.9, criterion=lambda g, seed=seed: torch.randperm(g.size).double() + seed).plan
        kept = plan.layers["a"].outputs
        assert kept is not None
        assert 0 in kept
        assert {1, 2} & set(kept)
        assert {3, 4, 5, 6, 7} & set(kept)


@pytest.mark.parametrize(
    "index",
    [lambda y: y[:, 2:3], lambda y: y[:, -1:], lambda y: y[:, 3].unsqueeze(1), lambda y: y.select(1, -2)[:, None]],
)
def test_a_selected_channel_stays_and_the_others_are_free(index: Callable[[Any], Any]) -> None:
    deps = holds(moved(lambda s, y: y * torch.sigmoid(index(y))))
    assert sizes(deps) == {"a": 7, "b": 6}
    assert len(frozen(deps)) == 1


def test_uneven_chunks_are_written_as_a_split() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        p, q, r = y.chunk(3, 1)
        return torch.cat([s.c(p), s.d(q), s.e(r)], 1)

    layers = {"c": nn.Conv2d(3, 2, 1), "d": nn.Conv2d(3, 2, 1), "e": nn.Conv2d(2, 2, 1)}
    found = prove(
        moved(forward, 6, **layers), criterion=lambda g: [0, 0, 0, 1, 1, 1, 1, 0] if g.size == 8 else [1] * g.size
    )
    kept = found.plan.layers["a"].outputs
    assert kept is not None
    pieces = [sum(i in kept for i in block) for block in ((0, 1, 2), (3, 4, 5), (6, 7))]
    assert min(pieces) >= 1
    assert f"split(a, {pieces}, 1)" in found.small.code.replace("dim = ", "").replace("split_size_or_sections = ", "")
    assert found.proof.max_relative_error < 1e-10


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


# Several into one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda p, q: torch.stack([p, q]).sum(0),
        (lambda p, q: torch.stack(tensors=[p, q], dim=-1).mean(-1)),
        lambda p, q: torch.stack((p, q), 1).amax(1),
        lambda p, q: torch.stack([p, q], 2)[:, :, 1] + torch.stack([p, q], 2).select(2, 0),
    ],
)
def test_tensors_that_are_stacked_and_merged_share_their_channels(function: Function) -> None:
    deps = holds(Net(lambda s, x: s.end(function(s.a(x), s.c(x))), c=nn.Conv2d(3, 8, 3)))
    assert sizes(deps) == {"a": 8, "b": 6}
    assert deps.groups[0].producers == ("a", "c")


@pytest.mark.parametrize("dim", [1, 2])
def test_tensors_that_are_stacked_and_flattened_keep_equally_many(dim: int) -> None:
    layers = {"c": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(16, 6, 3)}
    deps = holds(Net(lambda s, x: s.end(torch.stack([s.a(x), s.c(x)], dim).flatten(1, 2)), **layers))
    assert sum(size for name, size in sizes(deps).items() if name != "b") == 16


def test_concatenation_keeps_its_parts_apart() -> None:
    layers = {"c": nn.Conv2d(3, 5, 3), "b": nn.Conv2d(16, 6, 3)}
    deps = holds(Net(lambda s, x: s.end(torch.cat([s.a(x), x[:, :, 1:-1, 1:-1], s.c(x)], 1)), **layers))
    assert sizes(deps) == {"a": 8, "c": 5, "b": 6}
    kept = (
        prove(Net(lambda s, x: s.end(torch.cat([s.a(x), x[:, :, 1:-1, 1:-1], s.c(x)], 1)), **layers))
        .plan.layers["b"]
        .inputs
    )
    assert kept is not None
    assert set(kept) >= {8, 9, 10}


def test_concatenation_of_positions_ties() -> None:
    deps = holds(Net(lambda s, x: s.end(torch.cat([s.a(x), s.c(x)], 2)), c=nn.Conv2d(3, 8, 3)))
    assert sizes(deps) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    ("pad", "channels", "units"),
    [
        (lambda y: F.pad(y, (1, 1, 2, 0)), 8, 8),
        (lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"), 8, 8),
        (lambda y: F.pad(input=y, pad=(0, 0, 0, 0, 0, 4)), 12, 8),
        (lambda y: F.pad(y, (0, 0, 0, 0, 2, 2), value=1.5), 12, 8),
        (lambda y: F.pad(y.transpose(1, 2), (0, 0, 1, 1)).transpose(1, 2), 10, 8),
    ],
)
def test_padding_adds_channels_that_can_go(pad: Callable[[Any], Any], channels: int, units: int) -> None:
    model = Net(
        lambda s, x: s.end(s.c(x) + pad(s.a(x)).mean((2, 3), True)),
        c=nn.Conv2d(3, channels, 3),
        b=nn.Conv2d(channels, 6, 3),
    )
    found = sizes(holds(model))
    assert found["b"] == 6
    assert sum(size for name, size in found.items() if name != "b") == channels


@pytest.mark.parametrize(
    ("pad", "channels"),
    [
        (lambda y: F.pad(y, (0, 0, 0, 0, 0, -4)), 4),
        (lambda y: F.pad(y[:, None], (0, 0, 0, 0, 1, 1), "circular")[:, 0], 10),
    ],
)
def test_padding_that_reads_or_cuts_channels_holds_them(pad: Callable[[Any], Any], channels: int) -> None:
    deps = holds(Net(lambda s, x: s.end(pad(s.a(x))), b=nn.Conv2d(channels, 6, 3)))
    assert "it is padded in mode" in frozen(deps)["a"]


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
