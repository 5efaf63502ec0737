"""What tracing changes around it, and takes back: the model and what it holds, Python's and torch's own functions."""

from __future__ import annotations

__all__ = ["patched", "unchanged"]

import builtins
import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch

from fxprune.nested import leaves
from fxprune.opaque import Closed
from fxprune.proxies import ValueAttribute, ValueProxy
from fxprune.tracer import CaptureTracer
from fxprune.training import Flag

_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "finfo",
    "full",
    "linspace",
    "ones",
    "rand",
    "randn",
    "tensor",
    "zeros",
)

_EMPTY: dict[str, Any] = {}
_PLAIN = frozenset((bool, int, float, str, tuple, set, type(None), Tensor, nn.Parameter, torch.Size, torch.dtype))


@contextmanager
def unchanged(model: nn.Module, tracer: CaptureTracer) -> Iterator[None]:
    """Whatever the traced code stores in the model or in objects that it holds, they are afterwards what they were.

    Meanwhile ``training`` is a flag, so that its use as an argument can be told from a literal.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    seen: set[int] = set()
    pending: list[Any] = [model]
    while pending:
        thing = pending.pop()
        kind = type(thing)
        if kind in _PLAIN or id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType | fx.Graph):
            continue
        seen.add(id(thing))
        if issubclass(kind, list):
            lists.append((thing, list(thing)))
            pending += thing
        elif issubclass(kind, dict):
            if not thing:  # as most of those are in which a module keeps its hooks
                saved.append((thing, _EMPTY))
                continue
            saved.append((thing, dict(thing)))
            pending += thing.values()
        elif not issubclass(kind, Tensor) and hasattr(thing, "__dict__"):
            saved.append((vars(thing), dict(vars(thing))))
            pending += vars(thing).values()
    try:
        for name, module in model.named_modules():
            if not tracer.is_leaf_module(module, name):
                object.__setattr__(module, "training", Flag.of(module, name))
        yield
    finally:
        for now, before in saved:
            if len(now) != len(before) or not all(map(operator.is_, now.values(), before.values())):
                now.clear()
                now.update(before)
        for current, earlier in lists:
            current[:] = earlier


_PROXIES = (fx.Proxy, ValueProxy, ValueAttribute)


def _is_instance(thing: Any, kind: Any, _original: Callable[[Any, Any], bool] = isinstance) -> bool:
    """``isinstance`` by which a proxy is what its value is.

    A ``__class__`` that says so would do it too, but torch's C code would then take the proxy for a tensor.
    """
    actual = type(thing)
    if actual is ValueProxy or actual is ValueAttribute:
        if kind in _PROXIES:
            return issubclass(actual, kind)
        return _original(thing.value, kind) or (type(kind) is tuple and fx.Proxy in kind)
    return _original(thing, kind)


def _recorded(tracer: CaptureTracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or a node in the graph where an argument is a proxy that torch would turn into a number."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(issubclass(type(leaf), fx.Proxy) for leaf in leaves((args, kwargs))):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _stand_in(tracer: CaptureTracer, closed: Closed) -> Any:
    @functools.wraps(closed.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return tracer.close(closed, args, kwargs)

    wrappers: dict[str, Callable[..., Any]] = {"classmethod": classmethod, "staticmethod": staticmethod}
    wrapper = wrappers.get(closed.kind)
    return wrapper(call) if wrapper else call


@contextmanager
def patched(tracer: CaptureTracer) -> Iterator[None]:
    """Functions that turn proxies into numbers, or refuse them, become nodes of the graph instead."""
    with ExitStack() as stack:
        for name in _FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _recorded(tracer, getattr(torch, name))))
        for name in ("isinstance", "max", "min"):
            tracer.originals[name] = original = getattr(builtins, name)
            patch = _is_instance if name == "isinstance" else _recorded(tracer, original)
            stack.enter_context(mock.patch.object(builtins, name, patch))
        # Functions that their authors closed to torch.fx are opened: what is inside has rules.
        stack.enter_context(mock.patch.dict(_wrapped_fns_to_patch, clear=True))
        for closed in tracer.closed:
            if isinstance(closed.space, dict):
                change = {closed.name: _stand_in(tracer, closed)}
                stack.enter_context(mock.patch.dict(closed.space, change))
            else:
                stack.enter_context(mock.patch.object(closed.space, closed.name, _stand_in(tracer, closed)))
        yield
