"""Commands about any model: what is coupled with what, and pruning it from the command line."""

from __future__ import annotations

__all__ = ["explain_text", "prune_text"]

from pathlib import Path

import torch
from torch import nn

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError
from fxprune.loading import load_model
from fxprune.planning import plan_channels
from fxprune.profiling import Profile, profile
from fxprune.reporting import groups_table
from fxprune.verification import verify


def example_of(size: str) -> torch.Tensor:
    """A batch of one random input from its size, such as ``3x224x224``.

    Raises:
        ArgumentError: The size is not of that form.
    """
    parts = size.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentError(f"the input size is '{size}'; it must be numbers joined by x, such as 3x224x224")
    return torch.randn(1, *(int(part) for part in parts))


def explain_text(model: str, layer: str | None, size: str) -> str:
    """What a layer's channels are coupled with, or a table of all groups of a model.

    Args:
        model: A name as for :func:`fxprune.loading.load_model`.
        layer: Qualified name of a layer, or None for all groups.
        size: Size of the input without the batch.

    Raises:
        FxpruneError: An unknown model or layer, or a model that cannot be captured.
    """
    deps = DependencyGraph.from_model(load_model(model).eval(), example_of(size))
    return groups_table(deps.groups) if layer is None else deps.explain(layer)


def prune_text(model: str, ratio: float, size: str, criterion: str, out: Path | None) -> str:
    """Prune a model, prove it, and say what became of every layer.

    Args:
        model: A name as for :func:`fxprune.loading.load_model`.
        ratio: The fraction of channels to remove.
        size: Size of the input without the batch.
        criterion: Name of a criterion.
        out: File for the pruned network (``torch.save``), or None.

    Raises:
        FxpruneError: As from the steps.
    """
    network: nn.Module = load_model(model).eval()
    example = example_of(size)
    plan = plan_channels(DependencyGraph.from_model(network, example), ratio, criterion)
    small = plan.apply(network)
    proof = verify(network, plan, example)
    table = Profile.table({"original": profile(network, example), "pruned": profile(small, example)})
    nature = "exact" if proof.exact else f"inexact by nature at {', '.join(proof.inexact)}"
    lines = [plan.report(), "", table, "", f"proof: relative error {proof.max_relative_error:.1e}; {nature}"]
    if out is not None:
        torch.save(small, out)
        lines.append(f"written to {out}")
    return "\n".join(lines)
