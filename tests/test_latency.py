"""The latency table: what is measured, what is fitted, and what a plan makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fxprune
from fxprune import Budget, LatencyTable
from fxprune.costs import Costs
from fxprune.models import ZOO, example_inputs


def _deps(name: str = "residual") -> fxprune.DependencyGraph:
    return fxprune.DependencyGraph.from_model(ZOO[name](), example_inputs(name))


def _synthetic(costs: Costs) -> LatencyTable:
    """A device on which every call takes 1 us, 2 ns for an element and 3 ns for a multiply-accumulate."""
    structure = costs.structure
    rng = np.random.default_rng(0)
    samples = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8):
        kept = (structure.group < 0) | (rng.random(structure.units) >= share)
        sizes = costs.sizes(kept)
        times = dict.fromkeys(costs.calls, 1e-6)
        for name, seconds in (("traffic", 2e-9), ("work", 3e-9)):
            terms = costs.terms[name]
            for call, value in zip(terms.layer.tolist(), terms.values(sizes).tolist(), strict=True):
                times[costs.calls[call]] += seconds * value
        samples.append((sizes, times, sum(times.values())))
    return LatencyTable._fitted(costs, samples, "cpu")


@pytest.mark.parametrize("name", ["residual", "dense", "self_attention"])
def test_the_fit_finds_what_the_times_were_made_of(name: str) -> None:
    deps = _deps(name)
    costs = Costs.of(deps, traffic=True)
    table = _synthetic(costs)
    assert table.error < 1e-6
    terms = table.terms(costs)
    kept = np.ones(deps.structure.units, dtype=bool)
    for members in deps.structure.members:
        kept[members[: len(members) // 3]] = False
    for mask in (None, kept):
        sizes = costs.sizes(mask)
        expected = len(costs.calls) * 1e-6
        expected += 2e-9 * float(costs.terms["traffic"].values(sizes).sum())
        expected += 3e-9 * float(costs.terms["work"].values(sizes).sum())
        assert float(terms.values(sizes).sum()) == pytest.approx(1e3 * expected, rel=1e-3)


def test_traffic_is_what_the_calls_read_hold_and_write() -> None:
    deps = _deps("vgg")
    costs = Costs.of(deps, traffic=True)
    terms = costs.terms["traffic"]
    totals = np.zeros(len(costs.calls))
    np.add.at(totals, terms.layer, terms.values(costs.whole))
    by_name = dict(zip(costs.calls, totals.tolist(), strict=True))
    node = next(n for n in deps.gm.graph.nodes if n.op == "call_module")
    module = deps.gm.get_submodule(str(node.target))
    expected = example_inputs("vgg")[0].numel() + node.meta["val"].numel() + sum(p.numel() for p in module.parameters())
    assert by_name[node.name] == expected


def test_a_latency_budget_is_met_by_the_table() -> None:
    deps = _deps("vgg")
    costs = Costs.of(deps, traffic=True)
    table = _synthetic(costs)
    whole = float(table.terms(costs).values(costs.whole).sum())
    plan = fxprune.plan_channels(deps, budget=Budget(latency_ms=0.5 * whole, table=table, parameters=0.9))
    assert plan.allocation is not None
    parameters, latency = plan.allocation.limits
    assert 0.45 * whole < latency.after <= 0.5 * whole
    assert parameters.after <= parameters.most


def test_a_network_is_measured() -> None:
    deps = _deps()
    table = LatencyTable.measure(deps, runs=2, progress=False)
    names = {node.name for node in deps.gm.graph.nodes}
    assert table.device == "cpu"
    assert {row.node for row in table.rows} <= names
    assert all(row.seconds > 0 for row in table.rows)
    assert len({row.macs for row in table.rows if row.node == table.rows[0].node}) > 3
    assert all(c >= 0 for found in table.coefficients.values() for c in found)


def test_what_cannot_be_measured() -> None:
    with torch.device("meta"):
        model = ZOO["residual"]()
    deps = fxprune.DependencyGraph.from_model(model, example_inputs("residual")[0].to("meta"))
    with pytest.raises(fxprune.ArgumentError, match="meta device"):
        fxprune.plan_channels(deps, criterion="first", budget=Budget(latency_ms=1.0))
    with pytest.raises(fxprune.ArgumentError, match="runs"):
        LatencyTable.measure(_deps(), runs=0)
