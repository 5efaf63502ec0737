"""Prunes every network that torchvision has, and one of each family of timm's, at one ratio, and proves each result.

Run it as ``python benchmarks/coverage.py``, with patterns to choose some, as in ``'resnet*' 'timm/*'``. Weights are
random (:func:`fxprune.models.randomize`), so nothing is downloaded. It fails if a network cannot be pruned, if a proof
does not hold, or if a result is not as small as it ought to be.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import re
import statistics
import sys
import textwrap
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from swept_networks import Network, chosen
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

import fxprune
from fxprune.models import randomize

RATIO = 0.5
LARGEST_ERROR = 1e-10
"""What a proof may leave where nothing is inexact."""

_ROUNDING = 1e-14
"""What rounding may leave for each time that the network multiplies an error: random weights can make one chaotic."""

LEAST_REDUCTION = {"convolutional": 0.6, "attention": 0.4}
"""By how much the MACs must fall at a ratio of 0.5."""

# What a network or a step can raise; anything else is a mistake in this script.
_FAILURES = (
    fxprune.FxpruneError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_OUTPUT = "an output of the network"


@dataclass
class Row:
    """What was found for one network.

    Attributes:
        network: Which.
        parameters: Before and after.
        macs: Before and after, as torchprofile counts them.
        error: The proof's largest relative error.
        exact: Whether nothing is inexact by nature.
        amplification: By how much the pruned network multiplies an error of its input, if the proof's error is large.
        inexact: How many nodes compute something else with fewer channels.
        frozen: How many channels cannot be removed, other than the network's own outputs.
        reasons: Why, with the number of channels.
        opaque: The nodes that stand for what could not be captured, with the reason.
        seconds: Of capture, analysis, plan and rewrite.
        forward: Seconds of a forward pass of the original.
        problems: Everything that ought to be otherwise; empty if all is well.
    """

    network: Network
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    error: float = float("nan")
    exact: bool = True
    amplification: float = 0.0
    inexact: int = 0
    frozen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    opaque: dict[str, str] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    forward: float = float("nan")
    problems: list[str] = field(default_factory=list)

    @property
    def reduction(self) -> float:
        """The fraction of the MACs that went."""
        return 1 - self.macs[1] / self.macs[0] if self.macs[0] else 0.0


def measure(network: Network, ratio: float = RATIO) -> Row:
    """Prune one network and prove the result.

    Args:
        network: Which.
        ratio: The fraction of every group that goes.

    Returns:
        What was found; a failure is written into its ``problems``.
    """
    row = Row(network)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _measure(row, ratio)
    except fxprune.TraceError as error:
        row.problems.append(_described(error))
        if network.fallback is not None:
            part = measure(network.fallback, ratio)
            part.problems += [f"whole: {p}" for p in row.problems]
            return part
    except _FAILURES as error:
        row.problems.append(_described(error))
    return row


def _measure(row: Row, ratio: float) -> None:
    network = row.network
    model = randomize(network.build().eval())
    example = network.example()
    times = [time.perf_counter()]
    gm = fxprune.trace(model, example)
    times.append(time.perf_counter())
    deps = fxprune.DependencyGraph(gm)
    times.append(time.perf_counter())
    plan = fxprune.plan_channels(deps, ratio)
    times.append(time.perf_counter())
    small = plan.apply(model)
    times.append(time.perf_counter())
    row.seconds = tuple(b - a for a, b in itertools.pairwise(times))
    row.opaque = {node.name: node.meta["opaque"] for node in gm.graph.nodes if "opaque" in node.meta}
    for group in deps.groups:
        if group.frozen is not None and _OUTPUT not in _bare(group.frozen):
            row.frozen += group.size
            row.reasons[_bare(group.frozen)] += group.size
    row.parameters = (_count(model), _count(small))
    proof = fxprune.verify(model, plan, example)
    row.error, row.exact, row.inexact = proof.max_relative_error, proof.exact, len(proof.inexact)
    if proof.exact and not proof.max_relative_error <= LARGEST_ERROR:
        row.amplification = _amplification(small, example)
        if not proof.max_relative_error <= _ROUNDING * max(1.0, row.amplification):
            row.problems.append(f"wrong: the proof's error is {proof.max_relative_error:.1e}")
    row.problems += _other_sizes(model, small, example)
    with torch.no_grad():
        start = time.perf_counter()
        model(*example)
        row.forward = time.perf_counter() - start
    if row.opaque:  # how much is computed can depend on the image, as on the number of boxes found
        row.macs = (_captured_macs(gm), _captured_macs(small))
    else:
        row.macs = (fxprune.profile(model, example).macs, fxprune.profile(small, example).macs)
    if row.reduction < LEAST_REDUCTION[network.kind]:
        row.problems.append(f"the MACs fall by {100 * row.reduction:.0f} % alone")


def _amplification(model: nn.Module, example: tuple[Any, ...]) -> float:
    """The relative change of the output over that of the input, for a change of about 1e-13; in float64."""
    double = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(2)
    plain = [x.double() for x in example]
    moved = [x * (1 + 1e-13 * torch.randn(x.shape, generator=generator, dtype=x.dtype)) for x in plain]
    with torch.no_grad():
        before, after = double(*plain), double(*moved)
    return float((after - before).abs().max() / before.abs().max()) / 1e-13


def _captured_macs(gm: fx.GraphModule) -> int:
    """The MACs of the convolutions and linear layers that a traced graph calls, for the example's shapes."""
    layers = dict(gm.named_modules())
    total = 0
    for node in gm.graph.nodes:
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Linear | nn.Conv2d):
            total += node.meta["val"].numel() * layer.weight[0].numel()
    return total


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _other_sizes(model: nn.Module, small: fx.GraphModule, example: tuple[Any, ...]) -> list[str]:
    """What the original can do with inputs of other sizes, and the result cannot; shapes alone, so it costs little."""
    if not all(isinstance(v, Tensor) for v in example):
        return []
    found = []
    original, pruned = (copy.deepcopy(m).to("meta") for m in (model, small))
    for what, batch, larger in (("two at once", 2, 0), ("larger images", 1, 64)):
        inputs = [
            torch.empty(batch, *v.shape[1:-2], v.shape[-2] + larger, v.shape[-1] + larger, device="meta")
            for v in example
        ]
        expected = _shapes(original, inputs)
        if isinstance(expected, str):
            continue
        got = _shapes(pruned, inputs)
        if got != expected and _flows_alike(original, example, inputs):
            found.append(f"{what}: {got}, the original {expected}")
    return found


def _flows_alike(model: nn.Module, example: tuple[Any, ...], inputs: Sequence[Tensor]) -> bool:
    """Whether the model takes the same branches for both inputs; a graph has those of the example."""
    first, second = (fxprune.trace(model, tuple(x.to("meta") for x in given)) for given in (example, inputs))
    return first.code == second.code


def _shapes(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    try:
        with torch.no_grad():
            return tree_map(lambda v: tuple(v.shape) if isinstance(v, Tensor) else v, model(*inputs))
    except _FAILURES as error:
        return _described(error)


def _bare(reason: str) -> str:
    """A reason without its place, so that equal ones can be counted."""
    return re.sub(r" \(node '.*", "", reason)


def _described(error: BaseException) -> str:
    """An error in one line; one that was not raised on purpose with the line of fxprune that it passed through last."""
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 600)
    if isinstance(error, fxprune.FxpruneError) and not isinstance(error, fxprune.InternalError):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "fxprune" in f.filename]
    return f"{text} [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else text


def sweep(selection: Iterable[Network], ratio: float = RATIO) -> Iterator[Row]:
    """Measure one network after the other, with no more than one in memory."""
    for network in selection:
        yield measure(network, ratio)
        gc.collect()


def summary(row: Row) -> str:
    """One line for a terminal."""
    text = f"{row.network.name:44s}"
    if row.macs[1]:
        (p, q), (m, n) = row.parameters, row.macs
        text += f" parameters {p / 1e6:6.2f} -> {q / 1e6:6.2f} M"
        text += f", MACs {m / 1e9:6.2f} -> {n / 1e9:6.2f} G (-{row.reduction:4.0%})"
    if row.seconds:
        text += f", error {row.error:.0e}, inexact {row.inexact}, frozen {row.frozen}"
        text += f", {'+'.join(f'{1e3 * s:.0f}' for s in row.seconds)} ms, forward {1e3 * row.forward:.0f} ms"
    lines = [text]
    lines += [f"    problem: {p}" for p in row.problems]
    lines += [f"    opaque: {n}: {r}" for n, r in row.opaque.items()]
    lines += [f"    frozen: {n} x {r}" for r, n in row.reasons.most_common(3)]
    return "\n".join(lines)


_HEAD = """\
# Coverage

`benchmarks/coverage.py` wrote this page: every network pruned at a ratio of {ratio:g} with the default criterion,
random weights and statistics, torch {torch}, torchvision {torchvision}, timm {timm}, one CPU thread.

- *error*: `fxprune.verify` in float64, the largest difference from the original with the removed channels zeroed,
  divided by the largest value. Where nothing is *inexact* it is rounding alone; an inexact node (a layer norm over
  channels, say) computes something else with fewer channels, and there the error says how far the two are apart.
  A network that with these weights multiplies each rounding error by a million can leave more, and says so below.
- *MACs* of a network with opaque nodes are those of the convolutions and linear layers around them.
- *frozen*: channels that cannot be removed, other than those of the network's outputs.
- *ms*: capture + analysis + plan + rewrite, measured once; *forward*: one forward pass of the original.

"""


def document(rows: Sequence[Row], ratio: float) -> str:
    """The results as a page of markdown."""
    failed = [row for row in rows if row.problems]
    times = [sum(row.seconds) / row.forward for row in rows if row.seconds and row.forward > 0]
    lines = [
        *_HEAD.format(
            ratio=ratio, torch=torch.__version__, torchvision=torchvision.__version__, timm=timm.__version__
        ).splitlines(),
        f"{len(rows)} networks, {len(rows) - len(failed)} as they ought to be, {len(failed)} with a problem.",
    ]
    if times:
        lines[-1] += f" Pruning takes {statistics.median(times):.2f} forward passes (median)."
    for family in dict.fromkeys(row.network.family for row in rows):
        lines += ["", f"## {family[0].upper() + family[1:]}", ""]
        lines.append(
            "| network | parameters (M) | after | MACs (G) | after | fall | error | inexact | frozen | ms | forward |"
        )
        lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        mine = [row for row in rows if row.network.family == family]
        lines += [_cells(row) for row in mine]
    notes = [(row, list(_notes(row))) for row in rows]
    if any(text for _, text in notes):
        lines += ["", "## What stays, and why", ""]
    for row, texts in notes:
        if texts:
            lines.append(f"- {row.network.name}")
            lines += [f"  - {text}" for text in texts]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> str:
    name = row.network.name.partition("/")[2]
    if not row.seconds:
        return f"| {name} | failed | | | | | | | | | |"
    (p, q), (m, n) = row.parameters, row.macs
    steps = " + ".join(f"{1e3 * s:.0f}" for s in row.seconds)
    return (
        f"| {name} | {p / 1e6:.2f} | {q / 1e6:.2f} | {m / 1e9:.3f} | {n / 1e9:.3f} | {row.reduction:.0%} "
        f"| {row.error:.0e} | {row.inexact or ''} | {row.frozen or ''} | {steps} | {1e3 * row.forward:.0f} |"
    )


def _notes(row: Row) -> Iterator[str]:
    for problem in row.problems:
        yield f"**problem**: {problem}"
    if row.amplification > 1 and not row.problems:
        yield f"with these random weights it multiplies an error of its input by {row.amplification:.0e}: rounding"
    for node, reason in row.opaque.items():
        yield f"`{node}` could not be captured: {reason}"
    for reason, count in row.reasons.most_common():
        yield f"{count} channels: {reason}"


def main() -> int:
    """Run the sweep, print it, and write it if asked; returns 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names, as in 'resnet*', 'timm/*' or 'segmentation' (default: all)")
    parser.add_argument("--ratio", type=float, default=RATIO)
    parser.add_argument("--big", action="store_true", help="also the networks that take a minute or more each")
    parser.add_argument("--list", action="store_true", help="print the chosen names and stop")
    parser.add_argument("--write", type=Path, help="write the results into this file, as in docs/coverage.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    selection = chosen(options.patterns, options.big)
    if options.list:
        print("\n".join(network.name for network in selection))
        return 0
    rows = []
    for row in sweep(selection, options.ratio):
        print(summary(row), flush=True)
        rows.append(row)
    failed = [row for row in rows if row.problems]
    print(f"{len(rows)} networks, {len(failed)} with a problem")
    if options.write is not None:
        options.write.write_text(document(rows, options.ratio), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
