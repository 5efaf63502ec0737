"""Graphs and graph modules, made the short way.

torch.fx generates and compiles code whenever a graph module gets its graph, though most of them are only read: a traced
network is analysed, and a rewritten one may be verified, exported or stored first. Here that is done when the code is
first asked for. And torch.fx looks for names and symbolic sizes in every node that is added, which copies do not need.
"""

from __future__ import annotations

__all__ = ["CapturedModule", "OwnedGraph", "append_node", "assembled", "copied_graph"]

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn


class _Generated:
    """An attribute that a graph module has once its code is generated: asking for it does that."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, gm: fx.GraphModule | None, owner: type | None = None) -> Any:
        if gm is None:
            return self
        gm.recompile()
        return getattr(gm, self.name)


class _Forward:
    """The forward of one graph module, which has a class of its own; generating the code puts the function there."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = weakref.ref(gm)

    def __get__(self, gm: fx.GraphModule | None, owner: type) -> Callable[..., Any]:
        found = gm if gm is not None else self._gm()
        if found is None:
            raise AttributeError("the graph module is gone whose forward this would be")
        found.recompile()
        forward: Callable[..., Any] = found.forward if gm is not None else type(found).forward
        return forward


class OwnedGraph(fx.Graph):
    """A graph that knows its module without keeping it alive.

    torch.fx ties both into a cycle, so that the weights of a network that nobody needs any more stay until the
    collector of cycles comes by.
    """

    _owner: weakref.ref[fx.GraphModule] | None = None

    @property
    def owning_module(self) -> fx.GraphModule | None:
        """The module that the graph belongs to, or None without one."""
        return self._owner() if self._owner is not None else None

    @owning_module.setter
    def owning_module(self, module: fx.GraphModule | None) -> None:
        self._owner = weakref.ref(module) if module is not None else None


class CapturedModule(fx.GraphModule):
    """A ``torch.fx.GraphModule`` that generates its code when it is first called, printed, copied or inspected.

    After its graph was edited in place it must be recompiled, as any other.
    """

    _code = _Generated()
    _lineno_map = _Generated()
    _prologue_start = _Generated()

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self._graph = graph
        graph.owning_module = self
        for name in ("_code", "_lineno_map", "_prologue_start"):
            self.__dict__.pop(name, None)
        type(self).forward = _Forward(self)  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        self.recompile()  # what torch.fx stores of a graph module is its code
        return super().__reduce__()


def assembled(root: Mapping[str, Any], graph: fx.Graph, name: str) -> CapturedModule:
    """A graph module over layers and tensors.

    Args:
        root: What the graph calls and reads, by qualified name.
        graph: The graph; it belongs to the module afterwards.
        name: Of its class.
    """
    gm = CapturedModule({}, OwnedGraph(tracer_cls=graph._tracer_cls), name)
    owners: dict[str, nn.Module] = {"": gm}
    for target in sorted(root, key=lambda target: target.count(".")):  # what holds others before what it holds
        path, _, field = target.rpartition(".")
        _hang(_owner(owners, path), field, root[target])
    gm.graph = graph
    return gm


_EMPTY = vars(nn.Module())
_CONTAINERS = tuple((name, type(value)) for name, value in _EMPTY.items() if isinstance(value, dict | set))


def _holder() -> nn.Module:
    """What ``nn.Module()`` makes: a place for others; it makes every attribute by way of Python's and its own rules."""
    module = nn.Module.__new__(nn.Module)
    attributes = vars(module)
    attributes.update(_EMPTY)
    for name, kind in _CONTAINERS:
        attributes[name] = kind()
    return module


def _owner(owners: dict[str, nn.Module], path: str) -> nn.Module:
    """The module of a name, which is made if there is none yet."""
    known = owners.get(path)
    if known is None:
        above, _, field = path.rpartition(".")
        held = _owner(owners, above)._modules
        known = held.get(field)
        if known is None:
            known = held[field] = _holder()
        owners[path] = known
    return known


def _hang(owner: nn.Module, field: str, value: Any) -> None:
    if isinstance(value, nn.Module):
        owner._modules[field] = value
    elif isinstance(value, nn.Parameter):
        owner._parameters[field] = value
    elif isinstance(value, Tensor):
        owner._buffers[field] = value
    else:
        setattr(owner, field, value)


def append_node(
    graph: fx.Graph,
    op: str,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str | None = None,
    type_expr: Any = None,
) -> fx.Node:
    """What ``graph.create_node`` does, for arguments that hold no symbolic sizes, which that goes through them for."""
    if name is None:  # of a path in lower case it would become the same by way of regular expressions
        plain = type(target) is str and target.islower() and target[0] != "_"
        name = target.replace(".", "_") if plain else graph._target_to_str(target)
    chosen = graph._graph_namespace.create_name(name, None)
    return _placed(graph, fx.Node(graph, chosen, op, target, args, kwargs, type_expr))


def _placed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    graph._graph_namespace.associate_name_with_obj(node.name, node)
    graph._insert(node)
    graph._find_nodes_lookup_table.insert(node)
    graph._len += 1
    return node


def copied_graph(graph: fx.Graph) -> fx.Graph:
    """What ``copy.deepcopy`` makes of a graph: nodes under their names, whose ``meta`` have the same values."""
    result = OwnedGraph(tracer_cls=graph._tracer_cls)
    result._codegen = copy.deepcopy(graph._codegen)
    names, old = result._graph_namespace, graph._graph_namespace
    names._used_names, names._base_count = set(old._used_names), dict(old._base_count)
    nodes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), nodes.__getitem__)
        new = fx.Node(result, node.name, node.op, node.target, args, kwargs, node.type)
        new.meta.update(node.meta)  # assigning to it would look for the node in the graph
        nodes[node] = _placed(result, new)
    return result
