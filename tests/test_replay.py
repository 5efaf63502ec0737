from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import Net, images, prove
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxprune.analysis import read, resolve
from fxprune.capture import trace
from fxprune.errors import InternalError
from fxprune.models import randomize
from fxprune.nested import modules_by_name
from fxprune.recorder import Recorder
from fxprune.records import Conflict, numbers
from fxprune.replay import Replay
from fxprune.spelling import Recomputed, Scaled
from fxprune.structure import Refinement
from fxprune.vocabulary import Axis


class Reader:
    """A network's first reading, to be read again from chosen channels."""

    def __init__(self, function: Callable[[Any, Any], Any], channels: int = 8, **members: Any) -> None:
        members.setdefault("b", nn.Conv2d(channels, 6, 1))
        self.model = Net(lambda s, x: s.end(function(s, s.a(x))), **members)
        self.gm: fx.GraphModule = trace(self.model, images())
        self.recorder: Recorder = read(self.gm)

    def alive(self, gone: dict[str, list[int]]) -> NDArray[np.bool_]:
        """Which labels are left without these outputs of layers, and what goes with them."""
        structure = resolve(self.recorder, Refinement())
        kept = np.ones(structure.units, dtype=bool)
        for name, indices in gone.items():
            labels = numbers(self.recorder.axes[Axis(name, 0)])[indices]
            kept[structure.unit[labels]] = False
        return structure.alive(kept)

    def again(self, gone: dict[str, list[int]]) -> Replay:
        replay = Replay(self.gm, self.recorder, self.alive(gone))
        replay.run()
        return replay

    def indices(self, replay: Replay, tensor: str, dim: int) -> list[int]:
        """What a dimension keeps, as positions of the original."""
        full = self.recorder.axes[Axis(tensor, dim)].tolist()
        return [full.index(label) for label in replay.axes[Axis(tensor, dim)].tolist()]


def _shuffled(s: Any, y: Any) -> Any:
    return y.view(y.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(y.shape[0], 8, 6, 6)


@pytest.mark.parametrize(
    ("function", "gone", "read"),
    [
        (lambda s, y: y, [1, 6], [0, 2, 3, 4, 5, 7]),
        (lambda s, y: y.flip(1), [1, 6], [0, 2, 3, 4, 5, 7]),
        (lambda s, y: y.flip(1), [0, 1], [0, 1, 2, 3, 4, 5]),
        (lambda s, y: torch.roll(y, 3, 1), [0, 1], [0, 1, 2, 5, 6, 7]),
        (_shuffled, [1, 6], [0, 1, 3, 4, 6, 7]),
    ],
)
def test_a_reader_is_gathered_in_the_order_in_which_channels_arrive(
    function: Callable[[Any, Any], Any], gone: list[int], read: list[int]
) -> None:
    reader = Reader(function)
    replay = reader.again({"a.weight": gone})
    assert reader.indices(replay, "a.weight", 0) == [i for i in range(8) if i not in gone]
    arrives = function(reader.model, torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 6, 6))[0, :, 0, 0].tolist()
    kept = reader.indices(replay, "b.weight", 1)
    assert sorted(kept) == read
    # The channels behind these positions are those that are left, in the order in which the smaller tensor holds them.
    left = [i for i in range(8) if i not in gone]
    small = torch.tensor([float(i) for i in left])
    if function is _shuffled:
        expected = small.view(2, 3).t().reshape(-1).tolist()
    else:
        expected = function(reader.model, small.view(1, -1, 1, 1).expand(2, -1, 6, 6))[0, :, 0, 0].tolist()
    assert [arrives[i] for i in kept] == expected


def test_sizes_that_were_written_down_change_and_others_do_not() -> None:
    reader = Reader(_shuffled)
    replay = reader.again({"a.weight": [1, 6]})
    assert {name: change.args[1:] for name, change in replay.changes.items()} == {
        "view": (replay.changes["view"].args[1], 2, 3, 6, 6),
        "reshape": (replay.changes["reshape"].args[1], 6, 6, 6),
    }
    assert isinstance(replay.changes["view"].args[1], fx.Node)
    assert not reader.again({}).changes


def test_attributes_say_what_is_true() -> None:
    reader = Reader(lambda s, y: s.dw(s.norm(y)), norm=nn.BatchNorm2d(8), dw=nn.Conv2d(8, 16, 1, groups=8), channels=16)
    replay = reader.again({"a.weight": [1, 6]})
    found = {key: value for key, value in replay.attributes.items() if key[0] in ("a", "norm", "dw")}
    assert found[("a", "out_channels")] == 6
    assert found[("norm", "num_features")] == 6
    assert (found[("dw", "in_channels")], found[("dw", "out_channels")], found[("dw", "groups")]) == (6, 12, 6)


@pytest.mark.parametrize(
    ("function", "members", "gone", "text"),
    [
        (
            lambda s, y: s.g(y),
            {"g": nn.Conv2d(8, 8, 1, groups=2)},
            {"a.weight": [0, 1]},
            "a block holds channels of another",
        ),
        (
            lambda s, y: s.g(y),
            {"g": nn.GroupNorm(4, 8)},
            {"a.weight": [0, 1, 2, 4]},
            "a block holds channels of another",
        ),
        (_shuffled, {}, {"a.weight": [0, 1]}, "what is left cannot be moved as the network moves it"),
        (
            lambda s, y: y.view(-1, 2, 4, 36).sum(2)[..., None].repeat(1, 4, 1, 1),
            {},
            {"a.weight": [0, 1]},
            "cannot be moved",
        ),
    ],
)
def test_what_does_not_line_up_is_a_conflict_with_its_labels_and_place(
    function: Callable[[Any, Any], Any], members: dict[str, Any], gone: dict[str, list[int]], text: str
) -> None:
    reader = Reader(function, **members)
    with pytest.raises(Conflict, match=text) as caught:
        reader.again(gone)
    assert caught.value.node in {n.name for n in reader.gm.graph.nodes}
    assert "tests/test_replay.py:" in caught.value.place
    assert caught.value.labels.size


def test_blocks_of_unequal_size_are_a_conflict() -> None:
    reader = Reader(lambda s, y: s.g(y), g=nn.GroupNorm(4, 8))
    with pytest.raises(Conflict):
        reader.again({"a.weight": [0, 1]})


def test_numbers_that_are_calculated_with_keep_their_values() -> None:
    reader = Reader(lambda s, y: y * (y.shape[1] ** -0.5) + y.size(1))
    replay = reader.again({"a.weight": [0]})
    written = [v for change in replay.changes.values() for v in change.args if isinstance(v, Recomputed | Scaled)]
    assert [v.value for v in written] == [8**-0.5, 8]


@pytest.mark.parametrize("spoil", ["tensor", "size"])
def test_a_wrong_rewrite_does_not_go_unnoticed(spoil: str) -> None:
    found = prove(Net(lambda s, x: s.end(_shuffled(s, s.a(x))), b=nn.Conv2d(8, 6, 1)))
    structure = found.plan.structure
    wrong = copy.deepcopy(found.small)
    for node in wrong.graph.nodes:
        node.meta = dict(next(n.meta for n in found.deps.gm.graph.nodes if n.name == node.name))
    if spoil == "tensor":
        wrong.b.weight = nn.Parameter(wrong.b.weight[:, 1:])
    else:
        view = next(n for n in wrong.graph.nodes if n.name == "view")
        view.args = (*view.args[:2], 1, 4, *view.args[4:])
    with pytest.raises(InternalError):
        Replay(wrong, structure.recorder, structure.alive(found.plan.kept), rewritten=modules_by_name(wrong)).run()


def test_a_right_rewrite_is_recognised() -> None:
    found = prove(Net(lambda s, x: s.end(_shuffled(s, s.a(x))), b=nn.Conv2d(8, 6, 1)))
    structure = found.plan.structure
    right = copy.deepcopy(found.small)
    for node in right.graph.nodes:
        node.meta = dict(next(n.meta for n in found.deps.gm.graph.nodes if n.name == node.name))
    replay = Replay(right, structure.recorder, structure.alive(found.plan.kept), rewritten=modules_by_name(right))
    replay.run()
    assert not replay.changes


def test_a_permutation_arrives_everywhere() -> None:
    reader = Reader(lambda s, y: s.norm(y.flip(1)), norm=nn.BatchNorm2d(8))
    randomize(reader.model)
    place = np.arange(reader.recorder.count)
    made = numbers(reader.recorder.axes[Axis("a.weight", 0)])
    order = [3, 0, 1, 2, 7, 6, 5, 4]
    place[made] = made[order]
    replay = Replay(reader.gm, reader.recorder, np.ones(reader.recorder.count, dtype=bool), place)
    replay.run()
    assert reader.indices(replay, "a.weight", 0) == order
    assert reader.indices(replay, "norm.weight", 0) == [7 - i for i in reversed(order)]
    assert reader.indices(replay, "b.weight", 1) == [7 - i for i in reversed(order)]


class Unfolded(nn.Module):
    """Channels folded into the batch with rows of patches, as MobileViT does: more than 8192 names of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 144, 1)
        self.mix = nn.Linear(144, 144)
        self.other = nn.Conv2d(144, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        b, c, h, w = y.shape
        y = y.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2)
        y = self.mix(y.reshape(b, c, h * w // 4, 4).transpose(1, 3))
        y = y.transpose(1, 3).reshape(b * c * (h // 2), w // 2, 2, 2)
        return self.head(self.other(y.transpose(1, 2).reshape(b, c, h, w)))


def test_channels_that_all_stay_where_they_have_many_names() -> None:
    """NumPy's unravel_index is wrong for large arrays with dimensions of size 1: nothing but all of it could go."""
    proven = prove(Unfolded(), torch.randn(1, 3, 16, 16), {"other": 0.5})
    assert proven.plan.layers["other"].outputs is not None
    assert proven.proof.max_relative_error < 1e-12
