"""What each group can lose when the layers that read it make up for what they can: curves for sharing a budget out."""

from __future__ import annotations

__all__ = ["recovery_curves"]

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from fxprune.criteria.reconstruction import Surgeon, readers_of, removals
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError
from fxprune.parametrizing import copy_network
from fxprune.planning import check_graph
from fxprune.recovery.chains import Chain, chain_of
from fxprune.recovery.contractions import contractions
from fxprune.recovery.running import Runner, as_batches, output_error
from fxprune.sensitivity import Sensitivity

DEFAULT_RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def recovery_curves(
    deps: DependencyGraph,
    batches: Iterable[Any],
    ratios: Sequence[float] = DEFAULT_RATIOS,
    seed: int = 0,
    progress: bool = False,
) -> Sensitivity:
    """How far off the network's outputs are when one group alone loses channels and is recovered, without labels.

    Channels go in the order of :class:`fxprune.criteria.ReconstructionLoss`, whose fit of the readers comes with it. So
    the curves say what a budget costs after :func:`fxprune.recover`, where :func:`fxprune.sensitivity` says what it
    costs before; the two differ most where it matters.

    Args:
        deps: The dependency graph.
        batches: Inputs: tensors, mappings, or pairs of inputs and targets, which are not looked at. The network runs on
            them once for each group and ratio, so one batch or two are enough.
        ratios: Fractions of the channels of each group to remove, in (0, 1).
        seed: Of the positions that are drawn for the fits.
        progress: Whether to show a progress bar.

    Returns:
        Curves for ``plan_channels(..., budget=..., allocation=...)``. In place of an accuracy there is 1 less the
        squared error of the outputs, as a share of their square. Groups that no convolution or linear layer reads have
        no curve, so that a plan leaves them whole.

    Raises:
        ArgumentError: A ratio is not in (0, 1), or there are no batches.
        ArgumentTypeError: Something else than a dependency graph and batches.
        TraceError: The batches do not fit the network.

    Example:
        >>> curves = fxprune.recovery_curves(deps, [images])
        >>> criterion = fxprune.criteria.ReconstructionLoss([images])
        >>> plan = fxprune.plan_channels(deps, criterion=criterion, budget=Budget(macs=0.3), allocation=curves)
        >>> small = fxprune.recover(plan.apply(model), model, [images]).network
    """
    check_graph(deps, "recovery_curves")
    tried = tuple(float(ratio) for ratio in ratios)
    if not tried or not all(0 < ratio < 1 for ratio in tried):
        raise ArgumentError(f"ratios must be numbers between 0 and 1, at least one, not {ratios!r}")
    network = copy_network(deps.gm).eval()
    values = as_batches(network, batches)
    structure = deps.structure
    readers = readers_of(structure, network, values, seed)
    runner = Runner(network, values)
    chains = {c.node.name: chain_of(network, c, runner) for c in contractions(network)}
    wanted = runner.outputs()
    curves: dict[str, tuple[float, ...]] = {}
    with tqdm(total=structure.groups, desc="recovery curves", unit="group", disable=not progress) as bar:
        for group, members in zip(deps.prunable, structure.members, strict=True):
            own = [reader for reader in readers if np.isin(structure.unit[reader.labels], members).any()]
            counts = {round(len(members) * ratio) for ratio in tried}
            errors = {0: 0.0}
            for count, (_, _, surgeons) in enumerate(removals(members, structure, own) if own else (), start=1):
                if count in counts:
                    _fit(chains, surgeons, 1)
                    errors[count] = output_error(Runner(network, values).outputs(), wanted)
                    _fit(chains, surgeons, -1)
            if own:
                curves[group.producers[0]] = tuple(1 - errors[round(len(members) * r)] ** 2 for r in tried)
            bar.update()
    return Sensitivity("channels", tried, 1.0, MappingProxyType(curves))


def _fit(chains: Mapping[str, Chain], surgeons: Iterable[Surgeon], sign: int) -> None:
    """Give readers the weights that make up for what was taken, and what keeps their means; or take it back."""
    for surgeon in surgeons:
        reader = surgeon.reader
        chains[reader.name].contraction.assign(surgeon.weight if sign > 0 else reader.weight)
        lost = torch.einsum("god,gd->go", reader.weight - surgeon.weight, reader.mean)
        chains[reader.name].shift(sign * lost)
