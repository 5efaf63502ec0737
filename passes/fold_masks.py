"""Folding: masks multiplied into their weights, parametrizations gone."""

from __future__ import annotations

__all__ = ["FoldMasks"]

from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.parametrizing import copy_network, fold_masks


@dataclass(frozen=True)
class FoldMasks(PassBase):
    """Turns masked parameters into plain ones that hold the zeros; the inverse of fine-grained pruning's bookkeeping.

    Names, and with them the keys of the ``state_dict``, become those of the dense network again. Only the masks go:
    a parametrization of the user's own, such as ``weight_norm``, stays. Shared parameters stay shared.

    Example:
        >>> dense = FoldMasks()(sparse).graph_module
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Fold the masks of a copy.

        Args:
            graph_module: A network with masks; it is only read.

        Returns:
            The copy without masks, which shares no storage with ``graph_module``, and whether there were any.

        Raises:
            WeightError: A mask lies over another parametrization that cannot represent the masked weight.
        """
        network = copy_network(graph_module)
        return PassResult(network, fold_masks(network))
