"""The plan: what every tensor keeps, and what the graph's sizes become. A value; it touches no weight."""

from __future__ import annotations

__all__ = ["ChannelPlan", "LayerPlan", "TensorCut", "make_plan"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from fxprune.errors import ArgumentTypeError
from fxprune.labels import IntArray, same
from fxprune.records import Change, Found, numbers
from fxprune.relations import relations
from fxprune.structure import Structure
from fxprune.vocabulary import Axis, Use

if TYPE_CHECKING:
    from fxprune.allocation.budget import Allocation
    from fxprune.dependency import DependencyGraph


@dataclass(frozen=True, eq=False, repr=False)
class LayerPlan:
    """What one layer keeps.

    Attributes:
        kept_inputs, kept_outputs: Kept channels in order, as they were found, or None where all stay as they are.
        size: Numbers of input and output channels before; 0 where the layer has none.
    """

    kept_inputs: Sequence[int] | IntArray | None
    kept_outputs: Sequence[int] | IntArray | None
    size: tuple[int, int] = (0, 0)

    @cached_property
    def inputs(self) -> tuple[int, ...] | None:
        """Kept input channels in order, or None where all stay as they are."""
        return _listed(self.kept_inputs)

    @cached_property
    def outputs(self) -> tuple[int, ...] | None:
        """Kept output channels in order, or None where all stay as they are."""
        return _listed(self.kept_outputs)

    def _value(self) -> tuple[Any, ...]:
        return self.inputs, self.outputs, self.size

    def __eq__(self, other: object) -> bool:
        return self._value() == other._value() if isinstance(other, LayerPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value())

    def __repr__(self) -> str:
        return f"LayerPlan(inputs={self.inputs}, outputs={self.outputs}, size={self.size})"


def _listed(kept: Sequence[int] | IntArray | None) -> tuple[int, ...] | None:
    if kept is None:
        return None
    return tuple(kept.tolist()) if isinstance(kept, np.ndarray) else tuple(kept)


@dataclass(frozen=True)
class TensorCut:
    """What one parameter or buffer keeps.

    Attributes:
        axes: For each dimension that changes, the axis and the kept indices in order.
    """

    axes: tuple[tuple[Axis, IntArray], ...]


@dataclass(frozen=True, repr=False)
class ChannelPlan:
    """Which channels stay, for every tensor of a network.

    Attributes:
        layers: What each layer keeps, by name.
        tensors: What each parameter and buffer that changes keeps, by name.
        changes: What becomes of graph nodes that name sizes, by node name.
        attributes: What becomes of attributes of layers, by layer and attribute name.
        inexact: Nodes that compute something else with fewer channels (a softmax or a mean over channels, say), and
            why.
        gm: The traced network that the plan is for.
        structure: The analysis that it follows from.
        kept: Whether each unit stays.
        place: For a permutation, the label that takes each label's place.
        allocation: How a budget was shared out, if the plan has one.
        constants: For a plan that changes nothing, what removed inputs of a layer always are, by the layer's name: an
            array with an entry for each input channel, 0 for all others. None for a plan that removes what matters.
    """

    layers: Mapping[str, LayerPlan]
    tensors: Mapping[str, TensorCut]
    changes: Mapping[str, Change]
    attributes: Mapping[tuple[str, str], Any]
    inexact: Mapping[str, str]
    gm: fx.GraphModule
    structure: Structure
    kept: NDArray[np.bool_]
    place: IntArray | None = None
    allocation: Allocation | None = None
    constants: Mapping[str, NDArray[np.float64]] | None = None

    def __repr__(self) -> str:
        """A line: the indices of a large network would fill pages."""
        gone = len(self.kept) - int(self.kept.sum())
        return f"ChannelPlan({len(self.layers)} layers, {gone} units removed, {len(self.tensors)} tensors cut)"

    def _repr_svg_(self) -> str:
        """What a notebook shows: the picture, folded as far as a cell needs it."""
        from fxprune.drawing.files import notebook_svg

        return notebook_svg(self)

    def _repr_html_(self) -> str:
        from fxprune.drawing.files import notebook_html

        return notebook_html(self)

    def apply(self, model: nn.Module) -> fx.GraphModule:
        """Rewrite a model; the model itself stays as it is.

        Args:
            model: The model that the plan was made for, or one of the same layers and shapes with other weights.

        Returns:
            A new graph module that shares no storage with the model. Names, dtypes, devices, memory formats and
            ``requires_grad`` are the model's.

        Raises:
            ArgumentError: The model lacks a tensor of the plan, or has it in another shape.
            ArgumentTypeError: Something else than a module.
            InternalError: The result is not what the plan says; a mistake in fxprune.
        """
        from fxprune.passes.channel_pruning import rewrite

        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"a plan is applied to an nn.Module, not to a {type(model).__name__}")
        return rewrite(model, self)

    def report(self) -> str:
        """A table with a line for every layer: its channels before and after, or why it is untouched."""
        from fxprune.reporting import plan_table

        return plan_table(self)


def make_plan(deps: DependencyGraph, structure: Structure, kept: NDArray[np.bool_], found: Found) -> ChannelPlan:
    """Put down what was found for the channels that are kept."""
    recorder = structure.recorder
    position = np.zeros(recorder.count, dtype=np.int64)
    cuts: dict[str, list[tuple[Axis, IntArray]]] = {}
    indices: dict[Axis, IntArray | None] = {}
    grouped = {(axis.tensor, axis.dim) for axis in found.axes if axis.groups > 1}
    known: dict[tuple[int, int], IntArray | None] = {}  # a layer and those that follow it share their labels
    for axis, labels in found.axes.items():
        if axis.groups == 1 and (axis.tensor, axis.dim) in grouped:
            continue  # said by its blocks
        key = id(recorder.axes[axis]), id(labels)
        if key not in known:
            old = numbers(recorder.axes[axis])
            whole = np.arange(len(old))
            position[old] = whole
            index = position[numbers(labels)]
            known[key] = None if same(index, whole) else index
        kept_index = indices[axis] = known[key]
        if kept_index is not None:
            cuts.setdefault(axis.tensor, []).append((axis, kept_index))
    alive = structure.alive(kept)
    inexact = {}
    for record in recorder.inexacts:
        left = alive[record.lines].sum(axis=1)
        if ((left > 0) & (left < record.lines.shape[1])).any():
            inexact[record.node] = record.text
    return ChannelPlan(
        layers=_layers(deps.gm, structure, indices),
        tensors={name: TensorCut(tuple(axes)) for name, axes in cuts.items()},
        changes=dict(found.changes),
        attributes=dict(found.attributes),
        inexact=inexact,
        gm=deps.gm,
        structure=structure,
        kept=kept,
        place=found.place,
    )


def _layers(gm: fx.GraphModule, structure: Structure, indices: Mapping[Axis, IntArray | None]) -> dict[str, LayerPlan]:
    sides: dict[tuple[str, bool], Use] = {}  # by layer and whether it is what the layer reads
    choosable = (structure.group >= 0)[structure.unit]

    def rank(use: Use) -> tuple[bool, bool, bool]:
        """Of a parameter's dimensions, the one that changes says most."""
        changes = indices.get(use.axis) is not None
        return use.role == "producer", changes, changes or bool(choosable[numbers(use.labels)].any())

    for use in relations(structure):
        side = use.layer, use.role == "consumer"
        known = sides.setdefault(side, use)
        if known.labels is use.labels and indices.get(known.axis) is indices.get(use.axis):
            continue
        ours, before = rank(use), rank(known)
        if ours > before or (ours == before and use.role == "follower"):
            sides[side] = use
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    modules = structure.recorder.modules
    plans = {}
    for layer in dict.fromkeys(layer for layer, _ in sides):
        size_in, inputs = _side(sides.get((layer, True)), indices)
        size_out, outputs = _side(sides.get((layer, False)), indices)
        if (layer, True) not in sides and layer in called:
            size_in, inputs = _through(modules[layer], size_out, outputs)
        plans[layer] = LayerPlan(inputs, outputs, (size_in, size_out))
    return plans


def _side(use: Use | None, indices: Mapping[Axis, IntArray | None]) -> tuple[int, IntArray | None]:
    """How many channels one side of a layer has, and which stay."""
    return (0, None) if use is None else (use.labels.shape[0], indices.get(use.axis))


def _through(module: nn.Module, size: int, outputs: IntArray | None) -> tuple[int, IntArray | None]:
    """The inputs of a layer that no weight reads apart: each makes as many of the outputs; none of an embedding's."""
    if isinstance(module, nn.Embedding):
        return 0, None
    times = max(1, size // int(getattr(module, "in_channels", size)))
    return size // times, None if outputs is None else outputs[::times] // times
