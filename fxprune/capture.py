"""Capture: from any ``nn.Module`` to a ``torch.fx.GraphModule`` with a shape on every node.

This is torch.fx symbolic tracing with three additions: proxies that know the value they would have for the example
inputs, so
that control flow on sizes resolves while the sizes themselves stay in the graph; a leaf policy by which layers are
leaves and everything built of layers is traced through; and a ladder by which the smallest submodule that cannot be
traced becomes one opaque node with its reason.
"""

from __future__ import annotations

__all__ = ["FAILURES", "TRAINING_FLAG", "Example", "bind_example", "conform", "source_of", "trace", "value_of"]

import builtins
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any, TypeAlias
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch
from torch.utils._pytree import tree_map

from fxprune.decompositions import DECOMPOSITIONS
from fxprune.errors import ArgumentTypeError, TraceError
from fxprune.shapes import MetaRunner, to_meta

Example: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

TRAINING_FLAG = "_training_flag"
"""Name of the submodule that carries ``model.training`` into functional dropout and batch norm."""

# What the forward of a module can raise when it meets something that is not a tensor.
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
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
_WRITERS = {operator.setitem, *(getattr(operator, name) for name in _IN_PLACE)}
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
_CONTAINERS = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


class TrainingState(nn.Module):
    """Gives the ``training`` attribute to functions that take it as an argument."""

    def forward(self) -> bool:
        """Whether the network is in training mode."""
        return bool(self.training)


class _Flag(int):
    """Stands for ``module.training`` during tracing, so that its use as an argument can be told from a literal."""

    owner: str

    @classmethod
    def of(cls, module: nn.Module, name: str) -> _Flag:
        """The flag of a module with that name."""
        flag = cls(module.training)
        flag.owner = name
        return flag


class ValueProxy(fx.Proxy):
    """A proxy that knows the value it would have for the example inputs, tensors being on the meta device."""

    @property
    def value(self) -> Any:
        """The value for the example inputs."""
        return self.node.meta["val"]

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.value, Tensor):
            if name in ("_is_param", "__torch_function__"):
                return getattr(self.value, name, False)
            if name in ("ndim", "is_cuda", "is_sparse", "is_quantized", "requires_grad", "layout", "is_meta"):
                return self.tracer.runner.get(self.value, name)  # type: ignore[attr-defined]
        elif isinstance(self.value, torch.device | torch.dtype):
            return getattr(self.value, name)
        return ValueAttribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def dim(self) -> int:
        """The number of dimensions, which no input size changes."""
        return int(self.value.dim())

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating-point type."""
        return bool(self.value.is_floating_point())

    def is_contiguous(self, **_: Any) -> bool:
        """Tracing takes the contiguous branch: what follows may not rely on strides."""
        return True

    def __bool__(self) -> bool:
        value = self.value
        if isinstance(value, Tensor):
            raise TraceError("the control flow depends on the values of a tensor, not on sizes alone")
        return bool(value)

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self,) if digits is None else (self, digits), {})

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def _number(self) -> Any:
        if isinstance(self.value, Tensor):
            raise TraceError("a Python number is made from the values of a tensor")
        return self.value

    def __len__(self) -> int:
        return len(self.value)

    def _item(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, Mapping):
            return iter(list(value))
        return (self._item(i) for i in range(len(value)))

    def __contains__(self, item: Any) -> bool:
        return item in self.value

    @property
    def keys(self) -> Any:
        """Of a dictionary, its method; of anything else, the attribute of that name."""
        value = self.value
        return value.keys if isinstance(value, Mapping) else ValueAttribute(self, "keys")

    @property
    def items(self) -> Any:
        """Of a dictionary, its method, with proxies for values; of anything else, the attribute of that name."""
        value = self.value
        if isinstance(value, Mapping):
            return lambda: [(key, self._item(key)) for key in value]
        return ValueAttribute(self, "items")

    @property
    def values(self) -> Any:
        """Of a dictionary, its method, with proxies for values; of anything else, the attribute of that name."""
        value = self.value
        return (
            (lambda: [self._item(key) for key in value])
            if isinstance(value, Mapping)
            else ValueAttribute(self, "values")
        )


def _in_place(name: str) -> Callable[..., Any]:
    """``x += y`` and its like, which write into ``x``: a view of it that was taken before sees the change."""
    target = getattr(operator, name)

    def method(self: ValueProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(ValueProxy, f"__{_name}__", _in_place(_name))


class ValueAttribute(ValueProxy):
    """An attribute of a proxy; the graph gets a node for it when it is used other than by a call."""

    def __init__(self, root: ValueProxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node, made on first use."""
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class CaptureTracer(fx.Tracer):
    """The tracer: see the module's docstring.

    Args:
        model: The model to trace; needed for the names of its tensors.
        example: Values of the placeholders by name.
        device: The model's device.
    """

    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module, example: Mapping[str, Any], device: torch.device) -> None:
        super().__init__(autowrap_modules=(math,))
        self.runner = MetaRunner(device)
        self.example = example
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.names.setdefault(id(tensor), name)
            self.tensors[self.names[id(tensor)]] = tensor
        self._opaque: str | None = None
        self.failure: tuple[str, BaseException] | None = None
        self._constants: list[Tensor] = []
        self._evaluating = False

    # What torch.fx asks of a tracer -----------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy with a value."""
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; tensors that belong to no module are kept aside, not hung into the user's model."""
        kind = type(a)
        if issubclass(kind, fx.Proxy):
            return a.node
        if kind is _Flag:
            return self._flag_node(a)
        if isinstance(a, Tensor):
            return self._tensor(a).node
        if kind is torch.Size:
            return tuple(self.create_arg(x) for x in a)
        return super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Record the call, and find its value."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        self._evaluating = True  # a layer that runs on meta tensors is not to be traced
        try:
            node.meta["val"] = self._evaluate(node)
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
            self._take_back(last)
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.scope.module_path, self.scope.module_type = scope
            reason = self.failure[1] if self.failure else error
            self._opaque = f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}"
            try:
                proxy = self.create_proxy("call_module", path, args, kwargs)
            finally:
                text, self._opaque = self._opaque, None
            self.failure = None
            proxy.node.meta["opaque"] = text
            return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers that the traced code touches become ``get_attr`` nodes."""
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names and not self._evaluating:
            return self._tensor(attr_val)
        return attr_val

    # ------------------------------------------------------------------------------------------------------------------

    def _tensor(self, tensor: Tensor) -> ValueProxy:
        name = self.names.get(id(tensor))
        if name is None:
            name = f"_constant_{len(self._constants)}"
            self._constants.append(tensor)
            self.names[id(tensor)] = name
            self.tensors[name] = tensor
        proxy: ValueProxy = self.create_proxy("get_attr", name, (), {})
        return proxy

    def _flag_node(self, flag: _Flag) -> fx.Node:
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

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return to_meta(self.example[self._argument(str(node.target))])
        if node.op == "get_attr":
            return self.runner.attribute(self.tensors[str(node.target)])
        if node.op == "output":
            return None
        args = fx.node.map_arg(node.args, value_of)
        kwargs = fx.node.map_arg(node.kwargs, value_of)
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            try:
                return self.runner.module(module, args, kwargs)
            except FAILURES:
                if self._opaque is None:
                    raise
                return self.runner.real(module, args, kwargs)
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

    def _take_back(self, last: fx.Node) -> None:
        while (node := next(iter(reversed(self.graph.nodes)))) is not last:
            self.graph.erase_node(node)


def value_of(node: fx.Node) -> Any:
    """The value of a traced node for the example inputs; tensors are on the meta device."""
    return node.meta["val"]


def source_of(node: fx.Node) -> str:
    """Where a node comes from, for a message: its name, module path and source line."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
    parts = [f"node '{node.name}'"]
    if path:
        parts.append(f"in module '{path}'")
    if node.meta.get("source"):
        parts.append(f"at {node.meta['source']}")
    return " ".join(parts)


def _keeps_forward(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass computes what its base does: it overrides none of the methods that torch's layers run."""
    names = ("forward", "_conv_forward", "_check_input_dim", "__call__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)


def _user_frame() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and "/fxprune/" not in name and not name.startswith("<"):
            parts = name.replace("\\", "/").split("/")
            return f"{'/'.join(parts[-2:])}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def bind_example(model: nn.Module, example_inputs: Example) -> dict[str, Any]:
    """Match the example inputs with the parameters of the model's ``forward``.

    Args:
        model: The model.
        example_inputs: One tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Returns:
        Values by parameter name, defaults included.

    Raises:
        ArgumentTypeError: ``example_inputs`` is none of these.
        TraceError: They do not fit the signature; chained to Python's own error.
    """
    if isinstance(example_inputs, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, Tensor):
        args, kwargs = (example_inputs,), {}
    elif isinstance(example_inputs, tuple | list):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise ArgumentTypeError(
            f"example_inputs must be a tensor, a tuple of arguments or a dictionary of keyword arguments, "
            f"not {type(example_inputs).__name__}"
        )
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; "
            f"pass one value for each argument without a default"
        ) from error
    bound.apply_defaults()
    return dict(bound.arguments)


@contextmanager
def _unchanged(model: nn.Module, tracer: CaptureTracer) -> Iterator[None]:
    """Whatever the traced code stores in the model or in objects that it holds, they are afterwards what they were.

    Meanwhile ``training`` is a flag, so that its use as an argument can be told from a literal.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    seen: set[int] = set()
    pending: list[Any] = [model]
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType | Tensor | fx.Graph):
            continue
        seen.add(id(thing))
        if isinstance(thing, list):
            lists.append((thing, list(thing)))
            pending += thing
        elif isinstance(thing, dict):
            saved.append((thing, dict(thing)))
            pending += thing.values()
        elif hasattr(thing, "__dict__"):
            saved.append((vars(thing), dict(vars(thing))))
            pending += vars(thing).values()
    try:
        for name, module in model.named_modules():
            if not tracer.is_leaf_module(module, name):
                object.__setattr__(module, "training", _Flag.of(module, name))
        yield
    finally:
        for now, before in saved:
            if now.keys() != before.keys() or any(now[key] is not value for key, value in before.items()):
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
        found: list[bool] = []
        tree_map(lambda v: found.append(True) if issubclass(type(v), fx.Proxy) else None, (args, kwargs))
        if found:
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


@contextmanager
def _patched(tracer: CaptureTracer) -> Iterator[None]:
    with ExitStack() as stack:
        for name in _FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _recorded(tracer, getattr(torch, name))))
        stack.enter_context(mock.patch.object(builtins, "isinstance", _is_instance))
        for name in ("max", "min"):
            stack.enter_context(mock.patch.object(builtins, name, _recorded(tracer, getattr(builtins, name))))
        # Functions that their authors closed to torch.fx are opened: what is inside has rules.
        stack.enter_context(mock.patch.dict(_wrapped_fns_to_patch, clear=True))
        yield


def trace(model: nn.Module, example_inputs: Example) -> fx.GraphModule:
    """Capture a model as a graph, with the shape of every value.

    The model is neither run on its weights nor changed, whatever happens.

    Args:
        model: Any module; it may live on any device, ``meta`` included.
        example_inputs: One tensor, a tuple of positional arguments, or a mapping of keyword arguments of ``forward``.

    Returns:
        A graph module that shares the model's parameters and buffers. ``node.meta["val"]`` is each node's value for
        the example inputs, with tensors on the meta device. Sizes that the model only computes with stay symbolic.

    Raises:
        TraceError: The model does not accept the example inputs, or nothing of it can be captured.
        ArgumentTypeError: ``example_inputs`` is neither a tensor, a tuple nor a mapping.

    Example:
        >>> gm = trace(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
        >>> gm.graph.find_nodes(op="call_module", target="fc")[0].meta["val"].shape
        torch.Size([1, 1000])
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"trace needs an nn.Module, not {type(model).__name__}")
    example = bind_example(model, example_inputs)
    first = next((t for t in [*model.parameters(), *model.buffers()]), None)
    device = first.device if first is not None else torch.device("cpu")
    tracer = CaptureTracer(model, example, device)
    concrete = {name: value for name, value in example.items() if not _holds_tensor(value)}
    try:
        with _unchanged(model, tracer), _patched(tracer):
            graph = tracer.trace(model, concrete_args=concrete or None)
    except FAILURES as error:
        where, reason = tracer.failure or ("the model itself", error)
        raise TraceError(
            f"{type(model).__name__} could not be captured with example inputs ({_describe(example)}): in {where}: "
            f"{type(reason).__name__}: {reason}. If the model accepts these inputs, prune one part of it, or move what "
            f"depends on tensor values into a submodule of its own"
        ) from reason
    return _assemble(model, tracer, graph)


def _assemble(model: nn.Module, tracer: CaptureTracer, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code(lambda node: _has_effect(node, model))
    for node in graph.find_nodes(op="placeholder"):
        if not node.users and not _holds_tensor(node.meta["val"]) and str(node.target) not in tracer.example:
            graph.erase_node(node)  # an argument that is no tensor: its value is part of the graph
    root: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "output":
            node.meta["val"] = fx.node.map_arg(node.args[0], value_of)
        if node.op == "call_module":
            target = str(node.target)
            root[target] = TrainingState() if target.endswith(TRAINING_FLAG) else model.get_submodule(target)
        elif node.op == "get_attr":
            root[str(node.target)] = tracer.tensors[str(node.target)]
    graph._tracer_cls = None  # unpickling traces the generated code again, and needs no values for that
    gm = fx.GraphModule(root, graph, type(model).__name__)
    conform(gm, model)
    return gm


def conform(gm: fx.GraphModule, model: nn.Module) -> None:
    """Give what torch.fx rebuilt the mode, and what it registered the persistence, that they have in ``model``."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in gm.named_modules(remove_duplicate=False):
        owner = name.removesuffix(TRAINING_FLAG).rstrip(".") if name.endswith(TRAINING_FLAG) else name
        module.training = modules.get(owner, model).training
        original = modules.get(name)
        if original is not module:
            for buffer in module._buffers:
                kept = original is not None and buffer in original._buffers
                if not kept or buffer in original._non_persistent_buffers_set:  # type: ignore[union-attr]
                    module._non_persistent_buffers_set.add(buffer)


def _has_effect(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node matters though nothing uses its result: it writes into a tensor that something else reads."""
    if node.op in ("placeholder", "output") or node.target in _WRITERS:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return not str(node.target).endswith(TRAINING_FLAG) and bool(
            getattr(model.get_submodule(str(node.target)), "inplace", False)
        )
    name = getattr(node.target, "__name__", "")
    return (
        bool(node.kwargs.get("inplace"))
        or node.kwargs.get("out") is not None
        or (name.endswith("_") and not name.endswith("__"))
    )


def _holds_tensor(value: Any) -> bool:
    found: list[bool] = []
    tree_map(lambda v: found.append(True) if isinstance(v, Tensor) else None, value)
    return bool(found)


def _describe(example: Mapping[str, Any]) -> str:
    def shape(value: Any) -> Any:
        return _Shown(f"tensor{list(value.shape)}") if isinstance(value, Tensor) else value

    return ", ".join(f"{name}: {tree_map(shape, value)!r}" for name, value in example.items())


class _Shown(str):
    """A text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)
