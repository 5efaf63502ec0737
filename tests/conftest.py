"""Settings for the whole suite: what runs, on how many threads, and from which seed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser, show

from fxprune.errors import InternalError
from fxprune.recorder import Recorder

__all__ = ["browser", "show"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the exhaustive sweeps (marker: slow)")


def pytest_configure(config: pytest.Config) -> None:
    # The networks are so small that a second thread costs more than it gives. Child processes inherit the choice.
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        without_cuda = pytest.mark.skip(reason="needs CUDA, and none is available")
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(without_cuda)
    if not config.getoption("--run-slow"):
        slow = [item for item in items if item.get_closest_marker("slow") is not None]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item.get_closest_marker("slow") is None]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The source tree; a test of it skips where the tests were copied out of it, to run against an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "setup.cfg").is_file():
        pytest.skip("needs the source tree")
    return root


@pytest.fixture(autouse=True)
def _failures_are_seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that fails is a mistake, which users are spared by a freeze; unless marked so, tests are not."""
    if request.node.get_closest_marker("unforeseen") is None:

        def failed(self: Recorder, error: Exception) -> str:
            raise InternalError(f"the rule for {self.node.target} failed: {type(error).__name__}: {error}") from error

        monkeypatch.setattr(Recorder, "failed", failed)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
