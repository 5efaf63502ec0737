from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxprune.capture import trace
from fxprune.errors import ArgumentError, ArgumentTypeError, TraceError, UnknownNameError, WeightError
from fxprune.masks import magnitude_mask, prunable_weights, weight_places
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.sparsity import finalize, prune_weights

PUBLISHED = dict(enumerate([0, 0.6, 0.5, 0.5, 0.5, 0.6, 0.6, 0.75]))
"""The lab's own choice of sparsities, by the number of the convolution."""


def doubled(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return randomize(ZOO[name]()).double().eval(), tuple(x.double() for x in example_inputs(name))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_close(actual: Any, expected: Any, rtol: float = 1e-10) -> None:
    for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_result_computes_what_the_model_computes_with_the_weights_zeroed(name: str) -> None:
    model, x = doubled(name)
    before = state(model)
    sparse = prune_weights(model, x, 0.5)
    zeroed = copy.deepcopy(model)
    places = weight_places(zeroed)
    with torch.no_grad():
        for weight in prunable_weights(trace(model, x)):
            value = places[weight].value
            value.copy_(torch.where(magnitude_mask(value, 0.5), value, 0))
    dense = finalize(sparse)
    assert_close(sparse(*x), zeroed(*x))
    assert_close(dense(*x), zeroed(*x))
    assert_close(copy.deepcopy(sparse)(*x), zeroed(*x))
    assert set(dense.state_dict()) <= set(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not torch.equal(tree_leaves(sparse(*x))[0], tree_leaves(model(*x))[0])


def test_the_published_sparsities_leave_the_published_size() -> None:
    model = randomize(VGG())
    sparse = prune_weights(
        model, torch.zeros(1, 3, 32, 32), {f"backbone.conv{i}.weight": s for i, s in PUBLISHED.items()}
    )
    dense = finalize(sparse)
    total = sum(p.numel() for p in dense.parameters())
    kept = sum(int(torch.count_nonzero(p)) for p in dense.parameters())
    assert total == 9_228_362
    assert f"{100 * kept / total:.2f}" == "38.48"


def test_dtype_device_memory_format_gradients_and_mode_stay() -> None:
    model = VGG(width=0.1).to(torch.bfloat16).to(memory_format=torch.channels_last)
    model.backbone.conv0.weight.requires_grad_(False)
    model.backbone.bn0.eval()
    x = torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)
    for result in (prune_weights(model, x, 0.5), finalize(prune_weights(model, x, 0.5))):
        places = weight_places(result)
        for name, parameter in model.named_parameters():
            value = places[name].value
            assert value.dtype is torch.bfloat16
            assert value.requires_grad == parameter.requires_grad
            assert value.stride() == parameter.stride()
        modes = {name: module.training for name, module in model.named_modules()}
        for name, module in result.named_modules():
            assert module.training == modes[name.partition(".parametrizations")[0]], name


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_a_pruned_weight_never_comes_back_in_fine_tuning(optimizer: Any) -> None:
    sparse = prune_weights(VGG(width=0.1), torch.zeros(1, 3, 32, 32), 0.7)
    places = {n: p for n, p in weight_places(sparse).items() if p.parametrization is not None}
    before = {name: place.value.detach().clone() for name, place in places.items()}
    steps = optimizer(sparse.parameters())
    for _ in range(3):
        steps.zero_grad()
        nn.functional.cross_entropy(sparse(torch.randn(8, 3, 32, 32)), torch.randint(10, (8,))).backward()
        for name, place in places.items():
            assert not bool(place.parametrization.original.grad[before[name] == 0].any())
        steps.step()
    for name, place in places.items():
        pruned = before[name] == 0
        assert not bool(place.value[pruned].any())
        assert not bool(place.parametrization.original[pruned].any())
        assert not bool((place.value == before[name])[~pruned].all())
    dense = finalize(sparse)
    assert all(not bool(dense.get_parameter(name)[before[name] == 0].any()) for name in places)


def test_masks_travel_with_the_state_dict() -> None:
    x = torch.randn(2, 3, 32, 32)
    sparse = prune_weights(randomize(VGG(width=0.1)).eval(), x, 0.6)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    other = prune_weights(VGG(width=0.1).eval(), x, 0.1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), sparse(x))
    mask = sparse.state_dict()["backbone.conv0.parametrizations.weight.0.mask"]
    assert int((~mask).sum()) == round(0.6 * mask.numel())


@pytest.mark.parametrize("name", ["residual", "shared_convolution", "functional_layers", "tied_autoencoder"])
def test_the_whole_network_can_be_saved(name: str) -> None:
    model, x = doubled(name)
    sparse = prune_weights(model, x, 0.5)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_close(loaded(*x), sparse(*x))
    assert_close(finalize(loaded)(*x), sparse(*x))


def test_it_compiles() -> None:
    model, x = doubled("functional_layers")
    sparse = prune_weights(model, x, 0.5)
    assert_close(torch.compile(sparse, backend="eager", fullgraph=True)(*x), sparse(*x))


def test_pruning_a_sparse_network_again_keeps_what_is_pruned() -> None:
    model, x = doubled("functional_layers")
    once = prune_weights(model, x, 0.5)
    twice = prune_weights(once, x, 0.9)
    for name, place in weight_places(twice).items():
        if place.parametrization is not None:
            assert int((place.value == 0).sum()) == round(0.9 * place.value.numel())
            assert not bool(place.value[weight_places(once)[name].value == 0].any())
    assert_close(prune_weights(twice, x, 0.1)(*x), twice(*x))
    assert_close(finalize(twice)(*x), twice(*x))


def test_example_inputs_can_be_a_mapping() -> None:
    model, (x,) = doubled("residual")
    assert_close(prune_weights(model, {"x": x}, 0.5)(x), prune_weights(model, x, 0.5)(x))


@pytest.mark.parametrize(
    ("sparsity", "error", "message"),
    [
        (1.01, ArgumentError, r"must lie in \[0, 1\].*1\.01"),
        (float("nan"), ArgumentError, r"must lie in \[0, 1\].*nan"),
        ({"classifier.weight": -1.0}, ArgumentError, r"'classifier\.weight' must lie in \[0, 1\].*-1\.0"),
        ({"classifer.weight": 0.5}, UnknownNameError, r"'classifer\.weight'; nearest: 'classifier\.weight'"),
        ("half", ArgumentTypeError, "'half'"),
    ],
)
def test_bad_sparsities_are_errors(sparsity: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune_weights(VGG(width=0.1), torch.zeros(1, 3, 32, 32), sparsity)


def test_bad_weights_and_inputs_are_errors_and_the_model_stays() -> None:
    model = VGG(width=0.1)
    with pytest.raises(TraceError, match=r"1, 4, 32, 32"):
        prune_weights(model, torch.zeros(1, 4, 32, 32), 0.5)
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.inf
    before, classes = state(model), [type(m) for m in model.modules()]
    with pytest.raises(WeightError, match=r"'classifier\.weight' holds NaN or Inf"):
        prune_weights(model, torch.zeros(1, 3, 32, 32), 0.5)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_only_a_graph_module_can_be_finalized() -> None:
    with pytest.raises(ArgumentTypeError, match="the GraphModule that prune_weights returned, not Sequential"):
        finalize(nn.Sequential(nn.Linear(1, 1)))


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    model = randomize(VGG(width=0.25)).eval()
    x = torch.randn(4, 3, 32, 32)
    on_cpu = prune_weights(model, x, 0.6)
    on_gpu = prune_weights(copy.deepcopy(model).cuda(), x.cuda(), 0.6)
    moved = copy.deepcopy(on_cpu).cuda()
    for name, tensor in on_cpu.state_dict().items():
        assert torch.equal(on_gpu.state_dict()[name].cpu(), tensor)
        assert moved.state_dict()[name].is_cuda
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), on_cpu(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved(x.cuda()).cpu(), on_cpu(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(finalize(moved)(x.cuda()), moved(x.cuda()))
