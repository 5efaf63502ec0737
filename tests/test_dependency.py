"""Groups of hand-checked networks, their graph, and what the analysis must leave alone."""

from __future__ import annotations

import copy
from functools import cache

import networkx as nx
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.capture import trace
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentTypeError, FxpruneError, TraceError, UnknownNameError
from fxprune.models import VGG, ZOO, example_inputs

IMAGE = torch.zeros(2, 3, 8, 8)
NAMES = sorted(ZOO)
OUTPUT = "output of the network"


class Block(nn.Module):
    """A residual block between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 1)
        self.conv2 = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.fc((x + self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class Halves(nn.Module):
    """Each half of a convolution's channels meets another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 1)
        self.conv2 = nn.Conv2d(3, 6, 1)
        self.conv3 = nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, 1)
        return self.head(torch.cat([a + self.conv2(x), b * self.conv3(x)], 1))


class Mobile(nn.Module):
    """A depthwise convolution, a squeeze-and-excitation gate, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.act = nn.PReLU(8)
        self.squeeze = nn.Linear(8, 2)
        self.excite = nn.Linear(2, 8)
        self.side = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depthwise(self.expand(x)))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3))))).sigmoid()
        return self.last(self.norm(torch.cat([y * gate[:, :, None, None], self.side(x)], 1)))


@cache
def analysed(name: str) -> DependencyGraph:
    return DependencyGraph.from_model(ZOO[name](), example_inputs(name))


def groups_of(model: nn.Module, example: Tensor = IMAGE) -> list[tuple[object, ...]]:
    groups = DependencyGraph.from_model(model, example).groups
    return [(g.name, g.size, g.producers, g.followers, g.consumers, g.frozen is None) for g in groups]


def test_a_chain_has_a_group_for_each_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    assert groups_of(model) == [
        ("0", 8, ("0",), ("1",), ("3",), True),
        ("3", 6, ("3",), (), ("4",), True),
        ("4", 2, ("4",), (), (), False),
    ]


def test_an_addition_makes_one_group_of_two_producers() -> None:
    assert groups_of(Block()) == [
        ("stem", 8, ("stem", "conv2"), ("norm",), ("conv1", "fc"), True),
        ("conv1", 6, ("conv1",), (), ("conv2",), True),
        ("fc", 5, ("fc",), (), (), False),
    ]


def test_parts_of_one_layer_with_different_peers_are_different_groups_of_different_names() -> None:
    assert groups_of(Halves()) == [
        ("conv1", 6, ("conv1", "conv2"), (), ("head",), True),
        ("conv1#2", 6, ("conv1", "conv3"), (), ("head",), True),
        ("head", 4, ("head",), (), (), False),
    ]


def test_a_depthwise_convolution_follows_and_a_gate_produces() -> None:
    assert groups_of(Mobile()) == [
        ("expand", 8, ("expand", "excite"), ("depthwise", "act", "norm"), ("squeeze", "last"), True),
        ("squeeze", 2, ("squeeze",), (), ("excite",), True),
        ("side", 4, ("side",), ("norm",), ("last",), True),
        ("last", 3, ("last",), (), (), False),
    ]


def test_a_grouped_convolution_separates_its_sides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 2, 1))
    assert groups_of(model)[:2] == [("0", 8, ("0",), (), ("1",), True), ("1", 12, ("1",), (), ("2",), True)]


def test_a_convolution_that_is_called_twice_has_one_group() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.conv = nn.Conv2d(8, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(self.stem(x))))

    assert groups_of(Twice())[0] == ("stem", 8, ("stem", "conv"), (), ("conv", "head"), True)


def test_flattening_makes_one_unit_of_all_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 7), nn.Linear(7, 2))
    assert groups_of(model)[:2] == [("0", 8, ("0",), (), ("2",), True), ("2", 7, ("2",), (), ("3",), True)]


def test_tensors_of_the_network_itself_are_named_as_layers() -> None:
    deps = analysed("functional_layers")
    first, second = deps.prunable
    assert (first.producers, first.consumers) == (("weight1",), ("weight2",))
    assert set(first.followers) == {"running_mean", "running_var", "norm_weight", "norm_bias"}
    assert (second.producers, second.followers) == (("weight2",), ("bias2",))


def test_queries_and_keys_live_and_die_together() -> None:
    deps = analysed("fused_attention")
    groups = {g.name: g for g in deps.prunable}
    assert groups["attention.query"].producers == ("attention.query", "attention.key")
    assert groups["attention.value"].consumers == ("attention.proj",)


def test_an_operator_without_a_rule_freezes_what_it_reads_and_nothing_else() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 1)
            self.conv2 = nn.Conv2d(8, 6, 1)
            self.conv3 = nn.Conv2d(6, 4, 1)
            self.conv4 = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv4(self.conv3(torch.renorm(self.conv2(self.conv1(x)), 2, 1, 1.0)))

    groups = {g.name: g for g in DependencyGraph.from_model(Fourier(), IMAGE).groups}
    assert [name for name, g in groups.items() if g.frozen is None] == ["conv1", "conv3"]
    reason = groups["conv2"].frozen
    assert reason is not None
    assert "operator renorm has no rule" in reason
    assert "node 'renorm'" in reason
    assert "test_dependency.py:" in reason
    assert groups["conv2"].size == 6


def test_what_the_network_returns_is_frozen_with_that_reason() -> None:
    (group,) = DependencyGraph.from_model(nn.Linear(3, 4), torch.zeros(1, 3)).groups
    assert group.frozen is not None
    assert OUTPUT in group.frozen
    assert group.producers == ("weight",)


def test_a_layer_of_one_channel_is_frozen_with_that_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1))
    groups = {g.name: g.frozen for g in DependencyGraph.from_model(model, IMAGE).groups}
    assert "only channel" in str(groups["0"])


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_every_network_are_consistent(name: str) -> None:
    deps = analysed(name)
    frozen = [g.frozen is not None for g in deps.groups]
    assert frozen == sorted(frozen)
    assert deps.prunable == deps.groups[: frozen.count(False)]
    assert len({g.name for g in deps.groups}) == len(deps.groups)
    order = {layer: i for i, layer in enumerate(deps.layers)}
    for group in deps.groups:
        assert group.size > 0
        assert group.producers
        assert group.name.split("#")[0] == group.producers[0]
        assert not set(group.producers) & set(group.followers)
        assert {*group.producers, *group.followers, *group.consumers} <= set(deps.layers)
        assert [order[p] for p in group.producers] == sorted(order[p] for p in group.producers)
    starts = [order[g.producers[0]] for g in deps.prunable]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_with_a_weight_is_known(name: str) -> None:
    deps = analysed(name)
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    layers = {n for n, m in ZOO[name]().named_modules() if isinstance(m, kinds)}
    if name == "tied_autoencoder":
        assert "encode" in deps.layers
    missing = layers - set(deps.layers)
    assert missing <= {"conv1"} if name == "standardized_layer" else not missing


def test_group_of_finds_the_groups_of_a_layers_outputs() -> None:
    deps = DependencyGraph.from_model(Halves(), IMAGE)
    assert [g.name for g in deps.group_of("conv1")] == ["conv1", "conv1#2"]
    assert [g.name for g in deps.group_of("conv3")] == ["conv1#2"]
    assert [g.frozen is None for g in deps.group_of("head")] == [False]
    mobile = DependencyGraph.from_model(Mobile(), IMAGE)
    assert [g.name for g in mobile.group_of("norm")] == ["expand", "side"]


@pytest.mark.parametrize("method", ["explain", "group_of", "check_layer"])
def test_an_unknown_layer_lists_the_nearest(method: str) -> None:
    deps = DependencyGraph.from_model(VGG(0.05), torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnknownNameError, match=r"'backbone\.con3'.*nearest: 'backbone\.conv3'") as caught:
        getattr(deps, method)("backbone.con3")
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, FxpruneError)


def test_networkx_holds_every_layer_and_says_what_couples_them() -> None:
    deps = DependencyGraph.from_model(Block(), IMAGE)
    graph = deps.to_networkx()
    assert isinstance(graph, nx.MultiDiGraph)
    assert dict(graph.nodes(data="kind")) == {
        "stem": "Conv2d",
        "norm": "BatchNorm2d",
        "conv1": "Conv2d",
        "conv2": "Conv2d",
        "fc": "Linear",
    }
    assert dict(graph.nodes(data="groups")) == {"stem": [0], "norm": [0], "conv1": [1], "conv2": [0], "fc": [2]}
    frozen = dict(graph.nodes(data="frozen"))
    assert OUTPUT in frozen.pop("fc")
    assert set(frozen.values()) == {None}
    edges = sorted((a, b, d["relation"], d["group"], d["channels"]) for a, b, d in graph.edges(data=True))
    assert edges == [
        ("conv1", "conv2", "consumer", 1, 6),
        ("conv2", "conv1", "consumer", 0, 8),
        ("conv2", "fc", "consumer", 0, 8),
        ("conv2", "norm", "follower", 0, 8),
        ("stem", "conv1", "consumer", 0, 8),
        ("stem", "conv2", "peer", 0, 8),
        ("stem", "fc", "consumer", 0, 8),
        ("stem", "norm", "follower", 0, 8),
    ]


def test_networkx_of_parameters_and_of_a_layer_in_two_groups() -> None:
    graph = DependencyGraph.from_model(Halves(), IMAGE).to_networkx()
    assert graph.nodes["conv1"]["groups"] == [0, 1]
    assert {d["group"] for _, _, d in graph.out_edges("conv1", data=True)} == {0, 1}
    functional = analysed("functional_layers")
    assert functional.to_networkx().nodes["weight1"]["kind"] == "Parameter"


@pytest.mark.parametrize("name", NAMES)
def test_networkx_agrees_with_the_groups(name: str) -> None:
    deps = analysed(name)
    graph = deps.to_networkx()
    assert list(graph.nodes) == list(deps.layers)
    for number, group in enumerate(deps.groups):
        edges = [(a, b, d["relation"]) for a, b, d in graph.edges(data=True) if d["group"] == number]
        assert {b for _, b, r in edges if r == "consumer"} == set(group.consumers)
        assert {b for _, b, r in edges if r == "follower"} == set(group.followers)
        peers = [(a, b) for a, b, r in edges if r == "peer"]
        assert peers == list(zip(group.producers, group.producers[1:], strict=False))
        for layer in (*group.producers, *group.followers):
            assert number in graph.nodes[layer]["groups"]


def test_a_graph_without_shapes_is_refused_with_the_way_to_get_one() -> None:
    for wrong in (Block(), fx.symbolic_trace(Block()), None):
        with pytest.raises(ArgumentTypeError, match=r"fxprune\.trace\(model, example_inputs\).*from_model"):
            DependencyGraph(wrong)  # type: ignore[arg-type]


def test_inputs_that_the_model_refuses_give_its_own_error() -> None:
    with pytest.raises(TraceError, match=r"2, 4, 8, 8.*stem") as caught:
        DependencyGraph.from_model(Block(), torch.zeros(2, 4, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TraceError, match="missing a required argument: 'x'"):
        DependencyGraph.from_model(Block(), ())
    with pytest.raises(ArgumentTypeError, match="not NoneType"):
        DependencyGraph.from_model(Block(), None)  # type: ignore[arg-type]


def test_from_model_is_trace_and_analysis() -> None:
    model = Block()
    assert DependencyGraph(trace(model, IMAGE)).groups == DependencyGraph.from_model(model, IMAGE).groups
    assert isinstance(DependencyGraph.from_model(model, {"x": IMAGE}).groups[0], ChannelGroup)


@pytest.mark.parametrize("name", ["residual", "dropout", "convnext", "multihead_attention"])
@pytest.mark.parametrize("training", [True, False])
def test_the_analysis_changes_nothing_in_the_model(name: str, training: bool) -> None:
    model = ZOO[name]().train(training)
    before = copy.deepcopy(model)
    deps = DependencyGraph.from_model(model, example_inputs(name))
    for layer in deps.layers:
        deps.explain(layer)
    deps.to_networkx()
    assert repr(model) == repr(before)
    for (key, value), old in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), key
    for (key, module), old_module in zip(model.named_modules(), before.modules(), strict=True):
        assert module.training == old_module.training, key
        assert set(module.__dict__) == set(old_module.__dict__), key


def test_groups_do_not_depend_on_the_weights_or_on_the_run() -> None:
    again = DependencyGraph.from_model(ZOO["channel_shuffle"](), example_inputs("channel_shuffle"))
    assert again.groups == analysed("channel_shuffle").groups


def test_a_gate_of_one_channel_leaves_the_features_free() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.gate = nn.Conv2d(8, 1, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x * self.gate(x).sigmoid())

    assert [g.name for g in DependencyGraph.from_model(Gated(), IMAGE).prunable] == ["stem"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("convnext", "blocks.0.norm"),
        ("channel_norm", "weight"),
        ("channel_norm", "scale"),
        ("vision_transformer", "positions"),
    ],
)
def test_a_layer_norm_follows_the_channels_that_it_scales(name: str, layer: str) -> None:
    deps = analysed(name)
    (group,) = (g for g in deps.group_of(layer) if g.frozen is None)
    assert layer in group.followers
    assert f"'{layer}' follows {group.size} channels" in deps.explain(layer)


def test_a_layer_without_a_rule_can_be_explained() -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.distance = nn.PairwiseDistance()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2).transpose(1, 2)
            out: Tensor = self.distance(x, x.flip(1))
            return out

    deps = DependencyGraph.from_model(Distances(), IMAGE)
    assert "layer distance (PairwiseDistance) has no rule" in deps.explain("distance")
    assert "layer distance (PairwiseDistance) has no rule" in deps.explain("conv")
    assert deps.group_of("distance") == ()
    assert "distance" not in deps.layers


def test_outputs_that_have_nothing_in_common_are_no_peers() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.scores = nn.Conv2d(8, 5, 1)
            self.boxes = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.stem(x))
            return self.scores(x), self.boxes(x)

    deps = DependencyGraph.from_model(Heads(), IMAGE)
    assert [(g.name, g.size) for g in deps.groups if g.frozen] == [("scores", 5), ("boxes", 4)]
    assert not deps.to_networkx().has_edge("scores", "boxes")
