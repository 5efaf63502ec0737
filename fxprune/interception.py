"""How the tracer learns what the traced code calls and reads of the model's modules, while it runs.

torch.fx puts functions of its own into ``nn.Module`` for that. Each time Python then goes through all subclasses, of
which there are more than a thousand, and forgets what it knows of their attributes: three milliseconds, as long as some
networks take to be traced. Here the modules of the model have their own entries in place of that, which torch asks for.
"""

from __future__ import annotations

__all__ = ["intercepted"]

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx._symbolic_trace as symbolic_trace
from torch import nn

from fxprune.ladder import Ladder

_DICTIONARIES = (dict, OrderedDict)
_HELD = ("_parameters", "_buffers")
_ENTRY = "_compiled_call_impl"  # what a module runs when it is called, if it has one: nn.Module.compile sets it
_PATCHED = "__fx_already_patched"  # what torch.fx asks a function for before it patches it


class _Entry:
    """What a module runs when it is called. A copy of the module has none."""

    __slots__ = ("module", "tracer")

    def __init__(self, module: nn.Module, tracer: Ladder) -> None:
        self.module = module
        self.tracer = tracer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        patcher, functions = symbolic_trace.CURRENT_PATCHER, self.tracer._autowrap_function_ids
        if patcher is not None:
            names = getattr(getattr(module, "forward", module), "__globals__", {})
            symbolic_trace._autowrap_check(patcher, names, functions)
        return self.tracer.call_module(module, module._call_impl, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


class _Watched(dict[str, Any]):
    """The parameters or buffers of a module, of which the tracer says what asking for one gives. A copy is plain."""

    __slots__ = ("held", "tracer")

    def __init__(self, held: dict[str, Any], tracer: Ladder) -> None:
        super().__init__(held)
        self.held = held
        self.tracer = tracer

    @property
    def changed(self) -> bool:
        """Whether the traced code has put another tensor in the place of one of these, and left it there."""
        return any(self.get(name) is not tensor for name, tensor in self.held.items())

    def __getitem__(self, name: str) -> Any:
        return self.tracer.getattr(name, super().__getitem__(name), {})

    def __setitem__(self, name: str, value: Any) -> None:
        self.tracer.written |= not self.tracer.evaluating
        super().__setitem__(name, self.tracer.tensor_of(value))

    def __delitem__(self, name: str) -> None:
        self.tracer.written |= not self.tracer.evaluating
        super().__delitem__(name)

    def pop(self, *args: Any) -> Any:
        """As of any dictionary."""
        self.tracer.written |= not self.tracer.evaluating
        return super().pop(*args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


@contextmanager
def intercepted(tracer: Ladder) -> Iterator[None]:
    """Calls of the model's modules go to the tracer, and so does reading their parameters and buffers."""
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    patched = (symbolic_trace._orig_module_call, symbolic_trace._orig_module_getattr)
    try:
        for module in {id(module): module for module in tracer.modules.values()}.values():
            space = vars(module)
            changed.append((space, {name: space[name] for name in (_ENTRY, *_HELD) if name in space}))
            space[_ENTRY] = _Entry(module, tracer)
            for kind in _HELD:
                held = space.get(kind)
                if held and type(held) in _DICTIONARIES:
                    space[kind] = _Watched(held, tracer)
        for function in patched:
            setattr(function, _PATCHED, True)
        yield
    finally:
        for function in patched:
            vars(function).pop(_PATCHED, None)
        for space, before in changed:
            space.pop(_ENTRY, None)
            space.update(before)
