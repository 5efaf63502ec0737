"""The lab's steps on CUDA: the same plans, the same numbers as on the CPU, and everything stays on its device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxprune import (
    DependencyGraph,
    finalize,
    fine_tune,
    plan_channels,
    plan_dead_channels,
    profile,
    prune_channels,
    prune_weights,
    recover,
    recovery_curves,
    trace,
    verify,
)
from fxprune.finetuning import accuracy
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.passes import ChannelSorting

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
NAMES = ["vgg", "residual", "resnext", "channel_shuffle", "unet", "self_attention", "convnext", "functional_layers"]
NAMES += ["multihead_attention", "fixed_view", "dropout", "tied_autoencoder", "weight_standardized", "constants"]
LIMIT = 1e-10


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Without TensorFloat-32, whose ten bits would hide or fake a difference."""
    saved = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = saved


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """A network on the CPU, the same on CUDA, and inputs on the CPU."""
    model = randomize(ZOO[name]()).to(dtype).eval()
    return model, copy.deepcopy(model).to(CUDA), tuple(x.to(dtype) for x in example_inputs(name))


def moved(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.to(CUDA) for x in inputs)


def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [v.cpu() for v in tree_leaves(model(*inputs)) if isinstance(v, Tensor)]


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max() / x.double().abs().max()) for x, y in zip(a, b, strict=True))


def devices(model: nn.Module) -> set[str]:
    return {t.device.type for t in [*model.parameters(), *model.buffers()]}


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_those_of_the_cpu_and_results_agree(name: str) -> None:
    model, on_cuda, inputs = pair(name)
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    plan_cuda = plan_channels(DependencyGraph.from_model(on_cuda, moved(inputs)), 0.5)
    assert plan_cuda.layers == plan.layers
    small, small_cuda = plan.apply(model), plan_cuda.apply(on_cuda)
    assert devices(small_cuda) == {CUDA.type}
    assert devices(small) == {"cpu"}
    assert small_cuda.code == small.code or name == "constants"  # which names the device
    assert difference(outputs(small, inputs), outputs(small_cuda, moved(inputs))) <= 1e-9
    for key, value in small.state_dict().items():
        assert torch.equal(value, small_cuda.state_dict()[key].cpu()), key


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_proven_on_cuda(name: str) -> None:
    _, model, inputs = pair(name, torch.float32)
    before = copy.deepcopy(model)
    plan = plan_channels(DependencyGraph.from_model(model, moved(inputs)), 0.5)
    proof = verify(model, plan, moved(inputs))
    assert proof.max_relative_error <= LIMIT or not proof.exact
    assert devices(model) == {CUDA.type}
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_plan_made_on_one_device_applies_on_the_other() -> None:
    model, on_cuda, inputs = pair("residual")
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.5)
    assert devices(plan.apply(on_cuda)) == {CUDA.type}
    assert difference(outputs(plan.apply(model), inputs), outputs(plan.apply(on_cuda), moved(inputs))) <= 1e-9
    back = plan_channels(DependencyGraph.from_model(on_cuda, moved(inputs)), 0.5).apply(model)
    assert devices(back) == {"cpu"}


def test_a_result_moves_between_devices() -> None:
    model, _, inputs = pair("dropout")
    small = prune_channels(model, inputs, 0.5)
    expected = outputs(small, inputs)
    assert difference(expected, outputs(copy.deepcopy(small).to(CUDA), moved(inputs))) <= 1e-9
    assert difference(expected, outputs(small.to(CUDA).cpu(), inputs)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_channels_last(dtype: torch.dtype) -> None:
    model = randomize(VGG(0.25)).eval().to(CUDA, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32, device=CUDA, dtype=dtype).to(memory_format=torch.channels_last)
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.3)
    small = plan.apply(model)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small.get_parameter("backbone.conv3.weight").is_contiguous(memory_format=torch.channels_last)
    assert small(x).isfinite().all()
    assert verify(model, plan, x).max_relative_error <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_sorting_changes_nothing_on_cuda(name: str) -> None:
    _, model, inputs = pair(name)
    result = ChannelSorting()(trace(model, moved(inputs)))
    assert result.modified
    assert devices(result.graph_module) == {CUDA.type}
    assert difference(outputs(model, moved(inputs)), outputs(result.graph_module, moved(inputs))) <= 1e-9


def test_the_labs_figures_on_cuda() -> None:
    model = randomize(VGG()).eval().to(CUDA)
    x = torch.randn(1, 3, 32, 32, device=CUDA)
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.3, exclude=("backbone.conv7",))
    small = plan.apply(model)
    dense, pruned = profile(model, x, latency=True, runs=20), profile(small, x, latency=True, runs=20)
    assert (dense.parameters, dense.macs) == (9_228_362, 606_164_480)
    assert (pruned.parameters, pruned.macs) == (5_013_666, 305_388_064)
    for measured in (dense, pruned):
        assert measured.latency is not None
        assert 0 < measured.latency < 1
        assert measured.latency_spread is not None
    assert devices(model) == devices(small) == {CUDA.type}
    assert verify(model, plan, x).max_relative_error <= LIMIT


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def data(batches: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Images whose class is the brightest of four stripes; on the CPU, as a loader gives them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(batches):
        targets = torch.randint(4, (32,), generator=generator)
        images = torch.randn(32, 3, 16, 16, generator=generator)
        for image, target in zip(images, targets.tolist(), strict=True):
            image[:, 4 * target : 4 * target + 4] += 1.5
        found.append((images, targets))
    return found


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = VGG(0.1, num_classes=4)
    return fine_tune(model, data(), epochs=4, lr=0.05, device=CUDA, progress=False)


def test_training_on_cuda_learns(trained: nn.Module) -> None:
    assert devices(trained) == {CUDA.type}
    assert accuracy(trained, data()) > 0.9


def test_a_pruned_network_recovers_on_cuda(trained: nn.Module) -> None:
    x = data(1)[0][0].to(CUDA)
    small = prune_channels(trained, x, 0.5)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    tuned = fine_tune(small, data(), evaluate=lambda m: accuracy(m, data()), epochs=2, lr=0.02, progress=False)
    assert devices(tuned) == {CUDA.type}
    assert accuracy(tuned, data()) > 0.9
    assert accuracy(tuned, data()) >= accuracy(small, data())
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_masks_hold_on_cuda(trained: nn.Module) -> None:
    x = data(1)[0][0].to(CUDA)
    sparse = prune_weights(trained, x, 0.7)
    assert devices(sparse) == {CUDA.type}
    tuned = fine_tune(sparse, data(), epochs=1, lr=0.02, progress=False)
    dense = finalize(tuned)
    assert devices(dense) == {CUDA.type}
    assert set(dense.state_dict()) == set(trained.state_dict())
    weight, pruned = (
        dense.get_parameter("backbone.conv5.weight"),
        finalize(sparse).get_parameter("backbone.conv5.weight"),
    )
    assert float((weight == 0).float().mean()) == pytest.approx(0.7, abs=0.001)
    assert torch.equal(weight == 0, pruned == 0)
    assert not torch.equal(weight, pruned)
    assert difference(outputs(tuned.eval(), (x,)), outputs(dense.eval(), (x,))) <= 1e-5
    assert profile(dense, x).sparsity == pytest.approx(0.7, abs=0.02)


def test_one_step_on_cuda_is_one_step_on_the_cpu() -> None:
    model, on_cuda, inputs = pair("residual")
    results = []
    for network, given in ((model, inputs), (on_cuda, moved(inputs))):
        small = prune_channels(network, given, 0.5).train()
        small(*given).square().sum().backward()
        torch.optim.SGD(small.parameters(), 0.01).step()
        results.append({key: value.cpu() for key, value in small.state_dict().items()})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["vgg", "residual", "dense", "resnext", "grouped_transposed"])
def test_recovery_gives_the_same(name: str) -> None:
    model, on_cuda, inputs = pair(name)
    plan = plan_channels(DependencyGraph.from_model(model, inputs), 0.4)
    expected = recover(plan.apply(model), model, [(inputs, None)])
    found = recover(plan.apply(on_cuda), on_cuda, [(moved(inputs), None)])
    assert [rung.kept for rung in found.rungs] == [rung.kept for rung in expected.rungs]
    assert found.rungs[-1].error == pytest.approx(expected.rungs[-1].error, rel=1e-4)
    assert all(tensor.is_cuda for tensor in found.network.state_dict().values())


def test_curves_and_criterion_give_the_same() -> None:
    model, on_cuda, inputs = pair("residual")
    expected = recovery_curves(DependencyGraph.from_model(model, inputs), [(inputs, None)])
    found = recovery_curves(DependencyGraph.from_model(on_cuda, moved(inputs)), [(moved(inputs), None)])
    for layer, points in expected.accuracy.items():
        assert found.accuracy[layer] == pytest.approx(points, abs=1e-4)


def test_dead_channels_are_found_and_their_constants_absorbed() -> None:
    _, on_cuda, inputs = pair("vgg")
    with torch.no_grad():
        for parameter in on_cuda.parameters():
            parameter[::2] = 0
    plan = plan_dead_channels(DependencyGraph.from_model(on_cuda, moved(inputs)))
    assert not plan.kept.all()
    assert verify(on_cuda, plan, moved(inputs)).max_relative_error < LIMIT
