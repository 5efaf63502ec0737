"""The three steps in one, for a whole model or one part of it."""

from __future__ import annotations

__all__ = ["prune_channels"]

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.allocation import Budget
from fxprune.capture import FAILURES, Example, bind_example
from fxprune.criteria import Criterion
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentTypeError, TraceError, UnknownNameError, nearest_names
from fxprune.nested import map_nested
from fxprune.planning import plan_channels
from fxprune.ratios import Ratio
from fxprune.sensitivity import Sensitivity


def prune_channels(
    model: nn.Module,
    example_inputs: Example,
    ratio: Ratio | None = None,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
    submodule: str | None = None,
    heads: bool = False,
    *,
    budget: Budget | None = None,
    allocation: str | Sensitivity | None = None,
    min_channels: int | Mapping[str, int] = 1,
) -> nn.Module:
    """Trace a model, plan, and rewrite.

    Args:
        model: Any module; it is not changed.
        example_inputs: As for :func:`fxprune.trace`.
        ratio: As for :func:`fxprune.plan_channels`, like all that follow up to ``round_to``.
        criterion: How channels are ranked.
        scope: Whether groups are ranked one by one or together.
        exclude: Names of layers whose output channels all stay.
        round_to: Round kept channels up to a multiple of this.
        submodule: Name of one part, such as ``"backbone"``, to prune in place of the whole; names in ``ratio`` and
            ``exclude`` are then relative to it. What goes in and out of the part keeps its shape.
        heads: Remove whole heads of attentions in place of dimensions of every head.
        budget: What the network may cost, in place of a ratio; with ``submodule`` that of the part.
        allocation: How the budget is shared out, as for :func:`fxprune.plan_channels`.
        min_channels: The fewest units that a group keeps, likewise.

    Returns:
        A new ``torch.fx.GraphModule`` with fewer channels; with ``submodule``, a copy of the model in which that part
        is such a module.

    Raises:
        FxpruneError: As from :func:`fxprune.trace` and :func:`fxprune.plan_channels`.
        UnknownNameError: There is no such submodule; the message lists the nearest names.

    Example:
        >>> small = prune_channels(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224), ratio=0.5)
    """
    more = {"budget": budget, "allocation": allocation, "min_channels": min_channels}
    if submodule is not None:
        part, inputs = _part(model, example_inputs, submodule)
        small = _prune(part, inputs, ratio, criterion, scope, exclude, round_to, heads, **more)
        return copy.deepcopy(model, {id(part): small})
    return _prune(model, example_inputs, ratio, criterion, scope, exclude, round_to, heads, **more)


def _prune(model: nn.Module, example_inputs: Example, *args: Any, **more: Any) -> nn.Module:
    return plan_channels(DependencyGraph.from_model(model, example_inputs), *args, **more).apply(model)


class _Reached(BaseException):
    """Ends a run of the model where the part has its inputs; no handler in the model is to take it for its own."""


def _part(model: nn.Module, example_inputs: Example, name: str) -> tuple[nn.Module, inspect.BoundArguments]:
    """A submodule and the inputs that it gets for the example, from a run in evaluation mode up to there."""
    if not isinstance(model, nn.Module) or not isinstance(name, str):
        kinds = f"a {type(model).__name__} and a {type(name).__name__}"
        raise ArgumentTypeError(f"submodule= needs an nn.Module and the name of one of its parts, not {kinds}")
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise UnknownNameError(f"no submodule '{name}'; {nearest_names(name, [n for n in modules if n])}")
    part = modules[name]
    caught: list[inspect.BoundArguments] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(inspect.signature(module.forward).bind(*args, **kwargs))
        raise _Reached

    example = bind_example(model, example_inputs)
    modes = [(module, module.training) for module in model.modules()]
    hook = part.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.eval()
        with torch.no_grad():
            model(*example.args, **example.kwargs)
    except _Reached:
        detached = map_nested(lambda v: v.detach() if isinstance(v, Tensor) else v, caught[0].arguments)
        return part, inspect.BoundArguments(caught[0].signature, detached)
    except FAILURES as error:
        raise TraceError(
            f"{type(model).__name__} failed on the example inputs before it reached '{name}': "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode
    raise TraceError(f"{type(model).__name__} never calls its submodule '{name}' on the example inputs")
