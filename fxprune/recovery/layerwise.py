"""A pruned network and its original side by side: what each layer gets, and what it should give."""

from __future__ import annotations

__all__ = ["Layerwise", "Stop", "kept_of"]

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, fx

from fxprune.errors import ArgumentError
from fxprune.origin import Origin
from fxprune.recovery.chains import Chain, chain_of
from fxprune.recovery.contractions import Contraction, contractions
from fxprune.recovery.norms import Norm
from fxprune.recovery.running import Batch, Runner


@dataclass(frozen=True)
class Stop:
    """A layer that is about to run.

    Attributes:
        chain: The layer, and what its output is for.
        inputs: What it gets, for each batch.
        wanted: What it should give, for each batch.
        limits: Where a ReLU behind it cuts its outputs off from below and from above, for each batch; NaN where it
            does not. None if there is no such ReLU.
    """

    chain: Chain
    inputs: list[Tensor]
    wanted: list[Tensor]
    limits: list[tuple[Tensor, Tensor]] | None


class Layerwise:
    """Stops at every layer of a pruned network before it runs; what is changed there holds for all that follows.

    What a layer should give is what it gives in the original, at the channels that are left. Where the output goes into
    a sum whose other terms are known by then, it is what makes the sum that of the original: so a block of a residual
    network makes up for what went wrong on the shortcut.

    Args:
        small: The pruned network, in evaluation mode; its layers may be changed at each stop.
        original: The network that it was made from, as a graph with the same nodes, in evaluation mode.
        origin: Which channels it has.
        batches: Inputs.

    Raises:
        ArgumentError: The graphs are not those of one network.
    """

    def __init__(self, small: fx.GraphModule, original: fx.GraphModule, origin: Origin, batches: list[Batch]) -> None:
        self._small = small
        self._origin = origin
        self._runner = Runner(small, batches)
        self._original = Runner(original, batches)
        self._stops = [chain_of(small, c, self._runner) for c in contractions(small)]
        self._caught: dict[str, list[Tensor]] = {}
        self._wanted: dict[str, list[Contraction]] = {}
        for chain in self._stops:
            contraction = chain.contraction
            for name in {contraction.node.name, chain.end.name}:
                if not self._original.has(name):
                    raise ArgumentError(
                        f"'{name}' of the pruned network is not in the original: give the model that it was made from"
                    )
                self._wanted.setdefault(name, []).append(contraction)

    def __iter__(self) -> Iterator[Stop]:
        for chain in self._stops:
            contraction = chain.contraction
            self._runner.advance(contraction.node.name, inclusive=False)
            self._original.advance(chain.end.name, self._catch)
            own = self._caught.pop(_key(contraction, contraction.node.name))
            ends = own if chain.end is contraction.node else self._caught.pop(_key(contraction, chain.end.name))
            others = [
                {step: self._runner.values(step)[i] for step in chain.steps if isinstance(step, fx.Node)}
                for i in range(len(own))
            ]
            wanted, limits = own, None
            if chain.joined or self._differs(chain):
                wanted = [chain.back(end, value, known) for end, value, known in zip(ends, own, others, strict=True)]
            if chain.clipped is not None:
                limits = [_limits(chain, chain.clipped, end, known) for end, known in zip(ends, others, strict=True)]
            yield Stop(chain, self._runner.values(contraction.source), wanted, limits)
            self._runner.advance(contraction.node.name)

    def _catch(self, node: fx.Node, values: list[Tensor]) -> None:
        for contraction in self._wanted.get(node.name, ()):
            kept = self._origin.outputs(contraction.layer)
            self._caught[_key(contraction, node.name)] = [kept_of(v, kept, contraction.channel_dim) for v in values]

    def _differs(self, chain: Chain) -> bool:
        """Whether a norm behind a layer is another than the original's, as after training."""
        for step in chain.steps:
            if isinstance(step, Norm):
                for role, tensor in step.tensors.items():
                    name = step.names[role]
                    if not torch.equal(tensor, self._origin.kept(name, attrgetter(name)(self._original.gm))):
                        return True
        return False


def kept_of(value: Tensor, kept: tuple[int, ...] | None, dim: int) -> Tensor:
    """A copy of the kept channels of a value."""
    value = value.detach()
    if kept is None:
        return value.clone()
    return value.index_select(dim, torch.tensor(kept, device=value.device))


def _limits(
    chain: Chain, clipped: tuple[float, float], end: Tensor, others: dict[fx.Node, Tensor]
) -> tuple[Tensor, Tensor]:
    """Where the layer's outputs are cut off."""
    unsure = torch.full_like(end, torch.nan)
    low, high = (chain.back(torch.full_like(end, limit), unsure, others).float() for limit in clipped)
    return low, high


def _key(contraction: Contraction, name: str) -> str:
    return f"{contraction.node.name} {name}"
