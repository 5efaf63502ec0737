"""Operators that only move elements: they run themselves on the labels.

Where the author wrote sizes down, a *speller* gives the ways in which the call may be written for the channels that
are left; the reading takes the first that does to the kept channels what the original does to all.
"""

from __future__ import annotations

__all__: list[str] = []

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels
from fxprune.reading import Call, Declined, Reading, labels_in
from fxprune.rules.algebra import axis, join, meet
from fxprune.rules.algebra import pad as pad_labels
from fxprune.rules.table import rule

Shape = tuple[int, ...]
Speller = Callable[[Labels, list[Shape], tuple[Any, ...], Mapping[str, Any]], Iterator[Call]]


def _run(name: str) -> Callable[..., Any]:
    """The tensor method of that name as a function."""

    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(tensor, name)(*args, **kwargs)

    return call


# Operators without sizes among their arguments ------------------------------------------------------------------------

_PLAIN = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "unsqueeze", "t", "flatten", "flip"),
    *("roll", "unbind", "pixel_shuffle", "pixel_unshuffle", "rot90", "repeat", "tile", "ravel"),
    *("diagonal", "tril", "triu", "adjoint", "view_as_real", "repeat_interleave"),
)


def _plain(name: str) -> Callable[..., Any]:
    functions = [f for m in (torch, F) if (f := getattr(m, name, None)) is not None]
    method = hasattr(Tensor, name)
    run = _run(name) if method else functions[0]

    def apply(ctx: Reading, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        x = args[0] if args else kwargs.pop("input")
        if any(isinstance(a, Labels) for a in (*args[1:], *kwargs.values())):
            raise Declined(f"{name} by a tensor has no rule")
        return ctx.move(run, x, args[1:], kwargs, None)

    apply.__name__ = name
    keys = [*dict.fromkeys(functions), *([name] if method else [])]
    return rule(*keys, sizes=True)(apply)


for _name in _PLAIN:
    _plain(_name)


@rule(nn.Flatten, sizes=True)
def flatten_layer(ctx: Reading, module: Any, x: Labels) -> Any:
    """Flatten as a layer."""
    return ctx.move(lambda t: t.flatten(module.start_dim, module.end_dim), x, (), {}, None)


def _shuffle(ctx: Reading, x: Labels, groups: int) -> Any:
    """Channels of all groups in turn: the groups keep equally many."""
    if x.on([1]):
        ctx.blocks(axis(ctx, x, 1).reshape(groups, -1))
    return ctx.move(lambda t: F.channel_shuffle(t, groups), x, (), {}, None)


@rule(F.channel_shuffle, sizes=True)
def channel_shuffle(ctx: Reading, input: Labels, groups: int) -> Any:
    """A channel shuffle as a function."""
    return _shuffle(ctx, input, groups)


@rule(nn.ChannelShuffle, sizes=True)
def channel_shuffle_layer(ctx: Reading, module: Any, x: Labels) -> Any:
    """A channel shuffle as a layer."""
    return _shuffle(ctx, x, module.groups)


@rule(nn.PixelShuffle, nn.PixelUnshuffle, sizes=True)
def shuffle_layer(ctx: Reading, module: Any, x: Labels) -> Any:
    """Shuffles as layers."""
    return ctx.move(module.forward, x, (), {}, None)


@rule(getattr, sizes=True)
def attribute(ctx: Reading, x: Any, name: str) -> Any:
    """Attributes of a tensor: transposed views are moved, sizes are read off."""
    if isinstance(x, Labels) and name in ("T", "mT", "H", "mH"):
        return ctx.move(lambda t: getattr(t, name), x, (), {}, None)
    if isinstance(x, tuple | list):  # a field of a named tuple
        owner = ctx.node.all_input_nodes[0].meta["val"]
        return next(part for part, traced in zip(x, owner, strict=True) if traced is getattr(owner, name))
    return ctx.without_labels((x, name), {})


# Views ----------------------------------------------------------------------------------------------------------------


def _spell_view(ctx: Reading) -> Speller:
    """Sizes that the author wrote become those that are left; one that the graph computes is left to torch."""
    raw = ctx.node.args[1:]
    flat = list(raw[0]) if raw and isinstance(raw[0], tuple | list) else list(raw)

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        (shape,) = shapes
        if kwargs.get("shape") is not None:
            yield Call((), {"shape": _keep_free(kwargs["shape"], shape)})
            return
        nested = bool(args) and isinstance(args[0], tuple | list)
        given = list(args[0]) if nested else list(args)
        if len(given) != len(shape):
            return
        spelled = _keep_free(given, shape)
        computed = [
            i
            for i, (old, new, written) in enumerate(zip(given, shape, flat, strict=False))
            if old != new and not isinstance(written, int)
        ]
        options = [spelled, list(shape)]
        if len(computed) == 1 and -1 not in spelled:
            options.insert(0, [-1 if i in computed else size for i, size in enumerate(spelled)])
        for option in options:
            yield Call((type(args[0])(option),) if nested else tuple(option), kwargs)

    return spell


def _keep_free(given: Any, shape: Shape) -> list[Any]:
    return [-1 if old == -1 else new for old, new in zip(given, shape, strict=True)]


@rule("view", "reshape", torch.reshape, sizes=True)
def view(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """A view of another shape; labels are reshaped, as they need not be contiguous."""
    if args and isinstance(args[0], torch.dtype):
        return input
    return ctx.move(lambda t, *a, **k: t.reshape(*a, **k), input, args, kwargs, _spell_view(ctx))


@rule("unflatten", torch.unflatten, sizes=True)
def unflatten(ctx: Reading, input: Labels, dim: int, sizes: Any) -> Any:
    """One dimension becomes several."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        first = args[0] % len(x.full)
        yield Call((args[0], tuple(shapes[0][first : first + len(args[1])])), {})

    return ctx.move(_run("unflatten"), input, (dim, tuple(sizes)), {}, spell)


@rule(nn.Unflatten)
def unflatten_layer(ctx: Reading, module: Any, x: Labels) -> Any:
    """Unflatten as a layer holds its sizes."""
    raise Declined("nn.Unflatten holds its sizes in the layer")


@rule("expand", sizes=True)
def expand(ctx: Reading, input: Labels, *sizes: Any) -> Any:
    """Broadcast to a shape."""
    return ctx.move(_run("expand"), input, sizes, {}, _spell_view(ctx))


@rule("expand_as", sizes=True)
def expand_as(ctx: Reading, input: Labels, other: Labels) -> Any:
    """Broadcast to the shape of another, position by position."""
    return meet(ctx, [input, other], other.full)


@rule("view_as", "reshape_as", sizes=True)
def view_as(ctx: Reading, input: Labels, other: Labels) -> Any:
    """A view of the shape of another."""
    return ctx.move(lambda t: t.reshape(other.shape), input, (), {}, None)


@rule("squeeze", torch.squeeze, sizes=True)
def squeeze(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Dimensions of size 1 go; those that only pruning made so stay."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        given = args[0] if args else kwargs.get("dim")
        rank = len(x.full)
        wanted = range(rank) if given is None else given if isinstance(given, tuple | list) else [given]
        yield Call((tuple(d for d in wanted if x.full[d] == 1),), {})

    return ctx.move(_run("squeeze"), input, args, kwargs, spell)


# Pieces ---------------------------------------------------------------------------------------------------------------


def _spell_split(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = [shape[dim] for shape in shapes]
    yield Call((sizes, dim), {}, "call_function", torch.split, torch.split)


@rule("split", torch.split, "chunk", torch.chunk, "tensor_split", torch.tensor_split, sizes=True)
def split(ctx: Reading, *args: Any, **kwargs: Any) -> Any:
    """Pieces along a dimension: each keeps what is left of it."""
    kwargs = dict(kwargs)
    x = args[0] if args else kwargs.pop("tensor", None) or kwargs.pop("input")
    name = ctx.node.target if isinstance(ctx.node.target, str) else ctx.node.target.__name__
    return ctx.move(_run(name), x, args[1:], kwargs, _spell_split)


@rule("narrow", torch.narrow, sizes=True)
def narrow(ctx: Reading, input: Labels, dim: int, start: int, length: int) -> Any:
    """A run of positions along a dimension."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        for first in range(x.shape[args[0]] - shapes[0][args[0]] + 1):
            yield Call((args[0], first, shapes[0][args[0]]), {})

    return ctx.move(_run("narrow"), input, (dim, start, length), {}, spell)


@rule("select", torch.select, sizes=True)
def select(ctx: Reading, input: Labels, dim: int, index: int) -> Any:
    """One position along a dimension."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        for position in range(x.shape[args[0]]):
            yield Call((args[0], position), {})

    return ctx.move(_run("select"), input, (dim, index), {}, spell)


def _parts(index: Any, rank: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [p if p is Ellipsis else None for p in parts]:
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        used = sum(p is not None and p is not Ellipsis for p in parts)
        parts[at : at + 1] = [slice(None)] * (rank - used)
    return parts


def _spell_index(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    """Slices with the bounds, and numbers with the positions, that channels have now."""
    parts = _parts(args[0], len(x.full))
    options: list[list[Any]] = []
    dim, out = 0, 0
    for part in parts:
        if part is None:
            options.append([None])
            out += 1
            continue
        size, old = x.shape[dim], x.full[dim]
        if isinstance(part, slice):
            size_out = shapes[0][out]
            found = [part]
            if size != old and part != slice(None):
                found = [slice(first, first + size_out) for first in range(size - size_out + 1)]
            options.append(found)
            out += 1
        elif isinstance(part, int) and size != old:
            options.append(list(range(size)))
        else:
            options.append([part])
            out += part.rank if isinstance(part, _Index) else not isinstance(part, int)
        dim += 1
    varied = [i for i, found in enumerate(options) if len(found) > 1]
    if len(varied) <= 1:
        at = varied[0] if varied else 0
        for choice in options[at]:
            index = [found[0] for found in options]
            index[at] = choice
            yield Call((tuple(index),), {})


@rule(operator.setitem, sizes=True)
def setitem(ctx: Reading, x: Any, index: Any, value: Any) -> None:
    """A write into a part of a tensor: what it is written into, and what is written, stay whole."""
    for part in (x, index, value):
        for labels in labels_in(part):
            ctx.freeze_all(labels, "a part of it is written to")


class _Index:
    """Stands for a tensor of indices among the parts of an index."""

    def __init__(self, labels: Labels) -> None:
        self.rank = len(labels.full)
        self.positions = torch.zeros(labels.full, dtype=torch.int64)


@rule(operator.getitem, sizes=True)
def getitem(ctx: Reading, x: Any, index: Any) -> Any:
    """Indexing of tensors by slices, numbers and one tensor; of tuples and shapes as Python does.

    What a tensor of indices picks from stays whole: which positions it picks is not known before the network runs.
    """
    if not isinstance(x, Labels):
        return x[index]
    parts = _parts(index, len(x.full))
    picked = [i for i, p in enumerate(parts) if isinstance(p, Labels | Tensor | list)]
    if picked:
        part = parts[picked[0]]
        if len(picked) > 1 or not isinstance(part, Labels) or _by_mask(ctx):
            raise Declined("indexing by a mask, a list or several tensors has no rule")
        ctx.freeze_all(part, "it holds indices")
        dim = sum(p is not None for p in parts[: picked[0]])
        x = _whole(ctx, x, dim)
        parts[picked[0]] = _Index(part)
        index = tuple(parts)
    return ctx.move(_index, x, (index,), {}, _spell_index)


def _by_mask(ctx: Reading) -> bool:
    kinds = [getattr(node.meta["val"], "dtype", None) for node in ctx.node.all_input_nodes[1:]]
    return torch.bool in kinds or torch.uint8 in kinds


def _index(tensor: Tensor, index: Any) -> Tensor:
    parts = index if isinstance(index, tuple) else (index,)
    return tensor[tuple(p.positions if isinstance(p, _Index) else p for p in parts)]


def _whole(ctx: Reading, x: Labels, dim: int) -> Labels:
    """The value without the labels along one dimension, which are frozen."""
    for layer in x.on([dim]):
        ctx.freeze(layer.tensor, "a tensor of indices picks from it")
    return Labels(x.full, tuple(x.off([dim])), x.why)


@rule("index_select", torch.index_select, sizes=True)
def index_select(ctx: Reading, input: Labels, dim: int, index: Labels) -> Any:
    """Positions along a dimension, picked by a tensor."""
    ctx.freeze_all(index, "it holds indices")
    value = _whole(ctx, input, dim % len(input.full))
    positions = torch.zeros(index.full, dtype=torch.int64)
    return ctx.move(lambda t: t.index_select(dim, positions), value, (), {}, None)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def factory(ctx: Reading, *args: Any, **kwargs: Any) -> Labels:
    """A new tensor takes the type and the place of another, not its channels."""
    made: Labels = ctx.unlabelled(ctx.node.meta["val"], ctx.reason("its size is set by the model's code"))
    return made


# Several tensors into one ---------------------------------------------------------------------------------------------


def _join(ctx: Reading, tensors: Any, dim: int, stacked: bool) -> Labels:
    values: list[Labels] = list(tensors)
    if not all(isinstance(v, Labels) for v in values):
        raise Declined("a concatenation with something that is no tensor has no rule")
    values = [v for v in values if v.full != (0,)]
    return join(ctx, values, dim % (len(values[0].full) + stacked), stacked)


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(ctx: Reading, tensors: Any, dim: int = 0, *, axis: int | None = None) -> Labels:
    """Concatenation."""
    return _join(ctx, tensors, dim if axis is None else axis, False)


@rule(torch.stack)
def stack(ctx: Reading, tensors: Any, dim: int = 0) -> Labels:
    """Tensors side by side along a new dimension."""
    return _join(ctx, tensors, dim, True)


# Padding --------------------------------------------------------------------------------------------------------------


@rule(F.pad, torch._C._nn.pad, sizes=True)
def pad(ctx: Reading, input: Labels, pad: Any, mode: str = "constant", value: float | None = None) -> Labels:
    """Padding: of positions it adds none that is a channel; of channels it adds channels that can go."""
    rank = len(input.full)
    return pad_labels(ctx, input, [*pad, *[0] * (2 * rank - len(pad))][: 2 * rank], mode)
