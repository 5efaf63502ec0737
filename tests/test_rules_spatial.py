from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]


def one(function: Function, **members: Any) -> Net:
    """The function between the first two convolutions."""
    last = members.pop("b", nn.Conv2d(8, 6, 1))
    return Net(lambda s, x: s.end(function(s, s.a(x))), b=last, **members)


LAYERS = (
    *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, 1), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d((3, None))),
    *(nn.AdaptiveMaxPool2d(4), nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d(1), nn.ZeroPad2d(2)),
    *(nn.CircularPad2d(1), nn.ConstantPad2d(1, 2.0), nn.Upsample(scale_factor=2), nn.Upsample((9, 9), mode="bilinear")),
    *(nn.UpsamplingBilinear2d(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2)),
)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_operators_over_positions_pass_channels_on(layer: nn.Module) -> None:
    assert sizes(holds(one(lambda s, y: s.m(y), m=layer))) == {"a": 8, "b": 6}


def _unpooled(s: Any, y: Tensor) -> Tensor:
    values, indices = F.max_pool2d(y, 2, return_indices=True)
    return values + indices.to(y.dtype) * 0


def _sampled(s: Any, y: Tensor) -> Tensor:
    theta = s.theta(y.mean((2, 3))).view(-1, 2, 3)
    return F.grid_sample(y, F.affine_grid(theta, [y.shape[0], 1, 5, 5], align_corners=False), align_corners=False)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.max_pool2d(input=y, kernel_size=2, stride=1),
        lambda s, y: F.avg_pool2d(y, y.size()[2:]),
        lambda s, y: F.lp_pool2d(y, 2, 2),
        lambda s, y: F.adaptive_avg_pool2d(y, output_size=(2, 2)),
        lambda s, y: F.adaptive_max_pool2d(y, 3),
        lambda s, y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False),
        lambda s, y: F.interpolate(input=y, size=y.shape[-2:]),
        lambda s, y: F.interpolate(y, size=(y.shape[2] * 2, y.shape[1] + 1)),
        lambda s, y: F.max_pool2d(y, 2) + F.avg_pool2d(y, 2),
        lambda s, y: s.p(y)[0],
        _unpooled,
        lambda s, y: F.max_pool1d(y.flatten(2), 2).view(y.shape[0], -1, 3, 6),
        lambda s, y: F.avg_pool3d(y[:, :, None], (1, 2, 2))[:, :, 0],
    ],
)
def test_functions_over_positions_pass_channels_on(function: Function) -> None:
    assert sizes(holds(one(function, p=nn.MaxPool2d(2, return_indices=True)))) == {"a": 8, "b": 6}


def test_sampling_leaves_channels_free() -> None:
    assert sizes(holds(one(_sampled, theta=nn.Linear(8, 6)))) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda s, y: F.avg_pool3d(y[:, None], (2, 1, 1))[:, 0], 4),
        (lambda s, y: F.max_pool1d(y.flatten(2).transpose(1, 2), 2).transpose(1, 2).view(-1, 4, 6, 6), 4),
        (lambda s, y: F.interpolate(y.transpose(1, 2), size=(8, 6)).transpose(1, 2), 8),
    ],
)
def test_an_operator_over_channels_needs_them_whole(function: Function, channels: int) -> None:
    deps = holds(one(function, b=nn.Conv2d(channels, 6, 1)))
    assert "an operator over positions needs them whole" in frozen(deps)["a"]


# Reductions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.mean((2, 3)),
        lambda s, y: torch.mean(input=y, dim=[-1, -2]),
        lambda s, y: y.sum(3).sum(2),
        lambda s, y: torch.sum(y, (2, 3), dtype=torch.float64).to(y.dtype),
        lambda s, y: y.amax(dim=(2, 3)),
        lambda s, y: y.flatten(2).max(-1)[0],
        lambda s, y: y.flatten(2).max(dim=2).values,
        lambda s, y: y.flatten(2).std(-1, False),
        lambda s, y: y.flatten(2).var(dim=-1, unbiased=False),
        lambda s, y: torch.var(y, (2, 3), correction=0),
        lambda s, y: torch.var_mean(y, (2, 3))[0] + torch.var_mean(y, dim=(2, 3))[1],
        lambda s, y: y.flatten(2).logsumexp(2),
        lambda s, y: torch.prod(y.flatten(2), dim=2),
        lambda s, y: y.flatten(2).median(2)[0],
        lambda s, y: torch.norm(y, dim=(2, 3)),
        lambda s, y: y.norm(p=2, dim=(2, 3)),
        lambda s, y: (y > 0).any(3).all(2).to(y.dtype),
        lambda s, y: y.flatten(2).argmax(2).to(y.dtype),
        lambda s, y: y.mean(3, keepdim=True).mean(2, keepdim=True)[:, :, 0, 0],
    ],
)
def test_reductions_over_positions_pass_channels_on(function: Function) -> None:
    model = Net(lambda s, x: s.h(function(s, s.b(s.a(x)))))
    assert sizes(holds(model)) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.sum(axis=(2, 3)),
        lambda s, y: y.mean(axis=-1).mean(axis=-1),
        lambda s, y: y.max(axis=-1)[0].max(axis=-1)[0],
        lambda s, y: (y * y.mean(axis=(2, 3), keepdims=True)).mean((2, 3)),
    ],
)
def test_the_names_of_numpy(function: Function) -> None:
    model = Net(lambda s, x: s.h(function(s, s.b(s.a(x)))))
    assert sizes(holds(model)) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y * y.sum(1, keepdim=True),
        lambda s, y: y * torch.sigmoid(torch.sum(y, dim=1))[:, None],
        lambda s, y: y / (y.sum() + 1000),
        lambda s, y: y.view(-1, 2, 4, 6, 6).sum(2).repeat(1, 4, 1, 1),
    ],
)
def test_a_sum_over_channels_is_a_sum_over_what_is_left(function: Function) -> None:
    deps = holds(one(function))
    assert sizes(deps)["a"] == 8


def test_a_sum_over_everything_is_a_number() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.a(x)
        return s.end(y), y.sum(), (y * 2).sum((1, 2)), y.abs().sum([0, 1])

    proof = prove(Net(forward)).proof
    assert proof.exact
    assert proof.max_relative_error < 1e-10


def test_flattened_pyramids() -> None:
    def pyramid(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.out(torch.cat([F.adaptive_avg_pool2d(y, n).flatten(1) for n in (1, 2, 3)], 1))

    assert sizes(holds(Net(pyramid, out=nn.Linear(8 * 14, 5)))) == {"a": 8}


# Patches and places ---------------------------------------------------------------------------------------------------


def _back(s: Any, y: Tensor) -> Tensor:
    values, indices = s.p(y)
    return s.u(values, indices, output_size=y.size())


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2),
        _back,
        lambda s, y: F.fold(F.unfold(y, 3, padding=1), (6, 6), 3, padding=1),
        lambda s, y: s.fold(s.unfold(y) * 2),
        lambda s, y: (F.unfold(y, 3, padding=1).view(-1, 8, 9, 6, 6) * y.mean(1)[:, None, None]).sum(2),
        lambda s, y: y.unfold(2, 3, 1).mean(-1),
        lambda s, y: y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).amax(-1),
        lambda s, y: y.cumsum(2) + y.sort(3)[0],
        lambda s, y: y.topk(3, 3)[0] + y.topk(k=3, dim=-1, sorted=True).values,
        lambda s, y: y + torch.std_mean(y, (2, 3), keepdim=True)[1],
    ],
)
def test_patches_and_places_pass_channels_on(function: Function) -> None:
    members = {
        **{"p": nn.MaxPool2d(2, return_indices=True), "u": nn.MaxUnpool2d(2)},
        **{"unfold": nn.Unfold(3, padding=1), "fold": nn.Fold((6, 6), 3, padding=1)},
    }
    deps = holds(one(function, **members), exact=False)
    assert sizes(deps) == {"a": 8, "b": 6}


@pytest.mark.parametrize("groups", [1, 4])
def test_patches_become_an_image(groups: int) -> None:
    deps = holds(
        one(lambda s, y: F.fold(s.c(y.flatten(2)), (12, 12), 2, stride=2), c=nn.Conv1d(8, 32, 1, groups=groups))
    )
    assert sizes(deps) == {"a": 8, "c": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y.cumsum(1),
        lambda s, y: y.sort(1)[0],
        lambda s, y: y.topk(8, dim=1)[0],
        lambda s, y: y.cummax(1)[0],
    ],
)
def test_what_looks_along_channels_needs_them_whole(function: Function) -> None:
    assert "an operator along channels needs them whole" in frozen(holds(one(function)))["a"]


def test_where_to_sample_follows_the_batch() -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        theta = s.theta(y.mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(y, F.affine_grid(theta, y.size(), align_corners=False), align_corners=False)

    found = prove(one(forward, theta=nn.Linear(8, 6)))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert found.small(images(5)).shape == (5, 5)


# Frequencies ----------------------------------------------------------------------------------------------------------


def _spectral(s: Any, y: Tensor) -> Tensor:
    """A convolution over real and imaginary parts (Chi et al., 2020)."""
    f = torch.fft.rfft2(y, norm="ortho")
    f = torch.stack((f.real, f.imag), -1).permute(0, 1, 4, 2, 3).contiguous()
    f = s.e(f.view(y.shape[0], -1, *f.shape[3:])).relu()
    f = f.view(y.shape[0], -1, 2, *f.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
    return torch.fft.irfft2(torch.complex(f[..., 0], f[..., 1]), s=y.shape[-2:], norm="ortho")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s, y: torch.fft.irfft2(torch.fft.rfft2(y) * torch.view_as_complex(s.w), s=y.shape[2:]), {}),
        (lambda s, y: torch.fft.fftn(y, dim=(-2, -1)).abs() + torch.fft.fftshift(y, dim=(2, 3)), {}),
        (lambda s, y: torch.fft.ifft(torch.fft.fft(y, dim=2), dim=2).real + torch.fft.fftn(y, (6, 6)).imag, {}),
        (lambda s, y: torch.view_as_real(torch.fft.ifft2(y)).sum(-1), {}),
        (lambda s, y: torch.polar(y, y).conj().angle(), {}),
        (lambda s, y: torch.view_as_real(torch.complex(y, y) * 2)[..., 0], {}),
        (_spectral, {"e": 8}),
    ],
)
def test_transforms_of_positions_pass_channels_on(function: Function, expected: dict[str, int]) -> None:
    members = {"w": nn.Parameter(torch.randn(8, 6, 4, 2)), "e": nn.Conv2d(16, 16, 1)}
    found = sizes(holds(one(function, **members)))
    assert {name: found[name] for name in ("a", "b", *expected)} == {"a": 8, "b": 6, **expected}


def test_complex_weights_are_read_as_others() -> None:
    """Modes of a Fourier neural operator (Li et al., 2021)."""

    def forward(s: Any, x: Tensor) -> Tensor:
        f = torch.fft.rfft2(s.a(x))
        mixed = torch.einsum("bixy,ioxy->boxy", f, s.modes)
        return s.end(torch.fft.irfft2(mixed, s=(6, 6)))

    model = Net(forward, modes=nn.Parameter(torch.randn(8, 8, 6, 4, dtype=torch.cfloat)))
    found = prove(model, images())
    assert found.proof.max_relative_error < 1e-12
    assert found.small.get_parameter("modes").shape == (4, 4, 6, 4)


@pytest.mark.parametrize("function", [lambda s, y: torch.fft.fft(y, dim=1).real, lambda s, y: torch.fft.fftn(y).real])
def test_a_transform_of_channels_needs_them_whole(function: Function) -> None:
    assert "an operator over positions needs them whole" in frozen(holds(one(function)))["a"]
