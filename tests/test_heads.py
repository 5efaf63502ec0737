"""Whole heads: every head of an attention is one unit, and what is left of the network is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import images
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.api import prune_channels
from fxprune.dependency import DependencyGraph
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.planning import plan_channels
from fxprune.verification import verify

HEADS, WIDTH = 4, 3


class Attention(nn.Module):
    """Queries, keys and values from one layer, and attention written out or as torch's function."""

    def __init__(self, fused: bool, channels: int = 8) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(channels, 3 * HEADS * WIDTH)
        self.proj = nn.Linear(HEADS * WIDTH, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * WIDTH**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, HEADS * WIDTH))


class Separate(nn.Module):
    """Three layers, heads folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, HEADS * WIDTH) for _ in range(3))
        self.proj = nn.Linear(HEADS * WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape

        def split(t: Tensor) -> Tensor:
            return t.view(b, n, HEADS, WIDTH).transpose(1, 2).reshape(b * HEADS, n, WIDTH)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(2), v)
        return self.proj(y.view(b, HEADS, n, WIDTH).transpose(1, 2).reshape(b, n, HEADS * WIDTH))


class Windows(nn.Module):
    """Shifted windows with a bias for each head and pair of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 3 * HEADS * WIDTH)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("index", torch.randint(0, 9, (16,)))
        self.proj = nn.Linear(HEADS * WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (-1, -1), (1, 2))
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).view(x.shape[0], 4, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1)
        y = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).flatten(2))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(y, (1, 1), (1, 2))


class Network(nn.Module):
    """A convolution, an attention beside it, and a head."""

    def __init__(self, attention: nn.Module, flat: bool = True, call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.attention = attention
        self.head = nn.Linear(8, 5)
        self.flat = flat
        self.call = (call or (lambda layer, x: layer(x)),)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x.flatten(1, 2) if self.flat else x
        x = x + self.call[0](self.attention, x)
        return self.head(x.flatten(1, -2).mean(1))


NETWORKS: dict[str, Callable[[], Network]] = {
    "written out": lambda: Network(Attention(False)),
    "fused": lambda: Network(Attention(True)),
    "separate": lambda: Network(Separate()),
    "windows": lambda: Network(Windows(), flat=False),
    "multihead": lambda: Network(
        nn.MultiheadAttention(8, HEADS, batch_first=True), call=lambda m, x: m(x, x, x, need_weights=False)[0]
    ),
    "weights": lambda: Network(nn.MultiheadAttention(8, HEADS, batch_first=True), call=lambda m, x: m(x, x, x)[0]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_whole_heads_go_exactly(name: str, ratio: float) -> None:
    model = randomize(NETWORKS[name]()).eval()
    deps = DependencyGraph.from_model(model, images())
    group = next(g for g in deps.whole_heads().prunable if g.name.startswith("attention"))
    assert group.size == HEADS
    plan = plan_channels(deps, {group.name: ratio}, heads=True)
    assert not plan.inexact
    for inputs in (images(), images(3)):
        proof = verify(model, plan, inputs)
        assert proof.exact
        assert proof.max_relative_error < 1e-12
    small = plan.apply(model)
    assert rows(small) * HEADS == rows(model) * round(HEADS * (1 - ratio))
    assert small(images(5)).shape == (5, 5)


def rows(model: nn.Module) -> int:
    """How many queries, keys and values there are together."""
    names = ("in_proj_weight", "qkv.weight", ".q.weight", ".k.weight", ".v.weight")
    return sum(p.shape[0] for name, p in model.named_parameters() if name.endswith(names))


@pytest.mark.parametrize("fused", [False, True])
def test_queries_keys_and_values_of_a_head_go_together(fused: bool) -> None:
    model = randomize(Network(Attention(fused)))
    plan = plan_channels(DependencyGraph.from_model(model, images()), {"attention.qkv": 0.5}, heads=True)
    outputs = np.array(plan.layers["attention.qkv"].outputs).reshape(3, 2, WIDTH)
    heads = outputs // WIDTH % HEADS
    assert (heads == heads[:1, :, :1]).all()
    read = np.array(plan.layers["attention.proj"].inputs).reshape(2, WIDTH) // WIDTH
    assert (read == heads[0, :, :1]).all()
    views = {str(c.args) for c in plan.changes.values() if c.target in ("reshape", "view")}
    assert any(f"3, 2, {WIDTH}" in args for args in views)


def test_the_best_heads_by_the_weights_that_read_them_stay() -> None:
    model = randomize(Network(Attention(True)))
    with torch.no_grad():
        model.get_parameter("attention.proj.weight").view(8, HEADS, WIDTH)[:, [0, 3]] *= 0.01
    plan = plan_channels(DependencyGraph.from_model(model, images()), {"attention.qkv": 0.5}, heads=True)
    assert plan.layers["attention.proj"].inputs == (3, 4, 5, 6, 7, 8)


def test_a_table_with_an_entry_for_each_head_goes_with_them() -> None:
    model = randomize(Network(Windows(), flat=False))
    small = prune_channels(model, images(), {"attention.qkv": 0.5}, heads=True)
    assert small.get_parameter("attention.table").shape == (9, 2)


def test_without_the_option_every_head_keeps_dimensions() -> None:
    model = randomize(Network(Attention(True)))
    deps = DependencyGraph.from_model(model, images())
    assert sorted(g.size for g in deps.prunable if g.name.startswith("attention")) == [2 * HEADS * WIDTH]
    plan = plan_channels(deps, {"attention.qkv": 1 / 3})
    assert not plan.inexact
    assert rows(plan.apply(model)) == 3 * HEADS * 2


def test_heads_leave_what_is_no_attention_as_it_was() -> None:
    deps = DependencyGraph.from_model(ZOO["residual"](), example_inputs("residual"))
    assert deps.whole_heads().groups == deps.groups


def test_an_attention_whose_heads_are_held_keeps_dimensions() -> None:
    class Held(nn.Module):
        """The scores of every head are an output."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 3 * HEADS * WIDTH)
            self.proj = nn.Linear(HEADS * WIDTH, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
            scores = (q @ k.transpose(-2, -1)).softmax(-1)
            return self.proj((scores @ v).transpose(1, 2).reshape(b, n, HEADS * WIDTH)), scores

    model = randomize(Held())
    plan = plan_channels(DependencyGraph.from_model(model, torch.randn(2, 4, 8)), 1 / 3, heads=True)
    assert rows(plan.apply(model)) < rows(model)
    assert verify(model, plan, torch.randn(3, 4, 8)).max_relative_error < 1e-12


@pytest.mark.parametrize("name", ["multihead_attention"])
def test_networks_shrink_by_whole_heads_in_one_call(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    small = prune_channels(model, example_inputs(name), 0.5, heads=True)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    small(*example_inputs(name, batch=3))
