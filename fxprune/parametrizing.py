"""Masks inside a module: ``torch.nn.utils.parametrize`` parametrizations that can be copied, pickled and taken out.

torch gives every parametrized module a class of its own, but a deep copy shares that class with its original, so that
taking a parametrization out of the one breaks the other, and it refuses to be pickled. Both are put right here.
"""

from __future__ import annotations

__all__ = ["Mask", "attach_masks", "copy_network", "fold_masks", "freeze_parametrizations"]

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from fxprune.errors import ArgumentError, ArgumentTypeError, WeightError
from fxprune.masks import WeightPlace, find_place, parameter_name, weight_places
from fxprune.nested import registered


class Mask(nn.Module):
    """A parametrization that keeps pruned weights at zero.

    The mask is a boolean buffer. So it moves with ``.to(device)``, is broadcast by ``DistributedDataParallel`` and
    saved in the ``state_dict``, stays a mask under ``.half()``, and takes a quarter of a float32 mask's memory.
    Selecting instead of multiplying makes a pruned weight zero, with gradient zero, even where the stored
    value or the incoming gradient is not finite; and the stored value is zero as well, so that neither momentum nor
    weight decay can bring it back.

    Args:
        mask: Boolean tensor of the parameter's shape; True where the weight is kept.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with zeros where it is pruned."""
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when a value is assigned: pruned entries are dropped."""
        return torch.where(self.mask, weight, 0)


def copy_network(gm: fx.GraphModule) -> fx.GraphModule:
    """A deep copy that shares nothing with the original, not even the classes of parametrized modules."""
    copied: fx.GraphModule = copy.deepcopy(gm)
    for module in copied.modules():
        holder = registered(module, "_modules").get("parametrizations")
        if holder is None or not any(isinstance(m, ParametrizationList) for m in holder._modules.values()):
            continue
        if not isinstance(holder, nn.ModuleDict):
            # A GraphModule built from another one has plain containers where its graph names a parametrization.
            module._modules["parametrizations"] = nn.ModuleDict(
                {name: m for name, m in holder._modules.items() if m is not None}
            )
        _give_own_class(module)
    return copied


def attach_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Register masks in place. A parameter that has one already keeps both: what either removes is removed.

    Args:
        network: The module to change.
        masks: Boolean tensors by parameter name; True where the weight is kept.

    Raises:
        UnknownNameError: There is no parameter of a given name.
        ArgumentTypeError: A mask is not a boolean tensor.
        ArgumentError: A mask has another shape than its parameter.
    """
    places = weight_places(network)
    for name, mask in masks.items():
        _check_mask(name, mask, find_place(places, name).value)
    for name, mask in masks.items():
        place = places[name]
        # A tied weight is masked wherever it is used, by one and the same mask.
        tied = [other for other in places.values() if other.identity == place.identity]
        own = torch.empty_like(place.value, dtype=torch.bool, requires_grad=False).copy_(mask)
        _attach(tied, own)
    _retarget(network)


def _check_mask(name: str, mask: object, value: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        kind = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentTypeError(f"the mask of '{name}' must be a boolean tensor (True where kept), not {kind}")
    if mask.shape != value.shape:
        raise ArgumentError(
            f"the mask of '{name}' has shape {tuple(mask.shape)}, but the parameter has shape {tuple(value.shape)}"
        )


def _attach(tied: list[WeightPlace], mask: Tensor) -> None:
    stored = [place.parametrization for place in tied]
    if stored[0] is not None and isinstance(stored[0][-1], Mask):
        stored[0][-1].mask.logical_and_(mask)
        for parametrization in stored:
            if parametrization is not None and parametrization[0] is stored[0][-1]:
                _drop_pruned(parametrization)
        return
    shared = Mask(mask)
    for owner, attribute in dict.fromkeys((place.owner, place.attribute) for place in tied):
        parametrize.register_parametrization(owner, attribute, shared)
        owner.parametrizations.train(owner.training)  # type: ignore[union-attr]
        _give_own_class(owner)


@torch.no_grad()
def _drop_pruned(stored: ParametrizationList) -> None:
    stored.original.copy_(stored[0](stored.original))


def fold_masks(network: nn.Module) -> bool:
    """Multiply every mask into its parameter and take it out, in place; other parametrizations stay.

    Args:
        network: The module to change.

    Returns:
        Whether there was a mask.

    Raises:
        WeightError: A mask lies over another parametrization that cannot represent the masked weight.
    """
    masked = {
        (place.owner, place.attribute): name
        for name, place in reversed(weight_places(network).items())
        if place.parametrization is not None and any(isinstance(m, Mask) for m in place.parametrization)
    }
    for (owner, attribute), name in masked.items():
        stored = WeightPlace(owner, attribute).parametrization
        assert stored is not None
        while (index := next((i for i, m in enumerate(stored) if isinstance(m, Mask)), None)) is not None:
            _fold_one(stored, index, name)
        if len(stored) == 0:
            original = stored.original
            assert isinstance(original, nn.Parameter)
            _unparametrize(owner, attribute, original)
    _retarget(network)
    return bool(masked)


@torch.no_grad()
def _fold_one(stored: ParametrizationList, index: int, name: str) -> None:
    if index == 0:
        _drop_pruned(stored)
    else:
        masked = _value_after(stored, index)
        original: Any = masked
        for module in reversed(list(stored)[:index]):
            if hasattr(module, "right_inverse"):
                original = module.right_inverse(original)  # type: ignore[operator]
        for target, source in zip(_originals(stored), (original,) if stored.is_tensor else original, strict=True):
            target.copy_(source)
        if not torch.allclose(_value_after(stored, index - 1), masked, rtol=1e-5, atol=1e-7):
            kinds = ", ".join(type(module).__name__ for module in list(stored)[:index])
            raise WeightError(
                f"'{name}' is computed by a parametrization of your own ({kinds}) that cannot represent the masked "
                f"weight: take it out with torch.nn.utils.parametrize.remove_parametrizations before pruning"
            )
    del stored[index]


def freeze_parametrizations(network: nn.Module) -> None:
    """Replace every parametrized parameter by a plain one of its present value, in place; shared ones stay shared."""
    frozen: dict[tuple[int, ...], nn.Parameter] = {}
    for place in dict.fromkeys(weight_places(network).values()):
        stored = place.parametrization
        if stored is not None:
            trained = any(tensor.requires_grad for tensor in stored.parameters(recurse=False))
            value = place.value.detach().clone()
            parameter = frozen.setdefault(place.identity, nn.Parameter(value, requires_grad=trained))
            _unparametrize(place.owner, place.attribute, parameter)
    _retarget(network)


def _originals(stored: ParametrizationList) -> list[Tensor]:
    names = ["original"] if stored.is_tensor else [f"original{i}" for i in range(stored.ntensors)]
    return [getattr(stored, name) for name in names]


def _value_after(stored: ParametrizationList, index: int) -> Tensor:
    value: Tensor = stored[0](*_originals(stored))
    for module in list(stored)[1 : index + 1]:
        value = module(value)
    return value


def _unparametrize(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    base = _plain_class(owner)
    holder = owner._modules["parametrizations"]
    assert holder is not None
    del holder._modules[attribute]
    if holder._modules:
        _give_own_class(owner, base)
    else:
        del owner._modules["parametrizations"]
        owner.__class__ = base
    others = list(owner._parameters)
    owner.register_parameter(attribute, parameter)
    # Weights come first in every layer of torch, and so in its state_dict.
    for other in others:
        owner._parameters[other] = owner._parameters.pop(other)
    if isinstance(owner, fx.GraphModule):
        owner.recompile()


def _retarget(network: nn.Module) -> None:
    """Let graphs call a parametrization by name: as a mere attribute, torch.fx would copy its value as a constant."""
    for gm in network.modules():
        if not isinstance(gm, fx.GraphModule):
            continue
        places = weight_places(gm)
        changed = False
        for node in gm.graph.nodes:
            if node.op not in ("get_attr", "call_module"):
                continue
            place = places.get(parameter_name(node.target))
            if place is None:
                continue
            if node.op == "get_attr" and place.parametrization is not None:
                prefix = node.target[: -len(place.attribute)]
                node.op, node.target = "call_module", f"{prefix}parametrizations.{place.attribute}"
                changed = True
            elif node.op == "call_module" and place.parametrization is None:
                node.op, node.target = "get_attr", parameter_name(node.target)
                changed = True
        if changed:
            gm.recompile()


# The class of a parametrized module ----------------------------------------------------------------------------------


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The class without the properties of parametrized tensors; the class itself if it has none."""
    holder = registered(module, "_modules").get("parametrizations")
    names = () if holder is None else holder._modules
    kind = type(module)
    injected = any(isinstance(vars(kind).get(name), property) for name in names)
    return kind.__bases__[0] if injected else kind


def _give_own_class(module: nn.Module, base: type[nn.Module] | None = None) -> None:
    base = base or _plain_class(module)
    holder = module._modules["parametrizations"]
    assert holder is not None
    namespace: dict[str, Any] = {name: _accessor(name) for name in holder._modules}
    namespace |= {"__deepcopy__": _deepcopy, "__reduce_ex__": _reduce}
    if issubclass(base, fx.GraphModule):
        # Every GraphModule class gets a __call__ of its own, which must not end in that of the class below it.
        namespace["__call__"] = _call
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), namespace)
    if isinstance(module, fx.GraphModule):
        module.recompile()


def _accessor(name: str) -> property:
    def get(module: nn.Module) -> Tensor:
        value: Tensor = module.parametrizations[name]()  # type: ignore[index, operator]
        return value

    def assign(module: nn.Module, value: Tensor) -> None:
        module.parametrizations[name].right_inverse(value)  # type: ignore[index, union-attr]

    return property(get, assign)


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return nn.Module.__call__(module, *args, **kwargs)


def _plain_view(module: nn.Module) -> nn.Module:
    base = _plain_class(module)
    view: nn.Module = base.__new__(base)
    view.__dict__ = dict(module.__dict__)
    return view


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    base = _plain_class(module)
    if hasattr(base, "__deepcopy__"):
        view = _plain_view(module)
        copied: nn.Module = base.__deepcopy__(view, memo)
        # The view dies here, and another object may get its id.
        memo.pop(id(view), None)
    else:
        copied = base.__new__(base)
        memo[id(module)] = copied
        copied.__dict__ = copy.deepcopy(module.__dict__, memo)
    memo[id(module)] = copied
    _give_own_class(copied)
    return copied


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    return _restore, (_plain_view(module),)


def _restore(module: nn.Module) -> nn.Module:
    _give_own_class(module)
    return module
