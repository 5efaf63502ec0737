"""Batches of data: what counts as one, and how a network is called with it."""

from __future__ import annotations

__all__ = ["Loss", "call", "device_of", "in_evaluation", "split_batch"]

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import ArgumentTypeError

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Takes a network's output and the targets of a batch, returns a scalar."""


def split_batch(batch: Any, labelled: bool = False) -> tuple[Any, Any]:
    """The inputs and the targets of a batch.

    Args:
        batch: A tensor or a mapping of keyword arguments, which are inputs by themselves; or a pair of inputs and
            targets, of which the inputs are a tensor, a tuple of positional or a mapping of keyword arguments.
        labelled: Whether there must be targets.

    Returns:
        Both; the targets are None where there are none.

    Raises:
        ArgumentTypeError: The batch is something else, or lacks targets that there must be.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Tensor | Mapping) and not labelled:
        return batch, None
    kind = f"a {type(batch).__name__}"
    if isinstance(batch, tuple | list):
        kind += f" of {len(batch)}"
    wanted = "a pair (inputs, targets)" if labelled else "a tensor, a mapping or a pair (inputs, targets)"
    raise ArgumentTypeError(f"a batch must be {wanted}, not {kind}; put several inputs into a tuple of their own")


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a network with a batch's inputs: a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's tensors are; the CPU if it has none."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """A network in evaluation mode, without gradients; the mode of every module is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
