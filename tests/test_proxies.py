"""Proxies where the traced code asks more of them than arithmetic."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, same, sizes
from torch import nn
from torch.autograd import Variable

from fxprune.capture import trace
from fxprune.errors import TraceError


@pytest.mark.parametrize(
    "function",
    [
        lambda y: F.pad(y, (0, int(np.ceil(y.shape[3] / 4)) * 4 - y.shape[3])),
        lambda y: y[:, :, : int(np.floor(y.shape[2] / np.sqrt(4.0)))],
        lambda y: y.flatten(2)[..., : int(np.prod(y.shape[2:])) // 2],
        lambda y: y.flatten(2)[..., : np.prod([y.shape[2], y.shape[3]]) - 1],
        lambda y: y * float(np.sqrt(y.shape[2] * y.shape[3])),
        lambda y: F.interpolate(y, size=[int(n) for n in np.multiply(2, y.shape[2:])]),
        lambda y: y * (np.float64(2) / y.shape[2]) + np.int64(3) * y.shape[3],
        lambda y: np.float64(0.5) * y + y * np.float32(2) - np.float64(1),
        lambda y: F.interpolate(y, size=(int(np.maximum(y.shape[2], 3)), int(np.log2(8)))),
    ],
)
def test_numpys_functions_of_sizes_stay_symbolic(function: Callable[[Any], Any]) -> None:
    model = Net(lambda s, x: function(s.a(x))).eval()
    gm = trace(model, images())
    with torch.no_grad():
        for graph in (gm, pickle.loads(pickle.dumps(gm))):
            for size in (8, 11):
                inputs = torch.randn(3, 3, size, size + 2)
                assert same(graph(inputs), model(inputs))


def test_what_numpy_computes_of_a_tensor_cannot_be_traced() -> None:
    with pytest.raises(TraceError, match="numpy's sqrt is called with the values of a tensor"):
        trace(Net(lambda s, x: np.sqrt(s.a(x))), images())


def test_a_value_has_the_attributes_of_its_kind_alone() -> None:
    """As of a box of tensors and a mask, for which detectors ask."""

    def forward(s: Any, x: Any) -> Any:
        y = s.a(x)
        if hasattr(y, "tensors") or hasattr(y.shape, "mask") or hasattr(y.shape[0], "values"):
            return -y
        return y.relu() if hasattr(y, "relu") else -y

    assert "relu" in {str(node.target) for node in trace(Net(forward), images()).graph.nodes}


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: Variable(y),
        lambda s, y: Variable(y, requires_grad=False) + Variable(torch.ones(1)),
        lambda s, y: torch.index_select(y, 1, Variable(s.order)),
        lambda s, y: torch.as_tensor(y) + torch.as_tensor(2.0),
        lambda s, y: torch.asarray(y, dtype=torch.float64).to(y.dtype),
    ],
)
def test_tensors_that_are_made_tensors_pass_channels_on(function: Callable[[Any, Any], Any]) -> None:
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert sizes(holds(Net(lambda s, x: s.end(function(s, s.a(x))), order=order))) == {"a": 8, "b": 6}


def test_the_first_error_is_told_though_what_failed_was_taken_back() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            return out

    with pytest.raises(TraceError, match=r"in 0\.inner\.1 .* with inputs of shape .*Output size is too small"):
        trace(nn.Sequential(Pools()), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda s, y: y[:, :4].copy_(y[:, 4:]), {"a": 4, "b": 6}),
        (lambda s, y: y.__setitem__((slice(None), slice(4)), s.p(y[:, :4])), {"a": 8, "p": 4, "b": 6}),
        (lambda s, y: y.__setitem__((slice(None), slice(None, y.shape[1] // 2)), y[:, 4:]), {"a": 4, "b": 6}),
        (lambda s, y: y.__setitem__((..., slice(1, None), 0), 0.5), {"a": 8, "b": 6}),
        (lambda s, y: y.__setitem__(0, y[1] * 2), {"a": 8, "b": 6}),
        (lambda s, y: y.__setitem__((slice(None), slice(None, None, 2)), y[:, 1::2]), {"a": 4, "b": 6}),
        (lambda s, y: y.data.__setitem__((slice(None), slice(4)), y[:, 4:]), {"a": 4, "b": 6}),
        (lambda s, y: y.__setitem__((slice(None), [0, 1]), y[:, [2, 3]]), {"b": 6}),
        (lambda s, y: y.__setitem__(y > 0, 0.0), {"b": 6}),
        (lambda s, y: y.__setitem__((slice(None), slice(2)), torch.ones(1, 1, 1, 6, 6)), {"b": 6}),
    ],
)
def test_writes_into_a_view_meet_its_channels(write: Callable[[Any, Any], Any], expected: dict[str, int]) -> None:
    def forward(s: Any, x: Any) -> Any:
        y = s.a(x).clone()
        write(s, y)
        return s.end(y)

    deps = holds(Net(forward, p=nn.Conv2d(4, 4, 1)))
    found = {name: sum(g.size for g in deps.prunable if name in g.producers) for name in expected}
    assert found == expected
    assert sum(g.size for g in deps.prunable if "a" in g.producers) == expected.get("a", 0)


def test_a_write_stays_a_write_in_the_graph() -> None:
    def forward(s: Any, x: Any) -> Any:
        out = torch.zeros_like(x)
        out[:-1, :2] = x[1:, :2]
        out[1:, 2:] = x[:-1, 2:]
        return s.a(out)

    model = Net(forward).eval()
    gm = trace(model, images())
    with torch.no_grad():
        for graph in (gm, pickle.loads(pickle.dumps(gm))):
            for inputs in (images(), images(5, height=9)):
                assert same(graph(inputs), model(inputs))
