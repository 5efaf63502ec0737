"""Arguments of the model that are no tensors: the values are part of the graph, their places part of its signature."""

from __future__ import annotations

__all__ = ["expect", "holds_tensor", "is_literal"]

from typing import Any

from torch import Tensor, fx
from torch.fx.node import has_side_effect
from torch.utils._pytree import tree_leaves

from fxprune.errors import ArgumentError


@has_side_effect
def expect(given: Any, traced: Any, name: str) -> None:
    """Check that an argument is what the network was traced with.

    Raises:
        ArgumentError: It is something else.
    """
    if isinstance(given, fx.Proxy):  # the graph's own code is traced
        given.tracer.create_proxy("call_function", expect, (given, traced, name), {})
    elif given is not traced and (isinstance(given, Tensor) or given != traced):
        raise ArgumentError(f"the network was traced with {name}={traced!r}, which is a part of it; trace it again")


def is_literal(value: Any) -> bool:
    """Whether a value can be written into the code of a graph."""
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(is_literal, value))
    return value is None or type(value) in (bool, int, float, str)


def holds_tensor(value: Any) -> bool:
    """Whether a nested value has a tensor in it."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
