"""Blocks as authors write them, of families that the reference networks do not hold: each is pruned and proven."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

from fxprune.verification import verify

P = nn.Parameter
C = nn.Conv2d


def block(forward: Callable[[Any, Any], Any], channels: int = 8, **members: Any) -> Net:
    """A block between a convolution to 8 channels and one that reads what the block makes."""
    return Net(lambda s, x: s.end(forward(s, s.a(x))), b=C(channels, 6, 1), **members)


# Detectors ------------------------------------------------------------------------------------------------------------


def _pyramid_pooling(s: Any, x: Tensor) -> Tensor:
    y = [s.enter(x)]
    y.extend(F.max_pool2d(y[-1], 5, 1, 2) for _ in range(3))
    return s.leave(torch.cat(y, 1))


def _partial_stages(s: Any, x: Tensor) -> Tensor:
    y = list(s.enter(x).chunk(2, 1))
    y.extend(y[-1] + layer(y[-1]) for layer in s.inner)
    return s.leave(torch.cat(y, 1))


def _anchor_free_head(s: Any, x: Tensor) -> Tensor:
    maps = [torch.cat((s.box(y), s.kind(y)), 1) for y in (x, F.max_pool2d(x, 2))]
    box, kind = torch.cat([y.view(y.shape[0], 35, -1) for y in maps], 2).split((32, 3), 1)
    b, _, n = box.shape
    bins = s.bins(box.view(b, 4, 8, n).transpose(2, 1).softmax(1)).view(b, 4, n)
    return torch.cat((bins, kind.sigmoid()), 1)


def _packed_attention(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q, k, v = s.qkv(x).view(b, 2, 8, h * w).split([2, 2, 4], 2)
    shares = ((q.transpose(-2, -1) @ k) * 2**-0.5).softmax(-1)
    return s.leave((v @ shares.transpose(-2, -1)).view(b, c, h, w) + s.near(v.reshape(b, c, h, w)))


def _weighted_fusion(s: Any, x: Tensor) -> Tensor:
    w = F.relu(s.w)
    y = torch.stack([x, s.leave(x)], dim=-1)
    return (y * (w / (w.sum() + 1e-4))).sum(dim=-1) + w[0] * x + w[1] * s.enter(x)


def _focus(s: Any, x: Tensor) -> Tensor:
    return s.leave(torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1))


# Gates ----------------------------------------------------------------------------------------------------------------


def _attention_gate(s: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(s.norm(s.psi(F.relu(s.g(F.max_pool2d(x, 3, 1, 1)) + s.x(x)))))


def _neighbours(s: Any, x: Tensor) -> Tensor:
    y = s.k(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
    return x * y.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


def _channels_and_places(s: Any, x: Tensor) -> Tensor:
    gates = (s.mlp(p.flatten(1)) for p in (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)))
    x = x * torch.sigmoid(sum(gates))[:, :, None, None].expand_as(x)
    y = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
    return x * torch.sigmoid(s.places(y)).expand(-1, 8, -1, -1)


def _rows_and_columns(s: Any, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
    rows, columns = torch.split(F.hardswish(s.enter(y)), [h, w], dim=2)
    return x * s.g(columns.permute(0, 1, 3, 2)).sigmoid() * s.x(rows).sigmoid()


def _context(s: Any, x: Tensor) -> Tensor:
    norm = (x.pow(2).sum((2, 3), keepdim=True) + 1e-5).sqrt() * s.alpha
    return x * (1 + torch.tanh(norm * (s.gamma / (norm.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())))


def _selective_kernels(s: Any, x: Tensor) -> Tensor:
    y = torch.stack([s.enter(x), s.leave(x)], 1)
    gate = s.up(F.relu(s.down(y.sum(1).mean((2, 3))))).view(-1, 2, x.shape[1], 1, 1)
    return (y * gate.softmax(1)).sum(1)


def _split_attention(s: Any, x: Tensor) -> Tensor:
    y = s.wide(x)
    b, c = y.shape[:2]
    parts = torch.split(y, c // 2, dim=1)
    gate = s.up(F.relu(s.down(sum(parts).mean((2, 3))))).view(b, 1, 2, -1)  # type: ignore[union-attr]
    gates = torch.split(gate.transpose(1, 2).softmax(1).reshape(b, -1, 1, 1), c // 2, dim=1)
    return sum(g * p for g, p in zip(gates, parts, strict=True))  # type: ignore[return-value]


def _shuffled_gates(s: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    p, q = x.reshape(b * 2, -1, h, w).chunk(2, dim=1)
    p = p * torch.sigmoid(s.cw * p.mean((2, 3), keepdim=True))
    q = q * torch.sigmoid(s.sw * s.gn(q))
    y = torch.cat([p, q], 1).reshape(b, 2, -1, h, w)
    return y.permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


# Kernels --------------------------------------------------------------------------------------------------------------


def _involution(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    kernel = s.kernel(F.relu(s.down2(x))).view(b, 2, 9, h, w).unsqueeze(2)
    return (kernel * F.unfold(x, 3, padding=1).view(b, 2, c // 2, 9, h, w)).sum(3).view(b, -1, h, w)


def _reassembly(s: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    kernel = F.pixel_shuffle(s.kernel4(x), 2).softmax(1)
    patches = F.unfold(F.interpolate(x, scale_factor=2), 3, dilation=2, padding=2).view(b, c, 9, h * 2, w * 2)
    return torch.einsum("bkhw,bckhw->bchw", kernel, patches)


def _standardized(s: Any, x: Tensor) -> Tensor:
    w = s.leave.weight - s.leave.weight.mean(dim=(1, 2, 3), keepdim=True)
    return F.conv2d(x, w / w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1).expand_as(w), s.leave.bias, padding=1)


def _standardized_by_norm(s: Any, x: Tensor) -> Tensor:
    w = F.batch_norm(s.leave.weight.reshape(1, 8, -1), None, None, training=True, momentum=0.0, eps=1e-6)
    return F.conv2d(x, w.reshape_as(s.leave.weight), s.leave.bias, padding=1)


def _coordinates(s: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(b, 1, h, w)
    columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).repeat(b, 1, h, 1)
    return s.ten(torch.cat([x, rows, columns], 1))


def _pointed_at(s: Any, x: Tensor) -> Tensor:
    return s.deformable(x, s.offset(x), s.mask(x).sigmoid())


def _pooled_and_back(s: Any, x: Tensor) -> Tensor:
    y, where = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(s.enter(y), where, 2, output_size=x.size())


def _ghost(s: Any, x: Tensor) -> Tensor:
    y = s.part(x)
    return torch.cat([y, s.cheap(y)], 1)[:, :7]


def _shift_in_time(s: Any, x: Tensor) -> Tensor:
    y = x.unflatten(0, (-1, 2))
    before = F.pad(y[:, 1:, :2], (0, 0, 0, 0, 0, 0, 0, 1))
    after = F.pad(y[:, :-1, 2:4], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([before, after, y[:, :, 4:]], 2).flatten(0, 1)


LAYERS = {
    **{"enter": C(8, 8, 1), "leave": C(8, 8, 3, padding=1), "norm": nn.BatchNorm2d(1), "psi": C(4, 1, 1)},
    **{"g": C(8, 4, 1), "x": C(8, 4, 1)},
}


def _with(**layers: Any) -> dict[str, Any]:
    return {**LAYERS, **layers}


@pytest.mark.parametrize(
    ("forward", "layers", "channels", "inexact"),
    [
        (_pyramid_pooling, {"enter": C(8, 4, 1), "leave": C(16, 8, 1)}, 8, False),
        (
            _partial_stages,
            {"inner": nn.ModuleList([C(4, 4, 1), C(4, 4, 1)]), "enter": C(8, 8, 1), "leave": C(16, 8, 1)},
            8,
            False,
        ),
        (_packed_attention, {"qkv": C(8, 16, 1), "near": C(8, 8, 3, 1, 1, groups=8), "leave": C(8, 8, 1)}, 8, False),
        (_weighted_fusion, _with(w=P(torch.ones(2))), 8, False),
        (_focus, {"leave": C(32, 8, 1)}, 8, False),
        (_attention_gate, _with(), 8, False),
        (_neighbours, {"k": nn.Conv1d(1, 1, 3, padding=1, bias=False)}, 8, True),
        (_channels_and_places, {"mlp": nn.Linear(8, 8), "places": C(2, 1, 3, padding=1)}, 8, True),
        (_rows_and_columns, {"enter": C(8, 4, 1), "g": C(4, 8, 1), "x": C(4, 8, 1)}, 8, False),
        (_context, {"alpha": P(torch.ones(1, 8, 1, 1)), "gamma": P(torch.ones(1, 8, 1, 1))}, 8, True),
        (_selective_kernels, _with(down=nn.Linear(8, 4), up=nn.Linear(4, 16)), 8, False),
        (_split_attention, {"wide": C(8, 16, 1, groups=2), "down": nn.Linear(8, 4), "up": nn.Linear(4, 16)}, 8, False),
        (
            _shuffled_gates,
            {"cw": P(torch.ones(1, 2, 1, 1)), "sw": P(torch.ones(1, 2, 1, 1)), "gn": nn.GroupNorm(2, 2)},
            8,
            False,
        ),
        (_involution, {"down2": C(8, 4, 1), "kernel": C(4, 18, 1)}, 8, False),
        (_reassembly, {"kernel4": C(8, 36, 1)}, 8, False),
        (_standardized, _with(), 8, True),
        (_standardized_by_norm, _with(), 8, True),
        (_coordinates, {"ten": C(10, 8, 1)}, 8, False),
        (
            _pointed_at,
            {
                "deformable": torchvision.ops.DeformConv2d(8, 8, 3, padding=1),
                "offset": C(8, 18, 1),
                "mask": C(8, 9, 1),
            },
            8,
            False,
        ),
        (_pooled_and_back, _with(), 8, False),
        (_ghost, {"part": C(8, 4, 1), "cheap": C(4, 4, 3, padding=1, groups=4)}, 7, False),
        (_shift_in_time, {}, 8, False),
    ],
    ids=lambda v: v.__name__.strip("_") if callable(v) and not isinstance(v, nn.Module) else "",
)
def test_a_block_leaves_the_channels_around_it_free(
    forward: Callable[[Any, Any], Any], layers: dict[str, Any], channels: int, inexact: bool
) -> None:
    deps = holds(block(forward, channels, **layers), exact=not inexact)
    found = sizes(deps)
    assert found["b"] == 6
    assert sum(size for name, size in found.items() if name.partition("#")[0] == "a") >= 4
    assert "a" not in frozen(deps)


def test_a_detection_head_keeps_its_outputs_and_leaves_its_layers_free() -> None:
    box, kind = (nn.Sequential(C(8, 12, 3, padding=1), nn.SiLU(), C(12, n, 1)) for n in (32, 3))
    model = Net(lambda s, x: _anchor_free_head(s, s.a(x)), b=None, h=None, box=box, kind=kind, bins=C(8, 1, 1))
    found = sizes(holds(model, exact=False))
    assert {"a": 8, "box.0": 12, "kind.0": 12}.items() <= found.items()


def old_style(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A layer whose weight a hook computes and leaves as a plain attribute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(C(8, 8, 1))


@pytest.mark.parametrize(
    ("function", "members"),
    [
        (lambda s, y: s.m(y), {"m": nn.utils.parametrizations.weight_norm(C(8, 8, 1))}),
        (lambda s, y: s.m(y), {"m": nn.utils.parametrizations.spectral_norm(C(8, 8, 1))}),
        (lambda s, y: s.m(y), {"m": old_style(nn.utils.weight_norm)}),
        (lambda s, y: s.m(y), {"m": old_style(nn.utils.spectral_norm)}),
        (lambda s, y: torch.renorm(y, 2, 1, 1.0), {}),
        (lambda s, y: y * y.quantile(0.5, dim=1, keepdim=True), {}),
        (lambda s, y: y * torch.histc(y).sum(), {}),
        (lambda s, y: y + s.m(torch.arange(4).view(1, 4)).view(1, 8, 1, 1), {"m": nn.EmbeddingBag(40, 8)}),
    ],
)
def test_what_has_no_rule_freezes_and_the_rest_is_pruned(function: Any, members: dict[str, Any]) -> None:
    deps = holds(block(function, **members))
    assert sizes(deps) == {"b": 6}
    assert "a" in frozen(deps)


@pytest.mark.parametrize("inputs", [images(3), images(1), images(height=12, width=10)], ids=["3", "1", "12x10"])
@pytest.mark.parametrize("forward", [_split_attention, _coordinates, _shuffled_gates, _involution, _pooled_and_back])
def test_other_inputs_than_the_example(forward: Callable[[Any, Any], Any], inputs: Tensor) -> None:
    layers = {
        **_with(wide=C(8, 16, 1, groups=2), down=nn.Linear(8, 4), up=nn.Linear(4, 16), ten=C(10, 8, 1)),
        **{"cw": P(torch.ones(1, 2, 1, 1)), "sw": P(torch.ones(1, 2, 1, 1)), "gn": nn.GroupNorm(2, 2)},
        **{"down2": C(8, 4, 1), "kernel": C(4, 18, 1)},
    }
    model = block(forward, **layers)
    plan = prove(model).plan
    assert verify(model, plan, inputs).max_relative_error < 1e-10
