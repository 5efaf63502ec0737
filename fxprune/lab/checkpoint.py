"""Reading a published checkpoint, strictly and without running any code that it might contain."""

from __future__ import annotations

__all__ = ["load_checkpoint"]

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.errors import ArgumentError

_SHOWN = 4


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a checkpoint file into ``model``.

    The file holds a ``state_dict``, by itself or, as the lab's ``vgg.cifar.pretrained.pth`` does, under the key
    ``state_dict``. Every tensor of the model must be in it, in the same shape, and nothing else. The file is read with
    ``weights_only=True``. On any error the model keeps its weights.

    Args:
        model: The network to fill.
        path: The file.

    Raises:
        ArgumentError: There is no such file, it is no checkpoint, or its tensors are not the model's.
    """
    file = Path(path)
    if not file.is_file():
        raise ArgumentError(
            f"there is no checkpoint {str(file)!r}; give the path of the lab's vgg.cifar.pretrained.pth, or leave the "
            f"checkpoint out to train the network"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ArgumentError(
            f"{str(file)!r} is no checkpoint that can be read with weights_only=True: {error}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArgumentError(
            f"{str(file)!r} holds no weights: expected a dictionary of tensors, by itself or under the key 'state_dict'"
        )
    problems = _mismatches(model.state_dict(), state)
    if problems:
        raise ArgumentError(f"{str(file)!r} does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(state, strict=True)


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {tuple(given[name].shape)} in the file and {tuple(wanted[name].shape)} in the model"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = []
    for what, names in (
        ("missing in the file", [name for name in wanted if name not in given]),
        ("not in the model", [name for name in given if name not in wanted]),
        ("of another shape (is the width right?)", shapes),
    ):
        if names:
            rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{what}: {', '.join(map(str, names[:_SHOWN]))}{rest}")
    return problems
