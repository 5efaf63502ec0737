"""Sparsity that grows while a network is trained."""

from __future__ import annotations

__all__ = ["GradualPruning", "cubic"]

import math
import numbers
from dataclasses import dataclass

from torch import fx, nn

from fxprune.criteria.weights import WeightCriterion
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.masking import check_choice, weight_masks
from fxprune.masks import check_sparsity, weight_places
from fxprune.parametrizing import attach_masks
from fxprune.patterns import NM, Pattern, find_pattern


def cubic(progress: float, final: float, initial: float = 0.0) -> float:
    """The sparsity along a cubic curve, fast at first (Zhu and Gupta, 2017, arXiv:1710.01878).

    ``final + (initial - final) * (1 - progress)**3``

    Args:
        progress: From 0, where the sparsity is ``initial``, to 1, where it is ``final``; held beyond both.
        final: The sparsity at the end.
        initial: The sparsity at the beginning.
    """
    left = 1.0 - min(1.0, max(0.0, progress))
    return final + (initial - final) * left**3


@dataclass(frozen=True, eq=False)
class GradualPruning:
    """Makes a masked network sparser while :func:`fxprune.fine_tune` trains it: pass it as ``on_step``.

    The sparsity follows :func:`cubic` from ``begin`` to ``end``. At each update all weights are ranked anew, by the
    values that they have by then; what is zero stays zero. Masks change in place, so that the optimiser goes on.

    Attributes:
        sparsity: The sparsity at the end, in [0, 1].
        initial: The sparsity of the first update's curve, such as the one that the network has.
        begin, end: Where the sparsity begins and stops to grow, as fractions of all steps.
        updates: How many times masks are updated in between, evenly.
        criterion, pattern, scope: As for :func:`fxprune.prune_weights`; not N:M, which has one sparsity only.

    Raises:
        ArgumentError: A value is out of range, or what is given does not go together.
        ArgumentTypeError: A value is of a wrong type.

    Example:
        >>> masked = prune_weights(model, example_inputs, sparsity=0.0)
        >>> sparse = fine_tune(masked, batches, epochs=10, on_step=GradualPruning(0.9))
    """

    sparsity: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    updates: int = 20
    criterion: str | WeightCriterion = "magnitude"
    pattern: str | Pattern = "unstructured"
    scope: str = "layer"

    def __post_init__(self) -> None:
        for name in ("sparsity", "initial"):
            check_sparsity(getattr(self, name), name)
        if self.initial > self.sparsity:
            raise ArgumentError(f"initial is {self.initial}, above the sparsity {self.sparsity}: zeros stay zeros")
        for name in ("begin", "end"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), numbers.Real):
                raise ArgumentTypeError(f"{name} must be a number, not {getattr(self, name)!r}")
        if not 0 <= self.begin < self.end <= 1:
            raise ArgumentError(
                f"begin is {self.begin} and end {self.end}: they are fractions of all steps, in [0, 1], begin below end"
            )
        if isinstance(self.updates, bool) or not isinstance(self.updates, int):
            raise ArgumentTypeError(f"updates must be an integer, not {self.updates!r}")
        if self.updates < 1:
            raise ArgumentError(f"updates must be at least 1, not {self.updates}")
        if isinstance(find_pattern(self.pattern), NM):
            raise ArgumentError("N:M has one sparsity only and cannot grow: prune with it, then fine-tune")
        check_choice(self.sparsity, self.criterion, self.pattern, self.scope)

    def __call__(self, network: nn.Module, step: int, steps: int) -> bool:
        """Update the masks in place if it is time to.

        Args:
            network: What :func:`fxprune.prune_weights` returned, while it is trained.
            step: Steps done so far, from 1.
            steps: All steps of the training.

        Returns:
            Whether masks changed.

        Raises:
            ArgumentTypeError: The network is no ``torch.fx.GraphModule``.
            ArgumentError: A weight has no mask yet.
        """
        due = self._due(step / steps)
        if due == 0 or due == self._due((step - 1) / steps):
            return False
        if not isinstance(network, fx.GraphModule):
            raise ArgumentTypeError(
                f"GradualPruning needs what prune_weights returns, a GraphModule with masks, not a "
                f"{type(network).__name__}: begin with prune_weights(model, example_inputs, sparsity=0.0)"
            )
        sparsity = cubic(due / self.updates, self.sparsity, self.initial)
        masks = weight_masks(network, sparsity, self.criterion, self.pattern, self.scope)
        places = weight_places(network)
        bare = [name for name in masks if places[name].parametrization is None]
        if bare:
            raise ArgumentError(
                f"'{bare[0]}' has no mask that could grow: begin with prune_weights(model, example_inputs, "
                "sparsity=0.0)"
            )
        attach_masks(network, masks)
        return True

    def _due(self, progress: float) -> int:
        """How many updates should have been made."""
        share = (progress - self.begin) / (self.end - self.begin)
        return max(0, min(self.updates, math.floor(share * self.updates + 1e-9)))
