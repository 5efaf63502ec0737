"""What a rule can say: the words that the table of rules is written in, and that each reading gives its own sense."""

from __future__ import annotations

__all__ = ["Axis", "Call", "Declined", "Use", "Vocabulary", "apart", "axis_length", "labels_in"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fxprune.labels import Labels, Layer, Reason
from fxprune.nested import leaves
from fxprune.rules.table import Rule


class Declined(Exception):
    """Raised by a rule that does not cover a call: the node is then opaque, for the reason given."""


class Axis(NamedTuple):
    """A dimension of a parameter or buffer that channels index.

    Attributes:
        tensor: Qualified name of the tensor.
        dim: The dimension.
        groups: More than 1 for the input dimension of a grouped convolution's weight, whose every block of output rows
            reads channels of its own; the axis then has ``groups * size`` entries.
    """

    tensor: str
    dim: int
    groups: int = 1


class Use(NamedTuple):
    """One layer's relation to channels.

    Attributes:
        role: ``"producer"``, ``"follower"`` or ``"consumer"``.
        layer: Qualified name of the layer.
        axis: The tensor dimension that is indexed.
        labels: The labels along it, shape ``(channels,)``.
        node: Name of the graph node.
    """

    role: str
    layer: str
    axis: Axis
    labels: Tensor
    node: str


@dataclass(frozen=True)
class Call:
    """A way to write the current node's call.

    Attributes:
        args, kwargs: The arguments after the tensor.
        op, target: Another operator, where the node's own cannot say it.
        function: How that one runs on a tensor.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    op: str | None = None
    target: Any = None
    function: Callable[..., Any] | None = None


def axis_length(tensor: Tensor, axis: Axis) -> int:
    """How many channels an axis indexes."""
    return int(tensor.shape[axis.dim]) * axis.groups


def apart(layers: Sequence[tuple[tuple[int, ...], int]]) -> list[int]:
    """Which layers stay where several vary along one dimension: those of most channels, the first of equals.

    Args:
        layers: The dimensions of each, and its number of channels.

    Returns:
        Their indices, those of most channels first.
    """
    kept: list[int] = []
    for i in sorted(range(len(layers)), key=lambda i: -layers[i][1]):
        if not any(set(layers[i][0]) & set(layers[j][0]) for j in kept):
            kept.append(i)
    return kept


def labels_in(value: Any) -> list[Labels]:
    """All labels in a nested value."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Labels)]


class Vocabulary(ABC):
    """What the rules may ask of a reading."""

    @abstractmethod
    def fact(self, value: Any) -> Any:
        """What the rule found in the original network, where the pruned one may say otherwise."""

    @abstractmethod
    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter or buffer in the original network."""

    @abstractmethod
    def numbers(self, rule: Rule | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Numbers that a call calculates with keep the values that they had in the original network."""

    @abstractmethod
    def parameter(self, name: str) -> Labels:
        """Labels of a parameter or buffer that is used as a value: one layer for each dimension."""

    @abstractmethod
    def fixed(self, count: int, why: Reason | str) -> Tensor:
        """Names for channels that stay; shape ``(count,)``."""

    @abstractmethod
    def produce(self, axis: Axis, layer: str) -> Tensor:
        """Names of the channels that a layer makes; shape ``(axis_length,)``."""

    @abstractmethod
    def consume(self, axis: Axis, layer: str, labels: Tensor, role: str) -> None:
        """A layer's tensor is indexed by these channels, in this order."""

    @abstractmethod
    def weigh(self, labels: Tensor, role: str) -> None:
        """Channels that a computed weight makes or reads are those of the parameter that it is computed from."""

    @abstractmethod
    def tie(self, a: Tensor, b: Tensor) -> None:
        """Channels at equal positions of two equally shaped tensors live or die together."""

    @abstractmethod
    def freeze(self, labels: Tensor, text: str) -> None:
        """These channels are never removed."""

    @abstractmethod
    def pin(self, layer: Layer, dims: Sequence[int], text: str) -> None:
        """The positions along ``dims`` of a layer all stay, though not every channel at them need."""

    @abstractmethod
    def outer(self, layer: Layer, dims: Sequence[int]) -> Layer | None:
        """The layer without ``dims``: a position of it exists if any along ``dims`` does."""

    @abstractmethod
    def cover(self, parent: Layer, child: Layer, dims: Sequence[int]) -> None:
        """``parent`` stands for all positions of ``child`` along ``dims``: it exists if any of them does."""

    @abstractmethod
    def blocks(self, labels: Tensor) -> None:
        """Every row of ``labels``, shape ``(blocks, size)``, keeps the same number of channels."""

    @abstractmethod
    def heads(self, layer: Layer, dims: Sequence[int]) -> None:
        """A product runs by itself at every position along ``dims``: whoever removes whole heads removes those."""

    @abstractmethod
    def move(
        self, function: Callable[..., Any], value: Labels, args: tuple[Any, ...], kwargs: Mapping[str, Any], spell: Any
    ) -> Any:
        """What an operator that only moves elements does to labels: run it on them."""

    @abstractmethod
    def join(self, make: Callable[[], Tensor], free: int | None = None) -> Layer | None:
        """The labels of several tensors that are put together.

        Args:
            make: Puts the labels together; with those that are left it may fail.
            free: The dimension along which the parts may choose channels of their own, if only that will do.
        """

    @abstractmethod
    def reads(self, position: int | str, labels: Labels, layers: Sequence[Layer]) -> None:
        """The current node sums over the channels of ``layers`` in its argument ``position``."""

    @abstractmethod
    def inexact(self, layers: Sequence[Layer], dims: Sequence[int], text: str) -> None:
        """The current node computes over ``dims`` something that removing a part of the channels along them changes."""

    @abstractmethod
    def filler(self, count: int) -> Tensor:
        """Names for channels that an operator adds and that hold no information; shape ``(count,)``."""

    @abstractmethod
    def argument(self, position: int | None, name: str, new: Any, old: Any) -> None:
        """The current call's argument has to be ``new`` where it was ``old``."""

    @abstractmethod
    def counted_argument(
        self, position: int | None, name: str, labels: Tensor, count: Callable[[int], Any], old: Any
    ) -> None:
        """The current call's argument, which was ``old``, says how many channels ``labels`` are."""

    @abstractmethod
    def attribute_value(self, name: str, value: Any) -> None:
        """The called layer's attribute ``name`` has to be ``value``."""

    @abstractmethod
    def ordered(self, layers: Sequence[Layer]) -> None:
        """What the current node computes depends on the order of these channels."""

    @abstractmethod
    def attribute(self, name: str, labels: Tensor | None, count: Callable[[int], Any] | None = None) -> None:
        """The called layer's attribute ``name`` says how many channels ``labels`` are."""
