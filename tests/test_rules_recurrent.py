"""Recurrent layers behind convolutions, as in networks that read text or listen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import Net, frozen, holds, images, prove, sizes
from torch import Tensor, nn

from fxprune.dependency import DependencyGraph


def _sequence(s: Any, y: Tensor) -> Tensor:
    """Columns of an image, one after the other: every channel is read at several heights; shape ``(W, N, C * H)``."""
    return y.permute(3, 0, 1, 2).flatten(2)


def _net(layer: nn.Module, read: Any, features: int) -> Net:
    def forward(s: Any, x: Tensor) -> Tensor:
        out: Tensor = s.out(read(s, _sequence(s, s.a(x))))
        return out

    return Net(forward, r=layer, out=nn.Linear(features, 5), b=None, h=None)


def _start(s: Any, y: Tensor) -> Tensor:
    state = torch.zeros(1, y.shape[1], 4)
    out: Tensor = s.r(y, (state, state) if isinstance(s.r, nn.LSTM) else state)[0]
    return out


def _steps(s: Any, y: Tensor) -> Tensor:
    state: Any = torch.zeros(y.shape[1], 4)
    state = (state, state) if isinstance(s.r, nn.LSTMCell) else state
    for step in y.unbind(0):
        state = s.r(step, state)
    return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize(
    ("layer", "read"),
    [
        (nn.LSTM(48, 4), lambda s, y: s.r(y)[0]),
        (nn.LSTM(48, 2, num_layers=2, bidirectional=True, batch_first=True), lambda s, y: s.r(y.transpose(0, 1))[0]),
        (nn.LSTM(48, 6, proj_size=4), lambda s, y: s.r(y)[0]),
        (nn.GRU(48, 4, bias=False), lambda s, y: s.r(y)[1][0]),
        (nn.RNN(48, 4), lambda s, y: s.r(y)[0]),
        (nn.RNN(48, 4), lambda s, y: s.r(y[:, 0])[0]),
        (nn.GRU(48, 4), _start),
        (nn.LSTM(48, 4), _start),
        (nn.LSTMCell(48, 4), _steps),
        (nn.GRUCell(48, 4), _steps),
        (nn.RNNCell(48, 4), _steps),
    ],
    ids=lambda v: str(v) if isinstance(v, nn.Module) else getattr(v, "__name__", "").strip("<_>"),
)
def test_what_a_recurrent_layer_reads_can_go(layer: nn.Module, read: Any) -> None:
    found = prove(_net(copy.deepcopy(layer), read, 4), images())
    assert sizes(found.deps) == {"a": 8}
    assert found.proof.exact
    assert found.proof.max_relative_error < 1e-12
    small: Any = found.small.get_submodule("r")
    assert small.input_size == 24
    assert small.hidden_size == layer.hidden_size
    inputs = images(3)
    assert torch.equal(copy.deepcopy(found.small)(inputs), found.small(inputs))
    found.small(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small.parameters() if p.dim() > 1)


def test_hidden_units_and_states_stay() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        out, _ = s.r(_sequence(s, y), s.start(y.mean((2, 3)))[None])
        return s.out(out)

    deps = holds(Net(forward, r=nn.GRU(48, 4), start=nn.Linear(8, 4), out=nn.Linear(4, 5), b=None, h=None))
    assert sizes(deps) == {"a": 8}
    assert "it is the state of a recurrent layer" in frozen(deps)["start"]


def test_positions_of_a_sequence_stay() -> None:
    """Channels that become steps."""
    layers = {"r": nn.RNN(36, 4), "out": nn.Linear(4, 5), "b": None, "h": None}
    deps = DependencyGraph.from_model(Net(lambda s, x: s.out(s.r(s.a(x).flatten(2))[0]), **layers), images())
    assert "a recurrent layer goes from one position to the next" in frozen(deps)["a"]
