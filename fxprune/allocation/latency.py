"""How long a smaller network will take: a table of its layers, measured at several widths on its own device.

The network is pruned in a few ways that need no weights to choose, every call of each is timed, and what a call takes
is fitted by what it reads and writes and what it multiplies (a roofline in sums: Williams et al., 2009), neither of
which needs the network to be built once more.
"""

from __future__ import annotations

__all__ = ["LatencyTable"]

import inspect
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, fx
from tqdm.auto import tqdm

from fxprune.capture import bound_to, bound_values
from fxprune.costs import Costs, Terms
from fxprune.errors import ArgumentError
from fxprune.interpreting import Interpreter
from fxprune.nested import map_nested
from fxprune.plan import make_plan
from fxprune.profiling import measure_latency, synchronise
from fxprune.records import Conflict
from fxprune.selection import FloatArray, keep_count, select
from fxprune.settling import chosen
from fxprune.training import evaluation_mode

if TYPE_CHECKING:
    from fxprune.dependency import DependencyGraph

_EVEN = (0.3, 0.6, 0.85)
"""Ratios at which all groups are cut alike; further networks cut every group at random, so that what a layer reads and
what it makes do not always shrink together."""

_UNEVEN = 5


@dataclass(frozen=True)
class Row:
    """What one call took at one width.

    Attributes:
        node: Name of the graph node.
        traffic: Elements that it read and wrote.
        macs: Its multiply-accumulates.
        seconds: The median time.
    """

    node: str
    traffic: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of a network's calls, and what they say about other widths.

    Attributes:
        rows: The measurements.
        coefficients: By node, seconds per call, per element and per multiply-accumulate; never negative (nnls).
        device: Where it was measured.
        error: Mean relative difference between the estimated and the measured time of the whole networks.
    """

    rows: tuple[Row, ...]
    coefficients: Mapping[str, tuple[float, float, float]]
    device: str
    error: float

    @classmethod
    def measure(cls, deps: DependencyGraph, runs: int = 7, progress: bool | None = None) -> LatencyTable:
        """Measure a network on the device that it is on.

        Args:
            deps: Its dependency graph, with weights.
            runs: How often each network runs; the medians count.
            progress: Whether to show a progress bar; by default where stderr is a terminal.

        Raises:
            ArgumentError: The weights are on the meta device, or ``runs`` is below 1.
        """
        if runs < 1:
            raise ArgumentError(f"runs must be at least 1, not {runs}")
        device = next((t.device for t in (*deps.gm.parameters(), *deps.gm.buffers())), torch.device("cpu"))
        if device.type == "meta":
            raise ArgumentError(
                "the network is on the meta device, where nothing takes time: give it its weights first"
            )
        costs = Costs.of(deps, traffic=True)
        inputs = _inputs(deps.gm, device)
        samples: list[tuple[NDArray[Any], dict[str, float], float]] = []
        quiet = None if progress is None else not progress
        with tqdm(total=1 + len(_EVEN) + _UNEVEN, desc="latency table", unit="network", disable=quiet) as bar:
            for kept, network in _networks(deps):
                times = _node_times(network, inputs, device, runs)
                whole = measure_latency(network, inputs, warmup=1, runs=runs).median
                samples.append((costs.sizes(kept), times, whole))
                bar.update()
        return cls._fitted(costs, samples, str(device))

    @classmethod
    def _fitted(
        cls, costs: Costs, samples: list[tuple[NDArray[Any], dict[str, float], float]], device: str
    ) -> LatencyTable:
        features = [
            np.stack([np.ones(len(costs.calls)), *(_by_call(costs, name, sizes) for name in ("traffic", "work"))], 1)
            for sizes, _, _ in samples
        ]
        rows, coefficients = [], {}
        for i, name in enumerate(costs.calls):
            seen = [(f[i], times[name]) for f, (_, times, _) in zip(features, samples, strict=True) if name in times]
            if not seen:
                continue
            rows += [Row(name, int(f[1]), int(f[2]), seconds) for f, seconds in seen]
            coefficients[name] = _nonnegative(np.array([f for f, _ in seen]), np.array([t for _, t in seen]))
        weights = np.array([coefficients.get(name, (0.0, 0.0, 0.0)) for name in costs.calls])
        sums = np.array([(f * weights).sum() for f in features])
        measured = np.array([whole for _, _, whole in samples])
        # Calls overlap on a GPU, and one by one each waits for its end.
        scale, _ = nnls(sums[:, None] / measured[:, None], np.ones(len(measured)))
        scaled = {name: tuple(float(scale[0]) * c for c in found) for name, found in coefficients.items()}
        error = float(np.mean(np.abs(scale[0] * sums / measured - 1)))
        return cls(tuple(rows), scaled, device, error)  # type: ignore[arg-type]

    def terms(self, costs: Costs) -> Terms:
        """The latency in milliseconds as a sum of products of dimensions.

        Args:
            costs: The costs of the same network, with its traffic.
        """
        table = np.array([self.coefficients.get(name, (0.0, 0.0, 0.0)) for name in costs.calls]) * 1e3
        traffic, work = costs.terms["traffic"], costs.terms["work"]
        calls = np.arange(len(costs.calls))
        most = max(traffic.dims.shape[1], work.dims.shape[1])
        dims = [
            np.zeros((len(calls), most), dtype=np.int64),
            *(np.pad(t.dims, ((0, 0), (0, most - t.dims.shape[1]))) for t in (traffic, work)),
        ]
        factors = [table[:, 0], traffic.factor * table[traffic.layer, 1], work.factor * table[work.layer, 2]]
        layers = [calls, traffic.layer, work.layer]
        return Terms(np.concatenate(layers), np.concatenate(factors), np.concatenate(dims))


def _by_call(costs: Costs, name: str, sizes: NDArray[Any]) -> FloatArray:
    totals = np.zeros(len(costs.calls))
    np.add.at(totals, costs.terms[name].layer, costs.terms[name].values(sizes))
    return totals


def _nonnegative(features: FloatArray, seconds: FloatArray) -> tuple[float, float, float]:
    """The best fit, in relative errors, with coefficients that are not negative."""
    scale = np.maximum(features.max(axis=0), 1.0)
    found, _ = nnls(features / scale / seconds[:, None], np.ones(len(seconds)))
    first, second, third = (found / scale).tolist()
    return first, second, third


def _networks(deps: DependencyGraph) -> Iterator[tuple[NDArray[np.bool_], fx.GraphModule]]:
    """The network and smaller ones, with what each keeps."""
    structure = deps.structure
    yield np.ones(structure.units, dtype=bool), deps.gm
    rng = np.random.default_rng(0)
    sizes = [len(members) for members in structure.members]
    cuts = [np.full(len(sizes), ratio) for ratio in _EVEN] + [rng.uniform(0, 0.9, len(sizes)) for _ in range(_UNEVEN)]
    scores = -np.arange(structure.units, dtype=np.float64)
    for ratios in cuts:
        kept = select(structure, scores, {g: keep_count(sizes[g], ratio) for g, ratio in enumerate(ratios)})
        try:
            plan = make_plan(deps, structure, kept, chosen(deps.gm, structure, kept))
        except Conflict:  # rare, and there are others
            continue
        yield kept, plan.apply(deps.gm)


def _inputs(gm: fx.GraphModule, device: torch.device) -> inspect.BoundArguments:
    """Random inputs of the traced shapes."""

    def filled(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return torch.rand(value.shape, dtype=value.dtype, device=device)
        return torch.zeros(value.shape, dtype=value.dtype, device=device)

    return bound_to(gm, (map_nested(filled, node.meta["val"]) for node in gm.graph.find_nodes(op="placeholder")))


class _Timed(Interpreter):
    """Notes how long every node takes."""

    def __init__(self, gm: fx.GraphModule, device: torch.device) -> None:
        super().__init__(gm)
        self._device = device
        self.times: dict[str, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        synchronise(self._device)
        start = time.perf_counter()
        result = super().run_node(n)
        synchronise(self._device)
        self.times[n.name].append(time.perf_counter() - start)
        return result


def _node_times(
    network: fx.GraphModule, inputs: inspect.BoundArguments, device: torch.device, runs: int
) -> dict[str, float]:
    timed = _Timed(network, device)
    with torch.no_grad(), evaluation_mode(network):
        for _ in range(runs + 1):
            timed.run(*bound_values(network.graph, inputs))
    return {name: statistics.median(times[1:]) for name, times in timed.times.items()}
