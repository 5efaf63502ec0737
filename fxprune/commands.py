"""Commands about any model: what is coupled with what, and pruning it from the command line."""

from __future__ import annotations

__all__ = ["explain_text", "graph_text", "prune_text"]

import warnings
from pathlib import Path

import torch

from fxprune.dependency import DependencyGraph
from fxprune.drawing import draw
from fxprune.drawing.files import PAGE
from fxprune.errors import ArgumentError
from fxprune.loading import example_of, load_model, shown
from fxprune.planning import plan_channels
from fxprune.profiling import Profile, profile
from fxprune.reporting import groups_table
from fxprune.verification import verify


def explain_text(model: str, layer: str | None = None, size: str | None = None, heads: bool = False) -> str:
    """What a layer's channels are coupled with, or a table of all groups of a model.

    Args:
        model: A name as for :func:`fxprune.loading.load_model`.
        layer: Qualified name of a layer, or None for all groups.
        size: Sizes of the inputs as for :func:`fxprune.loading.example_of`.
        heads: Take every head of an attention as one unit.

    Raises:
        FxpruneError: An unknown model or layer, or a model that cannot be captured.
    """
    network = load_model(model).eval()
    deps = DependencyGraph.from_model(network, example_of(model, network, size))
    deps = deps.whole_heads() if heads else deps
    return groups_table(deps.groups) if layer is None else deps.explain(layer)


def graph_text(
    model: str,
    out: Path,
    ratio: float | None = None,
    size: str | None = None,
    heads: bool = False,
    depth: int | None = None,
) -> str:
    """Draw a model, and say where.

    Args:
        model: A name as for :func:`fxprune.loading.load_model`.
        out: The file; its suffix says what is written, as for :func:`fxprune.draw`.
        ratio: What part of every group a plan removes whose effect is shown; None to show the model as it is.
        size: Sizes of the inputs as for :func:`fxprune.loading.example_of`.
        heads: Take every head of an attention as one unit.
        depth: How many names of a module path are told apart; None leaves the choice.

    Raises:
        FxpruneError: An unknown model, a model that cannot be captured, or a file that cannot be written.
    """
    network = load_model(model).eval()
    deps = DependencyGraph.from_model(network, example_of(model, network, size))
    deps = deps.whole_heads() if heads else deps
    file = draw(deps if ratio is None else plan_channels(deps, ratio), out, depth)
    return f"written to {file}" + ("; open it in a browser, it needs no network" if file.suffix == PAGE else "")


def prune_text(
    model: str,
    ratio: float,
    size: str | None = None,
    criterion: str = "input-l2",
    out: Path | None = None,
    heads: bool = False,
) -> str:
    """Prune a model, prove it, and say what became of every layer.

    Args:
        model: A name as for :func:`fxprune.loading.load_model`.
        ratio: The fraction of channels to remove.
        size: Sizes of the inputs as for :func:`fxprune.loading.example_of`.
        criterion: Name of a criterion.
        out: File for the pruned network (``torch.save``), or None.
        heads: Remove whole heads of attentions in place of their dimensions.

    Raises:
        ArgumentError: ``out`` cannot be written.
        FxpruneError: As from the steps.
    """
    network = load_model(model).eval()
    inputs = example_of(model, network, size)
    plan = plan_channels(DependencyGraph.from_model(network, inputs), ratio, criterion, heads=heads)
    small = plan.apply(network)
    proof = verify(network, plan, inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No handlers found")  # operators without multiplications
        measured = {"original": profile(network, inputs), "pruned": profile(small, inputs)}
    table = Profile.table(measured)
    nature = "exact" if proof.exact else f"inexact by nature at {', '.join(proof.inexact)}"
    lines = [plan.report(), "", f"inputs: {shown(inputs)}", table, ""]
    lines.append(f"proof: relative error {proof.max_relative_error:.1e}; {nature}")
    if out is not None:
        try:
            torch.save(small, out)
        except (OSError, RuntimeError) as error:
            raise ArgumentError(f"the file '{out}' cannot be written: {error}") from error
        lines.append(f"written to {out}; read it with torch.load('{out}', weights_only=False)")
    return "\n".join(lines)
