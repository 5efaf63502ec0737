"""Batch norms with statistics of their own, as layers or as functions: where their tensors are."""

from __future__ import annotations

__all__ = ["Norm", "norm_of", "reestimated", "restored"]

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.origin import Origin
from fxprune.recovery.running import Runner

_ROLES = ("running_mean", "running_var", "weight", "bias")
_FUNCTION = ("input", *_ROLES, "training", "momentum", "eps")


@dataclass(frozen=True)
class Norm:
    """The tensors of a batch norm, each of shape ``(channels,)``.

    Attributes:
        names: Their qualified names, by what a batch norm calls them.
        tensors: The tensors, by the same; weight and bias only if there are any.
        eps: Added to the variance.
    """

    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    eps: float

    @property
    def mean(self) -> Tensor:
        """The running mean."""
        return self.tensors["running_mean"]

    @property
    def var(self) -> Tensor:
        """The running variance."""
        return self.tensors["running_var"]

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of every channel in evaluation mode, in float64."""
        scale = (self.var.double() + self.eps).rsqrt()
        if "weight" in self.tensors:
            scale = scale * self.tensors["weight"].detach().double()
        shift = -self.mean.double() * scale
        return scale, shift + self.tensors["bias"].detach().double() if "bias" in self.tensors else shift


def norm_of(gm: fx.GraphModule, node: fx.Node) -> Norm | None:
    """The batch norm that a node runs, if it has running statistics."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        if not isinstance(module, _BatchNorm) or not module.track_running_stats:
            return None
        names = {role: f"{node.target}.{role}" for role in _ROLES if getattr(module, role) is not None}
        eps = float(module.eps)
    elif node.op == "call_function" and node.target is F.batch_norm:
        given: dict[str, Any] = {**dict(zip(_FUNCTION, node.args, strict=False)), **node.kwargs}
        sources = {role: given[role] for role in _ROLES if given.get(role) is not None}
        if any(source.op != "get_attr" for source in sources.values()):
            return None
        names, eps = {role: str(source.target) for role, source in sources.items()}, float(given.get("eps", 1e-5))
    else:
        return None
    if not {"running_mean", "running_var"} <= names.keys():
        return None
    return Norm(names, {role: attrgetter(name)(gm) for role, name in names.items()}, eps)


@torch.no_grad()
def reestimated(gm: fx.GraphModule, runner: Runner) -> int:
    """Give every batch norm the mean and the unbiased variance of what it sees, one after another, in place.

    Each norm sees the batches behind the norms before it as they are in evaluation mode, with their new statistics;
    mean and variance are those of all batches together, summed in float64.

    Args:
        gm: The network, in evaluation mode.
        runner: Runs it.

    Returns:
        How many norms there are.
    """
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}
    for node in runner.nodes:
        norm = norm_of(gm, node)
        if norm is None:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        runner.advance(node.name, inclusive=False)
        # A norm that runs several times gets the statistics of all its calls.
        found = seen.get(norm.names["running_mean"], (0, norm.mean.double() * 0, norm.var.double() * 0))
        for value in runner.values(source):
            found = _joined(found, value.double().transpose(0, 1).flatten(1))
        count, mean, squares = seen[norm.names["running_mean"]] = found
        norm.mean.copy_(mean)
        norm.var.copy_(squares / max(1, count - 1))
        runner.advance(node.name)
    return len(seen)


def _joined(known: tuple[int, Tensor, Tensor], value: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and squared deviations with more elements, ``(channels, elements)`` (Chan et al., 1983)."""
    count, mean, squares = known
    own = value.mean(1)
    total = count + value.shape[1]
    apart = own - mean
    squares = squares + (value - own[:, None]).square().sum(1) + apart.square() * (count * value.shape[1] / total)
    return total, mean + apart * (value.shape[1] / total), squares


@torch.no_grad()
def restored(gm: fx.GraphModule, original: fx.GraphModule, origin: Origin) -> None:
    """Give every batch norm the statistics that it has in the original, in place."""
    nodes = {node.name: node for node in original.graph.nodes}
    for node in gm.graph.nodes:
        norm = norm_of(gm, node)
        before = norm_of(original, nodes[node.name]) if norm is not None and node.name in nodes else None
        if norm is not None and before is not None:
            for role in ("running_mean", "running_var"):
                norm.tensors[role].copy_(origin.kept(before.names[role], before.tensors[role]))
