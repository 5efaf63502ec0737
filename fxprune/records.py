"""What the readings write down: the constraints of the first, and what the second finds that has to change."""

from __future__ import annotations

__all__ = [
    "Change",
    "Conflict",
    "Cover",
    "Found",
    "Freeze",
    "Inexact",
    "Moved",
    "Read",
    "Rect",
    "Tie",
    "lines_of",
    "numbers",
    "with_argument",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxprune.labels import IntArray, Layer, Lookup, Reason
from fxprune.vocabulary import Axis


class Tie(NamedTuple):
    """Labels at equal positions live or die together."""

    a: IntArray
    b: IntArray
    node: str


class Freeze(NamedTuple):
    """Labels that are never removed."""

    labels: IntArray
    reason: Reason


class Cover(NamedTuple):
    """``parent[i]`` exists if any of ``child[i, :]`` does; without a parent the position itself always stays."""

    parent: IntArray | None
    child: IntArray
    node: str
    text: str


class Rect(NamedTuple):
    """Labels whose survivors must form a rectangular tensor.

    Attributes:
        labels: One array dimension for each dimension along which they vary.
        free: The dimension along which every line may choose its own, if only one will do.
        node: The graph node.
    """

    labels: IntArray
    free: int | None
    node: str


class Read(NamedTuple):
    """A sum over channels: where the proof zeroes what was removed."""

    node: str
    position: int | str
    full: tuple[int, ...]
    layers: tuple[Layer, ...]


class Inexact(NamedTuple):
    """A computation along lines: removing a part of a line changes it, removing all of it does not."""

    node: str
    lines: IntArray
    text: str


class Moved(NamedTuple):
    """What became of one layer that was moved.

    Attributes:
        full: The shape of the value.
        origin: The labels before they were renamed, compact.
        layer: The layer as it goes on, or None where it holds a single channel, which is frozen.
        renamed: New names for labels that occurred more than once.
        channels: How many labels the layer had before.
    """

    full: tuple[int, ...]
    origin: Layer
    layer: Layer | None
    renamed: Lookup | None
    channels: int


def numbers(tensor: Tensor) -> IntArray:
    """A label tensor as a flat array."""
    array: IntArray = tensor.numpy()
    return array if array.ndim == 1 else array.reshape(-1)


class Conflict(Exception):
    """The plan cannot be carried out at a node.

    Attributes:
        labels: The labels that do not line up there.
        node: Name of the node.
        place: What is wrong, and where.
    """

    def __init__(self, labels: IntArray, node: str, place: str) -> None:
        super().__init__(place)
        self.labels = labels
        self.node = node
        self.place = place


@dataclass(frozen=True)
class Change:
    """What a node's call becomes.

    Attributes:
        op, target, args, kwargs: As in ``torch.fx.Node``.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def with_argument(
    node: fx.Node, known: Change | None, position: int | None, name: str, new: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, or of what it becomes, with another value for one of them."""
    args, kwargs = (known.args, known.kwargs) if known is not None else (node.args, node.kwargs)
    if position is not None and position < len(args):
        return (*args[:position], new, *args[position + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: new}


@dataclass(frozen=True)
class Found:
    """What a reading from kept channels finds.

    Attributes:
        axes: What every indexed dimension keeps, in order, as labels.
        changes: What becomes of nodes that name sizes.
        attributes: What becomes of attributes of layers, by layer and name.
        place: For a permutation, the label that takes each label's place.
    """

    axes: Mapping[Axis, Tensor]
    changes: Mapping[str, Change]
    attributes: Mapping[tuple[str, str], Any]
    place: IntArray | None = None


def lines_of(tensor: Tensor, dims: Sequence[int]) -> IntArray:
    """Labels as an array of one row for each position outside ``dims``."""
    rest = [d for d in range(tensor.dim()) if d not in dims]
    moved = tensor.permute(*rest, *dims)
    size = 1
    for d in dims:
        size *= tensor.shape[d]
    result: IntArray = moved.reshape(-1, size).numpy()
    return result
