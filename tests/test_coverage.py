"""The sweep over torchvision's and timm's networks, and what it makes of its findings."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")


@pytest.fixture(scope="session")
def coverage(checkout: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(checkout / "benchmarks"))  # as for a script that is run from there
    spec = importlib.util.spec_from_file_location("benchmark_coverage", checkout / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    sys.path.remove(str(checkout / "benchmarks"))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Renormed(Small):
    """Channels under an operator that has no rule stay."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.renorm(self.second(torch.relu(self.first(x))), 2, 1, 1.0))


class Wrong(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if float(self.size) > 0 and x.sum() > 0:
            return super().forward(x)
        return super().forward(-x)


class FixedBatch(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, 4, 8, 8)


def _network(coverage: ModuleType, kind: type[nn.Module], **options: Any) -> Any:
    example = sys.modules["swept_networks"].images(1, 3, 8, 8)
    return coverage.Network(f"own/{kind.__name__.lower()}", "own", kind, example, **options)


def test_every_classification_network_of_torchvision_is_in_the_sweep(coverage: ModuleType) -> None:
    import torchvision

    names = {network.name for network in sys.modules["swept_networks"].networks()}
    assert {f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)} <= names
    assert len(names) > 140


def test_names_are_chosen_by_pattern(coverage: ModuleType) -> None:
    assert [n.name for n in coverage.chosen(["resnet18"], big=False)] == ["torchvision/resnet18", "timm/resnet18"]
    assert {n.family for n in coverage.chosen(["optical flow"], big=False)} == {"optical flow"}
    assert [n.name for n in coverage.chosen(["vit_l_16"], big=False)] == ["torchvision/vit_l_16"]
    assert coverage.chosen(["vit_l_*"], big=False) == []


def test_a_small_network_is_measured(coverage: ModuleType) -> None:
    row = coverage.measure(_network(coverage, Small))
    assert row.problems == []
    assert row.macs == (64 * (27 * 32 + 288 * 32 + 32 * 4), 64 * (27 * 16 + 144 * 16 + 16 * 4))
    assert row.parameters == (896 + 9248 + 132, 448 + 2320 + 68)
    assert row.error < 1e-12
    assert row.frozen == 0
    assert len(row.seconds) == 4


def test_frozen_channels_and_a_poor_reduction_are_reported(coverage: ModuleType) -> None:
    row = coverage.measure(_network(coverage, Renormed))
    assert row.frozen == 32
    assert sum(row.reasons.values()) == 32
    assert list(row.reasons) == ["operator renorm has no rule"]
    assert any(problem.startswith("the MACs fall by ") for problem in row.problems)


def test_a_part_is_pruned_where_the_whole_cannot_be(coverage: ModuleType) -> None:
    row = coverage.measure(_network(coverage, Wrong, fallback=_network(coverage, Small)))
    assert row.network.name == "own/small"
    assert row.reduction > 0.6
    assert len(row.problems) == 1
    assert row.problems[0].startswith("whole: TraceError: ")


def test_a_wrong_result_is_a_problem(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = coverage.fxprune.Proof(1e-3, True, [])
    monkeypatch.setattr(coverage.fxprune, "verify", lambda *_: proof)
    assert coverage.measure(_network(coverage, Small)).problems == ["wrong: the proof's error is 1.0e-03"]


def test_the_page_has_a_line_for_each_network(coverage: ModuleType) -> None:
    rows = list(coverage.sweep([_network(coverage, Small), _network(coverage, Wrong), _network(coverage, FixedBatch)]))
    page = coverage.document(rows, 0.5)
    assert "3 networks, 2 as they ought to be, 1 with a problem." in page
    assert "| small | 0.01 |" in page
    assert "| wrong | failed |" in page
    assert "**problem**: TraceError" in page
    assert all(line.count("|") == 12 for line in page.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/mnasnet_small"])
def test_real_networks(coverage: ModuleType, name: str) -> None:
    [network] = coverage.chosen([name], big=False)
    row = coverage.measure(network)
    assert row.problems == []
    assert row.exact
    assert row.frozen == 0


@pytest.mark.slow
def test_the_whole_sweep(coverage: ModuleType) -> None:
    rows = list(coverage.sweep(coverage.chosen([], big=False)))
    assert {row.network.name: row.problems for row in rows if row.problems} == {}


def test_what_a_network_does_to_rounding_is_measured(coverage: ModuleType) -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e6 * (x - 1)

    example = (torch.ones(1, 4) + torch.tensor([1e-3, 0, 0, 0]),)
    assert coverage._amplification(Steep(), example) > 100
    assert coverage._amplification(nn.Identity(), example) < 10
