"""What a plan did, layer by layer, as text."""

from __future__ import annotations

__all__ = ["groups_table", "plan_table", "why_whole"]

from collections.abc import Sequence

from fxprune.dependency import ChannelGroup, DependencyGraph
from fxprune.plan import ChannelPlan, LayerPlan


def plan_table(plan: ChannelPlan) -> str:
    """A line for every layer: how many channels go in and come out before and after, or why it is untouched.

    Args:
        plan: Any plan.

    Returns:
        Text with one line for each layer, in the order of the data; those without channels that could go come last.
    """
    deps = DependencyGraph.of(plan.gm, plan.structure)
    rows = [("layer", "inputs", "outputs", "note")]
    for name, layer in plan.layers.items():
        rows.append((name, _change(layer, 0), _change(layer, 1), why_whole(deps, name, layer)))
    rows += [(name, "", "", reason) for name, reason in deps.untouched.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    ]
    if plan.inexact:
        lines.append("")
        lines += [f"inexact: '{node}' is {text}" for node, text in plan.inexact.items()]
    if plan.allocation is not None:
        lines += ["", *(f"budget: {limit}" for limit in plan.allocation.limits)]
    return "\n".join(lines)


def groups_table(groups: Sequence[ChannelGroup]) -> str:
    """A line for every group: its units, who makes, follows and reads them, and what holds them if anything does."""
    rows: list[tuple[str, ...]] = [("group", "units", "producers", "followers", "consumers", "held by")]
    for group in groups:
        counts = [str(len(names)) for names in (group.producers, group.followers, group.consumers)]
        rows.append((group.name, str(group.size), *counts, group.frozen or ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:5], widths[1:], strict=True)), row[5]]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _change(layer: LayerPlan, side: int) -> str:
    kept = (layer.inputs, layer.outputs)[side]
    size = layer.size[side]
    if not size:
        return ""
    return str(size) if kept is None or len(kept) == size else f"{size} -> {len(kept)}"


def why_whole(deps: DependencyGraph, name: str, layer: LayerPlan) -> str:
    """Why a layer keeps all of its output channels, or an empty string if it does not."""
    if layer.outputs is not None or not layer.size[1]:
        return ""
    notes = [reason] if (reason := deps.explainer.held_by(name)) else []
    groups = [group for group in deps.group_of(name) if group.frozen is None]
    if groups:
        alone = all(group.size == 1 for group in groups)
        notes.append("its channels go together, and one must stay" if alone else "its group keeps all channels")
    return "; ".join(notes)
