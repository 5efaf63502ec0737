"""Criteria by what is known of single filters: the scale of a batch norm, the place among the others, and chance."""

from __future__ import annotations

__all__ = ["BatchNormScale", "GeometricMedian", "RandomScore"]

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.criteria.base import UnitCriterion
from fxprune.criteria.norms import InputNorm, check_finite, weight_axes
from fxprune.errors import ArgumentError
from fxprune.selection import FloatArray
from fxprune.structure import Structure
from fxprune.vocabulary import Axis, Use

_ROWS = 2048
"""Filters whose distances to all others are held at a time."""


class BatchNormScale(UnitCriterion):
    """``"bn-scale"``: the absolute scale of the batch norms that a channel passes.

    This is "network slimming" (Liu et al., 2017, arXiv:1708.06519). With several batch norms (as where branches are
    added) it is the mean of their absolute scales. Behind a batch norm all channels have one variance, so that scales
    are comparable across groups as they are, and ``scope="global"`` applies one threshold to the whole network, as the
    paper does. A group with a channel that passes no batch norm is ranked by :class:`InputNorm`, scaled so that its
    mean is the mean scale of all that pass one. Scales mean most after training with an L1 penalty on them.
    """

    comparable = True

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Mean absolute scales.

        Raises:
            ArgumentError: No channel that is ranked passes a batch norm.
        """
        nodes = {node.name: node for node in structure.recorder.gm.graph.nodes}
        total, count = np.zeros(structure.units), np.zeros(structure.units)
        for use, scale, units in weight_axes(structure, ("follower",), ranked):
            if _is_scale(use, nodes[use.node], structure):
                if not torch.isfinite(scale).all():
                    check_finite(use.axis.tensor, scale)
                total += np.bincount(units, scale.detach().double().abs().cpu().numpy(), structure.units)
                count += np.bincount(units, minlength=structure.units)
        known = ranked & (count > 0)
        if not ranked.any():
            return total
        if not known.any():
            raise ArgumentError(
                "no channel that is to be ranked passes a batch norm, so 'bn-scale' has nothing to go by; take "
                "'group-l2', say"
            )
        scores: FloatArray = total / np.maximum(count, 1)
        group = structure.group
        without = np.bincount(group[ranked & ~known], minlength=structure.groups) > 0
        others = ranked & without[group]
        if others.any():
            norms = InputNorm().scores(structure, others)
            sizes = np.bincount(group[others], minlength=structure.groups)
            means = np.bincount(group[others], norms[others], structure.groups) / np.maximum(sizes, 1)
            means[means == 0] = 1.0
            scores[others] = norms[others] / means[group[others]] * scores[known].mean()
        return scores


def _is_scale(use: Use, node: fx.Node, structure: Structure) -> bool:
    """Whether a follower's tensor is what a batch norm multiplies by."""
    if node.op == "call_module":
        module = structure.recorder.gm.get_submodule(str(node.target))
        weight = getattr(module, "weight", None)
        return isinstance(module, _BatchNorm) and structure.recorder.original(use.axis.tensor) is weight
    if node.target is not F.batch_norm:
        return False
    weight = node.args[3] if len(node.args) > 3 else node.kwargs.get("weight")
    named = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return named and structure.recorder.canonical_of(str(weight.target)) == use.axis.tensor  # type: ignore[union-attr]


class GeometricMedian(UnitCriterion):
    """``"fpgm"``: the sum of a filter's Euclidean distances to all filters of its layer.

    This is "filter pruning via geometric median" (He et al., 2019, arXiv:1811.00250): filters near the geometric median
    of their layer can be stood in for by the others, and go first. With several makers the sums of all are added;
    filters that cannot be removed count as neighbours. Sums grow with the number and the scale of the filters, so
    groups are compared after division by their means.
    """

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Sums of Euclidean distances."""
        total = np.zeros(structure.units)
        for use, weight, units in weight_axes(structure, ("producer",), ranked):
            filters = _filters(weight, use.axis)
            chosen = np.flatnonzero(ranked[units])
            sums = [
                torch.cdist(filters[rows], filters).sum(1)
                for rows in torch.split(torch.from_numpy(chosen).to(filters.device), _ROWS)
            ]
            found = torch.cat(sums).cpu().numpy()
            if not np.isfinite(found).all():
                check_finite(use.axis.tensor, weight)
            total += np.bincount(units[chosen], found, structure.units)
        return total


def _filters(weight: Tensor, axis: Axis) -> Tensor:
    """One row for each channel of an axis, in float64; shape ``(axis_length, weights)``."""
    blocks = weight.detach().double().reshape(axis.groups, weight.shape[0] // axis.groups, *weight.shape[1:])
    moved = blocks.movedim(axis.dim + 1, 1)
    return moved.reshape(axis.groups * moved.shape[1], -1)


@dataclass(frozen=True)
class RandomScore(UnitCriterion):
    """``"random"``: uniform scores in [0, 1), the same ones for the same seed; the baseline that others must beat.

    They are comparable across groups as they are.

    Attributes:
        seed: Chooses the scores; the name stands for 0.
    """

    seed: int = 0
    comparable = True

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Random numbers; no global generator is touched."""
        return np.random.default_rng(self.seed).random(structure.units)
