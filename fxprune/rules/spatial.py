"""Pooling, resizing and other operators that work on positions, channel by channel; and reductions."""

from __future__ import annotations

__all__: list[str] = []

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.labels import Labels, Layer
from fxprune.nested import map_nested
from fxprune.reading import Reading
from fxprune.rules.algebra import axis, meet, place, sum_of_powers, sum_over
from fxprune.rules.elementwise import meet_all
from fxprune.rules.table import rule

_TEXT = "an operator over positions needs them whole"


def _local(ctx: Reading, x: Labels, spatial: int) -> Any:
    """Pass on what varies before the last ``spatial`` dimensions; the result may have several outputs."""
    return _whole(ctx, x, range(-spatial, 0), _TEXT)


def _whole(ctx: Reading, x: Labels, dims: Iterable[int], text: str) -> Any:
    """Pass on what varies along none of the dimensions; they stay whole."""
    along = [dim % len(x.full) for dim in dims]
    for layer in x.on(along):
        ctx.freeze(layer.tensor, text)
    kept = tuple(x.off(along))
    return map_nested(
        lambda v: Labels(tuple(v.shape), kept, x.why) if isinstance(v, Tensor) else v, ctx.node.meta["val"]
    )


_POOLS = ("MaxPool{}d", "AvgPool{}d", "LPPool{}d", "AdaptiveAvgPool{}d", "AdaptiveMaxPool{}d", "FractionalMaxPool{}d")
_PADS = ("ReflectionPad{}d", "ReplicationPad{}d", "ZeroPad{}d", "CircularPad{}d", "ConstantPad{}d")
_FUNCTIONS = (
    *("max_pool{}d", "avg_pool{}d", "lp_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d"),
    *("max_pool{}d_with_indices", "adaptive_max_pool{}d_with_indices"),
    *("fractional_max_pool{}d", "fractional_max_pool{}d_with_indices"),
)


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


@rule(F.max_unpool1d, F.max_unpool2d, F.max_unpool3d, sizes=True)
def unpool(ctx: Reading, input: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Any:
    """The way back from max pooling: every channel by itself, as its indices are positions within it."""
    return _unpool(ctx, input, indices, int(ctx.node.target.__name__[-2]))  # type: ignore[union-attr]


@rule(nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d, sizes=True)
def unpool_layer(ctx: Reading, module: Any, x: Labels, indices: Labels, output_size: Any = None) -> Any:
    """The way back from max pooling as a layer."""
    return _unpool(ctx, x, indices, int(type(module).__name__[-2]))


def _unpool(ctx: Reading, x: Labels, indices: Labels, spatial: int) -> Any:
    return _local(ctx, meet(ctx, [x, indices], x.full), spatial)


# Frequencies ----------------------------------------------------------------------------------------------------------

_ALONG_ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@rule(*(getattr(torch.fft, name) for name in _ALONG_ONE))
def fourier(ctx: Reading, input: Labels, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
    """A Fourier transform along one dimension, which it needs whole."""
    return _whole(ctx, input, [dim], _TEXT)


@rule(*(getattr(torch.fft, name) for name in ("fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2")))
def fourier_2d(ctx: Reading, input: Labels, s: Any = None, dim: Any = (-2, -1), norm: str | None = None) -> Any:
    """A Fourier transform along two dimensions."""
    return _whole(ctx, input, dim, _TEXT)


@rule(*(getattr(torch.fft, name) for name in ("fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn")))
def fourier_nd(ctx: Reading, input: Labels, s: Any = None, dim: Any = None, norm: str | None = None) -> Any:
    """A Fourier transform along several dimensions; all of them unless it is told which, or how many sizes."""
    rank = len(input.full)
    return _whole(ctx, input, dim if dim is not None else range(-len(s) if s is not None else -rank, 0), _TEXT)


@rule(torch.fft.fftshift, torch.fft.ifftshift)
def frequencies_shifted(ctx: Reading, input: Labels, dim: Any = None) -> Any:
    """Frequencies in another order."""
    dims = range(len(input.full)) if dim is None else dim if isinstance(dim, tuple | list) else [dim]
    return _whole(ctx, input, dims, _TEXT)


@rule(torch.view_as_complex)
def pairs(ctx: Reading, input: Labels) -> Any:
    """The last dimension holds real and imaginary parts."""
    last = len(input.full) - 1
    found = _whole(ctx, input, [last], _TEXT)
    return Labels(found.full, tuple(Layer(layer.tensor.squeeze(-1), layer.dims) for layer in found.layers), input.why)


# Patches --------------------------------------------------------------------------------------------------------------


def _unfold(ctx: Reading, x: Labels) -> Any:
    """Patches as columns: the positions of a patch stand next to one another, channel by channel."""
    shape = ctx.output_shape()
    batch = len(x.full) - 3
    for layer in x.on([batch + 1, batch + 2]):
        ctx.freeze(layer.tensor, _TEXT)
    positions = shape[batch] // x.full[batch]
    value = Labels(x.full, tuple(x.off([batch + 1, batch + 2])), x.why)

    def spread(t: Tensor) -> Tensor:
        rows = t[..., 0, 0].repeat_interleave(positions, batch)
        return rows[..., None].expand(*rows.shape, shape[-1])

    return ctx.move(spread, value, (), {}, None)


@rule(F.unfold, sizes=True)
def unfold(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """Patches as columns."""
    return _unfold(ctx, input)


@rule(nn.Unfold)
def unfold_layer(ctx: Reading, module: Any, x: Labels) -> Any:
    """Patches as columns, as a layer."""
    return _unfold(ctx, x)


def _fold(ctx: Reading, x: Labels) -> Labels:
    """Patches back into an image: what overlaps is added, and the positions of a patch live and die together."""
    full = ctx.output_shape()
    channel = len(full) - 3
    others = x.off([channel, channel + 1])
    for layer in x.on([channel + 1]):
        ctx.freeze(layer.tensor, _TEXT)
    if not x.on([channel]):
        return Labels(full, (), x.why)
    patches = axis(ctx, x, channel).reshape(-1, x.full[channel] // full[channel])
    ctx.tie(patches, patches[:, :1])
    made = (place(patches[:, 0], channel, len(full)),) if full[channel] > 1 else ()
    layers = (Layer(v.tensor[..., None], v.dims) for v in others)
    return Labels(full, (*layers, *made), x.why)


@rule(F.fold)
def fold_patches(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Patches back into an image."""
    return _fold(ctx, input)


@rule(nn.Fold)
def fold_layer(ctx: Reading, module: Any, x: Labels) -> Labels:
    """Patches back into an image, as a layer."""
    return _fold(ctx, x)


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


@rule(F.affine_grid, sizes=True)
def affine_grid(ctx: Reading, theta: Labels, size: Any, align_corners: bool | None = None) -> Any:
    """Positions to sample at; of the size only the batch and the positions count."""
    ctx.freeze_all(theta, "it says where positions are sampled")
    return ctx.unlabelled(ctx.node.meta["val"], ctx.reason(_TEXT))


def _dims(rank: int, dim: Any) -> list[int]:
    if dim is None or dim == ():
        return list(range(rank))
    return [d % rank for d in (dim if isinstance(dim, tuple | list) else [dim])]


@rule(torch.sum, "sum", torch.nansum, "nansum")
def total(ctx: Reading, input: Labels, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Labels:
    """A sum: exact when what was removed counts as zero."""
    dims = _dims(len(input.full), dim)
    ctx.reads(0, input, input.on(dims))
    return sum_over(ctx, input, dims, keepdim)


@rule(torch.count_nonzero, "count_nonzero")
def count(ctx: Reading, input: Labels, dim: Any = None) -> Labels:
    """How many are not zero, which what was removed is."""
    return total(ctx, input, dim)


@rule(torch.norm, "norm", torch.linalg.vector_norm, torch.linalg.norm, torch.linalg.matrix_norm)
def norm(
    ctx: Reading, input: Labels, order: Any = None, dim: Any = None, keepdim: Any = False, *args: Any, **kwargs: Any
) -> Labels:
    """Norms of vectors and matrices: exact when what was removed counts as zero, unless zeros decide them."""
    if dim is None and ctx.node.target is torch.linalg.matrix_norm:
        dim = (-2, -1)
    dims = _dims(len(input.full), dim)
    sum_of_powers(ctx, input, dims, kwargs.get("p", kwargs.get("ord", order)))
    return sum_over(ctx, input, dims, keepdim)


def _names_positions(ctx: Reading, outs: Any) -> bool:
    """Whether something uses the positions that an operator gives, which would be others in the pruned network."""
    if isinstance(outs, Tensor):
        return str(getattr(ctx.node.target, "__name__", ctx.node.target)).startswith("arg")
    used = (user.args[1:] in ((1,), ("indices",)) or user.op != "call_function" for user in ctx.node.users)
    return hasattr(outs, "indices") and any(used)


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
    dim = args[0] if args and not isinstance(args[0], bool) else kwargs.get("dim")
    dims = _dims(len(input.full), dim)
    outs = ctx.node.meta["val"]
    first = outs if isinstance(outs, Tensor) else outs[0]
    if _names_positions(ctx, outs):
        for layer in input.on(dims):
            ctx.freeze(layer.tensor, "the index of a channel is used")
    ctx.inexact(input.on(dims), dims, "a statistic over channels")
    result = sum_over(ctx, input, dims, len(first.shape) == len(input.full))
    return map_nested(lambda v: result if isinstance(v, Tensor) else v, outs)


@rule(
    *(torch.cumsum, "cumsum", torch.cumprod, "cumprod", torch.cummax, "cummax", torch.cummin, "cummin"),
    *(torch.logcumsumexp, "logcumsumexp", torch.sort, "sort", torch.argsort, "argsort", torch.diff, "diff"),
    *(torch.topk, "topk"),
)
def along(ctx: Reading, input: Labels, *args: Any, **kwargs: Any) -> Any:
    """What looks along a dimension, one channel after another, needs it whole."""
    counted = getattr(ctx.node.target, "__name__", ctx.node.target) in ("topk", "diff")
    rest = args[1:] if counted else args
    dim = kwargs.get("dim", rest[0] if rest else -1)
    return _whole(ctx, input, [dim], "an operator along channels needs them whole")
