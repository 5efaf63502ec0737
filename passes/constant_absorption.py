"""Put what removed channels gave in the mean into the biases of the layers that read them."""

from __future__ import annotations

__all__ = ["ConstantAbsorption"]

from dataclasses import dataclass

import torch

from fxprune.recovery.constants import absorb
from fxprune.recovery.pair import Pair
from fxprune.recovery.paired import PairedPass


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class ConstantAbsorption(PairedPass):
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

    seed: int = 0

    def repair(self, pair: Pair) -> int:
        """Add the means."""
        return absorb(pair, torch.Generator().manual_seed(self.seed))
