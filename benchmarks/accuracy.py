"""Accuracy after pruning to a half, a third and a quarter of the MACs: straight after, recovered, and tuned.

Run it as ``python benchmarks/accuracy.py`` for four networks, two of them in two widths, and three seeds, beside
Torch-Pruning 1.6.1 (``pip install .[benchmark]``), in one process for each core. ``--write docs/accuracy.md`` writes
the page.

The task is scikit-learn's handwritten digits, made hard enough that pruning hurts: a digit, enlarged to 14x14, lies
anywhere in an image of 24x24 over four pieces of 6x6 that are cut out of other digits, at 70 % of their brightness,
under normal noise of 0.15 of the brightest. The base images are split before anything is made of them, 1,347 for
training and 450 for the test, and every seed makes 4,000 and 1,500 images of its own.

Every network is pruned from the same weights to the same budgets. fxprune's are recovered by ``fxprune.recover``, the
peer's get the batch-norm re-estimation alone (nothing else is on offer for them), both from the same 256 training
images without their labels; then both are trained for one epoch in the same way.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.allocation import Budget
from fxprune.criteria import ReconstructionLoss
from fxprune.models import VGG, DenseNet, MobileNetV2, ResNet20
from fxprune.passes import BatchNormEstimation

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG": lambda: VGG(0.25),
    "VGG-narrow": lambda: VGG(0.125),
    "ResNet-20": ResNet20,
    "DenseNet": lambda: DenseNet(0.67, depth=3),
    "MobileNetV2": MobileNetV2,
    "MobileNetV2-narrow": lambda: MobileNetV2(0.5),
}
BUDGETS = (1 / 2, 1 / 3, 1 / 4)
OURS = ("uniform", "global", "sensitivity")
PEERS = ("Torch-Pruning, local", "Torch-Pruning, global")
IMAGES = {"train": 4000, "test": 1500}
RECOVERY_IMAGES = 256
CURVE_IMAGES = 128
EPOCHS = 8
_SIZE, _DIGIT, _PIECE, _PIECES = 24, 14, 6, 4
_HALVINGS = 8


@dataclass(frozen=True)
class Result:
    """What became of one network under one budget.

    Attributes:
        network: Its name.
        seed: Of the images, the weights and the training.
        method: How channels were chosen and the budget shared out; ``"dense"`` for the network as it was.
        budget: The fraction of the MACs that was allowed.
        macs: The fraction that it came to.
        plain: Test accuracy straight after pruning, in percent.
        recovered: After recovery without labels.
        tuned: After one epoch of training on top of that.
        seconds: What planning, pruning and recovery took, curves not included.
    """

    network: str
    seed: int
    method: str
    budget: float
    macs: float
    plain: float
    recovered: float
    tuned: float
    seconds: float


def cluttered_digits(seed: int, part: str) -> tuple[Tensor, Tensor]:
    """Images of shape ``(3, 24, 24)`` with their labels; see the head of this file."""
    digits = datasets.load_digits()
    labels = torch.from_numpy(digits.target).long()
    small = torch.from_numpy(digits.images).float()[:, None] / 16
    split = train_test_split(torch.arange(len(labels)), test_size=450, random_state=seed, stratify=labels)
    base = split[0 if part == "train" else 1]
    sources = F.interpolate(small[base], size=(_DIGIT, _DIGIT), mode="bilinear", align_corners=False)[:, 0]
    generator = torch.Generator().manual_seed(2 * seed + (part == "test"))

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    count = IMAGES[part]
    images = torch.zeros(count, 1, _SIZE, _SIZE)
    chosen = torch.arange(count) % len(base)
    for image, number in zip(images[:, 0], chosen.tolist(), strict=True):
        for _ in range(_PIECES):
            source, top, left = draw(len(base)), draw(_DIGIT - _PIECE + 1), draw(_DIGIT - _PIECE + 1)
            piece = 0.7 * sources[source, top : top + _PIECE, left : left + _PIECE]
            _lay(image, piece, draw(_SIZE - _PIECE + 1), draw(_SIZE - _PIECE + 1))
        _lay(image, sources[number], draw(_SIZE - _DIGIT + 1), draw(_SIZE - _DIGIT + 1))
    images += 0.15 * torch.randn(images.shape, generator=generator)
    return ((images - 0.25) / 0.35).expand(-1, 3, -1, -1).contiguous(), labels[base][chosen]


def _lay(image: Tensor, piece: Tensor, top: int, left: int) -> None:
    height, width = piece.shape
    below = image[top : top + height, left : left + width]
    below.copy_(torch.maximum(below, piece))


def batches(images: Tensor, labels: Tensor, seed: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """One epoch of whole batches in random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [(images[index], labels[index]) for index in order.split(size) if len(index) == size]


def train(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """Train a network from scratch, in place: SGD with a one-cycle learning rate."""
    steps = EPOCHS * len(batches(images, labels, seed))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(EPOCHS):
        for x, y in batches(images, labels, 1000 * seed + epoch):
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()
            cycle.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that are classified rightly, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True)
        )
    return 100 * right / len(images)


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates for one image."""
    return int(fxprune.profile(model, image).macs)


def pruned_by_peer(model: nn.Module, image: Tensor, budget: float, everywhere: bool) -> nn.Module:
    """Torch-Pruning's group magnitude pruner at the smallest ratio that meets the budget, found by halving."""
    whole = macs(model, image)

    def at(ratio: float) -> nn.Module:
        copied = copy.deepcopy(model)
        last = [m for m in copied.modules() if isinstance(m, nn.Linear)][-1]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            copied, image, importance, global_pruning=everywhere, pruning_ratio=ratio, ignored_layers=[last]
        ).step()
        return copied

    low, high = 0.0, 0.95
    best = at(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = at(middle)
        if macs(found, image) <= budget * whole:
            best, high = found, middle
        else:
            low = middle
    return best


def experiment(network: str, seed: int, peer: bool) -> Iterator[Result]:
    """All results for one network and one seed."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    x, y = cluttered_digits(seed, "train")
    test = cluttered_digits(seed, "test")
    model = NETWORKS[network]()
    train(model, x, y, seed)
    dense = accuracy(model, *test)
    yield Result(network, seed, "dense", 1.0, 1.0, dense, dense, dense, 0.0)
    image = x[:1]
    whole = macs(model, image)
    few = list(x[:RECOVERY_IMAGES].split(64))
    deps = fxprune.DependencyGraph.from_model(model, image)
    criterion = ReconstructionLoss(few).prepared(deps.structure)
    curves = fxprune.recovery_curves(deps, [x[:CURVE_IMAGES]])
    for budget in BUDGETS:
        for method in (*OURS, *(PEERS if peer else ())):
            start = time.perf_counter()
            if method in OURS:
                plan = fxprune.plan_channels(
                    deps,
                    criterion="input-l2" if method == "global" else criterion,
                    budget=Budget(macs=budget),
                    allocation=curves if method == "sensitivity" else method,
                )
                small = plan.apply(model)
                recovered: fx.GraphModule = fxprune.recover(small, model, few, rungs=["reconstruction"]).network
            else:
                small = fxprune.trace(pruned_by_peer(model, image, budget, method == PEERS[1]), image)
                recovered = BatchNormEstimation(few).call(small).graph_module
            seconds = time.perf_counter() - start
            tuned = fxprune.fine_tune(
                recovered, batches(x, y, seed), epochs=1, lr=0.01, weight_decay=5e-4, progress=False
            )
            scores = [accuracy(network, *test) for network in (small, recovered, tuned)]
            yield Result(network, seed, method, budget, macs(small, image) / whole, *scores, seconds)


def _collect(network: str, seed: int, peer: bool) -> list[Result]:
    return list(experiment(network, seed, peer))


def table(results: Sequence[Result], network: str) -> str:
    """One network's results as markdown: means over the seeds, and their standard deviations."""
    lines = [
        "| MACs | method | straight after | recovered | one epoch | MACs reached |",
        "|---|---|--:|--:|--:|--:|",
    ]
    own = [r for r in results if r.network == network]
    dense = [r.plain for r in own if r.method == "dense"]
    lines.append(f"| all | dense | {_spread(dense)} |  |  | 100.0 % |")
    for budget in BUDGETS:
        for method in (*OURS, *PEERS):
            found = [r for r in own if r.method == method and r.budget == budget]
            if found:
                cells = [_spread([getattr(r, stage) for r in found]) for stage in ("plain", "recovered", "tuned")]
                reached = 100 * statistics.fmean(r.macs for r in found)
                lines.append(f"| 1/{round(1 / budget)} | {method} | {' | '.join(cells)} | {reached:.1f} % |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def conclusions(results: Sequence[Result]) -> list[str]:
    """What the tables amount to, in sentences: ours with sensitivity curves, beside the better of the peer's two."""
    lines = []
    for network in dict.fromkeys(r.network for r in results):
        own = [r for r in results if r.network == network]
        dense = statistics.fmean(r.plain for r in own if r.method == "dense")
        parts = []
        for budget in BUDGETS:
            here = [r for r in own if r.budget == budget]
            ours = [r for r in here if r.method == "sensitivity"]
            theirs = [[r for r in here if r.method == peer] for peer in PEERS]
            if not ours:
                continue
            lost = dense - statistics.fmean(r.recovered for r in ours)
            text = f"at 1/{round(1 / budget)} of the MACs {lost:.1f} points below dense without training"
            if all(theirs):
                leads = [
                    statistics.fmean(getattr(r, stage) for r in ours)
                    - max(statistics.fmean(getattr(r, stage) for r in found) for found in theirs)
                    for stage in ("recovered", "tuned")
                ]
                text += f" ({leads[0]:+.1f} against the peer's better, {leads[1]:+.1f} after one epoch)"
            parts.append(text)
        lines.append(f"{network}: {'; '.join(parts)}.")
    return lines


def document(results: Sequence[Result]) -> str:
    """The results as a page of markdown."""
    # What 1.6.1 calls itself is 1.6.0.
    version = metadata.version("torch-pruning") if torch_pruning is not None else "not installed"
    seeds = sorted({r.seed for r in results})
    head = f"""# Accuracy

`benchmarks/accuracy.py` wrote this page: torch {torch.__version__}, Torch-Pruning {version}, seeds {seeds}, mean and
standard deviation in percent. The head of that file says how the images are made (digits anywhere in the image, among
pieces of others) and how the networks are trained.

- *straight after*: pruned and nothing else.
- *recovered*: unlabelled, from {RECOVERY_IMAGES} images: `fxprune.recover`; for the peer batch-norm re-estimation.
- *one epoch*: trained for one epoch on top of that, all in the same way.
- *uniform*: the same ratio from every group, by `ReconstructionLoss`; *global*: one ranking of all channels, by
  `input-l2`; *sensitivity*: by `ReconstructionLoss`, shared out by `fxprune.recovery_curves`.
- *Torch-Pruning*: its group magnitude pruner, at the smallest ratio that meets the budget.
"""
    lines = [head, *[f"- {line}" for line in conclusions(results)]]
    for network in dict.fromkeys(r.network for r in results):
        lines += ["", f"## {network}", "", table(results, network)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--results", type=Path, help="a file of results, to go on from and to add to")
    parser.add_argument("--write", type=Path, help="write the tables into this file, as in docs/accuracy.md")
    options = parser.parse_args()
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        raise SystemExit(f"no network is called {' or '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: list[Result] = []
    if options.results is not None and options.results.is_file():
        lines = options.results.read_text(encoding="utf-8").splitlines()
        results = [Result(**json.loads(line)) for line in lines]
    done = {(r.network, r.seed) for r in results}
    wanted = [(n, s) for s in options.seeds for n in options.networks or NETWORKS if (n, s) not in done]
    peer = torch_pruning is not None and not options.no_peer
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for finished in as_completed([pool.submit(_collect, network, seed, peer) for network, seed in wanted]):
            found = finished.result()
            results += found
            if options.results is not None:
                with options.results.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(asdict(r)) + "\n" for r in found)
            print(f"\n{found[0].network}, seed {found[0].seed}\n{table(found, found[0].network)}", flush=True)
    order = {name: number for number, name in enumerate(NETWORKS)}
    results.sort(key=lambda r: (order[r.network], r.seed))
    print("\n" + document(results))
    if options.write is not None:
        options.write.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main()
