"""Put the channels of every group into descending order of importance."""

from __future__ import annotations

__all__ = ["ChannelSorting"]

from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.criteria import Criterion
from fxprune.dependency import DependencyGraph
from fxprune.passes.channel_pruning import rewrite
from fxprune.planning import plan_sorting


@dataclass(frozen=True)
class ChannelSorting(PassBase):
    """Permute channels, on every side of them; the network computes what it did.

    The given module is not changed, and the result shares no storage with it.

    Attributes:
        criterion: As for :func:`fxprune.plan_channels`.
    """

    criterion: Criterion = "input-l2"

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Sort a module from :func:`fxprune.trace`.

        Raises:
            ArgumentTypeError: The module was not traced by fxprune.
            WeightError: Weights that the criterion looks at are NaN or Inf.
        """
        plan = plan_sorting(DependencyGraph(graph_module), self.criterion)
        return PassResult(rewrite(graph_module, plan), bool(plan.tensors))
