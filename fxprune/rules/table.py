"""The table of rules: one per operator, keyed by the operator itself."""

from __future__ import annotations

__all__ = ["RULES", "Rule", "rule", "rule_for", "rule_of_class"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How an operator passes labels on.

    Attributes:
        function: Called with the reading and the operator's own arguments, labels in place of tensors.
        sizes: Whether numbers among the arguments are sizes, which follow the pruned network; numbers of every other
            operator are computed with, and keep their values.
        weights: Whether the rule takes parameters as they stand, to index them itself, and not as values with labels.
    """

    function: Callable[..., Any]
    sizes: bool = False
    weights: bool = False


RULES: dict[Any, Rule] = {}
"""By module class, function or name of a tensor method; of other libraries, which need not be there, by
``"library::name"`` of an operator and ``"package.module.Class"`` of a layer."""


def rule(*keys: Any, sizes: bool = False, weights: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function for operators.

    Raises:
        ValueError: An operator has a rule already.
    """

    def register(function: Function) -> Function:
        for key in dict.fromkeys(keys):
            if key in RULES:
                raise ValueError(f"there is a rule for {key} already: {RULES[key].function.__qualname__}")
            RULES[key] = Rule(function, sizes, weights)
        return function

    return register


def rule_for(target: Any) -> Rule | None:
    """The rule of what a graph node calls."""
    return RULES.get(target) or RULES.get(getattr(target, "_qualified_op_name", None))


def rule_of_class(kind: type) -> Rule | None:
    """The rule of a layer's class itself."""
    return RULES.get(kind) or RULES.get(f"{kind.__module__}.{kind.__qualname__}")
