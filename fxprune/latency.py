"""Times of several networks, measured against one another."""

from __future__ import annotations

__all__ = ["compare_latency"]

from collections.abc import Mapping
from operator import attrgetter

from torch import nn
from tqdm.auto import tqdm

from fxprune.capture import Example
from fxprune.profiling import Latency, measure_latency


def compare_latency(
    networks: Mapping[str, nn.Module],
    example_inputs: Example,
    *,
    turns: int = 3,
    warmup: int = 2,
    runs: int = 20,
    seconds: float = 0.4,
    progress: bool = False,
) -> dict[str, Latency]:
    """Time several networks.

    They take turns, and each one's quietest turn counts: what else the machine does would otherwise fall on one of them
    alone.

    Args:
        networks: By name.
        example_inputs: As for :func:`fxprune.profile`, for all of them.
        turns: How often each network is measured.
        warmup: Passes before the first one of a turn that is timed.
        runs: How many passes of a turn to time at most.
        seconds: After how many seconds of timed passes a turn ends, once five are done.
        progress: Whether to show a progress bar.

    Raises:
        FxpruneError: As from :func:`fxprune.profiling.measure_latency`.
    """
    found: dict[str, list[Latency]] = {name: [] for name in networks}
    with tqdm(total=turns * len(networks), desc="latency", unit="turn", disable=not progress) as bar:
        for _ in range(turns):
            for name, network in networks.items():
                turn = measure_latency(network, example_inputs, warmup=warmup, runs=runs, seconds=seconds)
                found[name].append(turn)
                bar.update()
    return {name: min(turn, key=attrgetter("median")) for name, turn in found.items()}
