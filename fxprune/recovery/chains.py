"""What a layer's output is for: batch norms behind it, and sums that it is a term of."""

from __future__ import annotations

__all__ = ["Chain", "chain_of"]

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.recovery.contractions import Contraction
from fxprune.recovery.norms import Norm, norm_of
from fxprune.recovery.running import Runner

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LIMITS: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), (0.0, math.inf)),
    **dict.fromkeys((nn.ReLU6, F.relu6), (0.0, 6.0)),
}
_SMALL = 1e-3
"""Below what fraction of the largest scale a norm's channel says too little of its input to be turned around."""


@dataclass(frozen=True)
class Chain:
    """The way from a layer's output to the value that should be right, every step of which can be taken back.

    Attributes:
        contraction: The layer.
        end: The node whose value should be right.
        steps: From the output on: batch norms, and the other terms of sums.
        joined: Whether there is a sum among them.
        clipped: Where a ReLU behind the end, and nothing else, cuts it off from below and from above.
    """

    contraction: Contraction
    end: fx.Node
    steps: tuple[Norm | fx.Node, ...]
    joined: bool
    clipped: tuple[float, float] | None = None

    @property
    def norm(self) -> Norm | None:
        """The batch norm right behind the layer, which can take what the layer has no bias for."""
        first = self.steps[0] if self.steps else None
        return first if isinstance(first, Norm) else None

    @property
    def _bias(self) -> nn.Parameter | None:
        return self.contraction.module.bias if isinstance(self.contraction.module.bias, nn.Parameter) else None

    @property
    def can_shift(self) -> bool:
        """Whether constants can be added to the layer's outputs."""
        return self._bias is not None or self.norm is not None

    @torch.no_grad()
    def shift(self, by: Tensor) -> None:
        """Add a constant to every output channel, in the layer's bias or else in the batch norm right behind it."""
        if self._bias is not None:
            self._bias.add_(by.reshape(-1).to(self._bias))
        elif self.norm is not None:
            self.norm.mean.sub_(by.reshape(-1).to(self.norm.mean))

    def sign(self) -> Tensor:
        """Whether each channel goes up or down, or nowhere, at the end when it goes up at the layer's output."""
        scales = [step.affine()[0].sign() for step in self.steps if isinstance(step, Norm)]
        bias = self.contraction.bias()
        return torch.stack([torch.ones_like(bias), *scales]).prod(0)

    def back(self, wanted: Tensor, own: Tensor, others: dict[fx.Node, Tensor]) -> Tensor:
        """What the layer would have to give for the end to be as wanted.

        Args:
            wanted: The end's value.
            own: What the layer gives in the original; it stands where a norm all but drops a channel.
            others: Values of the other terms.

        Returns:
            A tensor of the layer's output's shape.
        """
        dim = self.contraction.channel_dim
        shape = [1] * wanted.dim()
        shape[dim] = -1
        value = wanted.double()
        sure = torch.ones(wanted.shape[dim], dtype=torch.bool, device=wanted.device)
        for step in reversed(self.steps):
            if isinstance(step, Norm):
                scale, shift = step.affine()
                sure &= scale.abs() > _SMALL * scale.abs().max()
                value = (value - shift.reshape(shape)) / scale.where(sure, torch.ones_like(scale)).reshape(shape)
            else:
                value = value - others[step]
        return value.where(sure.reshape(shape), own.double())


def chain_of(gm: fx.GraphModule, contraction: Contraction, runner: Runner) -> Chain:
    """Follow a layer's output through batch norms and sums whose other terms are known when the layer runs."""
    node = end = contraction.node
    steps: list[Norm | fx.Node] = []
    shape = node.meta["val"].shape
    joined = False
    while len(node.users) == 1:
        (user,) = node.users
        norm = norm_of(gm, user)
        if norm is not None and (contraction.channel_dim != -1 or len(shape) == 2):
            steps.append(norm)
        elif _is_sum(user):
            other = user.args[1] if user.args[0] is node else user.args[0]
            assert isinstance(other, fx.Node)
            known = other is not node and runner.before(other, contraction.node)
            if not known or getattr(other.meta["val"], "shape", None) != shape:
                break
            steps.append(other)
            joined = True
        elif not (user.op == "call_module" and isinstance(gm.get_submodule(str(user.target)), _NOTHING)):
            break
        node = end = user
    return Chain(contraction, end, tuple(steps), joined, _clipped(gm, node))


def _clipped(gm: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """The limits of the ReLU that alone takes a node's value."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    target = type(gm.get_submodule(str(user.target))) if user.op == "call_module" else user.target
    return _LIMITS.get(target)


def _is_sum(node: fx.Node) -> bool:
    called = node.op in ("call_function", "call_method") and node.target in _SUMS
    return called and len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)
