"""Detectors' regions of interest: each channel is pooled by itself, wherever the boxes are."""

from __future__ import annotations

__all__: list[str] = []

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fxprune.labels import Labels
from fxprune.nested import map_nested
from fxprune.reading import Reading
from fxprune.rules.algebra import axis, place
from fxprune.rules.table import rule
from fxprune.vocabulary import labels_in


def _pooled(ctx: Reading, maps: Sequence[Labels], boxes: Any) -> Any:
    for labels in labels_in(boxes):
        ctx.freeze_all(labels, "it says where regions lie")
    line = axis(ctx, maps[0], 1)
    for other in maps[1:]:  # a box is pooled from one map or another, and the layers behind take either
        ctx.tie(line, axis(ctx, other, 1))
    for labels in maps:
        for layer in labels.off([1]):
            ctx.freeze(layer.tensor, "regions are cut out of it")

    def labelled(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return Labels(tuple(value.shape), (place(line, 1, value.dim()),), maps[0].why)

    return map_nested(labelled, ctx.node.meta["val"])


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(ctx: Reading, input: Labels, rois: Labels, *args: Any) -> Any:
    """RoI pooling (Girshick, 2015, arXiv:1504.08083) and RoIAlign (He et al., 2017, arXiv:1703.06870)."""
    return _pooled(ctx, [input], rois)


@rule("torchvision.ops.poolers.MultiScaleRoIAlign")
def regions_of_pyramid(ctx: Reading, module: Any, x: Mapping[str, Labels], boxes: Any, image_shapes: Any) -> Any:
    """RoIAlign from the level of a feature pyramid that fits the box (Lin et al., 2017, arXiv:1612.03144)."""
    return _pooled(ctx, [labels for name, labels in x.items() if name in module.featmap_names], boxes)
