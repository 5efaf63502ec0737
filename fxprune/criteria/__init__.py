"""Importance criteria: what a channel or a weight is worth.

Channels are scored by name (:data:`CRITERIA`), by an object that looks at data (:class:`Taylor`, :class:`Obd`,
:class:`ActivationMean`, :class:`Apoz`, :class:`ReconstructionLoss`), or by a function of your own. Single weights are
scored by name (:data:`WEIGHT_CRITERIA`) or by an object that looks at data (:class:`Taylor`, :class:`Snip`,
:class:`Wanda`).
"""

from fxprune.criteria.base import UnitCriterion
from fxprune.criteria.filters import BatchNormScale, GeometricMedian, RandomScore
from fxprune.criteria.measured import ActivationMean, Apoz, Obd, Taylor
from fxprune.criteria.norms import First, GroupNorm, InputNorm, OutputNorm, check_finite
from fxprune.criteria.reconstruction import ReconstructionLoss
from fxprune.criteria.scoring import CRITERIA, Criterion, comparable, prepared, unit_scores
from fxprune.criteria.weights import WEIGHT_CRITERIA, Magnitude, Snip, Wanda, WeightCriterion

__all__ = [
    "CRITERIA",
    "WEIGHT_CRITERIA",
    "ActivationMean",
    "Apoz",
    "BatchNormScale",
    "Criterion",
    "First",
    "GeometricMedian",
    "GroupNorm",
    "InputNorm",
    "Magnitude",
    "Obd",
    "OutputNorm",
    "RandomScore",
    "ReconstructionLoss",
    "Snip",
    "Taylor",
    "UnitCriterion",
    "Wanda",
    "WeightCriterion",
    "check_finite",
    "comparable",
    "prepared",
    "unit_scores",
]
