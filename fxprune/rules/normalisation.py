"""Layers with one parameter for each channel, and normalisations over channels."""

from __future__ import annotations

__all__: list[str] = []

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels, first_per_line
from fxprune.reading import Reading
from fxprune.rules.algebra import axis, follow, meet, place, sum_of_powers
from fxprune.rules.table import rule

_NAMES = ("weight", "bias", "running_mean", "running_var")


def _named(ctx: Reading, module: nn.Module) -> list[Labels]:
    return [tensor for name in _NAMES if (tensor := ctx.tensor_of(module, name)) is not None]


def _per_channel(ctx: Reading, x: Labels, tensors: Sequence[Labels | None], pooled: bool) -> tuple[Labels, Tensor]:
    x = ctx.labelled(x)
    line = axis(ctx, x, 1)
    follow(ctx, tensors, line)
    others = x.off([1])
    if pooled:
        ctx.inexact(others, [d for d in range(len(x.full)) if d != 1], "statistics over positions that can be removed")
    if x.layers and x.layers[-1].line is line:  # in most networks channels are all that it has labels for
        return x, line
    made = (place(line, 1, len(x.full)),) if x.full[1] > 1 else ()
    return Labels(x.full, (*others, *made), x.why), line


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167): every channel by itself."""
    out, line = _per_channel(ctx, x, _named(ctx, module), module.running_mean is None)
    ctx.attribute("num_features", line)
    return out


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Instance norm: every channel by itself."""
    out, line = _per_channel(ctx, x, _named(ctx, module), True)
    ctx.attribute("num_features", line)
    return out


@rule(F.batch_norm, F.instance_norm, weights=True)
def functional_norm(
    ctx: Reading,
    input: Labels,
    running_mean: Labels | None = None,
    running_var: Labels | None = None,
    weight: Labels | None = None,
    bias: Labels | None = None,
    *args: Any,
    **kwargs: Any,
) -> Labels:
    """Batch norm or instance norm as a function."""
    return _per_channel(ctx, input, (running_mean, running_var, weight, bias), running_mean is None)[0]


@rule(nn.PReLU)
def prelu(ctx: Reading, module: Any, x: Labels) -> Labels:
    """PReLU: one slope for all channels, or one for each."""
    return _prelu(ctx, x, _named(ctx, module)[0])


def _prelu(ctx: Reading, x: Labels, weight: Labels) -> Labels:
    if weight.full[0] == 1:
        return x
    out, line = _per_channel(ctx, x, [weight], False)
    ctx.attribute("num_parameters", line)
    return out


@rule(F.prelu, torch.prelu, weights=True)
def functional_prelu(ctx: Reading, input: Labels, weight: Labels) -> Labels:
    """PReLU as a function."""
    return _prelu(ctx, input, weight)


def _group_norm(ctx: Reading, x: Labels, groups: int, tensors: Sequence[Labels | None]) -> Labels:
    out, line = _per_channel(ctx, x, tensors, True)
    channels = x.full[1]
    if groups < channels:
        ctx.inexact([place(line, 1, len(x.full))], [1], "statistics over the channels of a group")
        if groups > 1:
            ctx.blocks(line.reshape(groups, -1))
    ctx.attribute("num_channels", line)
    if groups == channels:
        ctx.attribute("num_groups", line)
    return out


@rule(nn.GroupNorm)
def group_norm(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Group norm (Wu and He, 2018, arXiv:1803.08494): every group keeps equally many channels."""
    return _group_norm(ctx, x, ctx.fact(module.num_groups), _named(ctx, module))


@rule(F.group_norm, weights=True)
def functional_group_norm(
    ctx: Reading,
    input: Labels,
    num_groups: int,
    weight: Labels | None = None,
    bias: Labels | None = None,
    eps: float = 1e-5,
) -> Labels:
    """Group norm as a function."""
    groups = ctx.fact(num_groups)
    out = _group_norm(ctx, input, groups, [weight, bias])
    if groups == input.full[1]:
        ctx.argument(1, "num_groups", out.shape[1], num_groups)
    return out


def _layer_norm(ctx: Reading, x: Labels, rank: int, tensors: Sequence[Labels | None]) -> Labels:
    first = len(x.full) - rank
    ctx.inexact(x.on(range(first, len(x.full))), range(first, len(x.full)), "statistics over channels")
    x = ctx.labelled(x)
    values = [ctx.labelled(t) for t in tensors if t is not None]
    return meet(ctx, [x, *values], x.full)


def _last_line(out: Labels, rank: int) -> Tensor | None:
    """The labels that a norm runs over, if they lie along the last dimension alone."""
    last = len(out.full) - 1
    layers = out.on([last])
    return first_per_line(layers[0], last) if rank == 1 and layers and layers[0].dims == (last,) else None


def _shape_of(count: int) -> tuple[int, ...]:
    """The shape that a norm runs over, of so many channels."""
    return (count,)


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Layer norm (Ba et al., 2016, arXiv:1607.06450) over the last dimensions."""
    rank = len(module.normalized_shape)
    out = _layer_norm(ctx, x, rank, _named(ctx, module))
    line = _last_line(out, rank)
    if line is not None:
        ctx.attribute("normalized_shape", line, _shape_of)
    else:
        ctx.attribute_value("normalized_shape", out.shape[len(out.full) - rank :])
    return out


@rule(F.layer_norm, torch.layer_norm, sizes=True, weights=True)
def functional_layer_norm(
    ctx: Reading,
    input: Labels,
    normalized_shape: Any,
    weight: Labels | None = None,
    bias: Labels | None = None,
    *_: Any,
    **__: Any,
) -> Labels:
    """Layer norm as a function; its shape argument follows the channels."""
    rank = len(normalized_shape)
    out = _layer_norm(ctx, input, rank, [weight, bias])
    line = _last_line(out, rank)
    if line is not None:
        ctx.counted_argument(1, "normalized_shape", line, _shape_of, tuple(normalized_shape))
    else:
        ctx.argument(1, "normalized_shape", tuple(out.shape[len(out.full) - rank :]), tuple(normalized_shape))
    return out


@rule(F.rms_norm, torch.rms_norm, sizes=True, weights=True)
def functional_rms_norm(
    ctx: Reading, input: Labels, normalized_shape: Any, weight: Labels | None = None, eps: float | None = None
) -> Labels:
    """RMS norm as a function: a layer norm without a bias."""
    return functional_layer_norm(ctx, input, normalized_shape, weight)


@rule(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(ctx: Reading, *args: Any, **kwargs: Any) -> Labels:
    """Local response norm sums over neighbouring channels."""
    x: Labels = next(a for a in args if isinstance(a, Labels))
    ctx.inexact(x.on([1]), [1], "statistics over neighbouring channels")
    ctx.ordered(x.on([1]))
    return x


def _softmax(ctx: Reading, x: Labels, dim: int | None) -> Labels:
    if dim is None:
        dim = 0 if len(x.full) in (0, 1, 3) else 1
    ctx.inexact(x.on([dim % len(x.full)]), [dim % len(x.full)], "a softmax over channels")
    return x


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_layer(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Softmax over one dimension."""
    return _softmax(ctx, x, module.dim)


@rule(nn.Softmax2d)
def softmax_2d(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Softmax over channels."""
    return _softmax(ctx, x, -3)


@rule(F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.log_softmax, "softmax", "log_softmax")
def softmax(ctx: Reading, input: Labels, dim: int | None = None, *args: Any, **kwargs: Any) -> Labels:
    """Softmax as a function."""
    return _softmax(ctx, input, dim)


@rule(F.normalize)
def normalize(ctx: Reading, input: Labels, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Labels:
    """Division by a norm: exact when what was removed counts as zero."""
    dims = [d % len(input.full) for d in (dim if isinstance(dim, tuple | list) else [dim])]
    sum_of_powers(ctx, input, dims, p)
    return input
