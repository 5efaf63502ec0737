"""Planning: from a ratio and a criterion to the channels that stay."""

from __future__ import annotations

__all__ = ["plan_channels", "plan_sorting"]

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fxprune.analysis import resolve
from fxprune.criteria import Criterion, UnitCriterion, comparable, prepared, unit_scores
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, InternalError, NothingToPruneError
from fxprune.labels import IntArray
from fxprune.plan import ChannelPlan, make_plan
from fxprune.ratios import Ratio, Wanted, wanted_ratios, whole_number
from fxprune.records import Conflict, numbers
from fxprune.selection import FloatArray, keep_count, select
from fxprune.settling import replayed
from fxprune.structure import Structure

_ATTEMPTS = 64


def plan_channels(
    deps: DependencyGraph,
    ratio: Ratio = 0.3,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
    heads: bool = False,
) -> ChannelPlan:
    """Choose the channels that stay.

    Args:
        deps: The dependency graph.
        ratio: The fraction to remove, in [0, 1): a number for all groups; a sequence or array with one for each group
            that can be pruned, in the order of ``deps.prunable`` (or for each of ``deps.groups``, frozen ones being
            0); or a mapping from layer names, which holds for the whole group of the layer's outputs, other groups
            staying whole.
        criterion: A name from :data:`fxprune.criteria.CRITERIA`; an object that looks at data, such as
            :class:`fxprune.criteria.Taylor`; or a function from a group to one score for each unit.
        scope: ``"group"`` removes the ratio from every group; ``"global"`` ranks the units of all groups together,
            each score divided by the mean of its group unless the criterion says that its scores are comparable as
            they are, and removes the ratio of all.
        exclude: Names of layers whose output channels all stay.
        round_to: Round the channels that a group keeps up to a multiple of this.
        heads: Remove whole heads of attentions, each as one unit, in place of dimensions of every head; as if ``deps``
            were :meth:`DependencyGraph.whole_heads` of it.

    Returns:
        The plan. A group of n units keeps ``int(round(n * (1 - ratio)))``, never fewer than 1; groups whose blocks
        must stay equal keep a number near it that allows that, and in every layer a share near its own.

    Raises:
        ArgumentError: A ratio outside [0, 1) or NaN, a sequence of the wrong length, two ratios for one group.
        ArgumentTypeError: A ratio that is no number, a name that is no string, or no dependency graph.
        UnknownNameError: An unknown layer or criterion; the message lists the nearest names.
        FrozenLayerError: A ratio for a layer that cannot be pruned, with the reason.
        NothingToPruneError: Nothing can be removed, with the reasons. A ratio so small that the nearest count is all
            that there is gives a plan that keeps all.
        WeightError: Weights that the criterion ranks are NaN or Inf, or on the meta device.
    """
    check_graph(deps, "plan_channels")
    if scope not in ("group", "global"):
        raise ArgumentError(f"scope is {scope!r}; it must be 'group' or 'global'")
    round_to = whole_number(round_to, "round_to")
    if heads:
        deps = deps.whole_heads()
    wanted = wanted_ratios(deps, ratio, exclude)
    if len(wanted.excluded) >= deps.structure.groups:
        raise NothingToPruneError(_nothing(deps, wanted))
    structure = deps.structure
    criterion = prepared(criterion, structure)
    place = ""
    for _ in range(_ATTEMPTS):
        groups = () if isinstance(criterion, str | UnitCriterion) else deps.groups
        scores = unit_scores(structure, groups, criterion, wanted.ratios > 0)
        keep = _keep(structure, scores, wanted.ratios, scope, round_to, comparable(criterion))
        kept = select(structure, scores, keep)
        try:
            plan = make_plan(deps, structure, kept, replayed(deps.gm, structure, kept))
        except Conflict as conflict:
            place = conflict.place
            structure = _refined(structure, conflict)
            wanted = wanted.carried(deps.structure, structure)
            deps = deps.refined(structure)
            wanted.check(deps)
            if not structure.groups:
                raise NothingToPruneError(_nothing(deps, wanted)) from conflict
        else:
            if kept.all() and _held(structure, wanted, scores):
                raise NothingToPruneError(_nothing(deps, wanted))
            return plan
    raise InternalError(f"no plan could be carried out: {place}")


def _held(structure: Structure, wanted: Wanted, scores: FloatArray) -> bool:
    """Whether no ratio, however large, would remove anything from the groups that one was given for."""
    most = {int(g): 1 for g in np.flatnonzero(wanted.ratios > 0)}
    return bool(most or wanted.asked) and bool(select(structure, scores, most).all())


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
    check_graph(deps, "plan_sorting")
    refinement = replace(deps.structure.refinement, pieces=True, order=True)
    structure = resolve(deps.structure.recorder, refinement)
    deps = deps.refined(structure)
    criterion = prepared(criterion, structure)
    kept = np.ones(structure.units, dtype=bool)
    place = ""
    for _ in range(_ATTEMPTS):
        groups = () if isinstance(criterion, str | UnitCriterion) else deps.groups
        scores = unit_scores(structure, groups, criterion)
        try:
            replay = replayed(deps.gm, structure, kept, _permutation(structure, scores))
            return make_plan(deps, structure, kept, replay)
        except Conflict as conflict:
            place = conflict.place
            structure = _refined(structure, conflict)
            deps = deps.refined(structure)
            kept = np.ones(structure.units, dtype=bool)
    raise InternalError(f"no order could be carried out: {place}")


def check_graph(deps: object, function: str) -> None:
    """Raise ArgumentTypeError for a model, say, in place of its dependency graph."""
    if not isinstance(deps, DependencyGraph):
        raise ArgumentTypeError(
            f"{function} needs a DependencyGraph, not a {type(deps).__name__}; "
            "use DependencyGraph.from_model(model, example_inputs)"
        )


def _permutation(structure: Structure, scores: FloatArray) -> IntArray:
    """The label that takes each label's place when every class is sorted by descending score."""
    successor = np.arange(structure.units)
    for members in structure.members:
        for kind in np.unique(structure.kind[members]):
            units = members[structure.kind[members] == kind]
            successor[units] = units[np.argsort(-scores[units], kind="stable")]
    place = np.arange(structure.recorder.count)
    for labels in (numbers(t) for t in (*structure.recorder.axes.values(), *structure.recorder.fillers)):
        units = structure.unit[labels]
        order = np.argsort(units, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - np.searchsorted(units[order], units[order])
        target = np.searchsorted(units[order], successor[units]) + rank
        place[labels] = labels[order[target]]
    return place


def _refined(structure: Structure, conflict: Conflict) -> Structure:
    return resolve(structure.recorder, structure.escalate(conflict.labels, conflict.node, conflict.place))


def _keep(
    structure: Structure,
    scores: FloatArray,
    ratios: NDArray[np.float64],
    scope: str,
    round_to: int,
    as_they_are: bool,
) -> dict[int, int]:
    sizes = [len(m) for m in structure.members]
    if scope == "group":
        return {g: keep_count(sizes[g], ratios[g], round_to) for g in range(structure.groups) if ratios[g] > 0}
    active = [g for g in range(structure.groups) if ratios[g] > 0]
    if not active:
        return {}
    found = [scores[structure.members[g]] for g in active]
    relative = found if as_they_are else [_relative(s) for s in found]
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


def _nothing(deps: DependencyGraph, wanted: Wanted) -> str:
    lines = [f"  '{group.name}': {group.frozen}" for group in deps.groups if group.frozen is not None]
    lines += [f"  '{name}': excluded" for name in wanted.excluded]
    for group in deps.prunable:
        if group.name not in wanted.excluded:
            reason = "no smaller number of its channels leaves its blocks equally large"
            if group.size == 1:
                reason = "its channels all go together, and one must stay"
            lines.append(f"  '{group.name}': {reason}")
    return "nothing in the network can be pruned:\n" + ("\n".join(lines) or "  it has no layer with channels")
