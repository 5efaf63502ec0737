"""What a block is called, and what is said of it, in few words."""

from __future__ import annotations

__all__ = ["detail_of", "kind_of"]

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxprune.nested import leaves
from fxprune.opaque import OpaqueCall

_KERNELS = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod", "iand", "ior", "ixor")


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """A layer's class, or what an operator is called."""
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.op == "call_module":
        module = modules[str(node.target)]
        return module.name if isinstance(module, OpaqueCall) else type(module).__name__
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name == "getitem":
        return "slice"
    return name[1:] if name in _IN_PLACE else name.strip("_")


def detail_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Kernel, stride, groups and the like in words; empty where there is nothing to say."""
    if node.op == "call_module":
        return ", ".join(_of_layer(modules[str(node.target)]))
    count = sum(isinstance(leaf, Tensor) for leaf in leaves(node.meta["val"]))
    if count < 2:
        return ""
    return f"{count} tensors" if node.op == "output" else f"into {count}"


def _of_layer(module: nn.Module) -> list[str]:
    if isinstance(module, nn.modules.pooling._AdaptiveAvgPoolNd | nn.modules.pooling._AdaptiveMaxPoolNd):
        size = module.output_size
        return [f"to {'×'.join(str(s) for s in size) if isinstance(size, Sequence) else size}"]
    words = []
    kernel = getattr(module, "kernel_size", None)
    if kernel is not None:
        rank = _rank(module)
        words.append("×".join(str(k) for k in _each(kernel, rank)))
        stride = _each(getattr(module, "stride", 1), rank)
        if max(stride) > 1:
            words.append(f"stride {_short(stride)}")
        dilation = _each(getattr(module, "dilation", 1), rank)
        if max(dilation) > 1:
            words.append(f"dilation {_short(dilation)}")
    groups = getattr(module, "groups", getattr(module, "num_groups", 1))
    if groups > 1:
        words.append("depthwise" if groups == getattr(module, "in_channels", 0) else f"{groups} groups")
    factor = getattr(module, "scale_factor", None) or getattr(module, "upscale_factor", None)
    if isinstance(factor, int | float):
        words.append(f"by {factor:g}")
    return words


def _rank(module: nn.Module) -> int:
    """How many dimensions a layer slides over, by its class's name."""
    return int(next((c for c in reversed(type(module).__name__) if c in "123"), 2))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """A number for each dimension."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "×".join(str(v) for v in values)
