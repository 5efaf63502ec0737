"""What tracing changes around it, and takes back: the model and what it holds, Python's and torch's own functions."""

from __future__ import annotations

__all__ = ["FACTORIES", "CodeTracer", "patched", "unchanged"]

import functools
import math
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch
from torch.overrides import is_tensor_method_or_property
from torch.utils import checkpoint

from fxprune.conversion import stand_ins
from fxprune.evaluation import MATH
from fxprune.ladder import Ladder
from fxprune.nested import leaves
from fxprune.opaque import PYTHON, Closed, holds_proxy
from fxprune.proxies import ValueAttribute, ValueProxy, WritingProxy
from fxprune.training import Flag

FACTORIES = (
    "arange",
    "as_tensor",
    "asarray",
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

_PLAIN = frozenset((bool, int, float, str, tuple, set, type(None), Tensor, nn.Parameter, torch.Size, torch.dtype))
_DICTIONARIES = (dict, OrderedDict)
_NOT_ENTERED = (type, ModuleType, FunctionType, fx.Graph)


# Methods that take sizes: of a tensor that is no proxy they refuse proxies, or make numbers of them.
_METHODS = (
    "__getitem__",
    "expand",
    "narrow",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "repeat",
    "repeat_interleave",
    "reshape",
    "roll",
    "split",
    "tile",
    "unflatten",
    "view",
)


@contextmanager
def unchanged(model: nn.Module, tracer: Ladder) -> Iterator[None]:
    """Whatever the traced code stores in the model or in objects that it holds, they are afterwards what they were.

    Meanwhile ``training`` is a flag, so that its use as an argument can be told from a literal.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    seen: set[int] = set()
    empty: list[dict[Any, Any]] = []  # as most of those are in which a module keeps its hooks
    pending: list[Any] = [model]
    kinds: dict[type, type | None] = {}  # for each class, as what its objects are saved

    def enter(values: Iterable[Any]) -> None:
        for value in [v for v in values if type(v) not in _PLAIN]:
            if type(value) in _DICTIONARIES and not value:
                empty.append(value)
            else:
                pending.append(value)

    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        kind = type(thing)
        if kind not in kinds:
            kinds[kind] = _saved_as(kind)
        if kinds[kind] is list:
            lists.append((thing, list(thing)))
            enter(thing)
        elif kinds[kind] is not None:
            space = thing if kinds[kind] is dict else getattr(thing, "__dict__", None)
            if space is not None:
                # Of a dictionary of attributes its own method makes a copy without looking at the names.
                saved.append((space, space.copy() if type(space) is dict else dict(space)))
                enter(space.values())
    try:
        first = {module: name for name, module in reversed(tracer.modules.items())}
        for module, name in first.items():
            if "training" in vars(module) and not tracer.is_leaf_module(module, name):
                object.__setattr__(module, "training", Flag.of(module.training, name))
        yield
    finally:
        for now, before in saved:
            if len(now) != len(before) or not all(map(operator.is_, now.values(), before.values())):
                now.clear()
                now.update(before)
        for thing in filter(None, empty):
            thing.clear()
        for current, earlier in lists:
            current[:] = earlier


def _saved_as(kind: type) -> type | None:
    """What an object is, as far as what it holds can change: a list, a dictionary, or an object with attributes."""
    if issubclass(kind, (*_NOT_ENTERED, Tensor)):
        return None
    return list if issubclass(kind, list) else dict if issubclass(kind, dict) else object


_PROXIES = (fx.Proxy, ValueProxy, ValueAttribute)


def _is_instance(thing: Any, kind: Any, _original: Callable[[Any, Any], bool] = isinstance) -> bool:
    """``isinstance`` by which a proxy is what its value is.

    A ``__class__`` that says so would do it too, but torch's C code would then take the proxy for a tensor.
    """
    actual = type(thing)
    if actual is ValueProxy or actual is ValueAttribute:
        if kind in _PROXIES:
            return issubclass(actual, kind)
        if _original(thing.value, kind) or (type(kind) is tuple and fx.Proxy in kind):
            return True
        if kind is nn.Parameter or (type(kind) is tuple and nn.Parameter in kind):  # its value is none
            return actual is ValueProxy and issubclass(type(thing.tracer.tensor_of(thing)), nn.Parameter)
        return False
    return _original(thing, kind)


def _recorded(tracer: fx.Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or a node in the graph where an argument is a proxy that torch would turn into a number."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(issubclass(type(leaf), fx.Proxy) for leaf in leaves((args, kwargs))):
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return _class_like(function, call) if isinstance(function, type) else call


def _class_like(kind: type, call: Callable[..., Any]) -> type:
    """A class by whose name ``call`` runs: a library that is loaded meanwhile may keep it, to ask for instances."""
    behaviour = {
        "__call__": lambda cls, *args, **kwargs: call(*args, **kwargs),
        "__instancecheck__": lambda cls, value: isinstance(value, kind),
    }
    made: type = type(kind.__name__, (type,), behaviour)(kind.__name__, (), {})
    return made


def _extremum(tracer: fx.Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    recorded = _recorded(tracer, function)

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            return function(*args, **kwargs)
        # What an iterator would give is not seen from outside.
        return recorded(list(args[0])) if len(args) == 1 and hasattr(args[0], "__next__") else recorded(*args)

    return call


def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    """What goes on around a function whose activations are not kept, for one that is only traced."""
    yield


class _Call:
    """The same as a function with a gradient."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """Call the function that is not to keep its activations."""
        return function(*args)


_CHECKPOINTING = {
    "CheckpointFunction": _Call,
    "_checkpoint_without_reentrant_generator": _nothing,  # of torch 2.11
    "_checkpoint_without_reentrant_generator_impl": _nothing,
}
"""What torch does by these names around a checkpointed function, no proxy comes through."""


def _variable(kind: type, *args: Any, **kwargs: Any) -> Any:
    """``Variable(x)``, as code for early torch has it: the tensor itself, which may be a proxy."""
    return args[0] if args and holds_proxy(args[0]) else type.__call__(kind, *args, **kwargs)


def _scripted(self: Any, *args: Any, _original: Any = torch.jit.ScriptFunction.__call__, **kwargs: Any) -> Any:
    """A scripted function is traced through the Python code that it was made of."""
    if hasattr(self, PYTHON) and holds_proxy((args, kwargs)):
        return getattr(self, PYTHON)(*args, **kwargs)
    return _original(self, *args, **kwargs)


def _stand_in(tracer: Ladder, closed: Closed) -> Any:
    @functools.wraps(closed.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return tracer.close(closed, args, kwargs)

    wrappers: dict[str, Callable[..., Any]] = {"classmethod": classmethod, "staticmethod": staticmethod}
    wrapper = wrappers.get(closed.kind)
    return wrapper(call) if wrapper else call


def _method(tracer: Ladder, name: str) -> Callable[..., Any]:
    original = getattr(Tensor, name)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.evaluating or not holds_proxy((args, kwargs)):
            return original(self, *args, **kwargs)
        if name == "__getitem__":
            return tracer.create_proxy("call_function", operator.getitem, (self, *args), kwargs)
        return tracer.create_proxy("call_method", name, (self, *args), kwargs)

    return call


@contextmanager
def _methods(tracer: Ladder) -> Iterator[None]:
    """Methods of tensors that are no proxies; they are inherited, so that taking them away restores the originals."""
    for name in _METHODS:
        setattr(Tensor, name, _method(tracer, name))
    try:
        yield
    finally:
        for name in _METHODS:
            delattr(Tensor, name)


@contextmanager
def _replaced(space: dict[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Globals with other values; :func:`unittest.mock.patch.dict` would empty them in between."""
    before = {name: space[name] for name in values if name in space}
    space.update(values)
    try:
        yield
    finally:
        space.update(before)
        for name in values:
            if name not in before:
                del space[name]


@contextmanager
def _factories(tracer: fx.Tracer) -> Iterator[None]:
    with _replaced(vars(torch), {name: _recorded(tracer, getattr(torch, name)) for name in FACTORIES}):
        yield


@contextmanager
def _arithmetic(tracer: fx.Tracer) -> Iterator[None]:
    with _replaced(vars(math), {function.__name__: _recorded(tracer, function) for function in MATH}):
        yield


class CodeTracer(fx.Tracer):
    """Traces the code that torch.fx generates for a captured graph: unpickling a graph module does."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that writes."""
        return WritingProxy(node, self)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the code; what makes numbers of sizes goes into the graph as it came out of it."""
        numeric = {f.__name__: _recorded(self, f) for f in (int, float, len, round, max, min)}
        with _replaced(type(root).forward.__globals__, numeric), _factories(self):
            return super().trace(root, concrete_args)


@contextmanager
def patched(tracer: Ladder) -> Iterator[None]:
    """Functions that turn proxies into numbers, or refuse them, become nodes of the graph instead."""
    is_tensor_method_or_property(Tensor.add)  # torch remembers its functions for good when first asked: as they are now
    with ExitStack() as stack:
        stack.enter_context(_factories(tracer))
        stack.enter_context(_arithmetic(tracer))
        stack.enter_context(_methods(tracer))
        tracer.originals.update(isinstance=isinstance, max=max, min=min)
        tracer.patches.update(isinstance=_is_instance, max=_extremum(tracer, max), min=_extremum(tracer, min))
        stack.enter_context(mock.patch.object(torch.jit.ScriptFunction, "__call__", _scripted))
        stack.enter_context(mock.patch.object(type(torch.autograd.Variable), "__call__", _variable))
        # Functions that their authors closed to torch.fx are opened, compiled ones as well: what is inside has rules.
        stack.enter_context(mock.patch.dict(_wrapped_fns_to_patch, clear=True))
        known = vars(checkpoint).keys()
        stack.enter_context(_replaced(vars(checkpoint), {n: v for n, v in _CHECKPOINTING.items() if n in known}))
        if "torch._dynamo.config" in sys.modules:  # or nothing was compiled
            stack.enter_context(sys.modules["torch._dynamo.config"].patch(error_on_nested_fx_trace=False))
        converters = stand_ins(tracer.create_proxy, lambda v: issubclass(type(v), ValueProxy))
        for space, names in tracer.lessons.converts:
            stack.enter_context(_replaced(space, {name: converters[name] for name in names}))
        for closed in tracer.lessons.closed:
            if isinstance(closed.space, dict):
                stack.enter_context(_replaced(closed.space, {closed.name: _stand_in(tracer, closed)}))
            else:
                stack.enter_context(mock.patch.object(closed.space, closed.name, _stand_in(tracer, closed)))
        yield
