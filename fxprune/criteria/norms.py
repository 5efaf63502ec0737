"""Criteria by the size of weights: those that read a unit, make it, or go with it."""

from __future__ import annotations

__all__ = [
    "First",
    "GroupNorm",
    "InputNorm",
    "OutputNorm",
    "channel_sums",
    "check_finite",
    "weight_axes",
]

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxprune.criteria.base import UnitCriterion
from fxprune.errors import WeightError
from fxprune.labels import IntArray
from fxprune.norms import squared_norms
from fxprune.records import numbers
from fxprune.selection import FloatArray
from fxprune.structure import Structure
from fxprune.vocabulary import Axis, Use


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise WeightError, naming the tensor, if it holds NaN or Inf."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise WeightError(
            f"'{name}' of shape {tuple(tensor.shape)} holds {bad} values that are NaN or Inf: no ranking of its "
            f"channels means anything. Repair the weights, or exclude the layer"
        )


def channel_sums(values: Tensor, axis: Axis) -> FloatArray:
    """The sum over a tensor's slice for each channel of an axis; shape ``(axis_length,)``."""
    blocks = values.detach().reshape(axis.groups, values.shape[0] // axis.groups, *values.shape[1:])
    others = [dim for dim in range(1, blocks.dim()) if dim != axis.dim + 1]
    sums = blocks.sum(others, dtype=torch.float64) if others else blocks
    result: FloatArray = sums.double().reshape(-1).cpu().numpy()
    return result


def weight_axes(
    structure: Structure, roles: Collection[str], ranked: NDArray[np.bool_]
) -> Iterator[tuple[Use, Tensor, IntArray]]:
    """What makes, follows or reads units that are to be ranked, each axis once.

    Args:
        structure: Units, classes and groups.
        roles: Of ``"producer"``, ``"follower"`` and ``"consumer"``.
        ranked: Whether each unit is to be ranked.

    Returns:
        Uses with the tensor and with the unit of each channel of the axis.

    Raises:
        WeightError: The tensor is on the meta device.
    """
    seen: set[Axis] = set()
    for use in structure.recorder.uses:
        if use.role not in roles or use.axis in seen:
            continue
        seen.add(use.axis)
        units = structure.unit[numbers(use.labels)]
        if not ranked[units].any():
            continue
        tensor = structure.recorder.original(use.axis.tensor)
        if tensor.is_meta:
            raise WeightError(
                f"'{use.axis.tensor}' is on the meta device, where there is nothing to rank; plan with the criterion "
                "'first' or a function of your own, or give the model its weights"
            )
        yield use, tensor, units


def _sums(
    structure: Structure,
    roles: Collection[str],
    ranked: NDArray[np.bool_],
    measure: Callable[[Tensor, Axis], FloatArray] = squared_norms,
    buffers: bool = True,
) -> tuple[FloatArray, FloatArray]:
    """A measure summed over all slices of a unit, and how many slices there are, for the units to be ranked."""
    found: list[tuple[IntArray, FloatArray]] = [(np.zeros(0, dtype=np.int64), np.zeros(0))]
    measured: list[tuple[str, Tensor]] = []
    for use, tensor, units in weight_axes(structure, roles, ranked):
        if not (buffers or isinstance(tensor, nn.Parameter)):
            continue
        measured.append((use.axis.tensor, tensor))
        found.append((units, measure(tensor, use.axis)))
    slices = np.concatenate([units for units, _ in found])
    total = np.bincount(slices, np.concatenate([sums for _, sums in found]), structure.units)
    if not np.isfinite(total[ranked]).all():
        for (units, sums), (name, tensor) in zip(found[1:], measured, strict=True):
            if not np.isfinite(sums[ranked[units]]).all():
                check_finite(name, tensor)
    return total.astype(np.float64), np.bincount(slices, minlength=structure.units).astype(np.float64)


class First(UnitCriterion):
    """``"first"``: the first channels stay. It looks at no weight; to try things out, or where channels are sorted."""

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Falling with the position."""
        return -np.arange(structure.units, dtype=np.float64)


class InputNorm(UnitCriterion):
    """``"input-l2"``: the L2 norm of the weights that read a channel (Lab 1 of MIT 6.5940).

    It runs over all readers together; where no weights read a channel, its makers' count. Norms grow with the number
    of readers and depend on their scale, so groups are compared after division by their means.
    """

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Norms."""
        read, readers = _sums(structure, ("consumer",), ranked)
        unread = ranked & (readers == 0)
        if not unread.any():
            return np.sqrt(read)
        made, _ = _sums(structure, ("producer",), unread)
        return np.sqrt(np.where(readers > 0, read, made))


class OutputNorm(UnitCriterion):
    """``"output-l2"``: the L2 norm of the weights that make a channel (after Li et al., 2017, arXiv:1608.08710).

    It runs over all makers together. Groups are compared after division by their means.
    """

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Norms."""
        return np.sqrt(_sums(structure, ("producer",), ranked)[0])


@dataclass(frozen=True)
class GroupNorm(UnitCriterion):
    """``"group-l1"`` and ``"group-l2"``: the norm of all weights that would go with a channel.

    These are the parameters of its makers, its followers (biases, batch norms, depthwise filters) and its readers
    together (Fang et al., 2023, arXiv:2301.12900, without the normalisation by the largest of the group, which
    changes no ranking; L1 after Li et al., 2017, arXiv:1608.08710). Statistics of batch norms are no weights. A weight
    that belongs to a channel by two of its dimensions counts with each. Groups are compared after division by their
    means.

    Attributes:
        power: 1 for the sum of absolute values, 2 for the Euclidean norm.
    """

    power: int = 2

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Norms."""
        measure = squared_norms if self.power == 2 else _absolute_sums
        sums, _ = _sums(structure, ("producer", "follower", "consumer"), ranked, measure, buffers=False)
        return np.sqrt(sums) if self.power == 2 else sums


def _absolute_sums(tensor: Tensor, axis: Axis) -> FloatArray:
    return channel_sums(tensor.detach().abs(), axis)
