"""A report from a model and a plan for it."""

from __future__ import annotations

__all__ = ["PlanFacts", "now", "plan_facts", "plan_report", "profiles"]

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fxprune.capture import Example
from fxprune.costs import Costs
from fxprune.dependency import DependencyGraph
from fxprune.drawing.page import GraphComponent
from fxprune.drawing.scene import Block, Scene
from fxprune.environment import device_name, versions
from fxprune.latency import compare_latency
from fxprune.plan import ChannelPlan, LayerPlan
from fxprune.profiling import Profile, profile
from fxprune.reporting import why_whole
from fxprune.reports.data import GroupRow, Histogram, LayerRow, NetworkColumn, Report
from fxprune.sensitivity import Sensitivity
from fxprune.verification import Proof, verify

_NOTEWORTHY = 1e-3
"""Share of a network's multiply-accumulates from which on an operator has a row of its own."""


class PlanFacts(TypedDict):
    """What a plan alone says, by the names that :class:`Report` has for it."""

    layers: tuple[LayerRow, ...]
    untouched: Mapping[str, str]
    groups: tuple[GroupRow, ...]
    inexact: Mapping[str, str]
    graph: GraphComponent


def plan_report(
    model: nn.Module,
    plan: ChannelPlan,
    example_inputs: Example,
    *,
    network: nn.Module | None = None,
    asked: Mapping[str, Any] | None = None,
    title: str | None = None,
    proof: Proof | None = None,
    latency: bool = True,
    accuracy: Mapping[str, float] | None = None,
    sensitivity: Sensitivity | None = None,
    weights: Mapping[str, Tensor] | None = None,
    commands: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Report:
    """Measure what a plan does to a model, prove it, and put all of it down.

    Args:
        model: The model that the plan was made for.
        plan: What :func:`fxprune.plan_channels` returns.
        example_inputs: As for :func:`fxprune.trace`; costs are those of one pass of them, and the proof is on them.
        network: The pruned network, fine-tuned or not; by default made from the plan.
        asked: What was asked for, in the types of JSON, such as ``{"ratio": 0.5}``: a plan does not know.
        title: Of the page; by default the model's class.
        proof: What :func:`fxprune.verify` found, if that is known already.
        latency: Whether to measure latencies.
        accuracy: Between 0 and 1, of ``"original"``, ``"pruned"`` and ``"fine-tuned"`` as far as known.
        sensitivity: Curves to show.
        weights: Tensors by name, of which to show histograms.
        commands: By title, what to type to get all this again.
        progress: Whether to show progress bars for what takes long.

    Raises:
        FxpruneError: As from :func:`fxprune.verify` and :func:`fxprune.profile`.

    Example:
        >>> plan = plan_channels(DependencyGraph.from_model(model, images), ratio=0.5)
        >>> save_report(plan_report(model, plan, images, asked={"ratio": 0.5}), "out")
    """
    small = plan.apply(model) if network is None else network
    proof = verify(model, plan, example_inputs, progress) if proof is None else proof
    both = {"original": model, "pruned": small}
    times = {}
    if latency:
        times = compare_latency(both, example_inputs, warmup=1, runs=10, progress=progress)
    known = dict(accuracy or {})
    networks = {
        name: NetworkColumn(
            costs,
            {"one pass": times[name]} if latency else {},
            known.get(name),
            known.get("fine-tuned") if name == "pruned" else None,
        )
        for name, costs in profiles(both, example_inputs).items()
    }
    budget = {} if plan.allocation is None else {"budget": [str(limit) for limit in plan.allocation.limits]}
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return Report(
        title=type(model).__name__ if title is None else title,
        made=now(),
        asked={**(asked or {}), **budget},
        versions=versions(type(model).__module__.partition(".")[0]),
        device=device_name(torch.device("cpu") if first is None else first.device),
        networks=networks,
        proofs={"pruned": proof},
        sensitivity=sensitivity,
        histograms=(
            {"Weights": tuple(Histogram.of(name, tensor) for name, tensor in weights.items())} if weights else {}
        ),
        commands=dict(commands or {}),
        **plan_facts(plan),
    )


def profiles(networks: Mapping[str, nn.Module], example_inputs: Example) -> dict[str, Profile]:
    """The costs of several networks, without a word on operators that are not counted.

    Args:
        networks: By name.
        example_inputs: As for :func:`fxprune.profile`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torchprofile does not know")
        return {name: profile(network, example_inputs) for name, network in networks.items()}


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def plan_facts(plan: ChannelPlan) -> PlanFacts:
    """What a plan says of every layer and group, as keyword arguments of :class:`Report`.

    Args:
        plan: Any plan.
    """
    deps = DependencyGraph.of(plan.gm, plan.structure)
    graph = GraphComponent.of(plan)
    return {
        "layers": _layers(plan, deps, graph.scene),
        "untouched": deps.untouched,
        "groups": _groups(plan, deps),
        "inexact": dict(plan.inexact),
        "graph": graph,
    }


def _layers(plan: ChannelPlan, deps: DependencyGraph, scene: Scene) -> tuple[LayerRow, ...]:
    blocks: dict[str, Block] = {}
    order: dict[str, int] = {}
    for place, block in enumerate(scene.blocks):
        if block.role != "module":
            blocks.setdefault(block.name, block)
            order.setdefault(block.name, place)
    costs = Costs.of(deps)
    readers = _readers(plan)
    names = [readers.get(name, name) for name in costs.layers]
    macs = _pairs(names, costs.macs_by_layer(), costs.macs_by_layer(plan.kept))
    parameters = _pairs(names, costs.parameters_by_layer(), costs.parameters_by_layer(plan.kept))
    makers = {name for group in deps.groups for name in group.producers}
    rows = []
    for name, layer in plan.layers.items():
        role = "maker" if name in makers else "follower"
        widths = {"inputs": _widths(layer, 0), "outputs": _widths(layer, 1)}
        rows.append((name, role, widths, why_whole(deps, name, layer)))
    # What has no channels of its own and computes a lot, as a product of two activations, or has weights all the same.
    least = _NOTEWORTHY * costs.macs()
    for name, (before, _) in macs.items():
        if name not in plan.layers and (before > least or parameters[name][0]):
            found = blocks.get(name, Block(name, "operator", "operator"))
            rows.append((name, "operator", {"inputs": found.inputs, "outputs": found.outputs}, ""))
    rows.sort(key=lambda row: order.get(row[0], len(order)))
    return tuple(
        LayerRow(
            name=name,
            kind=blocks[name].kind if name in blocks else "parameter",
            detail=blocks[name].detail if name in blocks else "",
            role=role,
            **widths,
            parameters=parameters.get(name, (0, 0)),
            macs=macs.get(name, (0, 0)),
            stays=stays,
        )
        for name, role, widths, stays in rows
    )


def _readers(plan: ChannelPlan) -> dict[str, str]:
    """By the name of a node that computes with a layer's weight in place of calling the layer, that layer."""
    found = {}
    for node in plan.gm.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        layer = next((name for name in (target, target.rpartition(".")[0]) if name in plan.layers), None)
        if layer is not None:
            found.update(dict.fromkeys((user.name for user in node.users if user.op != "call_module"), layer))
    return found


def _pairs(names: Sequence[str], before: Any, after: Any) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, a, b in zip(names, before.tolist(), after.tolist(), strict=True):
        x, y = found.get(name, (0, 0))
        found[name] = (x + a, y + b)
    return found


def _widths(layer: LayerPlan, side: int) -> tuple[int, int]:
    kept = (layer.inputs, layer.outputs)[side]
    return layer.size[side], layer.size[side] if kept is None else len(kept)


def _groups(plan: ChannelPlan, deps: DependencyGraph) -> tuple[GroupRow, ...]:
    rows = []
    for number, group in enumerate(deps.groups):
        kept = group.size if group.frozen is not None else int(plan.kept[plan.structure.members[number]].sum())
        fields = {key: value for key, value in asdict(group).items() if key != "size"}
        rows.append(GroupRow(size=(group.size, kept), **fields))
    return tuple(rows)
