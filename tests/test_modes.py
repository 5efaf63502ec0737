"""Networks that decide by their mode, and what is recorded of the mode that they are not in."""

from __future__ import annotations

import copy
import gc
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import trace

IMAGE = torch.zeros(2, 3, 8, 8)


class Deciding(nn.Module):
    """Starts with another operator in training, and notes how often it gets to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x) if self.training else x.abs()
        x = self.conv(x)
        ENDS.append(1)
        return x


ENDS: list[int] = []


@pytest.mark.parametrize("training", [True, False])
def test_the_other_mode_is_followed_no_further_than_to_the_first_other_operator(training: bool) -> None:
    ENDS.clear()
    gm = trace(Deciding().train(training), IMAGE)
    assert len(ENDS) == 1
    assert [str(n.target) for n in gm.graph.nodes][-2] == "conv"


class Catching(nn.Module):
    """Catches whatever its last operator raises, which it has in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        rate = 0.5 if self.training else 0.25
        x = F.dropout(x, 0.5, rate > 0.25)
        if self.training:
            with suppress(Exception):
                torch.tanh(x)
        return x


def test_what_the_model_catches_is_still_a_difference() -> None:
    gm = trace(Catching().eval(), IMAGE)
    assert gm.graph.find_nodes(op="call_function", target=F.dropout)[0].args[2] is False


class Unclear(nn.Module):
    """Decides by its mode around a part that cannot be traced, and gives that flag to a function as well."""

    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) + float(x.sum() > 0)

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()

    def forward(self, x: Tensor) -> Tensor:
        rate = bool(self.training)
        return F.dropout(self.part(x), 0.5, rate)


@pytest.mark.parametrize("traced_in", [True, False])
def test_the_mode_is_followed_around_what_cannot_be_traced(traced_in: bool) -> None:
    model = Unclear().train(traced_in)
    gm = trace(model, IMAGE)
    x = torch.ones(2, 3, 8, 8)
    for training in (True, False):
        theirs, ours = copy.deepcopy(model).train(training), copy.deepcopy(gm).train(training)
        torch.manual_seed(0)
        wanted = theirs(x)
        torch.manual_seed(0)
        assert torch.equal(ours(x), wanted)


class Collecting(nn.Module):
    """Notes whether the collector runs while it is traced."""

    def forward(self, x: Tensor, fails: Any = False) -> Tensor:
        SEEN.append(gc.isenabled())
        if fails:
            raise ValueError("as asked")
        return x + 1


SEEN: list[bool] = []


def test_the_collector_is_paused_and_goes_on() -> None:
    SEEN.clear()
    trace(Collecting(), IMAGE)
    with pytest.raises(Exception, match="as asked"):
        trace(Collecting(), (IMAGE, True))
    assert SEEN
    assert not any(SEEN)
    assert gc.isenabled()
