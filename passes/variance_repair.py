"""Scale and shift every channel to the mean and the variance that it has in the original."""

from __future__ import annotations

__all__ = ["VarianceRepair"]

from dataclasses import dataclass

from fxprune.recovery.layerwise import Layerwise
from fxprune.recovery.pair import Pair
from fxprune.recovery.paired import PairedPass
from fxprune.recovery.variances import rescale


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class VarianceRepair(PairedPass):
    """REPAIR (Jordan et al., 2022, arXiv:2211.08403), for pruned networks and without extra layers.

    From the first layer to the last, the rows of each weight are scaled, and the bias or the batch norm behind it
    shifted, so that every output channel has the mean and the variance over the batches that it has in the original.
    A layer that has neither is only scaled. Channels that are constant in either network are only shifted.

    The given module is not changed, and the result shares no storage with it.

    Attributes:
        original: The model that the network was pruned from.
        batches: Inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
        origin: Which channels were kept, if the network does not know it itself.
    """

    def repair(self, pair: Pair) -> int:
        """Scale and shift layer after layer."""
        stops = 0
        for stop in Layerwise(pair.small, pair.original, pair.origin, pair.batches):
            rescale(stop)
            stops += 1
        return stops
