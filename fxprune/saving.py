"""The pruned network in a folder: weights as safetensors, the plan as JSON, and no pickled code."""

from __future__ import annotations

__all__ = ["PLAN_FILE", "WEIGHTS_FILE", "load_pruned", "save_pruned"]

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxprune.capture import Example
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError
from fxprune.files import make_folder, written
from fxprune.nested import modules_by_name
from fxprune.plan import ChannelPlan
from fxprune.plan_record import example_from, plan_from_step, plan_record, steps_of

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
_METADATA = "fxprune"
_SHOWN = 3


def save_pruned(network: nn.Module, plan: ChannelPlan | Sequence[ChannelPlan], folder: str | os.PathLike[str]) -> None:
    """Write a pruned network to a folder, without pickling anything.

    ``weights.safetensors`` holds its ``state_dict``, which any program that knows the format can read. ``plan.json``
    says which channels of the original stay. :func:`load_pruned` makes the network again from both and the original's
    code.

    Args:
        network: What ``plan.apply`` returned, fine-tuned or not, on any device and of any dtype.
        plan: The plan; or several in their order, where a network was pruned again and again, such as the ``plans`` of
            :func:`fxprune.prune_iteratively`.
        folder: Made if it is not there; files of an earlier call are replaced once the new ones are complete.

    Raises:
        ArgumentTypeError: Something else than a module or a plan.
        ArgumentError: The network is not what the plan makes, or holds state that is no tensor; or the folder cannot be
            written.

    Example:
        >>> small = plan.apply(model)
        >>> save_pruned(small, plan, "out")
        >>> again = load_pruned(torchvision.models.resnet18(), "out")
    """
    if not isinstance(network, nn.Module):
        raise ArgumentTypeError(f"save_pruned needs the pruned nn.Module, not a {type(network).__name__}")
    plans = (plan,) if isinstance(plan, ChannelPlan) else tuple(plan)
    record = plan_record(plans)
    state = network.state_dict()
    _check_state(network, state, plans[-1])
    tensors, shared = _separate(state)
    out = make_folder(folder)
    text = _dumped(record) + "\n"
    # One entry, as safetensors writes several in any order and the same network shall give the same bytes.
    metadata = {_METADATA: json.dumps({"plan": _digest(record), "shared": shared}, sort_keys=True)}
    with written(out / WEIGHTS_FILE) as weights, written(out / PLAN_FILE) as record_file:
        record_file.write_text(text, encoding="utf-8")
        save_file(tensors, weights, metadata)
        shutil.copymode(record_file, weights)  # safetensors lets their owner alone read them


def load_pruned(
    model: nn.Module, folder: str | os.PathLike[str], example_inputs: Example | None = None
) -> fx.GraphModule:
    """Make a network again that :func:`save_pruned` wrote.

    The model is traced, the plan is read, checked against the model and carried out, and the weights are loaded. No
    code from the folder is run.

    Args:
        model: The network before pruning, of the same code, classes and sizes. It is not changed, and its weights do
            not matter, except for what a ``state_dict`` leaves out.
        folder: What was given to :func:`save_pruned`.
        example_inputs: As for :func:`fxprune.trace`; by default of the shapes that the network was pruned with.

    Returns:
        The pruned network with the saved weights and their dtypes, on the device and in the mode of ``model``.

    Raises:
        ArgumentTypeError: ``model`` is no module.
        ArgumentError: A file is missing, damaged or made for another network, with what differs; or the model is on
            the meta device.
        TraceError: The model could not be captured.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"load_pruned needs the nn.Module before pruning, not a {type(model).__name__}")
    held = itertools.chain(model.parameters(), model.buffers())
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    if device.type == "meta":
        raise ArgumentError(f"{type(model).__name__} is on the meta device: make it on the device where it shall run")
    path = Path(folder) / PLAN_FILE
    record = _read_json(path)
    steps = steps_of(record, f"'{path}'")
    if example_inputs is None:
        example_inputs = example_from(record, device)
    if example_inputs is None:
        raise ArgumentError(f"'{path}' cannot say what the network was traced with: give example_inputs")
    network = model
    for step in steps:
        plan = plan_from_step(DependencyGraph.from_model(network, example_inputs), step, f"'{path}'")
        network = plan.apply(network)
    assert isinstance(network, fx.GraphModule)
    _load_weights(network, plan, Path(folder) / WEIGHTS_FILE, _digest(record))
    return network


def _dumped(value: Any, depth: int = 4, pad: str = "\n") -> str:
    """JSON with a line for each tensor and each list of indices, so that it can be read and compared."""
    if not depth or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    inner = pad + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_dumped(item, depth - 1, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(items) + pad + "}"
    return "[" + inner + ("," + inner).join(_dumped(item, depth - 1, inner) for item in value) + pad + "]"


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArgumentError(f"there is no '{path}'; save_pruned(network, plan, folder) writes one") from None
    except (OSError, ValueError) as error:
        raise ArgumentError(f"'{path}' cannot be read as JSON: {error}; save the network again") from error


def _check_state(network: nn.Module, state: Mapping[str, Any], plan: ChannelPlan) -> None:
    """Raise ArgumentError unless the state is that of the network which the plan makes."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ArgumentError(f"'{name}' of the network is a {type(value).__name__}: only tensors can be saved")
        if value.is_meta:
            raise ArgumentError(f"'{name}' is on the meta device and has no values to save")
    if any("parametrizations." in name for name in state):
        raise ArgumentError("the network has masks or other parametrizations: save fxprune.finalize(network)")
    wanted = {name: tuple(tensor.shape) for name, tensor in plan.gm.state_dict().items()}
    for name, cut in plan.structure.recorder.by_alias(plan.tensors).items():
        if name in wanted:
            shape = list(wanted[name])
            for axis, index in cut.axes:
                shape[axis.dim] = len(index) // axis.groups
            wanted[name] = tuple(shape)
    _compare(
        wanted | _new_biases(plan.gm, plan, set(state) - set(wanted)),
        {name: tuple(value.shape) for name, value in state.items()},
        f"this {type(network).__name__} is not the network that the plan makes",
        "give what plan.apply(model) returned, without a wrapper around it",
    )


def _new_biases(network: nn.Module, plan: ChannelPlan, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Those of the names that are biases of layers which had none, with their shapes: pruning may have made them."""
    modules = modules_by_name(network)
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        layer = plan.layers.get(owner)
        if attribute == "bias" and layer is not None and modules[owner]._parameters.get("bias", ...) is None:
            found[name] = (layer.size[1] if layer.outputs is None else len(layer.outputs),)
    return found


def _compare(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], what: str, advice: str
) -> None:
    problems = [f"'{name}' is missing" for name in wanted if name not in given][:_SHOWN]
    problems += [f"'{name}' is too much" for name in given if name not in wanted][:_SHOWN]
    problems += [
        f"'{name}' is of shape {given[name]} where {shape} is wanted"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ][:_SHOWN]
    if problems:
        raise ArgumentError(f"{what}: {'; '.join(problems)}; {advice}")


def _separate(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors on the CPU that share no memory, each once; and the further names of those with several."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(key, name) != name:
            shared[name] = first[key]
            continue
        tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return tensors, shared


def _load_weights(network: fx.GraphModule, plan: ChannelPlan, path: Path, digest: str) -> None:
    """Put the saved values into the network, in the saved dtypes."""
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            names = {name: name for name in file.keys()}  # noqa: SIM118 - it is no mapping
            names |= known.get("shared", {})
            values = {name: file.get_tensor(name) for name in set(names.values())}
    except FileNotFoundError:
        raise ArgumentError(f"there is no '{path}'; save_pruned(network, plan, folder) writes one") from None
    except (AttributeError, OSError, SafetensorError, TypeError, ValueError) as error:
        raise ArgumentError(f"'{path}' cannot be read as safetensors: {error}; save the network again") from error
    if known.get("plan", digest) != digest:
        raise ArgumentError(f"'{path}' was not written together with the plan beside it; save the network again")
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    biases = _new_biases(network, plan, set(names) - set(wanted))
    _compare(
        wanted | biases,
        {name: tuple(values[source].shape) for name, source in names.items()},
        f"'{path}' does not hold the weights of the pruned {type(network).__name__}",
        "save the network again",
    )
    for name in biases:
        owner = network.get_submodule(name.rpartition(".")[0])
        weight, bias = owner.get_parameter("weight"), values[names[name]]
        owner.register_parameter("bias", nn.Parameter(bias.to(weight.device), weight.requires_grad))
    state = network.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():  # these share the network's memory, and know nothing of its gradients
            value = values[names[name]]
            if tensor.dtype == value.dtype:
                tensor.copy_(value)
    _retype(network, {name: values[source] for name, source in names.items()})


def _retype(network: fx.GraphModule, values: Mapping[str, Tensor]) -> None:
    """Give tensors whose saved dtype is another than the model's that dtype and their values, in place."""
    for name, tensor in [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]:
        if name in values and tensor.dtype != values[name].dtype:
            tensor.data = values[name].to(tensor.device)
