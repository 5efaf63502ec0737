"""Tensors of equal elements: they shrink with what they meet, and what says how large they are follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

from fxprune.dependency import DependencyGraph

Made = Callable[[Tensor], Tensor]

CONSTANTS: dict[str, Made] = {
    "literal": lambda y: torch.zeros(y.shape[0], 8, 6, 6),
    "nested": lambda y: torch.ones((y.shape[0], 8, *y.shape[2:])),
    "list": lambda y: torch.zeros([y.size(0), y.size(1), 6, 6], dtype=y.dtype),
    "keyword": lambda y: torch.zeros(size=(y.shape[0], 8, 1, 1)),
    "like": lambda y: y.new_zeros(y.shape),
    "method": lambda y: y.new_ones(y.shape[0], 8, 6, 6),
    "full": lambda y: torch.full((y.shape[0], 8, 6, 6), 0.5),
    "new full": lambda y: y.new_full(y.size(), 2.0),
    "filled": lambda y: torch.empty(y.shape[0], 8, 6, 6).fill_(3),
    "broadcast": lambda y: torch.zeros(8, 1, 1),
    "expanded": lambda y: torch.zeros(1, 8, 1, 1).expand(y.shape[0], -1, 6, 6),
    "of a difference": lambda y: torch.zeros(y.shape[0], 16 - y.shape[1], 6, 6),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_shrinks_with_what_it_meets(name: str) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.end(y + CONSTANTS[name](y))

    found = prove(Net(forward), images())
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert not {n: why for n, why in frozen(found.deps).items() if n != "h"}
    assert found.proof.max_relative_error < 1e-12
    assert found.small(images(5)).shape == (5, 5)


@pytest.mark.parametrize("name", [n for n in CONSTANTS if n not in ("keyword", "broadcast")])
def test_a_constant_beside_channels_stays_where_nothing_makes_it(name: str) -> None:
    layers = {"b": nn.Conv2d(16, 6, 3)}
    found = prove(Net(lambda s, x: s.end(torch.cat([(y := s.a(x)), CONSTANTS[name](y)], 1)), **layers), images())
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert found.small.get_submodule("b").in_channels == 12
    assert found.proof.max_relative_error < 1e-12


def test_a_shortcut_is_padded_by_a_constant() -> None:
    """As of a PyramidNet (Han et al., 2017): every channel of the sum can go."""

    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        padding = torch.zeros(x.shape[0], 12 - x.shape[1], x.shape[2], x.shape[3])
        return s.end(s.wide(x) + torch.cat([x, padding], 1))

    layers = {"wide": nn.Conv2d(8, 12, 1), "b": nn.Conv2d(12, 6, 3)}
    found = prove(Net(forward, **layers), images())
    assert sum(group.size for group in found.deps.prunable if "wide" in group.producers) == 12
    assert found.proof.max_relative_error < 1e-12


class ConvLSTM(nn.Module):
    """A recurrent convolution (Shi et al., 2015), whose state starts from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 8, 32, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _, height, width = x.shape
        hidden = torch.zeros(batch, 8, height, width)
        cell = torch.zeros(batch, 8, height, width)
        for step in range(steps):
            entry, forget, leave, new = self.gates(torch.cat([x[:, step], hidden], 1)).chunk(4, 1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
        out: Tensor = self.head(hidden)
        return out


def test_states_that_start_from_zeros_are_pruned() -> None:
    clips = torch.randn(2, 3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = prove(ConvLSTM(), clips)
    assert found.small.get_submodule("gates").out_channels == 16
    assert found.small.get_submodule("gates").in_channels == 3 + 4
    assert found.proof.max_relative_error < 1e-12
    assert found.small(torch.randn(4, 3, 3, 7, 6)).shape == (4, 2, 7, 6)


def test_whole_numbers_stay() -> None:
    """Indices, as most of them are."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.end(s.a(x).gather(1, torch.zeros(x.shape[0], 8, 6, 6, dtype=torch.int64)))

    assert "a tensor of indices picks from it" in frozen(holds(Net(forward)))["a"]
    flags = Net(lambda s, x: s.end(s.a(x).masked_fill(torch.zeros(len(x), 8, 1, 1, dtype=torch.bool), 1.0)))
    assert "its size is set by the model's code" in frozen(holds(flags))["a"]


def test_what_is_returned_stays() -> None:
    model = Net(lambda s, x: (s.end(s.a(x)), x.new_zeros(x.shape[0], 4)))
    assert prove(model, images()).small(images(3))[1].shape == (3, 4)
    assert not DependencyGraph.from_model(model, images()).group_of("a")[0].frozen
