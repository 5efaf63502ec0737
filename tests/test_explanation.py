"""What ``explain`` says, read as a person would."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.dependency import DependencyGraph
from fxprune.errors import UnknownNameError
from fxprune.models import ZOO, example_inputs

IMAGE = torch.zeros(2, 3, 8, 8)


class Inner(nn.Module):
    """Two convolutions, the second of which meets what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 6, 1)
        self.conv2 = nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Network(nn.Module):
    """Residual addition, an operator without a rule, and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = Inner()
        self.odd = nn.Conv2d(8, 7, 1)
        self.shift = nn.Conv2d(7, 7, 1, groups=7)
        self.classifier = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(F.relu(self.norm(self.stem(x))))
        x = torch.renorm(self.shift(self.odd(x)), 2, 1, 1.0)
        return self.classifier(x.mean((2, 3)))


@cache
def network() -> DependencyGraph:
    return DependencyGraph.from_model(Network(), IMAGE)


def line_of(text: str) -> str:
    """The file and line of this file's line that contains ``text``."""
    with open(__file__, encoding="utf-8") as file:
        number = next(i for i, line in enumerate(file, 1) if text in line)
    return f"test_explanation.py:{number}"


def test_a_producer_names_its_group_its_peers_and_the_operator_that_ties_them() -> None:
    text = network().explain("stem")
    assert "'stem' makes 8 channels of the group 'stem' (8 removable units)" in text
    assert "'inner.conv2'" in text
    assert "'add' (add," in text
    assert line_of("return x + self.conv2") in text
    assert "Followed by 'norm'" in text
    assert "Read by 'inner.conv1', 'odd'" in text


def test_a_producer_that_is_not_the_first_names_the_group() -> None:
    text = network().explain("inner.conv2")
    assert "'inner.conv2' makes 8 channels of the group 'stem'" in text
    assert "go together with the channels of 'stem'" in text


def test_a_producer_without_peers_names_its_reader() -> None:
    text = network().explain("inner.conv1")
    assert "'inner.conv1' makes 6 channels of the group 'inner.conv1' (6 removable units)" in text
    assert "Read by 'inner.conv2'" in text
    assert "go together" not in text
    assert "Followed" not in text


def test_a_follower_says_whom_it_follows() -> None:
    text = network().explain("norm")
    assert "'norm' follows 8 channels of the group 'stem'" in text
    assert "'stem', 'inner.conv2'" in text


def test_a_frozen_layer_says_why_with_node_operator_and_source_line() -> None:
    text = network().explain("odd")
    assert "'odd' stays whole, as none of its 7 channels can be removed" in text
    assert "operator renorm has no rule" in text
    assert "node 'renorm'" in text
    assert line_of("x = torch.renorm") in text


def test_a_frozen_layer_names_the_module_that_holds_it() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.renorm(x, 2, 1, 1.0)

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.odd = nn.Sequential(nn.ReLU(), Odd())

        def forward(self, x: Tensor) -> Tensor:
            return self.odd(self.conv(x)).flatten(1).sum(1)

    text = DependencyGraph.from_model(Nested(), IMAGE).explain("conv")
    assert "node 'renorm' in module 'odd.1' at tests/test_explanation.py:" in text


def test_a_layer_that_follows_frozen_channels_is_frozen_for_the_same_reason() -> None:
    assert "'shift' stays whole, as none of its 7 channels can be removed: operator renorm" in network().explain(
        "shift"
    )


def test_channels_held_through_another_layer_say_through_which_operators() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.b = nn.Conv2d(3, 4, 1)
            self.c = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x) * self.b(x)
            z = y - self.c(y)
            return z, y

    text = DependencyGraph.from_model(Held(), IMAGE).explain("b")
    assert "'b' stays whole, as none of its 4 channels can be removed" in text
    assert "output of the network" in text
    assert "'mul' (mul," in text


def test_a_layer_of_which_a_part_is_frozen_explains_both_parts() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            free, held = self.conv(x).split([5, 3], 1)
            return self.head(free), held

    text = DependencyGraph.from_model(Part(), IMAGE).explain("conv")
    assert "'conv' makes 5 channels of the group 'conv'" in text
    assert "3 of the 8 channels of 'conv' cannot be removed" in text
    assert "output of the network" in text


def test_a_layer_with_parts_in_two_groups_explains_both() -> None:
    deps = DependencyGraph.from_model(ZOO["res2net"](), example_inputs("res2net"))
    text = deps.explain("reduce.0")
    assert text.count("'reduce.0' makes") == 3
    assert "'chain.0.0'" in text
    assert "'chain.1.0'" in text


def test_the_output_layer_says_that_it_is_the_output() -> None:
    text = network().explain("classifier")
    assert "'classifier' stays whole, as none of its 5 channels can be removed" in text
    assert "output of the network" in text


def test_long_lists_are_cut_with_a_count() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(12))
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            total = self.convs[0](x)
            for conv in self.convs[1:]:
                total = total + conv(x)
            return self.head(total)

    text = DependencyGraph.from_model(Many(), IMAGE).explain("convs.0")
    assert "'convs.8' and 3 more" in text
    assert "'convs.9'" not in text
    assert "'add_7' (add," in text
    assert max(map(len, text.splitlines())) < 700


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_layer_of_every_network_is_explained_in_whole_sentences(name: str) -> None:
    deps = DependencyGraph.from_model(ZOO[name](), example_inputs(name))
    for layer in deps.layers:
        text = deps.explain(layer)
        assert f"'{layer}'" in text
        assert text.endswith(".")
        assert "None" not in text
        assert "  ." not in text


def test_a_standardized_weight_makes_channels_that_can_be_removed() -> None:
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.weight = nn.Parameter(torch.randn(6, 8, 1, 1))
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self.head(F.conv2d(F.relu(self.stem(x)), weight))

    deps = DependencyGraph.from_model(Standardized(), IMAGE)
    assert any("weight" in g.producers for g in deps.prunable)
    assert any("weight" in g.consumers for g in deps.prunable)


def test_an_unknown_layer_lists_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer 'inner\.conv9'.*nearest: 'inner\.conv"):
        network().explain("inner.conv9")


def test_a_follower_of_one_layer_reads_well() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    text = DependencyGraph.from_model(model, IMAGE).explain("1")
    assert "'0'" in text
    assert "tied through ." not in text
    assert "Followed by '1'" not in text


def test_a_consumer_says_what_it_reads() -> None:
    assert "'odd'" in network().explain("classifier")


@pytest.mark.parametrize("layer", ["act", "flat"])
def test_a_layer_without_channels_is_not_called_missing(layer: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.act = nn.ReLU()
            self.flat = nn.Flatten()
            self.fc = nn.Linear(4 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.flat(self.act(self.conv(x))))

    deps = DependencyGraph.from_model(Plain(), IMAGE)
    try:
        text = deps.explain(layer)
    except UnknownNameError as error:
        text = str(error)
    assert type(Plain().get_submodule(layer)).__name__ in text


def test_a_layer_with_a_hook_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    model[1].register_forward_hook(lambda module, inputs, output: None)
    assert "hook" in DependencyGraph.from_model(model, IMAGE).explain("0")
