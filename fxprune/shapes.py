"""Shapes without arithmetic: every traced call is answered on the ``meta`` device.

Layers that make up most of a network have a formula; whatever else is called runs on meta tensors, with meta
stand-ins for its parameters. No weight is read, so a model on the ``meta`` device can be traced as well.
"""

from __future__ import annotations

__all__ = ["MetaRunner", "to_meta"]

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.formulas import ELEMENT_WISE, FORMULAS, META, alike, element_wise, empty_like
from fxprune.layer_formulas import LAYERS
from fxprune.nested import map_nested

# Those whose meta kernels are slow; tensors among their other arguments have one entry for each channel.
_SAME_SHAPE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {F.batch_norm, F.instance_norm, F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.dropout}
)
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


def to_meta(value: Any) -> Any:
    """Replace every tensor in a nested value by a tensor of the same shape and dtype on the ``meta`` device."""
    return map_nested(lambda v: empty_like(v) if isinstance(v, Tensor) else v, value)


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
        return empty_like(tensor)

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What calling ``module`` gives: by formula where there is one, else by running it on meta parameters.

        Raises:
            Exception: Whatever the module itself raises for these inputs.
        """
        if len(args) == 1 and not kwargs and not module._forward_hooks and isinstance(args[0], Tensor):
            formula = LAYERS.get(type(module))
            shaped = formula(module, args[0]) if formula is not None else None
            if shaped is not None:
                return shaped
        tensors = self._stand_ins.get(id(module))
        if tensors is None:
            named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
            tensors = {name: empty_like(tensor) for name, tensor in named}
            self._stand_ins[id(module)] = tensors
        with torch.no_grad():
            return torch.func.functional_call(module, tensors, args, dict(kwargs))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a function gives on meta tensors; devices in the arguments become ``meta``."""
        x = args[0] if args else None
        if function in _SAME_SHAPE_FUNCTIONS and isinstance(x, Tensor) and not kwargs.get("inplace"):
            sizes = [len(v) for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
            if x.dim() > 1 and all(size == x.shape[1] for size in sizes):
                return alike(x)
        quick = self._quick(function, args, kwargs)
        if quick is not None:
            return quick
        named: dict[str, Any] = map_nested(self._undevice, dict(kwargs))
        if function in _FACTORIES:
            named["device"] = META
        with torch.no_grad():
            return function(*map_nested(self._undevice, args), **named)

    @staticmethod
    def _quick(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What a function or method gives, if there is a formula for it."""
        if target in ELEMENT_WISE:
            return None if kwargs else element_wise(args)
        formula = FORMULAS.get(target)
        return formula(*args, **kwargs) if formula is not None and args else None

    def method(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a tensor's method gives on meta tensors."""
        if name in ("cuda", "cpu", "pin_memory"):
            return args[0]
        quick = self._quick(name, args, kwargs)
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
