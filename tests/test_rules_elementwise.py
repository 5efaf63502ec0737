from __future__ import annotations

import operator
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
    return Net(lambda s, x: s.end(function(s, s.a(x))), **members)


def two(function: Callable[[Any, Any], Any]) -> Net:
    """The function of two convolutions' outputs."""
    return Net(lambda s, x: s.end(function(s.a(x), s.c(x))), c=nn.Conv2d(3, 8, 3))


ACTIVATIONS = (
    *(nn.ReLU(), nn.ReLU6(True), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.CELU(0.5), nn.GELU("tanh"), nn.SiLU(True)),
    *(nn.Mish(), nn.Sigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Tanhshrink(), nn.Hardsigmoid(), nn.Hardswish()),
    *(nn.Hardtanh(), nn.Hardshrink(), nn.Softshrink(), nn.Softplus(), nn.Softsign(), nn.Threshold(0.1, 0.5)),
    *(nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()),
)


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_activations_pass_channels_on(layer: nn.Module) -> None:
    assert sizes(holds(one(lambda s, y: s.m(y), m=layer))) == {"a": 8, "b": 6}


@pytest.mark.parametrize("layer", [nn.RReLU(), nn.FeatureAlphaDropout()], ids=lambda m: type(m).__name__)
def test_layers_that_hand_their_mode_to_torch(layer: nn.Module) -> None:
    assert sizes(holds(one(lambda s, y: s.m(y), m=layer))) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda y: -abs(y) + 1,
        lambda y: 1 / (1 + torch.exp(-y)),
        lambda y: 2**y - y**2,
        lambda y: torch.relu(y).sqrt().add(1).log(),
        lambda y: F.hardtanh(y, min_val=-1, max_val=1),
        lambda y: torch.clamp(input=y, min=0.0, max=6.0),
        lambda y: y.clamp(-1, 1) * (y > 0) + y.masked_fill(y < 0, 0.5),
        lambda y: y * ((y > 0) & (y < 1)).float() + (y > 0).type_as(y),
        lambda y: y.to(torch.float64).to(y.dtype).contiguous().clone().detach(),
        lambda y: F.gelu(y) + F.leaky_relu(y, 0.1) + F.softplus(y, 2, 10),
        lambda y: y * torch.ones_like(y) + torch.zeros_like(y),
        lambda y: F.dropout(y, 0.5, False) + y.nan_to_num(),
        lambda y: y * torch.tensor(2.0) + torch.full((1, 1, 1, 1), 0.5),
        lambda y: y + torch.linspace(-1, 1, 6) * torch.arange(6)[:, None],
        lambda y: y.where(y > 0, -y),
    ],
)
def test_functions_of_one_value_pass_channels_on(function: Callable[[Any], Any]) -> None:
    assert sizes(holds(one(lambda s, y: function(y)))) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        operator.add,
        lambda a, b: a - 2 * b,
        lambda a, b: a * torch.sigmoid(b),
        lambda a, b: a / (b**2 + 1),
        lambda a, b: torch.add(a, b, alpha=0.5),
        lambda a, b: torch.add(input=a, other=b),
        lambda a, b: a.mul(b),
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.max(a, b),
        lambda a, b: a.min(b),
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: torch.where(condition=b > 0, input=a, other=b),
        lambda a, b: torch.lerp(a, b, 0.3),
        lambda a, b: torch.addcmul(a, b, b, value=0.5),
        lambda a, b: a.masked_fill(b < 0, 0.0),
        lambda a, b: sum([a, b, a]),
        lambda a, b: a.add_(b).relu_(),
        lambda a, b: operator.iadd(a, b),
        lambda a, b: a + b.mean((2, 3), keepdim=True),
        lambda a, b: a * b[:, :, :1, :1],
    ],
)
def test_values_that_meet_share_their_channels(function: Callable[[Any, Any], Any]) -> None:
    deps = holds(two(function))
    assert sizes(deps) == {"a": 8, "b": 6}
    assert set(deps.groups[0].producers) == {"a", "c"}


P = nn.Parameter


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda s, y: y + s.w, (1, 8, 1, 1)),
        (lambda s, y: y * s.w, (1, 8, 6, 6)),
        (lambda s, y: s.w - y, (8, 1, 1)),
        (lambda s, y: y * s.w[None, :, None, None], (8,)),
        (lambda s, y: y + s.w.view(1, -1, 1, 1), (8,)),
        (lambda s, y: y + s.w.unsqueeze(-1).unsqueeze(-1), (8,)),
        (lambda s, y: torch.addcmul(y, y, s.w), (8, 1, 1)),
        (lambda s, y: y + s.w.expand(y.shape[0], -1, -1, -1), (1, 8, 6, 6)),
        (lambda s, y: y + s.w.repeat(y.shape[0], 1, 6, 6), (1, 8, 1, 1)),
        (lambda s, y: y + s.w[0].view(1, -1, 1, 1), (4, 8)),
    ],
)
def test_parameters_that_meet_channels_are_sliced(function: Function, shape: tuple[int, ...]) -> None:
    model = one(function, w=P(torch.zeros(shape)))
    assert sizes(holds(model)) == {"a": 8, "b": 6}
    small = prove(model).small.get_parameter("w")
    assert small.shape == tuple(4 if size == 8 else size for size in shape)


@pytest.mark.parametrize("shape", [(1,), (), (6, 6), (6, 1), (1, 1, 6, 6), (1, 1, 1)])
def test_parameters_that_are_spread_over_channels_stay(shape: tuple[int, ...]) -> None:
    model = one(lambda s, y: y * s.w + s.w, w=P(torch.zeros(shape)))
    assert sizes(holds(model)) == {"a": 8, "b": 6}
    assert prove(model).small.get_parameter("w").shape == shape


def test_what_meets_channels_that_stay_stays() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.end(torch.cat([y[:, :3] + x[:, :, 1:-1, 1:-1], y[:, 3:]], 1))

    deps = holds(Net(forward))
    assert sizes(deps) == {"a": 5, "b": 6}
    assert "it meets channels that stay: the network's input" in frozen(deps)["a#2"]


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: y * s.g(y),
        lambda s, y: y * s.g(y) + s.g(y),
        lambda s, y: y * torch.sigmoid(s.g(y)).expand(-1, 8, -1, -1),
        lambda s, y: y * s.g(torch.relu(y)).repeat(1, 8, 1, 1),
    ],
)
def test_a_gate_of_one_channel_leaves_the_channels_free(function: Function) -> None:
    deps = holds(one(function, g=nn.Conv2d(8, 1, 1)))
    assert sizes(deps) == {"a": 8, "b": 6}
    assert list(frozen(deps)) == ["g"]


def test_a_constant_per_channel_holds_them() -> None:
    deps = holds(one(lambda s, y: y * torch.arange(8.0).view(1, 8, 1, 1)))
    assert sizes(deps)["b"] == 6


# In place -------------------------------------------------------------------------------------------------------------


def _discarded(s: Any, y: Tensor) -> Tensor:
    y.relu_()
    F.elu_(y)
    y.mul_(s.c(y)).clamp_(max=3)
    s.act(y)
    return y


def _slice(s: Any, y: Tensor) -> Tensor:
    y[:, :4].relu_()
    y[:, 2:6].add_(s.part(y))
    return y


def _chunks(s: Any, y: Tensor) -> Tensor:
    p, q = y.chunk(2, 1)
    p.add_(q)
    return y


def _view(s: Any, y: Tensor) -> Tensor:
    v = y.view(y.shape[0], 2, 4, 6, 6)
    v[:, 0].mul_(2)
    v[:, 1].add_(v[:, 0])
    y.flatten(2).add_(s.w)
    return y


def _fresh(s: Any, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z += y
    z.add_(y.flip(1))
    return z


def _copied(s: Any, y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    z.copy_(s.c(y))
    return z + y


def _transposed(s: Any, y: Tensor) -> Tensor:
    y.transpose_(2, 3)
    y.unsqueeze_(2)
    return y[:, :, 0]


def _constant(s: Any, y: Tensor) -> Tensor:
    y[:, 2:4] = 0
    return y


def _assigned(s: Any, y: Tensor) -> Tensor:
    y[:, :4] = s.part(y)
    return y


def _augmented(s: Any, y: Tensor) -> Tensor:
    y[:, :4] += s.part(y)
    return y


def _shifted(s: Any, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :3] = y[:, 5:]
    z[:, 3:] = y[:, :5]
    return z


def _masked(s: Any, y: Tensor) -> Tensor:
    y[y < 0] = 0
    return y


@pytest.mark.parametrize(
    "function",
    [
        _discarded,
        _slice,
        _chunks,
        _view,
        _fresh,
        _copied,
        _transposed,
        _constant,
        _assigned,
        _augmented,
        _shifted,
        _masked,
    ],
    ids=lambda f: f.__name__,
)
def test_writes_are_followed_or_hold_what_they_touch(function: Function) -> None:
    members = {"c": nn.Conv2d(8, 8, 1), "part": nn.Conv2d(8, 4, 1), "act": nn.ReLU(True), "w": P(torch.zeros(8, 1))}
    deps = holds(one(function, **members))
    assert sizes(deps)["b"] == 6


def test_writes_into_positions_leave_channels_free() -> None:
    def border(s: Any, y: Tensor) -> Tensor:
        y[:, :, 0] = 0
        y[..., -1] = y[..., 0]
        return y

    assert sizes(holds(one(border)))["b"] == 6


def test_outputs_hold_what_they_show() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = s.a(x)
        return s.end(y), y[:, :2], y.sum(1), y.shape[0]

    deps = holds(Net(forward), images())
    assert sizes(deps) == {"a": 6, "b": 6}
