"""From a traced network to the blocks of a scene."""

from __future__ import annotations

__all__ = ["Assembly"]

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.aliasing import shares, writes
from fxprune.dependency import DependencyGraph
from fxprune.drawing.details import detail_of, kind_of
from fxprune.drawing.scene import Block
from fxprune.errors import UnknownNameError
from fxprune.labels import IntArray, Labels
from fxprune.nested import leaves, modules_by_name
from fxprune.plan import ChannelPlan
from fxprune.records import numbers
from fxprune.rewriting import cut
from fxprune.rules import elementwise
from fxprune.rules.table import RULES, rule_for
from fxprune.vocabulary import Use, labels_in

_CHANGES_NOTHING = ("Identity", "Dropout", "contiguous", "clone", "detach", "identity", "dropout", "to", "type_as")
_CASTS = ("float", "half", "double", "bfloat16", "type", "cuda", "cpu", "requires_grad_")
_NONE: IntArray = np.zeros(0, dtype=np.int64)


class Assembly:
    """Walks a graph once, and says of every node which block it is, or which blocks it stands for.

    Args:
        deps: The analysed network.
        plan: What numbers after pruning are taken from; None if there is none.
        explain: Whether blocks are explained, which takes longer than all else.

    Attributes:
        blocks: The blocks so far, without their rows.
        edges: The edges so far, ordered by where they lead.
    """

    def __init__(self, deps: DependencyGraph, plan: ChannelPlan | None, explain: bool) -> None:
        self.blocks: list[Block] = []
        self.edges: list[tuple[int, int]] = []
        self._deps, self._plan = deps, plan
        structure = deps.structure
        self._recorder = structure.recorder
        self._alive = None if plan is None else structure.alive(plan.kept)
        self._free = (structure.group >= 0)[structure.unit]
        self._modules = modules_by_name(deps.gm)
        self._uses: dict[str, list[Use]] = {}
        for use in self._recorder.uses:
            self._uses.setdefault(use.node, []).append(use)
        # What a node's value comes from: blocks, or parameters that became none yet.
        self._sources: dict[fx.Node, tuple[int | str, ...]] = {}
        self._parameters: dict[str, int] = {}
        self._counted: set[str] = set()
        self._explained: dict[str, str] = {}
        self._explains = explain

    def run(self) -> None:
        """Fill :attr:`blocks` and :attr:`edges`."""
        for node in self._deps.gm.graph.nodes:
            stores = node.target is operator.setitem
            self._sources[node] = self._read(node) if stores or _has_tensor(node.meta["val"]) else ()
            if stores or writes(node, self._modules.__getitem__):
                self._written(node)

    def _written(self, node: fx.Node) -> None:
        """Whoever reads later what a node writes into, reads what the node gives."""
        at = node.all_input_nodes[0] if node.all_input_nodes else None
        while at is not None and at.op != "get_attr":
            self._sources[at] = self._sources[node]
            at = at.all_input_nodes[0] if shares(at, self._modules.__getitem__) else None

    # One node ---------------------------------------------------------------------------------------------------------

    def _read(self, node: fx.Node) -> tuple[int | str, ...]:
        if node.op == "placeholder":
            return (self._add(self._plain(node, "input"), ()),)
        if node.op == "get_attr":
            name = self._recorder.canonical_of(str(node.target))
            return (name,) if isinstance(self._recorder.original(name), nn.Parameter) else ()
        if str(node.target).startswith("new_"):
            return ()  # it takes no more than its type from what it reads
        given = tuple(dict.fromkeys(s for source in node.all_input_nodes for s in self._sources[source]))
        if node.op == "output":
            return (self._add(self._plain(node, "output"), given),)
        unseen = all(isinstance(source, str) for source in given)
        layer = None if unseen and node.op != "call_module" else self._layer_at(node)
        if layer is None and unseen:
            return given  # it is calculated from parameters and constants alone
        own = {use.axis.tensor for use in self._uses.get(node.name, ())} if layer is not None else set()
        if layer is None and self._passes(node, given):
            return given
        block = self._plain(node, "operator") if layer is None else self._of_layer(node, layer)
        return (self._add(block, tuple(source for source in given if source not in own)),)

    def _passes(self, node: fx.Node, given: Sequence[int | str]) -> bool:
        """Whether a node is no block by itself; an activation is noted at the block that it follows."""
        if node.target is operator.getitem:
            return not isinstance(node.all_input_nodes[0].meta["val"], Tensor)
        operands = [source for source in node.all_input_nodes if self._sources[source]]
        if len(operands) > 1 or self._is_opaque(node) or not self._is_elementwise(node):
            return False
        kind = kind_of(node, self._modules)
        if kind.startswith(_CHANGES_NOTHING) or kind in _CASTS:
            return True
        (source,) = given
        block = self.blocks[source] if isinstance(source, int) else None
        if block is None or block.role == "input" or not self._only_reader(node, operands[0]):
            return False
        assert isinstance(source, int)
        self.blocks[source] = replace(block, then=(*block.then, kind))
        return True

    def _only_reader(self, node: fx.Node, before: fx.Node) -> bool:
        """Whether nothing else reads what a node reads, back to the block that made it."""
        while before.target is not operator.getitem:  # one of several results
            if sum(_has_tensor(user.meta["val"]) for user in before.users) > 1:
                return False
            earlier = [source for source in before.all_input_nodes if self._sources[source] == self._sources[before]]
            if not earlier:
                return True
            before = earlier[0]
        return False

    def _is_elementwise(self, node: fx.Node) -> bool:
        keys = type(self._modules[str(node.target)]).__mro__ if node.op == "call_module" else (node.target,)
        found = next((RULES[key] for key in keys if key in RULES), None)
        return found is not None and found.function.__module__ == elementwise.__name__

    def _is_opaque(self, node: fx.Node) -> bool:
        return node.name in self._recorder.opaque_nodes or bool(self._recorder.closed_by(node))

    def _layer_at(self, node: fx.Node) -> str | None:
        """The layer that a node runs, be it as a function; None for an operator."""
        if node.op == "call_module":
            name = str(node.target)
            module = self._modules[name]
            return name if self._uses.get(node.name) or any(True for _ in module.parameters()) else None
        found = rule_for(node.target)
        takes_weights = found is not None and found.weights
        ranked = {"producer": 0, "consumer": 1, "follower": 2}
        # A parameter that belongs to no layer and meets an activation as it is does not make the operator a layer.
        uses = [
            use
            for use in self._uses.get(node.name, ())
            if takes_weights or use.role != "follower" or use.layer != use.axis.tensor
        ]
        learned = {use.layer: isinstance(self._recorder.original(use.axis.tensor), nn.Parameter) for use in uses}
        return min(uses, key=lambda use: (ranked[use.role], not learned[use.layer])).layer if uses else None

    # Blocks -----------------------------------------------------------------------------------------------------------

    def _add(self, block: Block, given: Sequence[int | str]) -> int:
        sources = [source if isinstance(source, int) else self._parameter(source) for source in given]
        self.edges += [(source, len(self.blocks)) for source in sorted(set(sources))]
        self.blocks.append(block)
        return len(self.blocks) - 1

    def _parameter(self, name: str) -> int:
        """The block of a parameter that meets activations as they are."""
        if name not in self._parameters:
            axes = [axis for axis in self._recorder.axes if axis.tensor == name]
            labels = [numbers(self._recorder.axes[axis]) for axis in axes]
            chosen = max(labels, key=lambda found: (bool(self._free[found].any()), len(found)), default=_NONE)
            shape = tuple(self._recorder.original(name).shape)
            block = Block(
                name,
                "Parameter",
                "parameter",
                shape=shape,
                path=tuple(name.split(".")),
                outputs=self._count(chosen),
                groups=self._group_numbers(chosen),
                frozen=self._held(chosen),
                parameters=self._weigh([name]),
                source=name.rpartition(".")[0],
                explanation=self._explain(name),
            )
            self._parameters[name] = self._add(block, ())
        return self._parameters[name]

    def _of_layer(self, node: fx.Node, layer: str) -> Block:
        block = self._plain(node, "opaque" if self._is_opaque(node) else "layer")
        owner = self._modules[layer] if node.op == "call_module" else None
        tensors = [use.axis.tensor for use in self._uses.get(node.name, ())]
        if owner is not None:
            tensors += [f"{layer}.{name}" for name, _ in owner.named_parameters()]
        sizes = {use.role: self._count(numbers(use.labels)) for use in reversed(self._uses.get(node.name, ()))}
        outputs = sizes.get("producer", sizes.get("follower", block.outputs))
        inputs = sizes.get("consumer", block.inputs)
        groups = self._deps.groups
        made = [i for i, g in enumerate(groups) if layer in g.producers or layer in g.followers]
        frozen = block.frozen
        if made:
            held = dict.fromkeys(groups[i].frozen or "" for i in made)
            frozen = "; ".join(held) if "" not in held else None
        return replace(
            block,
            inputs=inputs,
            outputs=outputs,
            name=layer,
            path=tuple(layer.split(".")),
            groups=tuple(made) or block.groups,
            reads=tuple(i for i, g in enumerate(groups) if layer in g.consumers),
            frozen=frozen,
            parameters=self._weigh(tensors),
            explanation=self._explain(layer),
            members=tuple(dict.fromkeys(use.layer for use in self._uses.get(node.name, ()) if use.layer != layer)),
        )

    def _plain(self, node: fx.Node, role: str) -> Block:
        """A block by what is known of any node."""
        if role == "operator" and self._is_opaque(node):
            role = "opaque"
        shown = node.all_input_nodes[0] if node.target is operator.setitem else node  # it gives nothing itself
        value = shown.meta["val"]
        stack = node.meta.get("nn_module_stack") or {}
        module = next(reversed(list(stack.values())), ("", None))[0] if stack else ""
        found = [self._main(given) for given in labels_in(self._recorder.values[shown])]
        labels = np.concatenate(found) if found else _NONE
        outputs = self._channels(shown)
        operands = [n for n in node.all_input_nodes if any(isinstance(s, int) for s in self._sources[n])]
        read = [self._channels(operand) for operand in operands]
        total = (sum(before for before, _ in read), sum(after for _, after in read))
        called = node.op == "placeholder" or (node.op == "call_module" and "opaque" not in node.meta)
        name = str(node.target) if called else node.name
        frozen = self._held(labels)
        if role == "opaque":
            frozen = self._recorder.opaque_nodes.get(node.name) or self._recorder.closed_by(node) or frozen
        elif role == "input":
            frozen = "the network's input has a fixed number of channels"
        return Block(
            name=name,
            kind=kind_of(node, self._modules),
            role=role,
            detail=detail_of(node, self._modules),
            shape=tuple(value.shape) if isinstance(value, Tensor) else None,
            path=tuple(
                name.split(".") if node.op == "call_module" else [*module.split("."), name] if module else [name]
            ),
            inputs=total if total == outputs else max(read, default=(0, 0)),
            outputs=outputs,
            groups=self._group_numbers(labels),
            frozen=frozen,
            source=" at ".join(filter(None, (module, str(node.meta.get("source") or "")))),
        )

    def _explain(self, layer: str) -> str:
        if not self._explains:
            return ""
        if layer not in self._explained:
            try:
                self._explained[layer] = self._deps.explain(layer)
            except UnknownNameError:  # a tensor of a layer that has others
                self._explained[layer] = self._deps.explain(self._recorder.layer_of(layer))
        return self._explained[layer]

    # Numbers ----------------------------------------------------------------------------------------------------------

    def _channels(self, node: fx.Node) -> tuple[int, int]:
        """The channels of a node's value, before and after; of several values those of all."""
        values = labels_in(self._recorder.values[node])
        found = [self._count(self._main(value)) if value.layers else _fixed(value) for value in values]
        return sum(before for before, _ in found), sum(after for _, after in found)

    def _main(self, value: Labels) -> IntArray:
        """The labels along a value's channels: of several dimensions those of which some can go, and then the most."""
        free = self._free
        return max(
            (numbers(layer.tensor) for layer in value.layers),
            key=lambda labels: (bool(free[labels].any()), len(labels)),
            default=_NONE,
        )

    def _count(self, labels: IntArray) -> tuple[int, int]:
        return len(labels), len(labels) if self._alive is None else int(self._alive[labels].sum())

    def _group_numbers(self, labels: IntArray) -> tuple[int, ...]:
        found = np.unique(self._deps.owners[labels])
        return tuple(found[found >= 0].tolist())

    def _held(self, labels: IntArray) -> str | None:
        """Why none of some channels goes."""
        if not labels.size or self._free[labels].any():
            return None
        explainer = self._deps.explainer
        causes = np.unique(explainer.causes(labels)).tolist()
        return "; ".join(dict.fromkeys(str(explainer.reason(cause)) for cause in causes))

    def _weigh(self, tensors: Sequence[str]) -> tuple[int, int]:
        """Elements of those parameters that no block has counted yet."""
        before = after = 0
        for name in dict.fromkeys(self._recorder.canonical_of(tensor) for tensor in tensors):
            tensor = self._recorder.original(name)
            if name in self._counted or not isinstance(tensor, nn.Parameter):
                continue
            self._counted.add(name)
            kept = self._plan.tensors.get(name) if self._plan is not None else None
            before += tensor.numel()
            after += tensor.numel() if kept is None else cut(tensor.to(torch.device("meta")), kept).numel()
        return before, after


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))


def _fixed(value: Labels) -> tuple[int, int]:
    """Channels of a value that can lose none: along its second dimension, as everywhere in torch."""
    size = value.full[1] if len(value.full) > 1 else 0
    return size, size
