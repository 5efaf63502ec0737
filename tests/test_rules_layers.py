from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn


def between(layer: nn.Module, first: nn.Module | None = None, last: nn.Module | None = None) -> Net:
    """The layer between a first convolution to 16 channels and a last one."""
    first = first if first is not None else nn.Conv2d(3, 16, 3)
    return Net(lambda s, x: s.end(s.m(s.a(x))), a=first, m=layer, b=last)


def after(channels: int) -> nn.Module:
    return nn.Conv2d(channels, 6, 1)


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (nn.Conv2d(16, 12, 3, stride=2, padding=1, bias=False), 12),
        (nn.Conv2d(16, 12, 3, padding=2, dilation=2), 12),
        (nn.Conv2d(16, 12, 4, padding="same", dilation=2), 12),
        (nn.Conv2d(16, 12, 3, padding=1, padding_mode="reflect"), 12),
        (nn.Conv2d(16, 12, 3, padding=1, padding_mode="circular"), 12),
        (nn.Conv2d(16, 12, (1, 3), stride=(1, 2)), 12),
        (nn.ConvTranspose2d(16, 12, 2, 2), 12),
        (nn.ConvTranspose2d(16, 12, 3, 2, 1, output_padding=1, dilation=2, bias=False), 12),
    ],
    ids=str,
)
def test_a_convolution_ends_one_group_and_starts_another(layer: nn.Module, channels: int) -> None:
    deps = holds(between(layer, last=after(channels)))
    assert sizes(deps) == {"a": 16, "m": channels, "b": 6}
    assert deps.groups[0].consumers == ("m",)


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (nn.Conv2d(16, 16, 1, groups=4), 16),
        (nn.Conv2d(16, 24, 3, groups=2, bias=False), 24),
        (nn.Conv2d(16, 8, 1, groups=8), 8),
        (nn.ConvTranspose2d(16, 12, 2, 2, groups=4), 12),
        (nn.ConvTranspose2d(16, 32, 2, groups=2), 32),
    ],
    ids=str,
)
def test_a_grouped_convolution_keeps_equally_many_in_every_block(layer: Any, channels: int) -> None:
    found = prove(between(layer, last=after(channels)), ratio={"a": 0.5, "m": 0.5 if channels > layer.groups else 0})
    assert found.proof.max_relative_error < 1e-10
    small: Any = found.small.get_submodule("m")
    assert small.groups == layer.groups
    assert small.in_channels == 8
    kept = found.plan.layers["m"]
    for side, size in ((kept.inputs, 16), (kept.outputs or tuple(range(channels)), channels)):
        assert side is not None
        blocks = [sum(i * layer.groups // size == block for i in side) for block in range(layer.groups)]
        assert len(set(blocks)) == 1
    assert found.small(images()).shape == (2, 5)


def test_blocks_choose_for_themselves() -> None:
    plan = prove(between(nn.Conv2d(16, 16, 1, groups=4), last=after(16))).plan
    inputs = plan.layers["m"].inputs
    assert inputs is not None
    assert len({tuple(i % 4 for i in inputs[k : k + 2]) for k in (0, 2, 4, 6)}) > 1


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ((nn.Conv2d(16, 18, 1, groups=2), nn.Conv2d(18, 18, 1, groups=3)), (2, 3)),
        ((nn.Conv2d(16, 12, 1, groups=4), nn.Conv2d(12, 12, 1, groups=6)), (4, 6)),
    ],
)
def test_blocks_that_cross_keep_what_both_allow(layers: tuple[nn.Module, nn.Module], groups: tuple[int, int]) -> None:
    model = between(nn.Sequential(*layers), last=after(layers[1].out_channels))  # type: ignore[arg-type]
    deps = holds(model)
    assert sizes(deps)["m.0"] == layers[0].out_channels


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 4, 1, groups=4), nn.ConvTranspose2d(16, 32, 2, groups=16)], ids=str)
def test_blocks_of_one_channel_all_stay(layer: Any) -> None:
    deps = holds(between(layer, last=after(layer.out_channels)))
    assert sizes(deps)["b"] == 6


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (nn.Conv2d(16, 16, 3, groups=16), 16),
        (nn.Conv2d(16, 48, 3, groups=16, bias=False), 48),
        (nn.ConvTranspose2d(16, 16, 2, 2, groups=16), 16),
        (nn.Sequential(nn.Conv2d(16, 32, 3, groups=16), nn.BatchNorm2d(32), nn.PReLU(32)), 32),
    ],
    ids=["plain", "multiplier", "transposed", "followed"],
)
def test_a_depthwise_convolution_goes_with_its_input(layer: nn.Module, channels: int) -> None:
    deps = holds(between(layer, last=after(channels)))
    assert sizes(deps) == {"a": 16, "b": 6}


def test_a_depthwise_convolution_tells_the_truth_afterwards() -> None:
    small: Any = prove(between(nn.Conv2d(16, 32, 3, groups=16), last=after(32))).small.get_submodule("m")
    assert (small.in_channels, small.out_channels, small.groups, tuple(small.weight.shape)) == (8, 16, 8, (16, 1, 3, 3))


def test_the_inputs_of_a_depthwise_convolution_of_the_image_stay() -> None:
    deps = holds(Net(lambda s, x: s.end(s.a(x)), a=nn.Conv2d(3, 9, 3, groups=3), b=nn.Conv2d(9, 6, 3)))
    assert sizes(deps) == {"b": 6}
    assert "the network's input has a fixed number of channels" in frozen(deps)["a"]


SEQUENCES = nn.Sequential(
    nn.Conv1d(3, 8, 3),
    nn.BatchNorm1d(8),
    nn.Conv1d(8, 12, 3, groups=4, dilation=2),
    nn.ConvTranspose1d(12, 8, 3),
    nn.AdaptiveAvgPool1d(2),
    nn.Flatten(),
    nn.Linear(16, 5),
)
VOLUMES = nn.Sequential(
    nn.Conv3d(3, 8, 3, padding=1),
    nn.BatchNorm3d(8),
    nn.Conv3d(8, 12, 1, groups=2),
    nn.ConvTranspose3d(12, 8, 2, 2),
    nn.AdaptiveAvgPool3d(1),
    nn.Flatten(),
    nn.Linear(8, 5),
)
VECTORS = nn.Sequential(
    nn.Linear(10, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 12, bias=False), nn.Linear(12, 5)
)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (SEQUENCES, torch.randn(2, 3, 16), {"0": 8, "2": 12, "3": 8}),
        (VOLUMES, torch.randn(2, 3, 4, 4, 4), {"0": 8, "2": 12, "3": 8}),
        (VECTORS, torch.randn(4, 10), {"0": 16, "3": 12}),
        (nn.Sequential(VECTORS[0], VECTORS[3], VECTORS[4]), torch.randn(2, 4, 3, 10), {"0": 16, "1": 12}),
        (nn.Sequential(VECTORS[0], VECTORS[3], VECTORS[4]), torch.randn(10), {"0": 16, "1": 12}),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)), torch.randn(3, 8, 8), {"0": 8}),
    ],
    ids=["1d", "3d", "vectors", "linear over tokens", "one vector", "one image"],
)
def test_layers_of_every_rank(model: nn.Module, inputs: Tensor, expected: dict[str, int]) -> None:
    assert sizes(holds(model, inputs)) == expected


def test_a_layer_of_one_channel_stays() -> None:
    layers = (nn.Conv2d(3, 1, 3), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(16, 5))
    deps = holds(nn.Sequential(*layers))
    assert sizes(deps) == {"1": 8}
    assert all(reason.startswith("it is the only channel") for reason in frozen(deps).values())


W = nn.Parameter


def _expert(s: Any, y: Tensor) -> Tensor:
    shares = torch.softmax(s.share, 0)
    return F.conv2d(y, sum(shares[i] * s.e[i].weight for i in range(2)), padding=1)  # type: ignore[arg-type]


def _standardized(s: Any, y: Tensor) -> Tensor:
    return F.conv2d(y, s.c.weight * s.scale.view(-1, 1, 1, 1), s.c.bias, groups=s.c.groups)


@pytest.mark.parametrize(
    ("function", "members", "expected"),
    [
        (lambda s, y: F.conv2d(y, s.w, s.v), {"w": W(torch.zeros(8, 8, 1, 1)), "v": W(torch.zeros(8))}, {"w": 8}),
        (lambda s, y: F.conv2d(input=y, weight=s.w, padding=1), {"w": W(torch.zeros(8, 8, 3, 3))}, {"w": 8}),
        (lambda s, y: torch.conv2d(y, s.w[0]), {"w": W(torch.zeros(2, 8, 8, 1, 1))}, {"w": 8}),
        (lambda s, y: F.conv_transpose2d(y, s.w), {"w": W(torch.zeros(8, 8, 2, 2))}, {"w": 8}),
        (lambda s, y: F.conv2d(y, s.c.weight.flip(2, 3)), {"c": nn.Conv2d(8, 8, 3)}, {"c": 8}),
        (_standardized, {"c": nn.Conv2d(8, 8, 1), "scale": W(torch.zeros(8))}, {"c": 8}),
        (
            _expert,
            {"e": nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]), "share": W(torch.zeros(2))},
            {"e.0": 8},
        ),
    ],
    ids=["bias", "keywords", "selected", "transposed", "flipped", "scaled", "mixed"],
)
def test_functional_convolutions(
    function: Callable[[Any, Any], Any], members: dict[str, Any], expected: dict[str, int]
) -> None:
    found = sizes(holds(Net(lambda s, x: s.end(function(s, s.a(x))), **members)))
    assert {name: found.get(name) for name in expected} == expected
    assert found["a"] == 8


def test_every_parameter_behind_a_weight_is_a_producer() -> None:
    def joined(s: Any, x: Tensor) -> Tensor:
        return s.end(F.conv2d(s.a(x), torch.cat([s.c.weight, s.d.weight])))

    deps = holds(Net(joined, c=nn.Conv2d(8, 4, 1), d=nn.Conv2d(8, 4, 1)))
    assert sizes(deps) == {"a": 8, "c": 4, "d": 4, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.conv2d(y, s.c.weight, groups=y.size(1) // s.c.weight.shape[1]),
        lambda s, y: F.conv2d(y, s.c.weight, padding=s.c.weight.size(3) // 2, groups=2),
        lambda s, y: F.conv2d(y, s.c.weight, groups=2) * s.c.weight.sum(),
        lambda s, y: s.c(y) * s.c.weight.abs().amax((1, 2, 3)).view(1, -1, 1, 1),
    ],
)
def test_a_grouped_weight_that_is_a_value_as_well(function: Callable[[Any, Any], Any]) -> None:
    found = prove(Net(lambda s, x: s.end(function(s, s.a(x))), c=nn.Conv2d(8, 8, 1, groups=2)))
    assert sizes(found.deps) == {"a": 4, "c": 8, "b": 6}
    assert not found.proof.exact or found.proof.max_relative_error < 1e-10


@pytest.mark.parametrize("groups", [2, 8])
def test_a_scaled_grouped_weight_follows(groups: int) -> None:
    layer = nn.Conv2d(8, 8, 3, groups=groups)
    holds(Net(lambda s, x: s.end(_standardized(s, s.a(x))), c=layer, scale=W(torch.zeros(8))))


def test_a_kernel_that_the_network_computes() -> None:
    def dynamic(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        b, c, h, w = y.shape
        kernel = s.kernel(y.mean((2, 3))).view(b * c, 1, 3, 3)
        return s.end(F.conv2d(y.reshape(1, b * c, h, w), kernel, groups=b * c, padding=1).view(b, c, h, w))

    deps = holds(Net(dynamic, kernel=nn.Linear(8, 72)))
    assert sizes(deps)["b"] == 6


@pytest.mark.parametrize(
    ("function", "members"),
    [
        (lambda s, y: F.linear(y, s.w, s.v), {"w": W(torch.zeros(5, 6)), "v": W(torch.zeros(5))}),
        (lambda s, y: F.linear(input=y, weight=s.w), {"w": W(torch.zeros(5, 6))}),
        (lambda s, y: F.linear(y, s.h.weight * 2, s.h.bias), {}),
        (lambda s, y: s.h(F.relu(F.linear(F.linear(y, s.w), s.w.t()))), {"w": W(torch.zeros(4, 6))}),
        (lambda s, y: F.linear(F.normalize(y), F.normalize(s.w)), {"w": W(torch.zeros(5, 6))}),
    ],
)
def test_functional_linear_layers(function: Callable[[Any, Any], Any], members: dict[str, Any]) -> None:
    deps = holds(Net(lambda s, x: function(s, s.b(s.a(x)).mean((2, 3))), **members))
    assert {"a": 8, "b": 6}.items() <= sizes(deps).items()


def test_the_weight_of_a_linear_layer_may_be_a_vector() -> None:
    deps = holds(Net(lambda s, x: F.linear(s.b(s.a(x)).mean((2, 3)), s.w), w=W(torch.zeros(6))))
    assert sizes(deps)["a"] == 8


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.end(s.a(input=x)),
        lambda s, x: s.h(input=s.b(s.a(x)).mean((2, 3))),
        lambda s, x: s.end(s.act(input=s.norm(input=s.a(x)))),
        lambda s, x: s.end(s.pool(input=s.a(x))),
        lambda s, x: s.flat(input=s.b(s.a(x))).view(x.shape[0], 6, -1).mean(2) @ s.h.weight.t(),
        lambda s, x: s.end(s.drop(input=s.a(x))),
    ],
    ids=["convolution", "linear", "norm", "pool", "flatten", "dropout"],
)
def test_layers_may_be_called_with_keywords(function: Callable[[Any, Any], Any]) -> None:
    members = {"act": nn.ReLU(), "norm": nn.BatchNorm2d(8), "pool": nn.MaxPool2d(2, 1), "flat": nn.Flatten()}
    deps = holds(Net(function, **members, drop=nn.Dropout()))
    assert sizes(deps) == {"a": 8, "b": 6}


def test_a_transposed_convolution_may_be_told_its_output_size() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.end(s.up(y, output_size=x.shape[2:]) + s.up(y, output_size=s.c(x).size()))

    deps = holds(Net(forward, up=nn.ConvTranspose2d(8, 8, 3), c=nn.Conv2d(3, 8, 1)))
    assert sizes(deps) == {"a": 8, "up": 8, "b": 6, "c": 8}


def test_layers_that_share_a_weight_share_their_channels() -> None:
    first, second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
    second.weight = first.weight
    found = prove(Net(lambda s, x: s.end(s.second(F.relu(s.first(s.a(x))))), first=first, second=second))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert found.small.get_parameter("first.weight") is found.small.get_parameter("second.weight")
    assert found.proof.max_relative_error < 1e-10


def test_a_hooked_or_parametrized_layer_is_opaque() -> None:
    hooked = Net(lambda s, x: s.end(s.a(x)))
    hooked.b.register_forward_hook(lambda module, args, out: out * 2)
    assert "a" in frozen(holds(Net(lambda s, x: s.end(s.c(s.a(x))), c=_hooked())))
    scaled = nn.Conv2d(8, 8, 1)
    nn.utils.parametrizations.weight_norm(scaled)
    deps = holds(Net(lambda s, x: s.end(s.c(s.a(x))), c=scaled))
    assert "c (ParametrizedConv2d) is parametrized" in frozen(deps)["a"]


def _hooked() -> nn.Module:
    layer = nn.Conv2d(8, 8, 1)
    layer.register_forward_hook(lambda module, args, out: out * 2)
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_and_layout_stay(dtype: torch.dtype, layout: Any) -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 5, 3))
    model = nn.Sequential(*layers).to(dtype=dtype, memory_format=layout)
    found = prove(model, images().to(dtype))
    assert found.proof.max_relative_error < 1e-10
    for parameter in found.small.parameters():
        assert parameter.dtype is dtype
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=layout)


def test_every_pair_of_channels_of_two_inputs() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).permute(0, 2, 3, 1)
        return s.end(s.m(y, s.c(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    found = prove(Net(forward, c=nn.Conv2d(3, 4, 3), m=nn.Bilinear(8, 4, 8)))
    assert sizes(found.deps) == {"a": 8, "c": 4, "m": 8, "b": 6}
    small: Any = found.small.get_submodule("m")
    assert (small.in1_features, small.in2_features, small.out_features) == (4, 2, 4)
    assert found.proof.max_relative_error < 1e-10


@pytest.mark.parametrize(
    ("function", "members"),
    [
        (lambda s, y: s.k(y[:, None])[:, 0], {"k": nn.Conv3d(1, 1, 3, padding=1)}),
        (lambda s, y: s.k(y.mean((2, 3))[:, None]).view(-1, 8, 1, 1) * y, {"k": nn.Conv1d(1, 1, 3, padding=1)}),
        (
            lambda s, y: F.conv1d(y.mean((2, 3))[:, None], s.w, padding=2).view(-1, 8, 1, 1) * y,
            {"w": W(torch.zeros(1, 1, 5))},
        ),
    ],
)
def test_a_layer_that_slides_over_channels_is_inexact(function: Any, members: dict[str, Any]) -> None:
    found = prove(Net(lambda s, x: s.end(function(s, s.a(x))), **members))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert len(found.proof.inexact) == 1
    assert prove(Net(lambda s, x: s.end(function(s, s.a(x))), **members), ratio={"b": 0.5}).proof.exact


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(1, 1, 3, stride=2), nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")],
    ids=str,
)
def test_a_layer_that_slides_past_channels_needs_them_whole(layer: nn.Module) -> None:
    deps = holds(Net(lambda s, x: (s.end(s.a(x)), s.k(s.a(x).mean((2, 3))[:, None])), k=layer))
    assert "a convolution slides over the dimension" in frozen(deps)["a"]


@pytest.mark.parametrize(
    ("layer", "prunable"),
    [
        (torchvision.ops.DeformConv2d(8, 8, 3, padding=1), {"a": 8, "m": 8, "b": 6}),
        (torchvision.ops.DeformConv2d(8, 8, 3, padding=1, groups=2), {"a": 4, "m": 8, "b": 6}),
        (torchvision.ops.DeformConv2d(8, 8, 3, padding=1, groups=8), {"b": 6}),
    ],
    ids=str,
)
def test_a_deformable_convolution_holds_its_offsets_alone(layer: nn.Module, prunable: dict[str, int]) -> None:
    deps = holds(Net(lambda s, x: s.end(s.m(s.a(x), s.o(x))), m=layer, o=nn.Conv2d(3, 18, 3), b=nn.Conv2d(8, 6, 1)))
    assert sizes(deps) == prunable


BLURS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "made": lambda s, y: torch.ones(y.shape[1], 1, 3, 3),
    "made of its type": lambda s, y: y.new_ones(8, 1, 3, 3),
    "repeated": lambda s, y: s.f.repeat(y.shape[1], 1, 1, 1),
    "expanded": lambda s, y: s.f.expand(8, -1, -1, -1),
    "flat": lambda s, y: s.flat[None, None].repeat([y.shape[1], 1, 1, 1]).flip(2),
    "standardised": lambda s, y: s.w - s.w.mean((1, 2, 3), keepdim=True),
    "twice as many": lambda s, y: torch.cat([s.w, s.w]) * 2,
}


@pytest.mark.parametrize("name", BLURS)
def test_a_depthwise_convolution_whose_weight_is_computed(name: str) -> None:
    """As of a blur before every step down (Zhang, 2019, arXiv:1904.11486)."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.end(F.conv2d(y, BLURS[name](s, y), padding=1, groups=y.shape[1])[:, :8])

    members = {"f": torch.rand(1, 1, 3, 3), "flat": torch.rand(3, 3), "w": nn.Parameter(torch.randn(8, 1, 3, 3))}
    found = prove(Net(forward, **members), images())
    widths = {n: size for n, size in sizes(found.deps).items() if n in "ab"}
    assert widths == {"a": 4 if name == "twice as many" else 8, "b": 6}
    assert found.small(images(3, height=10)).shape == (3, 5)
    assert found.proof.max_relative_error < 1e-12
