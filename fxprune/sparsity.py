"""Fine-grained pruning in one call: ``prune_weights`` and its counterpart ``finalize``."""

from __future__ import annotations

__all__ = ["finalize", "prune_weights"]

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import fx, nn

from fxprune.allocation import Budget
from fxprune.allocation.requests import check_request
from fxprune.capture import Example, trace
from fxprune.criteria.weights import WeightCriterion
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.masking import budgeted_sparsities
from fxprune.passes.fine_grained_pruning import FineGrainedPruning
from fxprune.passes.fold_masks import FoldMasks
from fxprune.patterns import NM, Pattern, find_pattern

if TYPE_CHECKING:
    from fxprune.sensitivity import Sensitivity


def prune_weights(
    model: nn.Module,
    example_inputs: Example,
    sparsity: float | Mapping[str, float] | None = None,
    criterion: str | WeightCriterion = "magnitude",
    pattern: str | Pattern = "unstructured",
    scope: str = "layer",
    *,
    budget: Budget | None = None,
    allocation: str | Sensitivity | None = None,
) -> fx.GraphModule:
    """Set the least important weights of a network to zero, and keep them there.

    Args:
        model: Any network; it is left as it is.
        example_inputs: A tensor, a tuple of arguments or a mapping of keyword arguments, with which ``model`` runs.
        sparsity: Fraction of each tensor that becomes zero, in [0, 1]: one number for every weight of the convolutions
            and linear layers (not for biases and norms), or one per parameter name, as in
            ``{"backbone.conv1.weight": 0.6}``; parameters that are not named stay dense. It may be left out for the
            pattern N:M, which says it itself.
        criterion: ``"magnitude"``, or an object that looks at data: :class:`fxprune.criteria.Taylor`,
            :class:`fxprune.criteria.Snip` or :class:`fxprune.criteria.Wanda`.
        pattern: ``"unstructured"``, every weight by itself; ``"kernel"``, whole kernels of convolutions;
            :class:`fxprune.patterns.Block`, blocks of outputs and flattened inputs, of which the means are ranked; or
            ``"2:4"`` and the like (:class:`fxprune.patterns.NM`), exactly so many of so many neighbours along the
            flattened inputs. With N:M and one sparsity for all, or none, weights with a flattened input dimension that
            is no multiple stay dense.
        scope: ``"layer"`` makes every weight as sparse as said; ``"global"`` ranks the weights of all layers together,
            so that all of them are as sparse as said. Importances are compared as they are; Wanda's and those of N:M
            are compared within an output channel in any case.
        budget: What the sparse network may cost at most, in place of a sparsity: ``parameters`` are those that are not
            zero, and of the ``macs`` those by zero are not counted.
        allocation: How a budget is shared out: ``"uniform"``, the same sparsity for every weight; ``"global"``, one
            ranking of all, as with ``scope="global"``; or the curves of :func:`fxprune.sensitivity`, so that the
            accuracies that they say are lost add up to the least (an exact knapsack; weights without a curve stay
            dense). By default as ``scope`` says.

    Returns:
        A new network that shares no storage with ``model``. Its pruned parameters carry masks as parametrizations, so
        that it can be fine-tuned; :func:`finalize` takes them out.

    Raises:
        TraceError: The network cannot be captured with these inputs.
        ArgumentError: A sparsity is out of range or missing, what is given does not go together, the criterion cannot
            be computed from its batches, or even a network without these weights passes the budget.
        ArgumentTypeError: A sparsity is not a number, or another argument of a wrong type.
        UnknownNameError: The network has no parameter of a given name, or there is no such criterion or pattern.
        NothingToPruneError: One sparsity was given, and there is neither a convolution nor a linear layer, or none of
            which the pattern fits.
        WeightError: A parameter holds NaN or Inf.

    Example:
        >>> sparse = prune_weights(model, torch.zeros(1, 3, 32, 32), sparsity=0.8)
        >>> sparse = prune_weights(model, torch.zeros(1, 3, 32, 32), pattern="2:4", criterion=Wanda(batches))
    """
    how = check_request(budget, allocation, scope, sparsity, "weights")
    if budget is None and sparsity is None and not isinstance(find_pattern(pattern), NM):
        raise ArgumentError(
            "prune_weights needs a sparsity or a budget, unless the pattern is N:M, which says it itself"
        )
    gm = trace(model, example_inputs)
    if budget is not None and how is not None:
        sparsity, scope = budgeted_sparsities(gm, budget, how, criterion, pattern), "layer"
    pruning = FineGrainedPruning(sparsity=sparsity, criterion=criterion, pattern=pattern, scope=scope)
    network: fx.GraphModule = pruning.call(gm).graph_module
    return network


def finalize(sparse: fx.GraphModule) -> fx.GraphModule:
    """Multiply the masks of a sparse network into its weights, and take them out.

    Args:
        sparse: What :func:`prune_weights` returned, fine-tuned or not; it is left as it is.

    Returns:
        A new network of plain layers with zeros among their weights, which computes the same and whose ``state_dict``
        has the keys of the dense network.

    Raises:
        ArgumentTypeError: ``sparse`` is not a ``torch.fx.GraphModule``.
        WeightError: A mask lies over another parametrization that cannot represent the masked weight.

    Example:
        >>> torch.save(finalize(sparse).state_dict(), "sparse.pth")
    """
    if not isinstance(sparse, fx.GraphModule):
        raise ArgumentTypeError(
            f"finalize needs the GraphModule that prune_weights returned, not {type(sparse).__name__}; "
            f"if it is wrapped in another module, pass the inner one"
        )
    network: fx.GraphModule = FoldMasks().call(sparse).graph_module
    return network
