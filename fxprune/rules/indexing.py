"""Positions that are picked: by slices, by numbers, by constants, and by what the network computes.

What a slice or a constant picks is known by name, so that the call can be written for the channels that are left.
"""

from __future__ import annotations

__all__: list[str] = []

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.labels import IntArray, Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import meet
from fxprune.rules.table import rule
from fxprune.vocabulary import Call, Declined, labels_in

Shape = tuple[int, ...]


class _Index:
    """Stands for a tensor of indices among the parts of an index."""

    def __init__(self, labels: Labels) -> None:
        self.rank = len(labels.full)
        self.positions = torch.zeros(labels.full, dtype=torch.int64)


def _index(tensor: Tensor, index: Any) -> Tensor:
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [i for i, part in enumerate(parts) if isinstance(part, _Index)]
    if len(tensors) == 1 and all(type(p) in (slice, type(None), _Index) for p in parts):
        at = tensors[0]
        dim = sum(p is not None for p in parts[:at])
        if tensor.shape[dim] and not tensor.stride(dim):  # whatever is picked, it is the same
            at_first = tuple(0 if i == at else part for i, part in enumerate(parts))
            first, picked = tensor[at_first], parts[at].positions.shape
            apart = first[(slice(None),) * at + (None,) * len(picked)]
            return apart.expand(*first.shape[:at], *picked, *first.shape[at:])
    return tensor[tuple(p.positions if isinstance(p, _Index) else p for p in parts)]


def _parts(index: Any, rank: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [p if p is Ellipsis else None for p in parts]:
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        used = sum(p is not None and p is not Ellipsis for p in parts)
        parts[at : at + 1] = [slice(None)] * (rank - used)
    return parts


class _Picked:
    """Which channels the parts of an index pick, by dimension, and where they stand among those that are left."""

    def __init__(self, ctx: Reading, x: Labels, parts: list[Any]) -> None:
        self._channels: dict[int, IntArray] = {}
        for dim, part in enumerate(p for p in parts if p is not None):
            line = _line(x, dim)
            if line is not None and isinstance(part, slice | list) and part != slice(None):
                picked = line[part] if isinstance(part, slice) else line.take(part, mode="wrap")
                self._channels[dim] = ctx.fact(picked)

    def __contains__(self, dim: int) -> bool:
        return dim in self._channels

    def now(self, x: Labels, dim: int) -> IntArray:
        """The positions of what is left of them."""
        line, wanted = _line(x, dim), self._channels[dim]
        assert line is not None
        order = np.argsort(line)
        found = order[np.searchsorted(line, wanted, sorter=order).clip(max=len(line) - 1)]
        positions: IntArray = found[line[found] == wanted]
        return positions


def _line(x: Labels, dim: int) -> IntArray | None:
    """The labels along a dimension, if they vary along no other as well."""
    layers = [layer for layer in x.layers if layer.dims == (dim,)]
    return layers[0].tensor.reshape(-1).numpy() if layers else None


def _as_slice(positions: IntArray) -> slice | list[int]:
    """Positions as a slice if one says it, which gives a view, or as a list, which gives a copy."""
    steps = np.diff(positions)
    if len(positions) and (not len(steps) or (steps[0] > 0 and (steps == steps[0]).all())):
        step = int(steps[0]) if len(steps) else 1
        bounds = int(positions[0]), int(positions[-1]) + 1
        return slice(*bounds) if step == 1 else slice(*bounds, step)
    return [int(p) for p in positions]


def _pick(ctx: Reading, x: Labels, index: tuple[Any, ...], as_call: Any = None, run: Any = None) -> Any:
    """Run an index on labels; where sizes are the original's, write it for the positions that channels have now.

    Args:
        ctx: The reading.
        x: What is indexed.
        index: As for ``Tensor.__getitem__``.
        as_call: For an operator other than ``[]``, from a new index to arguments, or to None if it cannot say it.
        run: For such an operator, how it runs on a tensor and its arguments.
    """
    picked = _Picked(ctx, x, _parts(index, len(x.full)))

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        for parts in _spellings(x, shapes[0], _parts(index, len(x.full)), picked, ctx.written_later):
            if as_call is None:
                yield Call((parts,), {})
            elif (own := as_call(parts)) is not None:
                yield Call(own, {})
            else:
                yield Call((parts,), {}, "call_function", operator.getitem, _index)

    if as_call is None:
        return ctx.move(_index, x, (index,), {}, spell)
    return ctx.move(run, x, ctx.arguments(ctx.node.args[1:]), {}, spell)


def _spellings(
    x: Labels, out: Shape, parts: list[Any], picked: _Picked, shared: Callable[[], bool]
) -> Iterator[tuple[Any, ...]]:
    """Slices with the bounds, and numbers with the positions, that channels have now.

    Args:
        x: What is indexed.
        out: The shape that is wanted.
        parts: The index.
        picked: What it picks.
        shared: Whether it matters that the result is a view.
    """
    options: list[list[Any]] = []
    dim, at = 0, 0
    for part in parts:
        if part is None:
            options.append([None])
            at += 1
            continue
        size, old = x.shape[dim], x.full[dim]
        if dim in picked and size != old:
            positions = picked.now(x, dim)
            written = _as_slice(positions) if isinstance(part, slice) else [int(p) for p in positions]
            if isinstance(written, list) and any(isinstance(p, int | _Index) for p in parts):
                return  # two indices that are no slices would be taken together
            if isinstance(written, list) and isinstance(part, slice) and shared():
                return
            options.append([written])
        elif isinstance(part, slice) and part != slice(None) and size != old:
            options.append([slice(first, first + out[at]) for first in range(size - out[at] + 1)])
        elif isinstance(part, int) and size != old:
            options.append(list(range(size)))
        else:
            options.append([part])
        at += part.rank if isinstance(part, _Index) else not isinstance(part, int)
        dim += 1
    varied = [i for i, found in enumerate(options) if len(found) > 1]
    if len(varied) <= 1 and all(options):
        at = varied[0] if varied else 0
        for choice in options[at]:
            index = [found[0] for found in options]
            index[at] = choice
            yield tuple(index)


# Operators ------------------------------------------------------------------------------------------------------------


@rule(operator.setitem, sizes=True)
def setitem(ctx: Reading, x: Any, index: Any, value: Any) -> None:
    """A write into a part of a tensor: what it is written into, and what is written, stay whole."""
    for part in (x, index, value):
        for labels in labels_in(part):
            ctx.freeze_all(labels, "a part of it is written to")


@rule(operator.getitem, sizes=True)
def getitem(ctx: Reading, x: Any, index: Any) -> Any:
    """Indexing of tensors by slices, numbers and one list or tensor; of tuples and shapes as Python does.

    What a tensor that the network computes picks from stays whole: which positions it picks is not known before.
    """
    if not isinstance(x, Labels):
        return x[index]
    parts = _parts(index, len(x.full))
    picked = [i for i, p in enumerate(parts) if isinstance(p, Labels | Tensor | list)]
    if not picked:
        return _pick(ctx, x, index if isinstance(index, tuple) else (index,))
    if len(picked) > 1 or _by_mask(ctx):
        raise Declined("indexing by a mask or several tensors has no rule")
    return _pick_by(ctx, x, parts, picked[0])


def _pick_by(ctx: Reading, x: Labels, parts: list[Any], at: int, as_call: Any = None) -> Any:
    """Index by parts, of which one is a list or a tensor of indices."""
    dim = sum(p is not None for p in parts[:at])
    known = _constant(ctx, parts[at])
    alone = all(p is None or isinstance(p, slice) for p in parts[:at] + parts[at + 1 :])
    line = _line(x, dim)
    if known is not None and alone and line is not None and x.parameter is None:
        parts[at] = known
        return _pick(ctx, x, tuple(parts), as_call, lambda t, *_: _index(t, tuple(parts)))
    if not isinstance(parts[at], Labels):
        if known is None:
            raise Declined("indexing by nested lists has no rule")
        parts[at] = Labels((len(known),))
    ctx.freeze_all(parts[at], "it holds indices")
    for layer in x.on([dim]):
        ctx.freeze(layer.tensor, "a tensor of indices picks from it")
    value = Labels(x.full, tuple(x.off([dim])), x.why)
    parts[at] = _Index(parts[at])
    return _pick(ctx, value, tuple(parts), as_call, lambda t, *_: _index(t, tuple(parts)))


def _constant(ctx: Reading, part: Any) -> list[int] | None:
    """The indices, if they are written in the code or held by the model."""
    if isinstance(part, Labels) and part.parameter and len(part.full) == 1:
        part = ctx.original(part.parameter)
        numbers = not (part.is_meta or part.is_floating_point() or part.is_complex() or part.dtype is torch.bool)
        return part.tolist() or None if numbers else None
    good = isinstance(part, list) and part and all(type(i) is int for i in part)
    return list(part) if good else None


def _by_mask(ctx: Reading) -> bool:
    kinds = [getattr(node.meta["val"], "dtype", None) for node in ctx.node.all_input_nodes[1:]]
    return torch.bool in kinds or torch.uint8 in kinds


@rule("index_select", torch.index_select, sizes=True)
def index_select(ctx: Reading, input: Labels, dim: int, index: Labels) -> Any:
    """Positions along a dimension, picked by a tensor."""
    dim %= len(input.full)
    return _pick_by(ctx, input, [*[slice(None)] * dim, index], dim, lambda parts: None)


@rule("gather", torch.gather)
def gather(ctx: Reading, input: Labels, dim: int, index: Labels, **kwargs: Any) -> Labels:
    """Positions along a dimension, picked at every position along the others."""
    dim %= len(input.full)
    for layer in input.on([dim]):
        ctx.freeze(layer.tensor, "a tensor of indices picks from it")
    others = tuple(1 if d == dim else size for d, size in enumerate(input.full))
    if others != tuple(1 if d == dim else size for d, size in enumerate(index.full)):
        raise Declined("a gather from a part of the positions has no rule")
    return meet(ctx, [Labels(others, tuple(input.off([dim])), input.why), index], index.full)


@rule("narrow", torch.narrow, sizes=True)
def narrow(ctx: Reading, input: Labels, dim: int, start: int, length: int) -> Any:
    """A run of positions along a dimension."""

    def as_call(parts: tuple[Any, ...]) -> tuple[Any, ...] | None:
        part = parts[-1]
        run = isinstance(part, slice) and part.step is None
        return (dim, part.start, part.stop - part.start) if run else None

    start += input.shape[dim] if start < 0 else 0
    head = [slice(None)] * (dim % len(input.full))
    return _pick(ctx, input, (*head, slice(start, start + length)), as_call, lambda t, *a: t.narrow(*a))


@rule("select", torch.select, sizes=True)
def select(ctx: Reading, input: Labels, dim: int, index: int) -> Any:
    """One position along a dimension."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        for position in range(x.shape[args[0]]):
            yield Call((args[0], position), {})

    return ctx.move(lambda t, *a: t.select(*a), input, (dim, index), {}, spell)


@rule("new_tensor")
def factory(ctx: Reading, *args: Any, **kwargs: Any) -> Labels:
    """A new tensor takes the type and the place of another, not its channels."""
    made: Labels = ctx.unlabelled(ctx.node.meta["val"], ctx.reason("its size is set by the model's code"))
    return made
