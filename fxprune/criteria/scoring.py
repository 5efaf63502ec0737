"""From a criterion, whichever way it is given, to one score for each unit."""

from __future__ import annotations

__all__ = ["CRITERIA", "Criterion", "comparable", "prepared", "unit_scores"]

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.criteria.base import UnitCriterion, refuse_without_data
from fxprune.criteria.filters import BatchNormScale, GeometricMedian, RandomScore
from fxprune.criteria.norms import First, GroupNorm, InputNorm, OutputNorm
from fxprune.dependency import ChannelGroup
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.selection import FloatArray
from fxprune.structure import Structure

Criterion: TypeAlias = str | UnitCriterion | Callable[[ChannelGroup], Tensor | Sequence[float]]
"""The name of a criterion, a criterion itself (one that looks at data, say), or a function that gives a group's units
one score each, in the order of the channels."""

CRITERIA: dict[str, UnitCriterion] = {
    "first": First(),
    "input-l2": InputNorm(),
    "output-l2": OutputNorm(),
    "group-l1": GroupNorm(1),
    "group-l2": GroupNorm(2),
    "bn-scale": BatchNormScale(),
    "fpgm": GeometricMedian(),
    "random": RandomScore(),
}
"""Those that need nothing but the network, by name."""

_NEED_BATCHES = {
    "taylor": "Taylor(batches, loss)",
    "obd": "Obd(batches, loss)",
    "activation-mean": "ActivationMean(batches)",
    "apoz": "Apoz(batches)",
}


def _found(criterion: Criterion) -> UnitCriterion | Callable[[ChannelGroup], Any]:
    if isinstance(criterion, str):
        refuse_without_data(criterion, _NEED_BATCHES)
        if criterion not in CRITERIA:
            raise UnknownNameError(f"no criterion '{criterion}'; {nearest_names(criterion, CRITERIA)}")
        return CRITERIA[criterion]
    if not isinstance(criterion, UnitCriterion) and not callable(criterion):
        raise ArgumentTypeError(f"criterion must be a name or a callable, not {type(criterion).__name__}")
    return criterion


def prepared(criterion: Criterion, structure: Structure) -> Criterion:
    """The criterion, having looked at its data if it needs any: once for all structures that refine this one.

    Raises:
        UnknownNameError: No criterion of that name.
        ArgumentError: A name of one that needs data; or what the criterion raises, as all others.
        ArgumentTypeError: The criterion is neither name nor function.
    """
    found = _found(criterion)
    return found.prepared(structure) if isinstance(found, UnitCriterion) else criterion


def comparable(criterion: Criterion) -> bool:
    """Whether scores of different groups can be ranked together as they are, see :class:`UnitCriterion`."""
    return bool(getattr(_found(criterion), "comparable", False))


def unit_scores(
    structure: Structure,
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    ranked: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Score the units of some groups; only their weights are looked at.

    Args:
        structure: Units, classes and groups.
        groups: The groups, those of the structure first; only for a criterion that is a function.
        criterion: A name, a criterion or a function.
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
    found = _found(criterion)
    if isinstance(found, UnitCriterion):
        return found.scores(structure, np.append(chosen, False)[structure.group])
    scores = np.zeros(structure.units)
    for number in np.flatnonzero(chosen).tolist():
        scores[structure.members[number]] = _checked(found(groups[number]), groups[number])
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
