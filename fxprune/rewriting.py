"""What rewrites need: copies of layers that share no storage, with some tensors replaced, under another graph."""

from __future__ import annotations

__all__ = ["cut", "graph_over", "rebuild"]

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxprune.assembly import assembled, copied_graph
from fxprune.capture import TRAINING_FLAG, adopt, conform
from fxprune.errors import ArgumentError
from fxprune.labels import IntArray
from fxprune.nested import modules_by_name
from fxprune.plan import TensorCut

_IMMUTABLE = frozenset(
    (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)
)
_CONTAINERS = frozenset((dict, OrderedDict, set))

_WHOLE = 1 << 20
"""Up to how many elements a tensor is gathered in one go on a CPU, one dimension after the other."""

_PIECE = 1 << 17
"""Elements of a larger one that are gathered at a time: half a megabyte in float32."""

_KERNEL = 5
"""From how many elements for each pair of channels on they are gathered in one go."""

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_NUMPYS = frozenset((torch.float32, torch.float64, torch.int64))


def graph_over(gm: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The traced graph over the layers of ``model``, which are shared, not copied.

    Args:
        gm: A traced network.
        model: The model that was traced, or one of the same layers.

    Raises:
        ArgumentError: ``model`` lacks a layer or tensor of the graph, or has it in another shape.
    """
    # A graph module makes itself the owner of its graph, and what says the mode belongs to the traced module.
    modules = modules_by_name(model)
    root = _targets(gm, modules)
    root.update({name: copy.deepcopy(state) for name, state in root.items() if name.endswith(TRAINING_FLAG)})
    over = assembled(root, copied_graph(gm.graph), gm.__class__.__name__)
    adopt(over, model)
    conform(over, modules)
    return over


def _targets(gm: fx.GraphModule, here: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The layers and tensors that the graph calls, as the model of these modules has them."""
    root: dict[str, Any] = {}
    before = modules_by_name(gm)
    for node in gm.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        name = str(node.target)
        if name in root:
            continue
        traced = _find(before, node)
        try:
            root[name] = _find(here, node)
        except (AttributeError, KeyError):
            if not name.rpartition(".")[2].startswith("_"):  # what tracing itself added
                raise ArgumentError(
                    f"{type(here['']).__name__} has no '{name}', which the plan was made for; "
                    "apply the plan to the model that it was made for"
                ) from None
            root[name] = traced
        _check_shapes(name, traced, root[name])
    return root


def _check_shapes(name: str, traced: Any, found: Any) -> None:
    if traced is found:
        return
    others = dict(_tensors(found, name))
    for path, tensor in _tensors(traced, name):
        other = others.get(path)
        if other is None or other.shape != tensor.shape:
            shape = "absent" if other is None else f"of shape {tuple(other.shape)}"
            raise ArgumentError(
                f"'{path}' is {shape}, but the plan was made for shape {tuple(tensor.shape)}; make a new plan"
            )


def _find(modules: Mapping[str, nn.Module], node: fx.Node) -> Any:
    """The layer or tensor that a node names."""
    name = str(node.target)
    if node.op == "call_module":
        return modules[name]
    owner, _, attribute = name.rpartition(".")
    return getattr(modules[owner], attribute)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers of a layer, or the tensor itself, with their qualified names."""
    if isinstance(value, Tensor):
        yield name, value
        return
    for held in (value._parameters, value._buffers):
        for attribute, tensor in held.items():
            if tensor is not None:
                yield f"{name}.{attribute}", tensor
    for attribute, child in value._modules.items():
        if child is not None:
            yield from _tensors(child, f"{name}.{attribute}")


def cut(tensor: Tensor, plan: TensorCut, known: dict[int, Tensor] | None = None) -> Tensor:
    """The kept part of a tensor, in the plan's order; always new storage, in the tensor's memory format.

    Args:
        tensor: A parameter, a buffer, or a tensor of that shape.
        plan: What is kept.
        known: Indices as tensors by the ``id`` of the plan's, which are kept there for other tensors of a layer.
    """
    if tensor.ndim == 1 and plan.axes:  # as of a batch norm: so short that only the number of calls counts
        ((_, index),) = plan.axes
        chosen = None if known is None else known.get(id(index))
        if chosen is None:
            chosen = torch.from_numpy(index).to(tensor.device)
            if known is not None:
                known[id(index)] = chosen
        return tensor.detach().index_select(0, chosen)
    result = tensor.detach()
    kept: dict[int, IntArray] = {}
    groups = 1
    for axis, index in plan.axes:
        kept[axis.dim] = index
        groups = max(groups, axis.groups)
    if groups > 1:
        result = _cut_blocks(result, plan, groups)
    elif kept and tensor.is_cpu and tensor.dtype in _NUMPYS and tensor.is_contiguous():
        return torch.from_numpy(_take(result.numpy(), kept))
    else:
        for dim, index in kept.items():
            result = result.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return _in_format_of(tensor, result)


def _take(array: NDArray[Any], kept: Mapping[int, IntArray]) -> NDArray[Any]:
    """Kernel by kernel, or of a large array piece by piece: what lies between two selections stays in the cache."""
    if kept.keys() == {0, 1} and math.prod(array.shape[2:]) >= _KERNEL:
        _check_within(kept[1], array, 1)
        pairs = kept[0][:, None] * array.shape[1] + kept[1]
        kernels: NDArray[Any] = array.reshape(-1, *array.shape[2:]).take(pairs.reshape(-1), axis=0)
        return kernels.reshape((*pairs.shape, *array.shape[2:]))
    if array.size <= _WHOLE:
        for dim in sorted(kept):
            array = array.take(kept[dim], axis=dim)
        return array
    last = max(kept)
    run = _run(kept[last], array.shape[last])
    if run > 1:  # copied run by run, as behind a flatten
        whole = array.reshape(*array.shape[:last], -1, run, *array.shape[last + 1 :])
        taken = _take(whole, {**kept, last: kept[last][::run] // run})
        return taken.reshape(*taken.shape[:last], -1, *taken.shape[last + 2 :])
    rows = kept.get(0)
    if len(kept) == 1 and rows is not None:
        return array.take(rows, axis=0)
    count = len(array) if rows is None else len(rows)
    others = [dim for dim in sorted(kept) if dim]
    _check_within(kept[last], array, last)
    shape = [count, *(len(kept[dim]) if dim in kept else size for dim, size in enumerate(array.shape) if dim)]
    result = np.empty(shape, array.dtype)
    many = max(1, _PIECE // max(1, array[0].size))
    for start in range(0, count, many):
        stop = min(start + many, count)
        part = array[start:stop] if rows is None else array.take(rows[start:stop], axis=0)
        for dim in others[:-1]:
            part = part.take(kept[dim], axis=dim)
        # The default mode, "raise", would take all of it into a buffer first.
        part.take(kept[last], axis=last, out=result[start:stop], mode="clip")
    return result


def _check_within(index: IntArray, array: NDArray[Any], dim: int) -> None:
    if index.min() < 0 or index.max() >= array.shape[dim]:
        raise IndexError(f"there is no such channel along dimension {dim} of shape {array.shape}")


def _run(index: IntArray, size: int) -> int:
    """The length of the runs that an index consists of: whole blocks of neighbours, each where such a block begins."""
    if len(index) > 64 and _run(index[:64], 0) == 1:  # as with channels that are kept here and there
        return 1
    starts = np.flatnonzero(np.concatenate([[True], index[1:] != index[:-1] + 1]))
    return int(np.gcd.reduce(np.concatenate([starts, index[starts], [len(index), size]])))


def _cut_blocks(tensor: Tensor, plan: TensorCut, groups: int) -> Tensor:
    """A grouped convolution's weight: every block of rows gathers columns of its own."""
    rows, columns = tensor.shape[:2]
    row, column = np.arange(rows), np.arange(groups * columns)
    for axis, index in plan.axes:
        if axis.groups > 1:
            column = index
        else:
            row = index
    pairs = row.reshape(groups, -1, 1) * columns + (column % columns).reshape(groups, 1, -1)
    kernels = tensor.flatten(0, 1).index_select(0, torch.from_numpy(pairs.reshape(-1)).to(tensor.device))
    return kernels.reshape(-1, pairs.shape[2], *tensor.shape[2:])


def _in_format_of(original: Tensor, result: Tensor) -> Tensor:
    """The result in the original's memory format, copied if it still is the original."""
    layout = _LAYOUTS.get(original.dim())
    if layout is not None and not original.is_contiguous() and original.is_contiguous(memory_format=layout):
        result = result.contiguous(memory_format=layout)
    return result.clone() if result.data_ptr() == original.data_ptr() else result


def rebuild(
    gm: fx.GraphModule, model: nn.Module, replaced: Mapping[str, TensorCut], edit: Callable[[fx.Graph], None]
) -> tuple[fx.GraphModule, dict[str, nn.Module]]:
    """A new graph module: the layers of ``model``, copied, with some tensors cut, under an edited copy of the graph.

    Sharing of layers and tensors within the model is kept; nothing is shared with it.

    Args:
        gm: A traced network.
        model: The model that was traced, or one of the same layers.
        replaced: How tensors are cut, by any of their names.
        edit: Changes the copy of the graph in place.

    Returns:
        The graph module, and its modules by name.

    Raises:
        ArgumentError: As from :func:`graph_over`.
    """
    modules = modules_by_name(model)
    targets = _targets(gm, modules)
    memo: dict[int, Any] = {}
    known: dict[int, Tensor] = {}
    # What the ranking has read last is still in the cache, and comes first.
    for name, value in reversed(targets.items()):
        for path, tensor in _tensors(value, name):
            if path in replaced:
                memo[id(tensor)] = _replacement(tensor, cut(tensor, replaced[path], known))
    root = {name: _copy(value, memo) for name, value in targets.items()}
    graph = copied_graph(gm.graph)
    edit(graph)
    result = assembled(root, graph, gm.__class__.__name__)
    adopt(result, model, lambda value: _copy(value, memo))
    return result, conform(result, modules)


def _replacement(tensor: Tensor, new: Tensor) -> Tensor:
    kind = type(tensor)  # asking whether it is an instance of a parameter is slow, and most are just that
    if kind is nn.Parameter or (kind is not Tensor and isinstance(tensor, nn.Parameter)):
        return nn.Parameter(new, tensor.requires_grad)
    return new


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy`` of a layer or tensor; layers go attribute by attribute, which is several times faster."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = _replacement(value, value.detach().clone())
        return memo[id(value)]
    if not isinstance(value, nn.Module) or hasattr(type(value), "__deepcopy__"):
        return copy.deepcopy(value, memo)
    new = type(value).__new__(type(value))
    memo[id(value)] = new
    attributes = value.__dict__.copy()
    for name, attribute in attributes.items():
        kind = type(attribute)
        if kind in _IMMUTABLE:
            continue
        if kind in _CONTAINERS and not attribute:  # as most are: no hooks
            attributes[name] = kind()
        elif name in ("_parameters", "_buffers", "_modules"):
            attributes[name] = {k: None if v is None else _copy(v, memo) for k, v in attribute.items()}
        elif kind in (tuple, list) and _IMMUTABLE.issuperset(map(type, attribute)):
            attributes[name] = kind(attribute)
        else:
            attributes[name] = copy.deepcopy(attribute, memo)
    object.__setattr__(new, "__dict__", attributes)
    return new
