from __future__ import annotations

from typing import Any

import numpy as np
import torch
from networks import Net, images, prove
from torch import Tensor, nn

from fxprune.analysis import resolve
from fxprune.dependency import DependencyGraph
from fxprune.models import ZOO, example_inputs
from fxprune.planning import plan_channels
from fxprune.structure import Refinement


class Cut(nn.Module):
    """Two branches are interleaved, then split: half of each half goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.front, self.back = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        b, c, h, w = y.shape
        front, back = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w).chunk(2, 1)
        return self.front(front) + self.back(back)


def test_interleaved_branches_keep_equally_many_on_each_side_of_a_cut_and_choose_for_themselves() -> None:
    scores = {"a": [0, 1, 0, 1, 0, 1, 0, 1], "b": [1, 1, 0, 0, 0, 0, 1, 1]}
    found = prove(Cut().eval(), criterion=lambda group: scores["a"] + scores["b"])
    assert not found.deps.structure.refinement.ties
    assert found.plan.layers["a"].outputs == (1, 3, 5, 7)
    assert found.plan.layers["b"].outputs == (0, 1, 6, 7)
    assert found.small.get_submodule("front").in_channels == 4


def test_a_column_that_a_cut_goes_through_is_tied() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        y = torch.cat([s.a(x), s.c(x)], 1)
        b, c, h, w = y.shape
        z = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return s.p(z[:, :5]) + s.q(z[:, 5:])

    layers = {"a": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(3, 4, 1), "p": nn.Conv2d(5, 2, 1), "q": nn.Conv2d(3, 2, 1)}
    recorder = prove(Net(forward, **layers)).deps.structure.recorder
    structure = resolve(recorder, Refinement(pieces=True, columns=True))
    unit = {u.layer: structure.unit[u.labels.numpy()] for u in structure.recorder.uses if u.role == "producer"}
    assert (unit["a"] == unit["c"]).tolist() == [False, False, True, False]
    parts = [set(blocks.reshape(-1)) for blocks in structure.rects]
    assert {*unit["a"][:2], *unit["c"][:2]} in parts
    assert {unit["a"][3], unit["c"][3]} in parts


def test_a_class_may_lose_all_its_units_but_no_tensor_may() -> None:
    structure = DependencyGraph.from_model(Cut(), images()).structure
    for group in range(structure.groups):
        classes = structure.classes(group)
        assert classes.sizes.sum() == len(structure.members[group])
        assert classes.needs.shape[1] == classes.balance.shape[1] == len(classes.sizes)
    plan = plan_channels(DependencyGraph.from_model(Cut(), images()), 0.99)
    assert all(len(p.outputs) > 0 for p in plan.layers.values() if p.outputs is not None)


def test_equal_blocks_are_in_balance() -> None:
    name = "grouped_shuffle"
    structure = DependencyGraph.from_model(ZOO[name](), example_inputs(name)).structure
    for group in range(structure.groups):
        classes = structure.classes(group)
        np.testing.assert_allclose(classes.balance @ classes.sizes, 0, atol=1e-12)
