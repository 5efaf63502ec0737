"""Who reads which channels, with which weights, and what the channels are there if they are always the same."""

from __future__ import annotations

__all__ = ["Readers"]

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.arguments import argument
from fxprune.constancy import CONVOLUTIONS, known_values
from fxprune.labels import IntArray, Layer
from fxprune.recorder import Recorder
from fxprune.records import Read, numbers
from fxprune.selection import FloatArray
from fxprune.structure import Structure
from fxprune.vocabulary import Axis, Use

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Reader:
    """One reading of channels.

    Attributes:
        labels: The channels, shape ``(channels,)``.
        constant: What each always is, or NaN.
        weighs: Whether a weight is other than zero, shape ``(groups, outputs, inputs)`` of each group; None where the
            channels are summed up without weights that are known.
        outputs: The labels of all outputs, in the order of the groups.
        layer: Name of the layer that constants can be put into, or None.
    """

    labels: IntArray
    constant: FloatArray
    weighs: Bools | None = None
    outputs: IntArray | None = None
    layer: str | None = None

    def reads(self, structure: Structure, kept: Bools) -> Bools:
        """Whether each channel makes a difference to an output that stays, ``(channels,)``."""
        if self.weighs is None or self.outputs is None:
            return np.ones(len(self.labels), dtype=bool)
        rows = kept[structure.unit[self.outputs]].reshape(len(self.weighs), -1, 1)
        found: Bools = (self.weighs & rows).any(axis=1).reshape(-1)
        return found


class Readers:
    """All readings of a network.

    Args:
        gm: The traced network with its weights.
        recorder: Its first reading.
    """

    def __init__(self, gm: fx.GraphModule, recorder: Recorder) -> None:
        self._gm, self._recorder = gm, recorder
        self._nodes = {node.name: node for node in gm.graph.nodes}
        self._known = known_values(gm)
        self._calls = Counter(id(gm.get_submodule(str(n.target))) for n in gm.graph.nodes if n.op == "call_module")
        self._owners = Counter(id(p) for m in dict.fromkeys(gm.modules()) for p in m.parameters(recurse=False))
        uses: dict[str, list[Use]] = {}
        for use in recorder.uses:
            if use.role == "consumer":
                uses.setdefault(use.node, []).append(use)
        self._readers = [
            self._reader(read, layer, uses.get(read.node, []))
            for read in recorder.reads_
            if not self._depthwise(read)
            for layer in read.layers
        ]

    def dead(self, structure: Structure, kept: Bools) -> Bools:
        """Whether each unit could go besides those that are not kept."""
        dead = np.ones(structure.units, dtype=bool)
        for reader in self._readers:
            held = reader.reads(structure, kept) & (reader.constant != 0)
            if reader.layer is not None:
                held &= ~np.isfinite(reader.constant)
            dead[structure.unit[reader.labels[held]]] = False
        return dead

    def constants(self, structure: Structure, kept: Bools) -> dict[str, FloatArray]:
        """What removed channels give their readers, by the reader's name: an entry for each of its inputs."""
        found = {}
        for reader in self._readers:
            needed = reader.reads(structure, kept) & ~kept[structure.unit[reader.labels]] & (reader.constant != 0)
            if needed.any() and reader.layer is not None:
                found[reader.layer] = np.where(needed, reader.constant, 0.0)
        return found

    def _depthwise(self, read: Read) -> bool:
        """Whether channels stay by themselves there: what becomes of them is read further on."""
        node = self._nodes[read.node]
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            if not isinstance(module, _ConvNd):
                return False
            groups, transposed = (
                module.groups,
                isinstance(module, _ConvTransposeNd) and (module.in_channels != module.out_channels),
            )
        elif node.target in CONVOLUTIONS:
            groups = argument(node.target, node.args, node.kwargs, "groups") or 1
            transposed = "transpose" in node.target.__name__
        else:
            return False
        channels = node.all_input_nodes[0].meta["val"].shape[1]
        return bool(groups > 1 and groups == channels and not transposed)

    def _reader(self, read: Read, layer: Layer, uses: list[Use]) -> _Reader:
        node = self._nodes[read.node]
        labels = numbers(layer.tensor)
        constant = self._constant(node, read, layer)
        if len(uses) != 1 or len(read.layers) != 1 or not np.array_equal(numbers(uses[0].labels), labels):
            return _Reader(labels, constant)
        axis = uses[0].axis
        if self._weight(node) != axis.tensor:
            return _Reader(labels, constant)
        weighs, outputs = self._weighs(axis)
        return _Reader(labels, constant, weighs, outputs, self._absorbs(node))

    def _constant(self, node: fx.Node, read: Read, layer: Layer) -> FloatArray:
        """What each channel of a layer always is at a reader; NaN if that depends on the input or the position."""
        source = node.args[read.position] if isinstance(read.position, int) else node.kwargs[read.position]
        known = self._known.get(source.name) if isinstance(source, fx.Node) else None
        if known is None or known.value.shape != read.full:
            return np.full(layer.tensor.numel(), np.nan)
        others = [dim for dim in range(len(read.full)) if dim not in layer.dims]
        low, high, open_ = (_over(t, others) for t in (known.value.neg(), known.value, known.open.double()))
        found = torch.where((open_ == 0) & (high == -low), high, torch.nan)
        result: FloatArray = found.reshape(-1).numpy()
        return result

    def _weight(self, node: fx.Node) -> str | None:
        """The parameter that a node multiplies by as it stands."""
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            return self._recorder.canonical_of(f"{node.target}.weight") if _plain(module) else None
        weight = argument(node.target, node.args, node.kwargs, "weight") if node.target in _FUNCTIONS else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        return self._recorder.canonical_of(str(weight.target))

    def _weighs(self, axis: Axis) -> tuple[Bools, IntArray]:
        weight = self._recorder.original(axis.tensor).detach() != 0
        weight = weight.reshape(*weight.shape[:2], -1).any(2)
        out = Axis(axis.tensor, 0)
        groups = axis.groups
        if axis.dim == 0:  # transposed
            out = next(a for a in self._recorder.axes if (a.tensor, a.dim) == (axis.tensor, 1))
            groups = out.groups
        blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1])
        weighs: Bools = (blocks.transpose(1, 2) if axis.dim == 0 else blocks).cpu().numpy()
        return weighs, numbers(self._recorder.axes[out])

    def _absorbs(self, node: fx.Node) -> str | None:
        """The layer's name, if a constant input is the same as a constant added to its outputs."""
        module = self._gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or not _plain(module) or isinstance(module, _ConvTransposeNd):
            return None
        if (
            isinstance(module, _ConvNd)
            and module.padding_mode == "zeros"
            and any(module._reversed_padding_repeated_twice)
        ):
            return None
        own = all(self._owners[id(p)] == 1 for p in module.parameters(recurse=False))
        return str(node.target) if own and self._calls[id(module)] == 1 else None


_FUNCTIONS = (F.linear, *CONVOLUTIONS)


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd)


def _over(tensor: Tensor, dims: list[int]) -> Tensor:
    return tensor.amax(dims) if dims else tensor
