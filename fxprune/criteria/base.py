"""What a criterion is."""

from __future__ import annotations

__all__ = ["UnitCriterion", "refuse_without_data"]

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import ArgumentError
from fxprune.selection import FloatArray
from fxprune.structure import Structure


class UnitCriterion(ABC):
    """Scores the units of a network by what it knows of their weights, or by what they do on data.

    Attributes:
        comparable: Whether scores of different groups mean the same, so that ``scope="global"`` ranks them as they
            are; otherwise it divides each score by the mean of its group. A criterion that is a mere function may have
            an attribute of this name, too.
    """

    comparable: bool = False

    @abstractmethod
    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Score units.

        Args:
            structure: Units, classes and groups, and the traced network in ``structure.recorder.gm``.
            ranked: Whether each unit is to be ranked, shape ``(units,)``; nothing else need be looked at.

        Returns:
            Scores, shape ``(units,)``; higher stays longer. Units that are not ranked may have any score.
        """

    def prepared(self, structure: Structure) -> UnitCriterion:
        """The criterion with its data looked at, once for all structures that refine this one."""
        return self


def refuse_without_data(name: str, known: Mapping[str, str]) -> None:
    """Raise ArgumentError for the name of a criterion that needs data, and say what to pass in its place."""
    if name in known:
        raise ArgumentError(
            f"the criterion '{name}' looks at data: pass fxprune.criteria.{known[name]} in place of its name"
        )
