"""The dependency graph: which channels belong together, what holds the others, and why."""

from __future__ import annotations

__all__ = ["ChannelGroup", "DependencyGraph"]

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx
import numpy as np
from torch import fx, nn

from fxprune.analysis import Refinement, Structure, read
from fxprune.capture import Example, trace
from fxprune.errors import ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.explanation import Explainer
from fxprune.recorder import numbers
from fxprune.settling import settle


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that a pruning ratio applies to together.

    Attributes:
        name: Name of the first layer that makes them, with ``#2``, ``#3`` ... where it makes several groups.
        size: How many units there are: things that can be removed one by one.
        producers: Layers whose outputs the channels are, in the order of the data.
        followers: Layers with an entry for each channel: batch norms, biases, depthwise convolutions.
        consumers: Layers whose inputs the channels are.
        frozen: Why none of them can be removed, or None if they can.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str | None = None


class DependencyGraph:
    """Channel dependencies of a traced network.

    Args:
        gm: What :func:`fxprune.trace` returns.

    Raises:
        ArgumentTypeError: ``gm`` was not traced by :func:`fxprune.trace`.

    Example:
        >>> deps = DependencyGraph.from_model(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64))
        >>> deps.groups[0].producers
        ('conv1', 'layer1.0.conv2', 'layer1.1.conv2')
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        if not isinstance(gm, fx.GraphModule) or any("val" not in node.meta for node in gm.graph.nodes):
            raise ArgumentTypeError(
                "DependencyGraph needs a graph module from fxprune.trace(model, example_inputs), with the shape of "
                f"every value; this is a {type(gm).__name__}. Use DependencyGraph.from_model(model, example_inputs)"
            )
        self.gm = gm
        self.structure: Structure = settle(gm, read(gm))

    @classmethod
    def from_model(cls, model: nn.Module, example_inputs: Example) -> DependencyGraph:
        """Trace a model and analyse it.

        Args:
            model: Any module; it is not changed.
            example_inputs: As for :func:`fxprune.trace`.

        Raises:
            TraceError: The model could not be captured.
        """
        return cls(trace(model, example_inputs))

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups, those that can be pruned in the order of the data first, then the frozen ones."""
        return _named(_groups(self.structure, self.explainer))

    def whole_heads(self) -> DependencyGraph:
        """The same graph with every head of an attention as one unit, in place of its single dimensions.

        Queries, keys and values of a head then go together, with whatever else has an entry for each head, such as a
        table of position biases. Attentions of which no head could go keep dimensions, and what is no attention is
        as before.
        """
        recorder = self.structure.recorder
        structure = settle(self.gm, recorder, Refinement(ties=tuple(recorder.whole_heads)))
        free = tuple(tie for tie in recorder.whole_heads if (structure.group[structure.unit[tie.b]] >= 0).any())
        if len(free) < len(recorder.whole_heads):
            structure = settle(self.gm, recorder, Refinement(ties=free))
        return self.refined(structure)

    def refined(self, structure: Structure) -> DependencyGraph:
        """The same graph with another structure."""
        result = object.__new__(DependencyGraph)
        result.gm, result.structure = self.gm, structure
        return result

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups of which channels can be removed, in the order of the data."""
        return tuple(group for group in self.groups if group.frozen is None)

    @cached_property
    def explainer(self) -> Explainer:
        """Finds the reasons."""
        return Explainer(self.structure, self.gm)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Every layer whose channels the analysis knows, in the order of the data."""
        return tuple(dict.fromkeys(use.layer for use in self.structure.recorder.uses))

    def group_of(self, layer: str) -> tuple[ChannelGroup, ...]:
        """The groups that a layer's output channels belong to.

        Raises:
            UnknownNameError: There is no such layer; the message lists the nearest names.
        """
        self.check_layer(layer)
        return tuple(g for g in self.groups if layer in g.producers or layer in g.followers)

    def check_layer(self, layer: str) -> None:
        """Raise UnknownNameError unless the layer is known, and ArgumentTypeError if it is no name at all."""
        if not isinstance(layer, str):
            raise ArgumentTypeError(f"a layer's name must be a string, not {layer!r} of type {type(layer).__name__}")
        if layer not in self.layers:
            raise UnknownNameError(
                f"no layer '{layer}' with channels in the network; {nearest_names(layer, self.layers)}"
            )

    def explain(self, layer: str) -> str:
        """Say what a layer's channels are coupled with and through which operators, or why they cannot be removed.

        Args:
            layer: Qualified name, such as ``"layer3.0.conv2"``.

        Raises:
            UnknownNameError: There is no such layer; the message lists the nearest names.
        """
        self.check_layer(layer)
        return self.explainer.explain(layer, self.groups)

    def to_networkx(self) -> nx.MultiDiGraph:
        """The layers as nodes, and edges that say what couples them.

        Nodes carry ``kind`` (class name), ``groups`` (indices into :attr:`groups` of their outputs) and ``frozen``.
        Edges go from a producer to each follower and consumer of its channels, with ``relation`` (``"follower"`` or
        ``"consumer"``),
        ``group`` (an index) and ``channels`` (how many); ``relation="peer"`` links the producers of one group in a row.
        """
        graph: nx.MultiDiGraph = nx.MultiDiGraph()
        modules = dict(self.gm.named_modules())
        for layer in self.layers:
            kind = type(modules[layer]).__name__ if layer in modules else "Parameter"
            graph.add_node(layer, kind=kind, groups=[], frozen=None)
        for number, group in enumerate(self.groups):
            for layer in (*group.producers, *group.followers):
                graph.nodes[layer]["groups"].append(number)
                if group.frozen:
                    graph.nodes[layer]["frozen"] = group.frozen
            for producer in group.producers:
                for relation, others in (("follower", group.followers), ("consumer", group.consumers)):
                    for other in others:
                        graph.add_edge(producer, other, relation=relation, group=number, channels=group.size)
            for a, b in zip(group.producers, group.producers[1:], strict=False):
                graph.add_edge(a, b, relation="peer", group=number, channels=group.size)
        return graph


def _named(groups: Iterable[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """The groups under names of their own."""
    seen: Counter[str] = Counter()
    result = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        result.append(replace(group, name=f"{group.name}#{number}") if number > 1 else group)
    return tuple(result)


def _groups(structure: Structure, explainer: Explainer) -> Iterable[ChannelGroup]:
    roles: dict[int, dict[str, dict[str, None]]] = {}
    frozen: dict[tuple[str, ...], dict[str, dict[str, None]]] = {}
    frozen_size: dict[tuple[str, ...], int] = {}
    uses = structure.recorder.uses
    unit_zero = {}
    for use in uses:
        units = structure.unit[numbers(use.labels)]
        for group in np.unique(structure.group[units]):
            if group >= 0:
                roles.setdefault(int(group), {}).setdefault(use.role, {})[use.layer] = None
        if use.role == "producer" and (structure.group[units] < 0).any():
            held = numbers(use.labels)[structure.group[units] < 0]
            key = explainer.cause(held)
            frozen.setdefault(key, {}).setdefault("producer", {})[use.layer] = None
            frozen_size[key] = max(frozen_size.get(key, 0), len(held))
            for label in held:
                unit_zero[int(label)] = key
    for use in uses:
        if use.role != "producer":
            for key in {unit_zero[int(label)] for label in numbers(use.labels) if int(label) in unit_zero}:
                frozen[key].setdefault(use.role, {})[use.layer] = None
    for number in range(structure.groups):
        members = roles.get(number, {})
        producers = tuple(members.get("producer", {}))
        yield _group(producers, len(structure.members[number]), members, None)
    for key, members in frozen.items():
        yield _group(tuple(members["producer"]), frozen_size[key], members, key[0])


def _group(
    producers: tuple[str, ...], size: int, members: dict[str, dict[str, None]], frozen: str | None
) -> ChannelGroup:
    followers = tuple(name for name in members.get("follower", {}) if name not in producers)
    return ChannelGroup(producers[0], size, producers, followers, tuple(members.get("consumer", {})), frozen)
