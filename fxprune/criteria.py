"""Importance criteria: one score for each unit, from the weights that read it or make it."""

from __future__ import annotations

__all__ = ["CRITERIA", "Criterion", "check_finite", "unit_scores"]

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.dependency import ChannelGroup
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, WeightError, nearest_names
from fxprune.labels import IntArray
from fxprune.norms import squared_norms
from fxprune.records import numbers
from fxprune.selection import FloatArray
from fxprune.structure import Structure
from fxprune.vocabulary import Axis

Criterion: TypeAlias = str | Callable[[ChannelGroup], Tensor | Sequence[float]]
"""The name of a criterion, or a function that gives a group's units one score each, in the order of the channels."""


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise WeightError, naming the tensor, if it holds NaN or Inf."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise WeightError(
            f"'{name}' of shape {tuple(tensor.shape)} holds {bad} values that are NaN or Inf: no ranking of its "
            f"channels means anything. Repair the weights, or exclude the layer"
        )


def _norms(structure: Structure, role: str, ranked: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Squared norms summed over all slices of a unit, and how many slices there are, for the units to be ranked."""
    found: list[tuple[IntArray, FloatArray]] = [(np.zeros(0, dtype=np.int64), np.zeros(0))]
    seen: set[Axis] = set()
    for use in structure.recorder.uses:
        if use.role != role or use.axis in seen:
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
        norms = squared_norms(tensor, use.axis)
        if not np.isfinite(norms[ranked[units]]).all():
            check_finite(use.axis.tensor, tensor)
        found.append((units, norms))
    slices = np.concatenate([units for units, _ in found])
    total = np.bincount(slices, np.concatenate([norms for _, norms in found]), structure.units)
    return total.astype(np.float64), np.bincount(slices, minlength=structure.units).astype(np.float64)


def _by_reader(structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
    read, readers = _norms(structure, "consumer", ranked)
    unread = ranked & (readers == 0)
    if not unread.any():
        return np.sqrt(read)
    made, _ = _norms(structure, "producer", unread)
    return np.sqrt(np.where(readers > 0, read, made))


def _by_maker(structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
    return np.sqrt(_norms(structure, "producer", ranked)[0])


def _first(structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
    return -np.arange(structure.units, dtype=np.float64)


CRITERIA: dict[str, Callable[[Structure, NDArray[np.bool_]], FloatArray]] = {
    "first": _first,
    "input-l2": _by_reader,
    "output-l2": _by_maker,
}
"""By name. ``"first"`` keeps the first channels. ``"input-l2"`` ranks a channel by the L2 norm of the weights that
read it, over all readers together (Lab 1 of MIT 6.5940); where no weights read it, its makers' count. ``"output-l2"``
ranks it by the weights that make it (after Li et al., 2017, arXiv:1608.08710)."""


def unit_scores(
    structure: Structure,
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    ranked: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Score the units of some groups; only their weights are looked at.

    Args:
        structure: Units, classes and groups.
        groups: The groups, those of the structure first; not needed for a criterion by name.
        criterion: A name or a function.
        ranked: Whether each group of the structure is to be ranked, shape ``(groups,)``; all if None.

    Returns:
        Scores, shape ``(units,)``; higher stays longer. Units that are not ranked have any score.

    Raises:
        UnknownNameError: No criterion of that name.
        ArgumentError: A function gave scores of the wrong number, or NaN.
        ArgumentTypeError: A function gave no numbers, or the criterion is neither name nor function.
        WeightError: Weights that count are NaN or Inf, or have no values.
    """
    chosen = np.ones(structure.groups, dtype=bool) if ranked is None else ranked
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise UnknownNameError(f"no criterion '{criterion}'; {nearest_names(criterion, CRITERIA)}")
        return CRITERIA[criterion](structure, np.append(chosen, False)[structure.group])
    if not callable(criterion):
        raise ArgumentTypeError(f"criterion must be a name or a callable, not {type(criterion).__name__}")
    scores = np.zeros(structure.units)
    for number in np.flatnonzero(chosen).tolist():
        scores[structure.members[number]] = _checked(criterion(groups[number]), groups[number])
    return scores


def _checked(values: Any, group: ChannelGroup) -> FloatArray:
    try:
        scores = torch.as_tensor(values)
        if scores.is_complex() or scores.is_meta:
            raise TypeError(f"{scores.dtype} on {scores.device}")
        array = scores.detach().double().cpu().reshape(-1).numpy()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"the criterion gave a {type(values).__name__} for the group '{group.name}'; {group.size} numbers are "
            "needed, one for each unit"
        ) from error
    if array.shape != (group.size,):
        raise ArgumentError(
            f"the criterion gave {array.size} scores for the group '{group.name}' of {group.size} units; "
            "one each is needed"
        )
    if np.isnan(array).any():
        raise ArgumentError(f"the criterion gave NaN for the group '{group.name}'; a ranking of NaN is meaningless")
    return np.asarray(array, dtype=np.float64)
