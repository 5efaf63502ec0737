"""Operators that only move elements: they run themselves on the labels.

Where the author wrote sizes down, a *speller* gives the ways in which the call may be written for the channels that
are left; the reading takes the first that does to the kept channels what the original does to all.
"""

from __future__ import annotations

__all__ = ["Shape", "Speller", "run_method", "spell_view", "write_sizes"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.evaluation import value_of
from fxprune.labels import Labels
from fxprune.reading import Reading
from fxprune.rules.algebra import axis, meet
from fxprune.rules.table import rule
from fxprune.spelling import merge
from fxprune.vocabulary import Call, Declined

Shape = tuple[int, ...]
Speller = Callable[[Labels, list[Shape], tuple[Any, ...], Mapping[str, Any]], Iterator[Call]]


def run_method(name: str) -> Callable[..., Any]:
    """The tensor method of that name as a function."""

    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(tensor, name)(*args, **kwargs)

    return call


# Operators without sizes among their arguments ------------------------------------------------------------------------

_PLAIN = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "unsqueeze", "t", "flatten", "flip"),
    *("unbind", "pixel_shuffle", "pixel_unshuffle", "rot90", "ravel", "fliplr", "flipud"),
    *("diagonal", "tril", "triu", "adjoint", "repeat_interleave"),
)


def _plain(name: str) -> Callable[..., Any]:
    functions = [f for m in (torch, F) if (f := getattr(m, name, None)) is not None]
    method = hasattr(Tensor, name)
    run = run_method(name) if method else functions[0]

    def apply(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, Labels) for a in (*args, *kwargs.values())):
            raise Declined(f"{name} by a tensor has no rule")
        if name in ("flatten", "ravel"):
            ctx.keep_copy(input)
        return ctx.move(run, input, args, kwargs, None)

    apply.__name__ = name
    keys = [*dict.fromkeys(functions), *([name] if method else [])]
    return rule(*keys, sizes=True)(apply)


for _name in _PLAIN:
    _plain(_name)


@rule(torch.view_as_real)
def parts(ctx: Reading, input: Labels) -> Any:
    """Real and imaginary part of every number, side by side in a new last dimension."""
    return ctx.move(lambda t: t.unsqueeze(-1).expand(*t.shape, 2), input, (), {}, None)


@rule("unfold", sizes=True)
def windows(ctx: Reading, input: Labels, dimension: int, size: int, step: int) -> Any:
    """Windows along a dimension, side by side in a new last one."""
    return ctx.move(run_method("unfold"), input, (dimension, size, step), {}, None)


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
    """Attributes of a tensor: transposed views are moved, ``data`` and parts of numbers pass on, sizes are read off."""
    if isinstance(x, Labels) and name in ("data", "real", "imag"):
        return x
    if isinstance(x, Labels) and name in ("T", "mT", "H", "mH"):
        return ctx.move(lambda t: getattr(t, name), x, (), {}, None)
    if isinstance(x, tuple | list):  # a field of a named tuple
        owner = ctx.node.all_input_nodes[0].meta["val"]
        return next(part for part, traced in zip(x, owner, strict=True) if traced is getattr(owner, name))
    return ctx.without_labels((x, name), {})


# Views ----------------------------------------------------------------------------------------------------------------


def write_sizes(ctx: Reading, first: int, given: Sequence[int], wanted: Sequence[int]) -> None:
    """Write out those sizes of a call that are not what they must be; all others stay as the graph computes them.

    Args:
        ctx: The reading.
        first: Which argument is the first size, or a sequence of all.
        given: What the call says.
        wanted: What it must say.
    """
    raw = ctx.node.args[first:]
    written = list(given) != list(wanted)
    if isinstance(fx.node.map_arg(raw[0], value_of) if raw else None, tuple | list):
        ctx.argument(first, "size", merge(raw[0], tuple(given), tuple(wanted)) if written else given, given)
        return
    for i, (old, new) in enumerate(zip(given, wanted, strict=True)):
        ctx.argument(first + i, "size", merge(raw[i], old, new) if old != new else old, old)


def spell_view(ctx: Reading) -> Speller:
    """Sizes that the author wrote become those that are left; one that the graph computes is left to torch."""
    raw = ctx.node.args[1:]
    flat = list(raw[0]) if raw and isinstance(raw[0], tuple | list) else list(raw)

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        (shape,) = shapes
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
    ctx.keep_copy(input)
    return ctx.move(lambda t, *a, **k: t.reshape(*a, **k), input, args, kwargs, spell_view(ctx))


@rule("unflatten", torch.unflatten, sizes=True)
def unflatten(ctx: Reading, input: Labels, dim: int, sizes: Any) -> Any:
    """One dimension becomes several."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        first = args[0] % len(x.full)
        yield Call((args[0], tuple(shapes[0][first : first + len(args[1])])), {})

    return ctx.move(run_method("unflatten"), input, (dim, tuple(sizes)), {}, spell)


@rule("expand_as", sizes=True)
def expand_as(ctx: Reading, input: Labels, other: Labels) -> Any:
    """Broadcast to the shape of another, position by position."""
    return meet(ctx, [input, other], other.full)


@rule("view_as", "reshape_as", sizes=True)
def view_as(ctx: Reading, input: Labels, other: Labels) -> Any:
    """A view of the shape of another."""
    ctx.keep_copy(input)
    return ctx.move(lambda t: t.reshape(other.shape), input, (), {}, None)


@rule("squeeze", torch.squeeze, sizes=True)
def squeeze(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Dimensions of size 1 go; those that only pruning made so stay."""

    def spell(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
        given = args[0] if args else kwargs.get("dim")
        rank = len(x.full)
        wanted = range(rank) if given is None else given if isinstance(given, tuple | list) else [given]
        yield Call((tuple(d for d in wanted if x.full[d] == 1),), {})

    return ctx.move(run_method("squeeze"), input, args, kwargs, spell)
