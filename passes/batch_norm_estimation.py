"""Give batch norms the statistics of what they see in the pruned network."""

from __future__ import annotations

__all__ = ["BatchNormEstimation"]

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.parametrizing import copy_network
from fxprune.recovery.norms import reestimated
from fxprune.recovery.running import Runner, as_batches


# By identity, as a PassManager with constraints keeps its passes in a dictionary and batches have no hash.
@dataclass(frozen=True, eq=False)
class BatchNormEstimation(PassBase):
    """Exact mean and variance over all batches, in float64, from one norm to the next.

    Each norm sees what the norms before it give in evaluation mode, with their new statistics. Norms without running
    statistics stay as they are. The given module is not changed, and the result shares no storage with it.

    Attributes:
        batches: Inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
    """

    batches: Iterable[Any]

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Estimate the statistics of a network.

        Raises:
            ArgumentError: There are no batches.
            ArgumentTypeError: Something else than batches.
            TraceError: The batches do not fit the network.
        """
        batches = as_batches(graph_module, self.batches)
        network = copy_network(graph_module)
        modes = [module.training for module in network.modules()]
        network.eval()
        count = reestimated(network, Runner(network, batches))
        for module, training in zip(network.modules(), modes, strict=True):
            module.training = training
        return PassResult(network, count > 0)
