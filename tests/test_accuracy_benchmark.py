"""The benchmark of the accuracy: its images, and what it makes of results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_accuracy", checkout / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_images_depend_on_the_seed_alone(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "IMAGES", {"train": 40, "test": 30})
    images, labels = benchmark.cluttered_digits(0, "train")
    again, _ = benchmark.cluttered_digits(0, "train")
    other, _ = benchmark.cluttered_digits(1, "train")
    held, _ = benchmark.cluttered_digits(0, "test")
    assert images.shape == (40, 3, 24, 24)
    assert labels.shape == (40,)
    assert held.shape == (30, 3, 24, 24)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert torch.equal(images[:, 0], images[:, 2])
    epoch = benchmark.batches(images, labels, 3, size=16)
    assert [len(x) for x, _ in epoch] == [16, 16]


def test_a_network_is_trained_and_pruned_by_it(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IMAGES": {"train": 64, "test": 32}, "EPOCHS": 1, "BUDGETS": (0.5,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "RECOVERY_IMAGES", 32)
    monkeypatch.setattr(benchmark, "CURVE_IMAGES", 16)
    results = list(benchmark.experiment("VGG-narrow", 0, peer=False))
    assert [r.method for r in results] == ["dense", "uniform", "global", "sensitivity"]
    assert all(r.macs <= 0.5 for r in results[1:])
    page = benchmark.document(results)
    assert "## VGG-narrow" in page
    assert page.count("| 1/2 |") == 3


def test_tables_and_conclusions(benchmark: ModuleType) -> None:
    made = [
        benchmark.Result("VGG", seed, method, 1 / 3, 0.33, 10.0, recovered + seed, tuned, 1.0)
        for seed in (0, 2)
        for method, recovered, tuned in (
            ("uniform", 80.0, 90.0),
            ("sensitivity", 90.0, 93.0),
            ("Torch-Pruning, local", 70.0, 91.0),
            ("Torch-Pruning, global", 75.0, 90.0),
        )
    ]
    made += [benchmark.Result("VGG", seed, "dense", 1.0, 1.0, 95.0, 95.0, 95.0, 0.0) for seed in (0, 2)]
    table = benchmark.table(made, "VGG")
    assert "| 1/3 | sensitivity | 10.0 ± 0.0 | 91.0 ± 1.4 | 93.0 ± 0.0 | 33.0 % |" in table
    (line,) = benchmark.conclusions(made)
    assert "at 1/3 of the MACs 4.0 points below dense" in line
    assert "+15.0 against the peer's better, +2.0 after one epoch" in line
