"""Whether what an operator makes of the kept channels is what is left of what it made of all of them."""

from __future__ import annotations

__all__ = ["fitted_layer"]

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.labels import IntArray, Layer, inhabited, same
from fxprune.records import Moved, numbers


def fitted_layer(
    tensor: Tensor, record: Moved, labelled: set[int], alive: NDArray[np.bool_], scratch: IntArray
) -> Layer | None:
    """The layer under its names, or None if this is not what is left of the first reading's.

    Only dimensions in ``labelled``, which some layer of the value varies along, may have another size.
    """
    origin = record.origin
    if tensor.dim() != len(record.full):
        return None
    shape = tensor.shape
    if not tensor.numel():
        there = inhabited(tensor) if 0 in record.full else None
        if there is None:
            return origin if record.layer is None and shape == record.full else None
        tensor = there
    for dim, size in enumerate(record.full):
        if dim not in origin.dims:
            if shape[dim] != size and dim not in labelled:
                return None
            first = tensor.narrow(dim, 0, 1)
            if tensor.shape[dim] > 1 and tensor.stride(dim) != 0 and tensor.ne(first).any():
                return None
            tensor = first
    labels, old = numbers(tensor), numbers(origin.tensor)
    expected = old[alive[old]]
    if labels.size != expected.size:
        return None
    if not same(labels, expected) and not same(np.sort(labels), np.sort(expected)):
        return None
    if record.layer is None:
        return origin
    if record.renamed is not None:
        labels = record.renamed.survivors(alive, labels, counting=True)
    if len(origin.dims) > 1 and not _rectangular(labels.reshape(tensor.shape), record.layer, scratch):
        return None
    return Layer(torch.from_numpy(labels).reshape(tensor.shape), origin.dims)


def _rectangular(labels: IntArray, layer: Layer, scratch: IntArray) -> bool:
    """Whether every coordinate but one stands for one line of the original, and each for another."""
    old = layer.tensor.numpy()
    scratch[old.reshape(-1)] = np.arange(old.size)
    position = scratch[labels.reshape(-1)].reshape(labels.shape)
    free = 0
    for dim in sorted(layer.dims, reverse=True):  # the others have size 1
        position, index = np.divmod(position, old.shape[dim])
        line = index[tuple(slice(None) if d == dim else slice(0, 1) for d in range(labels.ndim))]
        if (index != line).any():
            free += 1
        elif len(set(line.reshape(-1).tolist())) != line.size:
            return False
    return free <= 1
