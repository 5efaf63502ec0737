"""The command line: each command parses its options, calls the library and prints."""

from __future__ import annotations

__all__ = ["app", "main"]

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fxprune.commands import explain_text, graph_text, prune_text
from fxprune.errors import FxpruneError
from fxprune.finetuning import process_state
from fxprune.lab import LabSettings, make_folder, run_lab, save_run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Exact structured and fine-grained pruning of convolutional networks.",
)


@app.callback()
def _commands() -> None:
    """Keeps the commands' names even where there is only one."""


@app.command()
def lab(
    out: Annotated[Path, typer.Option(help="Folder for results.json, summary.md and the plots.")] = Path("lab-results"),
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
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
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
        progress=progress and process_state().is_main_process,
    )
    make_folder(out)
    run = run_lab(settings)
    if process_state().is_main_process:
        print(save_run(run, out))
        print(f"Written to {out}: results.json, summary.md, {', '.join(f'{name}.png' for name in run.plots)}")


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
    ratio: Annotated[float, typer.Option(help="The fraction of channels to remove from every group, in [0, 1).")] = 0.5,
    input_size: Annotated[str | None, _SIZE] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="How channels are ranked: first (keep the first), input-l2 (by the weights that read them) or "
            "output-l2 (by the weights that make them)."
        ),
    ] = "input-l2",
    heads: Annotated[
        bool, typer.Option("--heads", help="Remove whole heads of attentions in place of dimensions of every head.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the pruned network, written by torch.save; none if left out.")
    ] = None,
) -> None:
    """Prune a model, prove that the result is exact, and account for every layer."""
    print(prune_text(model, ratio, input_size, criterion, out, heads))


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
