"""Criteria that look at data, each against what zeroing one channel after the other gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fxprune.criteria import ActivationMean, Apoz, Obd, Taylor, UnitCriterion, comparable, unit_scores
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, FxpruneError, TraceError, WeightError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.nested import leaves
from fxprune.planning import plan_channels
from fxprune.reads import AtReads, Site, read_sites
from fxprune.sensitivity import sensitivity

NETWORKS = ("residual", "dense", "resnext", "inverted_residual", "multihead_attention", "grouped_shuffle", "bottleneck")


def loss_of(output: Any, targets: Any) -> Tensor:
    """Smooth, and of a different size for each sample; targets are factors."""
    return sum(((y.flatten(1).sin() * targets[:, None]).square()).sum(1).mean() for y in leaves(output))


@cache
def case(name: str) -> tuple[nn.Module, DependencyGraph, list[tuple[Any, Tensor]]]:
    model = randomize(ZOO[name]()).double().eval()
    inputs = tuple(x.double() for x in example_inputs(name, batch=3))
    generator = torch.Generator().manual_seed(1)
    second = tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs)
    factors = torch.rand(3, generator=generator, dtype=torch.float64)
    return model, DependencyGraph.from_model(model, inputs), [(inputs, factors), (second, factors + 1)]


def scored(deps: DependencyGraph, criterion: UnitCriterion) -> tuple[np.ndarray, np.ndarray]:
    """All scores, and the units that a ratio applies to."""
    return unit_scores(deps.structure, (), criterion), np.flatnonzero(deps.structure.group >= 0)


def scaled_loss(deps: DependencyGraph, unit: int, factor: float, inputs: Any, targets: Tensor) -> float:
    """The loss with one unit multiplied wherever it is read, one factor of every product."""
    sites = {
        node: [site for site in found if site.position == found[0].position]
        for node, found in read_sites(deps.structure).items()
    }

    def scale(site: Site, value: Tensor) -> Tensor:
        return torch.where(site.like(value) == unit, value * factor, value)

    with torch.no_grad():
        return float(loss_of(AtReads(deps.gm, sites, scale).run(*inputs), targets))


def slope(deps: DependencyGraph, unit: int, inputs: Any, targets: Tensor) -> float:
    """A central difference, narrow enough for rectifiers to stay on their side."""
    h = 1e-6
    return (scaled_loss(deps, unit, 1 + h, inputs, targets) - scaled_loss(deps, unit, 1 - h, inputs, targets)) / (2 * h)


@pytest.mark.parametrize("name", NETWORKS)
def test_taylor_is_the_squared_slope_of_the_loss_by_a_factor_before_the_channel(name: str) -> None:
    _, deps, batches = case(name)
    scores, units = scored(deps, Taylor(batches, loss_of))
    for unit in units[:: max(1, len(units) // 6)].tolist():
        expected = np.mean([slope(deps, unit, *batch) ** 2 for batch in batches])
        assert scores[unit] == pytest.approx(expected, rel=1e-4, abs=1e-12 * scores.max())


@pytest.mark.parametrize("name", ["residual", "resnext", "dense"])
def test_taylor_is_the_sum_of_weight_times_gradient_over_the_readers(name: str) -> None:
    """As the paper has it, slice by slice."""
    model, deps, batches = case(name)
    scores, units = scored(deps, Taylor(batches, loss_of))
    expected = np.zeros(deps.structure.units)
    for inputs, targets in batches:
        twin = copy.deepcopy(model)
        loss_of(twin(*inputs), targets).backward()
        total = np.zeros(deps.structure.units)
        for axis in {use.axis for use in deps.structure.recorder.uses if use.role == "consumer"}:
            weight = twin.get_parameter(axis.tensor)
            product = (weight * weight.grad).detach()
            rows = len(weight) // axis.groups
            for channel, label in enumerate(deps.structure.recorder.axes[axis].tolist()):
                block, column = divmod(channel, weight.shape[axis.dim])
                part = product[block * rows : (block + 1) * rows].select(axis.dim, column)
                total[deps.structure.unit[label]] += float(part.sum())
        expected += total**2 / len(batches)
    np.testing.assert_allclose(scores[units], expected[units], rtol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_obd_is_half_the_mean_squared_slope_of_every_sample(name: str) -> None:
    _, deps, batches = case(name)
    scores, units = scored(deps, Obd(batches, loss_of))
    for unit in units[:: max(1, len(units) // 3)].tolist():
        slopes = []
        for inputs, targets in batches:
            for i in range(3):
                slopes.append(slope(deps, unit, tuple(x[i : i + 1] for x in inputs), targets[i : i + 1]))
        assert scores[unit] == pytest.approx(np.mean(np.square(slopes)) / 2, rel=1e-4, abs=1e-12 * scores.max())


def activations(deps: DependencyGraph, batches: list[Any]) -> Iterator[tuple[int, Tensor]]:
    """Every unit with all that is read of it, channel by channel."""
    data = {n.name for n in deps.gm.graph.nodes if n.op == "placeholder"}
    for node in deps.gm.graph.nodes:
        if data & {n.name for n in node.all_input_nodes}:
            data.add(node.name)
    sites = {
        node.name: [s for s in found if node.args[s.position].name in data]
        for node in deps.gm.graph.nodes
        if (found := read_sites(deps.structure).get(node.name))
    }
    seen: list[tuple[int, Tensor]] = []

    def look(site: Site, value: Tensor) -> Tensor:
        units = site.like(value)
        wide = units.expand(value.shape)
        seen.extend((int(unit), value[wide == unit]) for unit in units.unique())
        return value

    for inputs, _ in batches:
        with torch.no_grad():
            AtReads(deps.gm, sites, look).run(*inputs)
    yield from seen


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_are_averaged_wherever_a_channel_is_read(name: str) -> None:
    _, deps, batches = case(name)
    seen = list(activations(deps, batches))
    means, units = scored(deps, ActivationMean(batches))
    shares, _ = scored(deps, Apoz(batches))
    for unit in units[:: max(1, len(units) // 12)].tolist():
        values = torch.cat([found for other, found in seen if other == unit])
        assert means[unit] == pytest.approx(float(values.abs().mean()), rel=1e-10)
        assert shares[unit] == pytest.approx(1 - float((values == 0).double().mean()), abs=1e-12)
    assert len(set(means[units].tolist())) > len(units) / 2


def test_activations_of_a_convolution_are_those_behind_its_rectifier() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    deps = DependencyGraph.from_model(model, x)
    hidden = model[0](x).relu()
    scores, units = scored(deps, ActivationMean([x]))
    np.testing.assert_allclose(scores[units], hidden.mean((0, 2, 3)).detach(), rtol=1e-12)
    scores, units = scored(deps, Apoz([x]))
    np.testing.assert_allclose(scores[units], (hidden > 0).double().mean((0, 2, 3)), rtol=1e-12)


def test_the_factor_of_a_product_that_is_a_parameter_is_no_activation() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 7)
            self.matrix = nn.Parameter(torch.randn(7, 3) * 1e6)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).relu() @ self.matrix

    model, x = Product().double(), torch.randn(4, 5).double()
    deps = DependencyGraph.from_model(model, x)
    scores, units = scored(deps, ActivationMean([x]))
    np.testing.assert_allclose(scores[units], model.first(x).relu().mean(0).detach(), rtol=1e-12)


def test_attention_is_gated_once_where_queries_meet_keys() -> None:
    """What a channel of queries and keys adds to the scores is linear in one gate."""
    _, deps, batches = case("fused_attention")
    scores, units = scored(deps, Taylor(batches[:1], loss_of))
    query = next(n for n, group in enumerate(deps.groups) if "attention.query" in group.producers)
    members = deps.structure.members[query]
    assert set(members.tolist()) <= set(units.tolist())
    for unit in members[::5].tolist():
        assert scores[unit] == pytest.approx(slope(deps, unit, *batches[0]) ** 2, rel=1e-4)


# What stays as it was ---------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Draws random numbers even in evaluation mode, and keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.c(F.dropout(self.b(x), 0.5, training=True).mean((2, 3)))


def labelled(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(count)]


@pytest.mark.parametrize("kind", [Taylor, Obd, ActivationMean, Apoz])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_changes(kind: Any, fails: bool) -> None:
    model = Counting().train()
    model.norm.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.b.requires_grad_(False)
    batches: list[Any] = [*labelled(), torch.zeros(1, 5)] if fails else labelled()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    deps = DependencyGraph.from_model(model, batches[0][0])

    if fails:
        with pytest.raises(FxpruneError) as caught:
            plan_channels(deps, 0.5, kind(batches))
        assert caught.value is not None  # its traceback still holds everything that ran
    else:
        plan_channels(deps, 0.5, kind(DataLoader(TensorDataset(*labelled(1)[0]), 2, shuffle=True)))
        torch.set_rng_state(state)
        plan_channels(deps, 0.5, kind(DataLoader(TensorDataset(*[t.clone() for t in batches[0]]), 2, shuffle=True)))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert [p.requires_grad for p in model.b.parameters()] == [False, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_the_caller_has_switched_off(around: Any) -> None:
    batches = labelled()
    deps = DependencyGraph.from_model(Counting(), batches[0][0])
    with around():
        plan = plan_channels(deps, 0.5, Taylor(batches))
    assert len(plan.layers["a"].outputs or ()) == 4


def test_a_generator_lasts_for_one_plan() -> None:
    model = randomize(ZOO["channel_shuffle"]())
    inputs = example_inputs("channel_shuffle")
    deps = DependencyGraph.from_model(model, inputs)
    criterion = Taylor(((inputs, torch.tensor([0, 1])) for _ in range(1)), lambda y, _: y.square().mean())
    plan_channels(deps, 0.5, criterion)
    with pytest.raises(ArgumentError, match="a generator that has been used up"):
        plan_channels(deps, 0.5, criterion)


def test_data_is_looked_at_once_for_all_points_of_a_sensitivity_scan() -> None:
    batches, seen = labelled(), []

    def count() -> Iterator[Any]:
        seen.append(1)
        yield from batches

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return count()

    sensitivity(
        Counting(), batches[0][0], lambda net: 0.5, (0.2, 0.5), kind="channels", progress=False,
        criterion=Taylor(Batches()),
    )  # fmt: skip
    assert seen == [1]


def test_the_sum_over_tied_units_is_that_of_their_gates() -> None:
    """A structure in which units are tied later is served by what was measured before."""
    _, deps, batches = case("multihead_attention")
    whole = deps.whole_heads()
    assert whole.structure.units < deps.structure.units
    later = Taylor(batches, loss_of).prepared(deps.structure)
    mask = np.ones(whole.structure.units, dtype=bool)
    direct = Taylor(batches, loss_of).scores(whole.structure, mask)
    members = np.concatenate(whole.structure.members)
    np.testing.assert_allclose(later.scores(whole.structure, mask)[members], direct[members], rtol=1e-9)


def test_a_prepared_criterion_is_for_one_network() -> None:
    _, deps, batches = case("residual")
    prepared = ActivationMean(batches).prepared(deps.structure)
    with pytest.raises(ArgumentError, match="another network"):
        plan_channels(case("dense")[1], 0.5, prepared)


# Global ranking -------------------------------------------------------------------------------------------------------


def test_scores_that_say_so_are_ranked_together_as_they_are() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    deps = DependencyGraph.from_model(model, torch.zeros(1, 3, 4, 4))
    small, large = iter(range(1, 9)), iter(range(100, 108))

    class Given(UnitCriterion):
        def scores(self, structure: Any, ranked: Any) -> Any:
            scores = np.zeros(structure.units)
            scores[structure.members[0]] = np.arange(1, 9)
            scores[structure.members[1]] = np.arange(100, 108)
            return scores

    class Comparable(Given):
        comparable = True

    plan = plan_channels(deps, 0.5, Comparable(), scope="global")
    assert [len(plan.layers[n].outputs or range(8)) for n in ("0", "2")] == [1, 8]
    plan = plan_channels(deps, 0.5, Given(), scope="global")
    assert len(plan.layers["0"].outputs or ()) > 1

    def function(group: Any) -> list[float]:
        return [float(next(small if group.name == "0" else large)) for _ in range(8)]

    function.comparable = True  # type: ignore[attr-defined]
    plan = plan_channels(deps, 0.5, function, scope="global")
    assert [len(plan.layers[n].outputs or range(8)) for n in ("0", "2")] == [1, 8]


def test_what_says_that_it_is_comparable() -> None:
    said = {name: comparable(name) for name in ("first", "input-l2", "group-l1", "fpgm", "bn-scale", "random")}
    assert said == {**dict.fromkeys(said, False), "bn-scale": True, "random": True}
    assert [comparable(kind([])) for kind in (Taylor, Obd, Apoz, ActivationMean)] == [True, True, True, False]


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "loss", "error", "message"),
    [
        ([], F.cross_entropy, ArgumentError, "there is no batch"),
        (5, F.cross_entropy, ArgumentTypeError, "a list or a DataLoader of batches, not int"),
        (torch.zeros(4, 3, 8, 8), F.cross_entropy, ArgumentTypeError, "not Tensor; of a single one, make a list"),
        ([torch.zeros(4, 3, 8, 8)], F.cross_entropy, ArgumentTypeError, r"a pair \(inputs, targets\), not a Tensor"),
        ([(1, 2, 3)], F.cross_entropy, ArgumentTypeError, r"not a tuple of 3; put several inputs into a tuple"),
        ([(torch.zeros(4, 5, 8, 8), torch.zeros(4).long())], F.cross_entropy, TraceError, "failed on a batch"),
        (None, lambda y, t: y, ArgumentTypeError, r"one number, not a tensor of shape \(4, 4\)"),
        (None, lambda y, t: 1.0, ArgumentTypeError, "one number, not float"),
        (None, lambda y, t: y.sum() * math.nan, ArgumentError, "the loss of a batch is nan"),
        (None, lambda y, t: y.sum().detach(), ArgumentError, "does not depend on what the network computes"),
        (None, lambda y, t: (y * 0).sum().sqrt(), ArgumentError, "the gradient of a batch's loss is NaN"),
    ],
)  # fmt: skip
def test_bad_batches_and_losses(batches: Any, loss: Any, error: type[Exception], message: str) -> None:
    deps = DependencyGraph.from_model(Counting(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(error, match=message):
        plan_channels(deps, 0.5, Taylor(labelled() if batches is None else batches, loss))


def test_samples_must_lie_along_one_dimension() -> None:
    deps = DependencyGraph.from_model(Counting(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(ArgumentError, match=r"their sizes there are \[3, 4\]"):
        plan_channels(deps, 0.5, Obd([(torch.zeros(4, 3, 8, 8), torch.zeros(3).long())]))


def test_activations_that_are_not_finite_are_refused() -> None:
    deps = DependencyGraph.from_model(Counting(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(ArgumentError, match="activations are NaN or infinite"):
        plan_channels(deps, 0.5, ActivationMean([torch.full((1, 3, 8, 8), math.inf)]))


@pytest.mark.parametrize("kind", [Taylor, ActivationMean])
def test_on_the_meta_device_there_is_nothing_to_measure(kind: Any) -> None:
    model = Counting().to("meta")
    deps = DependencyGraph.from_model(model, torch.zeros(4, 3, 8, 8, device="meta"))
    with pytest.raises(WeightError, match=r"'a\.weight' is on the meta device"):
        plan_channels(deps, 0.5, kind(labelled()))


@pytest.mark.parametrize(
    ("name", "shown"),
    [("taylor", r"Taylor\(batches, loss\)"), ("obd", "Obd"), ("apoz", r"Apoz\(batches\)"), ("activation-mean", "Act")],
)
def test_a_name_that_needs_data_says_what_to_pass(name: str, shown: str) -> None:
    deps = DependencyGraph.from_model(Counting(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(ArgumentError, match=f"pass fxprune.criteria.{shown}"):
        plan_channels(deps, 0.5, name)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Taylor, Obd])
def test_on_a_gpu_scores_are_the_same(kind: Any) -> None:
    model, _, batches = case("residual")
    inputs = tuple(x.cuda() for x in batches[0][0])
    there = DependencyGraph.from_model(copy.deepcopy(model).cuda(), inputs)
    here = DependencyGraph.from_model(model, batches[0][0])
    for criterion in (kind(batches, loss_of), ActivationMean(batches), Apoz(batches)):
        a, b = (unit_scores(deps.structure, (), criterion) for deps in (there, here))
        np.testing.assert_allclose(a[here.structure.group >= 0], b[here.structure.group >= 0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.slow
def test_every_network_can_be_measured(name: str) -> None:
    model = randomize(ZOO[name]())
    inputs = example_inputs(name)
    deps = DependencyGraph.from_model(model, inputs)

    def loss(output: Any, _: Any) -> Tensor:
        return torch.stack([v.square().mean() for v in leaves(output)]).mean()

    batches = [(inputs, torch.zeros(len(inputs[0])))]
    for criterion in (Taylor(batches, loss), ActivationMean(batches), Apoz(batches)):
        scores = partial(unit_scores, deps.structure, ())(criterion)
        assert np.isfinite(scores).all()
        assert (scores[deps.structure.group >= 0] >= 0).all()
