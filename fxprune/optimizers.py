"""The state of an optimiser, carried over to a network that was rewritten."""

from __future__ import annotations

__all__ = ["carry_optimizer"]

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.masks import weight_places
from fxprune.parametrizing import Mask
from fxprune.plan import ChannelPlan, TensorCut
from fxprune.rewriting import cut

_NUMBERS = (bool, int, float, complex, str, type(None))
_Key: TypeAlias = tuple[str, int]
"""A parameter by the name that it has without parametrizations, and which of those that are stored for it."""


def carry_optimizer(
    optimizer: Optimizer, model: nn.Module, network: nn.Module, plan: ChannelPlan | None = None
) -> Optimizer:
    """An optimiser for a rewritten network that goes on where that of the original is.

    Momentum buffers, Adam's moments and whatever else has an entry for each weight are cut as the weights are, and are
    zero where a weight is masked; counters of steps and settings are kept. The one step that the new optimiser takes on
    the same gradients is the step that the old one would have taken on what is left.

    Args:
        optimizer: Of the class ``torch.optim.Optimizer``, for parameters of ``model``; it is only read.
        model: The network that was rewritten.
        network: What came of it: ``plan.apply(model)``, or by name what :func:`fxprune.prune_weights` or
            :func:`fxprune.finalize` returned, fine-tuned or not.
        plan: The plan, if channels were removed.

    Returns:
        A new optimiser of the same class, with the same parameter groups, for the parameters of ``network``; it shares
        nothing with the old one. A learning-rate scheduler has to be made anew, with ``last_epoch`` of the old one.

    Raises:
        ArgumentError: The optimiser has parameters that are not the model's, the network lacks one of them or has it in
            another shape, or the state is of no known form, as that of L-BFGS.
        ArgumentTypeError: Something else than an optimiser, modules or a plan.

    Example:
        >>> small = plan.apply(model)
        >>> optimizer = carry_optimizer(optimizer, model, small, plan)
    """
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(f"carry_optimizer needs a torch.optim.Optimizer, not a {type(optimizer).__name__}")
    if not isinstance(model, nn.Module) or not isinstance(network, nn.Module):
        kinds = f"a {type(model).__name__} and a {type(network).__name__}"
        raise ArgumentTypeError(f"carry_optimizer needs the network before and after the rewrite, not {kinds}")
    if plan is not None and not isinstance(plan, ChannelPlan):
        raise ArgumentTypeError(f"plan must be a ChannelPlan, not a {type(plan).__name__}")
    cuts = {} if plan is None else plan.structure.recorder.by_alias(plan.tensors)
    names: dict[int, list[_Key]] = {}
    for stored, (tensor, _) in _stored(model):
        names.setdefault(id(tensor), []).append(stored)
    targets = dict(_stored(network))
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    groups = []
    for group in optimizer.param_groups:
        carried = []
        for parameter in group["params"]:
            keys = names.get(id(parameter))
            if keys is None:
                raise ArgumentError(
                    f"the optimiser has a parameter of shape {tuple(parameter.shape)} that is not one of the model's: "
                    "give the model that it was made for"
                )
            key = next((key for key in keys if key in targets), None)
            if key is None:
                raise ArgumentError(
                    f"the network has no parameter '{keys[0][0]}', which the optimiser trains in the model"
                )
            target, mask = targets[key]
            move = _Move(key[0], parameter, target, mask, cuts.get(key[0], TensorCut(())), type(optimizer).__name__)
            move.check()
            carried.append(target)
            if parameter in optimizer.state:
                state[target] = {entry: move.carried(entry, v) for entry, v in optimizer.state[parameter].items()}
        groups.append({**{k: copy.deepcopy(v) for k, v in group.items() if k != "params"}, "params": carried})
    # As when it is unpickled: constructors do not take all settings that they keep.
    result: Optimizer = type(optimizer).__new__(type(optimizer))
    result.__setstate__({"defaults": copy.deepcopy(optimizer.defaults), "state": state, "param_groups": groups})
    return result


def _stored(network: nn.Module) -> Iterator[tuple[_Key, tuple[Tensor, Tensor | None]]]:
    """Every stored parameter with the mask that lies over it."""
    for name, place in weight_places(network).items():
        first = None if place.parametrization is None else place.parametrization[0]
        for number, tensor in enumerate(place.held):
            yield (name, number), (tensor, first.mask if isinstance(first, Mask) else None)


@dataclass(frozen=True)
class _Move:
    """From one parameter to another."""

    name: str
    old: Tensor
    new: Tensor
    mask: Tensor | None
    cut: TensorCut
    optimizer: str

    def check(self) -> None:
        """Raise ArgumentError unless the cut parameter has the shape of the new one."""
        shape = tuple(self._cut(self.old).shape)
        if shape != tuple(self.new.shape):
            raise ArgumentError(
                f"'{self.name}' has shape {tuple(self.new.shape)} in the network, but {shape} is left of "
                f"{tuple(self.old.shape)} in the model: give the plan that the network was made by"
            )

    def carried(self, entry: str, value: Any) -> Any:
        """What becomes of one entry of the parameter's state."""
        if isinstance(value, _NUMBERS):
            return value
        if isinstance(value, Tensor):
            if value.shape == self.old.shape:
                moved = self._cut(value).to(self.new.device)
                return moved if self.mask is None else torch.where(self.mask, moved, 0)
            if value.numel() == 1:
                return value.detach().clone()
            # One entry for each row or column, as of factored second moments.
            along = [d for d, (a, b) in enumerate(zip(value.shape, self.old.shape, strict=False)) if a == b]
            narrow = all(size == 1 for d, size in enumerate(value.shape) if d not in along)
            whole = all(axis.groups == 1 or {0, axis.dim} <= set(along) for axis, _ in self.cut.axes)
            if value.dim() == self.old.dim() and narrow and whole:
                axes = tuple((axis, index) for axis, index in self.cut.axes if axis.dim in along)
                return cut(value, TensorCut(axes)).to(self.new.device)
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ArgumentError(
            f"{self.optimizer} keeps {shown} as '{entry}' of '{self.name}' of shape {tuple(self.old.shape)}, which is "
            "no number and has no entry for each weight: begin with a new optimiser"
        )

    def _cut(self, value: Tensor) -> Tensor:
        return cut(value, self.cut)
