"""Fit every layer of a pruned network to what it gave before, on what the layers before it give now."""

from __future__ import annotations

__all__ = ["Reconstruction"]

from dataclasses import dataclass

import torch

from fxprune.recovery.layerwise import Layerwise
from fxprune.recovery.norms import restored
from fxprune.recovery.pair import Pair
from fxprune.recovery.paired import PairedPass
from fxprune.recovery.refit import refit


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class Reconstruction(PairedPass):
    """Least squares in closed form, layer after layer (after He et al., 2017, arXiv:1707.06168, section 3.1).

    Each convolution and linear layer is fitted by ridge regression to what it gave in the original, at the channels
    that are left; its inputs are those that it gets from the layers before it, which are fitted already. Where its
    output goes into a sum whose other terms are known by then, it is fitted to what makes the sum right; where a ReLU
    follows, only to what is seen behind it. Batch norms get the original's statistics back first, as they belong to the
    outputs that the layers are fitted to.

    Weights that are exactly zero, or masked, stay zero: every output is then fitted among the weights that it has.
    A constant goes into the layer's bias, or into the batch norm right behind it; without either there is none. Layers
    that run several times, share their weight, or are called as functions keep it.

    The given module is not changed, and the result shares no storage with it.

    Attributes:
        original: The model that the network was pruned from.
        batches: A few hundred inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
        origin: Which channels were kept, if the network does not know it itself.
        penalty: On the square of a weight's change, as a fraction of the mean square of the layer's inputs. None
            chooses it for every layer, by the error on a quarter of the images that are held back from a first fit.
        seed: Of the positions that are drawn where there are more than the regression needs.
    """

    penalty: float | None = None
    seed: int = 0

    def repair(self, pair: Pair) -> int:
        """Fit layer after layer."""
        restored(pair.small, pair.original, pair.origin)
        generator = torch.Generator().manual_seed(self.seed)
        stops = 0
        for stop in Layerwise(pair.small, pair.original, pair.origin, pair.batches):
            refit(stop, self.penalty, generator)
            stops += 1
        return stops
