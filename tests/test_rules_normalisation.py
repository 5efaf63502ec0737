from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, prove, sizes
from torch import Tensor, nn

Function = Callable[[Any, Any], Any]
P = nn.Parameter


def one(function: Function, **members: Any) -> Net:
    """The function between the first two convolutions."""
    return Net(lambda s, x: s.end(function(s, s.a(x))), **members)


def vector(size: int = 8) -> nn.Parameter:
    return P(torch.zeros(size))


# Exact ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "attribute"),
    [
        (nn.BatchNorm2d(8), "num_features"),
        (nn.BatchNorm2d(8, affine=False), "num_features"),
        (nn.BatchNorm2d(8, track_running_stats=False), "num_features"),
        (nn.InstanceNorm2d(8), "num_features"),
        (nn.InstanceNorm2d(8, affine=True), "num_features"),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), "num_features"),
        (nn.GroupNorm(8, 8), "num_channels"),
        (nn.PReLU(8), "num_parameters"),
    ],
    ids=str,
)
def test_layers_with_an_entry_for_each_channel_follow(layer: nn.Module, attribute: str) -> None:
    model = one(lambda s, y: s.m(y), m=layer)
    deps = holds(model)
    assert sizes(deps) == {"a": 8, "b": 6}
    small: Any = prove(model).small.get_submodule("m")
    assert getattr(small, attribute) == 4
    assert all(t.shape[0] == 4 for t in [*small.parameters(), *small.buffers()] if t.dim())


def test_a_group_norm_of_one_channel_a_group_keeps_one_channel_a_group() -> None:
    small: Any = prove(one(lambda s, y: s.m(y), m=nn.GroupNorm(8, 8))).small.get_submodule("m")
    assert (small.num_groups, small.num_channels) == (4, 4)


def test_one_slope_for_all_stays() -> None:
    small: Any = prove(one(lambda s, y: s.m(y), m=nn.PReLU())).small.get_submodule("m")
    assert small.num_parameters == 1


@pytest.mark.parametrize(
    ("function", "members"),
    [
        (lambda s, y: F.batch_norm(y, s.m, s.v, s.w, s.k, s.training), "mvwk"),
        (lambda s, y: F.batch_norm(input=y, running_mean=s.m, running_var=s.v), "mv"),
        (lambda s, y: F.batch_norm(y, s.m, s.v, weight=s.w, eps=0.1), "mvw"),
        (lambda s, y: F.instance_norm(y, weight=s.w, bias=s.k), "wk"),
        (lambda s, y: F.instance_norm(y), ""),
        (lambda s, y: F.prelu(y, s.w), "w"),
        (lambda s, y: torch.prelu(y, s.w), "w"),
        (lambda s, y: F.prelu(input=y, weight=s.w), "w"),
        (lambda s, y: F.group_norm(y, 8, s.w, s.k), "wk"),
        (lambda s, y: F.group_norm(y, num_groups=y.shape[1]), ""),
        (lambda s, y: F.layer_norm(y, (6, 6)), ""),
        (lambda s, y: F.layer_norm(y, y.shape[2:]), ""),
        (lambda s, y: F.rms_norm(y, [6]), ""),
        (lambda s, y: F.rms_norm(y, [6], None, 1e-6) + torch.rms_norm(y, [6], eps=1e-3), ""),
        (lambda s, y: torch.layer_norm(y, [6, 6], None, None, 1e-6), ""),
    ],
)
def test_functional_norms_of_single_channels(function: Function, members: str) -> None:
    deps = holds(one(function, **{name: vector() for name in members}))
    assert sizes(deps) == {"a": 8, "b": 6}


@pytest.mark.parametrize("layer", [nn.LayerNorm((6, 6)), nn.LayerNorm(6, bias=False), nn.RMSNorm(6)], ids=str)
def test_a_layer_norm_over_positions_leaves_channels_alone(layer: nn.Module) -> None:
    model = one(lambda s, y: s.m(y), m=layer)
    assert sizes(holds(model)) == {"a": 8, "b": 6}
    assert prove(model).small.get_parameter("m.weight").shape == layer.weight.shape


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: F.normalize(y),
        lambda s, y: F.normalize(input=y, p=1, dim=1),
        lambda s, y: F.normalize(y.flatten(2), dim=-1).view(-1, 8, 6, 6),
        lambda s, y: y / y.norm(dim=1, keepdim=True),
        lambda s, y: y / y.norm(2, 1, True),
        lambda s, y: y / y.norm(p=1, dim=1, keepdim=True),
        lambda s, y: y / torch.norm(y, dim=1)[:, None],
        lambda s, y: y / torch.linalg.vector_norm(y, dim=1, keepdim=True),
        lambda s, y: y * torch.rsqrt(y.pow(2).sum(1, keepdim=True) + 1),
        lambda s, y: y / (y.abs().sum([1, 2, 3], keepdim=True) + 1),
        lambda s, y: y * torch.linalg.vector_norm(y, 0, dim=1, keepdim=True),
        lambda s, y: y * torch.linalg.vector_norm(y, float("inf"), dim=1, keepdim=True),
        lambda s, y: y * torch.norm(y, p=0, dim=1)[:, None],
        lambda s, y: y * torch.linalg.norm(y, "nuc", dim=(1, 2), keepdim=True),
        lambda s, y: y * torch.linalg.norm(y, 2, dim=(1, 2), keepdim=True),
        lambda s, y: y * torch.linalg.matrix_norm(y.flatten(2))[:, None, None, None],
        lambda s, y: F.normalize(y, p=0) + F.normalize(y, p=float("inf")),
        lambda s, y: y * torch.count_nonzero(F.relu(y), 1)[:, None],
        lambda s, y: y * y.nansum(1, keepdim=True) + y.norm() * y,
        lambda s, y: torch.exp(y) / torch.exp(y).sum(1, keepdim=True),
        lambda s, y: y * F.cosine_similarity(y, y.relu())[:, None],
        lambda s, y: y * s.cosine(y, y.relu())[..., None],
        lambda s, y: torch.cdist(y.flatten(2).mT, y.relu().flatten(2).mT).sum(2).view(-1, 1, 6, 6) * y,
        lambda s, y: torch.cdist(y.flatten(2).mT, y.relu().flatten(2).mT, p=1).sum(2).view(-1, 1, 6, 6) * y,
        lambda s, y: F.softmax(y, dim=2) + torch.softmax(input=y, dim=-1),
        lambda s, y: F.softmax(y.flatten(2), -1).view(y.shape),
    ],
)
def test_a_sum_over_what_is_left_is_exact(function: Function) -> None:
    assert sizes(holds(one(function, cosine=nn.CosineSimilarity(-1)))) == {"a": 8, "b": 6}


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.linalg.vector_norm(y, -1, dim=1, keepdim=True),
        lambda y: torch.linalg.vector_norm(y, float("-inf"), dim=1, keepdim=True),
        lambda y: torch.norm(y, p=-1, dim=1, keepdim=True),
        lambda y: y.norm(float("-inf"), 1, True),
        lambda y: torch.linalg.norm(y, -2, dim=(1, 2), keepdim=True),
        lambda y: F.normalize(y, p=-1),
        lambda y: y.prod(1, keepdim=True),
        lambda y: y.amin(1, keepdim=True),
        lambda y: y.median(1, keepdim=True)[0],
        lambda y: (y > -2).all(1, keepdim=True),
        lambda y: torch.std_mean(y, 1, keepdim=True)[1],
    ],
)
def test_what_zeros_decide_is_not_called_exact(function: Callable[[Any], Any]) -> None:
    found = prove(one(lambda s, y: y * function(y)))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert not found.proof.exact


# Inexact --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "members", "node"),
    [
        (lambda s, y: s.m(y), {"m": nn.GroupNorm(2, 8)}, "m"),
        (lambda s, y: s.m(y), {"m": nn.GroupNorm(1, 8)}, "m"),
        (lambda s, y: s.m(y), {"m": nn.LayerNorm((8, 6, 6))}, "m"),
        (lambda s, y: s.m(y), {"m": nn.RMSNorm((8, 6, 6))}, "m"),
        (lambda s, y: s.m(y), {"m": nn.LocalResponseNorm(3)}, "m"),
        (lambda s, y: s.m(y), {"m": nn.Softmax2d()}, "m"),
        (lambda s, y: s.m(y), {"m": nn.LogSoftmax(1)}, "m"),
        (lambda s, y: F.softmax(y, 1), {}, "softmax"),
        (lambda s, y: y.softmax(dim=-3), {}, "softmax"),
        (lambda s, y: F.group_norm(y, 4, s.w), {"w": vector()}, "group_norm"),
        (lambda s, y: F.layer_norm(y, y.shape[1:]), {}, "layer_norm"),
        (
            lambda s, y: F.layer_norm(y.permute(0, 2, 3, 1), (8,), s.w, s.k, 1e-6).permute(0, 3, 1, 2),
            {"w": vector(), "k": vector()},
            "layer_norm",
        ),
        (
            lambda s, y: F.rms_norm(y.permute(0, 2, 3, 1), normalized_shape=[8], weight=s.w).permute(0, 3, 1, 2),
            {"w": vector()},
            "rms_norm",
        ),
        (lambda s, y: y * y.mean(1, keepdim=True), {}, "mean"),
        (lambda s, y: y + torch.amax(y, dim=1)[:, None], {}, "amax"),
        (lambda s, y: y + torch.max(y, 1, keepdim=True)[0], {}, "max_1"),
        (lambda s, y: y / y.std(dim=(1, 2, 3), keepdim=True), {}, "std"),
        (lambda s, y: y * torch.var_mean(y, 1, keepdim=True)[0], {}, "var_mean"),
        (lambda s, y: y + y.logsumexp(1, keepdim=True), {}, "logsumexp"),
    ],
)
def test_statistics_over_channels_are_known_to_change(function: Function, members: dict[str, Any], node: str) -> None:
    found = prove(one(function, **members))
    assert sizes(found.deps) == {"a": 8, "b": 6}
    assert not found.proof.exact
    assert found.proof.inexact == [node]
    assert 1e-9 < found.proof.max_relative_error < 10
    assert found.small(images(3)).shape == (3, 5)
    kept = prove(one(function, **members), ratio={"b": 0.5}).proof
    assert kept.exact
    assert kept.max_relative_error < 1e-10


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_a_norm_keep_equally_many(groups: int) -> None:
    found = prove(one(lambda s, y: s.m(y), m=nn.GroupNorm(groups, 8)), criterion=lambda g: torch.arange(g.size))
    kept = found.plan.layers["a"].outputs
    assert kept is not None
    assert [sum(i * groups // 8 == block for i in kept) for block in range(groups)] == [4 // groups] * groups
    small: Any = found.small.get_submodule("m")
    assert (small.num_groups, small.num_channels) == (groups, 4)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(nn.LayerNorm((8, 6, 6)), (4, 6, 6)), (nn.LayerNorm(8), (4,)), (nn.RMSNorm(8), (4,))],
    ids=str,
)
def test_the_shape_of_a_layer_norm_follows(layer: Any, expected: tuple[int, ...]) -> None:
    def forward(s: Any, y: Tensor) -> Tensor:
        return s.m(y) if len(s.m.normalized_shape) == 3 else s.m(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    small: Any = prove(one(forward, m=layer)).small.get_submodule("m")
    assert tuple(small.normalized_shape) == expected
    assert tuple(small.weight.shape) == expected


def test_a_batch_norm_is_exact_though_its_own_statistics_are_inexact_over_channels_in_the_batch() -> None:
    model = one(lambda s, y: s.m(y.flatten(1)[:, :, None]).view(y.shape), m=nn.BatchNorm1d(288))
    assert sizes(holds(model)) == {"a": 8, "b": 6}
