"""One spelling for every call: what torch accepts by keyword stands where torch documents it.

The graph is what the two readings, the proof and the rewrite look at, so calls are spelled alike once, when they are
captured: arguments by position as far as they follow one another, and no name that exists for NumPy's sake.
"""

from __future__ import annotations

__all__ = ["argument", "in_order"]

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

_FOR_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "a": "input", "x2": "other"}


def in_order(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with as many as possible by position, and the rest under the names of torch.

    Args:
        target: A function, or the name of a tensor's method.
        args: Positional arguments, those of a method with the tensor itself.
        kwargs: The others.

    Returns:
        The new arguments: those given where nothing is known of the target, or no signature fits.
    """
    if kwargs:
        for positional, names in _signatures(target):
            named = {name if name in names else _FOR_NUMPY.get(name, name): v for name, v in kwargs.items()}
            if (
                len(args) > len(positional)
                or not names.issuperset(named)
                or named.keys() & set(positional[: len(args)])
            ):
                continue
            ordered = list(args)
            for name in positional[len(args) :]:
                if name not in named:
                    break
                ordered.append(named.pop(name))
            return tuple(ordered), named
    return args, dict(kwargs)


def argument(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """What a call is given under a name, by keyword or by position; None if it is not given or not known."""
    if name in kwargs:
        return kwargs[name]
    for positional, _ in _signatures(target):
        if name in positional[: len(args)]:
            return args[positional.index(name)]
    return None


@cache
def _signatures(target: Any) -> tuple[tuple[tuple[str, ...], frozenset[str]], ...]:
    """For every overload, the names of its arguments that can stand by position, and of all."""
    function: Any = getattr(torch.Tensor, target, None) if isinstance(target, str) else target
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        name = str(getattr(target, "__name__", target))
        return tuple(_overload(schema) for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}"))
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return ()
    positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    return ((positional, frozenset(p.name for p in parameters)),)


def _overload(schema: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    named = [("input" if a.name == "self" else a.name, a.kwarg_only) for a in schema.arguments]
    return tuple(name for name, keyword in named if not keyword), frozenset(name for name, _ in named)
