"""Planning: from a ratio and a criterion to the channels that stay."""

from __future__ import annotations

__all__ = ["Ratio", "plan_channels", "plan_sorting"]

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis import Structure, resolve
from fxprune.criteria import Criterion, unit_scores
from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, FrozenLayerError, InternalError, NothingToPruneError
from fxprune.labels import IntArray
from fxprune.plan import ChannelPlan, make_plan
from fxprune.recorder import numbers
from fxprune.replay import Conflict
from fxprune.selection import FloatArray, keep_count, select
from fxprune.settling import replayed

Ratio: TypeAlias = float | Sequence[float] | Mapping[str, float]
"""The fraction of channels to remove: one for all groups, one for each, or by the name of any layer of a group."""

_ATTEMPTS = 64


def plan_channels(
    deps: DependencyGraph,
    ratio: Ratio = 0.3,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
) -> ChannelPlan:
    """Choose the channels that stay.

    Args:
        deps: The dependency graph.
        ratio: The fraction to remove, in [0, 1): a number for all groups; a sequence with one for each group that can
        be
            pruned, in the order of ``deps.prunable`` (or for each of ``deps.groups``, frozen ones being 0); or a
            mapping
            from layer names, which holds for the whole group of the layer's outputs, other groups staying whole.
        criterion: A name from :data:`fxprune.criteria.CRITERIA`, or a function from a group to one score for each unit.
        scope: ``"group"`` removes the ratio from every group; ``"global"`` ranks the units of all groups together,
            each score divided by the mean of its group, and removes the ratio of all.
        exclude: Names of layers whose output channels all stay.
        round_to: Round the channels that a group keeps up to a multiple of this.

    Returns:
        The plan. A group of n units keeps ``int(round(n * (1 - ratio)))``, never fewer than 1; groups whose blocks
        must stay equal keep the nearest number that allows it.

    Raises:
        ArgumentError: A ratio outside [0, 1) or NaN, a sequence of the wrong length, two ratios for one group.
        ArgumentTypeError: A ratio that is no number.
        UnknownNameError: An unknown layer or criterion; the message lists the nearest names.
        FrozenLayerError: A ratio for a layer that cannot be pruned, with the reason.
        NothingToPruneError: Nothing can be pruned, with the reasons.
        WeightError: Weights that the criterion looks at are NaN or Inf.
    """
    if scope not in ("group", "global"):
        raise ArgumentError(f"scope is {scope!r}; it must be 'group' or 'global'")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ArgumentError(f"round_to is {round_to!r}; it must be a whole number of at least 1")
    excluded = _excluded(deps, exclude)
    if all(group.name in excluded for group in deps.prunable):
        raise NothingToPruneError(_nothing(deps, excluded))
    ratios = _ratios(deps, ratio, excluded)
    structure = deps.structure
    place = ""
    for _ in range(_ATTEMPTS):
        scores = unit_scores(structure, deps.groups, criterion)
        keep = _keep(structure, scores, ratios, scope, round_to)
        kept = select(structure, scores, keep)
        try:
            return make_plan(deps, structure, kept, replayed(deps.gm, structure, kept))
        except Conflict as conflict:
            place = conflict.place
            structure = _refined(structure, conflict)
            if not structure.groups:
                raise NothingToPruneError(_nothing(_with_structure(deps, structure), excluded)) from conflict
            ratios = _carried(ratios, deps.structure, structure)
            deps = _with_structure(deps, structure)
    raise InternalError(f"no plan could be carried out: {place}")


def plan_sorting(deps: DependencyGraph, criterion: Criterion = "input-l2") -> ChannelPlan:
    """Put the channels of every group into descending order of importance; nothing is removed.

    Units change places only with units that could stand in for them, so that the network computes what it did.

    Args:
        deps: The dependency graph.
        criterion: As for :func:`plan_channels`.

    Raises:
        UnknownNameError: An unknown criterion.
        WeightError: Weights that the criterion looks at are NaN or Inf.
    """
    refinement = replace(deps.structure.refinement, pieces=True, order=True)
    structure = resolve(deps.structure.recorder, refinement)
    deps = _with_structure(deps, structure)
    kept = np.ones(structure.units, dtype=bool)
    place = ""
    for _ in range(_ATTEMPTS):
        scores = unit_scores(structure, deps.groups, criterion)
        try:
            replay = replayed(deps.gm, structure, kept, _permutation(structure, scores))
            return make_plan(deps, structure, kept, replay)
        except Conflict as conflict:
            place = conflict.place
            structure = _refined(structure, conflict)
            deps = _with_structure(deps, structure)
            kept = np.ones(structure.units, dtype=bool)
    raise InternalError(f"no order could be carried out: {place}")


def _permutation(structure: Structure, scores: FloatArray) -> IntArray:
    """The label that takes each label's place when every class is sorted by descending score."""
    successor = np.arange(structure.units)
    for members in structure.members:
        for kind in np.unique(structure.kind[members]):
            units = members[structure.kind[members] == kind]
            successor[units] = units[np.argsort(-scores[units], kind="stable")]
    place = np.arange(structure.recorder.count)
    for labels in (numbers(t) for t in structure.recorder.axes.values()):
        units = structure.unit[labels]
        order = np.argsort(units, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - np.searchsorted(units[order], units[order])
        target = np.searchsorted(units[order], successor[units]) + rank
        place[labels] = labels[order[target]]
    return place


def _refined(structure: Structure, conflict: Conflict) -> Structure:
    return resolve(structure.recorder, structure.escalate(conflict.labels, conflict.node, conflict.place))


def _with_structure(deps: DependencyGraph, structure: Structure) -> DependencyGraph:
    """The same graph with a refined structure."""
    refined = object.__new__(DependencyGraph)
    refined.gm, refined.structure = deps.gm, structure
    return refined


def _keep(
    structure: Structure, scores: FloatArray, ratios: NDArray[np.float64], scope: str, round_to: int
) -> dict[int, int]:
    sizes = [len(m) for m in structure.members]
    if scope == "group":
        return {g: keep_count(sizes[g], ratios[g], round_to) for g in range(structure.groups) if ratios[g] > 0}
    active = [g for g in range(structure.groups) if ratios[g] > 0]
    if not active:
        return {}
    relative = [_relative(scores[structure.members[g]]) for g in active]
    wanted = round(sum(sizes[g] * (1 - ratios[g]) for g in active))
    owner = np.concatenate([np.full(sizes[g], g) for g in active])
    best = owner[np.argsort(-np.concatenate(relative), kind="stable")[:wanted]]
    return {g: keep_count(sizes[g], 1 - max(1, int((best == g).sum())) / sizes[g], round_to) for g in active}


def _relative(scores: FloatArray) -> FloatArray:
    """Scores divided by the mean of those that are finite, so that groups can be compared."""
    finite = scores[np.isfinite(scores)]
    mean = abs(finite.mean()) if finite.size else 0.0
    relative: FloatArray = scores / (mean or 1.0)
    return relative


def _carried(ratios: NDArray[np.float64], old: Structure, new: Structure) -> NDArray[np.float64]:
    """Ratios of a refined structure's groups: the least of those that their units had before."""
    result = np.zeros(new.groups)
    first = np.zeros(new.units, dtype=np.int64)
    first[new.unit[::-1]] = np.arange(len(new.unit))[::-1]
    for number, members in enumerate(new.members):
        owners = old.group[old.unit[first[members]]]
        result[number] = min((ratios[o] for o in owners if o >= 0), default=0.0)
    return result


def _check_ratio(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise ArgumentTypeError(f"the ratio{where} must be a number in [0, 1), not {type(value).__name__}")
    number = float(value)
    if math.isnan(number) or not 0 <= number < 1:
        raise ArgumentError(f"the ratio{where} is {number}; it must be in [0, 1): the fraction of channels to remove")
    return number


def _excluded(deps: DependencyGraph, exclude: Iterable[str]) -> set[str]:
    if isinstance(exclude, str):
        raise ArgumentTypeError(f"exclude must be a collection of layer names, not the string '{exclude}'")
    return {group.name for layer in exclude for group in deps.group_of(layer)}


def _ratios(deps: DependencyGraph, ratio: Ratio, excluded: set[str]) -> NDArray[np.float64]:
    groups = deps.prunable
    if isinstance(ratio, Mapping):
        values = _by_layer(deps, ratio)
    elif isinstance(ratio, Sequence) and not isinstance(ratio, str):
        values = _by_group(deps, ratio)
    else:
        values = np.full(len(groups), _check_ratio(ratio, ""))
    for number, group in enumerate(groups):
        if group.name in excluded:
            values[number] = 0.0
    return values


def _by_group(deps: DependencyGraph, ratio: Sequence[float]) -> NDArray[np.float64]:
    groups = deps.prunable
    if len(ratio) == len(groups):
        return np.array([_check_ratio(r, f" of group '{g.name}'") for r, g in zip(ratio, groups, strict=True)])
    if len(ratio) != len(deps.groups):
        names = ", ".join(f"'{group.name}'" for group in groups)
        raise ArgumentError(f"{len(ratio)} ratios for {len(groups)} groups that can be pruned: {names}")
    values = [_check_ratio(r, f" of group '{g.name}'") for r, g in zip(ratio, deps.groups, strict=True)]
    for value, group in zip(values, deps.groups, strict=True):
        if value > 0 and group.frozen is not None:
            raise FrozenLayerError(f"the group '{group.name}' cannot be pruned: {group.frozen}")
    return np.array([v for v, g in zip(values, deps.groups, strict=True) if g.frozen is None])


def _by_layer(deps: DependencyGraph, ratio: Mapping[str, float]) -> NDArray[np.float64]:
    groups = deps.prunable
    values = np.zeros(len(groups))
    position = {group.name: number for number, group in enumerate(groups)}
    given: dict[str, tuple[str, float]] = {}
    for layer, raw in ratio.items():
        value = _check_ratio(raw, f" of layer '{layer}'")
        found: list[ChannelGroup] = [g for g in deps.group_of(layer) if g.frozen is None]
        if not found and value > 0:
            raise FrozenLayerError(f"layer '{layer}' cannot be pruned, so it takes no ratio.\n{deps.explain(layer)}")
        for group in found:
            other, known = given.setdefault(group.name, (layer, value))
            if known != value:
                raise ArgumentError(
                    f"layers '{other}' and '{layer}' share the channels of the group '{group.name}', but have ratios "
                    f"{known} and {value}; give one ratio for the group"
                )
            values[position[group.name]] = value
    return values


def _nothing(deps: DependencyGraph, excluded: set[str]) -> str:
    lines = [f"  '{group.name}': {group.frozen}" for group in deps.groups if group.frozen is not None]
    lines += [f"  '{name}': excluded" for name in sorted(excluded)]
    return "nothing in the network can be pruned:\n" + ("\n".join(lines) or "  it has no layer with channels")
