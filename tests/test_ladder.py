"""What cannot be traced: functions and methods that are closed, and what goes in and out of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, holds, images, same, sizes
from torch import Tensor, fx, nn

from fxprune.capture import trace, value_of
from fxprune.dependency import DependencyGraph
from fxprune.errors import TraceError
from fxprune.models import randomize
from fxprune.opaque import differences
from fxprune.planning import plan_channels


def opaque(gm: fx.GraphModule) -> dict[str, str]:
    return {str(n.target): n.meta["opaque"] for n in gm.graph.nodes if "opaque" in n.meta}


def layers(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_module" and "opaque" not in n.meta]


def as_the_model(model: nn.Module, *inputs: Any) -> fx.GraphModule:
    """The graph computes what the model does, for the example (the first inputs) and for the others."""
    randomize(model).eval()
    gm = trace(model, (inputs[0],))
    with torch.no_grad():
        for value in inputs:
            assert same(gm(copy.deepcopy(value)), model(copy.deepcopy(value)))
    return gm


# Methods and functions ------------------------------------------------------------------------------------------------


def loudest(y: Tensor) -> Tensor:
    """The positions that are above the mean: as many as there are."""
    return y[y > y.mean()]


class Boxes:
    """Pictures with their sizes: an object that is no module and no tensor."""

    def __init__(self, tensors: Tensor, sizes: list[tuple[int, int]]) -> None:
        self.tensors = tensors
        self.sizes = sizes


class Detector(nn.Module):
    """What detectors do around their layers."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3))
        self.head = nn.Conv2d(10, 5, 1)
        self.threshold = threshold
        self.anchors: list[Tensor] = [torch.ones(2)]

    def batch(self, pictures: list[Tensor]) -> Boxes:
        sizes = [(p.shape[-2], p.shape[-1]) for p in pictures]
        height = int(-(-float(max(s[0] for s in sizes)) // 4) * 4)
        width = int(-(-float(max(s[1] for s in sizes)) // 4) * 4)
        batched = pictures[0].new_full([len(pictures), 3, height, width], 0)
        for i in range(batched.shape[0]):
            batched[i, :, : sizes[i][0], : sizes[i][1]].copy_(pictures[i])
        return Boxes(batched, sizes)

    def postprocess(self, scores: Tensor, anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        found = []
        for image, (height, _) in zip(scores, sizes, strict=True):
            keep = image > self.threshold
            values = image[keep]
            if len(values):
                values = values / values.max() * height
            found.append({"values": values, "places": torch.where(keep)[0], "anchor": anchors[0]})
        return found

    def rescale(self, found: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        for i, (one, size) in enumerate(zip(found, sizes, strict=True)):
            found[i]["values"] = one["values"] * torch.tensor(size[0], dtype=torch.float32)
        return found

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Any]]:
        boxes = self.batch(pictures)
        features = self.body(boxes.tensors)
        self.anchors = [a.to(dtype=features.dtype) * features.shape[-1] for a in self.anchors]
        scores = self.head(features)
        return self.rescale(self.postprocess(scores, self.anchors, boxes.sizes), boxes.sizes)


def pictures(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randn(3, *shape, generator=drawn, dtype=dtype) for shape in shapes]


def test_postprocessing_becomes_one_node_around_the_layers() -> None:
    model = randomize(Detector()).eval()
    anchors = model.anchors
    gm = trace(model, (pictures((12, 10), (9, 14)),))
    assert model.anchors is anchors
    assert list(opaque(gm)) == ["_opaque_0"]
    assert layers(gm) == ["body.0", "body.1", "body.2", "head"]
    for shapes in [((12, 10), (9, 14)), ((8, 8), (15, 7))]:
        with torch.no_grad():
            expected = copy.deepcopy(model)(pictures(*shapes))
            assert same(gm(pictures(*shapes)), expected)
            assert len(expected[0]["values"]) > 0


def test_a_detector_is_pruned_and_proven() -> None:
    inputs = (pictures((12, 10), (9, 14)),)
    assert sizes(holds(Detector(), inputs)) == {"body.0": 8, "body.2": 10}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_graph_with_closed_functions_can_be_copied_and_kept(copied: Callable[[Any], Any]) -> None:
    model = randomize(Detector()).eval()
    inputs = pictures((12, 10), (9, 14))
    gm = trace(model, (inputs,))
    assert set(gm.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        assert same(copied(gm)(inputs), copy.deepcopy(model)(inputs))


def test_the_smallest_function_is_closed() -> None:
    model = Net(lambda s, x: (s.end(s.a(x)), loudest(s.a(x))))
    gm = as_the_model(model, images(), images(3), images(height=12))
    assert list(opaque(gm)) == ["_opaque_0"]
    assert "nonzero" in opaque(gm)["_opaque_0"]
    assert gm.get_submodule("_opaque_0")._held[0].function is loudest  # type: ignore[union-attr, index]
    assert loudest.__module__ == __name__


def some(y: Tensor) -> Tensor:
    return loudest(y)[:7] * 2


def test_what_is_cut_off_a_result_of_unknown_length_is_still_unknown() -> None:
    def decides(y: Tensor) -> Tensor:
        found = loudest(y)
        return found * 2 if found.shape[0] > 3 else found

    model = Net(lambda s, x: decides(s.a(x)))  # no name by which it could be closed
    with pytest.raises(TraceError, match="depends on the values of a tensor"):
        trace(model, images())
    assert list(opaque(as_the_model(Net(lambda s, x: some(s.a(x))), images(), images(3)))) == ["_opaque_0"]


def decides(y: Tensor) -> Tensor:
    found = loudest(y)
    return found * 2 if found.shape[0] > 3 else found


def test_what_decides_by_an_unknown_length_is_closed_as_well() -> None:
    gm = as_the_model(Net(lambda s, x: decides(s.a(x))), images(), images(1, height=3, width=3), 0 * images())
    assert gm.get_submodule("_opaque_0")._held[0].function is decides  # type: ignore[union-attr, index]


class Methods(nn.Module):
    """Methods that cannot be traced, of every kind, one of which reads parameters and runs layers."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.free = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 3)
        self.scale = nn.Parameter(torch.ones(8))
        self.drop = nn.Dropout(0.5)

    def plain(self, y: Tensor) -> Tensor:
        y = self.drop(y)
        return self.b(y) * self.scale[:, None, None] if y.sum() > 0 else self.b(y)

    @classmethod
    def of_class(cls, y: Tensor) -> Tensor:
        return y * cls.factor if y.sum() > 0 else y

    @staticmethod
    def without_self(y: Tensor) -> Tensor:
        return y * 3 if y.sum() > 0 else y

    def forward(self, x: Tensor) -> Tensor:
        return self.without_self(self.of_class(self.plain(self.a(x)))) + self.free(x)


def test_methods_of_every_kind_are_closed() -> None:
    gm = as_the_model(Methods(), images(), -images(3))
    assert len(opaque(gm)) == 3
    assert layers(gm) == ["a", "free"]
    assert set(gm.state_dict()) == set(Methods().state_dict())


def test_what_a_closed_method_reads_is_frozen_and_follows_the_graph() -> None:
    gm = trace(randomize(Methods()).eval(), images())
    deps = DependencyGraph(gm)
    assert sizes(deps) == {}
    assert "plain" in Methods.__dict__
    assert {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"} == {"b.weight", "b.bias", "scale"}
    model = Methods().eval()
    gm = trace(model, images())
    with torch.no_grad():
        model.scale.mul_(3)
        assert same(gm(images().abs()), model(images().abs()))
        assert same(gm.double()(images().double()), copy.deepcopy(model).double()(images().double()))


def test_a_closed_method_follows_the_mode() -> None:
    gm = trace(Methods().eval(), images())
    assert same(gm(images()), gm(images()))
    gm.train()
    assert not same(gm(images()), gm(images()))
    assert not same(*[trace(Methods().train(), images())(images()) for _ in range(2)])


def writes(y: Tensor) -> None:
    if y.sum() != 0:
        y.mul_(2)


def test_what_a_closed_function_writes_stays_written() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        writes(y)
        return s.end(y)

    gm = as_the_model(Net(forward), images(), images(3))
    assert len(opaque(gm)) == 1


def collects(y: Tensor, into: list[Tensor]) -> None:
    if y.sum() != 0:
        into.append(y * 2)


def test_a_function_that_fills_a_list_is_not_closed() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        collects(s.a(x), found)
        return found[0]

    with pytest.raises(TraceError, match="it changes lists"):
        trace(Net(forward), images())


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.last = nn.Conv2d(3, 8, 3), None

    def remember(self, y: Tensor) -> Tensor:
        self.last = y.sum().item()
        return y * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.remember(self.a(x)) * self.last


def test_a_method_that_stores_something_is_not_closed() -> None:
    with pytest.raises(TraceError):
        trace(Remembers(), images())


class Stored(nn.Module):
    """A method that reads what the forward has stored."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Conv2d(3, 8, 3), torch.ones(1)

    def scaled(self, y: Tensor) -> Tensor:
        return y * self.scale if y.sum() != 0 else y

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.scale = y.mean((1, 2, 3), keepdim=True)
        return self.scaled(y)


def test_a_method_that_reads_what_was_stored_is_not_closed() -> None:
    with pytest.raises(TraceError):
        trace(Stored(), images())


def test_an_object_of_values_goes_into_a_closed_function() -> None:
    gm = as_the_model(Net(lambda s, x: in_boxes(Boxes(s.a(x), [(x.shape[2], 3)]))), images(), images(3, height=11))
    assert len(opaque(gm)) == 2


def in_boxes(boxes: Boxes) -> Tensor:
    return boxes.tensors * boxes.sizes[0][0] if boxes.tensors.sum() > 0 else boxes.tensors


def as_boxes(y: Tensor) -> Boxes:
    return Boxes(y * 2 if y.sum() > 0 else y, [tuple(y.shape[-2:])])  # type: ignore[list-item]


def test_an_object_comes_out_of_a_closed_function() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        boxes = as_boxes(x)
        y = s.a(boxes.tensors)
        for height, _ in boxes.sizes:
            y = y * height
        return s.end(F.interpolate(y, size=boxes.sizes[0]))

    gm = as_the_model(Net(forward), images(), images(3), images(height=11))
    assert layers(gm) == ["a", "b", "h"]
    output = next(iter(reversed(gm.graph.nodes)))
    assert value_of(output).shape == (2, 5)


@torch.jit.script
def scripted(y: Tensor) -> Tensor:
    if bool(y.sum() > 0):
        y = y * 2
    return y


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:")
def test_a_scripted_function_becomes_one_node() -> None:
    gm = as_the_model(Net(lambda s, x: s.end(scripted(s.a(x)))), images(), -images(3))
    assert layers(gm) == ["a", "b", "h"]


def test_the_model_refuses_before_anything_is_closed() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return outer(s, x)

    with pytest.raises(TraceError, match=r"expected input.* to have 3 channels, but got 4"):
        trace(Net(forward), images(channels=4))


def outer(s: Net, x: Tensor) -> Tensor:
    return s.end(s.a(x))


def test_what_differs_is_told_part_by_part() -> None:
    a, b = torch.empty(3, device="meta"), torch.empty(4, device="meta")
    assert differences(a, a) is False
    assert differences([a, 1], [b, 1]) == [True, False]
    assert differences({"x": (a, "s")}, {"x": (a, "s")}) is False
    assert differences([a], [a, b]) is True
    assert differences(Boxes(a, [(1, 2)]), Boxes(b, [(1, 3)])) == {"tensors": True, "sizes": [[False, True]]}
    assert differences(1, 1.0) is True


# Whole detectors ------------------------------------------------------------------------------------------------------

DETECTORS = {
    "ssd300_vgg16": (35, True),
    "ssdlite320_mobilenet_v3_large": (98, True),
    "fcos_resnet50_fpn": (116, False),
    "retinanet_resnet50_fpn": (111, True),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (79, True),
}
"""How many convolutions and linear layers they call, and whether pruning them is exact."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_whole_detectors(name: str) -> None:
    from torchvision.models import detection

    from fxprune.verification import verify

    torch.manual_seed(0)
    options = {"min_size": 128, "max_size": 160} if "fcos" in name or "retina" in name else {}
    model = randomize(getattr(detection, name)(weights=None, weights_backbone=None, **options)).eval()
    inputs = ([torch.rand(3, 320, 320)],)
    gm = trace(model, inputs)
    modules = [gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"]
    count, exact = DETECTORS[name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in modules) == count
    with torch.no_grad():
        for shape in ((320, 320), (200, 280)):
            image = [torch.rand(3, *shape)]
            assert same(gm(image), model(image))
    plan = plan_channels(DependencyGraph(gm), 0.5)
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in plan.apply(model).parameters()) < 0.55 * before
    proof = verify(model, plan, inputs)
    assert proof.exact is exact
    assert not exact or proof.max_relative_error < 1e-10
