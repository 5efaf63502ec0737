"""Contractions: convolutions and linear layers read the channels of their input and make new ones."""

from __future__ import annotations

__all__: list[str] = []

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels, Layer
from fxprune.reading import Reading
from fxprune.rules.algebra import axis, contract, follow, meet, only_axis, place
from fxprune.rules.table import rule
from fxprune.vocabulary import Axis, Declined


def _weight(ctx: Reading, module: Any, name: str) -> Labels:
    weight = ctx.tensor_of(module, name)
    assert weight is not None
    return weight


def _made(labels: Tensor, channels: int, dim: int, rank: int) -> tuple[Layer, ...]:
    """The layer of what a layer makes; a single channel stays, so it needs none."""
    return (place(labels, dim, rank),) if channels > 1 else ()


def _depthwise(ctx: Reading, line: Tensor, weight: Labels, groups: int, multiplier: int, out_dim: int) -> Tensor:
    """One input channel a group: the outputs of a group go with it."""
    name = weight.parameter
    assert name is not None
    if multiplier == 1:
        ctx.consume(Axis(name, out_dim), ctx.layer_of(name), line, "follower")
        return line
    out = ctx.produce(Axis(name, out_dim), ctx.layer_of(name))
    ctx.tie(line[:, None].expand(-1, multiplier), out.reshape(-1, multiplier))
    return out


def _grouped(ctx: Reading, line: Tensor, weight: Labels, groups: int, in_axis: Axis, out_axis: Axis) -> Tensor:
    """Every block of inputs feeds its own block of outputs, and all blocks keep equally many of both."""
    assert weight.parameter is not None
    layer = ctx.layer_of(weight.parameter)
    ctx.consume(in_axis, layer, line, "consumer")
    out = ctx.produce(out_axis, layer)
    if groups > 1:
        ctx.blocks(line.reshape(groups, -1))
        ctx.blocks(out.reshape(groups, -1))
    return out


def _convolve(
    ctx: Reading, x: Labels, weight: Labels, bias: Labels | None, groups: int, transposed: bool, stride: Any
) -> Labels:
    x = ctx.labelled(x)
    spatial = len(weight.full) - 2
    rank = len(x.full)
    channel = rank - spatial - 1
    beside = _beside(ctx, x, channel, stride)
    line, kept = only_axis(ctx, x, channel, [*range(channel), *beside], "a convolution slides over the dimension")
    ctx.reads(0, x, x.on([channel]))
    inputs = x.full[channel]
    outputs = weight.full[1] * groups if transposed else weight.full[0]
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    if weight.parameter is None:
        if transposed:
            raise Declined("a transposed convolution with a computed weight has no rule")
        out = _computed(ctx, line, weight, groups, inputs)
    elif groups > 1 and groups == inputs and (outputs == inputs or not transposed):
        # The weight of a depthwise layer has its channels on dimension 0, transposed or not.
        multiplier = outputs // groups
        out = _depthwise(ctx, line, weight, groups, multiplier, 0)
        ctx.attribute("groups", line)
    else:
        shared = groups if groups > 1 else 1
        in_axis = Axis(weight.parameter, in_dim, 1 if transposed else shared)
        out_axis = Axis(weight.parameter, out_dim, shared if transposed else 1)
        out = _grouped(ctx, line, weight, groups, in_axis, out_axis)
    follow(ctx, [bias], out)
    ctx.attribute("in_channels", line)
    ctx.attribute("out_channels", out)
    full = ctx.output_shape()
    return Labels(full, (*kept, *_made(out, outputs, channel, len(full))))


def _stride(module: Any) -> Any:
    """The stride of a layer, or one that keeps nothing beside anything where its padding reads other positions."""
    return module.stride if module.padding_mode == "zeros" else 0


def _beside(ctx: Reading, x: Labels, channel: int, stride: Any) -> list[int]:
    """Dimensions over which a layer slides from channel to channel, one output beside each: ECA's (arXiv:1910.03151).

    There the neighbours are others when channels are removed, but as many outputs as inputs are left.
    """
    found = []
    for layer in x.layers:
        if len(layer.dims) != 1 or layer.dims[0] <= channel:
            continue
        (dim,) = layer.dims
        step = stride[dim - channel - 1] if isinstance(stride, tuple | list) else stride
        if step == 1 and ctx.output_shape()[dim] == x.full[dim]:
            ctx.inexact([layer], [dim], "a convolution over neighbouring channels")
            ctx.ordered([layer])
            found.append(dim)
    return found


def _computed(ctx: Reading, line: Tensor, weight: Labels, groups: int, inputs: int) -> Tensor:
    """A weight that the graph computes: its rows are the outputs, its columns meet the inputs of every group."""
    for layer in weight.off([0, 1]):
        ctx.freeze(layer.tensor, "it is part of a kernel")
    out = axis(ctx, weight, 0)
    if groups > 1 and groups == inputs:  # of a depthwise layer the outputs of a group go with its input
        ctx.tie(line[:, None].expand(-1, weight.full[0] // groups), out.reshape(len(line), -1))
        return out
    columns = axis(ctx, weight, 1)
    ctx.tie(line.reshape(groups, -1), columns[None])
    ctx.weigh(columns, "consumer")
    ctx.weigh(out, "producer")
    if groups > 1:
        ctx.blocks(out.reshape(groups, -1))
    return out


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(ctx: Reading, module: Any, x: Labels) -> Labels:
    """A convolution layer."""
    weight, bias = _weight(ctx, module, "weight"), ctx.tensor_of(module, "bias")
    return _convolve(ctx, x, weight, bias, ctx.fact(module.groups), False, _stride(module))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(ctx: Reading, module: Any, x: Labels, output_size: Any = None) -> Labels:
    """A transposed convolution layer."""
    weight, bias = _weight(ctx, module, "weight"), ctx.tensor_of(module, "bias")
    return _convolve(ctx, x, weight, bias, ctx.fact(module.groups), True, _stride(module))


def _follow_groups(ctx: Reading, position: int, groups: int, x: Labels) -> None:
    """A depthwise convolution has as many groups as channels."""
    channel = len(x.full) - len(ctx.output_shape()) + 1
    if ctx.fact(groups) == x.full[channel]:
        ctx.argument(position, "groups", x.shape[channel], groups)


@rule(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, weights=True)
def functional_convolution(
    ctx: Reading,
    input: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Labels:
    """A convolution whose weight is a parameter, or computed in the graph."""
    out = _convolve(ctx, input, weight, bias, ctx.fact(groups), False, stride)
    _follow_groups(ctx, 6, groups, input)
    return out


@rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, weights=True)
def functional_transposed_convolution(
    ctx: Reading,
    input: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Labels:
    """A transposed convolution whose weight is a parameter."""
    out = _convolve(ctx, input, weight, bias, ctx.fact(groups), True, stride)
    _follow_groups(ctx, 6, groups, input)
    return out


def _linear(ctx: Reading, x: Labels, weight: Labels, bias: Labels | None) -> Labels:
    x = ctx.labelled(x)
    last = len(x.full) - 1
    full = ctx.output_shape()
    if len(weight.full) == 1:
        letters = "abcdefgh"[:last]
        out = contract(ctx, f"{letters}y,y->{letters}", [x, ctx.labelled(weight)], [0, 1])
        return out if bias is None else meet(ctx, [out, ctx.labelled(bias)], full)
    if weight.parameter is None:
        letters = "abcdefgh"[:last]
        for dim, role in ((1, "consumer"), (0, "producer")):
            for part in weight.on([dim]):
                ctx.weigh(part.tensor.reshape(-1), role)
        out = contract(ctx, f"{letters}y,zy->{letters}z", [x, weight], [0, 1])
        return out if bias is None else meet(ctx, [out, ctx.labelled(bias)], full)
    line, kept = only_axis(ctx, x, last, range(last), "")
    ctx.reads(0, x, x.on([last]))
    layer = ctx.layer_of(weight.parameter)
    ctx.consume(Axis(weight.parameter, 1), layer, line, "consumer")
    out_line = ctx.produce(Axis(weight.parameter, 0), layer)
    follow(ctx, [bias], out_line)
    ctx.attribute("in_features", line)
    ctx.attribute("out_features", out_line)
    return Labels(full, (*kept, *_made(out_line, weight.full[0], last, len(full))))


@rule(nn.Embedding)
def embedding(ctx: Reading, module: Any, x: Labels) -> Labels:
    """An embedding makes channels from indices."""
    return _embed(ctx, x, _weight(ctx, module, "weight"))


def _embed(ctx: Reading, x: Labels, weight: Labels) -> Labels:
    if weight.parameter is None:
        raise Declined("an embedding with a computed weight has no rule")
    ctx.freeze_all(ctx.labelled(x), "it holds indices")
    out = ctx.produce(Axis(weight.parameter, 1), ctx.layer_of(weight.parameter))
    ctx.attribute("embedding_dim", out)
    full = ctx.output_shape()
    return Labels(full, _made(out, weight.full[1], len(full) - 1, len(full)))


@rule(F.embedding, weights=True)
def functional_embedding(ctx: Reading, input: Labels, weight: Labels, *args: Any, **kwargs: Any) -> Labels:
    """An embedding as a function."""
    return _embed(ctx, input, weight)


@rule(nn.Linear)
def linear(ctx: Reading, module: Any, x: Labels) -> Labels:
    """A linear layer."""
    return _linear(ctx, x, _weight(ctx, module, "weight"), ctx.tensor_of(module, "bias"))


@rule(F.linear, weights=True)
def functional_linear(ctx: Reading, input: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """A linear layer whose weight is a parameter, or computed in the graph."""
    return _linear(ctx, input, weight, bias)


def _bilinear(ctx: Reading, a: Labels, b: Labels, weight: Labels, bias: Labels | None) -> Labels:
    if weight.parameter is None:
        raise Declined("a bilinear layer with a computed weight has no rule")
    full, layer = ctx.output_shape(), ctx.layer_of(weight.parameter)
    last = len(full) - 1
    kept: list[list[Layer]] = []
    for position, x in enumerate((ctx.labelled(a), ctx.labelled(b))):
        line, others = only_axis(ctx, x, last, range(last), "")
        kept.append(others)
        ctx.reads(position, x, x.on([last]))
        ctx.consume(Axis(weight.parameter, position + 1), layer, line, "consumer")
        ctx.attribute(f"in{position + 1}_features", line)
    out = ctx.produce(Axis(weight.parameter, 0), layer)
    follow(ctx, [bias], out)
    ctx.attribute("out_features", out)
    outer = meet(ctx, [Labels(full, tuple(others)) for others in kept], full)
    return Labels(full, (*outer.layers, *_made(out, weight.full[0], last, len(full))))


@rule(nn.Bilinear)
def bilinear(ctx: Reading, module: Any, input1: Labels, input2: Labels) -> Labels:
    """Every pair of channels of two inputs."""
    return _bilinear(ctx, input1, input2, _weight(ctx, module, "weight"), ctx.tensor_of(module, "bias"))


@rule(F.bilinear, weights=True)
def functional_bilinear(ctx: Reading, a: Labels, b: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """A bilinear layer as a function."""
    return _bilinear(ctx, a, b, weight, bias)


@rule("torchvision::deform_conv2d", weights=True)
def deformable_convolution(
    ctx: Reading, input: Labels, weight: Labels, offset: Labels, mask: Labels, bias: Labels, *args: Any
) -> Labels:
    """A convolution that samples where offsets say (Dai et al., 2017, arXiv:1703.06211); the offsets stay."""
    groups, offset_groups = ctx.fact(args[6]), args[7]
    for labels in (offset, mask):
        ctx.freeze_all(ctx.labelled(labels), "it says where a convolution samples")
    if weight.parameter is None or offset_groups > 1 or groups == input.full[1] > 1:
        raise Declined("a deformable convolution of several groups or with a computed weight has no rule")
    return _convolve(ctx, input, weight, bias if bias.full != (0,) else None, groups, False, 2)
