"""A criterion by what the readers of a channel could not make up for: the optimal brain surgeon, for whole channels."""

from __future__ import annotations

__all__ = ["Reader", "ReconstructionLoss", "Surgeon", "readers_of", "removals"]

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.criteria.base import UnitCriterion
from fxprune.criteria.norms import InputNorm
from fxprune.errors import ArgumentError
from fxprune.labels import IntArray
from fxprune.parametrizing import copy_network
from fxprune.records import numbers
from fxprune.recovery.chains import chain_of
from fxprune.recovery.contractions import Contraction, contractions
from fxprune.recovery.norms import Norm
from fxprune.recovery.refit import rows_for
from fxprune.recovery.running import Batch, Runner, as_batches
from fxprune.recovery.variances import statistics
from fxprune.selection import FloatArray
from fxprune.structure import Structure

_RIDGE = 1e-3
"""Added to the diagonal of the inputs' products, as a fraction of its mean."""

_STEPS = 64
"""Of a group of many units, several go at a time, so that there are about so many steps."""


@dataclass(frozen=True)
class Reader:
    """One layer that reads channels.

    Attributes:
        name: The node's name.
        labels: Its inputs, shape ``(channels,)``.
        mean: What its rows are in the mean, shape ``(groups, d)``.
        products: Products of what they have beside that, shape ``(groups, d, d)``.
        weight: Its weight, shape ``(groups, o, d)``.
        scale: What its outputs are multiplied by, so that the squares of their variations add up to the share that they
            are of the variance of what follows; shape ``(groups, o, 1)``.
    """

    name: str
    labels: IntArray
    mean: Tensor
    products: Tensor
    weight: Tensor
    scale: Tensor


class ReconstructionLoss(UnitCriterion):
    """What is lost at the readers of a channel when all that they still read is fitted to make up for it.

    The readers' inputs are looked at on a few batches. From a group one channel goes after another, always that of
    least loss, and after each the readers' weights are fitted again by least squares, in closed form (the optimal
    brain surgeon of Hassibi and Stork, 1993, for whole channels, as in Kurtic et al., 2023, arXiv:2302.04089). So of
    two channels that say the same one goes early, however large their weights are. The loss is a share of the variance
    of the reader's output behind its batch norm, or of the sum that it is a term of; a unit's score is the largest loss
    up to where it went, summed over its readers. What a reader loses matters more or less further on, so groups are
    compared after division by their means.

    Units that no convolution or linear layer reads are ranked as by ``"input-l2"``.

    Args:
        batches: A few hundred inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at.
        seed: Of the positions that are drawn.
    """

    def __init__(self, batches: Iterable[Any], seed: int = 0) -> None:
        self._batches = batches
        self._seed = seed

    def prepared(self, structure: Structure) -> UnitCriterion:
        """Look at the batches."""
        network = copy_network(structure.recorder.gm).eval()
        values = as_batches(network, self._batches)
        return _Fitted(structure, tuple(readers_of(structure, network, values, self._seed)))

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        """Look at the batches, and score the units."""
        return self.prepared(structure).scores(structure, ranked)


@dataclass(frozen=True, eq=False)
class _Fitted(UnitCriterion):
    structure: Structure
    readers: tuple[Reader, ...]

    def scores(self, structure: Structure, ranked: NDArray[np.bool_]) -> FloatArray:
        if structure.recorder is not self.structure.recorder:
            raise ArgumentError("the criterion was prepared for another network; use it as it was before")
        norms = InputNorm().scores(structure, ranked)
        scores = np.zeros(structure.units)
        for members in structure.members:
            if not ranked[members].any():
                continue
            readers = [r for r in self.readers if np.isin(structure.unit[r.labels], members).any()]
            if readers:
                for unit, loss, _ in removals(members, structure, readers):
                    scores[members[unit]] = loss
            else:
                scores[members] = norms[members] ** 2 / max(float((norms[members] ** 2).sum()), 1e-300)
        return scores


def readers_of(structure: Structure, network: fx.GraphModule, batches: list[Batch], seed: int) -> list[Reader]:
    """What each layer that reads channels sees on some batches.

    Args:
        structure: The structure of the network.
        network: The network, in evaluation mode.
        batches: The inputs.
        seed: Of the positions that are drawn.
    """
    uses = {use.node: use for use in structure.recorder.uses if use.role == "consumer"}
    runner = Runner(network, batches)
    generator = torch.Generator().manual_seed(seed)
    layers = {layer.node.name: layer for layer in contractions(network) if layer.node.name in uses}
    ends: dict[str, list[str]] = {}
    chains = {name: chain_of(network, layer, runner) for name, layer in layers.items()}
    for name, chain in chains.items():
        ends.setdefault(chain.end.name, []).append(name)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    found = []
    for node in runner.nodes:
        runner.advance(node.name, inclusive=False)
        inputs = runner.values(layers[node.name].source) if node.name in layers else []
        runner.advance(node.name)
        if node.name in layers:
            seen[node.name] = _seen(layers[node.name], inputs, runner.last, generator)
        for name in ends.get(node.name, ()):
            layer, weight = layers[name], layers[name].matrix()
            _, variance = statistics(runner.last, layer.channel_dim)
            scale = variance.sum().clamp(min=1e-12).rsqrt().expand(variance.shape)
            for step in chains[name].steps:
                if isinstance(step, Norm):
                    scale = scale * step.affine()[0]
            labels = numbers(uses[name].labels)
            found.append(Reader(name, labels, *seen[name], weight, scale.reshape(len(weight), -1, 1)))
    return found


def _seen(
    layer: Contraction, inputs: list[Tensor], outputs: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and products of a layer's rows."""
    images = sum(layer.images(y) for y in outputs)
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for x, y in zip(inputs, outputs, strict=True):
        for rows in rows_for(layer, y, images, generator):
            seen = layer.inputs(x, rows, layer.sizes(y))
            count += seen.shape[1]
            total = total + seen.sum(1)
            products = products + seen.transpose(1, 2) @ seen
    mean = total / count
    return mean, products / count - mean[:, :, None] * mean[:, None, :]


class Surgeon:
    """One reader from which channels are taken, the rest of its weights making up for them.

    Args:
        reader: The reader.
        position: The number of the unit that each of its inputs belongs to, -1 for those of other groups.

    Attributes:
        weight: What the reader's weight has become.
    """

    def __init__(self, reader: Reader, position: IntArray) -> None:
        groups, _, columns = reader.weight.shape
        self.reader = reader
        self.weight = reader.weight.clone()
        ridge = _RIDGE * reader.products.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        eye = torch.eye(columns, dtype=torch.float64, device=ridge.device)
        self._inverse = torch.linalg.inv(reader.products + ridge[:, None, None] * eye)
        taps = groups * columns // len(position)
        self._slots: dict[int, list[tuple[int, Tensor]]] = {}
        for group, inside in enumerate(position.reshape(groups, -1)):
            for unit in np.unique(inside[inside >= 0]).tolist():
                own = np.flatnonzero(inside == unit)[:, None] * taps + np.arange(taps)
                self._slots.setdefault(unit, []).append((group, torch.from_numpy(own.reshape(-1))))

    def losses(self, units: IntArray) -> FloatArray:
        """What taking each of some units would cost."""
        found = np.zeros(len(units))
        together: dict[int, list[tuple[int, int, Tensor]]] = {}  # in most layers all have equally many columns
        for place, unit in enumerate(units.tolist()):
            for group, index in self._slots.get(unit, ()):
                together.setdefault(len(index), []).append((place, group, index))
        for slots in together.values():
            groups = torch.tensor([g for _, g, _ in slots])
            columns = torch.stack([i for _, _, i in slots])
            inverse = self._inverse[groups[:, None, None], columns[:, :, None], columns[:, None, :]]
            weight = (self.weight * self.reader.scale)[groups[:, None], :, columns]  # (slots, taps, outputs)
            cost = (weight * torch.linalg.solve(inverse, weight)).sum((1, 2))
            np.add.at(found, [p for p, _, _ in slots], cost.cpu().numpy())
        return found

    def take(self, unit: int) -> None:
        """Take a unit, and let the rest make up for it."""
        for group, index in self._slots.pop(unit, ()):
            rows = self._inverse[group, index]
            solved = torch.linalg.solve(rows[:, index], rows)
            self.weight[group] -= self.weight[group][:, index] @ solved
            self._inverse[group] -= rows.T @ solved
            self.weight[group][:, index] = 0


def removals(
    members: IntArray, structure: Structure, readers: Iterable[Reader]
) -> Iterator[tuple[int, float, list[Surgeon]]]:
    """Take the units of a group one after another.

    Yields:
        The number of the unit among the group's, its score, and the readers without it.
    """
    place = np.full(structure.units, -1)
    place[members] = np.arange(len(members))
    surgeons = [Surgeon(reader, place[structure.unit[reader.labels]]) for reader in readers]
    left = np.arange(len(members))
    most = 0.0
    while len(left):
        cost = sum((surgeon.losses(left) for surgeon in surgeons), np.zeros(len(left)))
        order = np.argsort(cost, kind="stable")
        for chosen in order[: max(1, len(members) // _STEPS)]:
            most = max(most, float(cost[chosen]))
            for surgeon in surgeons:
                surgeon.take(int(left[chosen]))
            yield int(left[chosen]), most, surgeons
        left = np.delete(left, order[: max(1, len(members) // _STEPS)])
