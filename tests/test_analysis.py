from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, frozen, images, prove, sizes, structure
from torch import nn

from fxprune.analysis import _ranks, resolve
from fxprune.capture import trace
from fxprune.dependency import DependencyGraph
from fxprune.errors import InternalError
from fxprune.models import ZOO, example_inputs
from fxprune.recorder import Recorder
from fxprune.records import Freeze, Tie, numbers
from fxprune.structure import Refinement, Structure

GROUPS: dict[str, dict[str, int]] = {
    # A 1x1 convolution, a 3x3 one, and what they are added to.
    "bottleneck": {"reduce.0": 12, "spatial.0": 12},
    # Two outputs of the depthwise convolution go with one input.
    "channel_multiplier": {"stem.0": 16, "pointwise.0": 24},
    "channel_norm": {"conv1": 24, "conv2": 32, "conv3": 24},
    # Both halves of every block: all that passes by together, and what each block makes inside.
    "channel_shuffle": {"stem.0": 96, "block1.branch.0.0": 24, "block2.branch.0.0": 24, "last.0": 40},
    "convnext": {"stem": 24, "blocks.0.widen": 48, "blocks.1.widen": 48},
    # Of each channel there are two signs.
    "crelu": {"conv1.0": 16, "conv2.0": 24},
    # The half that passes by, and the half that is added to.
    "cross_stage_partial": {"stem.0": 24, "enter.0": 16, "enter.0#2": 16, "leave.0": 32},
    "dense": {
        "stem": 16,
        **{f"block1.{i}.conv{n}": width for i in range(3) for n, width in ((1, 16), (2, 8))},
        "transition.2": 20,
        **{f"block2.{i}.conv{n}": width for i in range(2) for n, width in ((1, 16), (2, 8))},
    },
    "depthwise_separable": {"layers.0.0": 16, "layers.2.0": 32, "layers.4.0": 40},
    "dropout": {"conv1.0": 24, "hidden": 40},
    "feature_pyramid": {"down1.0": 16, "down2.0": 24, "lateral2": 20},
    "fixed_view": {"conv1.0": 48, "conv2.0": 32},
    # One unit for all positions of a channel.
    "flatten": {"features.0.0": 16, "features.2.0": 24, "hidden": 40},
    "flatten_view": {"conv1": 12, "conv2": 20, "fc1": 32},
    "functional_layers": {"weight1": 24, "weight2": 32},
    # Queries and keys go together, values by themselves.
    "fused_attention": {"stem.0": 24, "attention.query": 24, "attention.value": 24},
    "global_response": {"conv1.0": 24, "conv2.0": 24},
    "group_norm": {"conv1": 24, "conv2": 32, "conv3": 24},
    # The input of the first and of the last layer of the residual are one: three layers make it.
    "grouped_shuffle": {"stem.0": 36, "reduce.0": 20},  # columns that a block ends in go as a whole
    "grouped_transposed": {"stem.0": 32, "grouped": 24},
    "inception": {
        "stem.0": 24,
        "branch1.0": 8,
        "branch3.0.0": 12,
        "branch3.1.0": 16,
        "branch5.0.0": 8,
        "branch5.1.0": 12,
        "branch_pool.1.0": 8,
        "mix.0": 32,
    },
    "instance_norm": {"conv1": 16, "conv2": 24, "conv3": 24},
    "inverted_residual": {"stem.0": 12, "blocks.0.0.0": 48, "blocks.1.0.0": 48, "last.0": 40},
    "maxout": {"conv1.0": 24, "conv2.0": 20},
    "mixed_depthwise": {"stem.0": 36, "conv.0": 24},
    "mlp_mixer": {"patches": 32, "tokens.0": 24, "channels.0": 48},
    "multihead_attention": {"stem.0": 24, "attention": 48},
    # Eight channels on either side of the shortcut's sixteen have no peer in it.
    "padded_shortcut": {"stem.0": 16, "conv1.0": 32, "conv2.0": 16, "conv3.0": 24},
    # Four channels of the wide convolution make one.
    "pixel_shuffle": {"stem.0": 24, "widen": 12, "conv.0": 16},
    "pre_activation": {"stem": 24, **{f"blocks.{i}.conv1": 20 for i in range(3)}},
    "prelu": {"conv1": 16, "conv2": 24, "conv3": 32},
    "residual": {"stem.0": 16, "layer1.conv1": 16, "layer2.downsample.0": 32, "layer2.conv1": 32, "layer3.conv1": 32},
    "resnext": {"stem.0": 48, "reduce.0": 32, "grouped.0": 32},
    "selective_kernel": {"stem.0": 16, "branch3.0": 24, "squeeze.0": 12},
    "self_attention": {"stem.0": 32, "attention.qkv": 64, "conv.0": 24},
    "several_outputs": {"stem.0": 24, "conv.0": 32},
    "shared_block": {"stem.0": 16, "block.0": 20, "last.0": 24},
    "shared_convolution": {"stem.0": 24, "last.0": 32},
    "space_to_depth": {"stem.0": 12, "conv.0": 32, "last.0": 24},
    "spatial_attention": {"stem.0": 24, "conv.0": 32},
    "split_branches": {"stem.0": 32, "left.0": 20, "mix.0": 24},
    "squeeze_excitation_conv": {"stem.0": 32, "squeeze": 12, "conv.0": 24},
    "squeeze_excitation_linear": {"stem.0": 32, "gate.0": 8},
    "standardized_layer": {"stem": 12, "conv1": 32, "conv2.0": 24},
    "temporal": {"conv1": 16, "up": 12},
    # The code can shrink, the image cannot.
    "tied_autoencoder": {"encode": 24},
    "unet": {"down1.0": 12, "down2.0": 24, "bottom.0": 32, "up2": 24, "merge2.0": 24, "up1": 12, "merge1.0": 12},
    "vgg": {f"backbone.conv{i}": width for i, width in enumerate((6, 13, 26, 26, 51, 51, 51, 51))},
    "vision_transformer": {
        "patches": 32,
        **{f"blocks.{i}.{layer}": 64 for i in range(2) for layer in ("attention.qkv", "mlp.0")},
    },
    "volumetric": {"conv1": 8, "conv2": 16},
    "weight_standardized": {"stem.0": 24, "weight": 32, "conv.0": 24},
    "window_attention": {"stem.0": 24, "qkv": 48, "conv.0": 32},
}


def _analysed(name: str) -> DependencyGraph:
    return DependencyGraph(trace(ZOO[name](), example_inputs(name)))


@pytest.mark.parametrize("name", GROUPS)
def test_the_groups_of_the_reference_networks(name: str) -> None:
    assert sizes(_analysed(name)) == GROUPS[name]


@pytest.mark.parametrize(
    ("name", "layer", "producers", "followers", "consumers"),
    [
        (
            "residual",
            "stem.0",
            ("stem.0", "layer1.conv2"),
            ("stem.1", "layer1.bn2"),
            ("layer1.conv1", "layer2.downsample.0", "layer2.conv1"),
        ),
        (
            "depthwise_separable",
            "layers.0.0",
            ("layers.0.0",),
            ("layers.0.1", "layers.1.0", "layers.1.1"),
            ("layers.2.0",),
        ),
        ("inception", "branch1.0", ("branch1.0",), ("branch1.1",), ("mix.0",)),
        ("fused_attention", "attention.query", ("attention.query", "attention.key"), (), ()),
    ],
)
def test_who_makes_follows_and_reads(
    name: str, layer: str, producers: tuple[str, ...], followers: tuple[str, ...], consumers: tuple[str, ...]
) -> None:
    group = next(g for g in _analysed(name).groups if g.name == layer)
    assert group.producers == producers
    assert set(followers) <= set(group.followers)
    assert set(consumers) <= set(group.consumers)


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("tied_autoencoder", "encode#2", "the network's input has a fixed number of channels"),
        ("spatial_attention", "gate", "it is the only channel"),
        ("vgg", "classifier", "it is an output of the network"),
    ],
)
def test_why_channels_are_held(name: str, layer: str, reason: str) -> None:
    group = next(g for g in _analysed(name).groups if g.frozen and (g.name == layer or layer in g.producers))
    assert group.frozen is not None
    assert group.frozen.startswith(reason)
    assert "node '" in group.frozen


# Solving --------------------------------------------------------------------------------------------------------------


def blank(count: int) -> Recorder:
    recorder = Recorder(trace(nn.Identity(), torch.zeros(1)))
    recorder.fresh(count - 1)
    return recorder


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(2, 20).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=15))
    )
)
def test_units_are_what_ties_connect(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    recorder = blank(count)
    recorder.ties = [Tie(np.array([a]), np.array([b]), "x") for a, b in pairs]
    found = resolve(recorder, Refinement())
    expected = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert len(found.unit) == count
    assert found.units == len(set(expected))
    # Numbered by their first label, so unit 0 is what is tied to label 0.
    order = {label: number for number, label in enumerate(sorted(set(expected)))}
    assert found.unit.tolist() == [order[label] for label in expected]


def test_what_is_frozen_is_unit_0_and_so_is_what_is_tied_to_it() -> None:
    recorder = blank(6)
    recorder.ties = [Tie(np.array([1]), np.array([2]), "x")]
    found = resolve(recorder, Refinement())
    assert found.unit.tolist() == [0, 1, 1, 2, 3, 4]
    reason = recorder.reason("it must stay")
    recorder.freezes = [Freeze(np.array([2, 5]), reason)]
    assert resolve(recorder, Refinement()).unit.tolist() == [0, 0, 0, 1, 2, 0]
    extra = Refinement(ties=(Tie(np.array([3]), np.array([4]), "y"),), freezes=(Freeze(np.array([4]), reason),))
    assert resolve(recorder, extra).unit.tolist() == [0, 0, 0, 0, 0, 0]


def producers(found: Structure) -> dict[str, np.ndarray]:
    return {u.layer: found.unit[numbers(u.labels)] for u in found.recorder.uses if u.role == "producer"}


def test_units_of_the_same_makers_are_one_group() -> None:
    def forward(s: Any, x: Any) -> Any:
        y, z = s.a(x), s.c(x)
        return s.end(torch.cat([y[:, :3] + z, y[:, 3:]], 1))

    found = structure(Net(forward, c=nn.Conv2d(3, 3, 3)))
    units = producers(found)
    assert (units["a"][:3] == units["c"]).all()
    groups = found.group[units["a"]]
    assert len(set(groups[:3])) == 1
    assert len(set(groups[3:])) == 1
    assert groups[0] != groups[3]
    assert sorted(len(m) for m in found.members) == [3, 5, 6]
    assert [set(found.group[m]) for m in found.members] == [{0}, {1}, {2}]


def test_units_of_one_class_stand_in_the_same_blocks() -> None:
    found = structure(nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 5, 1)))
    made = producers(found)["0"]
    kinds = found.kind[made].reshape(3, 4)
    assert (kinds == kinds[:, :1]).all()
    assert len(set(kinds[:, 0])) == 3
    assert any(rect.shape == (3, 4) and (rect == made.reshape(3, 4)).all() for rect in found.rects)


def test_blocks_of_other_shapes_over_the_same_channels_are_other_constraints() -> None:
    layers = (nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 5, 1))
    found = structure(nn.Sequential(*layers))
    made = producers(found)["1"]
    shapes = {rect.shape for rect in found.rects if set(rect.reshape(-1)) == set(made)}
    assert shapes == {(2, 6), (3, 4)}


def test_groups_are_in_the_order_of_the_data() -> None:
    found = structure(ZOO["unet"](), example_inputs("unet"))
    first = [min(producers(found)[layer].tolist()) for layer in GROUPS["unet"]]
    assert [int(found.group[unit]) for unit in first] == sorted(int(found.group[unit]) for unit in first)


def test_no_unit_of_a_group_is_frozen() -> None:
    for name in ("residual", "tied_autoencoder", "grouped_transposed", "window_attention"):
        found = structure(ZOO[name](), example_inputs(name))
        assert found.group[0] == -1
        assert all((m > 0).all() for m in found.members)
        assert found.alive(np.zeros(found.units, dtype=bool)).sum() == 0


# Conflicts ------------------------------------------------------------------------------------------------------------


def test_a_conflict_first_tells_pieces_apart_then_gives_up_blocks_then_freezes() -> None:
    layers = (nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 5, 1))
    found = structure(nn.Sequential(*layers))
    labels = numbers(next(u.labels for u in found.recorder.uses if u.role == "producer" and u.layer == "0"))
    first = found.escalate(labels, "_1", "somewhere")
    assert first == replace(found.refinement, pieces=True)
    columns = resolve(found.recorder, first).escalate(labels, "_1", "somewhere")
    assert columns == replace(first, columns=True)
    second = resolve(found.recorder, columns).escalate(labels, "_1", "somewhere")
    assert second.ties
    assert not second.freezes
    tied = resolve(found.recorder, second)
    units = tied.unit[labels].reshape(3, 4)
    assert (units == units[:1]).all()
    assert len(set(units[0])) == 4
    third = tied.escalate(labels, "_1", "somewhere")
    assert third.ties == second.ties
    held = resolve(found.recorder, third)
    assert (held.unit[labels] == 0).all()
    assert "what would be left of its channels does not fit: somewhere" in third.freezes[0].reason.text


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.h(s.dw(s.a(x).view(-1, 6, 2, 6, 6).sum(2))[:, ::2].mean((2, 3))),
        lambda s, x: s.h((lambda y: y + y.roll(1, 1))(s.a(x).view(-1, 2, 6, 36).amax(1))[:, ::2].mean(2)),
        lambda s, x: s.h(s.a(x).unflatten(1, (4, 3)).sum(1).repeat(1, 2, 1, 1)[:, 1:4].mean((2, 3))),
    ],
)
def test_constraints_settle(function: Any) -> None:
    layers = {
        "a": nn.Conv2d(3, 12, 3),
        "dw": nn.Conv2d(6, 6, 3, groups=6),
        "h": nn.Linear(3, 5),
        "b": nn.Conv2d(3, 6, 1),
    }
    model = Net(lambda s, x: (function(s, x), s.c(torch.relu(s.b(x)))), **layers, c=nn.Conv2d(6, 5, 1))
    found = prove(model, images())
    assert sizes(found.deps)["b"] == 6
    assert found.proof.max_relative_error < 1e-10


def test_what_never_fits_ends_with_the_place() -> None:
    found = structure(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)))
    nothing = np.zeros(0, dtype=np.int64)
    for _ in range(3):
        found = resolve(found.recorder, found.escalate(nothing, "_1", "somewhere"))
    assert not found.groups
    with pytest.raises(InternalError, match="nothing is to be removed, and still the network does not fit: somewhere"):
        found.escalate(nothing, "_1", "somewhere")


def test_a_rolled_residual_ties_what_meets() -> None:
    deps = DependencyGraph(trace(Net(lambda s, x: s.end(s.a(x) + torch.roll(s.a(x), 4, 1))), images()))
    assert sizes(deps) == {"a": 4, "b": 6}
    assert not frozen(deps)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=40), st.integers(1, 3))
def test_ranks_are_those_of_numpy(values: list[int], times: int) -> None:
    array = np.repeat(np.array(values, dtype=np.uint64), times)
    ranks = _ranks(array)
    assert ranks.dtype == np.int64
    assert (ranks == np.unique(array, return_inverse=True)[1]).all()
