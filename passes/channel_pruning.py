"""Remove the channels that a plan does not keep."""

from __future__ import annotations

__all__ = ["ChannelPruning", "rewrite"]

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fxprune.collection import collector_paused
from fxprune.errors import ArgumentError
from fxprune.formulas import META, empty
from fxprune.labels import Labels
from fxprune.nested import map_nested, modules_by_name
from fxprune.origin import note_origin, origin_from
from fxprune.plan import ChannelPlan
from fxprune.replay import Replay
from fxprune.rewriting import rebuild
from fxprune.selection import FloatArray
from fxprune.shapes import to_meta
from fxprune.spelling import Recomputed, Scaled


@dataclass(frozen=True)
class ChannelPruning(PassBase):
    """The pass that carries a plan out.

    The given module is not changed, and the result shares no storage with it. Parameter and module names are kept;
    attributes of layers and sizes in the graph say what is true of the result. The result is read again
    by the rules that made the plan before it is returned.

    Attributes:
        plan: What :func:`fxprune.plan_channels` returns.
    """

    plan: ChannelPlan

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite a module with the plan's graph: the traced one, or one that other passes gave other weights.

        Raises:
            ArgumentError: The module's graph is not the plan's.
            InternalError: The result does not do what the plan says; a mistake in fxprune.
        """
        if _calls(graph_module) != _calls(self.plan.gm):
            raise ArgumentError(
                "the graph is not the one that the plan was made for; make the plan from this graph module: "
                "plan_channels(DependencyGraph(graph_module), ...)"
            )
        return PassResult(rewrite(graph_module, self.plan), bool(self.plan.tensors or self.plan.changes))


def _calls(gm: fx.GraphModule) -> list[tuple[str, str, object, str]]:
    return [(node.name, node.op, node.target, f"{node.args}{node.kwargs}") for node in gm.graph.nodes]


@collector_paused()
def rewrite(model: nn.Module, plan: ChannelPlan) -> fx.GraphModule:
    """A new module with the plan's tensors, sizes and attributes; see :class:`ChannelPruning`."""

    def edit(graph: fx.Graph) -> None:
        nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}

        def here(value: Any) -> Any:
            if isinstance(value, Scaled):
                return _scaled(graph, here(value.node), value)
            if isinstance(value, Recomputed):
                args, kwargs = fx.node.map_aggregate((value.args, value.kwargs), here)
                node = graph.create_node(value.op, value.target, args, kwargs)
                node.meta["val"] = value.value
                return node
            return nodes[value.name] if isinstance(value, fx.Node) else value

        for name, change in plan.changes.items():
            node = nodes[name]
            node.op, node.target = change.op, change.target
            with graph.inserting_before(node):
                args, kwargs = fx.node.map_aggregate((change.args, change.kwargs), here)
            node.args, node.kwargs = args, kwargs
        _drop_numbers(graph)

    origin = origin_from(plan)
    result, modules = rebuild(plan.gm, model, origin.tensors, edit)
    for (layer, name), value in plan.attributes.items():
        attributes = vars(modules[layer])
        if name in attributes:  # a module would first look whether it is a parameter
            attributes[name] = value
        else:
            setattr(modules[layer], name, value)
    _read_again(result, modules, plan)
    for layer, values in (plan.constants or {}).items():
        _absorb(result, plan, layer, modules_by_name(model)[layer], values)
    note_origin(result, origin)
    return result


def _drop_numbers(graph: fx.Graph) -> None:
    """Take out what only calculated numbers that are written out now: with fewer channels it may have no answer."""
    for node in reversed(graph.nodes):
        number = isinstance(node.meta["val"], int | float) and node.op in ("call_function", "call_method")
        if number and not node.users:
            graph.erase_node(node)


def _scaled(graph: fx.Graph, node: fx.Node, wanted: Scaled) -> fx.Node:
    """New nodes for a size times a fraction."""
    for operation, number, value in (
        (operator.mul, wanted.times, wanted.value * wanted.over),
        (operator.floordiv, wanted.over, wanted.value),
    ):
        if number > 1:
            node = graph.call_function(operation, (node, number))
            node.meta["val"] = value
    return node


def _read_again(result: fx.GraphModule, modules: Mapping[str, nn.Module], plan: ChannelPlan) -> None:
    """Check the result against the plan, and write its shapes into the nodes."""
    structure = plan.structure
    replay = Replay(result, structure.recorder, structure.alive(plan.kept), plan.place, modules)
    replay.run()

    def as_value(value: object) -> object:
        return torch.empty(value.shape, device=META) if isinstance(value, Labels) else value

    for node in result.graph.nodes:
        old, value = node.meta["val"], replay.values[node]
        if node.op == "get_attr":
            node.meta["val"] = to_meta(replay.original(str(node.target))).to(old.dtype)
        elif isinstance(old, Tensor) and isinstance(value, Labels):
            shape = value.shape
            if shape != old.shape:
                node.meta["val"] = empty(shape, old)
        elif node.op != "output":
            node.meta["val"] = map_nested(as_value, value)


@torch.no_grad()
def _absorb(result: fx.GraphModule, plan: ChannelPlan, layer: str, before: nn.Module, values: FloatArray) -> None:
    """Add to a layer what removed inputs always gave it: to its bias, or in the batch norm behind it, or as a bias."""
    weight = before.weight
    assert isinstance(weight, Tensor)
    constants = torch.from_numpy(values).to(weight.device)
    # Every output of a group sees the group's inputs, each with the sum of its kernel.
    sums = weight.double().reshape(*weight.shape[:2], -1).sum(2)
    groups = len(values) // sums.shape[1]
    shift = (sums.reshape(groups, -1, sums.shape[1]) * constants.reshape(groups, 1, -1)).sum(2).reshape(-1)
    kept = plan.layers[layer].outputs
    shift = shift if kept is None else shift[torch.tensor(kept, device=shift.device)]
    module = result.get_submodule(layer)
    node = next(n for n in result.graph.nodes if n.op == "call_module" and n.target == layer)
    norm = _norm_behind(result, node)
    if isinstance(module.bias, Tensor):
        module.bias.add_(shift.to(module.bias.dtype))
    elif norm is not None:
        norm.sub_(shift.to(norm.dtype))
    else:
        module.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _norm_behind(gm: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The running mean of a batch norm that alone takes what a node gives, and takes nothing else."""
    users = list(node.users)
    by_channel = isinstance(gm.get_submodule(str(node.target)), _ConvNd) or node.meta["val"].dim() == 2
    if len(users) != 1 or users[0].op != "call_module" or not by_channel:
        return None
    module = gm.get_submodule(str(users[0].target))
    calls = [n for n in gm.graph.nodes if n.op == "call_module" and gm.get_submodule(str(n.target)) is module]
    if not isinstance(module, _BatchNorm) or len(calls) > 1:
        return None
    return module.running_mean
