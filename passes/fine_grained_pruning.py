"""Fine-grained pruning: masks over single weights, as parametrizations that stay through fine-tuning."""

from __future__ import annotations

__all__ = ["FineGrainedPruning"]

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.criteria.weights import WeightCriterion
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.masking import check_choice, weight_masks
from fxprune.masks import check_sparsity
from fxprune.parametrizing import attach_masks, copy_network
from fxprune.patterns import NM, Pattern, find_pattern


# By identity, because a PassManager with constraints keeps its passes in a dictionary and mappings have no hash.
@dataclass(frozen=True, eq=False)
class FineGrainedPruning(PassBase):
    """Zeroes single weights by a mask that holds during fine-tuning; the graph and the shapes stay as they are.

    Each pruned parameter gets a :class:`fxprune.parametrizing.Mask` by ``torch.nn.utils.parametrize``, so a pruned
    weight has gradient zero and never comes back, and the mask lives in the ``state_dict`` as
    ``<layer>.parametrizations.<name>.0.mask``. A parameter that is masked already keeps its zeros. A graph node that
    reads a masked parameter directly becomes a call of its parametrization. :class:`fxprune.passes.FoldMasks` takes
    the masks out again.

    Args:
        sparsity: Fraction of zeros in [0, 1], by the rule of :func:`fxprune.masks.magnitude_mask`: one for all weights
            of convolutions and linear layers, or one per parameter name. The pattern N:M needs none.
        masks: In place of a sparsity, boolean tensors by parameter name; True where the weight is kept.
        criterion, pattern, scope: As for :func:`fxprune.prune_weights`.

    Raises:
        ArgumentError: Neither or both are given, a sparsity is out of range, or what is given does not go together.
        ArgumentTypeError: A sparsity is not a number, or neither a number nor a mapping is given.

    Example:
        >>> sparse = FineGrainedPruning(sparsity={"backbone.conv1.weight": 0.6})(gm).graph_module
    """

    sparsity: float | Mapping[str, float] | None = None
    masks: Mapping[str, Tensor] | None = None
    criterion: str | WeightCriterion = "magnitude"
    pattern: str | Pattern = "unstructured"
    scope: str = "layer"

    def __post_init__(self) -> None:
        groups = isinstance(find_pattern(self.pattern), NM)
        if (self.sparsity is None and not groups) == (self.masks is None):
            given = "neither" if self.masks is None else "both"
            raise ArgumentError(f"FineGrainedPruning needs either sparsity or masks, but was given {given}")
        for field in ("sparsity", "masks"):
            value = getattr(self, field)
            if isinstance(value, Mapping):
                # What the caller does with his dictionary later must not change the pass.
                object.__setattr__(self, field, MappingProxyType(dict(value)))
        if isinstance(self.sparsity, Mapping):
            for name, value in self.sparsity.items():
                check_sparsity(value, f"the sparsity of '{name}'")
        elif self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.masks is not None and not isinstance(self.masks, Mapping):
            raise ArgumentTypeError(
                f"masks must be a mapping from parameter names to boolean tensors, not {type(self.masks).__name__}"
            )
        if self.masks is None:
            check_choice(self.sparsity, self.criterion, self.pattern, self.scope)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Prune a copy.

        Args:
            graph_module: A traced network; it is only read.

        Returns:
            The masked copy, which shares no storage with ``graph_module``, and whether any parameter got a mask.

        Raises:
            UnknownNameError: The network has no parameter of a given name.
            NothingToPruneError: One sparsity was given, and there is neither a convolution nor a linear layer.
            WeightError: A parameter holds NaN or Inf.
            ArgumentError: A mask does not have its parameter's shape.
            ArgumentTypeError: A mask is not a boolean tensor.
        """
        masks = self.masks
        if masks is None:
            masks = weight_masks(graph_module, self.sparsity, self.criterion, self.pattern, self.scope)
        network = copy_network(graph_module)
        attach_masks(network, masks)
        return PassResult(network, bool(masks))
