"""Planning: from a ratio and a criterion to the channels that stay."""

from __future__ import annotations

__all__ = ["kept_by_ratio", "plan_channels", "plan_sorting"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fxprune.allocation import Budget, check_budget, fewest
from fxprune.analysis import resolve
from fxprune.collection import collector_paused
from fxprune.criteria import Criterion, UnitCriterion, comparable, prepared, unit_scores
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, NothingToPruneError
from fxprune.labels import IntArray
from fxprune.plan import ChannelPlan, make_plan
from fxprune.ratios import Ratio, Wanted, wanted_ratios, whole_number
from fxprune.records import Conflict, numbers
from fxprune.selection import FloatArray, keep_count, select
from fxprune.settling import chosen, replayed
from fxprune.structure import Structure

if TYPE_CHECKING:
    from fxprune.sensitivity import Sensitivity


DEFAULT_RATIO = 0.3


def plan_channels(
    deps: DependencyGraph,
    ratio: Ratio | None = None,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
    heads: bool = False,
    *,
    budget: Budget | None = None,
    allocation: str | Sensitivity | None = None,
    min_channels: int | Mapping[str, int] = 1,
) -> ChannelPlan:
    """Choose the channels that stay.

    Args:
        deps: The dependency graph.
        ratio: The fraction to remove, in [0, 1): a number for all groups; a sequence or array with one for each group
            that can be pruned, in the order of ``deps.prunable`` (or for each of ``deps.groups``, frozen ones being
            0); or a mapping from layer names, which holds for the whole group of the layer's outputs, other groups
            staying whole. 0.3 if neither a ratio nor a budget is given.
        criterion: A name from :data:`fxprune.criteria.CRITERIA`; an object that looks at data, such as
            :class:`fxprune.criteria.Taylor`; or a function from a group to one score for each unit.
        scope: ``"group"`` removes the ratio from every group; ``"global"`` ranks the units of all groups together,
            each score divided by the mean of its group unless the criterion says that its scores are comparable as
            they are, and removes the ratio of all.
        exclude: Names of layers whose output channels all stay.
        round_to: Round the channels that a group keeps up to a multiple of this.
        heads: Remove whole heads of attentions, each as one unit, in place of dimensions of every head; as if ``deps``
            were :meth:`DependencyGraph.whole_heads` of it.
        budget: What the network may cost at most, in place of a ratio; the ratios then follow from ``allocation``.
        allocation: How a budget is shared out: ``"uniform"``, the same ratio for every group; ``"global"``, one
            ranking of the units of all groups, as with ``scope="global"``; or the curves of :func:`fxprune.sensitivity`
            with ``kind="channels"``, so that the accuracies that they say are lost add up to the least (a knapsack;
            groups without a curve stay whole). By default as ``scope`` says.
        min_channels: The fewest units that a group keeps: a number for all, or by the name of any layer of a group.

    Returns:
        The plan. A group of n units keeps ``int(round(n * (1 - ratio)))``, never fewer than 1; groups whose blocks
        must stay equal keep a number near it that allows that, and in every layer a share near its own. With a budget
        no limit is passed, and one unit more of some group would pass one; ``plan.allocation`` says what came out.

    Raises:
        ArgumentError: A ratio outside [0, 1) or NaN, a sequence of the wrong length, two ratios for one group; a ratio
            and a budget at once, or a budget that even the smallest network passes.
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
    share = check_budget(deps, ratio, scope, budget, allocation)
    wanted = wanted_ratios(deps, ratio if ratio is not None else DEFAULT_RATIO, exclude)
    if len(wanted.excluded) >= deps.structure.groups:
        raise NothingToPruneError(_nothing(deps, wanted))
    structure = deps.structure
    criterion = prepared(criterion, structure)
    while True:  # each conflict leaves fewer units
        groups = () if isinstance(criterion, str | UnitCriterion) else deps.groups
        scores = unit_scores(structure, groups, criterion, wanted.ratios > 0)
        least = fewest(deps, min_channels)
        ranked = share is not None or scope == "global"
        relative = relative_scores(structure, scores) if ranked and not comparable(criterion) else scores
        if share is None:
            keep, found = _keep(structure, relative, wanted.ratios, scope, round_to, least), None
        else:
            keep, found = share.out(deps, scores, relative, wanted.ratios > 0, least, round_to)
        kept = select(structure, scores, keep)
        try:
            with collector_paused():
                plan = make_plan(deps, structure, kept, chosen(deps.gm, structure, kept))
        except Conflict as conflict:
            structure = _refined(structure, conflict)
            wanted = wanted.carried(deps.structure, structure)
            deps = deps.refined(structure)
            wanted.check(deps)
            if not structure.groups:
                raise NothingToPruneError(_nothing(deps, wanted)) from conflict
        else:
            if share is None and kept.all() and _held(structure, wanted, scores):
                raise NothingToPruneError(_nothing(deps, wanted))
            return replace(plan, allocation=found)


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
    while True:  # each conflict leaves fewer units
        groups = () if isinstance(criterion, str | UnitCriterion) else deps.groups
        scores = unit_scores(structure, groups, criterion)
        try:
            found = replayed(deps.gm, structure, kept, _permutation(structure, scores))
            return make_plan(deps, structure, kept, found)
        except Conflict as conflict:
            structure = _refined(structure, conflict)
            deps = deps.refined(structure)
            kept = np.ones(structure.units, dtype=bool)


def kept_by_ratio(
    deps: DependencyGraph, ratios: Iterable[float], criterion: Criterion = "input-l2"
) -> dict[float, NDArray[np.bool_]]:
    """What plans of different ratios keep, in the units of one dependency graph.

    Args:
        deps: The dependency graph.
        ratios: Ratios for all groups.
        criterion: As for :func:`plan_channels`.

    Returns:
        For each ratio, whether each unit of ``deps`` stays, shape ``(units,)``; all where nothing can be removed.
    """
    structure = deps.structure
    found = {}
    for ratio in ratios:
        try:
            plan = plan_channels(deps, ratio, criterion)
        except NothingToPruneError:
            found[ratio] = np.ones(structure.units, dtype=bool)
        else:
            found[ratio] = structure.kept_in(plan.structure, plan.kept)
    return found


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
    relative: FloatArray,
    ratios: NDArray[np.float64],
    scope: str,
    round_to: int,
    least: Sequence[int],
) -> dict[int, int]:
    sizes = [len(m) for m in structure.members]
    active = [g for g in range(structure.groups) if ratios[g] > 0]
    if scope == "group" or not active:
        return {g: max(least[g], keep_count(sizes[g], ratios[g], round_to)) for g in active}
    wanted = round(sum(sizes[g] * (1 - ratios[g]) for g in active))
    owner = np.concatenate([np.full(sizes[g], g) for g in active])
    ranked = np.concatenate([relative[structure.members[g]] for g in active])
    best = owner[np.argsort(-ranked, kind="stable")[:wanted]]
    return {
        g: max(least[g], keep_count(sizes[g], 1 - max(1, int((best == g).sum())) / sizes[g], round_to)) for g in active
    }


def relative_scores(structure: Structure, scores: FloatArray) -> FloatArray:
    """Scores divided by the mean of those of their group that are finite, so that groups can be compared."""
    relative: FloatArray = scores.astype(np.float64)
    for members in structure.members:
        finite = scores[members][np.isfinite(scores[members])]
        mean = abs(finite.mean()) if finite.size else 0.0
        relative[members] = scores[members] / (mean or 1.0)
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
    if not lines:
        lines = [f"  '{name}': {reason}" for name, reason in deps.untouched.items()]
    return "nothing in the network can be pruned:\n" + ("\n".join(lines) or "  it has no layer with channels")
