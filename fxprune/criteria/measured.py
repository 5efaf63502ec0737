"""Criteria by what channels do on data: how the loss depends on them, and how active they are.

A channel takes effect where something sums over it, which is where its removal zeroes it. There a gate of 1 is put
before every channel, one for each unit, and there its activations are looked at. So what is measured is what removal
takes away, whatever makes the channel, however often it is read, and with weights or without.
"""

from __future__ import annotations

__all__ = ["ActivationMean", "Apoz", "Obd", "Taylor"]

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.nn import functional as F

from fxprune.batches import Loss
from fxprune.criteria.base import UnitCriterion
from fxprune.criteria.weights import WeightCriterion, mean_over_batches
from fxprune.errors import ArgumentError
from fxprune.reads import AtReads, Site, read_sites
from fxprune.selection import FloatArray
from fxprune.structure import Structure
from fxprune.trials import Trial, loss_value, samples


@dataclass(frozen=True, eq=False)
class _Measured(UnitCriterion):
    """What was measured, for each unit of one structure; of units that a refinement ties, it is the sum.

    Attributes:
        structure: The structure.
        values: Shape ``(rows, units)``.
        reduce: From rows to scores.
        comparable: As of the criterion.
    """

    structure: Structure
    values: Tensor
    reduce: Callable[[Tensor], Tensor]
    comparable: bool

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        if structure.recorder is not self.structure.recorder:
            raise ArgumentError("the criterion was prepared for another network; use it as it was before")
        owner = np.zeros(self.structure.units, dtype=np.int64)
        owner[self.structure.unit] = structure.unit
        sums = self.values.new_zeros(len(self.values), structure.units)
        scores: FloatArray = self.reduce(sums.index_add_(1, torch.from_numpy(owner), self.values)).numpy()
        return scores


class _Measurement(UnitCriterion):
    """A criterion that looks at batches."""

    @abstractmethod
    def prepared(self, structure: Structure) -> UnitCriterion:
        """Look at the batches."""

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Look at the batches, and score the units."""
        return self.prepared(structure).scores(structure, ranked)


def _gate_gradients(structure: Structure, batches: Callable[[Trial], Iterator[tuple[Any, Any]]], loss: Loss) -> Tensor:
    """The derivative of every batch's loss by a factor before each unit, shape ``(batches, units)``, float64."""
    rows = []
    with torch.inference_mode(False), torch.enable_grad():
        trial = Trial(structure.recorder.gm)
        sites = {node: _one_operand(found) for node, found in read_sites(structure).items()}
        dtype = torch.promote_types(trial.dtype, torch.float32)
        with trial.undisturbed():
            for inputs, targets in batches(trial):
                gates = torch.ones(structure.units, dtype=dtype, device=trial.device, requires_grad=True)

                def gated(site: Site, value: Tensor, gates: Tensor = gates) -> Tensor:
                    if not (value.is_floating_point() or value.is_complex()):
                        return value
                    units = site.like(value).to(gates.device)
                    return value * gates.index_select(0, units.reshape(-1)).reshape(units.shape).to(value.dtype)

                output = trial.run(inputs, partial(AtReads, sites=sites, function=gated))
                (gradient,) = torch.autograd.grad(loss_value(loss, output, targets), gates)
                if not bool(torch.isfinite(gradient).all()):
                    raise ArgumentError(
                        "the gradient of a batch's loss is NaN or infinite: it says nothing of what matters"
                    )
                rows.append(gradient.double().cpu())
    return torch.stack(rows)


def _one_operand(sites: list[Site]) -> list[Site]:
    """Where both factors of a product have the channels that it sums over, one of them is enough to take them out."""
    kept: list[Site] = []
    for site in sites:
        known = [other.units for other in kept if other.position != site.position]
        if not known or not bool(torch.isin(site.units, torch.cat([units.reshape(-1) for units in known])).all()):
            kept.append(site)
    return kept


@dataclass(frozen=True, eq=False)
class Taylor(_Measurement, WeightCriterion):
    """The square of what the loss would change by without a channel, to first order.

    This is the criterion of Molchanov et al. (2019, arXiv:1906.10771). With a gate z = 1 before each unit that is
    ``(dL/dz)**2``, averaged over batches; for channels that weights read, dL/dz is the sum of weight times gradient
    over all weights that read them, as in the paper. The network is in evaluation mode. Scores are squared changes of
    the loss, comparable across groups as they are.

    Attributes:
        batches: Pairs of inputs and targets: a list or a ``DataLoader``. The inputs are a tensor, a tuple of positional
            or a mapping of keyword arguments.
        loss: Takes the network's output and the targets, returns a scalar.

    Example:
        >>> plan = plan_channels(deps, 0.5, criterion=Taylor(batches), scope="global")
    """

    batches: Iterable[Any]
    loss: Loss = F.cross_entropy
    comparable = True

    def prepared(self, structure: Structure) -> UnitCriterion:
        """Take the gradients of all batches.

        Raises:
            ArgumentError: There is no batch, or a loss or gradient is not finite.
            ArgumentTypeError: A batch is no pair, or the loss no scalar.
            TraceError: The network does not take the inputs of a batch.
            WeightError: The network is on the meta device.
        """
        gradients = _gate_gradients(structure, lambda trial: trial.batches(self.batches, labelled=True), self.loss)
        return _Measured(structure, gradients, _mean_square, True)

    def importance(self, gm: fx.GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
        """For single weights: the squares of weight times gradient, averaged over batches."""
        return mean_over_batches(gm, names, self.batches, self.loss, lambda w, g: (w * g).square())


def _mean_square(rows: Tensor) -> Tensor:
    return rows.square().mean(0)


@dataclass(frozen=True, eq=False)
class Obd(_Measurement):
    """What the loss would rise by without a channel, by the diagonal of its Hessian: ``h * w**2 / 2``.

    This is "optimal brain damage" (LeCun, Denker and Solla, NIPS 1989). The weight is a gate of 1 before each unit. Its
    second derivative is estimated by the empirical Fisher information,
    the mean over samples of the squared gradient of the sample's loss (for channels: Theis et al., 2018,
    arXiv:1801.05787). That equals the Hessian in expectation where the loss is a log-likelihood and the model
    fits the data, has no negative values and no noise of random probes. Each sample goes through the network by itself,
    in evaluation mode, so that it takes a backward pass for each. Scores are changes of the loss, comparable across
    groups as they are.

    Attributes:
        batches: Pairs of inputs and targets, as for :class:`Taylor`, with their samples along the first dimension.
        loss: Takes the network's output and the targets, returns a scalar; it gets one sample at a time.
    """

    batches: Iterable[Any]
    loss: Loss = F.cross_entropy
    comparable = True

    def prepared(self, structure: Structure) -> UnitCriterion:
        """Take the gradients of all samples; errors are those of :class:`Taylor`."""

        def singly(trial: Trial) -> Iterator[tuple[Any, Any]]:
            for inputs, targets in trial.batches(self.batches, labelled=True):
                yield from samples(inputs, targets)

        return _Measured(structure, _gate_gradients(structure, singly, self.loss), _half_mean_square, True)


def _half_mean_square(rows: Tensor) -> Tensor:
    return rows.square().mean(0) / 2


@dataclass(frozen=True, eq=False)
class ActivationMean(_Measurement):
    """The mean absolute activation of a channel (Molchanov et al., 2017, arXiv:1611.06440).

    It runs over all samples and positions wherever the channel is read, behind activation functions and poolings, in
    evaluation mode. Activations depend on the scale of their layer, so groups are compared after division by their
    means.

    Attributes:
        batches: Tensors, mappings of keyword arguments, or pairs of inputs and targets, of which the targets are left
            out: a list or a ``DataLoader``.
    """

    batches: Iterable[Any]

    def prepared(self, structure: Structure) -> UnitCriterion:
        """Run all batches; errors are those of :class:`Taylor`."""
        return _Measured(structure, _element_sums(structure, self.batches, torch.abs), _quotient, self.comparable)


@dataclass(frozen=True, eq=False)
class Apoz(_Measurement):
    """The share of a channel's activations that are not zero, so that channels that are mostly zero go first.

    This is 1 less the average percentage of zeros (APoZ, Hu et al., 2016, arXiv:1607.03250). It runs over all samples
    and positions wherever the channel is read, in evaluation mode. Channels that pass no rectifier are never zero: they
    score 1 and say nothing. Shares are comparable across groups as they are.

    Attributes:
        batches: As for :class:`ActivationMean`.
    """

    batches: Iterable[Any]
    comparable = True

    def prepared(self, structure: Structure) -> UnitCriterion:
        """Run all batches; errors are those of :class:`Taylor`."""
        return _Measured(structure, _element_sums(structure, self.batches, _nonzero), _quotient, self.comparable)


def _nonzero(value: Tensor) -> Tensor:
    return value != 0


def _quotient(rows: Tensor) -> Tensor:
    return rows[0] / rows[1].clamp(min=1)


def _element_sums(structure: Structure, batches: Iterable[Any], measure: Callable[[Tensor], Tensor]) -> Tensor:
    """A measure summed over all elements of every unit, and how many they are; shape ``(2, units)``, float64."""
    trial = Trial(structure.recorder.gm)
    sites = _of_data(trial.network, read_sites(structure))
    totals = torch.zeros(2, structure.units, dtype=torch.float64)

    def look(site: Site, value: Tensor) -> Tensor:
        units = site.like(value)
        beside = [dim for dim, size in enumerate(units.shape) if size == 1]
        found = measure(value)
        sums = found.sum(beside, dtype=torch.float64) if beside else found.double()
        if not bool(torch.isfinite(sums).all()):
            raise ArgumentError("activations are NaN or infinite on a batch: no ranking of them means anything")
        count = found.numel() // max(1, units.numel())
        totals[0].index_add_(0, units.reshape(-1), sums.reshape(-1).cpu())
        totals[1] += count * torch.bincount(units.reshape(-1), minlength=structure.units)
        return value

    with torch.no_grad(), trial.undisturbed():
        for inputs, _ in trial.batches(batches):
            trial.run(inputs, partial(AtReads, sites=sites, function=look))
    return totals


def _of_data(gm: fx.GraphModule, sites: Mapping[str, list[Site]]) -> dict[str, list[Site]]:
    """The sites whose value follows from the inputs; a weight that is used as a matrix is no activation."""
    from_data: set[fx.Node] = set()
    found: dict[str, list[Site]] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or not from_data.isdisjoint(node.all_input_nodes):
            from_data.add(node)
        for site in sites.get(node.name, ()):
            value = node.args[site.position] if isinstance(site.position, int) else node.kwargs.get(site.position)
            if value in from_data:
                found.setdefault(node.name, []).append(site)
    return found
