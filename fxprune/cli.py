"""The command line: each command parses its options, calls the library and prints."""

from __future__ import annotations

__all__ = ["app", "main"]

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fxprune.allocation import Budget
from fxprune.commands import PruneRequest, explain_text, graph_text, prune_text
from fxprune.criteria import CRITERIA
from fxprune.errors import FxpruneError
from fxprune.finetuning import process_state
from fxprune.lab import LabSettings, make_folder, run_lab, save_run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Exact structured and fine-grained pruning of convolutional networks.",
)


_PROGRESS = typer.Option(
    "--progress/--no-progress", help="Show progress bars on stderr; if left out, where stderr is a terminal."
)


@app.callback()
def _commands() -> None:
    """Keeps the commands' names even where there is only one."""


@app.command()
def lab(
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, report.json, results.json, summary.md and the plots.")
    ] = Path("lab-results"),
    data: Annotated[str, typer.Option(help="digits, which need no download, or cifar10.")] = "digits",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where CIFAR-10 lies: the folder of cifar-10-batches-py; data/cifar10 if left out."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights of the dense network, such as vgg.cifar.pretrained.pth; trained without."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run, such as cpu, cuda or cuda:1.")] = "cpu",
    width: Annotated[
        float | None, typer.Option(help="Width of the VGG; 0.25 for digits, 1.0 for cifar10 if left out.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of training; 10 for digits, 100 for cifar10 if left out.")
    ] = None,
    finetune_epochs: Annotated[
        int | None, typer.Option(help="Epochs of fine-tuning; 5 for digits, 5 for cifar10 if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, first weights, order and augmentation.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a step; 64 for digits, 512 for cifar10 if left out.")
    ] = None,
    progress: Annotated[bool | None, _PROGRESS] = None,
) -> None:
    """Train a VGG, prune it both ways, fine-tune, measure and compare: Lab 1 of MIT 6.5940."""
    settings = LabSettings.for_data(
        data,
        data_dir=data_dir,
        checkpoint=checkpoint,
        device=device,
        width=width,
        epochs=epochs,
        finetune_epochs=finetune_epochs,
        seed=seed,
        batch_size=batch_size,
        progress=_bars(progress) and process_state().is_main_process,
    )
    make_folder(out)
    run = run_lab(settings)
    if process_state().is_main_process:
        print(save_run(run, out))
        names = ["report.html", "report.json", "results.json", "summary.md", *(f"{name}.png" for name in run.plots)]
        print(f"Written to {out}: {', '.join(names)}")


_MODEL = typer.Argument(
    help="A name of torchvision or timm, such as resnet18, or package.module:factory for a callable that gives a "
    "module; the current folder is searched. Those of torchvision and timm get random weights; nothing is downloaded."
)
_SIZE = typer.Option(
    help="Size of the input without the batch, such as 3x224x224, joined by commas for several inputs; if left out, "
    "what torchvision or timm made the model for, and 3x224x224 for a factory's."
)


@app.command()
def explain(
    model: Annotated[str, _MODEL],
    layer: Annotated[
        str | None, typer.Argument(help="A layer's name, such as layer1.0.conv1; a table of all groups if left out.")
    ] = None,
    input_size: Annotated[str | None, _SIZE] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Take every head of an attention as one unit.")] = False,
) -> None:
    """Say what a layer's channels are coupled with, and what cannot be pruned and why."""
    print(explain_text(model, layer, input_size, heads))


@app.command()
def graph(
    model: Annotated[str, _MODEL],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="File to write: .html is a page, .svg, .png and .pdf are pictures, .dot and .graphml data.",
        ),
    ] = Path("graph.html"),
    ratio: Annotated[
        float | None, typer.Option(help="Show what removing this fraction of every group would do, in [0, 1).")
    ] = None,
    input_size: Annotated[str | None, _SIZE] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Take every head of an attention as one unit.")] = False,
    depth: Annotated[
        int | None, typer.Option(help="Names of a module path that are told apart: 1 draws stages, 2 their blocks.")
    ] = None,
) -> None:
    """Draw a model: which layers are coupled, what can go, and what a plan removes."""
    print(graph_text(model, out, ratio, input_size, heads, depth))


@app.command()
def prune(
    model: Annotated[str, _MODEL],
    ratio: Annotated[
        float | None,
        typer.Option(help="The fraction of channels to remove from every group, in [0, 1); 0.5 without a budget."),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="A budget in place of a ratio: multiply-accumulates, a share up to 1 or a number."),
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="A budget of parameters, a share up to 1 or a number.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="A budget of milliseconds for a forward pass on the device.")
    ] = None,
    min_channels: Annotated[int, typer.Option(help="The fewest channels that a group keeps.")] = 1,
    input_size: Annotated[str | None, _SIZE] = None,
    criterion: Annotated[
        str,
        typer.Option(help=f"How channels are ranked, from weights alone: {', '.join(CRITERIA)}."),
    ] = "input-l2",
    heads: Annotated[
        bool, typer.Option("--heads", help="Remove whole heads of attentions in place of dimensions of every head.")
    ] = False,
    scope: Annotated[
        str,
        typer.Option(
            help="group removes the same ratio from every group, global ranks the channels of all of them together."
        ),
    ] = "group",
    exclude: Annotated[
        list[str] | None, typer.Option(help="A layer whose output channels all stay; may be given several times.")
    ] = None,
    round_to: Annotated[int, typer.Option(help="Round kept channels up to a multiple of this.")] = 1,
    device: Annotated[str, typer.Option(help="Where to run, such as cpu, cuda or cuda:1.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of random inputs and of weights that a factory draws.")] = 0,
    latency: Annotated[bool, typer.Option(help="Measure latencies for the report.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for report.html, report.json and the pruned network as plan.json and weights.safetensors, "
            "which fxprune.load_pruned reads.",
        ),
    ] = None,
    progress: Annotated[bool | None, _PROGRESS] = None,
) -> None:
    """Prune a model, prove that the result is exact, and account for every layer."""
    limited = any(limit is not None for limit in (macs, parameters, latency_ms))
    request = PruneRequest(
        model=model,
        ratio=0.5 if ratio is None and not limited else ratio,
        budget=Budget(macs=macs, parameters=parameters, latency_ms=latency_ms) if limited else None,
        min_channels=min_channels,
        size=input_size,
        criterion=criterion,
        scope=scope,
        exclude=tuple(exclude or ()),
        round_to=round_to,
        heads=heads,
        device=device,
        seed=seed,
        latency=latency,
        out=out,
        progress=_bars(progress),
    )
    print(prune_text(request))


def _bars(asked: bool | None) -> bool:
    """Whether to show progress bars: in a file or a log they would be noise, unless asked for."""
    return _on_a_terminal() if asked is None else asked


def _on_a_terminal() -> bool:
    return sys.stderr.isatty()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the library is one message on stderr and exit code 2.

    Args:
        arguments: What follows the program's name; by default the process's own.
    """
    try:
        app(None if arguments is None else list(arguments))
    except FxpruneError as error:
        print(f"fxprune: {error}", file=sys.stderr)
        raise SystemExit(2) from None
