from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, same
from torch import Tensor, nn

from fxprune.aliasing import written_later
from fxprune.capture import trace


def _slice_is_written(s: Any, y: Any) -> Any:
    y[:, ::2].mul_(2)
    return y


def _base_is_written(s: Any, y: Any) -> Any:
    z = y[:, ::2]
    y.add_(1)
    return torch.cat([z, z], 1)


def _view_is_written(s: Any, y: Any) -> Any:
    z = y[:, ::2].flatten(2)
    z[:, :, 0].relu_()
    return y


def _layer_writes(s: Any, y: Any) -> Any:
    z = y[:, ::2]
    return torch.cat([z, s.act(s.drop(y))[:, 1::2]], 1)


def _written_before(s: Any, y: Any) -> Any:
    y.relu_()
    return y.repeat(1, 2, 1, 1)[:, ::2]


def _written_elsewhere(s: Any, y: Any) -> Any:
    z = y[:, ::2] + 1
    return torch.cat([z.relu_(), z], 1)


def _new_memory_is_written(s: Any, y: Any) -> Any:
    z = y[:, ::2]
    mask = y.new_zeros(y.shape[2], z.shape[3])
    mask[0] = 1
    return torch.cat([z, z * mask.view(1, 1, *z.shape[2:])], 1)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_slice_is_written, True),
        (_base_is_written, True),
        (_view_is_written, True),
        (_layer_writes, True),
        (_written_before, False),
        (_written_elsewhere, False),
        (_new_memory_is_written, False),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_writes_into_shared_memory_are_found(function: Callable[[Any, Any], Any], expected: bool) -> None:
    model = Net(lambda s, x: s.end(function(s, s.a(x))), act=nn.ReLU(inplace=True), drop=nn.Dropout())
    gm = trace(model, images())
    node = next(n for n in gm.graph.nodes if n.name == "getitem")
    assert written_later(node, gm.get_submodule) is expected
    holds(model)


def test_a_list_of_indices_stays_a_copy() -> None:
    def forward(s: Any, x: Any) -> Any:
        y = s.a(x)
        y[:, [0, 1, 2, 3]].mul_(3)
        y.index_select(1, torch.tensor([0, 1, 2])).add_(1)
        return s.end(F.relu(y))

    holds(Net(forward))


@pytest.mark.parametrize("function", [torch.real, torch.view_as_real, lambda y: y.imag, torch.conj])
def test_parts_of_complex_numbers_are_views(function: Callable[[Tensor], Tensor]) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = torch.complex(s.a(x), s.a(x))
        part = function(y)
        part.mul_(2)
        return s.end(y.abs())

    model = Net(forward)
    gm = trace(model, images())
    (made,) = (n for n in gm.graph.nodes if n.name == "complex_1")
    assert written_later(made, gm.get_submodule)
    assert same(gm(images()), model(images()))
