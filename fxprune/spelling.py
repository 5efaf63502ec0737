"""How a call is written for the channels that are left: the shapes that are possible, and the arguments that change."""

from __future__ import annotations

__all__ = ["Item", "Scaled", "labels_free", "merge", "moved_records", "shapes_left"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.labels import Labels
from fxprune.nested import leaves
from fxprune.recorder import Moved

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Scaled:
    """A size that the graph computes, times a fraction: what it computes it from, as the batch, stays free.

    Attributes:
        node: The node that computes it.
        times, over: The fraction, in lowest terms.
    """

    node: fx.Node
    times: int
    over: int


@dataclass(frozen=True)
class Item:
    """One of the sizes of a shape that the graph reads off, which stays free.

    Attributes:
        node: The node that gives the shape.
        index: Which of them.
    """

    node: fx.Node
    index: int


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
    if isinstance(new, tuple | list) and isinstance(raw, tuple | list) and len(new) == len(raw) == len(old):
        return type(new)([merge(r, o, n) for r, o, n in zip(raw, old, new, strict=True)])
    if type(old) is type(new) and old == new:
        return raw
    if isinstance(raw, fx.Node) and type(old) is int and type(new) is int and min(old, new) > 0:
        divisor = math.gcd(old, new)
        return Scaled(raw, new // divisor, old // divisor)
    return new
