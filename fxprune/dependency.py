"""The dependency graph: which channels belong together, what holds the others, and why."""

from __future__ import annotations

__all__ = ["ChannelGroup", "DependencyGraph"]

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx
import numpy as np
from torch import fx, nn

from fxprune.analysis import read
from fxprune.capture import TRAINING_FLAG, Example, trace
from fxprune.collection import collector_paused
from fxprune.errors import ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.explanation import Explainer, names_of
from fxprune.labels import IntArray
from fxprune.records import numbers
from fxprune.settling import settle
from fxprune.structure import Refinement, Structure


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
        with collector_paused():
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
        return _named(_groups(self.structure, self.explainer, self.owners, self._frozen[1]))

    @cached_property
    def owners(self) -> IntArray:
        """For each label the number of its group in :attr:`groups`, or -1 where no layer makes it."""
        group = self.structure.group[self.structure.unit]
        return np.where(group >= 0, group, self._frozen[0][self.explainer.parts])

    @cached_property
    def _frozen(self) -> tuple[IntArray, list[int]]:
        return _frozen_groups(self.structure, self.explainer)

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

    @classmethod
    def of(cls, gm: fx.GraphModule, structure: Structure) -> DependencyGraph:
        """A traced network under a structure that is known already."""
        result = object.__new__(cls)
        result.gm, result.structure = gm, structure
        return result

    def refined(self, structure: Structure) -> DependencyGraph:
        """The same graph with another structure."""
        return self.of(self.gm, structure)

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
        return tuple(dict.fromkeys(use.layer for use in self.explainer.uses))

    @cached_property
    def _others(self) -> dict[str, fx.Node | None]:
        """Layers and parameters without channels of their own, with the node that runs them or holds them."""
        found: dict[str, fx.Node | None] = {}
        of_layers = {use.axis.tensor for use in self.structure.recorder.uses}
        for node in self.gm.graph.nodes:
            name = str(node.target)
            layer = node.op == "call_module" and not name.endswith(TRAINING_FLAG)
            if layer or (node.op == "get_attr" and self._is_loose(name, of_layers)):
                found.setdefault(name, node)
        for name, module in self.gm.named_modules():
            if name and name not in found and not any(module.children()) and self._has_tensors(name):
                outer = (node for path, node in found.items() if node is not None and name.startswith(f"{path}."))
                found[name] = next(outer, None)
        known = {*found, *self.layers}
        for name, _ in self.gm.named_parameters():
            if not any(name == layer or name.startswith(f"{layer}.") for layer in known):
                found[name] = None
        return {name: node for name, node in found.items() if name not in self.layers}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Further names of layers that have several."""
        first = {id(module): name for name, module in self.gm.named_modules()}
        names = self.gm.named_modules(remove_duplicate=False)
        return {name: first[id(module)] for name, module in names if first[id(module)] != name}

    def _is_loose(self, name: str, of_layers: set[str]) -> bool:
        """Whether a parameter belongs to no layer that is known by its channels."""
        recorder = self.structure.recorder
        tensor = isinstance(recorder.original(name), nn.Parameter)
        return tensor and recorder.canonical_of(name) not in of_layers and name.rpartition(".")[0] not in self.layers

    def _has_tensors(self, name: str) -> bool:
        module = self.gm.get_submodule(name)
        return any(True for _ in module.parameters()) or any(True for _ in module.buffers())

    def group_of(self, layer: str) -> tuple[ChannelGroup, ...]:
        """The groups that a layer's output channels belong to; none for a layer without channels of its own.

        Raises:
            UnknownNameError: There is no such layer; the message lists the nearest names.
        """
        self.check_layer(layer)
        layer = self._aliases.get(layer, layer)
        return tuple(g for g in self.groups if layer in g.producers or layer in g.followers)

    def check_layer(self, layer: str) -> None:
        """Raise UnknownNameError unless the layer is known, and ArgumentTypeError if it is no name at all."""
        if not isinstance(layer, str):
            raise ArgumentTypeError(f"a layer's name must be a string, not {layer!r} of type {type(layer).__name__}")
        if self._aliases.get(layer, layer) not in (*self.layers, *self._others):
            known = (*self.layers, *self._others)
            within = [name for name in known if name.startswith(f"{layer}.")]
            if layer and within:
                raise UnknownNameError(f"'{layer}' is no layer but a part of the network with {names_of(within)}")
            raise UnknownNameError(f"no layer '{layer}' in the network; {nearest_names(layer, known)}")

    def explain(self, layer: str) -> str:
        """Say what a layer's channels are coupled with and through which operators, or why they cannot be removed.

        Args:
            layer: Qualified name, such as ``"layer3.0.conv2"``.

        Raises:
            UnknownNameError: There is no such layer; the message lists the nearest names.
        """
        self.check_layer(layer)
        if layer in self._aliases:
            return f"'{layer}' is '{self._aliases[layer]}'.\n{self.explain(self._aliases[layer])}"
        if layer in self.layers:
            return self.explainer.explain(layer, self.groups)
        return f"'{layer}' {self.explainer.aside(layer, self._others[layer], self.groups)}."

    @cached_property
    def untouched(self) -> dict[str, str]:
        """Layers with weights whose channels the analysis does not know, and why they stay as they are."""
        known = (*self.layers, *self._others)
        found = {name: f"is '{first}'" for name, first in self._aliases.items() if first in known}
        return found | {
            name: self.explainer.aside(name, node, self.groups)
            for name, node in self._others.items()
            if node is None or node.op == "get_attr" or (node.target == name and self._has_tensors(name))
        }

    def _repr_svg_(self) -> str:
        """What a notebook shows: the picture, folded as far as a cell needs it."""
        from fxprune.drawing.files import notebook_svg

        return notebook_svg(self)

    def _repr_html_(self) -> str:
        from fxprune.drawing.files import notebook_html

        return notebook_html(self)

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


def _groups(
    structure: Structure, explainer: Explainer, owners: IntArray, causes: Sequence[int]
) -> Iterable[ChannelGroup]:
    roles: dict[int, dict[str, dict[str, None]]] = {}
    for use in explainer.uses:
        owner = owners[numbers(use.labels)]
        for found in np.unique(owner[owner >= 0]).tolist():
            roles.setdefault(found, {}).setdefault(use.role, {})[use.layer] = None
    for number in range(structure.groups + len(causes)):
        members = roles.get(number, {})
        reason = None
        if number < structure.groups:
            size = len(structure.members[number])
        else:
            size = len(np.unique(explainer.parts[owners == number]))
            reason = str(explainer.reason(causes[number - structure.groups]))
        producers = tuple(members.get("producer", {}))
        followers = tuple(name for name in members.get("follower", {}) if name not in producers)
        yield ChannelGroup(producers[0], size, producers, followers, tuple(members.get("consumer", {})), reason)


def _frozen_groups(structure: Structure, explainer: Explainer) -> tuple[IntArray, list[int]]:
    """Channels that stay, in groups of those that the same layers make and the same thing holds.

    Returns:
        The group of each of the explainer's parts, numbered after the groups that can be pruned, or -1; and what
        holds each group.
    """
    rng = np.random.default_rng(0)
    count = int(explainer.parts.max()) + 1
    signature = np.zeros(count, dtype=np.uint64)
    cause = np.full(count, -1, dtype=np.int64)
    first = np.full(count, np.iinfo(np.int64).max)
    for position, use in enumerate(explainer.uses):
        labels = numbers(use.labels)
        held = labels[structure.group[structure.unit[labels]] < 0]
        if use.role != "producer" or not held.size:
            continue
        parts, index = np.unique(explainer.parts[held], return_index=True)
        signature[parts] += rng.integers(1, 2**63, dtype=np.uint64)
        new = first[parts] == np.iinfo(np.int64).max
        cause[parts[new]] = explainer.causes(held[index[new]])
        first[parts[new]] = position
    group = np.full(count, -1, dtype=np.int64)
    made = np.flatnonzero(signature)
    keys: dict[tuple[int, int, int], int] = {}
    order = made[np.lexsort((made, first[made]))]
    for part in order.tolist():
        key = (int(first[part]), int(signature[part]), int(cause[part]))
        group[part] = structure.groups + keys.setdefault(key, len(keys))
    return group, [cause for _, _, cause in keys]
