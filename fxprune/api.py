"""The three steps in one."""

from __future__ import annotations

__all__ = ["prune_channels"]

from collections.abc import Iterable

from torch import fx, nn

from fxprune.capture import Example
from fxprune.criteria import Criterion
from fxprune.dependency import DependencyGraph
from fxprune.planning import Ratio, plan_channels


def prune_channels(
    model: nn.Module,
    example_inputs: Example,
    ratio: Ratio = 0.3,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
) -> fx.GraphModule:
    """Trace a model, plan, and rewrite.

    Args:
        model: Any module; it is not changed.
        example_inputs: As for :func:`fxprune.trace`.
        ratio: As for :func:`fxprune.plan_channels`, like all that follow.
        criterion: How channels are ranked.
        scope: Whether groups are ranked one by one or together.
        exclude: Names of layers whose output channels all stay.
        round_to: Round kept channels up to a multiple of this.

    Returns:
        A new graph module with fewer channels.

    Raises:
        FxpruneError: As from :func:`fxprune.trace` and :func:`fxprune.plan_channels`.

    Example:
        >>> small = prune_channels(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224), ratio=0.5)
    """
    deps = DependencyGraph.from_model(model, example_inputs)
    return plan_channels(deps, ratio, criterion, scope, exclude, round_to).apply(model)
