from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]
P = nn.Parameter


def moved(function: Function, channels: int = 8, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = members.pop("b", nn.Conv2d(channels, 6, 1))
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


# Halves, copies, and what leaves at one end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "channels", "units"),
    [
        (lambda s, y: F.glu(y, 1), 4, 4),
        (lambda s, y: F.glu(y.view(-1, 2, 4, 6, 6), dim=2).flatten(1, 2), 4, 4),
        (lambda s, y: s.m(F.channel_shuffle(y, 2)), 4, 4),
        (lambda s, y: torch.roll(y, 4, 1) + y, 8, 4),
        (lambda s, y: y.roll((2, 1), (1, -1)) * y, 8, 2),
        (lambda s, y: y.roll(-1, dims=1) + y, 8, 1),
    ],
)
def test_halves_and_rolls_tie_what_meets(function: Function, channels: int, units: int) -> None:
    assert sizes(holds(moved(function, channels, m=nn.GLU(dim=1)))) == {"a": units, "b": 6}


def test_a_gated_layer_of_two_channels_keeps_both() -> None:
    deps = holds(Net(lambda s, x: s.end(s.a(x) * F.glu(s.g(x), 1)), g=nn.Conv2d(3, 2, 3)))
    assert sizes(deps) == {"a": 8, "b": 6}
    assert "it is the only channel that is left of a selection" in frozen(deps)["g"]


@pytest.mark.parametrize(
    "spread",
    [
        lambda y, g: g.expand(-1, 8, -1, -1),
        lambda y, g: g.expand(y.shape),
        lambda y, g: g.expand((y.size(0), y.size(1), -1, -1)),
        lambda y, g: g.repeat(1, 8, 1, 1),
        lambda y, g: g.repeat((1, y.shape[1], 1, 1)),
        lambda y, g: g.tile(1, 8, 1, 1),
        lambda y, g: torch.broadcast_to(g, y.shape),
        lambda y, g: torch.broadcast_tensors(y, g)[1],
    ],
)
@pytest.mark.parametrize("use", [lambda s, y, m: y * m, lambda s, y, m: s.n(m) + y, lambda s, y, m: m.sum(1, True) * y])
def test_one_channel_that_is_spread_leaves_the_others_free(spread: Any, use: Any) -> None:
    layers = {"g": nn.Conv2d(8, 1, 1), "n": nn.BatchNorm2d(8)}
    deps = holds(moved(lambda s, y: use(s, y, spread(y, torch.sigmoid(s.g(y)))), **layers))
    assert sizes(deps) == {"a": 8, "b": 6}


def test_copies_of_a_channel_are_rewritten_with_the_channels_that_they_meet() -> None:
    small = prove(moved(lambda s, y: y * s.g(y).repeat(1, 8, 1, 1), g=nn.Conv2d(8, 1, 1))).small
    assert "repeat(1, 4, 1, 1)" in small.code


def test_copies_that_a_layer_reads_stay() -> None:
    deps = holds(moved(lambda s, y: s.k(s.g(y).expand(-1, 3, -1, -1)), g=nn.Conv2d(8, 1, 1), k=nn.Conv2d(3, 8, 1)))
    assert sizes(deps) == {"a": 8, "k": 8, "b": 6}


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda s, y: torch.hstack([y, -y]), 16),
        (lambda s, y: torch.vstack((y, y))[: y.shape[0]], 8),
        (lambda s, y: torch.dstack([y, y]), 8),
        (lambda s, y: torch.stack([y, s.c(y)], -1).flatten(1, 2)[..., 0][..., None], 8 * 6),
        (lambda s, y: (torch.stack([y, s.c(y)], -1) @ s.w).squeeze(-1), 8),
        (lambda s, y: torch.stack([y, s.c(y), -y], 2).reshape(y.shape[0], -1, 6, 6), 24),
    ],
)
def test_tensors_are_put_together_along_any_dimension(function: Function, channels: int) -> None:
    deps = holds(moved(function, channels, c=nn.Conv2d(8, 8, 1), w=P(torch.zeros(2, 1))))
    assert {"a", "b"} <= set(sizes(deps))
    assert not {"a", "c"} & set(frozen(deps))


@pytest.mark.parametrize("sizes", [lambda y: (y.shape[0], 1, 3, 8), lambda y: (y.shape[0], -1, -1, -1)])
def test_tokens_that_are_spread_over_a_batch_follow_their_channels(sizes: Callable[[Tensor], tuple[int, ...]]) -> None:
    """Only one position is spread, and still the call may name the channels."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2).transpose(1, 2)[:, None]
        return s.out(torch.cat([s.tokens.expand(*sizes(y)), y], 2))

    members = {"tokens": nn.Parameter(torch.randn(1, 1, 3, 8)), "out": nn.Linear(8, 5), "b": None, "h": None}
    found = prove(Net(forward, **members), images())
    assert found.small(images(5)).shape == (5, 1, 39, 5)
    assert found.proof.max_relative_error < 1e-12
