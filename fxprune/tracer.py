"""The tracer: torch.fx's own, with a leaf policy and nodes for all that the traced code touches.

Which layers are leaves is the leaf policy; everything built of layers is traced through.
"""

from __future__ import annotations

__all__ = ["CaptureTracer"]

import builtins
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from fxprune.arguments import in_order
from fxprune.assembly import OwnedGraph, append_node
from fxprune.decompositions import DECOMPOSITIONS
from fxprune.evaluation import EvaluatingTracer
from fxprune.nested import tensors_by_name
from fxprune.opaque import Rebuilt
from fxprune.proxies import ValueProxy
from fxprune.signature import holds_tensor, is_literal
from fxprune.sources import user_frame
from fxprune.training import TRAINING_FLAG, Flag

_LITERALS = frozenset((bool, int, float, str, type(None)))
_CONTAINERS = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


class CaptureTracer(EvaluatingTracer):
    """The tracer: see the module's docstring.

    Args:
        model: The model to trace; needed for the names of its tensors.
        example: Values of the placeholders by name.
        device: The model's device.

    Attributes:
        installed: The ``id`` of each module of the model.
        originals, patches: Python's own functions that are patched while the user's code runs, by name.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        model: nn.Module,
        example: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(model, example, device)
        self.installed = {id(module) for module in self.modules.values()}
        self.names: dict[int, str] = {}
        for name, tensor in tensors_by_name(self.modules):
            self.names.setdefault(id(tensor), name)
            self.tensors[self.names[id(tensor)]] = tensor
        self.baked: dict[str, Any] = {}
        self._defaults = False
        self._constants: list[Tensor] = []
        self.originals: dict[str, Any] = {}
        self.patches: dict[str, Any] = {}
        self.written = False  # whether the traced code gave a module other tensors
        self._leaves: dict[type[nn.Module], bool] = {}
        self._stack: dict[str, Any] | None = None  # the modules that nodes are in now, which share this

    # What torch.fx asks of a tracer -----------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy with a value."""
        return ValueProxy(node, self)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the model. As a module, torch.fx would first look for tensors among all attributes of its layers."""
        _LazyGraphModule.force_recompile(root)
        graph: fx.Graph = super().trace(type(root).forward, concrete_args)
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The inputs, and the forward of the model, with its hooks around it."""
        graph, self.graph = self.graph, OwnedGraph(tracer_cls=type(self))
        self.graph._co_fields = graph._co_fields
        self.root = self.modules[""]
        self.root_module_name = type(self.root).__name__
        self.submodule_paths = {module: name for name, module in reversed(self.modules.items())}
        function, args = super().create_args_for_root(root_fn, True, concrete_args)
        self._in_order_of(inspect.signature(self.root.forward))
        if not (self.root._forward_hooks or self.root._forward_pre_hooks):
            return function, args

        def hooked(root: nn.Module, *inputs: Any) -> Any:
            object.__setattr__(root, "forward", functools.partial(function, root))
            try:
                return root._call_impl(*inputs)  # type: ignore[no-untyped-call]
            finally:
                object.__delattr__(root, "forward")

        return hooked, args

    def _in_order_of(self, signature: inspect.Signature) -> None:
        """Put the inputs in the order that they are given in; torch.fx has ``*args`` behind what follows it."""
        inputs = {str(node.target).lstrip("*"): node for node in self.graph.find_nodes(op="placeholder")}
        for before, node in itertools.pairwise([inputs[name] for name in signature.parameters if name in inputs]):
            before.append(node)

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any) -> Any:
        """An argument of the model; one that is no tensor keeps its place, and the graph has its value."""
        value = self.example[name.lstrip("*")]
        default: tuple[Any, ...] = ()
        if not name.startswith("*"):
            given = sig.parameters[name].default
            if given is not inspect.Parameter.empty or self._defaults:
                self._defaults = True
                default = (None if holds_tensor(value) or not is_literal(value) else value,)
            if not holds_tensor(value):
                if is_literal(value):
                    self.create_proxy("placeholder", name, default, {})
                    self.baked[name] = value
                return value
        return self.create_proxy("placeholder", name, default, {}, type_expr=fn_for_analysis.__annotations__.get(name))

    def create_arg(self, a: Any) -> Any:
        """Lower an argument; tensors that belong to no module are kept aside, not hung into the user's model."""
        kind = type(a)
        if kind in _LITERALS or (kind is dict and not a):
            return a
        if kind is tuple or kind is list:
            return kind([x.node if type(x) is ValueProxy else self.create_arg(x) for x in a])
        if issubclass(kind, fx.Proxy):
            return a.node
        if kind is Flag:
            return self.flag_node(a)
        if isinstance(a, Tensor):
            return self.tensor_node(a).node
        if kind is torch.Size:
            return tuple(self.create_arg(x) for x in a)
        if issubclass(kind, np.generic):
            return a.item()
        if issubclass(kind, nn.Module):
            raise TypeError(f"a module ({kind.__name__}) is given to something that cannot be traced")
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self.create_proxy("call_function", kind, tuple(a), {}).node
        if not dataclasses.is_dataclass(a) or isinstance(a, type | dict):
            try:
                return super().create_arg(a)
            except NotImplementedError:
                if not hasattr(a, "__dict__") or isinstance(a, nn.Module | type) or callable(a):
                    raise
        target = self.add_helper("_object", Rebuilt(kind))
        made = self.create_proxy("call_module", target, (), dict(vars(a)))
        made.node.meta["opaque"] = f"an object of class {kind.__name__} is made"
        return made.node

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """A node that knows the modules in which it is."""
        node = append_node(self.graph, kind, target, args, kwargs, name, type_expr)
        if self.module_stack:
            if self._stack is None:
                self._stack = dict(self.module_stack)
            node.meta["nn_module_stack"] = self._stack
        return node

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        """Record the call, and find its value."""
        names = vars(builtins)
        patches = {patched: names[patched] for patched in self.originals}
        names.update(self.originals)  # there is none of the user's code here that they could mislead
        try:
            if kwargs:
                args, kwargs = self._in_order(kind, target, args, kwargs)
            node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
            self.evaluate(node)
        finally:
            names.update(patches)
        node.meta["source"] = user_frame()
        return (proxy_factory_fn or self.proxy)(node)

    def within(self, module: nn.Module, run: Callable[[str], Any]) -> Any:
        """Run something inside a module, which all nodes that it makes are then said to be in.

        Args:
            module: A module of the model.
            run: Called with the name of the module.
        """
        path, kind = self.path_of_module(module), type(module)
        before = self.scope.module_path, self.scope.module_type
        calls = self.num_calls.get(path, 0)
        self.num_calls[path] = calls + 1
        self.module_stack[f"{path}@{calls}" if calls else path] = (path, kind)
        self.scope.module_path, self.scope.module_type = path, kind
        self._stack = None
        try:
            return run(path)
        finally:
            self.scope.module_path, self.scope.module_type = before
            self.module_stack.popitem()
            self._stack = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own layers are leaves, unless they are built of others; a subclass is one if it keeps the forward."""
        kind = type(m)
        known = self._leaves.get(kind)
        if known is None:
            known = self._leaves[kind] = _is_leaf(kind)
        return known

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers that the traced code touches become ``get_attr`` nodes."""
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names and not self.evaluating:
            return self.tensor_node(attr_val)
        return attr_val

    # ------------------------------------------------------------------------------------------------------------------

    def _in_order(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kind != "call_module":
            return in_order(target, args, kwargs)
        module = self.modules.get(target)
        if module is None:
            return args, kwargs
        called, named = in_order(type(module).forward, (module, *args), kwargs)
        return called[1:], named

    def tensor_node(self, tensor: Tensor) -> ValueProxy:
        """A tensor of the model, or one that belongs to no module, as a value of the graph."""
        name = self.names.get(id(tensor))
        if name is None:
            name = f"_constant_{len(self._constants)}"
            self._constants.append(tensor)
            self.names[id(tensor)] = name
            self.tensors[name] = tensor
        proxy: ValueProxy = self.create_proxy("get_attr", name, (), {})
        return proxy

    def tensor_of(self, value: Any) -> Any:
        """The tensor of the model that a proxy stands for; anything else as it is."""
        if type(value) is ValueProxy and value.node.op == "get_attr":
            return self.tensors[str(value.node.target)]
        return value

    def flag_node(self, flag: Flag) -> fx.Node:
        """The one node that says whether a module is training; it stands behind the inputs."""
        known = self.graph.find_nodes(op="call_module", target=flag.target)
        if known:
            found: fx.Node = known[0]
            return found
        inputs = self.graph.find_nodes(op="placeholder")
        with self.graph.inserting_after(inputs[-1]) if inputs else nullcontext():
            node = self.graph.call_module(flag.target)
        node.meta["val"] = flag.on
        return node

    def add_helper(self, stem: str, helper: nn.Module) -> str:
        """Keep a module that the graph calls and the model does not have; gives its name in the graph."""
        target = f"{stem}_{len(self.helpers)}"
        self.helpers[target] = helper
        return target

    def nodes_after(self, last: fx.Node) -> list[fx.Node]:
        """What was recorded since a node was the last; nodes of modes belong to all."""
        found = []
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            if not str(node.target).endswith(TRAINING_FLAG):
                found.append(node)
        return found[::-1]

    def take_back(self, last: fx.Node) -> None:
        """Forget what was recorded since a node was the last."""
        for node in reversed(self.nodes_after(last)):
            self.graph.erase_node(node)


def _is_leaf(kind: type[nn.Module]) -> bool:
    if issubclass(kind, _CONTAINERS) or kind in DECOMPOSITIONS:
        return False
    for base in kind.__mro__:
        if base.__module__.startswith(("torch.nn", "torch.ao.nn")):
            return base is not nn.Module and (kind is base or _keeps_forward(kind, base))
    return False


def _keeps_forward(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass computes what its base does: it overrides none of the methods that torch's layers run."""
    names = ("forward", "_conv_forward", "_check_input_dim", "__call__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)
