"""The proof: it holds for every network, and it fails for every mistake that is made on purpose."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune.rewriting as rewriting
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, InternalError, TraceError
from fxprune.labels import Labels
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.plan import ChannelPlan, TensorCut
from fxprune.planning import plan_channels
from fxprune.rules.algebra import sum_over
from fxprune.rules.table import RULES, Rule
from fxprune.verification import Proof, verify

NAMES = sorted(ZOO)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LIMIT = 1e-10
INEXACT = {"channel_norm", "convnext", "global_response", "group_norm", "mlp_mixer", "multihead_attention"}
INEXACT |= {"efficient_channel_attention"}
INEXACT |= {"spatial_attention", "standardized_layer", "vision_transformer", "weight_standardized"}
"""Networks with a norm, a softmax or a statistic over channels that can be removed."""


@cache
def analysed(name: str) -> tuple[nn.Module, DependencyGraph]:
    model = randomize(ZOO[name]()).eval()
    return model, DependencyGraph.from_model(model, example_inputs(name))


def prove(name: str, ratio: Any, **options: Any) -> Proof:
    model, deps = analysed(name)
    return verify(model, plan_channels(deps, ratio, **options), example_inputs(name))


# It holds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_proven(name: str) -> None:
    for ratio in (0.3, 0.8):
        proof = prove(name, ratio)
        assert proof.exact is (not proof.inexact)
        assert proof.exact is (name not in INEXACT)
        if proof.exact:
            assert proof.max_relative_error <= LIMIT
        else:
            assert 1e-6 < proof.max_relative_error < 10


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [i / 10 for i in range(1, 10)])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_proven_at_every_ratio(name: str, ratio: float) -> None:
    for options in ({}, {"criterion": "first"}, {"criterion": "output-l2", "scope": "global"}, {"round_to": 4}):
        proof = prove(name, ratio, **options)
        assert proof.max_relative_error <= LIMIT or not proof.exact


@pytest.mark.parametrize("name", [n for n in NAMES if n not in INEXACT])
def test_any_choice_of_channels_is_proven(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    assert (
        prove(name, 0.5, criterion=lambda group: torch.rand(group.size, generator=generator)).max_relative_error
        <= LIMIT
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_group_at_a_time_is_proven(name: str) -> None:
    deps = analysed(name)[1]
    for number in range(len(deps.prunable)):
        ratios = [0.5 if i == number else 0.0 for i in range(len(deps.prunable))]
        proof = prove(name, ratios)
        assert proof.max_relative_error <= LIMIT or not proof.exact


@pytest.mark.parametrize("name", NAMES)
def test_removing_nothing_is_exact_everywhere(name: str) -> None:
    proof = prove(name, 0.0)
    assert proof.exact
    assert proof.max_relative_error == 0


@pytest.mark.parametrize("name", sorted(INEXACT))
def test_inexact_nodes_are_nodes_of_the_graph(name: str) -> None:
    inexact = prove(name, 0.5).inexact
    assert inexact
    assert set(inexact) <= {node.name for node in analysed(name)[1].gm.graph.nodes}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_dtype_are_proven_in_float64(dtype: torch.dtype) -> None:
    model = randomize(ZOO["residual"]()).to(dtype).eval()
    inputs = tuple(x.to(dtype) for x in example_inputs("residual"))
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    assert verify(model, plan, inputs).max_relative_error <= LIMIT


def test_a_model_that_names_a_dtype_is_proven() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x.float()).to(torch.float32))

    model = randomize(Cast()).eval()
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5)
    assert verify(model, plan, IMAGE).max_relative_error <= LIMIT


def test_the_full_vgg_is_proven() -> None:
    model = randomize(VGG()).eval()
    x = torch.randn(1, 3, 16, 16)
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.3)
    proof = verify(model, plan, x)
    assert proof == Proof(proof.max_relative_error, True, [])
    assert proof.max_relative_error <= LIMIT


def test_inputs_may_come_as_a_mapping_and_outputs_as_any_structure() -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, image: Tensor, weight: Tensor) -> dict[str, Any]:
            x = self.conv(image) * weight
            return {"map": self.head(x), "pair": (self.head(x.relu()), [image.shape[0], x.sum()])}

    model = randomize(Structured()).eval()
    inputs = {"weight": torch.rand(2, 1, 8, 8), "image": IMAGE}
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    assert verify(model, plan, inputs).max_relative_error <= LIMIT


def test_the_proof_is_for_the_weights_that_it_is_given() -> None:
    _, deps = analysed("residual")
    plan = plan_channels(deps, 0.5)
    assert verify(randomize(ZOO["residual"](), seed=5), plan, example_inputs("residual")).max_relative_error <= LIMIT


# It leaves everything alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "dropout", "convnext", "several_outputs"])
def test_model_and_statistics_stay_as_they_are(name: str, training: bool) -> None:
    model = randomize(ZOO[name]()).train(training)
    next(m for m in model.modules() if not list(m.children())).train(not training)
    before = copy.deepcopy(model)
    inputs = example_inputs(name)
    given = [x.clone() for x in inputs]
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    state = torch.get_rng_state()
    proof = verify(model, plan, inputs)
    assert proof.max_relative_error <= LIMIT or not proof.exact
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for (key, value), old in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), key
        assert value.dtype == old.dtype
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(inputs, given, strict=True))


def test_a_network_that_writes_into_its_input_gets_a_copy() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x.relu_()).relu_())

    model, x = randomize(InPlace()).eval(), IMAGE.clone()
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.5)
    assert verify(model, plan, x).max_relative_error <= LIMIT
    assert torch.equal(x, IMAGE)


# It can fail: rules broken on purpose ---------------------------------------------------------------------------------

Function = Callable[..., Any]
Breaking = Callable[[Function], Function]


@contextmanager
def _overridden(ctx: Any, name: str, method: Function) -> Iterator[None]:
    setattr(ctx, name, method)
    try:
        yield
    finally:
        delattr(ctx, name)


def without(name: str) -> Breaking:
    """The rule never calls that method of the reading."""

    def breaking(rule: Function) -> Function:
        def broken(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            with _overridden(ctx, name, lambda *a, **k: None):
                return rule(ctx, *args, **kwargs)

        return broken

    return breaking


def reversed_for(role: str) -> Breaking:
    """The rule takes a tensor's channels from the last to the first."""

    def breaking(rule: Function) -> Function:
        def broken(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            consume = ctx.consume

            def wrong(axis: Any, layer: str, labels: Tensor, use: str) -> None:
                consume(axis, layer, labels.flip(0) if use == role else labels, use)

            with _overridden(ctx, "consume", wrong):
                return rule(ctx, *args, **kwargs)

        return broken

    return breaking


def first_operand(rule: Function) -> Function:
    return lambda ctx, *args, **kwargs: next(a for a in args if isinstance(a, Labels))


def unmoved(rule: Function) -> Function:
    return lambda ctx, x, *args, **kwargs: x


def untouched(rule: Function) -> Function:
    return lambda ctx, module, x, *args, **kwargs: x


def moved(function: Callable[[Tensor], Tensor]) -> Breaking:
    """The layer is said to move elements so."""
    return lambda rule: lambda ctx, module, x, *args, **kwargs: ctx.move(function, x, (), {}, None)


def transposed(rule: Function) -> Function:
    return lambda ctx, x, *args: ctx.move(lambda t: t.transpose(1, -1).flatten(1), x, (), {}, None)


def parts_reversed(rule: Function) -> Function:
    return lambda ctx, *args, **kwargs: tuple(reversed(rule(ctx, *args, **kwargs)))


def joined_in_reverse(rule: Function) -> Function:
    return lambda ctx, tensors, *args, **kwargs: rule(ctx, list(tensors)[::-1], *args, **kwargs)


def exact_mean(rule: Function) -> Function:
    def broken(ctx: Any, input: Labels, *args: Any, **kwargs: Any) -> Labels:
        given = dict(zip(("dim", "keepdim"), args, strict=False)) | kwargs
        dims = given["dim"] if isinstance(given["dim"], tuple | list) else [given["dim"]]
        return sum_over(ctx, input, dims, bool(given.get("keepdim", False)))

    return broken


ADDITIONS = (operator.add, operator.iadd)
SPLITS = ("chunk", torch.chunk, "split", torch.split)
MATMULS = (operator.matmul, torch.matmul, "matmul")

BROKEN: dict[str, tuple[str, tuple[Any, ...], Breaking]] = {
    "an addition ties nothing": ("residual", ADDITIONS, first_operand),
    "a product ties nothing": ("squeeze_excitation_conv", (operator.mul,), first_operand),
    "a transposition moves nothing": ("channel_shuffle", ("transpose", "permute", torch.permute), unmoved),
    "a concatenation is joined in reverse": ("inception", (torch.cat,), joined_in_reverse),
    "the parts of a split are exchanged": ("cross_stage_partial", SPLITS, parts_reversed),
    "a batch norm has no channels": ("residual", (nn.BatchNorm2d,), untouched),
    "a batch norm is cut in reverse": ("vgg", (nn.BatchNorm2d,), reversed_for("follower")),
    "a slope is cut in reverse": ("prelu", (nn.PReLU,), reversed_for("follower")),
    "a depthwise kernel is cut in reverse": ("depthwise_separable", (nn.Conv2d,), reversed_for("follower")),
    "a convolution gathers in reverse": ("vgg", (nn.Conv2d,), reversed_for("consumer")),
    "a linear layer gathers in reverse": ("flatten", (nn.Linear,), reversed_for("consumer")),
    "a transposed convolution gathers in reverse": ("unet", (nn.ConvTranspose2d,), reversed_for("consumer")),
    "a one-dimensional convolution gathers in reverse": ("temporal", (nn.Conv1d,), reversed_for("consumer")),
    "an activation rolls the channels": ("vgg", (nn.ReLU,), moved(lambda t: t.roll(1, 1))),
    "a pixel shuffle flips the channels": (
        "pixel_shuffle",
        (nn.PixelShuffle,),
        moved(lambda t: F.pixel_shuffle(t.flip(1), 2)),
    ),
    "flattening goes the other way": ("flatten", ("flatten", torch.flatten), transposed),
    "a convolution sums over nothing": ("vgg", (nn.Conv2d,), without("reads")),
    "a linear layer sums over nothing": ("vgg", (nn.Linear,), without("reads")),
    "a matrix product sums over nothing": ("self_attention", MATMULS, without("reads")),
    "a layer norm is exact": ("convnext", (nn.LayerNorm,), without("inexact")),
    "a group norm is exact": ("group_norm", (nn.GroupNorm,), without("inexact")),
    "a mean over channels is exact": ("global_response", (torch.mean, "mean"), exact_mean),
    "groups of a convolution may differ in size": ("resnext", (nn.Conv2d,), without("blocks")),
    "attributes are forgotten": ("depthwise_separable", (nn.Conv2d,), without("attribute")),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_rule_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, keys, breaking = BROKEN[mistake]
    model = randomize(ZOO[name]()).eval()
    inputs = example_inputs(name)

    def proof() -> Proof:
        deps = DependencyGraph.from_model(model, inputs)
        return verify(model, plan_channels(deps, 0.5), inputs)

    sound = proof()
    assert sound.max_relative_error <= LIMIT or not sound.exact
    for key in keys:
        monkeypatch.setitem(RULES, key, Rule(breaking(RULES[key].function), RULES[key].sizes))
    try:
        result = proof()
    except (FxpruneError, RuntimeError):  # torch itself refuses shapes that do not fit
        return
    assert result.exact
    assert result.max_relative_error > 1e-6


# It can fail: plans and weights tampered with -------------------------------------------------------------------------


def _with_cut(plan: ChannelPlan, tensor: str, dim: int, change: Callable[[Any], Any]) -> ChannelPlan:
    axes = tuple((axis, change(i) if axis.dim == dim else i) for axis, i in plan.tensors[tensor].axes)
    return dataclasses.replace(plan, tensors={**plan.tensors, tensor: TensorCut(axes)})


def _swapped(index: Any) -> Any:
    return np.concatenate([index[1::-1], index[2:]])


def _shifted(index: Any) -> Any:
    return np.where(index + 1 <= index.max(), index + 1, 0)


@pytest.mark.parametrize("change", [_swapped, _shifted, lambda index: index[::-1].copy()])
@pytest.mark.parametrize(
    ("name", "tensor", "dim"),
    [
        ("vgg", "backbone.conv3.weight", 1),
        ("vgg", "backbone.conv3.weight", 0),
        ("vgg", "backbone.bn2.running_mean", 0),
        ("vgg", "backbone.bn2.running_var", 0),
        ("vgg", "backbone.bn2.bias", 0),
        ("vgg", "classifier.weight", 1),
        ("residual", "layer1.conv2.weight", 0),
        ("depthwise_separable", "layers.1.0.weight", 0),
        ("grouped_transposed", "grouped.weight", 0),
    ],
)
def test_indices_that_were_tampered_with_are_caught(
    name: str, tensor: str, dim: int, change: Callable[[Any], Any]
) -> None:
    model, deps = analysed(name)
    plan = plan_channels(deps, 0.5)
    assert (
        verify(model, _with_cut(plan, tensor, dim, lambda i: i.copy()), example_inputs(name)).max_relative_error
        <= LIMIT
    )
    wrong = _with_cut(plan, tensor, dim, change)
    try:
        proof = verify(model, wrong, example_inputs(name))
    except FxpruneError:
        return
    assert proof.max_relative_error > 1e-6


@pytest.mark.parametrize("tensor", ["backbone.conv3.weight", "backbone.bn2.weight", "classifier.weight"])
def test_a_tensor_that_is_left_whole_or_cut_too_short_is_found_by_the_second_reading(tensor: str) -> None:
    model, deps = analysed("vgg")
    plan = plan_channels(deps, 0.5)
    whole = dataclasses.replace(plan, tensors={n: c for n, c in plan.tensors.items() if n != tensor})
    with pytest.raises(InternalError, match=f"'{tensor}' has shape .* after the rewrite"):
        whole.apply(model)
    short = _with_cut(plan, tensor, plan.tensors[tensor].axes[0][0].dim, lambda index: index[1:])
    with pytest.raises(InternalError, match=f"'{tensor}' has shape"):
        short.apply(model)


@pytest.mark.parametrize("name", ["fixed_view", "slices"])
def test_a_size_that_is_left_in_the_graph_is_found_by_the_second_reading(name: str) -> None:
    model, deps = analysed(name)
    plan = plan_channels(deps, 0.5)
    assert plan.changes
    for node in plan.changes:
        left = dataclasses.replace(plan, changes={n: c for n, c in plan.changes.items() if n != node})
        with pytest.raises(InternalError, match=f"node '{node}"):
            left.apply(model)


def test_errors_of_the_second_reading_name_the_node_and_its_source() -> None:
    model, deps = analysed("vgg")
    plan = plan_channels(deps, 0.5)
    broken = dataclasses.replace(plan, tensors={n: c for n, c in plan.tensors.items() if n != "backbone.bn2.bias"})
    with pytest.raises(
        InternalError, match=r"must index 13 channels, at node 'backbone_bn2' in module 'backbone\.bn2'"
    ):
        broken.apply(model)


def test_one_wrong_weight_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, deps = analysed("residual")
    plan = plan_channels(deps, 0.5)
    cut = rewriting.cut

    def wrong(tensor: Tensor, how: TensorCut, *known: Any) -> Tensor:
        result = cut(tensor, how, *known)
        if how is plan.tensors["layer2.conv1.weight"]:
            result[0, 0, 0, 0] += 1e-3
        return result

    assert verify(model, plan, example_inputs("residual")).max_relative_error <= LIMIT
    monkeypatch.setattr(rewriting, "cut", wrong)
    assert verify(model, plan, example_inputs("residual")).max_relative_error > 1e-7


def test_keeping_others_than_the_plan_says_is_caught() -> None:
    model, deps = analysed("vgg")
    plan = plan_channels(deps, 0.5)
    members = plan.structure.members[2]
    kept = plan.kept.copy()
    kept[members] = ~kept[members]
    assert kept[members].sum() == plan.kept[members].sum()
    assert verify(model, dataclasses.replace(plan, kept=kept), example_inputs("vgg")).max_relative_error > 1e-6


# Wrong arguments ------------------------------------------------------------------------------------------------------


def test_another_model_is_refused() -> None:
    _, deps = analysed("vgg")
    plan = plan_channels(deps, 0.5)
    with pytest.raises(ArgumentError, match=r"'backbone\.conv0\.weight'.*make a new plan"):
        verify(VGG(0.2), plan, example_inputs("vgg"))
    with pytest.raises(ArgumentError, match=r"no 'backbone\.conv0'"):
        verify(ZOO["residual"](), plan, example_inputs("residual"))


def test_inputs_that_do_not_fit_the_signature_are_refused() -> None:
    model, deps = analysed("vgg")
    plan = plan_channels(deps, 0.5)
    with pytest.raises(ArgumentTypeError, match="not NoneType"):
        verify(model, plan, None)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="too many positional arguments"):
        verify(model, plan, (IMAGE, IMAGE))


def test_inputs_of_another_size_are_proven() -> None:
    model, deps = analysed("pixel_shuffle")
    plan = plan_channels(deps, 0.5)
    assert verify(model, plan, torch.randn(2, 3, 32, 24)).max_relative_error <= LIMIT


def test_the_traced_module_stays_in_its_mode() -> None:
    model = randomize(ZOO["dropout"]()).train()
    deps = DependencyGraph.from_model(model, example_inputs("dropout"))
    verify(model, plan_channels(deps, 0.5), example_inputs("dropout"))
    assert all(module.training for module in deps.gm.modules())


def test_inputs_that_the_model_refuses_are_refused() -> None:
    model, deps = analysed("vgg")
    with pytest.raises(FxpruneError):
        verify(model, plan_channels(deps, 0.5), torch.randn(2, 4, 32, 32))


def _between(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, ChannelPlan, Tensor]:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(function(self.a(x)))
            return out

    model, image = randomize(Between()).eval(), torch.randn(2, 3, 5, 5)
    return model, plan_channels(DependencyGraph.from_model(model, image), 0.5), image


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y + torch.rand(1, 1, *y.shape[2:]),
        lambda y: y[:, :, torch.randperm(5)],
        lambda y: F.dropout(y, 0.5, training=False),
        lambda y: F.dropout(y, 0.0),
    ],
)
def test_numbers_drawn_at_random_are_the_same_for_both(function: Callable[[Tensor], Tensor]) -> None:
    model, plan, image = _between(function)
    state = torch.get_rng_state()
    proof = verify(model, plan, image)
    assert torch.equal(torch.get_rng_state(), state)
    assert proof.exact
    assert proof.max_relative_error < 1e-12


@pytest.mark.parametrize(
    ("function", "node"),
    [
        (lambda y: y + torch.randn_like(y), "randn_like"),
        (lambda y: torch.bernoulli(y.sigmoid()), "bernoulli"),
        (lambda y: y * torch.empty_like(y).uniform_(), "uniform_"),
        (F.dropout, "dropout"),
        (lambda y: torch.empty_like(y).bernoulli_(y.sigmoid()) + y, "bernoulli_"),
        (lambda y: F.dropout2d(y, 0.3, training=True), "dropout2d"),
        (lambda y: torch.dropout(y, 0.3, True), "dropout"),
    ],
)
def test_a_random_number_for_each_channel_is_another_one_with_fewer(
    function: Callable[[Tensor], Tensor], node: str
) -> None:
    model, plan, image = _between(function)
    proof = verify(model, plan, image)
    assert not proof.exact
    assert proof.inexact == [node]


def test_tensors_that_the_network_makes_are_of_float64_as_well() -> None:
    """A convolution does not take two types, nor does a recurrent layer."""
    model, plan, image = _between(lambda y: F.conv2d(y, torch.ones(y.shape[1], 1, 1, 1), groups=y.shape[1]))
    assert verify(model, plan, image).max_relative_error < 1e-12
    assert torch.get_default_dtype() is torch.float32
