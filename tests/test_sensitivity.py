from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxprune.api import prune_channels
from fxprune.capture import trace
from fxprune.errors import (
    ArgumentError,
    ArgumentTypeError,
    FrozenLayerError,
    NothingToPruneError,
    TraceError,
    UnknownNameError,
    WeightError,
)
from fxprune.masks import prunable_weights
from fxprune.models import VGG, ZOO, example_inputs, randomize
from fxprune.sensitivity import DEFAULT_SPARSITIES, Sensitivity, sensitivity
from fxprune.sparsity import prune_weights

TRIED = (0.3, 0.8)
USUAL = {
    "functional_layers",
    "multihead_attention",
    "residual",
    "several_inputs",
    "several_outputs",
    "shared_block",
    "shared_convolution",
    "spectral",
    "tied_autoencoder",
    "unet",
    "vgg",
}


def total(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Callable[[nn.Module], float]]:
    """A network, its inputs, and an evaluation so fine that any difference in the outputs shows."""
    model, inputs = randomize(ZOO[name]()).eval(), example_inputs(name, batch=4)

    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        outputs = [net(*(x[i : i + 2] for x in inputs)) for i in (0, 2)]
        return float(sum(leaf.double().sum() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)))

    return model, inputs, evaluate


def weights_of(model: nn.Module, inputs: tuple[Tensor, ...], layer: str) -> list[str]:
    return [name for name in prunable_weights(trace(model, inputs)) if layer in (name, name.rpartition(".")[0])]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in sorted(ZOO)])
def test_weights_give_the_numbers_of_the_plain_way(name: str) -> None:
    model, inputs, evaluate = total(name)
    before = copy.deepcopy(model.state_dict())
    curves = sensitivity(model, inputs, evaluate, TRIED, progress=False)
    assert curves.dense == evaluate(trace(model, inputs))
    assert [w for layer in curves.accuracy for w in weights_of(model, inputs, layer)] == list(
        prunable_weights(trace(model, inputs))
    )
    for layer, accuracies in curves:
        weights = weights_of(model, inputs, layer)
        plain = [evaluate(prune_weights(model, inputs, dict.fromkeys(weights, s))) for s in TRIED]
        assert list(accuracies) == plain, layer
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["vgg", "residual", "res2net", "shared_convolution", "functional_layers", "channel_norm"]
)
def test_channels_give_the_numbers_of_the_plain_way(name: str) -> None:
    model, inputs, evaluate = total(name)
    curves = sensitivity(model, inputs, evaluate, TRIED, kind="channels", progress=False)
    assert len(curves) > 1
    for layer, accuracies in curves:
        assert list(accuracies) == [evaluate(prune_channels(model, inputs, {layer: r})) for r in TRIED], layer


def test_outputs_are_those_of_the_plain_way() -> None:
    model, inputs, _ = total("residual")
    seen: list[Tensor] = []

    def evaluate(net: nn.Module) -> float:
        with torch.no_grad():
            seen.append(net(*inputs))
        return 0.0

    curves = sensitivity(model, inputs, evaluate, (0.5,), progress=False)
    with torch.no_grad():
        plain = [model(*inputs)] + [
            prune_weights(model, inputs, {f"{n}.weight": 0.5})(*inputs) for n in curves.accuracy
        ]
    assert len(seen) == len(plain)
    for a, b in zip(seen, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_what_comes_before_a_layer_runs_once() -> None:
    model, inputs, evaluate = total("vgg")
    counts: Counter[tuple[int, int]] = Counter()

    def count(module: nn.Conv2d, x: Tensor) -> Tensor:
        counts[module.in_channels, module.out_channels] += 1
        return original(module, x)

    original = nn.Conv2d.forward
    with mock.patch.object(nn.Conv2d, "forward", count):
        sensitivity(model, inputs, evaluate, DEFAULT_SPARSITIES, ["backbone.conv4"], progress=False)
    # Two batches: the dense run and the first point need every layer, the other eight points those from conv4 on.
    assert {layer: counts[layer] for layer in ((3, 6), (26, 26), (26, 51))} == {(3, 6): 4, (26, 26): 4, (26, 51): 20}


def test_skip_connections_cross_the_cut() -> None:
    model, inputs, evaluate = total("dense")
    layer = list(sensitivity(model, inputs, evaluate, (0.0,), progress=False).accuracy)[-3]
    curves = sensitivity(model, inputs, evaluate, (0.0, 0.9), [layer], progress=False)
    assert curves.accuracy[layer][0] == curves.dense != curves.accuracy[layer][1]


def test_a_shuffled_evaluation_gets_the_numbers_of_whole_runs() -> None:
    model, inputs, _ = total("residual")
    x = inputs[0]

    def evaluate_by(generator: torch.Generator) -> Callable[[nn.Module], float]:
        def evaluate(net: nn.Module) -> float:
            order = torch.randperm(4, generator=generator)
            with torch.no_grad():
                return float(sum((i + 1) * net(x[j : j + 1]).double().sum() for i, j in enumerate(order)))

        return evaluate

    fast = sensitivity(model, inputs, evaluate_by(torch.Generator().manual_seed(0)), TRIED, progress=False)
    evaluate = evaluate_by(torch.Generator().manual_seed(0))
    assert fast.dense == evaluate(model)
    for layer, accuracies in fast:
        assert list(accuracies) == [evaluate(prune_weights(model, inputs, {f"{layer}.weight": s})) for s in TRIED]


def recalibrate(net: nn.Module, x: Tensor) -> float:
    """Estimates the statistics of the batch norms anew before it evaluates."""
    with torch.no_grad():
        net.train()
        net(x)
        net.eval()
        return float(net(x).double().sum())


def train(net: nn.Module, x: Tensor) -> float:
    """Takes a step of training before it evaluates."""
    steps = torch.optim.SGD(net.parameters(), lr=0.01)
    net(x).square().mean().backward()
    steps.step()
    return float(net(x).detach().double().sum())


def gradient(net: nn.Module, x: Tensor) -> float:
    """Asks for a gradient of the first layer."""
    net.zero_grad()
    net(x).square().mean().backward()
    return float(next(p.grad.double().norm() for p in net.parameters() if p.grad is not None))


@pytest.mark.parametrize("evaluate", [recalibrate, train, gradient])
def test_an_evaluation_that_changes_the_network_gets_whole_runs(evaluate: Callable[[nn.Module, Tensor], float]) -> None:
    model, (x,), _ = total("vgg")
    layers = ["backbone.conv1", "backbone.conv4", "classifier"]
    curves = sensitivity(model, x, lambda net: evaluate(net, x), TRIED, layers, progress=False)
    for layer, accuracies in curves:
        plain = [evaluate(prune_weights(model, x, {f"{layer}.weight": s}), x) for s in TRIED]
        assert accuracies == pytest.approx(plain, rel=1e-6), layer


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_models(training: bool) -> None:
    model = VGG(width=0.1).train(training)
    seen = []

    def evaluate(net: nn.Module) -> float:
        seen.append([m.training for m in net.modules()])
        net.train(not training)
        with torch.no_grad():
            net(torch.zeros(2, 3, 32, 32))
        return 0.0

    sensitivity(model, torch.zeros(2, 3, 32, 32), evaluate, (0.5, 0.6), ["backbone.conv3"], progress=False)
    assert all(all(mode is training for mode in modes) for modes in seen)
    assert all(m.training is training for m in model.modules())


def test_a_network_with_masks_keeps_them() -> None:
    model, inputs, evaluate = total("functional_layers")
    sparse = prune_weights(model, inputs, 0.5)
    curves = sensitivity(sparse, inputs, evaluate, (0.1, 0.9), progress=False)
    assert curves.dense == evaluate(sparse)
    for layer, accuracies in curves:
        assert accuracies[0] == curves.dense
        assert accuracies[1] == evaluate(prune_weights(sparse, inputs, {layer: 0.9}))


@pytest.mark.parametrize("limit", [0, 20_000])
def test_little_memory_gives_the_same_numbers(limit: int) -> None:
    model, inputs, evaluate = total("residual")
    assert sensitivity(model, inputs, evaluate, TRIED, progress=False, cache_bytes=limit) == sensitivity(
        model, inputs, evaluate, TRIED, progress=False
    )


def test_the_result_is_a_value() -> None:
    model, inputs, evaluate = total("vgg")
    curves = sensitivity(model, inputs, evaluate, layers=["classifier", "backbone.conv1"], progress=False)
    assert isinstance(curves, Sensitivity)
    assert curves.sparsities == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert curves.kind == "weights"
    assert [layer for layer, _ in curves] == ["backbone.conv1", "classifier"], "in the order of the network"
    assert all(len(accuracies) == 9 for _, accuracies in curves)
    with pytest.raises(dataclasses.FrozenInstanceError):
        curves.dense = 1.0
    with pytest.raises(TypeError):
        curves.accuracy["classifier"] = ()


def test_accuracy_can_be_a_tensor_of_one_element() -> None:
    model, inputs, _ = total("vgg")
    curves = sensitivity(model, inputs, lambda net: torch.tensor([3]), (0.5,), ["classifier"], progress=False)
    assert curves.accuracy["classifier"] == (3.0,)


def test_the_progress_bar_counts_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs, evaluate = total("vgg")
    sensitivity(model, inputs, evaluate, TRIED, ["backbone.conv6", "classifier"])
    assert "5/5" in capsys.readouterr().err
    sensitivity(model, inputs, evaluate, TRIED, ["classifier"], progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsities": (0.5, 1.2)}, ArgumentError, r"each of sparsities must lie in \[0, 1\].*not 1\.2"),
        ({"sparsities": (float("nan"),)}, ArgumentError, r"\[0, 1\].*not nan"),
        ({"sparsities": ()}, ArgumentError, "sparsities is empty"),
        ({"sparsities": 0.5}, ArgumentTypeError, r"sparsities must be a sequence of numbers, not 0\.5: write \[0\.5\]"),
        ({"sparsities": ("half",)}, ArgumentTypeError, "'half'"),
        ({"sparsities": (0.5, 1.0), "kind": "channels"}, ArgumentError, r"must lie in \[0, 1\), not 1\.0"),
        ({"kind": "filters"}, ArgumentError, "kind must be 'weights' or 'channels', not 'filters'"),
        (
            {"layers": ["backbone.conv8"]},
            UnknownNameError,
            r"no layer 'backbone\.conv8' with weights; nearest: 'back",
        ),
        (
            {"layers": ["conv1"], "kind": "channels"},
            UnknownNameError,
            r"no layer 'conv1' with channels; .*'backbone\.conv",
        ),
        (
            {"layers": ["classifier"], "kind": "channels"},
            FrozenLayerError,
            r"channels of 'classifier' cannot be removed\.(.|\n)*output",
        ),
        ({"layers": []}, ArgumentError, "layers is empty"),
        ({"layers": "classifier"}, ArgumentTypeError, r"write \['classifier'\]"),
        ({"evaluate": 0.9}, ArgumentTypeError, r"evaluate must be a function .* not 0\.9"),
        ({"evaluate": lambda net: None}, ArgumentTypeError, r"must return the accuracy .* returned None \(NoneType\)"),
        ({"evaluate": lambda net: [1.0]}, ArgumentTypeError, r"returned \[1\.0\] \(list\)"),
    ],
)
def test_bad_arguments_are_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"evaluate": lambda net: 0.5, "progress": False, **options}
    with pytest.raises(error, match=message):
        sensitivity(VGG(width=0.1), torch.zeros(1, 3, 32, 32), **options)


def test_bad_models_are_errors() -> None:
    def evaluate(net: nn.Module) -> float:
        return 0.5

    with pytest.raises(NothingToPruneError, match="there is neither a convolution nor a linear layer"):
        sensitivity(nn.ReLU(), torch.zeros(1, 3), evaluate, progress=False)
    with pytest.raises(NothingToPruneError, match="there is no layer with channels"):
        sensitivity(nn.ReLU(), torch.zeros(1, 3), evaluate, kind="channels", progress=False)
    with pytest.raises(NothingToPruneError, match=r"no layer that can be pruned: '0': .*output"):
        sensitivity(nn.Sequential(nn.Linear(3, 3)), torch.zeros(1, 3), evaluate, kind="channels", progress=False)
    with pytest.raises(TraceError, match=r"1, 4, 32, 32"):
        sensitivity(VGG(width=0.1), torch.zeros(1, 4, 32, 32), evaluate, progress=False)
    model = VGG(width=0.1)
    with torch.no_grad():
        model.classifier.weight[0] = torch.nan
    for kind in ("weights", "channels"):
        with pytest.raises(WeightError, match="'classifier"):
            sensitivity(model, torch.zeros(1, 3, 32, 32), evaluate, kind=kind, progress=False)


def test_an_error_of_the_evaluation_is_its_own() -> None:
    def evaluate(net: nn.Module) -> float:
        raise OSError("the images are gone")

    with pytest.raises(OSError, match="the images are gone"):
        sensitivity(VGG(width=0.1), torch.zeros(1, 3, 32, 32), evaluate, progress=False)


@pytest.mark.gpu
def test_the_gpu_gives_the_numbers_of_the_plain_way() -> None:
    model = randomize(VGG(width=0.25)).eval().cuda()
    batches = [torch.randn(32, 3, 32, 32, device="cuda") for _ in range(2)]

    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        return float(sum(net(x).double().sum() for x in batches))

    curves = sensitivity(model, batches[0][:1], evaluate, TRIED, progress=False)
    for layer, accuracies in curves:
        plain = [evaluate(prune_weights(model, batches[0][:1], {f"{layer}.weight": s})) for s in TRIED]
        assert accuracies == pytest.approx(plain, rel=1e-4)


def test_a_group_that_can_lose_nothing_has_no_curve() -> None:
    class Tied(nn.Module):
        """All channels of the second layer go together, so that one of them holds them all."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 8, 3)
            self.tied = nn.Conv2d(8, 6, 1)
            self.last = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tied(self.one(x))
            return self.last(x + x.roll(1, 1))

    curves = sensitivity(
        Tied(), torch.rand(1, 3, 8, 8), lambda net: 0.5, sparsities=(0.5, 0.9), kind="channels", progress=False
    )
    assert "one" in curves.accuracy
    assert "tied" not in curves.accuracy
