"""Costs from the groups alone: they are those of the network that is really pruned."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.costs import Costs
from fxprune.models import ZOO, example_inputs
from fxprune.planning import kept_by_ratio

_OTHER_CODE = {"multihead_attention"}
"""Networks whose own forward is counted differently from the graph that it is traced to: a fused attention."""


def _profile(model: nn.Module, inputs: object) -> fxprune.Profile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fxprune.profile(model, inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ZOO)
def test_costs_are_those_of_the_pruned_network(name: str) -> None:
    model, inputs = ZOO[name]().eval(), example_inputs(name)
    deps = fxprune.DependencyGraph.from_model(model, inputs)
    costs = Costs.of(deps)
    assert not costs.uncounted
    whole = _profile(model, inputs)
    if name not in _OTHER_CODE:
        assert costs.macs() == whole.macs
    assert costs.parameters() == whole.parameters
    assert costs.size_bytes() == whole.size_bytes
    for ratio in (0.3, 0.8):
        plan = fxprune.plan_channels(deps, ratio, "output-l2")
        kept = deps.structure.kept_in(plan.structure, plan.kept)
        small = _profile(plan.apply(model), inputs)
        # A product of two sizes that the pruned graph computes anew counts as one multiplication.
        assert abs(costs.macs(kept) - small.macs) <= 2, (ratio, costs.macs(kept), small.macs)
        assert costs.parameters(kept) == small.parameters
        assert costs.size_bytes(kept) == small.size_bytes


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2, "batch_first": True}, {"bias": False}], ids=str
)
@pytest.mark.parametrize("batched", [True, False])
def test_costs_of_recurrent_layers(options: dict[str, Any], batched: bool) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv2d(3, 8, 3), nn.LSTM(48, 5, **options)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).permute(3, 0, 1, 2).flatten(2)
            out: Tensor = self.lstm(x if batched else x[:, 0])[0]
            return out

    model, inputs = Reads().eval(), torch.rand(2, 3, 8, 9)
    deps = fxprune.DependencyGraph.from_model(model, inputs)
    costs, plan = Costs.of(deps), fxprune.plan_channels(deps, 0.5)
    assert not costs.uncounted
    assert costs.macs() == _profile(model, inputs).macs
    assert costs.macs(plan.kept) == _profile(plan.apply(model), inputs).macs
    assert costs.parameters(plan.kept) == _profile(plan.apply(model), inputs).parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet50", "shufflenet_v2_x1_0", "mobilenet_v3_large", "efficientnet_b0", "googlenet", "densenet201"),
        *("swin_v2_t", "convnext_tiny", "regnet_y_400mf", "maxvit_t", "squeezenet1_1"),
    ],
)
def test_costs_of_large_networks(name: str) -> None:
    model, inputs = torchvision.models.get_model(name, weights=None).eval(), torch.rand(1, 3, 224, 224)
    deps = fxprune.DependencyGraph.from_model(model, inputs)
    costs = Costs.of(deps)
    plan = fxprune.plan_channels(deps, 0.5)
    small = _profile(plan.apply(model), inputs)
    assert (costs.macs(plan.kept), costs.parameters(plan.kept)) == (small.macs, small.parameters)


def test_by_layer_and_without_weights() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    deps = fxprune.DependencyGraph.from_model(model, torch.zeros(1, 3, 64, 64, device="meta"))
    costs = Costs.of(deps)
    macs = dict(zip(costs.layers, costs.macs_by_layer().tolist(), strict=True))
    assert macs["conv1"] == 32 * 32 * 64 * 3 * 7 * 7
    assert macs["layer1.0.conv2"] == 16 * 16 * 64 * 64 * 9
    assert macs["fc"] == 512 * 1000
    assert sum(macs.values()) == costs.macs()
    parameters = dict(zip(costs.layers, costs.parameters_by_layer().tolist(), strict=True))
    assert parameters["fc"] == 512 * 1000 + 1000
    kept = np.ones(deps.structure.units, dtype=bool)
    kept[deps.structure.members[0][:40]] = False
    assert costs.macs(kept) < costs.macs()
    left = dict(zip(costs.layers, costs.macs_by_layer(kept).tolist(), strict=True))
    assert left["layer1.0.conv2"] == 16 * 16 * 64 * 24 * 9
    assert left["layer4.0.conv2"] == macs["layer4.0.conv2"]


def test_the_plain_data_gives_the_same_numbers() -> None:
    for name in ("channel_shuffle", "dense", "self_attention", "split_branches"):
        deps = fxprune.DependencyGraph.from_model(ZOO[name](), example_inputs(name))
        costs = Costs.of(deps)
        kept = kept_by_ratio(deps, (0.0, 0.25, 0.5, 0.9))
        data = costs.as_dict(kept)
        assert data["ratios"] == [0.0, 0.25, 0.5, 0.9]
        assert all(part["kept"][0] == part["size"] for part in data["parts"])
        for step, mask in enumerate(kept.values()):
            sizes = [d[0] + sum(data["parts"][p]["kept"][step] for p in d[1:]) for d in data["dimensions"]]
            for what, expected in (("macs", costs.macs(mask)), ("parameters", costs.parameters(mask))):
                total = sum(factor * math.prod(sizes[d] for d in dims) for _, factor, *dims in data[what])
                assert total == expected, (name, what, step)


def test_what_cannot_be_counted_is_named() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Chooses(), nn.Conv2d(8, 8, 3)).eval()
    deps = fxprune.DependencyGraph.from_model(model, torch.rand(1, 3, 16, 16))
    costs = Costs.of(deps)
    assert len(costs.uncounted) == 1
    assert costs.macs() == 14 * 14 * 8 * 27 + 12 * 12 * 8 * 72


def test_kept_of_another_graph() -> None:
    deps = fxprune.DependencyGraph.from_model(ZOO["vgg"](), example_inputs("vgg"))
    with pytest.raises(fxprune.ArgumentError, match="kept has shape"):
        Costs.of(deps).macs(np.ones(3, dtype=bool))


def test_training_mode_is_left_as_it_is() -> None:
    model = ZOO["dropout"]().train()
    deps = fxprune.DependencyGraph.from_model(model, example_inputs("dropout"))
    before = [module.training for module in deps.gm.modules()]
    Costs.of(deps)
    assert [module.training for module in deps.gm.modules()] == before
