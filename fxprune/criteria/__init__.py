"""Importance criteria: what a channel or a weight is worth.

Channels are scored by name (:data:`CRITERIA`), by an object that looks at data (:class:`Taylor`, :class:`Obd`,
:class:`ActivationMean`, :class:`Apoz`), or by a function of your own.
"""

from fxprune.criteria.base import UnitCriterion
from fxprune.criteria.filters import BatchNormScale, GeometricMedian, RandomScore
from fxprune.criteria.measured import ActivationMean, Apoz, Obd, Taylor
from fxprune.criteria.norms import First, GroupNorm, InputNorm, OutputNorm, check_finite
from fxprune.criteria.scoring import CRITERIA, Criterion, comparable, prepared, unit_scores

__all__ = [
    "CRITERIA",
    "ActivationMean",
    "Apoz",
    "BatchNormScale",
    "Criterion",
    "First",
    "GeometricMedian",
    "GroupNorm",
    "InputNorm",
    "Obd",
    "OutputNorm",
    "RandomScore",
    "Taylor",
    "UnitCriterion",
    "check_finite",
    "comparable",
    "prepared",
    "unit_scores",
]
