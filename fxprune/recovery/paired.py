"""What the passes have in common that repair a pruned network beside its original."""

from __future__ import annotations

__all__ = ["PairedPass"]

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.origin import Origin
from fxprune.recovery.pair import Pair


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class PairedPass(PassBase):
    """Repairs a copy; the given module is not changed, and the result shares no storage with it.

    Attributes:
        original: The model that the network was pruned from.
        batches: Inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
        origin: Which channels were kept, if the network does not know it itself.
    """

    original: nn.Module
    batches: Iterable[Any]
    origin: Origin | None = None

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Repair a pruned network.

        Raises:
            ArgumentError: The network was not made from the original, or there are no batches.
            ArgumentTypeError: Something else than modules and batches.
            TraceError: The batches do not fit the networks.
        """
        pair = Pair.of(graph_module, self.original, self.batches, self.origin)
        layers = self.repair(pair)
        return PassResult(pair.finished(), layers > 0)

    @abstractmethod
    def repair(self, pair: Pair) -> int:
        """Repair the pair's pruned network in place, and say how many layers were looked at."""
