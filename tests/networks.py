"""What the tests of the analysis have in common: a network from one function, and the proof of a plan for it."""

from __future__ import annotations

__all__ = [
    "Net",
    "Proven",
    "frozen",
    "holds",
    "images",
    "kept",
    "prove",
    "same",
    "sizes",
    "structure",
    "survives",
    "unchanged",
    "vgg",
    "widths",
]

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from fxprune.analysis import read, resolve
from fxprune.capture import trace
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.models import VGG, randomize
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.structure import Refinement, Structure
from fxprune.verification import Proof, verify


class Net(nn.Module):
    """A network that is one function of itself and its input, with the layers and parameters that it is given.

    Unless others are given, it has ``a``, a convolution from 3 to 8 channels; ``b``, one from 8 to 6; and ``h``, a
    linear layer from 6 to 5.
    """

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self._function = (function,)
        defaults = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 6, 3), "h": nn.Linear(6, 5)}
        for name, member in {**defaults, **members}.items():
            if member is not None:
                setattr(self, name, member)

    def forward(self, x: Any) -> Any:
        return self._function[0](self, x)

    def end(self, y: Tensor) -> Tensor:
        """The convolution, the mean over space and the linear layer after ``y``."""
        return self.h(self.b(y).mean((2, 3)))


def images(batch: int = 2, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Proven:
    deps: DependencyGraph
    plan: ChannelPlan
    small: fx.GraphModule
    proof: Proof


def prove(model: nn.Module, inputs: Any = None, ratio: Any = 0.5, criterion: Any = "input-l2") -> Proven:
    """Prune a network of random weights, and prove it."""
    inputs = images() if inputs is None else inputs
    randomize(model).eval()
    deps = DependencyGraph(trace(model, inputs))
    plan = plan_channels(deps, ratio, criterion)
    return Proven(deps, plan, plan.apply(model), verify(model, plan, inputs))


def holds(
    model: nn.Module, inputs: Any = None, ratios: tuple[float, ...] = (0.1, 0.5, 0.9), exact: bool = True
) -> DependencyGraph:
    """Check that the graph is the model, and several plans: by weight and with random choices.

    Args:
        model: The network; it gets random weights.
        inputs: Images unless given.
        exact: Whether every plan must be exact; if not, that the pruned network runs is all that is checked.
    """
    inputs = images() if inputs is None else inputs
    randomize(model).eval()
    gm = trace(model, inputs)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        for ours, theirs in zip(_tensors(gm(*args)), _tensors(model(*args)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    deps = DependencyGraph(gm)
    rng = np.random.default_rng(0)

    def at_random(group: ChannelGroup) -> Any:
        return rng.random(group.size)

    for ratio, criterion in ((0.5, at_random), (0.9, "input-l2")):
        proof = verify(model, plan_channels(deps, ratio, criterion), inputs)
        if exact:
            assert proof.exact, proof.inexact
            assert proof.max_relative_error < 1e-10
    return deps


def structure(model: nn.Module, inputs: Any = None) -> Structure:
    """The constraints of a network solved, before anything was tried."""
    return resolve(read(trace(model, images() if inputs is None else inputs)), Refinement())


def sizes(deps: DependencyGraph) -> dict[str, int]:
    """The groups that can be pruned."""
    return {group.name: group.size for group in deps.prunable}


def frozen(deps: DependencyGraph) -> dict[str, str]:
    """Why the groups that are no outputs cannot be."""
    return {g.name: g.frozen for g in deps.groups if g.frozen and "it is an output of the network" not in g.frozen}


def same(ours: Any, theirs: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def survives(function: Callable[[], Any]) -> bool:
    """Whether a function returns, in a process of its own: it might bring the interpreter down."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a process of its own")
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@cache
def vgg(width: float = 0.1) -> tuple[VGG, DependencyGraph]:
    """The network of the lab, narrow, and its analysis."""
    model = randomize(VGG(width)).eval()
    return model, DependencyGraph.from_model(model, torch.zeros(1, 3, 32, 32))


def widths(plan: ChannelPlan) -> list[int]:
    """How many channels the convolutions of the VGG keep."""
    found = []
    for i in range(8):
        layer = plan.layers[f"backbone.conv{i}"]
        found.append(layer.size[1] if layer.outputs is None else len(layer.outputs))
    return found


def kept(plan: ChannelPlan, layer: str) -> int:
    """How many channels a layer keeps."""
    outputs = plan.layers[layer].outputs
    return plan.layers[layer].size[1] if outputs is None else len(outputs)


def unchanged(model: nn.Module, before: nn.Module) -> bool:
    """Whether two models have the same layers, modes and values, NaN included."""
    pairs = itertools.zip_longest(model.state_dict().items(), before.state_dict().items())
    tensors = all(a[0] == b[0] and torch.equal(a[1].nan_to_num(9), b[1].nan_to_num(9)) for a, b in pairs)
    modes = [m.training for m in model.modules()] == [m.training for m in before.modules()]
    return tensors and modes and repr(model) == repr(before)


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in tree_flatten(value)[0] if isinstance(v, Tensor)]
