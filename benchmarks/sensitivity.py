"""Times the sensitivity scan of the lab's VGG against the plain way: prune a copy and evaluate it, point by point.

Run it as ``python benchmarks/sensitivity.py``; it needs no data, and takes two minutes or so on one CPU core. Both ways
must give the same accuracies, or it fails.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from fxprune.models import VGG
from fxprune.sensitivity import DEFAULT_SPARSITIES, sensitivity
from fxprune.sparsity import prune_weights


def network(width: float, device: torch.device) -> nn.Module:
    """A VGG with the statistics that it would have after training, so that no layer's output dies out."""
    model = VGG(width=width)
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 32, 32))
    return model.eval().to(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.25, help="width of the VGG")
    parser.add_argument("--images", type=int, default=512, help="how many images one evaluation takes")
    parser.add_argument("--batch", type=int, default=512, help="the lab evaluates 512 images at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = network(options.width, device)
    images = torch.randn(options.images, 3, 32, 32, device=device)
    batches = images.split(options.batch)
    with torch.no_grad():
        labels = [model(batch).argmax(1) for batch in batches]

    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        hits: list[Tensor] = [(net(x).argmax(1) == y).sum() for x, y in zip(batches, labels, strict=True)]
        return int(sum(hits)) / len(images)

    evaluate(model)
    start = time.perf_counter()
    curves = sensitivity(model, images[:1], evaluate, progress=False)
    fast = time.perf_counter() - start

    start = time.perf_counter()
    dense = evaluate(model)
    plain = {
        layer: tuple(evaluate(prune_weights(model, images[:1], {f"{layer}.weight": s})) for s in DEFAULT_SPARSITIES)
        for layer in curves.accuracy
    }
    slow = time.perf_counter() - start

    points = len(curves) * len(curves.sparsities)
    print(f"VGG, width {options.width}, {options.images} images, batch {options.batch}, {device}, {points} points")
    print(f"plain way    {slow:8.2f} s")
    print(f"sensitivity  {fast:8.2f} s   {slow / fast:.2f} times as fast")
    if plain != dict(curves) or dense != curves.dense:
        raise SystemExit("the two ways disagree")
    print("the accuracies are equal")


if __name__ == "__main__":
    main()
