"""Tensors taken apart, put together, repeated, rolled and padded."""

from __future__ import annotations

__all__: list[str] = []

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels, Layer
from fxprune.reading import Reading
from fxprune.rules.algebra import join, meet, place
from fxprune.rules.algebra import pad as pad_labels
from fxprune.rules.movement import Shape, run_method, spell_view, write_sizes
from fxprune.rules.table import rule
from fxprune.vocabulary import Call, Declined

# Pieces ---------------------------------------------------------------------------------------------------------------


def _spell_split(x: Labels, shapes: list[Shape], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = [shape[dim] for shape in shapes]
    yield Call((sizes, dim), {}, "call_function", torch.split, torch.split)


@rule("split", torch.split, "chunk", torch.chunk, "tensor_split", torch.tensor_split, sizes=True)
def split(ctx: Reading, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Pieces along a dimension: each keeps what is left of it."""
    name = ctx.node.target if isinstance(ctx.node.target, str) else ctx.node.target.__name__
    return ctx.move(run_method(name), x, args, kwargs, _spell_split)


def _gated(ctx: Reading, x: Labels, dim: int) -> Labels:
    """One half gates the other, position by position."""
    dim %= len(x.full)
    full = ctx.output_shape()
    layers = list(x.off([dim]))
    for layer in x.on([dim]):
        first, second = layer.tensor.chunk(2, dim)
        ctx.tie(first, second)
        if full[dim] > 1:
            layers.append(Layer(first, layer.dims))
        else:
            ctx.freeze(first, "it is the only channel that is left of a selection")
    return Labels(full, tuple(layers), x.why)


@rule(F.glu)
def gated_linear_unit(ctx: Reading, input: Labels, dim: int = -1) -> Labels:
    """A gated linear unit (Dauphin et al., 2017, arXiv:1612.08083)."""
    return _gated(ctx, input, dim)


@rule(nn.GLU)
def gated_linear_layer(ctx: Reading, module: Any, x: Labels) -> Labels:
    """A gated linear unit as a layer."""
    return _gated(ctx, x, module.dim)


# Copies of a channel --------------------------------------------------------------------------------------------------


def _spread(ctx: Reading, x: Labels, given: Any, full: Shape) -> Labels | None:
    """One position that is spread along a dimension becomes channels that may go; None for any other repetition.

    Args:
        ctx: The reading.
        x: The value.
        given: The sizes, or numbers of copies, that the call names, one for each dimension of the result.
        full: Shape of the result in the original network.
    """
    new = [dim for dim in range(len(full)) if len(full) == len(x.full) and x.full[dim] != full[dim]]
    if len(new) != 1 or x.full[new[0]] != 1 or len(given) != len(full):
        return None
    (dim,) = new
    kernel = dim == 0 and len(full) > 3 and x.full[1] == 1  # one for each channel of a depthwise convolution
    if not kernel and (dim == 0 or x.layers):
        return None
    copies = ctx.filler(full[dim])
    wanted = [x.shape[d] if x.on([d]) and given[d] not in (-1, 1) else given[d] for d in range(len(full))]
    wanted[dim] = len(copies)
    write_sizes(ctx, 1, given, wanted)
    return Labels(full, (place(copies, dim, len(full)), *x.layers), x.why)


@rule("expand", sizes=True)
def expand(ctx: Reading, input: Labels, *sizes: Any) -> Any:
    """Broadcast to a shape."""
    given = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
    found = _spread(ctx, input, given, ctx.output_shape())
    return ctx.move(run_method("expand"), input, sizes, {}, spell_view(ctx)) if found is None else found


@rule("repeat", sizes=True)
def repeat(ctx: Reading, input: Labels, *counts: Any) -> Any:
    """Copies of the whole."""
    given = counts[0] if isinstance(counts[0], tuple | list) else counts
    found = _spread(ctx, input, given, ctx.output_shape())
    return ctx.move(run_method("repeat"), input, counts, {}, None) if found is None else found


@rule(torch.broadcast_to, "broadcast_to", sizes=True)
def broadcast_to(ctx: Reading, input: Labels, size: Any) -> Any:
    """Broadcast to a shape, as ``expand`` does."""
    return expand(ctx, input, size)


@rule(torch.tile, "tile", sizes=True)
def tile(ctx: Reading, input: Labels, *dims: Any) -> Any:
    """Copies of the whole, of fewer dimensions than it has or of more."""
    given = dims[0] if isinstance(dims[0], tuple | list) else dims
    found = _spread(ctx, input, given, ctx.output_shape())
    return ctx.move(run_method("tile"), input, dims, {}, None) if found is None else found


@rule(torch.broadcast_tensors)
def broadcast_tensors(ctx: Reading, *tensors: Labels) -> Any:
    """Every operand as large as all of them together, position by position."""
    full = tuple(ctx.node.meta["val"][0].shape)
    together = meet(ctx, tensors, full)
    return [together for _ in tensors]


# Around the end -------------------------------------------------------------------------------------------------------


@rule("roll", torch.roll, sizes=True)
def roll(ctx: Reading, input: Labels, shifts: Any, dims: Any = ()) -> Any:
    """What leaves at one end comes in at the other: as many as are left of it."""
    nested = isinstance(shifts, tuple | list)
    steps = list(shifts) if nested else [shifts]
    along = [d % len(input.full) for d in (dims if isinstance(dims, tuple | list) else [dims])]
    if not along:
        return ctx.move(run_method("roll"), input, (shifts,), {}, None)
    for i, dim in enumerate(along):
        for layer in input.on([dim]):
            if layer.dims == (dim,):
                line = layer.tensor.reshape(-1).numpy()
                wrapped = ctx.fact(line[len(line) - steps[i] % len(line) :])
                left = int(np.isin(line, wrapped).sum())
                if left != steps[i] % len(line):
                    steps[i] = left
    if steps != (list(shifts) if nested else [shifts]):
        ctx.argument(1, "shifts", type(shifts)(steps) if nested else steps[0], shifts)
    return ctx.move(lambda t: _rolled(t, steps, along), input, (), {}, None)


def _rolled(tensor: Tensor, steps: Sequence[int], along: Sequence[int]) -> Tensor:
    """Labels that are the same all along a dimension stay what they are: to roll them would write all of them out."""
    moved = [(step, dim) for step, dim in zip(steps, along, strict=True) if tensor.stride(dim)]
    return tensor.roll(*zip(*moved, strict=True)) if moved else tensor


# Several tensors into one ---------------------------------------------------------------------------------------------


def _join(ctx: Reading, tensors: Any, dim: int, stacked: bool) -> Labels:
    values: list[Labels] = list(tensors)
    if not all(isinstance(v, Labels) for v in values):
        raise Declined("a concatenation with something that is no tensor has no rule")
    if 0 in ctx.output_shape():
        raise Declined("nothing is put together")
    values = [v for v in values if v.full != (0,)]
    return join(ctx, values, dim % (len(values[0].full) + stacked), stacked)


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(ctx: Reading, tensors: Any, dim: int = 0) -> Labels:
    """Concatenation."""
    return _join(ctx, tensors, dim, False)


@rule(torch.hstack, torch.vstack, torch.row_stack, torch.dstack)
def cat_along(ctx: Reading, tensors: Any) -> Labels:
    """Concatenation along the dimension that the operator's name says, if every tensor has it."""
    dim = {"hstack": 1, "dstack": 2}.get(ctx.node.target.__name__, 0)  # type: ignore[union-attr]
    if any(isinstance(v, Labels) and len(v.full) < max(dim + 1, 2) for v in tensors):
        raise Declined("a concatenation of tensors that lack the dimension has no rule")
    return _join(ctx, tensors, dim, False)


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
