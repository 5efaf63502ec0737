"""Prune a little, train, and prune again, until a ratio or a budget is reached."""

from __future__ import annotations

__all__ = ["IterativePruning", "PruningRound", "prune_iteratively"]

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from fxprune.allocation import Budget
from fxprune.batches import in_evaluation
from fxprune.capture import Example
from fxprune.costs import Costs
from fxprune.criteria import Criterion
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.gradual import cubic
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.ratios import Ratio, wanted_ratios, whole_number
from fxprune.records import numbers
from fxprune.selection import keep_count
from fxprune.vocabulary import Axis

_ROUNDING = 1e-9
_Key: TypeAlias = tuple[Axis, int]

_SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "geometric": lambda progress, ratio: 1 - (1 - ratio) ** progress,
    "linear": lambda progress, ratio: progress * ratio,
    "cubic": lambda progress, ratio: cubic(progress, ratio),
}


@dataclass(frozen=True)
class PruningRound:
    """What one round left.

    Attributes:
        number: 1 for the first; 0 is the model as given.
        progress: How far the schedule was, from 0 to 1.
        parameters: Elements of all parameters.
        macs: Multiply-accumulates of a forward pass of the example inputs.
        score: What ``evaluate`` returned after the tuning; None without ``evaluate``.
    """

    number: int
    progress: float
    parameters: int
    macs: int
    score: float | None


@dataclass(frozen=True)
class IterativePruning:
    """What came of it.

    Attributes:
        network: The network after the last round, tuned.
        rounds: The rounds, that of the model as given first.
        plans: What the rounds removed, in their order: what :func:`fxprune.save_pruned` needs beside the network.
    """

    network: nn.Module
    rounds: tuple[PruningRound, ...]
    plans: tuple[ChannelPlan, ...] = ()


def prune_iteratively(
    model: nn.Module,
    example_inputs: Example,
    tune: Callable[[nn.Module], nn.Module],
    ratio: Ratio | None = None,
    criterion: Criterion = "input-l2",
    scope: str = "group",
    exclude: Iterable[str] = (),
    round_to: int = 1,
    heads: bool = False,
    *,
    budget: Budget | None = None,
    allocation: str | None = None,
    min_channels: int | Mapping[str, int] = 1,
    rounds: int = 4,
    schedule: str | Callable[[float, float], float] = "geometric",
    evaluate: Callable[[nn.Module], float] | None = None,
    on_round: Callable[[PruningRound, nn.Module], None] | None = None,
) -> IterativePruning:
    """Prune and tune in rounds.

    Han et al. (2015, arXiv:1506.02626) do so with single weights, Molchanov et al. (2017, arXiv:1611.06440) with
    channels. Each round analyses the network anew, ranks what is left of it by the criterion, removes channels, and
    tunes. Ratios and budgets are of the model as given, so that the last round ends where one call of
    :func:`fxprune.plan_channels` would: with a ratio every group ends with the same number of channels, or near it
    where blocks must stay equal and fewer numbers are possible on the way. Modules and parameters keep their names
    through all rounds, so that a criterion that is a function finds its layers again.

    Args:
        model: Any module; it is not changed.
        example_inputs: As for :func:`fxprune.trace`.
        tune: Takes a pruned network and returns it trained, such as
            ``functools.partial(fine_tune, train_batches=batches)``, which it may do in place.
        ratio: As for :func:`fxprune.plan_channels`, like all that follow up to ``min_channels``.
        criterion: How channels are ranked. One that looks at data looks again in every round, so that its batches must
            be a list or a ``DataLoader``.
        scope: Whether groups are ranked one by one or together.
        exclude: Names of layers whose output channels all stay.
        round_to: Round kept channels up to a multiple of this.
        heads: Remove whole heads of attentions in place of dimensions of every head.
        budget: What the network may cost in the end, in place of a ratio.
        allocation: How the budget is shared out: ``"uniform"`` or ``"global"``. Curves of a sensitivity are those of
            one network, and do not serve for all rounds.
        min_channels: The fewest units that a group keeps.
        rounds: How many.
        schedule: How much has been removed after which round: ``"geometric"``, the same share of what is left in each
            round; ``"linear"``, the same number; ``"cubic"``, fast at first (:func:`fxprune.gradual.cubic`); or a
            function of the progress from 0 to 1 and of the final ratio.
        evaluate: Takes the network in evaluation mode, returns a score.
        on_round: Called after each round, and once before the first, with its report and the network.

    Returns:
        The network, and what each round left.

    Raises:
        ArgumentError: Neither a ratio nor a budget, an unknown schedule or one that goes back, ``rounds`` below 1.
        ArgumentTypeError: ``tune`` is no function or returns no module, or another argument is of a wrong type.
        FxpruneError: As from :func:`fxprune.trace` and :func:`fxprune.plan_channels`.

    Example:
        >>> tune = functools.partial(fine_tune, train_batches=batches, epochs=1, teacher=model)
        >>> result = prune_iteratively(model, images[:1], tune, budget=Budget(macs=0.25), rounds=4)
    """
    rounds = whole_number(rounds, "rounds")
    curve = _Curve(schedule)
    if not callable(tune):
        raise ArgumentTypeError(f"tune must be a function from a network to a network, not {type(tune).__name__}")
    if (ratio is None) == (budget is None):
        raise ArgumentError("prune_iteratively needs a ratio or a budget to get to, and not both")
    if allocation is not None and not isinstance(allocation, str):
        raise ArgumentTypeError(
            f"allocation must be 'uniform' or 'global' in rounds, not a {type(allocation).__name__}, whose curves are "
            "those of the first network only"
        )
    options: dict[str, Any] = {"scope": scope, "round_to": round_to, "min_channels": min_channels}
    deps = _analysed(model, example_inputs, heads)
    target: _Ratios | _Budgets
    if ratio is not None:
        target = _Ratios(deps, ratio, tuple(exclude), scope, round_to, curve)
    else:
        assert budget is not None
        options |= {"exclude": tuple(exclude), "allocation": allocation}
        target = _Budgets(deps, budget, options, curve)
    history: list[PruningRound] = []

    def report(number: int, network: nn.Module) -> None:
        score = None
        if evaluate is not None:
            with in_evaluation(network):
                score = float(evaluate(network))
        costs = Costs.of(deps)
        history.append(PruningRound(number, number / rounds, costs.parameters(), costs.macs(), score))
        if on_round is not None:
            on_round(history[-1], network)

    network = model
    plans: list[ChannelPlan] = []
    report(0, network)
    for number in range(1, rounds + 1):
        step = target.step(deps, (number - 1) / rounds, number / rounds)
        if step is not None:
            plans.append(plan_channels(deps, criterion=criterion, **step, **options))
            network = plans[-1].apply(network)
        elif network is model:
            network = copy.deepcopy(model)
        network = tune(network)
        if not isinstance(network, nn.Module):
            raise ArgumentTypeError(f"tune must return the network that it trained, not {type(network).__name__}")
        deps = _analysed(network, example_inputs, heads)
        report(number, network)
    return IterativePruning(network, tuple(history), tuple(plans))


def _analysed(model: nn.Module, example_inputs: Example, heads: bool) -> DependencyGraph:
    deps = DependencyGraph.from_model(model, example_inputs)
    return deps.whole_heads() if heads else deps


class _Curve:
    """How much has been removed after a share of all rounds."""

    def __init__(self, schedule: str | Callable[[float, float], float]) -> None:
        if isinstance(schedule, str):
            if schedule not in _SCHEDULES:
                raise UnknownNameError(f"no schedule {schedule!r}; {nearest_names(schedule, _SCHEDULES)}")
            schedule = _SCHEDULES[schedule]
        if not callable(schedule):
            raise ArgumentTypeError(f"schedule must be a name or a function, not {type(schedule).__name__}")
        self._schedule = schedule

    def removed(self, progress: float, ratio: float) -> float:
        """The fraction that has been removed, of that which is to be removed in the end."""
        if progress in (0, 1):
            return progress * ratio
        value = float(self._schedule(progress, ratio))
        if not 0 <= value <= ratio + _ROUNDING:
            raise ArgumentError(
                f"the schedule gives {value} at {progress:g} of the way to {ratio:g}: it must lie between 0 and that"
            )
        return min(value, ratio)

    def step(self, before: float, after: float, ratio: float) -> float:
        """The fraction to remove of what is left."""
        old, new = self.removed(before, ratio), self.removed(after, ratio)
        if new < old - _ROUNDING:
            raise ArgumentError(f"the schedule falls from {old:g} to {new:g}: what has been removed does not come back")
        return max(0.0, 1 - (1 - new) / (1 - old))


class _Ratios:
    """A ratio of the first network, as ratios of later ones."""

    def __init__(
        self, deps: DependencyGraph, ratio: Ratio, exclude: Sequence[str], scope: str, round_to: int, curve: _Curve
    ) -> None:
        wanted = wanted_ratios(deps, ratio, exclude)
        sizes = [len(members) for members in deps.structure.members]
        self._groups = dict(zip(_keys(deps), zip(sizes, wanted.ratios.tolist(), strict=True), strict=True))
        self._scope = scope
        self._round_to = round_to
        self._curve = curve

    def step(self, deps: DependencyGraph, before: float, after: float) -> dict[str, Any] | None:
        """What to ask for in the round between two points of the schedule; None if that is nothing."""
        sizes = [len(members) for members in deps.structure.members]
        ratios = [self._of(key, size, before, after) for key, size in zip(_keys(deps), sizes, strict=True)]
        return {"ratio": ratios} if any(ratios) else None

    def _of(self, key: _Key, now: int, before: float, after: float) -> float:
        size, ratio = self._groups.get(key, (0, 0.0))
        step = self._curve.step(before, after, ratio)
        if ratio == 0 or self._scope == "global":
            return step
        # Counted from the first size, so that rounding does not add up.
        left = keep_count(size, self._curve.removed(after, ratio), self._round_to)
        return max(0.0, 1 - left / now)


def _keys(deps: DependencyGraph) -> list[_Key]:
    """What names each group in every round: the tensor that makes it, and which group of that tensor it is.

    Layers are no names for that, as parts of a decomposed one are parameters by themselves when it is read again.
    """
    structure = deps.structure
    found: dict[int, _Key] = {}
    count: Counter[Axis] = Counter()
    for use in structure.recorder.uses:
        if use.role == "producer":
            for group in dict.fromkeys(structure.group[structure.unit[numbers(use.labels)]].tolist()):
                if group >= 0 and group not in found:
                    found[group] = (use.axis, count[use.axis])
                    count[use.axis] += 1
    return [found[group] for group in range(structure.groups)]


class _Budgets:
    """A budget of the first network, as budgets on the way to it."""

    def __init__(self, deps: DependencyGraph, budget: Budget, options: Mapping[str, Any], curve: _Curve) -> None:
        plan = plan_channels(deps, criterion="first", budget=budget, **options)  # which is refused if it cannot be met
        assert plan.allocation is not None
        self._limits = plan.allocation.limits
        self._table = budget.table
        self._curve = curve

    def step(self, deps: DependencyGraph, before: float, after: float) -> dict[str, Any]:
        """What to ask for in the round that ends at a point of the schedule."""
        most = {}
        for limit in self._limits:
            gone = max(0.0, 1 - limit.most / limit.before)
            self._curve.step(before, after, gone)  # refuses a schedule that goes back
            most[limit.name] = limit.before * (1 - self._curve.removed(after, gone))
        return {"budget": Budget(**most, table=self._table)}
