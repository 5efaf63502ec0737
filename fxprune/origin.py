"""What a pruned network knows of the one that it was made from: which of its channels it has."""

from __future__ import annotations

__all__ = ["Origin", "note_origin", "origin_from", "origin_of"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxprune.plan import ChannelPlan, LayerPlan, TensorCut
from fxprune.rewriting import cut

_KEY = "fxprune_origin"


@dataclass(frozen=True, repr=False)
class Origin:
    """The channels that a network kept, by the names of its layers.

    It holds indices alone, neither weights nor graphs, so that a pruned network can be copied and saved with it.

    Attributes:
        layers: What each layer kept. Layers that are not in it have all their channels.
        tensors: What each parameter and buffer that changed kept, under all of its names.
    """

    layers: Mapping[str, LayerPlan]
    tensors: Mapping[str, TensorCut]

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        """A value; copies of the network share it."""
        return self

    def outputs(self, layer: str) -> tuple[int, ...] | None:
        """The output channels that a layer kept, in order, or None where all stayed as they were."""
        plan = self._of(layer)
        return None if plan is None else plan.outputs

    def inputs(self, layer: str) -> tuple[int, ...] | None:
        """The input channels that a layer kept, in order, or None where all stayed as they were."""
        plan = self._of(layer)
        return None if plan is None else plan.inputs

    def _of(self, layer: str) -> LayerPlan | None:
        """What a layer kept, also by the name of its weight."""
        return self.layers.get(layer) or self.layers.get(layer.rpartition(".")[0])

    def kept(self, name: str, tensor: Tensor) -> Tensor:
        """The part of one of the original's tensors that the network has, in its order; a copy."""
        return cut(tensor, self.tensors.get(name, TensorCut(())))


def origin_from(plan: ChannelPlan) -> Origin:
    """What a plan keeps."""
    return Origin(dict(plan.layers), plan.structure.recorder.by_alias(plan.tensors))


def note_origin(gm: fx.GraphModule, origin: Origin) -> None:
    """Write down, in a network that a plan made, which channels it kept."""
    gm.meta[_KEY] = origin


def origin_of(gm: fx.GraphModule) -> Origin | None:
    """What a network has of the one that it was pruned from, or None if it was not pruned by a plan."""
    found = gm.meta.get(_KEY)
    return found if isinstance(found, Origin) else None
