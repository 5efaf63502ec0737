"""Put what removed channels gave in the mean into the biases of the layers that read them."""

from __future__ import annotations

__all__ = ["ConstantAbsorption"]

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.origin import Origin
from fxprune.recovery.constants import absorb
from fxprune.recovery.pair import Pair


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class ConstantAbsorption(PassBase):
    """The mean of a removed channel times the weights that read it, added to each reader's outputs.

    A channel that is constant is made up for exactly where a kernel sees no padding; for any other this is the constant
    that leaves the least error. What a kernel sees of a channel is averaged over all its positions, with zeros where it
    reaches into the padding. The sum goes into the reader's bias, or into the batch norm right behind it; a reader
    with neither stays as it is. (What is put into a batch norm, its own estimation would put there as well.)

    The given module is not changed, and the result shares no storage with it.

    Attributes:
        original: The model that the network was pruned from.
        batches: Inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
        origin: Which channels were kept, if the network does not know it itself.
        seed: Of the positions that are drawn for the means where there are very many.
    """

    original: nn.Module
    batches: Iterable[Any]
    origin: Origin | None = None
    seed: int = 0

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Repair a pruned network.

        Raises:
            ArgumentError: The network was not made from the original, or there are no batches.
            ArgumentTypeError: Something else than modules and batches.
            TraceError: The batches do not fit the networks.
        """
        pair = Pair.of(graph_module, self.original, self.batches, self.origin)
        changed = absorb(pair, torch.Generator().manual_seed(self.seed))
        return PassResult(pair.finished(), changed > 0)
