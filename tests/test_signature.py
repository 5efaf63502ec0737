"""Models whose forward takes ``*args`` and ``**kwargs``, as those of many libraries do, in all that runs a graph."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from networks import same
from torch import Tensor, nn

import fxprune
from fxprune.capture import bind_example, bound_values
from fxprune.models import randomize

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Open(nn.Module):
    """Takes anything, and looks at one image; what else it gets is added."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor, *args: Any, scale: float = 2.0, **kwargs: Any) -> Tensor:
        x = self.head(self.body(x)) * scale
        for other in (*args, *kwargs.values()):
            x = x + other
        return x


class Around(nn.Module):
    """Calls it with more than it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 3, 1), Open()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.stem(args[0])
        out: Tensor = self.part(x, x[:, :1, 4:, 4:], scale=0.5, **kwargs)
        return out


@pytest.mark.parametrize(
    "inputs",
    [IMAGE, (IMAGE,), {"x": IMAGE, "scale": 3.0}, (IMAGE, torch.ones(2, 4, 4, 4)), {"x": IMAGE, "more": torch.ones(4)}],
    ids=["tensor", "tuple", "option", "one more", "by name"],
)
def test_a_plan_is_proven(inputs: Any) -> None:
    model = randomize(Open()).eval()
    deps = fxprune.DependencyGraph.from_model(model, inputs)
    plan = fxprune.plan_channels(deps, 0.5)
    proof = fxprune.verify(model, plan, inputs)
    assert proof.exact
    assert proof.max_relative_error < 1e-12
    bound = bind_example(model, inputs)
    with torch.no_grad():
        assert same(deps.gm(*bound.args, **bound.kwargs), model(*bound.args, **bound.kwargs))
        assert plan.apply(model)(*bound.args, **bound.kwargs).shape == (2, 4, 4, 4)


def test_a_part_gets_what_it_is_called_with() -> None:
    model = randomize(Around()).eval()
    before = copy.deepcopy(model.state_dict())
    small = fxprune.prune_channels(model, IMAGE, 0.5, submodule="part")
    assert same(model.state_dict(), before)
    assert small.get_submodule("part.body.0").out_channels == 4
    with torch.no_grad():
        assert small(IMAGE).shape == model(IMAGE).shape


def test_arguments_stand_for_the_inputs_of_a_graph() -> None:
    model = Open()
    bound = bind_example(model, (IMAGE, 1))
    assert bind_example(model, bound) == bound
    gm = fxprune.trace(model, bound)
    values = dict(
        zip((n.target for n in gm.graph.find_nodes(op="placeholder")), bound_values(gm.graph, bound), strict=True)
    )
    assert values["x"] is IMAGE
    assert values["*args"] == (1,)
    assert list(inspect.signature(gm.forward).parameters)[:2] == ["x", "args"]


def test_all_that_runs_a_network_runs_it() -> None:
    model = randomize(Open()).eval()
    deps = fxprune.DependencyGraph.from_model(model, IMAGE)
    labelled = [((IMAGE,), torch.zeros(2, 4, 4, 4))]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    for criterion in (fxprune.criteria.Taylor(labelled, loss), fxprune.criteria.ReconstructionLoss([IMAGE])):
        assert fxprune.plan_channels(deps, 0.5, criterion=criterion).apply(model)(IMAGE).shape == (2, 4, 4, 4)
    for weights in (fxprune.criteria.Wanda([IMAGE]), fxprune.criteria.Snip(labelled, loss)):
        assert fxprune.prune_weights(model, IMAGE, 0.5, criterion=weights)(IMAGE).shape == (2, 4, 4, 4)
    small = fxprune.plan_channels(deps, budget=fxprune.Budget(macs=0.6)).apply(model)
    recovery = fxprune.recover(small, model, [IMAGE])
    assert recovery.rungs[-1].error < recovery.rungs[0].error
    curves = fxprune.sensitivity(model, IMAGE, lambda network: float(network(IMAGE).mean().detach()), (0.25, 0.5))
    assert set(curves.accuracy) >= {group.name for group in deps.prunable}
    table = fxprune.LatencyTable.measure(deps, runs=1, progress=False)
    assert fxprune.plan_channels(deps, budget=fxprune.Budget(latency_ms=1e3, table=table)).apply(model)(IMAGE).ndim == 4
