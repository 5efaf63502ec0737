"""Pruning ratios as they are given: checked, and brought to one number for every group."""

from __future__ import annotations

__all__ = ["Ratio", "Wanted", "wanted_ratios", "whole_number"]

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, FrozenLayerError
from fxprune.labels import IntArray
from fxprune.structure import Structure

Ratio: TypeAlias = float | Sequence[float] | NDArray[Any] | Mapping[str, float]
"""The fraction of channels to remove: one for all groups, one for each, or by the name of any layer of a group."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for.

    Attributes:
        ratios: The ratio of each group that can be pruned; 0 for what stays.
        asked: For every layer that a ratio above 0 was given for by itself, a label of each unit that it is for.
        excluded: Names of the groups that are to stay.
    """

    ratios: NDArray[np.float64]
    asked: tuple[tuple[str, IntArray], ...]
    excluded: tuple[str, ...]

    def carried(self, old: Structure, new: Structure) -> Wanted:
        """The same wishes for a refined structure: units get the least of the ratios of those that they hold."""
        ratios = np.zeros(new.groups)
        first = _first_labels(new)
        for number, members in enumerate(new.members):
            owners = old.group[old.unit[first[members]]]
            ratios[number] = min((self.ratios[o] for o in owners if o >= 0), default=0.0)
        return Wanted(ratios, self.asked, self.excluded)

    def check(self, deps: DependencyGraph) -> None:
        """Raise FrozenLayerError if a layer that was asked for by itself turns out to be held as a whole."""
        structure = deps.structure
        for layer, labels in self.asked:
            if labels.size and (structure.group[structure.unit[labels]] < 0).all():
                raise _frozen(deps, layer)


def wanted_ratios(deps: DependencyGraph, ratio: Ratio, exclude: Iterable[str]) -> Wanted:
    """Check ratios and exclusions.

    Args:
        deps: The dependency graph.
        ratio: As for :func:`fxprune.plan_channels`.
        exclude: Names of layers whose output channels all stay.

    Raises:
        ArgumentError: A ratio outside [0, 1) or NaN, a sequence of the wrong length, two ratios for one group.
        ArgumentTypeError: A ratio that is no number, or a name that is no string.
        UnknownNameError: An unknown layer.
        FrozenLayerError: A ratio above 0 for what cannot be pruned.
    """
    excluded = _excluded(deps, exclude)
    asked: dict[str, list[int]] = {}
    if isinstance(ratio, np.ndarray | Tensor):
        ratio = ratio.tolist()
    if isinstance(ratio, Mapping):
        ratios = _by_layer(deps, ratio, asked)
    elif isinstance(ratio, Sequence) and not isinstance(ratio, str | bytes):
        ratios = _by_group(deps, ratio, asked)
    else:
        ratios = np.full(deps.structure.groups, _check_ratio(ratio, ""))
    first = _first_labels(deps.structure)
    held = {}
    for layer, numbers in asked.items():
        units = np.concatenate([deps.structure.members[n] for n in numbers])
        held[layer] = first[units]
    if excluded:
        names = {group.name for group in excluded}
        ratios[[number for number, group in enumerate(deps.prunable) if group.name in names]] = 0.0
    return Wanted(ratios, tuple(held.items()), tuple(sorted({group.name for group in excluded})))


def whole_number(value: object, name: str) -> int:
    """A whole number of at least 1, as NumPy or Python have it.

    Raises:
        ArgumentError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return int(value)


def _first_labels(structure: Structure) -> IntArray:
    """The first label of every unit."""
    first = np.zeros(structure.units, dtype=np.int64)
    first[structure.unit[::-1]] = np.arange(len(structure.unit))[::-1]
    return first


def _check_ratio(value: object, where: str) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ArgumentTypeError(f"the ratio{where} must be a number in [0, 1), not {type(value).__name__}")
    number = float(value)
    if math.isnan(number) or not 0 <= number < 1:
        raise ArgumentError(f"the ratio{where} is {number}; it must be in [0, 1): the fraction of channels to remove")
    return number


def _excluded(deps: DependencyGraph, exclude: Iterable[str]) -> list[ChannelGroup]:
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        given = f"the string '{exclude}'" if isinstance(exclude, str) else f"a {type(exclude).__name__}"
        raise ArgumentTypeError(f"exclude must be a collection of layer names, not {given}")
    return [group for layer in exclude for group in deps.group_of(layer)]


def _by_group(deps: DependencyGraph, ratio: Sequence[float], asked: dict[str, list[int]]) -> NDArray[np.float64]:
    groups = deps.prunable
    if len(ratio) not in (len(groups), len(deps.groups)):
        names = ", ".join(f"'{group.name}'" for group in groups)
        raise ArgumentError(f"{len(ratio)} ratios for {len(groups)} groups that can be pruned: {names}")
    given = groups if len(ratio) == len(groups) else deps.groups
    values = [_check_ratio(r, f" of group '{g.name}'") for r, g in zip(ratio, given, strict=True)]
    for number, (value, group) in enumerate(zip(values, given, strict=True)):
        if value > 0:
            if group.frozen is not None:
                raise FrozenLayerError(f"the group '{group.name}' cannot be pruned: {group.frozen}")
            asked.setdefault(group.producers[0], []).append(number)
    return np.array(values[: len(groups)])


def _by_layer(deps: DependencyGraph, ratio: Mapping[str, float], asked: dict[str, list[int]]) -> NDArray[np.float64]:
    groups = deps.prunable
    values = np.zeros(len(groups))
    position = {group.name: number for number, group in enumerate(groups)}
    given: dict[str, tuple[str, float]] = {}
    for layer, raw in ratio.items():
        value = _check_ratio(raw, f" of layer '{layer}'")
        found = [g for g in deps.group_of(layer) if g.frozen is None]
        if not found and value > 0:
            raise _frozen(deps, layer)
        for group in found:
            other, known = given.setdefault(group.name, (layer, value))
            if known != value:
                raise ArgumentError(
                    f"layers '{other}' and '{layer}' share the channels of the group '{group.name}', but have ratios "
                    f"{known} and {value}; give one ratio for the group"
                )
            values[position[group.name]] = value
            if value > 0:
                asked.setdefault(layer, []).append(position[group.name])
    return values


def _frozen(deps: DependencyGraph, layer: str) -> FrozenLayerError:
    return FrozenLayerError(f"layer '{layer}' cannot be pruned, so it takes no ratio.\n{deps.explain(layer)}")
