"""Pooling, resizing and other operators that work on positions, channel by channel; and reductions."""

from __future__ import annotations

__all__: list[str] = []

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels
from fxprune.nested import map_nested
from fxprune.reading import Declined, Reading
from fxprune.rules.algebra import sum_over
from fxprune.rules.elementwise import meet_all
from fxprune.rules.table import rule

_TEXT = "an operator over positions needs them whole"


def _local(ctx: Reading, x: Labels, spatial: int) -> Any:
    """Pass on what varies before the last ``spatial`` dimensions; the result may have several outputs."""
    first = len(x.full) - spatial
    for layer in x.on(range(first, len(x.full))):
        ctx.freeze(layer.tensor, _TEXT)
    kept = tuple(x.off(range(first, len(x.full))))
    return map_nested(
        lambda v: Labels(tuple(v.shape), kept, x.why) if isinstance(v, Tensor) else v, ctx.node.meta["val"]
    )


_POOLS = ("MaxPool{}d", "AvgPool{}d", "LPPool{}d", "AdaptiveAvgPool{}d", "AdaptiveMaxPool{}d", "FractionalMaxPool{}d")
_PADS = ("ReflectionPad{}d", "ReplicationPad{}d", "ZeroPad{}d", "CircularPad{}d", "ConstantPad{}d")
_FUNCTIONS = ("max_pool{}d", "avg_pool{}d", "lp_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")


def _layers(dims: int) -> list[Any]:
    names = (*_POOLS, *_PADS)
    return [getattr(nn, n.format(dims)) for n in names if hasattr(nn, n.format(dims))]


def _functions(dims: int) -> list[Any]:
    found: list[Any] = []
    for name in (n.format(dims) for n in _FUNCTIONS):
        for module in (F, torch):
            function = getattr(module, name, None)
            if function is not None and function not in found:
                found.append(function)
    return found


@rule(*_layers(1))
def layer_1d(ctx: Reading, module: Any, x: Labels) -> Any:
    """Pooling or padding of sequences."""
    return _local(ctx, x, 1)


@rule(*_layers(2))
def layer_2d(ctx: Reading, module: Any, x: Labels) -> Any:
    """Pooling or padding of images."""
    return _local(ctx, x, 2)


@rule(*_layers(3))
def layer_3d(ctx: Reading, module: Any, x: Labels) -> Any:
    """Pooling or padding of volumes."""
    return _local(ctx, x, 3)


@rule(*_functions(1))
def pool_1d(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Pooling of sequences as a function."""
    return _local(ctx, input, 1)


@rule(*_functions(2))
def pool_2d(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Pooling of images as a function."""
    return _local(ctx, input, 2)


@rule(*_functions(3))
def pool_3d(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Pooling of volumes as a function."""
    return _local(ctx, input, 3)


@rule(nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d)
def upsample(ctx: Reading, module: Any, x: Labels) -> Any:
    """Resizing layer."""
    return _local(ctx, x, len(x.full) - 2)


@rule(F.interpolate, F.upsample)
def interpolate(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Resizing as a function."""
    return _local(ctx, input, len(input.full) - 2)


@rule(F.grid_sample)
def grid_sample(ctx: Reading, input: Labels, grid: Labels, *args: Any, **kwargs: Any) -> Any:
    """Sampling of positions; those that are sampled stay."""
    ctx.freeze_all(grid, _TEXT)
    return _local(ctx, input, len(input.full) - 2)


def _dims(rank: int, dim: Any) -> list[int]:
    if dim is None or dim == ():
        return list(range(rank))
    return [d % rank for d in (dim if isinstance(dim, tuple | list) else [dim])]


@rule(torch.sum, "sum", torch.norm, "norm", torch.linalg.vector_norm, torch.linalg.norm)
def total(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Sums and norms: exact when what was removed counts as zero."""
    name = str(getattr(ctx.node.target, "__name__", ctx.node.target))
    names = ("dim", "keepdim") if name == "sum" else ("ord", "dim", "keepdim")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("ord", given.get("p", 2)) in (0, float("inf"), float("-inf"), "nuc", "fro") and name == "linalg_norm":
        raise Declined(f"norm of order {given.get('ord')} has no rule")
    dims = _dims(len(input.full), given.get("dim"))
    ctx.reads(ctx.first, input, input.on(dims))
    return sum_over(ctx, input, dims, bool(given.get("keepdim", False)))


def _names_positions(ctx: Reading, outs: Any) -> bool:
    """Whether something uses the positions that an operator gives, which would be others in the pruned network."""
    if isinstance(outs, Tensor):
        return str(getattr(ctx.node.target, "__name__", ctx.node.target)).startswith("arg")
    return any(user.args[1:] in ((1,), ("indices",)) or user.op != "call_function" for user in ctx.node.users)


@rule(
    *(torch.mean, "mean", torch.var, "var", torch.std, "std", torch.amax, "amax", torch.amin, "amin"),
    *(torch.logsumexp, "logsumexp", torch.prod, "prod", torch.max, "max", torch.min, "min", torch.var_mean),
    *(torch.std_mean, torch.median, "median", torch.argmax, "argmax", torch.argmin, "argmin", torch.any, "any"),
    *(torch.all, "all"),
)
def statistic(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Statistics: over channels they depend on how many there are."""
    if any(isinstance(a, Labels) for a in (*args, *kwargs.values())):
        return meet_all(ctx, (input, *args), kwargs)
    given = dict(kwargs)
    dim = args[0] if args and not isinstance(args[0], bool) else given.get("dim")
    dims = _dims(len(input.full), dim)
    outs = ctx.node.meta["val"]
    first = outs if isinstance(outs, Tensor) else outs[0]
    if _names_positions(ctx, outs):
        for layer in input.on(dims):
            ctx.freeze(layer.tensor, "the index of a channel is used")
    ctx.inexact(input.on(dims), dims, "a statistic over channels")
    result = sum_over(ctx, input, dims, len(first.shape) == len(input.full))
    return map_nested(lambda v: result if isinstance(v, Tensor) else v, outs)
