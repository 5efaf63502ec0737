"""``int``, ``float`` and ``len`` that keep a size symbolic.

Python insists that they give true numbers, which would write the size of the example into the graph. So a module whose
code was seen to convert a size is traced again with stand-ins for the three among its globals.
"""

from __future__ import annotations

__all__ = ["Converts", "notice", "stand_ins"]

import ast
import functools
import linecache
import numbers
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMES = ("int", "float", "len")


class Converts(BaseException):
    """Ends an attempt to trace: the code with these globals makes Python numbers of sizes.

    Attributes:
        space: The globals.
        names: Which of the three can have stand-ins there.
    """

    def __init__(self, space: dict[str, Any], names: frozenset[str]) -> None:
        super().__init__(f"sizes are converted in {space.get('__name__')}")
        self.space = space
        self.names = names


def notice(name: str, depth: int) -> None:
    """Say that code calls one of the three for a size.

    Args:
        name: Which.
        depth: How many calls up from the caller that code is.

    Raises:
        Converts: Stand-ins would keep the size symbolic there.
    """
    frame = sys._getframe(depth + 1)
    space, code = frame.f_globals, frame.f_code
    if name in code.co_names and name not in space and name in _called_only(code.co_filename):
        raise Converts(space, _called_only(code.co_filename))


@functools.cache
def _called_only(file: str) -> frozenset[str]:
    """Which of the three a file calls, or asks ``isinstance`` about, and does nothing else with."""
    if file.startswith(os.path.join(torch.__path__[0], "")):
        return frozenset()
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return frozenset()
    harmless: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            harmless.add(id(node.func))
            if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
                kinds = node.args[1]
                harmless |= {id(kind) for kind in (kinds.elts if isinstance(kinds, ast.Tuple) else [kinds])}
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            harmless |= {id(part) for part in ast.walk(node.annotation)}
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            harmless |= {id(part) for part in ast.walk(node.returns)}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in _NAMES]
    return frozenset(_NAMES) - {node.id for node in used if id(node) not in harmless}


class _StandIn:
    """Called like the type that it stands for, and accepted by ``isinstance`` for it."""

    def __init__(self, kind: type, record: Callable[..., Any], is_proxy: Callable[[Any], bool]) -> None:
        self._kind, self._record, self._is_proxy = kind, record, is_proxy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and self._is_proxy(args[0]):
            value = args[0].value
            if type(value) is self._kind:
                return args[0]
            if isinstance(value, numbers.Real):
                return self._record("call_function", self._kind, args, {})
        return self._kind(*args, **kwargs)

    def __instancecheck__(self, thing: Any) -> bool:
        return isinstance(thing, self._kind)


def stand_ins(record: Callable[..., Any], is_proxy: Callable[[Any], bool]) -> dict[str, Any]:
    """What to put among the globals of code that converts sizes.

    Args:
        record: Puts a call into the graph.
        is_proxy: Whether a value stands for one of the graph.
    """

    def length(thing: Any) -> Any:
        return thing.shape[0] if is_proxy(thing) and isinstance(thing.value, Tensor) else len(thing)

    return {"int": _StandIn(int, record, is_proxy), "float": _StandIn(float, record, is_proxy), "len": length}
