"""Ratios and the other arguments of planning: what is taken, what is refused, and what is said."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import kept, unchanged, vgg, widths
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune import planning, settling
from fxprune.dependency import DependencyGraph
from fxprune.errors import (
    ArgumentError,
    ArgumentTypeError,
    FrozenLayerError,
    FxpruneError,
    NothingToPruneError,
    UnknownNameError,
)
from fxprune.models import randomize
from fxprune.planning import plan_channels
from fxprune.records import Conflict, Found, numbers
from fxprune.structure import Structure
from fxprune.vocabulary import Axis

IMAGE = torch.zeros(2, 3, 8, 8)


# Wrong arguments ------------------------------------------------------------------------------------------------------


def _wrong() -> Iterator[tuple[str, dict[str, Any], type[FxpruneError], str]]:
    allowed = r"must be in \[0, 1\)"
    yield "above", {"ratio": 1.5}, ArgumentError, rf"the ratio is 1\.5; it {allowed}"
    yield "one", {"ratio": 1}, ArgumentError, rf"the ratio is 1\.0; it {allowed}"
    yield "below", {"ratio": -0.1}, ArgumentError, rf"the ratio is -0\.1; it {allowed}"
    yield "nan", {"ratio": math.nan}, ArgumentError, rf"the ratio is nan; it {allowed}"
    yield "infinite", {"ratio": math.inf}, ArgumentError, rf"the ratio is inf; it {allowed}"
    yield "bool", {"ratio": True}, ArgumentTypeError, "number in .*not bool"
    yield "string", {"ratio": "0.3"}, ArgumentTypeError, "number in .*not str"
    yield "short", {"ratio": [0.3] * 3}, ArgumentError, r"3 ratios for 8 groups.*'backbone\.conv0'.*'backbone\.conv7'"
    yield "empty", {"ratio": []}, ArgumentError, "0 ratios for 8 groups"
    yield "item", {"ratio": [0.3] * 7 + [2]}, ArgumentError, rf"group 'backbone\.conv7' is 2\.0; it {allowed}"
    yield "item nan", {"ratio": [math.nan] + [0.3] * 7}, ArgumentError, r"group 'backbone\.conv0' is nan"
    yield "item type", {"ratio": ["a"] * 8}, ArgumentTypeError, r"group 'backbone\.conv0' must be a number.*not str"
    yield "frozen item", {"ratio": [0.3] * 9}, FrozenLayerError, "group 'classifier' cannot be pruned: .*output"
    yield "name", {"ratio": {"backbone.conv9": 0.3}}, UnknownNameError, r"'backbone\.conv9'.*nearest: 'backbone\.conv"
    yield "value", {"ratio": {"backbone.conv1": 1.2}}, ArgumentError, rf"layer 'backbone\.conv1' is 1\.2; it {allowed}"
    yield "value type", {"ratio": {"backbone.conv1": "a"}}, ArgumentTypeError, r"layer 'backbone\.conv1'.*not str"
    yield "frozen", {"ratio": {"classifier": 0.3}}, FrozenLayerError, r"'classifier' cannot be pruned.*(?s:.)*output of"
    yield "exclude", {"exclude": ["conv0"]}, UnknownNameError, r"no layer 'conv0'.*nearest: 'backbone\.conv0'"
    yield "exclude text", {"exclude": "backbone.conv0"}, ArgumentTypeError, r"collection .* string 'backbone\.conv0'"
    yield "scope", {"scope": "all"}, ArgumentError, "scope is 'all'; it must be 'group' or 'global'"
    yield "round 0", {"round_to": 0}, ArgumentError, "round_to is 0; .* at least 1"
    yield "round half", {"round_to": 2.5}, ArgumentError, r"round_to is 2\.5"
    yield "criterion", {"criterion": "l2"}, UnknownNameError, "no criterion 'l2'; nearest: 'input-l2'"
    yield "criterion type", {"criterion": 3}, ArgumentTypeError, "a name or a callable, not int"


WRONG = {name: case for name, *case in _wrong()}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_says_what_is_allowed_and_changes_nothing(case: str) -> None:
    arguments, error, message = WRONG[case]
    model, deps = vgg()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message) as caught:
        plan_channels(deps, **arguments)
    assert isinstance(caught.value, FxpruneError)
    assert unchanged(model, before)
    assert widths(plan_channels(deps, 0.5)) == [3, 6, 13, 13, 26, 26, 26, 26]


def test_errors_are_what_python_users_expect() -> None:
    deps = vgg()[1]
    for arguments, expected in [
        ({"ratio": 2}, ValueError),
        ({"ratio": "a"}, TypeError),
        ({"ratio": {"a": 0.3}}, KeyError),
        ({"ratio": {"classifier": 0.3}}, ValueError),
        ({"criterion": "a"}, KeyError),
    ]:
        with pytest.raises(expected):
            plan_channels(deps, **arguments)  # type: ignore[arg-type]


def test_a_ratio_for_a_frozen_layer_gives_the_reason_and_its_place() -> None:
    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 1)
            self.conv2 = nn.Conv2d(8, 4, 1)
            self.conv3 = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv3(self.conv2(torch.renorm(self.conv1(x), 2, 1, 1.0)))

    deps = DependencyGraph.from_model(Transformed(), IMAGE)
    with pytest.raises(
        FrozenLayerError, match=r"operator renorm has no rule \(node 'renorm' at .*test_ratios\.py:\d+\)"
    ):
        plan_channels(deps, {"conv1": 0.5})
    assert kept(plan_channels(deps, {"conv1": 0, "conv2": 0.5}), "conv2") == 2


def test_a_network_with_nothing_to_prune_lists_the_reasons() -> None:
    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 1)
            self.conv2 = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(torch.renorm(F.relu(self.conv1(x)), 2, 1, 1.0))

    with pytest.raises(NothingToPruneError) as caught:
        plan_channels(DependencyGraph.from_model(Stuck(), IMAGE), 0.5)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert text.splitlines()[0] == "nothing in the network can be pruned:"
    assert any("'conv1'" in line and "renorm has no rule" in line for line in text.splitlines())
    assert any("'conv2'" in line and "output" in line for line in text.splitlines())


def test_a_network_without_layers_says_so() -> None:
    with pytest.raises(NothingToPruneError, match="no layer with channels"):
        plan_channels(DependencyGraph.from_model(nn.ReLU(), IMAGE), 0.5)


def test_excluding_everything_is_nothing_to_prune() -> None:
    with pytest.raises(NothingToPruneError, match=r"'backbone\.conv3': excluded"):
        plan_channels(vgg()[1], 0.5, exclude=[f"backbone.conv{i}" for i in range(8)])


class Chain(nn.Module):
    """Two layers, of which the second is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(
    ("ratio", "error"), [(0.5, NothingToPruneError), ([0.5], FrozenLayerError), ({"a": 0.5}, FrozenLayerError)]
)
def test_what_the_second_reading_refuses_is_an_error(
    ratio: Any, error: type[FxpruneError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may refuse every choice, so that nothing of what was asked for can go, only once there is a plan."""
    deps = DependencyGraph.from_model(randomize(Chain()), IMAGE)

    def refuse(gm: fx.GraphModule, structure: Structure, kept: NDArray[np.bool_]) -> Found:
        if kept.all():
            return settling.chosen(gm, structure, kept)
        labels = numbers(structure.recorder.axes[Axis("a.weight", 0)])
        raise Conflict(labels, "relu", "channels do not line up at node 'relu'")

    monkeypatch.setattr(planning, "chosen", refuse)
    with pytest.raises(error) as caught:
        plan_channels(deps, ratio)
    assert "'a'" in str(caught.value)
    assert "does not fit: channels do not line up at node 'relu'" in str(caught.value)


def test_channels_that_are_all_one_unit_are_nothing_to_prune() -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.Conv2d(7, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y[:, 1:] * y[:, :-1])

    with pytest.raises(NothingToPruneError, match="'a': its channels all go together, and one must stay"):
        plan_channels(DependencyGraph.from_model(randomize(Neighbours()), IMAGE), 0.5)


def test_a_ratio_that_rounds_to_nothing_keeps_all() -> None:
    plan = plan_channels(vgg()[1], 0.01)
    assert widths(plan)[0] == 6
    assert plan_channels(vgg()[1], 0.0).kept.all()


@pytest.mark.parametrize("arguments", [{"ratio": {3: 0.3}}, {"exclude": None}, {"exclude": [3]}, {"exclude": 3}])
def test_names_that_are_no_names_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(FxpruneError):
        plan_channels(vgg()[1], **arguments)


def test_a_model_in_place_of_its_analysis_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="DependencyGraph"):
        plan_channels(vgg()[0], 0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"ratio": np.full(8, 0.5)},
        {"ratio": torch.full((8,), 0.5)},
        {"ratio": np.array(0.5)},
        {"ratio": np.float32(0.5), "round_to": np.int64(1)},
    ],
)
def test_numbers_of_numpy_are_numbers(arguments: dict[str, Any]) -> None:
    assert widths(plan_channels(vgg()[1], **arguments)) == [3, 6, 13, 13, 26, 26, 26, 26]
