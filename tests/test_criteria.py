"""Scores, each against a loop over the weights that a person can check."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.criteria import CRITERIA, Criterion, check_finite, unit_scores
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, WeightError
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.planning import plan_channels

IMAGE = torch.zeros(2, 3, 8, 8)
CIFAR = torch.zeros(1, 3, 32, 32)


def scores_of(deps: DependencyGraph, criterion: Criterion, group: str) -> list[float]:
    """The scores of a group's units in the order of the channels of its first producer."""
    scores = unit_scores(deps.structure, deps.groups, criterion)
    number = [g.name for g in deps.groups].index(group)
    return [float(s) for s in scores[deps.structure.members[number]]]


def norm(*slices: Tensor) -> float:
    return math.sqrt(sum(float((s.detach().double() ** 2).sum()) for s in slices))


class Several(nn.Module):
    """Channels with two readers and two makers, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(3, 4, 1)
        self.read1 = nn.Conv2d(6, 5, 3)
        self.read2 = nn.ConvTranspose2d(10, 2, 3)
        self.fc = nn.Linear(5 * 36, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x) + self.b(x)
        z = F.relu(self.fc(F.relu(self.read1(y)).flatten(1)))
        return self.out(z), self.read2(torch.cat([self.c(x), y], 1))


class Grouped(nn.Module):
    """A grouped convolution between a convolution and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g = nn.Conv2d(8, 6, 1, groups=2)
        self.d = nn.Conv2d(6, 6, 3, groups=6)
        self.h = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.d(self.g(self.a(x))))


def test_input_l2_on_the_vgg_is_the_norm_of_the_next_layers_slice() -> None:
    model = randomize(VGG(0.1))
    deps = DependencyGraph.from_model(model, CIFAR)
    for i in range(7):
        following = model.get_parameter(f"backbone.conv{i + 1}.weight")
        expected = [norm(following[:, c]) for c in range(following.shape[1])]
        assert scores_of(deps, "input-l2", f"backbone.conv{i}") == pytest.approx(expected, rel=1e-5)
    expected = [norm(model.classifier.weight[:, c]) for c in range(51)]
    assert scores_of(deps, "input-l2", "backbone.conv7") == pytest.approx(expected, rel=1e-5)


def test_output_l2_on_the_vgg_is_the_norm_of_the_filter() -> None:
    model = randomize(VGG(0.1))
    deps = DependencyGraph.from_model(model, CIFAR)
    for i in range(8):
        weight = model.get_parameter(f"backbone.conv{i}.weight")
        expected = [norm(filter_) for filter_ in weight]
        assert scores_of(deps, "output-l2", f"backbone.conv{i}") == pytest.approx(expected, rel=1e-5)


def test_several_readers_count_together() -> None:
    model = randomize(Several()).double()
    deps = DependencyGraph.from_model(model, IMAGE.double())
    expected = [norm(model.read1.weight[:, c], model.read2.weight[4 + c]) for c in range(6)]
    assert scores_of(deps, "input-l2", "a") == pytest.approx(expected, rel=1e-12)
    expected = [norm(model.read2.weight[c]) for c in range(4)]
    assert scores_of(deps, "input-l2", "c") == pytest.approx(expected, rel=1e-12)


def test_several_makers_count_together() -> None:
    model = randomize(Several()).double()
    deps = DependencyGraph.from_model(model, IMAGE.double())
    expected = [norm(model.a.weight[c], model.b.weight[c]) for c in range(6)]
    assert scores_of(deps, "output-l2", "a") == pytest.approx(expected, rel=1e-12)


def test_a_flattened_channel_counts_with_all_its_positions() -> None:
    model = randomize(Several()).double()
    deps = DependencyGraph.from_model(model, IMAGE.double())
    expected = [norm(model.fc.weight[:, 36 * c : 36 * c + 36]) for c in range(5)]
    assert scores_of(deps, "input-l2", "read1") == pytest.approx(expected, rel=1e-12)


def test_a_grouped_convolution_reads_with_the_rows_of_its_own_block() -> None:
    model = randomize(Grouped()).double()
    deps = DependencyGraph.from_model(model, IMAGE.double())
    expected = [norm(model.g.weight[3 * (c // 4) : 3 * (c // 4) + 3, c % 4]) for c in range(8)]
    assert scores_of(deps, "input-l2", "a") == pytest.approx(expected, rel=1e-12)
    # The depthwise convolution follows: neither it nor its bias reads or makes.
    assert scores_of(deps, "input-l2", "g") == pytest.approx([norm(model.h.weight[:, c]) for c in range(6)], rel=1e-12)
    assert scores_of(deps, "output-l2", "g") == pytest.approx([norm(model.g.weight[c]) for c in range(6)], rel=1e-12)


def test_a_layer_that_is_called_twice_counts_once() -> None:
    model = randomize(ZOO["shared_convolution"]()).double()
    deps = DependencyGraph.from_model(model, tuple(x.double() for x in example_inputs("shared_convolution")))
    last = model.get_parameter("last.0.weight")
    conv = model.get_parameter("conv.weight")
    expected = [norm(conv[:, c], last[:, c]) for c in range(24)]
    assert scores_of(deps, "input-l2", "stem.0") == pytest.approx(expected, rel=1e-12)


def test_where_nothing_reads_the_makers_count() -> None:
    model = randomize(ZOO["fused_attention"]()).double()
    deps = DependencyGraph.from_model(model, tuple(x.double() for x in example_inputs("fused_attention")))
    query, key = model.get_parameter("attention.query.weight"), model.get_parameter("attention.key.weight")
    expected = [norm(query[c], key[c]) for c in range(24)]
    assert scores_of(deps, "input-l2", "attention.query") == pytest.approx(expected, rel=1e-12)


def test_first_falls_with_the_position() -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    for group in deps.prunable:
        scores = scores_of(deps, "first", group.name)
        assert all(a > b for a, b in itertools.pairwise(scores))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_unit_of_every_network_has_a_finite_score(name: str) -> None:
    model = randomize(ZOO[name]())
    deps = DependencyGraph.from_model(model, example_inputs(name))
    normed = any(isinstance(module, _BatchNorm) for module in model.modules())
    for criterion, group in itertools.product(CRITERIA.keys() - ({"bn-scale"} if not normed else ()), deps.prunable):
        scores = scores_of(deps, criterion, group.name)
        assert len(scores) == group.size
        assert np.isfinite(scores).all()
        if criterion not in ("first", "fpgm") or (criterion == "fpgm" and group.size > 1):
            assert min(scores) > 0


def test_scores_do_not_change_the_weights() -> None:
    model = randomize(Several())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deps = DependencyGraph.from_model(model, IMAGE)
    for criterion in CRITERIA.keys() - {"bn-scale"}:
        unit_scores(deps.structure, deps.groups, criterion)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "rel"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
def test_every_dtype_is_ranked(kind: torch.dtype, rel: float) -> None:
    model = randomize(Several()).to(kind)
    deps = DependencyGraph.from_model(model, IMAGE.to(kind))
    expected = [norm(model.read2.weight[c]) for c in range(4)]
    assert scores_of(deps, "input-l2", "c") == pytest.approx(expected, rel=rel)


def test_half_precision_weights_are_ranked_without_rounding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 64, 1)).bfloat16()
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].weight[:4, 1] = 1.0078125  # the next number after 1
    deps = DependencyGraph.from_model(model, IMAGE.bfloat16())
    assert plan_channels(deps, 0.5).layers["0"].outputs == (1,)


# Functions ------------------------------------------------------------------------------------------------------------


def test_a_function_gets_each_group_and_gives_a_score_for_each_unit() -> None:
    seen: list[ChannelGroup] = []

    def criterion(group: ChannelGroup) -> Tensor:
        seen.append(group)
        return torch.arange(group.size, dtype=torch.float32)

    deps = DependencyGraph.from_model(Several(), IMAGE)
    plan = plan_channels(deps, 0.5, criterion)
    assert list(dict.fromkeys(seen)) == list(deps.prunable)
    assert plan.layers["a"].outputs == (3, 4, 5)
    assert plan.layers["read1"].inputs == (3, 4, 5)
    assert plan.layers["c"].outputs == (2, 3)


@pytest.mark.parametrize(
    "convert",
    [list, tuple, np.asarray, torch.tensor, lambda v: torch.tensor(v, requires_grad=True), lambda v: np.float16(v)],
)
def test_a_function_may_give_any_kind_of_numbers(convert: Callable[[list[float]], Tensor]) -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    plan = plan_channels(deps, {"c": 0.5}, lambda group: convert([float(i % 3) for i in range(group.size)]))
    assert plan.layers["c"].outputs == (1, 2)


def test_equal_scores_keep_what_comes_first() -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    assert plan_channels(deps, 0.5, lambda group: [1.0] * group.size).layers["a"].outputs == (0, 1, 2)


def test_a_wrong_number_of_scores_names_the_group_and_both_numbers() -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    with pytest.raises(ArgumentError, match="5 scores for the group 'a' of 6 units"):
        plan_channels(deps, 0.5, lambda group: [0.0] * 5)


def test_nan_from_a_function_is_refused() -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    with pytest.raises(ArgumentError, match="NaN for the group 'a'"):
        plan_channels(deps, 0.5, lambda group: [math.nan] * group.size)


def test_an_error_in_a_function_comes_through() -> None:
    def fails(group: ChannelGroup) -> list[float]:
        raise ZeroDivisionError(group.name)

    with pytest.raises(ZeroDivisionError, match="a"):
        plan_channels(DependencyGraph.from_model(Several(), IMAGE), 0.5, fails)


def test_an_unknown_criterion_lists_those_that_exist() -> None:
    deps = DependencyGraph.from_model(Several(), IMAGE)
    with pytest.raises(UnknownNameError, match="no criterion 'input_l2'; nearest: 'input-l2', 'output-l2'"):
        plan_channels(deps, 0.5, "input_l2")
    with pytest.raises(UnknownNameError, match="no criterion 'zzz'; known: 'first', 'input-l2', 'output-l2'"):
        plan_channels(deps, 0.5, "zzz")
    with pytest.raises(ArgumentTypeError, match="a name or a callable, not float"):
        plan_channels(deps, 0.5, 0.5)  # type: ignore[arg-type]


# NaN and Inf ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("criterion", ["input-l2", "output-l2"])
def test_weights_that_cannot_be_ranked_name_the_tensor(value: float, criterion: str) -> None:
    model = randomize(Several())
    with torch.no_grad():
        model.read1.weight[1, 2, 0, 0] = value
        model.read1.weight[4, 2, 0, 0] = value
    deps = DependencyGraph.from_model(model, IMAGE)
    expected = r"'read1\.weight' of shape \(5, 6, 3, 3\) holds 2 values that are NaN or Inf"
    with pytest.raises(WeightError, match=expected) as caught:
        plan_channels(deps, 0.5, criterion)
    assert isinstance(caught.value, ValueError)


def test_the_first_channels_need_no_ranking() -> None:
    model = randomize(Several())
    with torch.no_grad():
        model.read1.weight.fill_(math.nan)
    assert plan_channels(DependencyGraph.from_model(model, IMAGE), 0.5, "first").layers["a"].outputs == (0, 1, 2)


def test_check_finite_lets_numbers_pass() -> None:
    check_finite("weight", torch.tensor([1.0, -3e38]))
    check_finite("weight", torch.zeros(0))


@pytest.mark.parametrize("arguments", [{"exclude": ("a", "read1")}, {"ratio": {"c": 0.5}}])
def test_weights_of_a_layer_that_stays_need_no_ranking(arguments: dict[str, object]) -> None:
    """The message says that excluding the layer helps."""
    model = randomize(Several())
    with torch.no_grad():
        model.read1.weight.fill_(math.nan)
    plan = plan_channels(DependencyGraph.from_model(model, IMAGE), **({"ratio": 0.5} | arguments))  # type: ignore[arg-type]
    assert plan.layers["read1"].outputs is None


@pytest.mark.parametrize("given", [None, "abc", {"a": 1.0}])
def test_no_numbers_from_a_function_are_refused(given: object) -> None:
    with pytest.raises(ArgumentTypeError, match="criterion"):
        plan_channels(DependencyGraph.from_model(Several(), IMAGE), 0.5, lambda group: given)  # type: ignore[arg-type, return-value]


def test_a_function_is_asked_only_about_groups_that_a_ratio_applies_to() -> None:
    seen: list[str] = []

    def criterion(group: ChannelGroup) -> list[float]:
        seen.append(group.name)
        return [1.0] * group.size

    plan_channels(DependencyGraph.from_model(Several(), IMAGE), {"c": 0.5}, criterion)
    assert seen == ["c"]


def test_nan_in_channels_of_another_group_does_not_count() -> None:
    """Only the weights that make or read what is ranked are looked at."""
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(math.nan)
    deps = DependencyGraph.from_model(model, IMAGE)
    plan_channels(deps, 0.5)
    with pytest.raises(WeightError, match=r"0\.weight"):
        plan_channels(deps, 0.5, "output-l2")
    plan_channels(deps, 0.5, "output-l2", exclude=["0"])
