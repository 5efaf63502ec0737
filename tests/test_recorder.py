from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, images
from torch import Tensor, fx, nn

from fxprune.analysis import RULE_MODULES, read
from fxprune.capture import trace
from fxprune.labels import Labels, Layer
from fxprune.models import ZOO, example_inputs
from fxprune.recorder import Recorder
from fxprune.records import Moved, numbers
from fxprune.rules.table import RULES, rule
from fxprune.vocabulary import Axis, Declined


def recorded(model: nn.Module, inputs: Any = None) -> Recorder:
    return read(trace(model, images() if inputs is None else inputs))


def roles(recorder: Recorder) -> list[tuple[str, str, str, int]]:
    return [(u.role, u.layer, u.axis.tensor, u.axis.dim) for u in recorder.uses]


# The table ------------------------------------------------------------------------------------------------------------


def test_an_operator_has_one_rule() -> None:
    assert len(RULE_MODULES) == len(set(RULE_MODULES))
    with pytest.raises(ValueError, match=r"there is a rule for .* already"):
        rule(nn.Conv2d)(lambda ctx, module, x: x)
    assert RULES[nn.Conv2d].function.__name__ == "convolution"


def test_a_rule_is_found_by_the_operator_not_by_its_name() -> None:
    def relu(x: Tensor) -> Tensor:
        return x.flip(1)

    assert relu not in RULES
    assert RULES["relu"].function is RULES[torch.relu].function is RULES[F.relu].function


@pytest.mark.unforeseen
def test_a_broken_rule_freezes_its_operator_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ctx: Recorder, module: nn.Module, x: Labels) -> Labels:
        ctx.consume(Axis("norm.weight", 0), "norm", ctx.fixed(8, "half-done"), "follower")
        raise RuntimeError("it broke")

    monkeypatch.setitem(RULES, nn.BatchNorm2d, type(RULES[nn.BatchNorm2d])(broken))
    recorder = recorded(Net(lambda s, x: s.end(s.norm(s.a(x))), norm=nn.BatchNorm2d(8)))
    (reason,) = {f.reason for f in recorder.freezes if f.reason.node == "norm"}
    assert "does not know these arguments (RuntimeError: it broke)" in reason.text
    assert "test_recorder.py" in reason.where
    assert Axis("norm.weight", 0) not in recorder.axes
    assert not [use for use in recorder.uses if use.layer == "norm"]


def test_a_rule_may_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    def declines(ctx: Recorder, module: nn.Module, x: Labels) -> Labels:
        raise Declined("not today")

    monkeypatch.setitem(RULES, nn.BatchNorm2d, type(RULES[nn.BatchNorm2d])(declines))
    recorder = recorded(Net(lambda s, x: s.end(s.norm(s.a(x))), norm=nn.BatchNorm2d(8)))
    assert {f.reason.text for f in recorder.freezes if f.reason.node == "norm"} == {"not today"}


# What is written down -------------------------------------------------------------------------------------------------


def test_a_chain() -> None:
    recorder = recorded(Net(lambda s, x: s.end(F.relu(s.norm(s.a(x)))), norm=nn.BatchNorm2d(8)))
    assert roles(recorder) == [
        ("consumer", "a", "a.weight", 1),
        ("producer", "a", "a.weight", 0),
        ("follower", "a", "a.bias", 0),
        *[("follower", "norm", f"norm.{n}", 0) for n in ("weight", "bias", "running_mean", "running_var")],
        ("consumer", "b", "b.weight", 1),
        ("producer", "b", "b.weight", 0),
        ("follower", "b", "b.bias", 0),
        ("consumer", "h", "h.weight", 1),
        ("producer", "h", "h.weight", 0),
        ("follower", "h", "h.bias", 0),
    ]
    made = recorder.axes[Axis("a.weight", 0)]
    assert made.shape == (8,)
    assert len(set(made.tolist())) == 8
    assert torch.equal(recorder.axes[Axis("b.weight", 1)], made)
    assert not recorder.ties
    assert not recorder.rects
    assert [f.reason.text for f in recorder.freezes] == [
        "the network's input has a fixed number of channels",
        "it is an output of the network",
    ]
    assert [(r.node, r.position, r.full) for r in recorder.reads_] == [("b", 0, (2, 8, 6, 6)), ("h", 0, (2, 6))]


def test_no_weight_is_read() -> None:
    with torch.device("meta"):
        model = ZOO["vision_transformer"]()
    recorder = read(trace(model, example_inputs("vision_transformer")))
    assert recorder.count > 1


def test_labels_that_are_constant_take_no_memory() -> None:
    recorder = recorded(Net(lambda s, x: s.end(F.relu(s.a(x)))), images(2, 3, 64, 64))
    value = recorder.values[next(n for n in recorder.gm.graph.nodes if n.name == "relu")]
    assert value.full == (2, 8, 62, 62)
    assert [tuple(layer.tensor.shape) for layer in value.layers] == [(1, 8, 1, 1)]
    assert recorder.count == 1 + 3 + 8 + 6 + 5


def test_a_shared_parameter_has_one_name_and_one_axis() -> None:
    first, second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    second.weight = first.weight
    recorder = recorded(Net(lambda s, x: s.end(s.second(s.first(s.a(x)))), first=first, second=second))
    assert recorder.canonical("second.weight") == recorder.canonical("first.weight") == "first.weight"
    assert Axis("second.weight", 0) not in recorder.axes
    reads = [u for u in recorder.uses if u.axis == Axis("first.weight", 1)]
    assert len(reads) == 2
    pairs = {frozenset((int(a), int(b))) for t in recorder.ties for a, b in zip(t.a, t.b, strict=True)}
    assert {frozenset(map(int, p)) for p in zip(reads[0].labels, reads[1].labels, strict=True)} <= pairs
    assert recorder.by_alias({"first.weight": 1}) == {"first.weight": 1, "second.weight": 1}


def test_a_parameter_that_meets_channels_has_labels_of_its_own() -> None:
    recorder = recorded(Net(lambda s, x: s.end(s.a(x) * s.scale), scale=nn.Parameter(torch.ones(1, 8, 1, 6))))
    assert set(recorder.axes) >= {Axis("scale", 1), Axis("scale", 3)}
    assert Axis("scale", 0) not in recorder.axes


def test_reasons_say_where() -> None:
    recorder = recorded(nn.Sequential(Net(lambda s, x: torch.trapezoid(s.a(x), dim=1), b=None, h=None)))
    (reason,) = {f.reason for f in recorder.freezes if f.reason.node == "trapezoid"}
    assert reason.text == "operator trapezoid has no rule"
    assert reason.where.startswith("node 'trapezoid' in module '0' at tests/test_recorder.py:")


# Single steps ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def blank() -> Recorder:
    gm = trace(nn.Identity(), torch.zeros(1))
    return Recorder(gm)


def layer(recorder: Recorder, *shape: int) -> Layer:
    labels = recorder.fresh(int(np.prod(shape))).reshape(shape)
    return Layer(labels, tuple(d for d, s in enumerate(shape) if s > 1))


def test_names_are_never_used_twice(blank: Recorder) -> None:
    assert blank.fresh(3).tolist() == [1, 2, 3]
    assert blank.fixed(2, "they stay").tolist() == [4, 5]
    assert blank.filler(1).tolist() == [6]
    assert blank.count == 7
    assert [(f.labels.tolist(), f.reason.text) for f in blank.freezes] == [([4, 5], "they stay")]


def test_a_tie_with_itself_is_none(blank: Recorder) -> None:
    a = layer(blank, 1, 3)
    blank.tie(a.tensor, a.tensor)
    assert not blank.ties
    blank.tie(a.tensor, blank.fresh(3)[None])
    assert [(t.a.tolist(), t.b.tolist()) for t in blank.ties] == [([1, 2, 3], [4, 5, 6])]


def test_pinning_all_dimensions_freezes_and_one_of_two_covers(blank: Recorder) -> None:
    a = layer(blank, 2, 3)
    blank.pin(a, [0], "rows stay")
    assert not blank.freezes
    assert [(c.parent, c.child.tolist(), c.text) for c in blank.covers] == [(None, [[1, 2, 3], [4, 5, 6]], "rows stay")]
    blank.pin(a, [0, 1], "all stay")
    assert [f.labels.tolist() for f in blank.freezes] == [[1, 2, 3, 4, 5, 6]]


def test_what_is_left_of_a_line_has_a_name(blank: Recorder) -> None:
    a = layer(blank, 2, 1, 3)
    left = blank.outer(a, [2])
    assert left is not None
    assert (left.tensor.shape, left.dims) == ((2, 1, 1), (0,))
    assert blank.covers[0].parent.tolist() == numbers(left.tensor).tolist()  # type: ignore[union-attr]
    assert blank.covers[0].child.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert blank.outer(a, [0, 2]) is None


def moved(function: Any, channels: int = 4, where: int = 1) -> tuple[Recorder, fx.Node]:
    """What one operator made of the channels of a convolution."""
    model = Net(lambda s, x: function(s.a(x)), a=nn.Conv2d(3, channels, 1), b=None, h=None)
    recorder = recorded(model)
    return recorder, list(recorder.gm.graph.nodes)[where + 1]


def test_moving_keeps_names_in_their_new_order() -> None:
    recorder, node = moved(lambda y: y.flip(1))
    value = recorder.values[node]
    made = recorder.axes[Axis("a.weight", 0)].tolist()
    assert value.layers[0].tensor.reshape(-1).tolist() == made[::-1]
    assert recorder.rearranged
    assert not recorder.ties


def test_a_channel_that_occurs_twice_gets_another_name_for_each_place() -> None:
    recorder, node = moved(lambda y: y.repeat(1, 2, 1, 1))
    value = recorder.values[node]
    names = numbers(value.layers[0].tensor).tolist()
    made = recorder.axes[Axis("a.weight", 0)].tolist()
    assert len(set(names)) == 8
    assert not set(names) & set(made)
    assert {(int(a), int(b)) for t in recorder.ties for a, b in zip(t.a, t.b, strict=True)} == set(
        zip(made * 2, names, strict=True)
    )
    (record,) = [r for r in recorder.log[node.name] if isinstance(r, Moved)]
    assert record.renamed is not None
    assert record.renamed(np.array(made * 2), counting=True).tolist() == names


def test_the_only_channel_of_a_selection_is_held() -> None:
    recorder, node = moved(lambda y: y[:, 2:3])
    assert recorder.values[node].layers == ()
    held = [f for f in recorder.freezes if f.reason.node == node.name]
    assert [f.labels.tolist() for f in held] == [[recorder.axes[Axis("a.weight", 0)].tolist()[2]]]


def test_channels_along_two_dimensions_must_stay_rectangular() -> None:
    recorder, node = moved(lambda y: y.unflatten(1, (2, 2)))
    made = recorder.axes[Axis("a.weight", 0)].reshape(2, 2).tolist()
    assert [(r.labels.tolist(), r.free, r.node) for r in recorder.rects] == [(made, None, node.name)]


def test_pieces_are_known() -> None:
    recorder, _ = moved(lambda y: y.split([1, 3], 1)[1])
    made = recorder.axes[Axis("a.weight", 0)].tolist()
    assert made[1:] in [p.tolist() for p in recorder.pieces]


@pytest.mark.parametrize(
    ("function", "rearranged"),
    [
        (lambda y: y.permute(0, 2, 3, 1), False),
        (lambda y: y.flatten(2), False),
        (lambda y: y[:, :, 1:], False),
        (lambda y: torch.roll(y, 1, 2), False),
        (lambda y: y.chunk(2, 1)[0], True),
        (lambda y: torch.roll(y, 1, 1), True),
        (lambda y: y.flatten(1), True),
    ],
)
def test_it_is_known_whether_channels_are_rearranged(function: Any, rearranged: bool) -> None:
    assert moved(function)[0].rearranged is rearranged


@pytest.mark.parametrize(
    ("function", "counted"),
    [
        (lambda y: y.permute(0, 2, 3, 1).contiguous(), False),
        (lambda y: y.mean((2, 3)), False),
        (lambda y: y * y.shape[1], True),
        (lambda y: y.flatten(2).view(-1, 4, 16), True),
        (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)), True),
        (lambda y: F.layer_norm(y.mT, y.mT.shape[3:]), True),
    ],
)
def test_it_is_known_whether_a_call_may_say_a_number_of_channels(function: Any, counted: bool) -> None:
    assert moved(function)[0].counted is counted
