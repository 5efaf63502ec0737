"""Shapes without arithmetic: every traced call is answered on the ``meta`` device.

Layers that make up most of a network have a formula; whatever else is called runs on meta tensors, with meta
stand-ins for its parameters. No weight is read, so a model on the ``meta`` device can be traced as well.
"""

from __future__ import annotations

__all__ = ["MetaRunner", "to_meta"]

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_list

from fxprune.nested import map_nested

META = torch.device("meta")
_new = torch.empty  # while a model is traced, torch.empty is another function

_SAME_SHAPE: frozenset[type[nn.Module]] = frozenset(
    {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.Identity,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.PReLU,
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
        nn.Softmax,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
    }
)
# Those whose meta kernels are slow; tensors among their other arguments have one entry for each channel.
_SAME_SHAPE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {F.batch_norm, F.instance_norm, F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.dropout}
)
_ELEMENT_WISE: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.sub, operator.mul, operator.iadd, operator.isub, operator.imul),
        *(torch.add, torch.sub, torch.mul, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.sigmoid_),
        *("add", "add_", "sub", "sub_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
    }
)
"""Functions, and names of methods, whose result has the shape of their operands broadcast."""
_FACTORIES: frozenset[Any] = frozenset(
    getattr(torch, name)
    for name in (
        *(
            "arange",
            "as_tensor",
            "empty",
            "eye",
            "full",
            "linspace",
            "logspace",
            "ones",
            "rand",
            "randint",
            "randn",
            "randperm",
        ),
        *("tensor", "zeros"),
    )
)
_CONVOLUTIONS: frozenset[type[nn.Module]] = frozenset({nn.Conv1d, nn.Conv2d, nn.Conv3d})


def to_meta(value: Any) -> Any:
    """Replace every tensor in a nested value by a tensor of the same shape and dtype on the ``meta`` device."""
    return map_nested(lambda v: _empty_like(v) if isinstance(v, Tensor) else v, value)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return _new(shape, dtype=like.dtype, device=META)


def _empty_like(tensor: Tensor) -> Tensor:
    return _new(tensor.shape, dtype=tensor.dtype, device=META)


def _element_wise(args: tuple[Any, ...]) -> Tensor | None:
    """Floating-point tensors of one dtype and plain numbers, broadcast."""
    tensors = []
    for value in args:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            tensors.append(value)
        elif kind is not int and kind is not float:
            return None
    if not tensors or not tensors[0].is_floating_point():
        return None
    first = tensors[0]
    shape = first.shape
    for other in tensors[1:]:
        if other.dtype is not first.dtype or not other.dim() or not first.dim():
            return None
        if other.shape != shape:
            shape = torch.Size(np.broadcast_shapes(shape, other.shape))
    return _empty(shape, first)


def _concatenated(tensors: Any, dim: Any = 0) -> Tensor | None:
    """Tensors of one dtype that differ in nothing but the size along ``dim``."""
    if type(tensors) not in (list, tuple, immutable_list) or type(dim) is not int or not tensors:
        return None
    first = tensors[0]
    if any(type(t) is not Tensor or t.dtype is not first.dtype or t.dim() != first.dim() for t in tensors):
        return None
    if not -first.dim() <= dim < first.dim():
        return None
    shape = list(first.shape)
    size, shape[dim] = 0, 0
    for tensor in tensors:
        other = list(tensor.shape)
        size += other[dim]
        other[dim] = 0
        if other != shape:
            return None
    shape[dim] = size
    return _empty(shape, first)


def _pooled(x: Any, output_size: Any) -> Tensor | None:
    """Adaptive pooling over the last two dimensions to a size of plain numbers."""
    sizes = (output_size,) * 2 if type(output_size) is int else output_size
    if type(x) is not Tensor or x.dim() not in (3, 4) or type(sizes) not in (tuple, list) or len(sizes) != 2:
        return None
    if any(type(size) is not int or size < 1 for size in sizes):
        return None
    return _empty((*x.shape[:-2], *sizes), x)


def _convolution_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolution_shape(module: Any, x: Tensor) -> Tensor | None:
    dims = len(module.kernel_size)
    if x.dim() != dims + 2 or x.shape[1] != module.in_channels:
        return None
    if module.padding == "same":
        spatial = list(x.shape[2:])
    else:
        padding = (0,) * dims if module.padding == "valid" else module.padding
        spatial = [
            _convolution_size(*parts)
            for parts in zip(x.shape[2:], module.kernel_size, module.stride, padding, module.dilation, strict=True)
        ]
    if min(spatial, default=1) < 1:
        return None
    return _empty((x.shape[0], module.out_channels, *spatial), x)


class MetaRunner:
    """Answers calls on meta tensors.

    Args:
        device: The device that the model believes to be on; what ``tensor.device`` answers in the traced code.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stand_ins: dict[int, dict[str, Tensor]] = {}

    def attribute(self, tensor: Tensor) -> Tensor:
        """The stand-in of a parameter or buffer."""
        return _empty_like(tensor)

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What calling ``module`` gives: by formula where there is one, else by running it on meta parameters.

        Raises:
            Exception: Whatever the module itself raises for these inputs.
        """
        kind = type(module)
        x = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(x, Tensor):
            if kind in _SAME_SHAPE and not module._forward_hooks and self._accepts(module, x):
                return _empty_like(x)
            if kind in _CONVOLUTIONS and not module._forward_hooks:
                shaped = _convolution_shape(module, x)
                if shaped is not None:
                    return shaped
            if kind is nn.AdaptiveAvgPool2d and not module._forward_hooks:
                pooled = _pooled(x, module.output_size)
                if pooled is not None:
                    return pooled
            if isinstance(module, nn.Linear) and kind is nn.Linear and x.dim() and x.shape[-1] == module.in_features:
                return _empty((*x.shape[:-1], module.out_features), x)
        tensors = self._stand_ins.get(id(module))
        if tensors is None:
            named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
            tensors = {name: _empty_like(tensor) for name, tensor in named}
            self._stand_ins[id(module)] = tensors
        with torch.no_grad():
            return torch.func.functional_call(module, tensors, args, dict(kwargs))

    @staticmethod
    def _accepts(module: nn.Module, x: Tensor) -> bool:
        """Whether a shape-keeping layer fits its input; if not, running it raises the layer's own error."""
        check: Callable[[Tensor], None] | None = getattr(module, "_check_input_dim", None)
        if check is not None:
            check(x)
        channels = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
        if channels is not None:
            return x.dim() > 1 and x.shape[1] == channels
        if isinstance(module, nn.PReLU):
            return module.num_parameters == 1 or (x.dim() > 1 and x.shape[1] == module.num_parameters)
        if isinstance(module, nn.Softmax) and module.dim is not None:
            x.size(module.dim)  # on the meta device nothing else says that there is no such dimension
        shape = getattr(module, "normalized_shape", None)
        return shape is None or tuple(x.shape[-len(shape) :]) == tuple(shape)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a function gives on meta tensors; devices in the arguments become ``meta``."""
        x = args[0] if args else None
        if function in _SAME_SHAPE_FUNCTIONS and isinstance(x, Tensor) and not kwargs.get("inplace"):
            sizes = [len(v) for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
            if x.dim() > 1 and all(size == x.shape[1] for size in sizes):
                return _empty_like(x)
        quick = None
        if function in _ELEMENT_WISE and not kwargs:
            quick = _element_wise(args)
        elif function is torch.cat and args and not kwargs.keys() - {"dim"}:
            quick = _concatenated(*args, **kwargs)
        elif function is F.adaptive_avg_pool2d and args:
            quick = _pooled(*args, **kwargs)
        if quick is not None:
            return quick
        named: dict[str, Any] = map_nested(self._undevice, dict(kwargs))
        if function in _FACTORIES:
            named["device"] = META
        with torch.no_grad():
            return function(*map_nested(self._undevice, args), **named)

    def method(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a tensor's method gives on meta tensors."""
        if name in ("cuda", "cpu", "pin_memory"):
            return args[0]
        if name in _ELEMENT_WISE and not kwargs:
            quick = _element_wise(args)
            if quick is not None:
                return quick
        args = map_nested(self._undevice, args)
        if name == "to" and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], META, *args[2:])
        with torch.no_grad():
            return getattr(args[0], name)(*args[1:], **map_nested(self._undevice, dict(kwargs)))

    def get(self, value: Any, name: str) -> Any:
        """An attribute of a value; a tensor's device is the model's, never ``meta``."""
        if isinstance(value, Tensor):
            if name == "device":
                return self.device
            if name == "is_cuda":
                return self.device.type == "cuda"
            if name == "is_meta":
                return self.device.type == "meta"
        return to_meta(getattr(value, name))

    @staticmethod
    def _undevice(value: Any) -> Any:
        return META if isinstance(value, torch.device) else value
