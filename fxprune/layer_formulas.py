"""What layers give on meta tensors, by formula: those of which networks consist.

A formula answers None where the call would fail: then the layer is run, and says so itself.
"""

from __future__ import annotations

__all__ = ["LAYERS"]

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.formulas import FORMULAS, alike, empty

_POINTWISE: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Identity,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.ELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Softplus,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
    }
)
"""Layers that take any shape and keep it."""
_SAME_SHAPE: frozenset[type[nn.Module]] = frozenset(
    {
        nn.GroupNorm,
        nn.LayerNorm,
        nn.PReLU,
        nn.Softmax,
    }
)
"""Layers that keep the shape, if it is one that they take."""
_PER_CHANNEL: frozenset[type[nn.Module]] = frozenset(
    {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    }
)
"""Layers that keep the shape of what has their number of channels."""


def _pointwise(module: Any, x: Tensor) -> Tensor:
    return alike(x)


def _per_channel(module: Any, x: Tensor) -> Tensor | None:
    module._check_input_dim(x)
    return alike(x) if x.dim() > 1 and x.shape[1] == module.num_features else None


def _same_shape(module: Any, x: Tensor) -> Tensor | None:
    if isinstance(module, nn.PReLU):
        fits = module.num_parameters == 1 or (x.dim() > 1 and x.shape[1] == module.num_parameters)
    elif isinstance(module, nn.GroupNorm):
        fits = x.dim() > 1 and x.shape[1] == module.num_channels
    elif isinstance(module, nn.LayerNorm):
        fits = tuple(x.shape[-len(module.normalized_shape) :]) == tuple(module.normalized_shape)
    else:  # a softmax; on the meta device nothing else says that there is no such dimension
        fits = module.dim is None or x.size(module.dim) >= 0
    return alike(x) if fits else None


def _size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolution(module: Any, x: Tensor) -> Tensor | None:
    kernel, full = module.kernel_size, x.shape
    dims = len(kernel)
    if len(full) != dims + 2 or full[1] != module.in_channels:
        return None
    padding = module.padding
    if padding == "same":
        spatial = list(full[2:])
    else:
        padding = (0,) * dims if padding == "valid" else padding
        spatial = list(map(_size, full[2:], kernel, module.stride, padding, module.dilation))
    if min(spatial, default=1) < 1:
        return None
    return empty((full[0], module.out_channels, *spatial), x)


def _linear(module: Any, x: Tensor) -> Tensor | None:
    if not x.dim() or x.shape[-1] != module.in_features:
        return None
    return empty((*x.shape[:-1], module.out_features), x)


def _pair(value: Any) -> tuple[int, ...] | None:
    pair = (value, value) if type(value) is int else value
    return pair if type(pair) is tuple and len(pair) == 2 and all(type(v) is int for v in pair) else None


def _pooled(module: Any, x: Tensor) -> Tensor | None:
    """Pooling by plain numbers over the last two dimensions, whole windows only."""
    if module.ceil_mode or x.dim() != 4 or getattr(module, "return_indices", False):
        return None
    kernel, padding, dilation = (_pair(getattr(module, n, 1)) for n in ("kernel_size", "padding", "dilation"))
    stride = kernel if module.stride is None else _pair(module.stride)
    if kernel is None or stride is None or padding is None or dilation is None:
        return None
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)) or min(*kernel, *stride, *dilation) < 1:
        return None
    spatial = list(map(_size, x.shape[2:], kernel, stride, padding, dilation))
    return empty((*x.shape[:2], *spatial), x) if min(spatial) > 0 and min(padding) >= 0 else None


def _pooled_to_size(module: Any, x: Tensor) -> Tensor | None:
    return FORMULAS[F.adaptive_avg_pool2d](x, module.output_size)


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_PER_CHANNEL, _per_channel),
    **dict.fromkeys(_SAME_SHAPE, _same_shape),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), _pooled),
    nn.Linear: _linear,
    nn.AdaptiveAvgPool2d: _pooled_to_size,
}
"""By class; called with the layer and its only argument."""
