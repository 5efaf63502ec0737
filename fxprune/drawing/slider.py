"""What pruning at one ratio after another would leave, as data for a slider."""

from __future__ import annotations

__all__ = ["RATIOS", "slider_data"]

from collections.abc import Sequence
from typing import Any

from fxprune.costs import Costs
from fxprune.dependency import DependencyGraph
from fxprune.drawing.scene import Scene
from fxprune.errors import NothingToPruneError
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels

RATIOS = tuple(percent / 100 for percent in range(0, 100, 5))
"""The steps of the slider: fractions removed from every group."""


def slider_data(deps: DependencyGraph, scene: Scene, ratios: Sequence[float] = RATIOS) -> dict[str, Any] | None:
    """Costs and numbers of channels at each of some ratios.

    How many channels a group keeps does not depend on which, so that one criterion stands for all.

    Args:
        deps: The dependency graph.
        scene: The blocks to give numbers for.
        ratios: Fractions to remove, in [0, 1).

    Returns:
        ``costs``: what :meth:`fxprune.costs.Costs.as_dict` gives. ``widths``: ``tables`` with a number for each ratio,
        and for each of the ``blocks`` the tables of its input and output channels, or None where they stay. None if
        nothing in the network can be pruned.
    """
    try:
        plans = [plan_channels(deps, ratio, criterion="first") for ratio in ratios]
    except NothingToPruneError:
        return None
    kept = [deps.structure.kept_in(plan.structure, plan.kept) for plan in plans]
    costs = Costs.of(deps).as_dict(dict(zip(ratios, kept, strict=True)))
    return {"costs": costs, "widths": _widths(scene, plans)}


def _widths(scene: Scene, plans: Sequence[ChannelPlan]) -> dict[str, Any]:
    tables: dict[tuple[int, ...], int] = {}

    def table(name: str, side: int) -> int | None:
        counts = tuple(_count(plan, name, side) for plan in plans)
        return tables.setdefault(counts, len(tables)) if len(set(counts)) > 1 else None

    known = plans[0].layers
    blocks = [[table(b.name, 0), table(b.name, 1)] if b.name in known else None for b in scene.blocks]
    return {"tables": [list(counts) for counts in tables], "blocks": blocks}


def _count(plan: ChannelPlan, name: str, side: int) -> int:
    layer = plan.layers[name]
    kept = (layer.inputs, layer.outputs)[side]
    return layer.size[side] if kept is None else len(kept)
