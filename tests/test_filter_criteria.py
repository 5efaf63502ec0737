"""Criteria by weights beyond the readers' and makers' norms, each against a loop over single weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.criteria import BatchNormScale, RandomScore, unit_scores
from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, WeightError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.planning import plan_channels
from fxprune.vocabulary import Axis

NETWORKS = ("residual", "dense", "resnext", "inverted_residual", "multihead_attention", "grouped_transposed", "prelu")


@cache
def case(name: str) -> tuple[nn.Module, DependencyGraph]:
    model = randomize(ZOO[name]()).double()
    return model, DependencyGraph.from_model(model, tuple(x.double() for x in example_inputs(name)))


def slices(deps: DependencyGraph, roles: set[str]) -> Iterator[tuple[int, Axis, Tensor]]:
    """Every channel of every axis: its unit, and the slice of the weight that belongs to it."""
    structure = deps.structure
    for axis in {use.axis: None for use in structure.recorder.uses if use.role in roles}:
        tensor = structure.recorder.original(axis.tensor).detach()
        rows = len(tensor) // axis.groups
        for channel, label in enumerate(structure.recorder.axes[axis].tolist()):
            block, column = divmod(channel, tensor.shape[axis.dim])
            part = tensor if axis.groups == 1 else tensor[block * rows : (block + 1) * rows]
            yield int(structure.unit[label]), axis, part.select(axis.dim, column)


def free(deps: DependencyGraph) -> list[int]:
    return np.flatnonzero(deps.structure.group >= 0).tolist()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("power", [1, 2])
def test_group_norms_run_over_makers_followers_and_readers(name: str, power: int) -> None:
    model, deps = case(name)
    parameters = dict(model.named_parameters())
    total = np.zeros(deps.structure.units)
    for unit, axis, part in slices(deps, {"producer", "follower", "consumer"}):
        if axis.tensor in parameters:  # running statistics are none
            total[unit] += sum(abs(w) ** power for w in part.reshape(-1).tolist())
    scores = unit_scores(deps.structure, (), f"group-l{power}")
    np.testing.assert_allclose(scores[free(deps)], total[free(deps)] ** (1 / power), rtol=1e-12)


def test_what_a_unit_of_a_residual_network_consists_of() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)
            self.b = nn.Conv2d(3, 4, 1, bias=False)
            self.deep = nn.Conv2d(4, 4, 3, groups=4)
            self.read = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.deep(self.norm(self.a(x)) + self.b(x)).mean((2, 3)))

    m = randomize(Block()).double()
    deps = DependencyGraph.from_model(m, torch.zeros(1, 3, 6, 6).double())
    expected = []
    for c in range(4):
        parts = [m.a.weight[c], m.a.bias[c], m.norm.weight[c], m.norm.bias[c], m.b.weight[c]]
        parts += [m.deep.weight[c], m.deep.bias[c], m.read.weight[:, c]]  # type: ignore[index]
        expected.append(math.sqrt(sum(float((p.detach() ** 2).sum()) for p in parts)))
    found = unit_scores(deps.structure, (), "group-l2")[deps.structure.members[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_fpgm_is_the_sum_of_distances_within_the_layer(name: str) -> None:
    _, deps = case(name)
    layers: dict[Axis, list[tuple[int, Tensor]]] = {}
    for unit, axis, part in slices(deps, {"producer"}):
        layers.setdefault(axis, []).append((unit, part.reshape(-1)))
    total = np.zeros(deps.structure.units)
    for filters in layers.values():
        for unit, one in filters:
            total[unit] += sum(float((one - other).norm()) for _, other in filters)
    scores = unit_scores(deps.structure, (), "fpgm")
    np.testing.assert_allclose(scores[free(deps)], total[free(deps)], rtol=1e-6)


def test_fpgm_removes_what_the_others_can_stand_in_for() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Conv2d(5, 1, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([9.0, 1.0, 1.1, -9.0, 0.1]).reshape(5, 1, 1, 1))
    deps = DependencyGraph.from_model(model, torch.zeros(1, 1, 4, 4))
    assert plan_channels(deps, 0.4, "fpgm").layers["0"].outputs == (0, 3, 4)
    assert plan_channels(deps, 0.4, "output-l2").layers["0"].outputs == (0, 2, 3)


@pytest.mark.parametrize("name", ["residual", "dense", "resnext", "inverted_residual", "grouped_shuffle"])
def test_bn_scale_is_the_mean_over_the_batch_norms_that_a_channel_passes(name: str) -> None:
    model, deps = case(name)
    norms = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, _BatchNorm)}
    found: dict[int, list[float]] = {}
    for unit, axis, part in slices(deps, {"follower"}):
        if axis.tensor in norms:
            found.setdefault(unit, []).append(abs(float(part)))
    scores = unit_scores(deps.structure, (), "bn-scale")
    compared = 0
    for members in deps.structure.members:
        if all(unit in found for unit in members.tolist()):
            expected = [np.mean(found[unit]) for unit in members.tolist()]
            np.testing.assert_allclose(scores[members], expected, rtol=1e-12)
            compared += 1
    assert compared > 0


def test_a_batch_norm_as_a_function_counts() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)
            self.scale = nn.Parameter(torch.tensor([0.5, -3.0, 0.1, 2.0, -0.2]))
            self.shift = nn.Parameter(torch.full((5,), 9.0))
            self.register_buffer("mean", torch.zeros(5))
            self.register_buffer("variance", torch.ones(5))
            self.out = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.batch_norm(self.conv(x), self.mean, self.variance, self.scale, self.shift)
            return self.out(x)

    deps = DependencyGraph.from_model(Functional(), torch.zeros(2, 3, 4, 4))
    scores = unit_scores(deps.structure, (), "bn-scale")[deps.structure.members[0]]
    np.testing.assert_allclose(scores, [0.5, 3.0, 0.1, 2.0, 0.2], rtol=1e-6)


def half_normed() -> tuple[nn.Sequential, DependencyGraph]:
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)))
    return model, DependencyGraph.from_model(model, torch.zeros(1, 3, 4, 4))


def test_where_there_is_no_batch_norm_the_readers_count_on_its_scale() -> None:
    model, deps = half_normed()
    scores = unit_scores(deps.structure, (), "bn-scale")
    scale = model.get_parameter("1.weight").detach().abs().numpy()
    first, second = deps.structure.members
    np.testing.assert_allclose(scores[first], scale, rtol=1e-6)
    readers = model.get_parameter("3.weight").detach()[:, :, 0, 0].norm(dim=0).numpy()
    np.testing.assert_allclose(scores[second], readers / readers.mean() * scale.mean(), rtol=1e-6)


def test_without_any_batch_norm_there_is_nothing_to_go_by() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1))
    deps = DependencyGraph.from_model(model, torch.zeros(1, 3, 4, 4))
    with pytest.raises(ArgumentError, match="passes a batch norm, so 'bn-scale' has nothing to go by"):
        plan_channels(deps, 0.5, "bn-scale")
    deps = half_normed()[1]
    with pytest.raises(ArgumentError, match="nothing to go by"):
        plan_channels(deps, {"2": 0.5}, BatchNormScale())


def test_slimming_has_one_threshold_for_all_layers() -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)]
    model = randomize(nn.Sequential(*layers))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]))
        model.get_parameter("3.weight").copy_(torch.tensor([0.1, 0.2, -0.3, 2.5]))
    plan = plan_channels(DependencyGraph.from_model(model, torch.zeros(1, 3, 4, 4)), 0.5, "bn-scale", scope="global")
    assert plan.layers["0"].outputs == (1, 2, 3)
    assert plan.layers["2"].outputs == (3,)


def test_random_scores_follow_their_seed_and_leave_the_generators_alone() -> None:
    _, deps = case("residual")
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    draws = [unit_scores(deps.structure, (), RandomScore(seed)) for seed in (0, 1, 1)]
    assert np.random.get_state()[1].tolist() == before
    assert np.array_equal(unit_scores(deps.structure, (), "random"), draws[0])
    assert np.array_equal(draws[1], draws[2])
    assert not np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize("criterion", ["group-l1", "group-l2", "fpgm", "bn-scale"])
def test_values_that_cannot_be_ranked_name_the_tensor(criterion: str) -> None:
    model, deps = half_normed()
    name = "1.weight" if criterion == "bn-scale" else "0.weight"
    with torch.no_grad():
        model.get_parameter(name)[1] = math.nan
    with pytest.raises(WeightError, match=f"'{name}' of shape"):
        plan_channels(deps, 0.5, criterion)
    plan_channels(deps, {"2": 0.5}, "fpgm")


def test_the_second_factor_of_a_bilinear_layer_is_read_along_the_last_dimension() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)
            self.pair = nn.Bilinear(4, 5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(self.a(x), self.b(x))

    model = randomize(Pair()).double()
    deps = DependencyGraph.from_model(model, torch.zeros(2, 3).double())
    scores = unit_scores(deps.structure, (), "input-l2")
    weight = model.pair.weight.detach()
    for number, dim in ((0, 1), (1, 2)):
        expected = [float(weight.select(dim, c).norm()) for c in range(weight.shape[dim])]
        np.testing.assert_allclose(scores[deps.structure.members[number]], expected, rtol=1e-12)
