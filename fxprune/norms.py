"""Norms of weights, channel by channel."""

from __future__ import annotations

__all__ = ["squared_norms"]

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.vocabulary import Axis, axis_length


def squared_norms(tensor: Tensor, axis: Axis) -> NDArray[np.float64]:
    """The squared L2 norm of a weight's slice for each channel of an axis; shape ``(axis_length,)``."""
    weight = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    rows = math.prod(weight.shape[: axis.dim]) // axis.groups
    if weight.is_cpu and weight.dtype in (torch.float32, torch.float64):
        array: NDArray[Any] = weight.numpy().reshape(axis.groups, rows, -1)
        if rows == 1:  # every channel is a run of numbers
            array = array.reshape(axis_length(tensor, axis), -1)
            sums = np.einsum("ij,ij->i", array, array)
        else:  # reads once, and stores nothing but the sums
            sums = np.einsum("gij,gij->gj", array, array).reshape(axis_length(tensor, axis), -1)
            sums = sums.sum(axis=1, dtype=np.float64)
        return np.asarray(sums, dtype=np.float64)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    total = (
        weight.reshape(axis.groups, rows, -1)
        .to(dtype)
        .square()
        .sum(1)
        .reshape(axis_length(tensor, axis), -1)
        .sum(1, dtype=torch.float64)
    )
    return np.asarray(total.cpu().numpy(), dtype=np.float64)
