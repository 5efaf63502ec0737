"""The lattice: which channel an element of a value depends on, for every element, without materialising them.

A value's labels are *layers*. A layer names, for every position along the dimensions in which it varies, the channel
without
which the element would not exist; along every other dimension it has size 1. An element exists if the labels of all
layers exist. Two layers never share a dimension, and within one layer every label occurs once, so a label
also names a position: that is what lets an order be followed through any data movement.
"""

from __future__ import annotations

__all__ = [
    "POSITIONS",
    "IntArray",
    "Labels",
    "Layer",
    "Lookup",
    "Reason",
    "arange",
    "broadcast",
    "compact",
    "first_per_line",
    "inhabited",
    "same",
    "spread",
]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.nested import atomic

IntArray = NDArray[np.int64]

POSITIONS = 1 << 18
"""Up to how many positions of a value are told apart: the scores of every anchor in an image are not worth it."""

_SPARE = 1 << 16
"""Bytes that a view of labels may leave unused, and more than four times its own."""


@dataclass(frozen=True)
class Reason:
    """Why channels cannot be removed.

    Attributes:
        text: What holds them, as a sentence without its end.
        node: Name of the graph node that holds them.
        where: The node's module path and source line.
    """

    text: str
    node: str = ""
    where: str = ""

    def __str__(self) -> str:
        """The reason with its place."""
        return f"{self.text} ({self.where})" if self.where else self.text


@dataclass(slots=True, eq=False)
class Layer:
    """Labels that vary along ``dims``; a value, of which nothing is ever assigned.

    Attributes:
        tensor: int64, as many dimensions as the value, size 1 along every dimension outside ``dims``.
        dims: The dimensions along which the labels vary in the original network; in a pruned one they may have size 1.
        line: The labels in a row, if they vary along one dimension and were placed there.
    """

    tensor: Tensor
    dims: tuple[int, ...]
    line: Tensor | None = None


@atomic
@dataclass(slots=True, eq=False)
class Labels:
    """Labels of a tensor value; as a value, nothing of it is ever assigned.

    Attributes:
        full: The value's shape in the original network.
        layers: The layers; none where no channel of the value can be removed.
        why: Why dimensions without a layer have a fixed size, where that is known.
        parameter: Name of the parameter or buffer, if the value is one as it stands.
    """

    full: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    why: Reason | None = None
    parameter: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape in the network that is being read."""
        if not self.layers:
            return self.full
        sizes = list(self.full)
        for layer in self.layers:
            now = layer.tensor.shape
            for dim in layer.dims:
                sizes[dim] = now[dim]
        return tuple(sizes)

    def on(self, dims: Iterable[int]) -> list[Layer]:
        """The layers that vary along any of ``dims``."""
        wanted = frozenset(dims)
        return [layer for layer in self.layers if not wanted.isdisjoint(layer.dims)]

    def off(self, dims: Iterable[int]) -> list[Layer]:
        """The layers that vary along none of ``dims``."""
        wanted = frozenset(dims)
        return [layer for layer in self.layers if wanted.isdisjoint(layer.dims)]


def spread(layer: Layer, shape: tuple[int, ...]) -> Tensor:
    """The label of every element of a value of that shape, as a view without memory of its own."""
    tensor = layer.tensor
    return tensor if tensor.shape == shape else tensor.expand(shape)


def compact(tensor: Tensor) -> Layer:
    """Find the dimensions along which labels vary, and store them once along the others."""
    dims = []
    strides = tensor.stride()
    for dim, size in enumerate(tensor.shape):
        if size > 1 and strides[dim] == 0:
            tensor = tensor.narrow(dim, 0, 1)
    array: IntArray = tensor.numpy()
    corner = (0,) * array.ndim
    for dim, size in enumerate(array.shape):
        if size > 1:
            beside = (*corner[:dim], 1, *corner[dim + 1 :])
            first = tensor.narrow(dim, 0, 1)
            if array[beside] != array[corner] or tensor.ne(first).any():  # as a rule one look tells
                dims.append(dim)
            else:
                tensor = first
    if tensor.untyped_storage().nbytes() > _SPARE + 4 * tensor.nbytes:
        tensor = tensor.clone()  # or it would hold all that an operator made
    return Layer(tensor, tuple(dims))


def inhabited(tensor: Tensor) -> Tensor | None:
    """The labels of an empty value as though it had a position along every empty dimension.

    None if they vary along one of these, or if the operator that made it gave no view.
    """
    if tensor.numel():
        return tensor
    size = tensor.element_size()
    if any(n == 0 and stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return None
    shape = [max(n, 1) for n in tensor.shape]
    last = tensor.storage_offset() + sum((n - 1) * stride for n, stride in zip(shape, tensor.stride(), strict=True))
    return tensor.as_strided(shape, tensor.stride()) if size * (last + 1) <= tensor.untyped_storage().nbytes() else None


def first_per_line(layer: Layer, dim: int) -> Tensor:
    """The labels along ``dim`` at the first position of every other dimension; shape ``(size of dim,)``."""
    if layer.line is not None:
        return layer.line
    tensor = layer.tensor
    for other in layer.dims:
        if other != dim:
            tensor = tensor.narrow(other, 0, 1)
    return tensor.reshape(-1)


@dataclass
class Lookup:
    """A function from tuples of labels to an integer, given by its table; vectorised in both directions of use.

    Args:
        columns: One array of labels for each member of the tuple, all of one length.
        values: The integer for each tuple.
    """

    columns: tuple[IntArray, ...]
    values: IntArray

    @cached_property
    def _base(self) -> int:
        return 1 + max((int(c.max()) for c in self.columns if c.size), default=0)

    @cached_property
    def _order(self) -> IntArray:
        return np.argsort(self._key(self.columns), kind="stable")

    @cached_property
    def _keys(self) -> IntArray:
        return self._key(self.columns)[self._order]

    def _key(self, columns: Sequence[IntArray]) -> IntArray:
        key: IntArray = np.zeros_like(columns[0])
        for column in columns:
            key = key * self._base + column
        return key

    def __call__(self, *columns: Any, counting: bool = False) -> IntArray:
        """Look tuples up; -1 for those not in the table.

        Args:
            columns: One array for each member of the tuple.
            counting: Give the k-th occurrence of a tuple the k-th value that the table has for it, not the first.
        """
        flat = [np.asarray(c).reshape(-1) for c in columns]
        key = self._key(flat)
        start = np.searchsorted(self._keys, key, side="left")
        stop = np.searchsorted(self._keys, key, side="right")
        position = start + _occurrence(key) if counting else start
        found = position < stop
        for column in flat:
            found &= column < self._base
        result = np.full(key.shape, -1, dtype=np.int64)
        result[found] = self.values[self._order[position[found]]]
        return result

    def survivors(self, alive: NDArray[np.bool_], labels: IntArray, counting: bool = False) -> IntArray:
        """Look labels up that may be those of the table that are alive, in their order, which is seen at a glance."""
        left = alive[self.columns[0]]
        if same(labels.reshape(-1), self.columns[0][left]):
            return self.values[left]
        return self(labels, counting=counting)

    def has(self, *columns: Any) -> bool:
        """Whether every tuple stands in the table."""
        flat = [np.asarray(c).reshape(-1) for c in columns]
        if any((c >= self._base).any() for c in flat):
            return False
        key = self._key(flat)
        found = (
            self._keys[np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)] if len(self._keys) else key + 1
        )
        return bool((found == key).all())


def _occurrence(key: IntArray) -> IntArray:
    """For every element, how many equal ones stand before it."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1] if ordered.size else np.zeros(0, dtype=np.int64)
    rank = np.arange(ordered.size)
    if ordered.size:
        rank = rank - np.repeat(starts, np.diff(np.r_[starts, ordered.size]))
    result = np.empty_like(rank)
    result[order] = rank
    return result


def same(a: IntArray, b: IntArray) -> bool:
    """``np.array_equal`` for two arrays of labels; of the small ones that most are, bytes compare ten times faster."""
    if a.size > 1024:
        return bool(np.array_equal(a, b))
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def broadcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors expanded to their common shape.

    Raises:
        RuntimeError: They have none.
    """
    if len({tensor.shape for tensor in tensors}) == 1:
        return tensors
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]


def arange(first: int, count: int) -> Tensor:
    """New label names."""
    return torch.from_numpy(np.arange(first, first + count))  # faster than torch's for as few as channels are
