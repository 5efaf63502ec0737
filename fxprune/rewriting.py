"""What the rewrites have in common: a graph over another model's weights, and copies that share no storage."""

from __future__ import annotations

__all__ = ["copy_with", "cut", "graph_over"]

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ArgumentError
from fxprune.plan import TensorCut


def graph_over(gm: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The traced graph over the layers of ``model``, which are shared, not copied.

    Args:
        gm: A traced network.
        model: The model that was traced, or one of the same layers.

    Raises:
        ArgumentError: ``model`` lacks a layer or tensor of the graph, or has it in another shape.
    """
    root: dict[str, Any] = {}
    for node in gm.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        name = str(node.target)
        try:
            root[name] = model.get_submodule(name) if node.op == "call_module" else _attribute(model, name)
        except AttributeError:
            if not name.startswith("_"):
                raise ArgumentError(
                    f"{type(model).__name__} has no '{name}', which the plan was made for; "
                    "apply the plan to the model that it was made for"
                ) from None
            root[name] = gm.get_submodule(name) if node.op == "call_module" else _attribute(gm, name)
    over = fx.GraphModule(root, gm.graph, gm.__class__.__name__)
    over.training = model.training
    shapes = {name: tuple(t.shape) for name, t in _tensors(gm).items()}
    for name, tensor in _tensors(over).items():
        if shapes.get(name) != tuple(tensor.shape):
            raise ArgumentError(
                f"'{name}' has shape {tuple(tensor.shape)}, but the plan was made for {shapes.get(name)}; "
                "make a new plan"
            )
    for name, module in over.named_modules():
        if name and not any(True for _ in module.parameters(recurse=False)):
            module.training = _mode(model, name, module.training)
    return over


def _mode(model: nn.Module, name: str, default: bool) -> bool:
    try:
        return model.get_submodule(name).training
    except AttributeError:
        return model.training if name.startswith("_") else default


def _attribute(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), attribute)
    return tensor


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


def cut(tensor: Tensor, plan: TensorCut) -> Tensor:
    """The kept part of a tensor, in the plan's order; always new storage, in the tensor's memory format."""
    result = tensor.detach()
    groups = max((axis.groups for axis, _ in plan.axes), default=1)
    with torch.no_grad():
        if groups > 1:
            result = _cut_blocks(result, plan, groups)
        else:
            for axis, index in plan.axes:
                result = result.index_select(axis.dim, torch.from_numpy(index).to(result.device))
    return _in_format_of(tensor, result)


def _cut_blocks(tensor: Tensor, plan: TensorCut, groups: int) -> Tensor:
    """A grouped convolution's weight: every block of rows gathers columns of its own."""
    rows, columns = tensor.shape[0] // groups, tensor.shape[1]
    row = torch.arange(groups * rows)
    column = torch.arange(groups * columns)
    for axis, index in plan.axes:
        if axis.groups > 1:
            column = torch.from_numpy(index)
        else:
            row = torch.from_numpy(index)
    block = torch.arange(groups, device=tensor.device)[:, None, None]
    row = (row % rows).reshape(groups, -1, 1).to(tensor.device)
    column = (column % columns).reshape(groups, 1, -1).to(tensor.device)
    view = tensor.reshape(groups, rows, columns, *tensor.shape[2:])
    return view[block, row, column].flatten(0, 1)


def _in_format_of(original: Tensor, result: Tensor) -> Tensor:
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if original.dim() == rank and not original.is_contiguous() and original.is_contiguous(memory_format=layout):
            return result.clone(memory_format=layout)
    return result.clone(memory_format=torch.contiguous_format)


def copy_with(gm: fx.GraphModule, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """A deep copy in which some tensors are replaced; sharing within the module is kept.

    Args:
        gm: The module to copy.
        tensors: New values of parameters and buffers by name.
    """
    memo: dict[int, Any] = {}
    for name, tensor in _tensors(gm).items():
        if name in tensors:
            new = tensors[name]
            memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    # deepcopy keeps what the memo holds alive only by id: the originals live on in gm.
    result: fx.GraphModule = copy.deepcopy(gm, memo)
    return result
