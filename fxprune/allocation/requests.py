"""What is asked for with a budget: checked, for channels and for weights alike."""

from __future__ import annotations

__all__ = ["check_request"]

from typing import TYPE_CHECKING, Any, Literal

from fxprune.allocation.budget import Budget
from fxprune.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from fxprune.sensitivity import Sensitivity


def check_request(
    budget: Budget | None,
    allocation: str | Sensitivity | None,
    scope: str,
    given: Any,
    kind: Literal["channels", "weights"],
) -> str | Sensitivity | None:
    """How a budget is to be shared out, or None if there is none.

    Args:
        budget: What was given as one.
        allocation: How it is shared out, or None for what ``scope`` says.
        scope: ``"global"``, or another word for one by one.
        given: The ratio or sparsity, of which there must be none beside a budget.
        kind: What is removed.

    Raises:
        ArgumentError: A ratio or sparsity and a budget at once, an allocation without a budget, or an unknown one.
        ArgumentTypeError: Something else than a budget or an allocation.
    """
    if budget is None:
        if allocation is not None:
            raise ArgumentError("allocation says how a budget is shared out; give budget=Budget(...) with it")
        return None
    if not isinstance(budget, Budget):
        raise ArgumentTypeError(f"budget must be a fxprune.Budget, not {budget!r} of type {type(budget).__name__}")
    if given is not None:
        what = "ratio" if kind == "channels" else "sparsity"
        raise ArgumentError(f"give a {what} or a budget, not both: with a budget it comes out")
    if allocation is None:
        return "global" if scope == "global" else "uniform"
    if isinstance(allocation, str):
        if allocation not in ("uniform", "global"):
            raise ArgumentError(
                f"allocation is {allocation!r}; it must be 'uniform', 'global' or the curves of fxprune.sensitivity"
            )
    elif not hasattr(allocation, "accuracy"):
        raise ArgumentTypeError(
            "allocation must be 'uniform', 'global' or the curves of fxprune.sensitivity, not a "
            f"{type(allocation).__name__}"
        )
    elif allocation.kind != kind:
        raise ArgumentError(
            f"the curves are of {allocation.kind}; measure them with fxprune.sensitivity(..., kind='{kind}')"
        )
    return allocation
