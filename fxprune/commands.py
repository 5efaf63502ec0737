"""Commands about any model: what is coupled with what, and pruning it from the command line."""

from __future__ import annotations

__all__ = ["PruneRequest", "explain_text", "graph_text", "prune_text"]

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxprune.allocation.budget import LIMITS, Budget
from fxprune.dependency import DependencyGraph
from fxprune.drawing import draw
from fxprune.drawing.files import PAGE
from fxprune.errors import ArgumentError
from fxprune.files import make_folder
from fxprune.finetuning import usable_device
from fxprune.loading import example_of, load_model, shown
from fxprune.nested import map_nested
from fxprune.plan import ChannelPlan
from fxprune.planning import plan_channels
from fxprune.profiling import Profile
from fxprune.reporting import groups_table
from fxprune.reports import Report, plan_report, save_report
from fxprune.reports.building import profiles
from fxprune.saving import PLAN_FILE, WEIGHTS_FILE, save_pruned
from fxprune.verification import Proof, verify

_PICKLED = (".pt", ".pth", ".pkl", ".pickle")


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


@dataclass(frozen=True)
class PruneRequest:
    """What ``fxprune prune`` was asked for.

    Attributes:
        model: A name as for :func:`fxprune.loading.load_model`.
        ratio: The fraction of channels to remove; None where a budget says it.
        size: Sizes of the inputs as for :func:`fxprune.loading.example_of`.
        criterion: Name of a criterion.
        scope: ``"group"`` or ``"global"``, as for :func:`fxprune.plan_channels`.
        exclude: Layers whose output channels all stay.
        round_to: Kept channels are rounded up to a multiple of this.
        heads: Remove whole heads of attentions in place of their dimensions.
        device: Where the networks run.
        seed: Of random inputs, and of weights that a factory draws.
        latency: Whether to measure latencies for a report.
        budget: What the pruned network may cost at most, in place of a ratio.
        min_channels: The fewest channels that a group keeps.
        out: A folder for the report and the pruned network, or None.
        progress: Whether to show progress bars.
    """

    model: str
    ratio: float | None = 0.5
    size: str | None = None
    criterion: str = "input-l2"
    scope: str = "group"
    exclude: tuple[str, ...] = ()
    round_to: int = 1
    heads: bool = False
    device: str = "cpu"
    seed: int = 0
    latency: bool = True
    budget: Budget | None = None
    min_channels: int = 1
    out: Path | None = None
    progress: bool = False

    @property
    def command(self) -> str:
        """The command line for it."""
        words = ["fxprune", "prune", self.model]
        words += [] if self.ratio is None else ["--ratio", f"{self.ratio:g}"]
        for name, value in self._limits().items():
            words += [f"--{name.replace('_', '-')}", f"{value:g}"]
        defaults = PruneRequest(self.model)
        for name, option in (
            *(("size", "--input-size"), ("criterion", "--criterion"), ("scope", "--scope")),
            *(("round_to", "--round-to"), ("device", "--device"), ("seed", "--seed"), ("out", "--out")),
            ("min_channels", "--min-channels"),
        ):
            value = getattr(self, name)
            if value != getattr(defaults, name):
                words += [option, str(value)]
        for layer in self.exclude:
            words += ["--exclude", layer]
        words += ["--heads"] * self.heads + ["--no-latency"] * (not self.latency)
        return shlex.join(words)

    def _limits(self) -> dict[str, float]:
        given = {} if self.budget is None else {name: getattr(self.budget, name) for name in LIMITS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def title(self) -> str:
        """What is asked for, in words."""
        if self.ratio is not None:
            return f"{100 * self.ratio:g} % of the channels removed"
        return "at most " + " and ".join(_limit_in_words(*limit) for limit in self._limits().items())

    def asked(self, inputs: tuple[Any, ...]) -> dict[str, Any]:
        """The same for a report."""
        return {
            "model": self.model,
            "inputs": shown(inputs),
            "ratio": self.ratio,
            **({"limits": self._limits()} if self.budget else {}),
            "criterion": self.criterion,
            "scope": self.scope,
            "exclude": list(self.exclude),
            "round_to": self.round_to,
            "min_channels": self.min_channels,
            "whole_heads": self.heads,
            "seed": self.seed,
        }


def _limit_in_words(name: str, value: float) -> str:
    if name == "latency_ms":
        return f"{value:g} ms"
    title = "MACs" if name == "macs" else name
    return f"{100 * value:g} % of the {title}" if value <= 1 else f"{value:,.0f} {title}"


def prune_text(request: PruneRequest) -> str:
    """Prune a model, prove it, write what is to be written, and say what became of every layer.

    Args:
        request: What was asked for.

    Raises:
        ArgumentError: ``out`` cannot be written, or there is no such device.
        FxpruneError: As from the steps.
    """
    out = request.out
    if out is not None and out.suffix in _PICKLED:
        raise ArgumentError(
            f"'{out}' names a file of pickled objects, and reading one runs whatever code is in it: name a folder, and "
            "read it with fxprune.load_pruned"
        )
    folder = None if out is None else make_folder(out)
    device = usable_device(request.device)
    torch.manual_seed(request.seed)
    network = load_model(request.model).eval().to(device)
    inputs = map_nested(lambda image: image.to(device), example_of(request.model, network, request.size))
    plan = plan_channels(
        DependencyGraph.from_model(network, inputs),
        request.ratio,
        request.criterion,
        request.scope,
        request.exclude,
        request.round_to,
        request.heads,
        budget=request.budget,
        min_channels=request.min_channels,
    )
    small = plan.apply(network)
    proof = verify(network, plan, inputs, request.progress)
    if folder is None:
        measured = profiles({"original": network, "pruned": small}, inputs)
    else:
        report = _report(request, network, small, plan, inputs, proof)
        measured = {name: column.profile for name, column in report.networks.items()}
    nature = "exact" if proof.exact else f"inexact by nature at {', '.join(proof.inexact)}"
    lines = [plan.report(), "", f"inputs: {shown(inputs)}", Profile.table(measured), ""]
    lines.append(f"proof: relative error {proof.max_relative_error:.1e}; {nature}")
    if folder is not None:
        save_pruned(small, plan, folder)
        page, data = save_report(report, folder)
        lines.append(f"written to {folder}: {page.name}, {data.name}, {PLAN_FILE}, {WEIGHTS_FILE}")
        lines.append(f"load the network with fxprune.load_pruned(model, '{folder}')")
    return "\n".join(lines)


def _report(
    request: PruneRequest,
    network: nn.Module,
    small: fx.GraphModule,
    plan: ChannelPlan,
    inputs: tuple[Any, ...],
    proof: Proof,
) -> Report:
    code = (
        "import fxprune\n"
        "from fxprune.loading import load_model\n\n"
        f"small = fxprune.load_pruned(load_model({request.model!r}).eval(), {str(request.out)!r})"
    )
    return plan_report(
        network,
        plan,
        inputs,
        network=small,
        asked=request.asked(inputs),
        title=f"{request.model}, {request.title}",
        proof=proof,
        latency=request.latency,
        commands={"Prune": request.command, "Load the pruned network": code},
        progress=request.progress,
    )
