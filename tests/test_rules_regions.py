from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import images, prove, sizes
from torch import Tensor, nn
from torchvision import ops

from fxprune.analysis import read
from fxprune.capture import trace


class Regions(nn.Module):
    """Two maps of a pyramid, regions of either, and a head that reads their channels."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.pool = pool
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        maps = {"fine": fine, "coarse": self.down(fine), "unused": x}
        boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 6.0, 6.0], [0.0, 0.0, 5.0, 2.0]], dtype=x.dtype)
        return self.head(self.pool(maps, [boxes]).flatten(1))


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.align = ops.MultiScaleRoIAlign(["fine", "coarse"], 2, 2)

    def forward(self, maps: Any, boxes: Any) -> Tensor:
        return self.align(maps, boxes, [(6, 6)])


POOLS = {
    "align": lambda maps, boxes: ops.roi_align(maps["fine"], boxes, 2),
    "pool": lambda maps, boxes: ops.roi_pool(maps["coarse"], boxes, 2, 0.5),
    "layer": lambda maps, boxes: ops.RoIAlign(2, 0.5, 2)(maps["coarse"], boxes),
}


@pytest.mark.parametrize("pool", POOLS)
def test_regions_keep_their_channels(pool: str) -> None:
    found = prove(Regions(POOLS[pool]).eval(), criterion="first")
    layer = "stem" if pool == "align" else "down"
    assert sizes(found.deps)[layer] == 8
    assert found.small.get_submodule("head").in_features == 16


def test_maps_of_one_pyramid_go_together_though_their_choice_cannot_be_traced() -> None:
    found = prove(Regions(Pyramid()).eval())
    group = found.deps.group_of("down")[0]
    assert set(group.producers) == {"stem", "down"}
    assert (group.size, group.frozen) == (8, None)
    assert any("opaque" in node.meta for node in found.deps.gm.graph.nodes)


class OwnAlign(ops.MultiScaleRoIAlign):
    pass


def test_a_subclass_that_keeps_the_forward_has_the_rule() -> None:
    model = Regions(Pyramid()).eval()
    model.pool.align = OwnAlign(["fine", "coarse"], 2, 2)
    assert prove(model).deps.group_of("down")[0].frozen is None


def test_boxes_that_the_network_computes_stay() -> None:
    class Proposals(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.boxes, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            boxes = self.boxes(x)[0].flatten(1).t().sigmoid() * 3
            return self.head(ops.roi_align(self.maps(x), [boxes], 1).flatten(1))

    recorder = read(trace(Proposals().eval(), images()))
    assert any(f.reason.text == "it says where regions lie" for f in recorder.freezes)
