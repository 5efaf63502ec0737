"""The rewrite: the graph before and after, attributes that tell the truth, and everything that must be kept."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxprune.capture import trace
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, InternalError
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.passes import ChannelPruning, ChannelSorting
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.verification import verify

NAMES = sorted(ZOO)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@cache
def pruned(name: str) -> tuple[nn.Module, ChannelPlan, fx.GraphModule]:
    model = randomize(ZOO[name]()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, example_inputs(name)), 0.4)
    return model, plan, plan.apply(model)


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [v for v in tree_leaves(model(*inputs)) if isinstance(v, Tensor)]


def storages(model: nn.Module) -> dict[int, str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {t.untyped_storage().data_ptr(): name for name, t in tensors if t.numel()}


class Shuffle(nn.Module):
    """Sizes that the author wrote down: a view, a split, a slice, a group of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.left = nn.Conv2d(2, 4, 1)
        self.right = nn.Conv2d(6, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
        a, b = x.split([2, 6], 1)
        return self.head(self.depthwise(self.left(a) + self.right(x[:, 2:])) + self.right(b))


# The graph ------------------------------------------------------------------------------------------------------------


def calls(gm: fx.GraphModule) -> list[str]:
    """The graph as text, one line for each node but the inputs and the output."""
    lines = []
    for node in gm.graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            target = node.target if isinstance(node.target, str) else node.target.__name__
            lines.append(f"{node.name} = {target}{node.args}{node.kwargs or ''}")
    return lines


def test_a_plain_chain_keeps_its_graph() -> None:
    model = randomize(VGG(0.1)).eval()
    plan = plan_channels(DependencyGraph.from_model(model, torch.zeros(1, 3, 32, 32)), 0.5)
    assert calls(plan.apply(model)) == calls(plan.gm)


def test_sizes_in_the_graph_become_those_that_are_left() -> None:
    model = randomize(Shuffle()).eval()
    # The view puts channels 0 and 4 first; three of the eight go, and one of each row of the view with them.
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), {"stem": 0.5}, "first")
    before, after = calls(plan.gm), calls(plan.apply(model))
    assert before == [
        "stem = stem(x,)",
        "view = view(stem, -1, 2, 4, 8, 8)",
        "transpose = transpose(view, 1, 2)",
        "reshape = reshape(transpose, -1, 8, 8, 8)",
        "split = split(reshape, [2, 6], 1)",
        "getitem = getitem(split, 0)",
        "getitem_1 = getitem(split, 1)",
        "left = left(getitem,)",
        "getitem_2 = getitem(reshape, (slice(None, None, None), slice(2, None, None)))",
        "right = right(getitem_2,)",
        "add = add(left, right)",
        "depthwise = depthwise(add,)",
        "right_1 = right(getitem_1,)",
        "add_1 = add(depthwise, right_1)",
        "head = head(add_1,)",
    ]
    assert [line for line in after if line not in before] == [
        "view = view(stem, -1, 2, 2, 8, 8)",
        "reshape = reshape(transpose, -1, 4, 8, 8)",
        "split = split(reshape, [2, 2], 1)",
    ]


def test_a_slice_gets_the_bounds_that_its_channels_have_now() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 1)
            self.head = nn.Conv2d(4, 2, 1)
            self.rest = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x[:, 5:9]) + self.rest(x)

    model = randomize(Slices()).eval()
    deps = DependencyGraph.from_model(model, IMAGE)
    scores = [9, 0, 8, 0, 7, 6, 0, 5, 4, 3, 0, 0]  # 0, 2, 4 stay before the slice, 5, 7, 8 in it, 9 after it
    plan = plan_channels(deps, 5 / 12, lambda group: scores)
    assert "getitem = getitem(stem, (slice(None, None, None), slice(3, 6, None)))" in calls(plan.apply(model))
    assert plan.layers["head"].inputs == (0, 2, 3)
    assert verify(model, plan, IMAGE).max_relative_error < 1e-12


def test_a_repeated_size_argument_stays_a_number_where_it_is_computed_with() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x / x.shape[1])

    model = randomize(Scaled()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5)
    result = calls(plan.apply(model))
    assert result[2:5] == ["getitem = getitem(getattr_1, 1)", "mul = mul(getitem, 2)", "truediv = truediv(stem, mul)"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_on_the_nodes_of_the_result_are_those_that_it_computes(name: str) -> None:
    _, _, small = pruned(name)

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "output":
                assert tuple(value.shape) == tuple(n.meta["val"].shape), n.name
                assert value.dtype == n.meta["val"].dtype, n.name
            return value

    with torch.no_grad():
        Shapes(small).run(*example_inputs(name))
    small.graph.lint()


def test_the_traced_graph_is_not_rewritten() -> None:
    model = randomize(ZOO["fixed_view"]()).eval()
    gm = trace(model, example_inputs("fixed_view"))
    code, shapes = gm.code, [str(n.meta["val"]) for n in gm.graph.nodes]
    expected = outputs(gm, example_inputs("fixed_view"))
    result = ChannelPruning(plan_channels(DependencyGraph(gm), 0.5))(gm)
    assert gm.code == code
    assert [str(n.meta["val"]) for n in gm.graph.nodes] == shapes
    assert result.graph_module.code != code
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(gm, example_inputs("fixed_view")), strict=True))


# Attributes and names -------------------------------------------------------------------------------------------------


def _true(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    shape = tuple(weight.shape)
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return shape[:2] == (layer.in_channels, layer.out_channels // layer.groups)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
    if isinstance(layer, nn.Linear):
        return shape == (layer.out_features, layer.in_features)
    if isinstance(layer, nn.LayerNorm):
        return shape == tuple(layer.normalized_shape)
    if isinstance(layer, nn.GroupNorm):
        return shape == (layer.num_channels,) and layer.num_channels % layer.num_groups == 0
    if isinstance(layer, nn.PReLU):
        return shape == (layer.num_parameters,)
    return shape == (layer.num_features,) if hasattr(layer, "num_features") else True


@pytest.mark.parametrize("name", NAMES)
def test_attributes_tell_the_truth(name: str) -> None:
    _, _, small = pruned(name)
    assert [key for key, layer in small.named_modules() if not _true(layer)] == []


def test_attributes_of_every_kind_of_layer() -> None:
    _, _, small = pruned("depthwise_separable")
    depthwise = small.get_submodule("layers.1.0")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (10, 10, 10)
    assert pruned("convnext")[2].get_submodule("norm").normalized_shape == (14,)
    assert pruned("group_norm")[2].get_submodule("norm1").num_groups == 4
    resnext = pruned("resnext")[2].get_submodule("grouped.0")
    assert (resnext.groups, resnext.in_channels, resnext.out_channels) == (4, 20, 20)
    assert "Conv2d(10, 10, kernel_size=(3, 3)" in repr(depthwise)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_original(name: str) -> None:
    model, _, small = pruned(name)
    assert set(small.state_dict()) == set(model.state_dict())
    assert {n for n, _ in small.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert {n for n, _ in small.named_buffers()} == {n for n, _ in model.named_buffers()}
    modules = dict(model.named_modules())
    for key, layer in small.named_modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            assert type(modules[key]) is type(layer), key


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_parts_of_the_originals_and_share_no_storage(name: str) -> None:
    model, plan, small = pruned(name)
    original = model.state_dict()
    assert not set(storages(model)) & set(storages(small))
    for key, value in small.state_dict().items():
        if key in plan.tensors:
            assert value.shape != original[key].shape or not torch.equal(value, original[key]), key
        elif all(original[key] is not original[other] for other in plan.tensors):
            assert torch.equal(value, original[key]), key
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_original_is_unchanged(name: str) -> None:
    fresh, (model, _, _) = randomize(ZOO[name]()).eval(), pruned(name)
    assert repr(model) == repr(fresh)
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_shared_weights_stay_shared() -> None:
    for name in ("tied_autoencoder", "shared_block"):
        model, _, small = pruned(name)
        assert len(list(small.parameters())) == len(list(model.parameters()))
    layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)]
    layers[4].weight = layers[2].weight
    small = halved(nn.Sequential(*layers))
    assert small.get_parameter("4.weight") is small.get_parameter("2.weight")
    assert small.get_parameter("4.weight").shape == (3, 3, 1, 1)


# What is kept ---------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A chain with a norm, a dropout that asks for the mode, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 6, 3, padding=1)
        self.register_buffer("scale", torch.rand(6, 1, 1) + 0.5)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.norm(self.stem(x))))) * self.scale
        return self.fc(F.dropout(x.mean((2, 3)), 0.5, self.training))


def halved(model: nn.Module, example: Any = IMAGE) -> fx.GraphModule:
    return plan_channels(DependencyGraph.from_model(model, example), 0.5).apply(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    model = randomize(Plain()).to(dtype).eval()
    small = halved(model, IMAGE.to(dtype))
    assert {t.dtype for t in small.state_dict().values()} == {dtype, torch.int64}
    assert small(IMAGE.to(dtype)).dtype == dtype


def test_a_plan_in_one_dtype_applies_to_another() -> None:
    model = randomize(Plain()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5)
    small = plan.apply(copy.deepcopy(model).bfloat16())
    assert small(IMAGE.bfloat16()).dtype == torch.bfloat16


def test_requires_grad_is_kept() -> None:
    model = randomize(Plain())
    for name in ("stem.weight", "norm.bias", "fc.weight"):
        model.get_parameter(name).requires_grad_(False)
    small = halved(model)
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.grad is None for p in small.parameters())


def test_gradients_of_the_original_stay_with_the_original() -> None:
    model = randomize(Plain())
    model(IMAGE).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    small = halved(model)
    small(IMAGE).sum().backward()
    assert all(torch.equal(gradients[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)


def test_the_memory_format_is_kept() -> None:
    model = randomize(Plain()).eval()
    contiguous = halved(model)
    small = halved(copy.deepcopy(model).to(memory_format=torch.channels_last))
    for name in ("stem.weight", "conv.weight"):
        weight = small.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last), name
        assert not weight.is_contiguous(), name
    assert all(p.is_contiguous() for p in contiguous.parameters())
    assert torch.allclose(small(IMAGE), contiguous(IMAGE), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_kept_and_followed(training: bool) -> None:
    model = randomize(Plain()).train(training)
    model.norm.eval()
    small = halved(model)
    assert small.training is training
    assert small.get_submodule("norm").training is False
    assert small.get_submodule("conv").training is training
    small.eval()
    assert torch.equal(small(IMAGE), small(IMAGE))
    small.train()
    assert not torch.equal(small(IMAGE), small(IMAGE))


@pytest.mark.parametrize("name", NAMES)
def test_every_part_keeps_its_mode(name: str) -> None:
    _, _, small = pruned(name)
    assert [key for key, module in small.named_modules() if module.training] == []


def test_hooks_on_layers_are_kept_and_buffers_cut() -> None:
    model = randomize(Plain()).eval()
    calls_: list[tuple[int, ...]] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls_.append(tuple(output.shape))

    small = halved(model)
    model.fc.register_forward_hook(hook)
    hooked = plan_channels(DependencyGraph.from_model(model, IMAGE), {"stem": 0.5}).apply(model)
    calls_.clear()  # what a layer with a hook gives was found by running both
    hooked(IMAGE)
    assert calls_ == [(2, 4)]
    assert small.get_buffer("scale").shape == (3, 1, 1)
    assert hooked.get_buffer("scale").shape == (6, 1, 1)
    calls_.clear()
    small(IMAGE)
    assert calls_ == []


def test_statistics_of_batch_norms_are_cut_and_counted_on() -> None:
    model = randomize(Plain()).train()
    model(IMAGE)
    small = halved(model)
    norm = small.get_submodule("norm")
    assert norm.running_mean.shape == norm.running_var.shape == (4,)
    assert int(norm.num_batches_tracked) == 1
    small(IMAGE)
    assert int(norm.num_batches_tracked) == 2
    assert int(model.norm.num_batches_tracked) == 1


# What can be done with the result -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_state_dicts_round_trip(name: str) -> None:
    _, plan, small = pruned(name)
    inputs = example_inputs(name)
    expected = outputs(small, inputs)
    copied = copy.deepcopy(small)
    assert not set(storages(copied)) & set(storages(small))
    other = plan.apply(ZOO[name]().eval())
    assert other.load_state_dict(small.state_dict(), strict=True)
    for result in (copied, other):
        assert all(torch.equal(a, b) for a, b in zip(expected, outputs(result, inputs), strict=True))


@pytest.mark.parametrize("name", ["residual", "dropout", "fixed_view", "constants", "multihead_attention"])
def test_the_result_can_be_saved_whole(name: str) -> None:
    _, _, small = pruned(name)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    inputs = example_inputs(name)
    assert all(torch.equal(a, b) for a, b in zip(outputs(small, inputs), outputs(loaded, inputs), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_other_batch_sizes_are_taken(name: str) -> None:
    model, plan, small = pruned(name)
    inputs = example_inputs(name, batch=5)
    for a, b in zip(outputs(model, inputs), outputs(small, inputs), strict=True):
        assert a.shape == b.shape
    if not plan.inexact:
        assert verify(model, plan, inputs).max_relative_error < 1e-10


@pytest.mark.parametrize("name", ["residual", "depthwise_separable", "channel_shuffle", "unet"])
def test_other_image_sizes_are_taken_where_the_model_takes_them(name: str) -> None:
    model, plan, small = pruned(name)
    x = torch.randn(3, 3, 32, 24)
    assert [a.shape for a in outputs(model, (x,))] == [b.shape for b in outputs(small, (x,))]
    assert verify(model, plan, x).max_relative_error < 1e-10


@pytest.mark.parametrize("name", ["vgg", "residual", "channel_shuffle", "self_attention", "functional_layers"])
def test_the_result_trains(name: str) -> None:
    model, plan, _ = pruned(name)
    small = plan.apply(model).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01, momentum=0.9)
    inputs = example_inputs(name, batch=8)
    target = torch.arange(8) % 10
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(*inputs), target)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# As a pass ------------------------------------------------------------------------------------------------------------


def test_the_pass_says_whether_it_changed_anything() -> None:
    gm = trace(randomize(Plain()).eval(), IMAGE)
    deps = DependencyGraph(gm)
    result = ChannelPruning(plan_channels(deps, 0.5))(gm)
    assert isinstance(result, PassResult)
    assert result.modified is True
    same = ChannelPruning(plan_channels(deps, 0.0))(gm)
    assert same.modified is False
    assert same.graph_module is not gm
    assert torch.equal(same.graph_module(IMAGE), gm(IMAGE))


def test_the_pass_and_apply_give_the_same() -> None:
    model = randomize(Shuffle()).eval()
    gm = trace(model, IMAGE)
    plan = plan_channels(DependencyGraph(gm), 0.5)
    by_pass, by_plan = ChannelPruning(plan)(gm).graph_module, plan.apply(model)
    assert by_pass.code == by_plan.code
    assert torch.equal(by_pass(IMAGE), by_plan(IMAGE))
    assert not set(storages(by_pass)) & set(storages(model))
    assert torch.equal(plan.apply(gm)(IMAGE), by_plan(IMAGE))


def test_the_pass_composes_in_the_pass_manager() -> None:
    model = randomize(VGG(0.1)).eval()
    x = torch.randn(2, 3, 32, 32)
    gm = trace(model, x)
    plan = plan_channels(DependencyGraph(gm), 0.3, "first", exclude=("backbone.conv7",))
    result = PassManager([ChannelSorting(), ChannelPruning(plan)])(gm)
    assert result.modified
    expected = plan_channels(DependencyGraph(gm), 0.3, "input-l2", exclude=("backbone.conv7",)).apply(model)
    torch.testing.assert_close(result.graph_module(x), expected(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), lambda: ZOO["residual"]()])
def test_a_graph_that_the_plan_is_not_for_is_refused(other: Callable[[], nn.Module]) -> None:
    plan = plan_channels(DependencyGraph.from_model(Plain(), IMAGE), 0.5)
    with pytest.raises(ArgumentError, match=r"not the one that the plan was made for.*plan_channels"):
        ChannelPruning(plan)(trace(other(), IMAGE))


def test_a_plan_is_not_applied_twice() -> None:
    gm = trace(randomize(Plain()).eval(), IMAGE)
    passed = ChannelPruning(plan_channels(DependencyGraph(gm), 0.5))
    once = passed(gm).graph_module
    with pytest.raises((ArgumentError, InternalError)):
        passed(once)


def test_tensors_that_are_not_saved_stay_so() -> None:
    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.register_buffer("scale", torch.rand(6, 1, 1), persistent=False)
            self.plain = torch.rand(6, 1, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x) * self.scale + self.plain)

    model = Buffers()
    assert set(halved(model).state_dict()) == set(model.state_dict())


def test_a_part_in_evaluation_mode_drops_nothing() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), 0.9, self.training)

    model = nn.Sequential(Part(), nn.Conv2d(6, 2, 1)).train()
    model[0].eval()
    small = halved(model)
    assert torch.equal(small(IMAGE), small(IMAGE))


def test_a_plan_holds_for_a_model_that_was_cast_since() -> None:
    """Casting replaces buffers, moving can replace parameters: a plan goes by names."""
    model = randomize(ZOO["shared_convolution"]()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, example_inputs("shared_convolution")), 0.5)
    small = plan.apply(model.double())
    assert {t.dtype for t in small.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert (
        verify(model, plan, tuple(x.double() for x in example_inputs("shared_convolution"))).max_relative_error < 1e-12
    )
