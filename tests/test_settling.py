"""What a choice of channels leaves: foreseen where that is safe, read from the graph elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis import read
from fxprune.dependency import DependencyGraph
from fxprune.models import ZOO, example_inputs
from fxprune.records import Conflict, Found
from fxprune.replay import Replay
from fxprune.selection import keep_count, select
from fxprune.settling import chosen, replayed, settle
from fxprune.structure import Structure


def _both(deps: DependencyGraph, ratio: float) -> tuple[Found, Found]:
    structure = deps.structure
    scores = np.random.default_rng(0).random(structure.units)
    kept = select(structure, scores, {g: keep_count(len(m), ratio) for g, m in enumerate(structure.members)})
    return chosen(deps.gm, structure, kept), replayed(deps.gm, structure, kept)


@pytest.mark.parametrize("name", ZOO)
def test_what_is_foreseen_is_what_a_reading_finds(name: str) -> None:
    deps = DependencyGraph.from_model(ZOO[name]().eval(), example_inputs(name))
    for ratio in (0.3, 0.8):
        foreseen, found = _both(deps, ratio)
        assert list(foreseen.axes) == list(found.axes)
        assert all(torch.equal(foreseen.axes[axis], found.axes[axis]) for axis in found.axes)
        assert foreseen.changes == found.changes
        assert foreseen.attributes == found.attributes


class Plain(nn.Module):
    """A residual block with a depthwise convolution, whose channels pass through in their order."""

    def __init__(self, sized: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)
        self.sized = sized

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.norm(self.depthwise(x))
        return self.head(x.view(-1, 8, *x.shape[2:]) if self.sized else x)


@pytest.mark.parametrize("sized", [False, True])
def test_the_graph_is_read_only_where_something_in_it_may_change(sized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    deps = DependencyGraph.from_model(Plain(sized), torch.zeros(1, 3, 8, 8))
    runs = []
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self: (runs.append(self), run(self))[1])
    foreseen, found = _both(deps, 0.5)
    assert len(runs) == (2 if sized else 1)
    assert (
        foreseen.attributes
        == found.attributes
        == {
            ("stem", "in_channels"): 3,
            ("stem", "out_channels"): 4,
            ("depthwise", "groups"): 4,
            ("depthwise", "in_channels"): 4,
            ("depthwise", "out_channels"): 4,
            ("norm", "num_features"): 4,
            ("head", "in_channels"): 4,
            ("head", "out_channels"): 4,
        }
    )
    assert bool(found.changes) is sized


class ChannelsLast(nn.Module):
    """Layer norms over channels, as a layer and as a function that names their number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head(F.layer_norm(self.norm(x), (8,), self.weight, self.bias) + x)


def test_norms_over_channels_need_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    deps = DependencyGraph.from_model(ChannelsLast(), torch.zeros(1, 3, 2, 2))
    runs = []
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda self: (runs.append(self), run(self))[1])
    foreseen, found = _both(deps, 0.5)
    assert len(runs) == 1
    assert foreseen.changes == found.changes
    assert foreseen.changes["layer_norm"].args[1] == (4,)
    assert foreseen.attributes == found.attributes
    assert foreseen.attributes["norm", "normalized_shape"] == (4,)


def test_every_conflict_is_answered_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 160, 1), nn.Conv2d(160, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.channel_shuffle(self.stem(x), 2))

    conflicts = []

    def conflicting(gm: fx.GraphModule, structure: Structure, *rest: Any) -> Found:
        if len(conflicts) < 80:
            conflicts.append(structure.units)
            raise Conflict(np.flatnonzero(structure.unit == structure.members[0][0]), "stem", "here")
        return replayed(gm, structure, *rest)

    monkeypatch.setattr(fxprune.settling, "replayed", conflicting)
    gm = fxprune.trace(Shuffled(), torch.zeros(1, 3, 4, 4))
    found = settle(gm, read(gm))
    assert conflicts[2:] == sorted(set(conflicts), reverse=True)  # after the first two, fewer each time
    assert found.refinement.ties
    assert len(found.refinement.freezes) > 64
