"""Modes that the traced code decides by: one graph for training and evaluation, where they differ in flags alone.

``training=True if self.training else self.running_mean is None`` leaves a constant in the graph. What was recorded in
either mode is laid side by side: where the two differ in flags that follow the mode, the graph takes the flag itself.
"""

from __future__ import annotations

__all__ = ["FOLLOWS", "OPPOSES", "Differ", "Mode", "Script", "counters", "merge"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.errors import FxpruneError
from fxprune.training import TRAINING_FLAG

FOLLOWS, OPPOSES = object(), object()
"""In the place of an argument that is the mode, or the contrary of it."""


@dataclass(frozen=True)
class Mode:
    """The mode that a model is in.

    Attributes:
        training: Whether it is training.
        target: What the node that tells the graph so calls.
    """

    training: bool
    target: str

    def seen(self, value: Any, here: bool) -> Any:
        """A value, or what the node of the mode gives: in this mode, or in the other one."""
        if isinstance(value, fx.Node) and value.target == self.target:
            return self.training is here
        return value

    def stands_for(self, value: bool) -> Any:
        """What has this value in this mode and the other one in the other."""
        return FOLLOWS if value is self.training else OPPOSES


class Differ(FxpruneError):
    """The two recordings have more than flags to tell them apart."""


class Script:
    """What was recorded in one mode, to follow while the other is recorded: the first operator that differs ends it.

    Args:
        nodes: Those of the mode that the model is in.
    """

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self._calls = [(n.op, n.target) for n in nodes if not _left_out(n.op, n.target)]
        self._next = 0
        self._differs = False

    def follow(self, op: str, target: Any) -> None:
        """Compare the next call of the other mode.

        Raises:
            Differ: It is another one. :func:`merge` would find the same in the end.
        """
        if _left_out(op, target):
            return
        expected = self._calls[self._next] if self._next < len(self._calls) else None
        self._next += 1
        self._differs |= expected != (op, target)
        self.check()

    def check(self) -> None:
        """Raise Differ if a call was another one: the traced code may have caught what was raised then."""
        if self._differs:
            raise Differ("there are other operators in one mode than in the other")


def _left_out(op: str, target: Any) -> bool:
    """What counts batches, or reads a tensor that may have no users in the end, is compared when all is recorded."""
    return op == "get_attr" or (op == "call_method" and target == "add_") or str(target).endswith(TRAINING_FLAG)


def counters(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that add 1 to a buffer and do nothing else, as batch norms count their batches."""
    return [
        n
        for n in nodes
        if n.op == "call_method"
        and n.target == "add_"
        and not n.users
        and n.args[1:] == (1,)
        and _counted(n) is not None
    ]


def _counted(node: fx.Node) -> fx.Node | None:
    buffer = node.args[0]
    return buffer if isinstance(buffer, fx.Node) and buffer.op == "get_attr" and len(buffer.users) == 1 else None


def merge(
    nodes: Sequence[fx.Node], others: Sequence[fx.Node], out: Any, other_out: Any, mode: Mode
) -> list[tuple[fx.Node, Any, Any]]:
    """Lay two recordings side by side.

    Args:
        nodes: Those of the mode that the model is in.
        others: Those of the other mode.
        out: What the first gave, with nodes for values.
        other_out: What the second gave.
        mode: The mode that the model is in.

    Returns:
        Nodes of the first whose arguments change: with new arguments, in which :data:`FOLLOWS` and :data:`OPPOSES`
        stand for the mode.

    Raises:
        Differ: They differ in more than that.
    """
    nodes, others = _essential(nodes), _essential(others)
    if len(nodes) != len(others):
        raise Differ("there are more operators in one mode than in the other")
    same: dict[fx.Node, fx.Node] = {}
    changes = []
    for a, b in zip(nodes, others, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            raise Differ(f"there is {a.target} in one mode and {b.target} in the other")
        args, kwargs = (_merged(x, y, same, mode) for x, y in ((a.args, b.args), (dict(a.kwargs), dict(b.kwargs))))
        if args != a.args or kwargs != a.kwargs:
            changes.append((a, args, kwargs))
        same[b] = a
    if _merged(out, other_out, same, mode) != out:
        raise Differ("the mode is a part of the result")
    return changes


def _essential(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    left_out = set(counters(nodes))
    left_out |= {found for n in left_out if (found := _counted(n)) is not None}
    return [n for n in nodes if n not in left_out and (n.op != "get_attr" or n.users)]


def _merged(a: Any, b: Any, same: dict[fx.Node, fx.Node], mode: Mode) -> Any:
    if type(mode.seen(a, True)) is bool and type(mode.seen(b, False)) is bool:
        first, second = mode.seen(a, True), mode.seen(b, False)
        return a if a is b or a == first == second else first if first == second else mode.stands_for(first)
    if isinstance(a, fx.Node):
        if same.get(b, b) is not a:
            raise Differ("a value comes from elsewhere")
        return a
    if type(a) is not type(b):
        raise Differ("an argument is of another type")
    if isinstance(a, tuple | list):
        if len(a) != len(b):
            raise Differ("there are more arguments in one mode than in the other")
        parts = [_merged(x, y, same, mode) for x, y in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
    if isinstance(a, dict):
        if a.keys() != b.keys():
            raise Differ("there are other arguments")
        return {k: _merged(a[k], b[k], same, mode) for k in a}
    if isinstance(a, slice):
        parts = [_merged(x, y, same, mode) for x, y in zip(_parts(a), _parts(b), strict=True)]
        return slice(*parts)
    if a == b:
        return a
    raise Differ("an argument has another value")


def _parts(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step
