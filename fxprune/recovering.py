"""The ladder: one way after another to bring a pruned network back to its original, each kept if it helps."""

from __future__ import annotations

__all__ = ["RUNGS", "Recovery", "Rung", "recover"]

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.errors import ArgumentTypeError, UnknownNameError, nearest_names
from fxprune.nested import leaves
from fxprune.origin import origin_from
from fxprune.passes.batch_norm_estimation import BatchNormEstimation
from fxprune.passes.constant_absorption import ConstantAbsorption
from fxprune.passes.reconstruction import Reconstruction
from fxprune.passes.variance_repair import VarianceRepair
from fxprune.plan import ChannelPlan
from fxprune.recovery.pair import Pair
from fxprune.recovery.running import Batch, Runner, output_error, that_fit

RUNGS = ("constants", "batch-norms", "variances", "reconstruction")
"""What :func:`recover` tries, in this order: :class:`fxprune.passes.ConstantAbsorption`,
:class:`fxprune.passes.BatchNormEstimation`, :class:`fxprune.passes.VarianceRepair` and
:class:`fxprune.passes.Reconstruction`."""


@dataclass(frozen=True)
class Rung:
    """What one step came to.

    Attributes:
        name: One of :data:`RUNGS`, or ``"pruned"`` for the network as it came.
        error: How far the outputs are from the original's on the batches: the norm of the difference, divided by
            that of the original's outputs.
        score: What ``evaluate`` gave, if there was one.
        kept: Whether the step was kept, as the outputs came nearer.
    """

    name: str
    error: float
    score: float | None
    kept: bool


@dataclass(frozen=True)
class Recovery:
    """A network after recovery; printing it shows a table.

    Attributes:
        network: A new network, which shares no storage with those that it was made from.
        rungs: What each step came to, the network as it came first.
        images: How many inputs were used: fewer than were given where they did not fit into memory.
    """

    network: fx.GraphModule
    rungs: tuple[Rung, ...]
    images: int

    def __str__(self) -> str:
        lines = [f"{'':16}{'output error':>14}{'score':>10}"]
        for rung in self.rungs:
            score = "" if rung.score is None else f"{rung.score:.4g}"
            lines.append(f"{rung.name:16}{rung.error:14.4f}{score:>10}{'' if rung.kept else '  taken back'}")
        return "\n".join(lines)


def recover(
    small: fx.GraphModule,
    original: nn.Module,
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    plan: ChannelPlan | None = None,
    rungs: Sequence[str] = RUNGS,
    penalty: float | None = None,
    memory_bytes: int = 2 * 2**30,
    seed: int = 0,
) -> Recovery:
    """Bring a pruned network nearer to its original without training.

    Each rung works on what the rungs before it left, and is taken back if it brings the network's outputs no nearer to
    the original's on the batches. No labels are needed: ``evaluate`` is only reported.

    Args:
        small: What :meth:`fxprune.ChannelPlan.apply` or :func:`fxprune.prune_weights` gave; it is not changed.
        original: The model that it was made from, with its weights; it is not changed.
        batches: A few hundred inputs in all: tensors, mappings, or pairs of inputs and targets, which are not
            looked at. Of a pair the inputs may be a tuple of several.
        evaluate: Takes a network in evaluation mode and gives its accuracy, or another number to be reported.
        plan: The plan that ``small`` was made by. Networks know it themselves, unless they were taken apart since.
        rungs: Which of :data:`RUNGS` to try, in this order.
        penalty: As for :class:`fxprune.passes.Reconstruction`.
        memory_bytes: How much the values of both networks may take at a time; only as many batches are used as fit.
        seed: Of the positions that are drawn.

    Returns:
        The network, and what each rung came to.

    Raises:
        ArgumentError: ``small`` was not made from ``original``, or there are no batches.
        ArgumentTypeError: Something else than networks and batches, or ``evaluate`` gave no number.
        UnknownNameError: There is no such rung.
        TraceError: The batches do not fit the networks.

    Example:
        >>> small = fxprune.prune_channels(model, images[:1], ratio=0.5)
        >>> small = fxprune.recover(small, model, images[:256].split(64)).network
    """
    for rung in rungs:
        if rung not in RUNGS:
            raise UnknownNameError(f"there is no rung {rung!r}; {nearest_names(str(rung), RUNGS)}")
    if evaluate is not None and not callable(evaluate):
        raise ArgumentTypeError(f"evaluate must be a function from a network to a number, not {evaluate!r}")
    origin = None if plan is None else origin_from(plan)
    pair = Pair.of(small, original, batches, origin)
    used = that_fit(pair.original, pair.batches, memory_bytes // 2)
    names = [str(node.target) for node in small.graph.find_nodes(op="placeholder")]
    inputs = [{n: v for n, v in zip(names, batch, strict=True) if not n.startswith("*")} for batch in used]
    wanted = Runner(pair.original, used).outputs()
    network = pair.finished()
    error = _error(network, used, wanted)
    steps = [Rung("pruned", error, _score(evaluate, network), True)]
    passes: dict[str, PassBase] = {
        "constants": ConstantAbsorption(pair.original, inputs, pair.origin, seed),
        "batch-norms": BatchNormEstimation(inputs),
        "variances": VarianceRepair(pair.original, inputs, pair.origin),
        "reconstruction": Reconstruction(pair.original, inputs, pair.origin, penalty, seed),
    }
    for rung in rungs:
        result = passes[rung].call(network)
        assert result is not None
        tried: fx.GraphModule = result.graph_module
        found = _error(tried, used, wanted)
        kept = found < error
        steps.append(Rung(rung, found, _score(evaluate, tried), kept))
        if kept:
            network, error = tried, found
    return Recovery(network, tuple(steps), sum(_images(batch) for batch in used))


def _images(batch: Batch) -> int:
    return next((len(value) for value in leaves(batch) if isinstance(value, Tensor) and value.dim()), 1)


def _error(network: fx.GraphModule, batches: list[Batch], wanted: list[Any]) -> float:
    """How far the outputs are from those wanted, in evaluation mode."""
    modes = [module.training for module in network.modules()]
    given = Runner(network.eval(), batches).outputs()
    for module, training in zip(network.modules(), modes, strict=True):
        module.training = training
    return output_error(given, wanted)


def _score(evaluate: Callable[[nn.Module], float] | None, network: fx.GraphModule) -> float | None:
    if evaluate is None:
        return None
    modes = [module.training for module in network.modules()]
    with torch.no_grad():
        score = evaluate(network.eval())
    for module, training in zip(network.modules(), modes, strict=True):
        module.training = training
    if isinstance(score, Tensor) and score.numel() == 1:
        return float(score)
    if isinstance(score, bool) or not isinstance(score, numbers.Real):
        raise ArgumentTypeError(f"evaluate must return a number, but returned {score!r} ({type(score).__name__})")
    return float(score)
