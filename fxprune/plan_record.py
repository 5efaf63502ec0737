"""A plan as plain data: what a file says of it, and the plan again from that and the network's own code."""

from __future__ import annotations

__all__ = ["example_from", "plan_from_step", "plan_record", "steps_of"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.labels import IntArray
from fxprune.nested import modules_by_name, tensors_by_name
from fxprune.plan import ChannelPlan, TensorCut, make_plan
from fxprune.records import Conflict, numbers
from fxprune.settling import replayed
from fxprune.signature import is_literal
from fxprune.vocabulary import Axis, axis_length

_FORMAT = "fxprune plan"
_VERSION = 1
_SHOWN = 3


def plan_record(plans: Sequence[ChannelPlan]) -> dict[str, Any]:
    """Plans that were carried out one after another, in the types of JSON.

    Args:
        plans: What :func:`fxprune.plan_channels` returned, each for the network that the one before it made.

    Returns:
        ``inputs``: the shapes and values that the first network was traced with, or None where they cannot be written
        down. ``steps``: for each plan, ``shapes`` of every parameter and buffer before it; ``kept``: lists of indices,
        each list once; ``cuts``: for each tensor that changes, its dimensions, and which of the lists each keeps, where
        ``groups`` above 1 says that the list holds the columns of that many blocks, one block after another; and
        ``heads``: whether attentions lose whole heads.

    Raises:
        ArgumentTypeError: Something else than plans.
        ArgumentError: There is no plan, or one puts channels into another order, which leaves every shape as it was.
    """
    if not all(isinstance(plan, ChannelPlan) for plan in plans):
        kinds = ", ".join(type(plan).__name__ for plan in plans)
        raise ArgumentTypeError(f"what is written down is a ChannelPlan or several, not {kinds}")
    if not plans:
        raise ArgumentError("there is no plan to write down")
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "network": plans[0].gm.__class__.__name__,
        "inputs": _inputs(plans[0].gm),
        "steps": [_step(plan) for plan in plans],
    }


def _step(plan: ChannelPlan) -> dict[str, Any]:
    if plan.place is not None:
        raise ArgumentError(
            "a plan that sorts channels has no record: the sorted network has the shapes of its original, so that its "
            "state_dict loads into the original as it is"
        )
    lists: dict[bytes, int] = {}
    kept: list[list[int]] = []
    cuts: dict[str, list[dict[str, int]]] = {}
    for name, cut in plan.tensors.items():
        for axis, index in cut.axes:
            number = lists.setdefault(index.tobytes(), len(lists))
            if number == len(kept):
                kept.append(index.tolist())
            cuts.setdefault(name, []).append({"dim": axis.dim, "groups": axis.groups, "kept": number})
    shapes = {name: list(shape) for name, shape in _shapes(plan.gm).items()}
    return {"heads": _by_heads(plan), "shapes": shapes, "cuts": cuts, "kept": kept}


def steps_of(record: Any, source: str) -> list[Any]:
    """The steps of a record, in their order.

    Args:
        record: What :func:`plan_record` returned.
        source: What errors call the record, such as the name of its file.

    Raises:
        ArgumentError: It is no record, or one of another version.
    """
    if not isinstance(record, Mapping) or record.get("format") != _FORMAT:
        raise ArgumentError(f"{source} is no record of a plan: its format is not {_FORMAT!r}")
    if record.get("version") != _VERSION:
        raise ArgumentError(
            f"{source} is a record of version {record.get('version')!r}, and this fxprune reads version {_VERSION}; "
            "read it with the fxprune that wrote it"
        )
    steps = record.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ArgumentError(f"{source} is damaged: it has no steps; save the network again")
    return steps


def plan_from_step(deps: DependencyGraph, step: Any, source: str) -> ChannelPlan:
    """The plan that a step of a record describes, for a network of the same code.

    Nothing in it is believed: the kept channels go through the second reading like those of a new plan, and
    what it finds must be what the step says, index by index.

    Args:
        deps: The dependency graph of the network before the step; weights do not matter.
        step: One of the steps that :func:`plan_record` wrote down.
        source: What errors call the record, such as the name of its file.

    Raises:
        ArgumentError: It is damaged, or for a network of other tensors or shapes, or removes channels that this
            network cannot do without.
    """
    shapes, cuts = _parsed(step, source)
    _check_shapes(deps.gm, shapes, source)
    deps = deps.whole_heads() if step.get("heads") else deps
    structure = deps.structure
    recorder = structure.recorder
    stays, goes = np.zeros((2, structure.units), dtype=bool)
    left = dict(cuts)
    blocked = {(axis.tensor, axis.dim) for axis in recorder.axes if axis.groups > 1}
    for axis, labels in recorder.axes.items():
        if axis.groups == 1 and (axis.tensor, axis.dim) in blocked:
            continue  # said by its blocks
        units = structure.unit[numbers(labels)]
        index = left.pop(axis, None)
        here = np.ones(len(units), dtype=bool)
        if index is not None:
            here[:] = False
            here[index] = True
        stays[units[here]] = True
        goes[units[~here]] = True
        if (stays & goes).any():
            raise ArgumentError(
                f"{source} removes channels of '{axis.tensor}' that the network ties to channels which stay, or cannot "
                "do without; it was made for a network of other code, or by another version of fxprune"
            )
    if left:
        raise ArgumentError(
            f"{source} cuts {_listed(left)}, which no channels index in this network; it was made for a network of "
            "other code, or by another version of fxprune"
        )
    kept = ~goes
    try:
        plan = make_plan(deps, structure, kept, replayed(deps.gm, structure, kept))
    except Conflict as conflict:
        raise ArgumentError(f"{source} cannot be carried out on this network: {conflict.place}") from conflict
    _check_cuts(plan.tensors, cuts, source)
    return plan


def example_from(record: Mapping[str, Any], device: torch.device) -> dict[str, Any] | None:
    """Inputs like those that a recorded plan's network was traced with, tensors being zeros.

    Args:
        record: What :func:`plan_record` returned.
        device: Where the tensors are made.

    Returns:
        Values by argument, or None if the record does not say.

    Raises:
        ArgumentError: The record says it in a way that makes no sense.
    """
    inputs = record.get("inputs")
    try:
        return None if inputs is None else {str(name): _value(spec, device) for name, spec in inputs.items()}
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"the inputs in the record of the plan cannot be understood: {error}") from error


def _by_heads(plan: ChannelPlan) -> bool:
    heads = {id(tie) for tie in plan.structure.recorder.whole_heads}
    return any(id(tie) in heads for tie in plan.structure.refinement.ties)


def _shapes(gm: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_by_name(modules_by_name(gm))}


def _inputs(gm: fx.GraphModule) -> dict[str, Any] | None:
    specs = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        name, value = str(node.target), node.meta["val"]
        if name.startswith("*") and not value:
            continue
        try:
            specs[name] = _spec(value)
        except TypeError:
            return None
        if name.startswith("*"):
            return None  # has no name to be passed by
    return specs


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if is_literal(value) and not isinstance(value, list | tuple):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _spec(item) for key, item in value.items()}}
    if isinstance(value, list | tuple) and (isinstance(value, list) or type(value) is tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_spec(item) for item in value]}
    raise TypeError(f"a {type(value).__name__} cannot be written down")


def _value(spec: Any, device: torch.device) -> Any:
    if not isinstance(spec, dict):
        return spec
    if "tensor" in spec:
        dtype = getattr(torch, spec["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{spec['dtype']!r} is no dtype")
        return torch.zeros(spec["tensor"], dtype=dtype, device=device)
    if "dict" in spec:
        return {key: _value(item, device) for key, item in spec["dict"].items()}
    items = [_value(item, device) for item in spec["list" if "list" in spec else "tuple"]]
    return items if "list" in spec else tuple(items)


def _parsed(step: Any, source: str) -> tuple[dict[str, tuple[int, ...]], dict[Axis, IntArray]]:
    """The shapes and the cuts, each index being in range and there once."""
    try:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in step["shapes"].items()}
        lists = [np.array(index, dtype=np.int64).reshape(-1) for index in step["kept"]]
        cuts = {
            Axis(str(name), int(cut["dim"]), int(cut["groups"])): lists[cut["kept"]]
            for name, axes in step["cuts"].items()
            for cut in axes
        }
        for axis, index in cuts.items():
            size = axis_length(torch.empty(shapes[axis.tensor], device="meta"), axis)
            if not len(index) or index.min() < 0 or index.max() >= size or len(np.unique(index)) < len(index):
                raise ValueError(f"dimension {axis.dim} of '{axis.tensor}' must keep distinct indices below {size}")
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"{source} is damaged: {type(error).__name__}: {error}; save the network again") from error
    return shapes, cuts


def _check_shapes(gm: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    here = _shapes(gm)
    problems = []
    for what, names in (
        ("the network lacks", [name for name in shapes if name not in here]),
        ("the network also has", [name for name in here if name not in shapes]),
    ):
        if names:
            problems.append(f"{what} {_listed(names)}")
    problems += [
        f"'{name}' is of shape {here[name]} in the network and {shape} in the file"
        for name, shape in shapes.items()
        if name in here and here[name] != shape
    ][:_SHOWN]
    if problems:
        raise ArgumentError(
            f"{source} was made for another network than this {gm.__class__.__name__}: {'; '.join(problems)}. Give the "
            "model as it was before pruning, of the same code, classes and sizes; its weights do not matter"
        )


def _check_cuts(found: Mapping[str, TensorCut], wanted: Mapping[Axis, IntArray], source: str) -> None:
    here = {axis: index for cut in found.values() for axis, index in cut.axes}
    for axis in {**here, **wanted}:
        if axis not in here or axis not in wanted or not np.array_equal(here[axis], wanted[axis]):
            raise ArgumentError(
                f"{source} keeps other indices of dimension {axis.dim} of '{axis.tensor}' than this network must keep "
                "for its other layers; it was made for a network of other code, or by another version of fxprune"
            )


def _listed(names: Any) -> str:
    names = [name.tensor if isinstance(name, Axis) else name for name in names]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + rest
