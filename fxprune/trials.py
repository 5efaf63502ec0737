"""Runs of a traced network on batches that leave no trace: neither in the network nor in what torch keeps globally."""

from __future__ import annotations

__all__ = ["Trial", "loss_value", "samples"]

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, fx

from fxprune.batches import Loss, device_of, split_batch
from fxprune.capture import FAILURES, bind_example, bound_values
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, TraceError, WeightError
from fxprune.interpreting import Interpreter
from fxprune.nested import leaves, map_nested
from fxprune.parametrizing import copy_network, freeze_parametrizations


class Trial:
    """A copy of a traced network, in evaluation mode, with plain parameters that require no gradient.

    Args:
        gm: The network; it is only read.

    Raises:
        WeightError: A tensor of it is on the meta device.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        for name, tensor in [*gm.named_parameters(), *gm.named_buffers()]:
            if tensor.is_meta:
                raise WeightError(
                    f"'{name}' is on the meta device, where nothing can be computed from batches; give the model its "
                    "weights, or plan with a criterion that needs none, such as 'first'"
                )
        self.network = copy_network(gm)
        freeze_parametrizations(self.network)
        self.network.eval().requires_grad_(False)
        self.device = device_of(self.network)
        self.dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)

    def undisturbed(self) -> AbstractContextManager[None]:
        """In it torch's random numbers are a copy's.

        So neither a loader that shuffles nor a layer that draws numbers changes what the caller draws next.
        """
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def batches(self, batches: Iterable[Any], labelled: bool = False) -> Iterator[tuple[Any, Any]]:
        """The inputs and targets of each batch, on the network's device.

        Raises:
            ArgumentError: There is none.
            ArgumentTypeError: They cannot be iterated over, or one is no batch (:func:`fxprune.batches.split_batch`).
        """
        if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping):
            raise ArgumentTypeError(
                f"batches must be a list or a DataLoader of batches, not {type(batches).__name__}; of a single one, "
                "make a list"
            )
        empty = True
        for batch in batches:
            empty = False
            yield send_to_device(split_batch(batch, labelled), self.device)
        if empty:
            raise ArgumentError(
                "there is no batch: batches is empty, or a generator that has been used up; pass a list or a DataLoader"
            )

    def run(self, inputs: Any, interpreter: Callable[[fx.GraphModule], Interpreter] = Interpreter) -> Any:
        """Run the network by an interpreter.

        Raises:
            TraceError: It does not take these inputs; its own error is the cause.
        """
        example = bind_example(self.network, inputs)
        try:
            return interpreter(self.network).run(*bound_values(self.network.graph, example))
        except FxpruneError:
            raise
        except FAILURES as error:
            raise TraceError(f"the network failed on a batch: {type(error).__name__}: {error}") from error


def loss_value(loss: Loss, output: Any, targets: Any) -> Tensor:
    """The loss of a batch.

    Raises:
        ArgumentTypeError: It is no scalar tensor.
        ArgumentError: It is NaN or infinite, or does not depend on the output.
    """
    value = loss(output, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentTypeError(f"the loss must be a tensor with one number, not {kind}: take the mean, say")
    if not bool(torch.isfinite(value)):
        raise ArgumentError(
            f"the loss of a batch is {float(value.detach())}: its gradient says nothing about what matters"
        )
    if not value.requires_grad:
        raise ArgumentError("the loss does not depend on what the network computes, or was detached from it")
    return value.reshape(())


def samples(inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
    """Batches of one: every sample of a batch by itself, cut along the first dimension of every tensor.

    Raises:
        ArgumentError: The tensors differ in their first dimension.
    """
    tensors = [leaf for leaf in leaves((inputs, targets)) if isinstance(leaf, Tensor) and leaf.dim()]
    sizes = {len(tensor) for tensor in tensors}
    if len(sizes) != 1:
        raise ArgumentError(
            f"a batch must have its samples along the first dimension of every tensor, but their sizes there are "
            f"{sorted(sizes)}"
        )
    for index in range(sizes.pop()):

        def one(value: Any, index: int = index) -> Any:
            return value[index : index + 1] if isinstance(value, Tensor) and value.dim() else value

        yield map_nested(one, inputs), map_nested(one, targets)
