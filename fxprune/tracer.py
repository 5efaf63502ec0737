"""The tracer: torch.fx's own, with a value for every node, a leaf policy and a ladder.

Which layers are leaves is the leaf policy; everything built of layers is traced through. By the ladder the smallest
submodule that cannot be traced becomes one opaque node with its reason.
"""

from __future__ import annotations

__all__ = ["FAILURES", "Again", "CaptureTracer", "value_of"]

import builtins
import copy
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.arguments import in_order
from fxprune.decompositions import DECOMPOSITIONS
from fxprune.errors import TraceError
from fxprune.opaque import (
    UNKNOWN,
    Closed,
    OpaqueCall,
    Probed,
    Rebuilt,
    Spy,
    differences,
    enclosing,
    map_leaves,
    probe,
)
from fxprune.proxies import ValueProxy
from fxprune.shapes import MetaRunner, to_meta
from fxprune.training import TRAINING_FLAG, Flag

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

_REGISTERED = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


class Again(BaseException):
    """Ends an attempt to trace: the next one is to call a function by way of a stand-in.

    Attributes:
        places: Where the function is found.
        reason: Why it cannot be traced.
    """

    def __init__(self, places: list[Closed], reason: str) -> None:
        super().__init__(reason)
        self.places = places
        self.reason = reason


class CaptureTracer(fx.Tracer):
    """The tracer: see the module's docstring.

    Args:
        model: The model to trace; needed for the names of its tensors.
        example: Values of the placeholders by name.
        device: The model's device.
        closed: Functions that cannot be traced, with the reason.
        blank: A copy of the model without memory, for what is closed; None if nothing is.

    Attributes:
        originals: Python's own functions that are patched while the user's code runs, by name.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        model: nn.Module,
        example: Mapping[str, Any],
        device: torch.device,
        closed: Mapping[Closed, str],
        blank: nn.Module | None,
    ) -> None:
        super().__init__(autowrap_modules=(math,))
        self.runner = MetaRunner(device)
        self.example = example
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self.closed = closed
        self.blank = blank
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.names.setdefault(id(tensor), name)
            self.tensors[self.names[id(tensor)]] = tensor
        self.helpers: dict[str, nn.Module] = {}
        self.failure: tuple[str, BaseException] | None = None
        self._constants: list[Tensor] = []
        self._evaluating = False
        self.originals: dict[str, Any] = {}
        self._varying = False

    # What torch.fx asks of a tracer -----------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy with a value."""
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; tensors that belong to no module are kept aside, not hung into the user's model."""
        kind = type(a)
        if issubclass(kind, fx.Proxy):
            return a.node
        if kind is Flag:
            return self._flag_node(a)
        if isinstance(a, Tensor):
            return self._tensor(a).node
        if kind is torch.Size:
            return tuple(self.create_arg(x) for x in a)
        try:
            return super().create_arg(a)
        except NotImplementedError:
            if not hasattr(a, "__dict__") or isinstance(a, nn.Module | type) or callable(a):
                raise
        target = self._add_helper("_object", Rebuilt(kind))
        made = self.create_proxy("call_module", target, (), dict(vars(a)))
        made.node.meta["opaque"] = f"an object of class {kind.__name__} is made"
        return made.node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Record the call, and find its value."""
        with self._unpatched():
            if kwargs:
                args, kwargs = self._in_order(kind, target, args, kwargs)
            proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
            node = proxy.node
            self._evaluating = True  # a layer that runs on meta tensors is not to be traced
            try:
                node.meta["val"] = self._evaluate(node, value_of)
                if self._varying:
                    self._follow(node)
            except FAILURES as error:
                self._note_failure(self._where(node), error)
                raise
            finally:
                self._evaluating = False
        node.meta["source"] = _user_frame()
        return proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own layers are leaves, unless they are built of others; a subclass is one if it keeps the forward."""
        if isinstance(m, _CONTAINERS) or type(m) in DECOMPOSITIONS:
            return False
        for base in type(m).__mro__:
            if base.__module__.startswith(("torch.nn", "torch.ao.nn")):
                return base is not nn.Module and (type(m) is base or _keeps_forward(type(m), base))
        return isinstance(m, torch.jit.ScriptModule)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a submodule; if that fails, take back what it recorded and make it one opaque node."""
        if self._evaluating:
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)))
        stack, scope = dict(self.module_stack), (self.scope.module_path, self.scope.module_type)
        path = self.path_of_module(m)
        try:
            decomposed = DECOMPOSITIONS.get(type(m))
            if decomposed is not None:
                return super().call_module(m, lambda *a, **k: decomposed(m, *a, **k), args, kwargs)
            return super().call_module(m, forward, args, kwargs)
        except FAILURES as error:
            self._note_failure(path, error)
            self.try_again(error)
            self._take_back(last)
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.scope.module_path, self.scope.module_type = scope
            proxy = self._opaque(path, args, kwargs, self._probe_module(m, args, kwargs), self.reason(error))
            self.failure = None
            return proxy

    def try_again(self, error: BaseException) -> None:
        """Give up this attempt if what failed is a function that can be closed.

        Raises:
            Again: It is.
        """
        places = enclosing(error.__traceback__, self.closed)
        if places:
            raise Again(places, self.reason(error)) from error

    def close(self, closed: Closed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that cannot be traced: as one node, if the graph has anything to do with it."""
        if self._evaluating or not _holds_proxy((args, kwargs)):
            return closed.function(*args, **kwargs)
        owner, rest = ((), args) if closed.kind in ("function", "staticmethod") else (args[:1], args[1:])
        tensors: dict[str, Tensor] = {}
        path, training = self.scope.module_path, bool(getattr(self.root, "training", False))
        self._evaluating = True
        try:
            if owner and isinstance(owner[0], nn.Module):
                tensors = {**dict(owner[0].named_parameters()), **dict(owner[0].named_buffers())}
                path, training = self.path_of_module(owner[0]), bool(owner[0].training)
                copied: tuple[Any, ...] = (self._blank_copy(owner[0], path),)
            else:
                copied = copy.deepcopy(owner)
            helper = OpaqueCall(closed.function, copied)
            used, probed = self._probe_call(helper.train(training), tensors, rest, kwargs)
        finally:
            self._evaluating = False
        given = {name: self._tensor(tensors[name]) for name in sorted(used)}
        target = self._add_helper(f"{path}._opaque" if path else "_opaque", helper)
        return self._opaque(target, (given, *rest), kwargs, probed, self.closed[closed])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers that the traced code touches become ``get_attr`` nodes."""
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names and not self._evaluating:
            return self._tensor(attr_val)
        return attr_val

    # ------------------------------------------------------------------------------------------------------------------

    def _in_order(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kind != "call_module":
            return in_order(target, args, kwargs)
        module = self._modules[target]
        called, named = in_order(type(module).forward, (module, *args), kwargs)
        return called[1:], named

    @contextmanager
    def _unpatched(self) -> Iterator[None]:
        """Python's own functions, where there is none of the user's code that they could mislead."""
        patches = {name: getattr(builtins, name) for name in self.originals}
        for name, function in self.originals.items():
            setattr(builtins, name, function)
        try:
            yield
        finally:
            for name, function in patches.items():
                setattr(builtins, name, function)

    def _tensor(self, tensor: Tensor) -> ValueProxy:
        name = self.names.get(id(tensor))
        if name is None:
            name = f"_constant_{len(self._constants)}"
            self._constants.append(tensor)
            self.names[id(tensor)] = name
            self.tensors[name] = tensor
        proxy: ValueProxy = self.create_proxy("get_attr", name, (), {})
        return proxy

    def _flag_node(self, flag: Flag) -> fx.Node:
        """The one node that says whether a module is training; it stands behind the inputs."""
        target = f"{flag.owner}.{TRAINING_FLAG}" if flag.owner else TRAINING_FLAG
        known = self.graph.find_nodes(op="call_module", target=target)
        if known:
            found: fx.Node = known[0]
            return found
        inputs = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(inputs[-1]) if inputs else nullcontext():
            node = self.graph.call_module(target)
        node.meta["val"] = bool(flag)
        return node

    def _add_helper(self, stem: str, helper: nn.Module) -> str:
        target = f"{stem}_{len(self.helpers)}"
        self.helpers[target] = helper
        return target

    def _opaque(self, target: str, args: Any, kwargs: Any, probed: Probed, reason: str) -> ValueProxy:
        node = self.create_node("call_module", target, self.create_arg(args), self.create_arg(kwargs))
        node.meta["val"], node.meta["opaque"], node.meta["source"] = probed.value, reason, _user_frame()
        if probed.writes:
            node.meta["writes"] = True
        self._note_differences(node, probed.twin)
        return ValueProxy(node, self)

    def _blank_copy(self, module: nn.Module, path: str) -> nn.Module:
        """A copy as it was before tracing, less what the traced code has stored in it meanwhile."""
        assert self.blank is not None
        new = copy.deepcopy(self.blank.get_submodule(path))
        for part, now in zip(new.modules(), module.modules(), strict=True):
            for name, value in vars(now).items():
                if name in vars(part) and name not in _REGISTERED and _holds_proxy(value):
                    delattr(part, name)
        return new

    def _probe_module(self, module: nn.Module, args: Any, kwargs: Any) -> Probed:
        copies: list[nn.Module] = []

        def call(args: Any, kwargs: Any, real: bool) -> Any:
            if not real:
                return self.runner.module(module, args, kwargs)
            if not copies:
                copies.append(copy.deepcopy(module).eval())
            return copies[0](*args, **kwargs)

        return self._probe(call, args, kwargs)

    def _probe_call(
        self, helper: OpaqueCall, tensors: Mapping[str, Tensor], args: Any, kwargs: Any
    ) -> tuple[set[str], Probed]:
        """What a function gives, and which of its owner's tensors it reads."""
        used: set[str] = set()

        def call(args: Any, kwargs: Any, real: bool) -> Any:
            device = self.runner.device if real else torch.device("meta")
            # Zeros without memory: whatever the function would write into the model's tensors fails.
            given = {n: torch.zeros((), dtype=t.dtype, device=device).expand(t.shape) for n, t in tensors.items()}
            with Spy({id(tensor): name for name, tensor in given.items()}) as spy:
                result = helper(given, *args, **kwargs)
            used.update(spy.used)
            return result

        return used, self._probe(call, args, kwargs)

    def _probe(self, call: Callable[[Any, Any, bool], Any], args: Any, kwargs: Any) -> Probed:
        values = map_leaves(lambda v: v.value if issubclass(type(v), ValueProxy) else v, (args, kwargs))
        self._evaluating = True
        try:
            return probe(call, values[0], values[1], self.runner.device, FAILURES)
        finally:
            self._evaluating = False

    def _note_differences(self, node: fx.Node, twin: Any) -> None:
        varies = differences(node.meta["val"], twin)
        if varies:
            self._varying = True
            node.meta["varies"], node.meta["twin"] = varies, twin

    def _follow(self, node: fx.Node) -> None:
        """See whether what depends on numbers behind an opaque call decides the value of a node."""
        sources = [n for n in node.all_input_nodes if "varies" in n.meta]
        if not sources:
            return
        try:
            twin = self._evaluate(node, lambda n: n.meta.get("twin", n.meta.get("val")))
        except FAILURES:
            twin = UNKNOWN
        if isinstance(node.meta["val"], int | float) and any(isinstance(n.meta["val"], int | float) for n in sources):
            twin = UNKNOWN  # a comparison may come out the same, and need not
        self._note_differences(node, twin)

    def _evaluate(self, node: fx.Node, of: Callable[[fx.Node], Any]) -> Any:
        if node.op == "placeholder":
            return to_meta(self.example[self._argument(str(node.target))])
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
            return self.runner.module(self._modules[target], args, kwargs)
        if node.op == "call_method":
            return self.runner.method(str(node.target), args, kwargs)
        if node.target is getattr:
            return self.runner.get(args[0], str(args[1]))
        return self.runner.call(node.target, args, kwargs)  # type: ignore[arg-type]

    def _argument(self, target: str) -> str:
        """The argument that a placeholder stands for; torch.fx numbers those that it bakes in."""
        name = target.lstrip("*")
        return name if name in self.example else name.rpartition("_")[0]

    def _where(self, node: fx.Node) -> str:
        path = self.scope.module_path or "the model itself"
        shapes = [tuple(v.shape) for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), Tensor)]
        inputs = f" with inputs of shape {', '.join(map(str, shapes))}" if shapes else ""
        return f"{path} ({node.op} {getattr(node.target, '__name__', node.target)}{inputs})"

    def _note_failure(self, where: str, error: BaseException) -> None:
        if self.failure is None:
            self.failure = (where, error)

    def reason(self, error: BaseException) -> str:
        """Why tracing failed, in one line: the first failure, which others may have followed."""
        reason = self.failure[1] if self.failure else error
        return f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"

    def _take_back(self, last: fx.Node) -> None:
        while (node := next(iter(reversed(self.graph.nodes)))) is not last:
            self.graph.erase_node(node)


def _holds_proxy(value: Any) -> bool:
    found: list[bool] = []
    map_leaves(lambda v: found.append(True) if issubclass(type(v), fx.Proxy) else v, value)
    return bool(found)


def value_of(node: fx.Node) -> Any:
    """The value of a traced node for the example inputs; tensors are on the meta device."""
    return node.meta["val"]


def _keeps_forward(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass computes what its base does: it overrides none of the methods that torch's layers run."""
    names = ("forward", "_conv_forward", "_check_input_dim", "__call__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)


_OURS = tuple(f"{Path(package).parent}{os.sep}" for package in (torch.__file__, __file__))


@cache
def _shown(file: str) -> str:
    """A source file's name for a message; empty for those of torch and of this package."""
    return "" if file.startswith((*_OURS, "<")) else "/".join(Path(file).parts[-2:])


def _user_frame() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = _shown(frame.f_code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
