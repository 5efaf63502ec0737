"""A pruned network to be repaired, beside the one that it was made from."""

from __future__ import annotations

__all__ = ["Pair"]

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxprune.capture import bound_to, trace
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.masks import weight_places
from fxprune.origin import Origin, origin_of
from fxprune.parametrizing import copy_network
from fxprune.recovery.running import Batch, as_batches


@dataclass(frozen=True)
class Pair:
    """Copies of both networks, in evaluation mode, with the batches that they run on.

    Attributes:
        small: A copy of the pruned network, to be changed.
        original: A copy of the original, as a graph with the same nodes.
        origin: Which of its channels the pruned network has.
        batches: The inputs.
        training: The modes of the pruned network's modules.
    """

    small: fx.GraphModule
    original: fx.GraphModule
    origin: Origin
    batches: list[Batch]
    training: tuple[bool, ...]

    @classmethod
    def of(
        cls, small: fx.GraphModule, original: nn.Module, batches: Iterable[Any], origin: Origin | None = None
    ) -> Pair:
        """Bring both networks together."""
        if not isinstance(small, fx.GraphModule) or not isinstance(original, nn.Module):
            kinds = f"a {type(small).__name__} and a {type(original).__name__}"
            raise ArgumentTypeError(
                f"recovery needs the pruned GraphModule and the model that it was made from, not {kinds}"
            )
        values = as_batches(small, batches)
        if isinstance(original, fx.GraphModule) and all("val" in node.meta for node in original.graph.nodes):
            before = copy_network(original)
        else:
            before = copy_network(trace(original, bound_to(small, values[0])))
        found = origin or origin_of(small) or Origin({}, {})
        _check(small, before, found)
        copied = copy_network(small)
        training = tuple(module.training for module in copied.modules())
        return cls(copied.eval(), before.eval(), found, values, training)

    def finished(self) -> fx.GraphModule:
        """The pruned network's copy, in the mode that it came in."""
        for module, training in zip(self.small.modules(), self.training, strict=True):
            module.training = training
        return self.small


def _check(small: fx.GraphModule, original: fx.GraphModule, origin: Origin) -> None:
    own, before = weight_places(small), weight_places(original)
    for name, place in own.items():
        shape = tuple(place.value.shape)
        if name not in before:
            raise ArgumentError(
                f"'{name}' of the pruned network is not in the original: give the model it was made from"
            )
        expected = tuple(origin.kept(name, before[name].value).shape)
        if shape != expected:
            raise ArgumentError(
                f"'{name}' has shape {shape}, and not {expected} as what is kept of {tuple(before[name].value.shape)}: "
                "give the model that the network was pruned from, or plan= if the network does not know its own"
            )
