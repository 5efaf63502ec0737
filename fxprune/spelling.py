"""How a call is written for the channels that are left: the shapes that are possible, and the arguments that change."""

from __future__ import annotations

__all__ = ["Recomputed", "Scaled", "labels_free", "merge", "moved_records", "restored", "shapes_left"]

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.labels import Labels
from fxprune.nested import atomic, leaves
from fxprune.records import Moved

Shape = tuple[int, ...]

_NUMBERS = (int, float, tuple, list, slice)


@atomic
@dataclass(frozen=True)
class Scaled:
    """A size that the graph computes, times a fraction: what it computes it from, as the batch, stays free.

    Attributes:
        node: What computes it.
        times, over: The fraction, in lowest terms.
        value: What it comes to for the example inputs, in the network that is left.
    """

    node: fx.Node | Recomputed
    times: int
    over: int
    value: int


@atomic
@dataclass(frozen=True)
class Recomputed:
    """A call that is made once more, with arguments that its own node does not have.

    Attributes:
        op, target, args, kwargs: As in ``torch.fx.Node``; the arguments may hold more of these.
        value: What it comes to for the example inputs, in the network that is left.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any


def moved_records(log: Sequence[Any], pieces: int, layers: int) -> list[list[Moved]]:
    """What the first reading noted for every layer of every piece that an operator gave."""
    records: list[list[Moved]] = []
    step = 0
    for _ in range(pieces):
        while not isinstance(log[step], Moved):
            step += 1
        records.append(list(log[step : step + layers]))
        step += layers
    return records


def shapes_left(records: Sequence[Sequence[Moved]], alive: NDArray[np.bool_]) -> Iterator[list[Shape]]:
    """The shapes that all pieces may have, by what is left of their layers; most likely first."""
    alternatives = [list(_piece_shapes(found, alive)) for found in records]
    for i in range(max(len(options) for options in alternatives)):
        yield [options[min(i, len(options) - 1)] for options in alternatives]


def _piece_shapes(records: Sequence[Moved], alive: NDArray[np.bool_]) -> Iterator[Shape]:
    for choice in product(*(_layer_sizes(record, alive) for record in records)):
        full = list(records[0].full)
        for sizes in choice:
            for dim, size in sizes.items():
                full[dim] = size
        yield tuple(full)


def _layer_sizes(record: Moved, alive: NDArray[np.bool_]) -> list[dict[int, int]]:
    """Sizes by dimension, for every one along which lines may choose for themselves; the fastest-varying first."""
    mask = alive[record.origin.tensor.numpy()]
    found: list[dict[int, int]] = []
    for free in sorted(record.origin.dims, reverse=True) or [-1]:
        sizes = {}
        for dim in record.origin.dims:
            others = tuple(d for d in range(mask.ndim) if d != dim)
            sizes[dim] = int(mask.sum(axis=dim).max()) if dim == free else int(mask.any(axis=others).sum())
        if sizes not in found:
            found.append(sizes)
    return found


def labels_free(value: Any) -> bool:
    """Whether a nested value holds numbers only."""
    return not any(isinstance(leaf, Labels | Tensor) for leaf in leaves(value))


def merge(raw: Any, old: Any, new: Any) -> Any:
    """Arguments with ``new`` values where they differ from ``old``, and the nodes and literals of ``raw`` elsewhere.

    Where a node gives a size that is no longer right, it is scaled.
    """
    if isinstance(new, slice) and isinstance(raw, slice):
        parts = [merge(getattr(raw, p), getattr(old, p), getattr(new, p)) for p in ("start", "stop", "step")]
        return slice(*parts)
    several = isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old)
    if several and isinstance(raw, tuple | list) and len(raw) == len(new):
        merged = [merge(r, o, n) for r, o, n in zip(raw, old, new, strict=True)]
        return merged if isinstance(new, list) else tuple(merged)
    if type(old) is type(new) and old == new:
        return raw
    if several and isinstance(raw, fx.Node) and isinstance(raw.meta["val"], tuple | list):  # else indices
        return merge(tuple(_items(raw, old)), old, new)
    sized = isinstance(raw, fx.Node | Recomputed) and type(old) is int and type(new) is int
    return _scaled(raw, old, new) if sized else new


def _items(node: fx.Node, values: Sequence[Any]) -> list[Recomputed]:
    """The items of a sequence that a node gives."""
    return [Recomputed("call_function", operator.getitem, (node, i), {}, value) for i, value in enumerate(values)]


def _scaled(node: fx.Node | Recomputed, old: int, new: int) -> Scaled | int:
    if min(old, new) <= 0:
        return new
    divisor = math.gcd(old, new)
    return Scaled(node, new // divisor, old // divisor, new)


def restored(node: fx.Node, read: Mapping[fx.Node, Any]) -> Any:
    """What gives the number that a node gave in the original network, whatever the size of the batch or the image.

    Sizes that are read off a tensor are multiplied by what it lost; what is computed from them is computed again.

    Args:
        node: Any node; one whose value is no number is given back, as is one whose value is still the same.
        read: What every node gives in the network that is left.

    Returns:
        The node, or numbers, :class:`Scaled` and :class:`Recomputed` in the form of its value.
    """
    old, new = node.meta["val"], read[node]
    if type(old) is Tensor or isinstance(old, bool) or not isinstance(old, _NUMBERS):
        return node
    if not labels_free(old) or new == old:
        return node
    shape = node.all_input_nodes[0] if node.target is operator.getitem else node  # one size of a shape is read off, too
    if all(labels_free(read[n]) for n in (*node.all_input_nodes, *shape.all_input_nodes)):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: restored(n, read))
        if node.op != "call_method" or isinstance(args[0], fx.Node):
            return Recomputed(node.op, node.target, args, kwargs, old)
    if type(old) is int and type(new) is int:
        return _scaled(node, new, old)
    if isinstance(old, tuple | list) and isinstance(new, tuple | list) and len(old) == len(new):
        return tuple(
            item if n == o else _scaled(item, n, o) if type(o) is int and type(n) is int else o
            for item, o, n in zip(_items(node, new), old, new, strict=True)
        )
    return tuple(old) if isinstance(old, torch.Size) else old
