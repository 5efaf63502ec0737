"""What the rules have in common: a channel axis, values that meet, and sums over channels."""

from __future__ import annotations

__all__ = [
    "axis",
    "broadcast_shape",
    "contract",
    "follow",
    "join",
    "meet",
    "only_axis",
    "pad",
    "place",
    "sum_of_powers",
    "sum_over",
]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.labels import POSITIONS, Labels, Layer, first_per_line, spread
from fxprune.reading import Reading
from fxprune.vocabulary import Axis


def place(labels: Tensor, dim: int, rank: int) -> Layer:
    """A layer of ``rank`` dimensions that varies along ``dim`` alone."""
    shape = [1] * rank
    shape[dim] = labels.shape[0]
    return Layer(labels.view(shape), (dim,), labels)


def axis(ctx: Reading, value: Labels, dim: int, text: str = "its channels are fixed where they come from") -> Tensor:
    """The labels along one dimension, shape ``(size,)``: tied over every other along which they vary.

    Where the value has no labels along the dimension, names for channels that stay.
    """
    dim %= len(value.full)
    layers = value.on([dim])
    if not layers:
        return ctx.fixed(value.full[dim], value.why or text)
    layer = layers[0]  # layers never share a dimension
    line = first_per_line(layer, dim)
    if len(layer.dims) > 1:
        shape = [1] * len(value.full)
        shape[dim] = -1
        ctx.tie(layer.tensor, line.reshape(shape))
    return line


def follow(ctx: Reading, tensors: Sequence[Labels | None], line: Tensor) -> None:
    """Tensors with one entry for each channel go with them."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.parameter:
            ctx.consume(Axis(tensor.parameter, 0), ctx.layer_of(tensor.parameter), line, "follower")
        else:
            ctx.tie(axis(ctx, tensor, 0), line)


def only_axis(ctx: Reading, value: Labels, dim: int, batch: Sequence[int], text: str) -> tuple[Tensor, list[Layer]]:
    """The labels along ``dim``, and the layers along ``batch`` dimensions; whatever else varies is frozen."""
    dim %= len(value.full)
    line = axis(ctx, value, dim)
    kept: list[Layer] = []
    if len(value.layers) == 1 and value.layers[0].line is line:
        return line, kept
    for layer in value.off([dim]):
        if set(layer.dims) <= set(batch):
            kept.append(layer)
        else:
            ctx.freeze(layer.tensor, text)
    return line, kept


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an element-wise result."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _aligned(value: Labels, rank: int) -> Labels:
    """The value with dimensions of size 1 put in front."""
    extra = rank - len(value.full)
    if not extra:
        return value
    layers = tuple(
        Layer(x.tensor.reshape((1,) * extra + tuple(x.tensor.shape)), tuple([d + extra for d in x.dims]), x.line)
        for x in value.layers
    )
    return Labels((1,) * extra + value.full, layers, value.why)


def _clusters(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """Dimensions that hang together because a layer varies along both."""
    clusters: list[set[int]] = []
    for layer in layers:
        joined = set(layer.dims)
        rest = []
        for cluster in clusters:
            if cluster & joined:
                joined |= cluster
            else:
                rest.append(cluster)
        clusters = [*rest, joined]
    return [tuple(sorted(c)) for c in clusters]


def meet(ctx: Reading, values: Sequence[Labels], full: tuple[int, ...]) -> Labels:
    """Labels of an element-wise result: operands are tied position by position after broadcasting.

    An operand of size 1 says nothing about the dimension that it is broadcast along; a dimension along which an
    operand has size but no labels stays whole.
    """
    values = [_aligned(v, len(full)) for v in values]
    alike = {v.layers[0].dims if len(v.layers) == 1 else () for v in values}
    if len(alike) == 1 and () not in alike:  # as in most sums and products
        base, *others = [v.layers[0] for v in values]
        for layer in others:
            _tie_layers(ctx, layer, base)
        return Labels(full, (base,), next((v.why for v in values if v.why), None))
    values = _untangled(ctx, values)
    result: list[Layer] = []
    for dims in _clusters([layer for v in values for layer in v.layers]):
        parts = [(layer, value) for value in values for layer in value.on(dims)]
        base, owner = max(parts, key=lambda part: len(part[0].dims))
        for layer, value in parts:
            if value is not owner:
                # A dimension that the operand is broadcast along, not one along which it has size but one label.
                apart = [d for d in base.dims if d not in layer.dims and value.full[d] < full[d]]
                if apart:
                    ctx.cover(layer, base, apart)
                else:
                    ctx.tie(layer.tensor, base.tensor)
        fixed = False
        for value in values:
            real = [d for d in base.dims if value.full[d] == full[d] and full[d] > 1]
            if real and not value.on(dims):
                ctx.pin(base, real, f"it meets channels that stay{f': {value.why.text}' if value.why else ''}")
                fixed |= len(real) == len(base.dims)
        if not fixed:
            result.append(base)
    return Labels(full, tuple(result), next((v.why for v in values if v.why), None))


def _tie_layers(ctx: Reading, layer: Layer, base: Layer) -> None:
    """Tie two layers that vary along the same dimensions."""
    if layer.line is not None and base.line is not None:
        ctx.tie(layer.line, base.line)
    else:
        ctx.tie(layer.tensor, base.tensor)


def _untangled(ctx: Reading, values: Sequence[Labels]) -> list[Labels]:
    """Values whose layers vary along the same dimensions wherever they overlap, or along a part of another's.

    Where layers overlap and none covers the others, as those of ``(heads, i)`` and ``(heads, j)``, each is tied along
    the dimensions that they share: every head then keeps the same.
    """
    if len({layer.dims for v in values for layer in v.layers}) < 2:
        return list(values)
    shared: set[int] = set()
    for dims in _clusters([layer for v in values for layer in v.layers]):
        layers = [layer for v in values for layer in v.on(dims)]
        if any(len(layer.dims) == len(dims) for layer in layers) and all(len(v.on(dims)) < 2 for v in values):
            continue
        shared |= {d for d in dims if len({layer.dims for layer in layers if d in layer.dims}) > 1}
    if not shared:
        return list(values)
    return [
        Labels(v.full, tuple(left for x in v.layers if (left := _tied_along(ctx, x, shared)) is not None), v.why)
        for v in values
    ]


def _tied_along(ctx: Reading, layer: Layer, dims: set[int]) -> Layer | None:
    """The layer tied along some of its dimensions, so that it varies along the others; None if none is left."""
    along = [d for d in layer.dims if d in dims]
    if not along:
        return layer
    left = tuple(d for d in layer.dims if d not in dims)
    if not left:
        ctx.freeze(layer.tensor, "it meets channels along several dimensions at once")
        return None
    first = layer.tensor
    for dim in along:
        first = first.narrow(dim, 0, 1)
    ctx.tie(layer.tensor, first)
    return Layer(first, left)


def sum_over(ctx: Reading, value: Labels, dims: Sequence[int], keepdim: bool) -> Labels:
    """Labels of a sum over dimensions: channels along them are gone, positions along the rest are left."""
    rank = len(value.full)
    dims = sorted({d % rank for d in dims})
    layers: list[Layer] = []
    for layer in value.layers:
        if set(layer.dims) & set(dims):
            left = ctx.outer(layer, dims)
            if left is not None:
                layers.append(left)
        else:
            layers.append(layer)
    full = tuple(1 if d in dims else s for d, s in enumerate(value.full))
    result = Labels(full, tuple(layers), value.why)
    return result if keepdim else _drop(result, dims)


def sum_of_powers(ctx: Reading, value: Labels, dims: Sequence[int], order: Any) -> None:
    """Note a norm over dimensions: exact when what was removed counts as zero, unless zeros decide it.

    Args:
        ctx: The reading.
        value: What the norm is of.
        dims: The dimensions, not negative.
        order: As for ``torch.linalg.norm``.
    """
    if isinstance(order, int | float) and order < 0:
        ctx.inexact(value.on(dims), dims, f"a norm of order {order} over channels")
    else:
        ctx.reads(0, value, value.on(dims))


def _drop(value: Labels, dims: Sequence[int]) -> Labels:
    left = [d for d in range(len(value.full)) if d not in dims]
    position = {d: i for i, d in enumerate(left)}
    layers = tuple(
        Layer(x.tensor.squeeze(tuple(dims)) if dims else x.tensor, tuple(position[d] for d in x.dims))
        for x in value.layers
    )
    return Labels(tuple(value.full[d] for d in left), layers, value.why)


def contract(ctx: Reading, equation: str, values: Sequence[Labels], positions: Sequence[int | str]) -> Labels:
    """Labels of a product of two or more values, summed over the letters that the result lacks.

    Args:
        ctx: The reading.
        equation: As for ``torch.einsum``, spelled out: one letter for each dimension, no ellipsis.
        values: The operands.
        positions: Which arguments of the current node they are.
    """
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    letters = output + "".join(sorted({c for term in terms for c in term} - set(output)))
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, size in zip(term, value.full, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    summed = [letters.index(c) for c in letters if c not in output]
    spread_out = []
    for term, value, position in zip(terms, values, positions, strict=True):
        contracted = [d for d, c in enumerate(term) if c not in output]
        ctx.reads(position, value, value.on(contracted))
        if value.parameter:  # a weight that is used as a matrix
            for dim, layer in ((d, layer) for d in range(len(term)) for layer in value.on([d])):
                ctx.weigh(layer.tensor.reshape(-1), "consumer" if dim in contracted else "producer")
        spread_out.append(_permuted(value, [letters.index(c) for c in term], len(letters)))
    if not any(value.parameter for value in values):
        _heads(ctx, spread_out, [letters.index(c) for c in output if all(c in term for term in terms)])
    joint = meet(ctx, spread_out, tuple(sizes[c] for c in letters))
    return sum_over(ctx, joint, summed, keepdim=False)


def _heads(ctx: Reading, values: Sequence[Labels], batch: Sequence[int]) -> None:
    """Where channels lie in blocks along a dimension that the product runs along by itself, each block is a head."""
    for layer in (layer for value in values for layer in value.layers):
        if 0 < len(set(layer.dims) & set(batch)) < len(layer.dims):
            ctx.heads(layer, batch)


def _permuted(value: Labels, target: Sequence[int], rank: int) -> Labels:
    """The value with its dimension ``i`` moved to ``target[i]`` of ``rank`` dimensions."""
    order = sorted(range(len(target)), key=lambda i: target[i])

    def moved(sizes: Sequence[int]) -> list[int]:
        shape = [1] * rank
        for i, size in enumerate(sizes):
            shape[target[i]] = size
        return shape

    layers = tuple(
        Layer(
            layer.tensor.permute(order).reshape(moved(layer.tensor.shape)),
            tuple(sorted(target[d] for d in layer.dims)),
        )
        for layer in value.layers
    )
    return Labels(tuple(moved(value.full)), layers, value.why)


def join(ctx: Reading, values: Sequence[Labels], dim: int, stacked: bool) -> Labels:
    """Labels of a concatenation along ``dim``, or of a stack along a new dimension ``dim``."""
    full = ctx.output_shape()
    if not stacked and all(len(v.layers) == 1 and v.layers[0].dims == (dim,) for v in values):
        return _joined_lines(ctx, values, dim, full)
    values = _untangled(ctx, values)
    if stacked:
        values = [_permuted(v, [d + (d >= dim) for d in range(len(v.full))], len(full)) for v in values]
    clusters = _clusters([layer for v in values for layer in v.layers])
    along = next((c for c in clusters if dim in c), None)
    free = None
    if along is None and stacked and len(clusters) == 1:
        free = clusters[0][0] if len(clusters[0]) == 1 else None
        along = tuple(sorted({dim, *clusters[0]}))  # every tensor of the stack may choose channels of its own
    layers: list[Layer] = []
    for dims in clusters:
        if along is None or not set(dims) & set(along):
            aligned = [
                Labels(tuple(1 if d == dim else s for d, s in enumerate(v.full)), tuple(v.on(dims)), v.why)
                for v in values
            ]
            layers.extend(meet(ctx, aligned, tuple(1 if d == dim else s for d, s in enumerate(full))).layers)
    why = next((v.why for v in values if v.why), None)
    if along is not None:
        unlabelled = [v for v in values if not v.on(along)]
        many = math.prod(full[d] for d in along) > POSITIONS
        if unlabelled and (many or all(v.parameter for v in values if v.on(along))):
            for value in values:
                for layer in value.on(along):
                    ctx.freeze(layer.tensor, "it is joined to positions that stay")
        else:
            parts = [
                (_one_layer(ctx, v, along), tuple(s if d in along else 1 for d, s in enumerate(v.shape)))
                for v in values
            ]
            joined = ctx.join(lambda: torch.cat([spread(layer, shape) for layer, shape in parts], dim), free)
            layers += [] if joined is None else [joined]
    return Labels(full, tuple(layers), why)


def _joined_lines(ctx: Reading, values: Sequence[Labels], dim: int, full: tuple[int, ...]) -> Labels:
    """What :func:`join` gives of values that vary along ``dim`` alone: their labels in a row, one after the other."""
    lines = [first_per_line(v.layers[0], dim) for v in values]
    joined = ctx.join(lambda: torch.cat(lines))
    layers = () if joined is None else (place(joined.tensor, dim, len(full)),)
    return Labels(full, layers, next((v.why for v in values if v.why), None))


def _one_layer(ctx: Reading, value: Labels, dims: Sequence[int]) -> Layer:
    layers = value.on(dims)
    if layers:
        return layers[0]
    shape = [s if d in dims else 1 for d, s in enumerate(value.full)]
    why = value.why or "it is joined to channels that stay"
    return Layer(ctx.fixed(math.prod(shape), why).reshape(shape), tuple(dims))


def pad(ctx: Reading, value: Labels, amounts: Sequence[int], mode: str) -> Labels:
    """Labels of a padded tensor; ``amounts`` as for ``torch.nn.functional.pad``.

    Padding of positions adds none that is a channel; padding of channels adds channels that may go.
    """
    rank = len(value.full)
    new = list(amounts)
    layers: list[Layer] = []
    for layer in value.layers:
        padded = [d for d in layer.dims if any(amounts[2 * (rank - 1 - d) : 2 * (rank - 1 - d) + 2])]
        if not padded:
            layers.append(layer)
            continue
        (at, *_) = [2 * (rank - 1 - d) for d in padded]
        if len(layer.dims) > 1 or mode != "constant" or min(amounts[at], amounts[at + 1]) < 0:
            ctx.freeze(layer.tensor, f"it is padded in mode '{mode}' or cropped along its channels")
            continue
        before, after = ctx.filler(amounts[at]), ctx.filler(amounts[at + 1])
        new[at], new[at + 1] = len(before), len(after)
        layers.append(place(torch.cat([before, layer.tensor.reshape(-1), after]), padded[0], rank))
    ctx.argument(1, "pad", tuple(new), tuple(amounts))
    return Labels(ctx.output_shape(), tuple(layers), value.why)
