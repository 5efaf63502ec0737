"""Capture: from any ``nn.Module`` to a ``torch.fx.GraphModule`` with a shape on every node.

This is torch.fx symbolic tracing with three additions: proxies that know the value they would have for the example
inputs, so that control flow on sizes resolves while the sizes themselves stay in the graph (:mod:`fxprune.proxies`); a
leaf policy by which layers are leaves and everything built of layers is traced through; and a ladder by which the
smallest submodule that cannot be traced becomes one opaque node with its reason (:mod:`fxprune.tracer`).
"""

from __future__ import annotations

__all__ = [
    "FAILURES",
    "TRAINING_FLAG",
    "Example",
    "adopt",
    "bind_example",
    "bound_to",
    "bound_values",
    "call_of",
    "conform",
    "trace",
    "value_of",
]

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.aliasing import writes
from fxprune.assembly import assembled
from fxprune.collection import collector_paused
from fxprune.conversion import Converts
from fxprune.errors import ArgumentTypeError, TraceError
from fxprune.evaluation import FAILURES, value_of
from fxprune.interception import intercepted
from fxprune.isolation import CodeTracer, patched, unchanged
from fxprune.ladder import Again, Ladder, Lessons
from fxprune.nested import map_nested, modules_by_name, registered
from fxprune.signature import expect
from fxprune.training import TRAINING_FLAG, TrainingState

Example: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | inspect.BoundArguments


def call_of(example_inputs: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that example inputs stand for, by position and by keyword.

    Raises:
        ArgumentTypeError: ``example_inputs`` is neither a tensor, a tuple nor a mapping.
    """
    if isinstance(example_inputs, inspect.BoundArguments):
        return example_inputs.args, example_inputs.kwargs
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise ArgumentTypeError(
        f"example_inputs must be a tensor, a tuple of arguments or a dictionary of keyword arguments, "
        f"not {type(example_inputs).__name__}"
    )


def bind_example(model: nn.Module, example_inputs: Example) -> inspect.BoundArguments:
    """Match the example inputs with the parameters of the model's ``forward``.

    Args:
        model: The model.
        example_inputs: One tensor, a tuple of positional arguments, a mapping of keyword arguments, or what this gives.

    Returns:
        The arguments, defaults included: in its ``arguments`` by the names of the parameters.

    Raises:
        ArgumentTypeError: ``example_inputs`` is none of these.
        TraceError: They do not fit the signature; chained to Python's own error.
    """
    args, kwargs = call_of(example_inputs)
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; "
            f"pass one value for each argument without a default"
        ) from error
    bound.apply_defaults()
    return bound


def bound_values(graph: fx.Graph, bound: inspect.BoundArguments) -> list[Any]:
    """The value of each input of a graph."""
    return [bound.arguments[name] for name in _input_names(graph)]


def bound_to(gm: fx.GraphModule, values: Iterable[Any]) -> inspect.BoundArguments:
    """The arguments that give each input of a graph its value."""
    named = zip(_input_names(gm.graph), values, strict=True)
    return inspect.BoundArguments(inspect.signature(gm.forward), OrderedDict(named))


def _input_names(graph: fx.Graph) -> list[str]:
    return [str(node.target).lstrip("*") for node in graph.find_nodes(op="placeholder")]


_UNWRITABLE = frozenset('"\\\n\r')


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
        ArgumentTypeError: ``example_inputs`` is neither a tensor, a tuple nor a mapping, or the model is what
            ``torch.compile`` gave.

    Example:
        >>> gm = trace(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
        >>> gm.graph.find_nodes(op="call_module", target="fc")[0].meta["val"].shape
        torch.Size([1, 1000])
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"trace needs an nn.Module, not {type(model).__name__}")
    if type(model).__module__.startswith("torch._dynamo"):
        raise ArgumentTypeError(
            "trace needs the model as it was before torch.compile: pass model._orig_mod, and compile what comes out"
        )
    example = bind_example(model, example_inputs).arguments
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    device = first.device if first is not None else torch.device("cpu")
    with collector_paused():
        tracer, graph = _recorded(model, example, device)
        captured = _assemble(model, tracer, graph)
        _let_go(tracer)
        return captured


def _let_go(tracer: Ladder) -> None:
    """Empty a tracer: it is in cycles with what it patched, and would keep the model until the collector comes by."""
    vars(tracer).clear()


def _check_names(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    if _UNWRITABLE.isdisjoint("".join(modules)):
        return
    name = next(name for name in modules if not _UNWRITABLE.isdisjoint(name))
    raise TraceError(
        f"{type(model).__name__} has a submodule called {name!r}: torch.fx writes names into the code that it "
        "generates, and can write no quotation mark, backslash or line break; give it another name"
    )


def _recorded(model: nn.Module, example: Mapping[str, Any], device: torch.device) -> tuple[Ladder, fx.Graph]:
    """The graph as it was recorded, and the tracer that knows what it calls."""
    lessons = Lessons()
    while True:
        tracer = Ladder(model, example, device, lessons)
        _check_names(model, tracer.modules)
        try:
            with unchanged(model, tracer), intercepted(tracer), patched(tracer):
                return tracer, tracer.trace(model)
        except (Again, Converts) as ended:
            lessons.take(ended, model)
            _let_go(tracer)
        except FAILURES as error:
            where, failure = tracer.failure or ("the model itself", error)
            reason = tracer.own_error() or failure
            raise TraceError(
                f"{type(model).__name__} could not be captured with example inputs ({_describe(example)}): in {where}: "
                f"{type(reason).__name__}: {reason}. If the model accepts these inputs, prune one part of it, or move "
                f"what depends on tensor values into a submodule of its own"
            ) from reason


def _assemble(model: nn.Module, tracer: Ladder, graph: fx.Graph) -> fx.GraphModule:
    for node in reversed(graph.nodes):
        if not node.users and not _has_effect(node, tracer.modules):
            graph.erase_node(node)
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1]) if inputs else nullcontext():
        for node in reversed(inputs):
            name, value = str(node.target), node.meta["val"]
            if name in tracer.baked:
                graph.call_function(expect, (node, value, name)).meta["val"] = None
            elif "counted" in node.meta:
                check = graph.call_function(expect, (node, len(value), f"len({name.lstrip('*')})"))
                check.meta["val"] = None
                with graph.inserting_before(check):
                    length = graph.call_function(len, (node,))
                length.meta["val"] = len(value)
                check.args = (length, *check.args[1:])
    root: dict[str, Any] = {}
    for node in graph.nodes:
        if isinstance(node.type, str):  # an annotation that nobody evaluated, which early torch cannot pickle
            node.type = None
        if node.op == "output":
            node.meta["val"] = fx.node.map_arg(node.args[0], value_of)
        if node.op == "call_module":
            target = str(node.target)
            if target.endswith(TRAINING_FLAG):
                root[target] = TrainingState()
            else:
                root[target] = tracer.helpers.get(target) or tracer.modules[target]
        elif node.op == "get_attr":
            root[str(node.target)] = tracer.tensors[str(node.target)]
    graph._tracer_cls = CodeTracer  # unpickling traces the generated code again, and needs no values for that
    gm = assembled(root, graph, type(model).__name__)
    adopt(gm, model)
    conform(gm, tracer.modules)
    return gm


def adopt(gm: nn.Module, model: nn.Module, taken: Callable[[Any], Any] = lambda value: value) -> None:
    """Hang what holds tensors in ``model`` and is not in ``gm``, as the graph does not use it, into it by its names.

    Args:
        gm: Gets the modules, parameters and buffers.
        model: Has them.
        taken: What is taken of each; by default itself.
    """
    for name, parameter in model._parameters.items():
        if parameter is not None and name not in gm._parameters and not hasattr(gm, name):
            gm.register_parameter(name, taken(parameter))
    for name, buffer in model._buffers.items():
        if buffer is not None and name not in gm._buffers and not hasattr(gm, name):
            gm.register_buffer(name, taken(buffer), name not in model._non_persistent_buffers_set)
    for name, child in model._modules.items():
        known = gm._modules.get(name)
        if child is None or known is child:
            continue
        if known is not None:
            if type(known) is nn.Module:  # made to hold others; what is called is whole
                adopt(known, child, taken)
        elif not hasattr(gm, name) and any(True for _ in itertools.chain(child.parameters(), child.buffers())):
            gm.add_module(name, taken(child))


def conform(gm: fx.GraphModule, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Give what torch.fx rebuilt the mode, and what it registered the persistence, that they have in a model.

    Args:
        gm: Its graph.
        modules: All of its modules by name.

    Returns:
        The modules of the graph module by name.
    """
    here = modules_by_name(gm)
    for name, module in here.items():
        original = modules.get(name)
        if original is module:
            continue
        owner = original
        if owner is None:
            flagged = name.removesuffix(TRAINING_FLAG).rstrip(".") if name.endswith(TRAINING_FLAG) else name
            owner = modules.get(flagged, modules[""])
        if module.training is not owner.training:
            if type(module) is nn.Module:  # made to hold others; assigning is slow
                vars(module)["training"] = owner.training
            else:
                module.training = owner.training
        for buffer in registered(module, "_buffers"):
            kept = original is not None and buffer in original._buffers
            if not kept or buffer in original._non_persistent_buffers_set:  # type: ignore[union-attr]
                module._non_persistent_buffers_set.add(buffer)
    return here


def _has_effect(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node matters though nothing uses its result: it writes into a tensor that something else reads."""
    if node.op == "call_module" and str(node.target).endswith(TRAINING_FLAG):
        return False
    return node.op in ("placeholder", "output") or writes(node, modules.__getitem__)


def _describe(example: Mapping[str, Any]) -> str:
    def shape(value: Any) -> Any:
        return _Shown(f"tensor{list(value.shape)}") if isinstance(value, Tensor) else value

    return ", ".join(f"{name}: {map_nested(shape, value)!r}" for name, value in example.items())


class _Shown(str):
    """A text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)
