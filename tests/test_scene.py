"""What is drawn of a network: every layer once per call, what flows between them, and folding."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import ArgumentError, ArgumentTypeError, DependencyGraph, plan_channels
from fxprune.drawing import Block, Scene
from fxprune.models import ZOO, example_inputs


def _deps(name: str) -> DependencyGraph:
    return DependencyGraph.from_model(ZOO[name]().eval(), example_inputs(name))


def _of(model: nn.Module, *shape: int) -> Scene:
    return Scene.of(DependencyGraph.from_model(model.eval(), torch.zeros(*shape)))


def _named(scene: Scene, name: str) -> Block:
    (block,) = (block for block in scene.blocks if block.name == name)
    return block


def _read_by(scene: Scene, name: str) -> list[str]:
    return [scene.blocks[a].name for a, b in scene.edges if scene.blocks[b].name == name]


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_every_parameter_and_only_ways_ahead(name: str) -> None:
    model = ZOO[name]().eval()
    deps = DependencyGraph.from_model(model, example_inputs(name))
    plan = plan_channels(deps, 0.5)
    small = plan.apply(model)
    scene = Scene.of(plan)

    assert set(deps.layers) <= {n for block in scene.blocks for n in (block.name, *block.members)}
    assert len(set(scene.edges)) == len(scene.edges)
    for a, b in scene.edges:
        assert a < b
        assert scene.blocks[a].depth < scene.blocks[b].depth
    for index, block in enumerate(scene.blocks):
        assert block.role in ("input", "parameter") or any(b == index for _, b in scene.edges), block
        assert block.role == "output" or any(a == index for a, _ in scene.edges), block
    before, after = zip(*(block.parameters for block in scene.blocks), strict=True)
    assert sum(before) == sum(p.numel() for p in model.parameters())
    assert sum(after) == sum(p.numel() for p in small.parameters())
    for depth in (1, 2, 3):
        folded = scene.folded(depth)
        assert all(a < b and folded.blocks[a].depth < folded.blocks[b].depth for a, b in folded.edges)
        assert sum(block.parameters[1] for block in folded.blocks) == sum(after)
        assert all(len(block.path) <= depth for block in folded.blocks if block.members and block.role == "module")


@pytest.mark.parametrize("name", ["residual", "channel_shuffle", "dense", "squeeze_excitation_linear", "fixed_view"])
def test_channels_are_those_of_the_pruned_network(name: str) -> None:
    model = ZOO[name]().eval()
    inputs = example_inputs(name)
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    scene = Scene.of(plan)
    seen: dict[str, tuple[int, int]] = {}

    def note(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1
            seen[layer] = (args[0].shape[axis], out.shape[axis])

        return hook

    for which, network in enumerate((model, plan.apply(model))):
        kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
        hooks = [m.register_forward_hook(note(n)) for n, m in network.named_modules() if isinstance(m, kinds)]
        network(*inputs)
        for hook in hooks:
            hook.remove()
        shown = {b.name: (b.inputs[which], b.outputs[which]) for b in scene.blocks if b.name in seen}
        assert shown == seen


def test_without_a_plan_nothing_changes() -> None:
    scene = Scene.of(_deps("residual"))
    assert not scene.planned
    assert all(b.inputs[0] == b.inputs[1] and b.parameters[0] == b.parameters[1] for b in scene.blocks)
    assert Scene.of(plan_channels(_deps("residual"), 0.5)).planned


def test_groups_reasons_and_words() -> None:
    deps = _deps("channel_shuffle")
    scene = Scene.of(deps)
    for block in scene.blocks:
        if block.role == "layer":
            groups = [scene.groups[i] for i in block.groups]
            assert groups == list(deps.group_of(block.name))
            assert [scene.groups[i] for i in block.reads] == [g for g in deps.groups if block.name in g.consumers]
            assert block.explanation == deps.explain(block.name)
    stem, head = _named(scene, "stem.0"), _named(scene, "head.2")
    assert (stem.detail, stem.frozen, stem.shape) == ("3×3, stride 2", None, (2, 48, 8, 8))
    assert "output of the network" in (head.frozen or "")
    assert _named(scene, "block1.branch.1.0").detail == "3×3, depthwise"
    assert _named(scene, "stem.1").then == ("ReLU",)
    assert _named(scene, "cat").groups == stem.groups
    assert _read_by(scene, "cat") == ["chunk", "block1.branch.2.1"]
    assert not Scene.of(deps, explain=False).blocks[1].explanation


def test_an_activation_that_others_see_past_is_a_block() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * x.sigmoid()

    scene = _of(Gate(), 1, 3, 4, 4)
    assert [block.kind for block in scene.blocks] == ["input", "Conv2d", "sigmoid", "mul", "output"]
    assert _read_by(scene, "mul") == ["conv", "sigmoid"]


def test_one_of_several_results_takes_part_in_two_operands() -> None:
    scene = Scene.of(_deps("maxout"))
    assert _read_by(scene, "maximum") == ["unbind"]
    assert _named(scene, "unbind").then == ()


def test_parameters_that_meet_activations() -> None:
    scene = Scene.of(plan_channels(_deps("vision_transformer"), 0.5))
    token = _named(scene, "class_token")
    assert (token.role, token.outputs, token.parameters) == ("parameter", (32, 16), (32, 16))
    assert _read_by(scene, "cat")[-1] == "class_token"
    assert token.depth == _named(scene, "cat").depth - 1


def test_a_layer_that_runs_twice() -> None:
    scene = Scene.of(_deps("shared_convolution"))
    first, second = (block for block in scene.blocks if block.name == "conv")
    assert first.parameters[0] > 0
    assert second.parameters == (0, 0)
    assert first.outputs == second.outputs


def test_several_inputs_and_outputs() -> None:
    scene = Scene.of(_deps("several_inputs"))
    inputs = [block for block in scene.blocks if block.role == "input"]
    assert len(inputs) == 2
    assert all(block.depth == 0 for block in inputs)
    outputs = Scene.of(_deps("several_outputs"))
    assert _named(outputs, "output").detail.endswith("tensors")
    assert len(_read_by(outputs, "output")) > 1


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def choose(self, x: Tensor) -> Tensor:
        return x[x.sum(dim=(1, 2, 3)).argsort()] if bool(x.sum() > 0) else x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.choose(self.conv(x)))


def test_what_cannot_be_traced_is_opaque() -> None:
    scene = _of(_Untraceable(), 2, 3, 4, 4)
    (block,) = (block for block in scene.blocks if block.role == "opaque")
    assert block.kind == "choose"
    assert "could not be traced" in (block.frozen or "")
    assert _named(scene, "conv").frozen
    assert _read_by(scene, "last") == [block.name]


def test_names_are_data() -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Conv2d(3, 4, 1))
    model.add_module("b & 'c'", nn.Conv2d(4, 2, 1))
    scene = _of(model, 1, 3, 4, 4)
    assert _named(scene, "<script>alert(1)</script>").path == ("<script>alert(1)</script>",)
    assert json.loads(json.dumps(scene.as_dict()))["blocks"][1]["name"] == "<script>alert(1)</script>"


def test_nothing_but_an_operator_on_an_empty_tensor() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x[:, :0]], 1)

    scene = _of(Empty(), 1, 3, 2, 2)
    assert _named(scene, "cat").outputs == (3, 3)


def test_what_takes_only_its_type_from_the_data_is_a_constant() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x.new_ones(1, 3, 4, 4).ne(1), 0.5).flatten(1)

    scene = _of(Masked(), 1, 3, 4, 4)
    assert [block.kind for block in scene.blocks] == ["input", "masked_fill", "flatten", "output"]
    assert _read_by(scene, "masked_fill") == ["x"]


def test_what_is_written_in_place_is_read_behind() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            canvas = x.new_zeros(1, 3, 6, 6)
            canvas[:, :, :4, :4].copy_(x)
            y = self.conv(canvas)
            y[:, [0, 1]] = y[:, 2:4]
            return self.last(y)

    scene = _of(Padded(), 1, 3, 4, 4)
    kinds = [block.kind for block in scene.blocks]
    assert kinds == ["input", "copy", "Conv2d", "slice", "setitem", "Conv2d", "output"]
    ways = [(scene.blocks[a].name, scene.blocks[b].name) for a, b in scene.edges]
    assert ("copy_", "conv") in ways
    assert ("setitem", "last") in ways
    assert ("conv", "last") not in ways
    assert _named(scene, "setitem").outputs == (8, 8)


def test_as_dict_is_json() -> None:
    scene = Scene.of(plan_channels(_deps("residual"), 0.5))
    found = json.loads(json.dumps(scene.as_dict()))
    assert found["edges"] == [list(edge) for edge in scene.edges]
    assert found["blocks"][1]["outputs"] == list(scene.blocks[1].outputs)
    assert found["groups"][0]["producers"] == list(scene.groups[0].producers)


def test_folding_gives_stages() -> None:
    deps = _deps("channel_shuffle")
    scene = Scene.of(plan_channels(deps, 0.5))
    folded = scene.folded(1)
    assert [block.name for block in folded.blocks] == ["x", "stem", "block1", "block2", "last", "head", "output"]
    block = _named(folded, "block1")
    assert block.role == "module"
    assert "block1.branch.0.0" in block.members
    assert block.parameters == tuple(
        sum(b.parameters[i] for b in scene.blocks if b.path[0] == "block1") for i in range(2)
    )
    assert (block.inputs, block.outputs) == ((48, 24), (48, 24))
    assert block.frozen is None


def test_a_module_that_is_left_and_entered_again_is_two_blocks() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
            self.between = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[2](self.between(self.parts[1](self.parts[0](x))))

    folded = _of(Twice(), 1, 3, 4, 4).folded(1)
    assert [block.name for block in folded.blocks] == ["x", "parts", "between", "parts.2", "output"]


@pytest.mark.parametrize("depth", [0, -1, True, 1.5, "1"])
def test_a_depth_that_is_none(depth: object) -> None:
    with pytest.raises(ArgumentError, match="depth must be an integer of at least 1"):
        Scene.of(_deps("residual")).folded(depth)  # type: ignore[arg-type]


def test_a_model_is_no_subject() -> None:
    with pytest.raises(ArgumentTypeError, match="not a Conv2d; a model is drawn by way of"):
        Scene.of(nn.Conv2d(3, 4, 1))  # type: ignore[arg-type]
    assert fxprune.DependencyGraph is DependencyGraph
