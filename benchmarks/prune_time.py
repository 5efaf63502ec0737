"""Times pruning against one forward pass of the network, and against Torch-Pruning 1.6.1, in the same run.

Run it as ``python benchmarks/prune_time.py`` for ResNet-50, with patterns for other classification networks of
torchvision's, as in ``'densenet*' vit_b_16``, or with ``--all``. Weights are random, so nothing is downloaded. One
CPU thread, batch 1, float32; every round times a forward pass, fxprune, what torch itself takes to trace and copy the
model, and Torch-Pruning one after the other, and the medians of the rounds are shown. Torch-Pruning comes with
``pip install .[benchmark]``; without it its columns stay empty.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import gc
import itertools
import json
import math
import platform
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
import torchvision
from torch import Tensor, fx, nn

import fxprune

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

RATIO = 0.5
STEPS = ("capture", "analysis", "plan", "rewrite")
TOOLS = ("fxprune", "torch-pruning")
BIG = ("convnext_large", "efficientnet_v2_l", "regnet_y_128gf", "vit_h_14", "vit_l_*")
_PATIENCE = 100
"""Seconds after which a tool is given up on a network."""

_LIMIT = 20.0
"""Seconds after which Torch-Pruning is measured once alone."""

# What a network can make a pruner raise.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class Timing:
    """What was measured for one network, in seconds.

    Attributes:
        name: Of the network.
        forward: One forward pass, one entry for each round.
        steps: Capture, analysis, plan and rewrite, one entry for each round.
        least: ``torch.fx.symbolic_trace`` and ``copy.deepcopy`` alone, one entry for each round.
        peer: Torch-Pruning, one entry for each round.
        copies: The copy that it was given, without which the original would be gone, one entry for each round.
        failures: By tool, why it gave nothing.
        memory: By tool, the peak in MiB beyond the original and the result, if asked for.
    """

    name: str
    forward: list[float] = field(default_factory=list)
    steps: list[tuple[float, ...]] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> float:
        """Median of all steps together."""
        return statistics.median(sum(s) for s in self.steps) if self.steps else math.nan

    @property
    def theirs(self) -> float:
        """Median of Torch-Pruning."""
        return statistics.median(self.peer) if self.peer else math.nan

    @property
    def passes(self) -> float:
        """How many forward passes pruning takes."""
        return self.ours / statistics.median(self.forward) if self.forward else math.nan

    @property
    def factor(self) -> float:
        """How many times as long Torch-Pruning takes."""
        return self.theirs / self.ours

    @property
    def keeping(self) -> float:
        """How many times as long it takes to leave the original as it is and to prune a copy with Torch-Pruning."""
        return (self.theirs + statistics.median(self.copies)) / self.ours


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision network in evaluation mode, and one image for it."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options).eval()
    return model, torch.randn(1, 3, 224, 224)


def prune(model: nn.Module, image: Tensor) -> tuple[tuple[float, ...], nn.Module]:
    """Prune with fxprune; returns the seconds of each step, and the result."""
    times = [time.perf_counter()]
    gm = fxprune.trace(model, image)
    times.append(time.perf_counter())
    deps = fxprune.DependencyGraph(gm)
    times.append(time.perf_counter())
    plan = fxprune.plan_channels(deps, RATIO)
    times.append(time.perf_counter())
    small = plan.apply(model)
    times.append(time.perf_counter())
    return tuple(b - a for a, b in itertools.pairwise(times)), small


def trace_and_copy(model: nn.Module) -> float:
    """What torch itself takes to trace a model and to copy it, without a thought of pruning; returns the seconds."""
    start = time.perf_counter()
    fx.symbolic_trace(model)
    copy.deepcopy(model)
    return time.perf_counter() - start


def prune_with_peer(model: nn.Module, image: Tensor) -> float:
    """Prune in place with Torch-Pruning, which is told to leave the classifier; returns the seconds."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    classifier = [m for m in layers if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000][-1:]
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=classifier,
    )
    pruner.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        model(image)  # it may well leave a network that does not run
    return seconds


def measure(name: str, rounds: int, peer: bool) -> Timing:
    """Time one network.

    Args:
        name: Of the network.
        rounds: How often; once alone if a tool needs more than 20 s.
        peer: Whether Torch-Pruning takes part.
    """
    timing = Timing(name)
    model, image = network(name)
    with torch.no_grad():
        model(image)
    # The first use of an operator in a process sets it up, once and for all.
    _attempt(timing, "fxprune", lambda: prune(model, image))
    for _ in range(rounds):
        gc.collect()
        with torch.no_grad():
            start = time.perf_counter()
            model(image)
            timing.forward.append(time.perf_counter() - start)
        if "fxprune" not in timing.failures:
            _attempt(timing, "fxprune", lambda: timing.steps.append(prune(model, image)[0]))
        if "torch" not in timing.failures:
            _attempt(timing, "torch", lambda: timing.least.append(trace_and_copy(model)))
        slow = bool(timing.peer) and timing.peer[0] > _LIMIT
        if peer and "torch-pruning" not in timing.failures and not slow:
            start = time.perf_counter()
            victim = copy.deepcopy(model)
            timing.copies.append(time.perf_counter() - start)
            gc.collect()
            _attempt(timing, "torch-pruning", lambda victim=victim: timing.peer.append(prune_with_peer(victim, image)))
    return timing


def _attempt(timing: Timing, tool: str, run: Callable[[], object]) -> None:
    try:
        with warnings.catch_warnings(), _patience():
            warnings.simplefilter("ignore")
            run()
    except (*_FAILURES, TimeoutError, fxprune.FxpruneError) as error:
        timing.failures[tool] = f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on what takes longer than a minute or two; where there are no signals, wait."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not finished after {_PATIENCE} seconds")

    if not hasattr(signal, "alarm"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _status(key: str) -> int:
    """A figure of this process in bytes, as Linux shows it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak(name: str, tool: str) -> float:
    """The peak of this process while pruning, beyond the original and the result, in MiB.

    Libraries that are loaded at the first use do not count: a small network is pruned first. Linux only.
    """
    small, image = network("squeezenet1_1")
    prune(small, image)
    if tool == "torch-pruning":
        prune_with_peer(small, image)
    model, image = network(name)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    if tool == "fxprune":
        _, pruned = prune(model, image)
        own = sum(t.numel() * t.element_size() for t in (*pruned.parameters(), *pruned.buffers()))
    else:
        prune_with_peer(model, image)
        own = 0
    return (_status("VmHWM") - before - own) / 2**20


def peaks(name: str, tools: Sequence[str]) -> dict[str, float]:
    """The peak of every tool on one network, each in a process of its own."""
    found = {}
    for tool in tools:
        command = [sys.executable, __file__, "--peak", tool, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[tool] = float(json.loads(done.stdout.splitlines()[-1]))
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; NaN of nothing."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else math.nan


def table(timings: Sequence[Timing]) -> str:
    """A line for every network, as markdown."""
    measured = [tool for tool in TOOLS if any(tool in t.memory for t in timings)]
    head = ["network", "forward", *STEPS, "fxprune", "passes", "trace, copy", "Torch-Pruning", "factor"]
    head += [f"{tool} +MiB" for tool in measured]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for t in timings:
        steps = [f"{1e3 * statistics.median(s):.0f}" for s in zip(*t.steps, strict=True)] or [""] * len(STEPS)
        cells = [t.name, f"{1e3 * statistics.median(t.forward):.0f}", *steps]
        cells += [f"{1e3 * t.ours:.0f}", f"{t.passes:.2f}"] if t.steps else ["failed", ""]
        cells += [f"{1e3 * statistics.median(t.least):.0f}" if t.least else "failed"]
        cells += [f"{1e3 * t.theirs:.0f}", f"{t.factor:.1f}"] if t.peer else [_peer_cell(t), ""]
        cells += [f"{t.memory[tool]:.0f}" if tool in t.memory else "" for tool in measured]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _peer_cell(timing: Timing) -> str:
    return "failed" if "torch-pruning" in timing.failures else ""


def conclusions(timings: Sequence[Timing]) -> list[str]:
    """What the table amounts to, in sentences."""
    ours = [t for t in timings if t.steps]
    both = [t for t in ours if t.peer]
    lines = []
    if ours:
        passes = [t.passes for t in ours]
        lines.append(
            f"Pruning takes {statistics.median(passes):.2f} forward passes (median of {len(ours)} networks; "
            f"geometric mean {geometric_mean(passes):.2f}, from {min(passes):.2f} to {max(passes):.2f})."
        )
    if both:
        factors, keeping = [t.factor for t in both], [t.keeping for t in both]
        closest = min(both, key=lambda t: t.factor)
        lines.append(
            f"Torch-Pruning takes {geometric_mean(factors):.1f} times as long (geometric mean of the {len(both)} "
            f"networks that both prune; at least {closest.factor:.1f} times, on {closest.name}). With the copy that it "
            f"takes to keep the original, as fxprune does: {geometric_mean(keeping):.1f} times."
        )
        late = [_PATIENCE / t.ours for t in ours if t.failures.get("torch-pruning", "").startswith("TimeoutError")]
        if late:
            lines[-1] += (
                f" With the {len(late)} that it had not finished after {_PATIENCE} s, counted as {_PATIENCE} s: "
                f"{geometric_mean([*factors, *late]):.1f} times; {geometric_mean([*keeping, *late]):.1f} with the copy."
            )
    traced = [t for t in both if t.least]
    if traced:
        least = geometric_mean([t.theirs / statistics.median(t.least) for t in traced])
        lines.append(
            f"Torch-Pruning takes {least:.1f} times as long as torch itself takes to trace the network and to copy it, "
            f"without a thought of pruning (geometric mean of {len(traced)})."
        )
    by_name = {t.name: t for t in ours}
    if "densenet121" in by_name and "densenet201" in by_name:
        small, large = by_name["densenet121"], by_name["densenet201"]
        lines.append(f"DenseNet-201 takes {large.ours / small.ours:.2f} times as long as DenseNet-121.")
        if small.peer and large.peer:
            lines[-1] += f" With Torch-Pruning: {large.theirs / small.theirs:.2f} times."
    return lines


_HEAD = """\
# Speed

`benchmarks/prune_time.py` wrote this page on {processor}: one thread, {python}, torch {torch},
torchvision {torchvision}, Torch-Pruning {peer}, batch 1 at 224 x 224, float32, ratio {ratio:g}, medians of up to
{rounds} rounds, times in ms.

*forward* is one pass of the dense network in evaluation mode without gradients; *fxprune* the sum of capture,
analysis, plan and rewrite; *passes* that sum in forward passes; *trace, copy* what `torch.fx.symbolic_trace(model)` and
`copy.deepcopy(model)` alone take; *Torch-Pruning* its dependency graph, group magnitude importance and pruning, in
place, on a copy made before; *factor* how many times as long it takes; *+MiB* the peak beyond the original and the
result, below 0 where freed memory was given back meanwhile. An empty cell was not measured.

"""


def document(timings: Sequence[Timing], rounds: int) -> str:
    """The results as a page of markdown."""
    version = metadata.version("torch-pruning") if torch_pruning is not None else "not installed"
    lines = [
        *_HEAD.format(
            processor=_processor(),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            peer=version,
            ratio=RATIO,
            rounds=rounds,
        ).splitlines(),
        *[f"- {line}" for line in conclusions(timings)],
        "",
        table(timings),
    ]
    failures = [(t.name, tool, text) for t in timings for tool, text in t.failures.items()]
    if failures:
        lines += ["", "## Failures", ""]
        lines += [f"- {tool} on {name}: `{text[:200]}`" for name, tool, text in failures]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names of torchvision classification networks (default: resnet50)")
    parser.add_argument("--all", action="store_true", help="all of them but the largest")
    parser.add_argument("--big", action="store_true", help="with --all or a pattern: the largest as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each in a process of its own")
    parser.add_argument("--write", type=Path, help="write the results into this file, as in docs/speed.md")
    parser.add_argument("--peak", choices=TOOLS, help="print the peak of one tool on one network, and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak:
        print(json.dumps(peak(options.patterns[0], options.peak)))
        return
    patterns = ["*"] if options.all else options.patterns or ["resnet50"]
    names = [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if any(fnmatch.fnmatch(name, p) for p in patterns)
        and (options.big or name in patterns or not any(fnmatch.fnmatch(name, p) for p in BIG))
    ]
    if not names:
        raise SystemExit(f"no torchvision classification network is called {' or '.join(patterns)}")
    peer = torch_pruning is not None and not options.no_peer
    timings = []
    for name in names:
        timing = measure(name, options.rounds, peer)
        if options.memory:
            timing.memory = peaks(name, TOOLS if peer and timing.peer else TOOLS[:1])
        timings.append(timing)
        print(table([timing]).splitlines()[-1], *timing.failures.values(), flush=True)
        gc.collect()
    print()
    print(table(timings))
    print("\n".join(["", *conclusions(timings)]))
    if options.write is not None:
        options.write.write_text(document(timings, options.rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
