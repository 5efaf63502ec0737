"""What a call gives on meta tensors, by formula: calls of which networks consist, or whose meta kernels are slow.

A formula answers None where it does not cover the arguments, or where the call would fail: then the call is run.
"""

from __future__ import annotations

__all__ = ["ELEMENT_WISE", "FORMULAS", "META", "alike", "element_wise", "empty", "empty_like"]

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_list

META = torch.device("meta")
_new = torch.empty  # while a model is traced, torch.empty is another function

ELEMENT_WISE: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.sub, operator.mul, operator.iadd, operator.isub, operator.imul),
        *(torch.add, torch.sub, torch.mul, torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.sigmoid_),
        *("add", "add_", "sub", "sub_", "mul", "mul_", "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
    }
)
"""Functions, and names of methods, whose result has the shape of their operands broadcast."""


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of this shape on the meta device, with the dtype of another."""
    return _new(shape, dtype=like.dtype, device=META)


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor of the shape and dtype of another on the meta device."""
    return _new(tensor.shape, dtype=tensor.dtype, device=META)


def alike(tensor: Tensor) -> Tensor:
    """As :func:`empty_like`, of a tensor on the meta device, where sharing storage comes to nothing and is faster."""
    return tensor.detach() if tensor.is_meta and tensor.is_contiguous() else empty_like(tensor)


def element_wise(args: tuple[Any, ...]) -> Tensor | None:
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
    return empty(shape, first)


def _concatenated(tensors: Any, dim: Any = 0, **others: Any) -> Tensor | None:
    """Tensors of one dtype that differ in nothing but the size along ``dim``."""
    if _given((), others) or type(tensors) not in (list, tuple, immutable_list) or type(dim) is not int or not tensors:
        return None
    if {type(t) for t in tensors} != {Tensor} or len({t.dtype for t in tensors}) > 1:
        return None
    first = tensors[0]
    shapes = [tuple(t.shape) for t in tensors]
    if len({len(shape) for shape in shapes}) > 1 or not _is_dim(dim, first):
        return None
    dim %= len(shapes[0])
    if len({(shape[:dim], shape[dim + 1 :]) for shape in shapes}) > 1:
        return None
    return empty((*shapes[0][:dim], sum([shape[dim] for shape in shapes]), *shapes[0][dim + 1 :]), first)


def _pooled(x: Any, output_size: Any = None, **others: Any) -> Tensor | None:
    """Adaptive pooling over the last two dimensions to a size of plain numbers."""
    sizes = (output_size,) * 2 if type(output_size) is int else output_size
    if (
        _given((), others)
        or type(x) is not Tensor
        or x.dim() not in (3, 4)
        or type(sizes) not in (tuple, list)
        or len(sizes) != 2
    ):
        return None
    if any(type(size) is not int or size < 1 for size in sizes):
        return None
    return empty((*x.shape[:-2], *sizes), x)


def _holds(*values: Any) -> bool:
    """Whether these are floating-point tensors of one dtype."""
    dtype = values[0].dtype if type(values[0]) is Tensor else None
    return dtype is not None and dtype.is_floating_point and all(type(v) is Tensor and v.dtype is dtype for v in values)


def _given(rest: tuple[Any, ...], others: Mapping[str, Any]) -> bool:
    """Whether further arguments, such as ``out`` or ``dtype``, say anything."""
    return any(value is not None for value in (*rest, *others.values()))


def _is_dim(dim: Any, x: Tensor) -> bool:
    return type(dim) is int and -x.dim() <= dim < x.dim()


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _linear(x: Any, weight: Any = None, bias: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    given = (x, weight) if bias is None else (x, weight, bias)
    if _given(rest, others) or not _holds(*given) or weight.dim() != 2 or not x.dim() or x.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return empty((*x.shape[:-1], weight.shape[0]), x)


def _product(a: Any, b: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    """Matrices of equal batches."""
    if _given(rest, others) or not _holds(a, b) or not a.dim() == b.dim() > 1:
        return None
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    return empty((*a.shape[:-1], b.shape[-1]), a)


def _softmax(x: Any, dim: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    # The function of torch.nn.functional has a stack level before the dtype.
    return None if _given(rest[-1:], others) or not _holds(x) or not _is_dim(dim, x) else alike(x)


def _rolled(x: Any, shifts: Any = None, dims: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    if _given(rest, others) or type(x) is not Tensor:
        return None
    along = (dims,) if type(dims) is int else dims
    steps = (shifts,) if type(shifts) is int else shifts
    if any(type(v) not in (tuple, list, immutable_list) for v in (along, steps)) or len(along) != len(steps):
        return None
    if not all(type(step) is int for step in steps) or not all(_is_dim(dim, x) for dim in along):
        return None
    return alike(x)


def _clamped(x: Any, *args: Any, **named: Any) -> Tensor | None:
    """Between plain numbers."""
    bounds = [b for b in (*args, *named.values()) if b is not None]
    if not _holds(x) or named.keys() - {"min", "max"} or len(args) + len(named) > 2:
        return None
    return alike(x) if bounds and all(_is_number(b) for b in bounds) else None


def _filled(x: Any, mask: Any = None, value: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    """With a plain number, by a mask that is no larger."""
    if _given(rest, others) or not _holds(x) or not _is_number(value):
        return None
    if type(mask) is not Tensor or mask.dtype is not torch.bool:
        return None
    fits = mask.dim() <= x.dim() and all(a in (1, b) for a, b in zip(mask.shape[::-1], x.shape[::-1], strict=False))
    return alike(x) if fits else None


def _normalized(x: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, *rest: Any, **others: Any) -> Tensor | None:
    if _given(rest, others) or not _holds(x) or not _is_dim(dim, x) or not _is_number(p) or not _is_number(eps):
        return None
    return alike(x)


def _layer_norm(
    x: Any, shape: Any = None, weight: Any = None, bias: Any = None, *rest: Any, **others: Any
) -> Tensor | None:
    tensors = [t for t in (weight, bias) if t is not None]
    if (
        _given(rest[1:], others)
        or not _holds(x, *tensors)
        or type(shape) not in (tuple, list, immutable_list)
        or not shape
    ):
        return None
    full = tuple(shape)
    if tuple(x.shape[-len(full) :]) != full or any(tuple(t.shape) != full for t in tensors):
        return None
    return alike(x)


FORMULAS: dict[Any, Callable[..., Tensor | None]] = {
    torch.cat: _concatenated,
    F.adaptive_avg_pool2d: _pooled,
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, operator.matmul, "matmul"), _product),
    **dict.fromkeys((torch.softmax, F.softmax, "softmax"), _softmax),
    **dict.fromkeys((torch.roll, "roll"), _rolled),
    **dict.fromkeys((torch.clamp, "clamp"), _clamped),
    **dict.fromkeys((torch.masked_fill, "masked_fill"), _filled),
    F.normalize: _normalized,
    F.layer_norm: _layer_norm,
}
"""By function, or name of a method; called with the arguments that it is given."""
