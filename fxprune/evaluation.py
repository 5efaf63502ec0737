"""A tracer that knows what every node gives for the example inputs, and what went wrong first.

Tensors are on the meta device. Where a value depends on more than shapes, behind an opaque call, another value that it
could have is followed as well: what differs between the two is not to decide anything.
"""

from __future__ import annotations

__all__ = ["FAILURES", "MATH", "EvaluatingTracer", "twin_of", "value_of"]

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import TraceError
from fxprune.nested import modules_by_name
from fxprune.opaque import UNKNOWN, differences, map_leaves
from fxprune.shapes import MetaRunner, to_meta

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TraceError,
    TypeError,
    ValueError,
)
"""What the forward of a module can raise when it meets something that is not a tensor."""

MATH = tuple(function for name, function in vars(math).items() if callable(function) and not name.startswith("_"))
"""Functions of numbers that become nodes of the graph."""


class EvaluatingTracer(fx.Tracer):
    """torch.fx's tracer with a value for every node.

    Args:
        model: The model to trace.
        example: Values of the placeholders by name.
        device: The model's device.

    Attributes:
        modules: The modules of the model, by each of their names.
        tensors: Its parameters and buffers, and what else of tensors the graph reads, by name.
        helpers: Modules that the graph calls and the model does not have, by name.
        evaluating: Whether a call is just being answered.
        failure: Where the first failure was, and what was raised.
        refused: The call that failed: what kind of node, its target, and the values of its arguments.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any], device: torch.device) -> None:
        # Where code has them under names of its own; what it calls by way of the module is replaced there.
        super().__init__(autowrap_modules=(), autowrap_functions=MATH)  # type: ignore[arg-type]
        self.runner = MetaRunner(device)
        self.example = example
        self.modules = modules_by_name(model)
        self.tensors: dict[str, Tensor] = {}
        self.helpers: dict[str, nn.Module] = {}
        self.evaluating = False
        self.failure: tuple[str, BaseException] | None = None
        self.refused: tuple[str, Any, Any, Any] | None = None
        self._varying = False

    def evaluate(self, node: fx.Node) -> None:
        """Find a node's value."""
        self.evaluating = True  # a layer that runs on meta tensors is not to be traced
        try:
            node.meta["val"] = self._evaluate(node, value_of)
            if self._varying:
                self._follow_twin(node)
        except FAILURES as error:
            if self.failure is None:  # kept as it is now: what is taken back from the graph loses its arguments
                values = fx.node.map_arg((node.args, node.kwargs), value_of)
                self.refused = (node.op, node.target, *values)
            self.note_failure(self._where(node), error)
            raise
        finally:
            self.evaluating = False

    def note_differences(self, node: fx.Node, twin: Any) -> None:
        """Note what of a node's value is not to decide anything, by another value that it could have."""
        varies = differences(node.meta["val"], twin)
        if varies:
            self._varying = True
            node.meta["varies"], node.meta["twin"] = varies, twin

    def _follow_twin(self, node: fx.Node) -> None:
        """See whether what depends on numbers behind an opaque call decides the value of a node."""
        sources = [n for n in node.all_input_nodes if "varies" in n.meta]
        if not sources:
            return
        try:
            twin = self._evaluate(node, twin_of)
        except FAILURES:
            twin = UNKNOWN
        if isinstance(node.meta["val"], int | float) and any(isinstance(n.meta["val"], int | float) for n in sources):
            twin = UNKNOWN  # a comparison may come out the same, and need not
        self.note_differences(node, twin)

    def _evaluate(self, node: fx.Node, of: Callable[[fx.Node], Any]) -> Any:
        if node.op == "placeholder":
            return to_meta(self.example[str(node.target).lstrip("*")])
        if node.op == "get_attr":
            return self.runner.attribute(self.tensors[str(node.target)])
        if node.op == "output":
            return None
        args = fx.node.map_arg(node.args, of)
        kwargs = fx.node.map_arg(node.kwargs, of)
        if node.op == "call_module":
            target = str(node.target)
            helper = self.helpers.get(target)
            if helper is not None:
                return helper(*args, **kwargs)
            return self.runner.module(self.modules[target], args, kwargs)
        if node.op == "call_method":
            return self.runner.method(str(node.target), args, kwargs)
        if node.target is getattr:
            return self.runner.get(args[0], str(args[1]))
        return self.runner.call(node.target, args, kwargs)  # type: ignore[arg-type]

    def own_error(self) -> BaseException | None:
        """What the call that failed on the meta device raises on numbers: the model's own words."""
        if self.refused is None or self.runner.device.type == "meta":
            return None
        op, target, args, kwargs = self.refused
        args, kwargs = map_leaves(self._zeros, (args, kwargs))
        try:
            with torch.no_grad():
                if op == "call_module":
                    copy.deepcopy(self.root.get_submodule(target))(*args, **kwargs)
                elif op == "call_method":
                    getattr(args[0], target)(*args[1:], **kwargs)
                elif op == "call_function":
                    target(*args, **kwargs)
        except FAILURES as error:
            return error
        return None

    def _zeros(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.zeros(value.shape, dtype=value.dtype, device=self.runner.device)

    def _where(self, node: fx.Node) -> str:
        path = self.scope.module_path or "the model itself"
        shapes = [tuple(v.shape) for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), Tensor)]
        inputs = f" with inputs of shape {', '.join(map(str, shapes))}" if shapes else ""
        return f"{path} ({node.op} {getattr(node.target, '__name__', node.target)}{inputs})"

    def note_failure(self, where: str, error: BaseException) -> None:
        """Keep the first failure: the others followed from it."""
        if self.failure is None:
            self.failure = (where, error)

    def reason(self, error: BaseException) -> str:
        """Why tracing failed, in one line: the first failure, which others may have followed."""
        reason = self.failure[1] if self.failure else error
        return f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"


def value_of(node: fx.Node) -> Any:
    """The value of a traced node for the example inputs; tensors are on the meta device."""
    return node.meta["val"]


def twin_of(node: fx.Node) -> Any:
    """Another value that a traced node could have, if it depends on more than shapes; else the same one."""
    return node.meta.get("twin", node.meta.get("val"))
