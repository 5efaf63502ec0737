"""The reference networks: the lab's figures to the last digit, and every network of the zoo in both modes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchprofile import profile_macs

from fxprune.dependency import DependencyGraph
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from fxprune.models import VGG, ZOO, DenseNet, MobileNetV2, ResNet20, example_inputs, randomize
from fxprune.planning import plan_channels
from fxprune.verification import verify

NAMES = sorted(ZOO)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def checkpoint_of_the_lab() -> dict[str, Tensor]:
    """A checkpoint with the key names and shapes that the lab publishes, written out by hand."""
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    state = {}
    for i in range(8):
        state[f"backbone.conv{i}.weight"] = torch.randn(widths[i + 1], widths[i], 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"backbone.bn{i}.{name}"] = torch.rand(widths[i + 1])
        state[f"backbone.bn{i}.num_batches_tracked"] = torch.tensor(7)
    state["classifier.weight"] = torch.randn(10, 512)
    state["classifier.bias"] = torch.randn(10)
    return state


def test_vgg_has_the_parameters_and_macs_of_the_lab() -> None:
    model = VGG().eval()
    assert parameters(model) == 9_228_362
    assert profile_macs(model, torch.rand(1, 3, 32, 32)) == 606_164_480


def test_vgg_loads_the_checkpoint_of_the_lab() -> None:
    state = checkpoint_of_the_lab()
    model = VGG()
    model.load_state_dict(state, strict=True)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_vgg_layers_come_in_the_order_of_the_lab() -> None:
    expected = ["conv0", "bn0", "relu0", "conv1", "bn1", "relu1", "pool0", "conv2", "bn2", "relu2", "conv3", "bn3"]
    expected += ["relu3", "pool1", "conv4", "bn4", "relu4", "conv5", "bn5", "relu5", "pool2", "conv6", "bn6", "relu6"]
    expected += ["conv7", "bn7", "relu7", "pool3"]
    assert [name for name, _ in VGG(0.02).backbone.named_children()] == expected


def test_vgg_computes_what_the_lab_writes_out() -> None:
    model = randomize(VGG(width=0.05)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = x
    for i in range(8):
        conv = model.get_submodule(f"backbone.conv{i}")
        bn = model.get_submodule(f"backbone.bn{i}")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        expected = nn.functional.conv2d(expected, conv.weight, padding=1)
        centred = (expected - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + 1e-5).sqrt()
        expected = (centred * bn.weight[:, None, None] + bn.bias[:, None, None]).relu()
        if i % 2 == 1:
            expected = nn.functional.max_pool2d(expected, 2)
    expected = expected.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0.25, (16, 32, 64, 64, 128, 128, 128, 128)),
        (0.001, (1,) * 8),
        (2, (128, 256, 512, 512, 1024, 1024, 1024, 1024)),
    ],
)
def test_vgg_width_scales_every_convolution(width: float, expected: tuple[int, ...]) -> None:
    model = VGG(width=width, num_classes=3)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert tuple(conv.out_channels for conv in convolutions) == expected
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf])
def test_vgg_refuses_a_width_that_is_not_positive_and_finite(width: float) -> None:
    with pytest.raises(ArgumentError, match=f"width must be positive and finite.*{width}"):
        VGG(width=width)


def test_vgg_refuses_arguments_of_the_wrong_kind() -> None:
    with pytest.raises(ArgumentTypeError, match=r"width must be a number.*'wide'"):
        VGG(width="wide")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"num_classes must be an integer.*2\.5"):
        VGG(num_classes=2.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_classes must be at least 1, not 0"):
        VGG(num_classes=0)


def test_zoo_has_the_layers_that_are_hard_to_prune() -> None:
    layers = {type(module) for make in ZOO.values() for module in make().modules()}
    assert {
        nn.ConvTranspose2d,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.InstanceNorm2d,
        nn.PReLU,
        nn.MultiheadAttention,
    } <= layers
    assert {nn.Conv1d, nn.Conv3d, nn.PixelShuffle, nn.Dropout2d} <= layers
    assert len(ZOO) >= 50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_zoo_runs_at_two_batch_sizes(name: str, training: bool) -> None:
    model = randomize(ZOO[name]()).train(training)
    assert 0 < parameters(model) < 100_000
    for batch in (2, 3):
        inputs = example_inputs(name, batch=batch)
        assert all(x.dtype == torch.float32 and x.shape[0] == batch for x in inputs)
        for output in tree_leaves(model(*inputs)):
            assert output.shape[0] == batch
            assert output.isfinite().all()
            assert 0.1 < output.std() < 100


@pytest.mark.parametrize("name", NAMES)
def test_zoo_output_depends_on_every_parameter(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    outputs = tree_leaves(model(*example_inputs(name)))
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-4, parameter_name


def test_zoo_says_what_each_network_shows() -> None:
    short = [name for name, make in ZOO.items() if len(type(make()).__doc__ or "") <= 40]
    assert short == []


def test_example_inputs_are_the_same_at_each_call() -> None:
    first, second = example_inputs("several_inputs"), example_inputs("several_inputs")
    assert [tuple(x.shape) for x in first] == [(2, 3, 16, 16), (2, 6)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_example_inputs_names_the_nearest_network() -> None:
    with pytest.raises(UnknownNameError, match="no reference network is named 'residul'; nearest: 'residual'"):
        example_inputs("residul")
    with pytest.raises(ArgumentError, match="batch must be at least 1, not 0"):
        example_inputs("residual", batch=0)


def floating_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in model.state_dict().items() if value.is_floating_point())


def test_randomize_changes_every_value_in_place_and_nothing_global() -> None:
    model = ZOO["residual"]()
    before = {name: value.clone() for name, value in floating_state(model)}
    state = torch.get_rng_state()
    assert randomize(model) is model
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in floating_state(model):
        assert (value != before[name]).all(), name
        assert len(set(value.flatten().tolist())) > 0.99 * value.numel(), name
        if name.endswith("running_var"):
            assert (value > 0).all()


def test_randomize_depends_on_the_seed_alone() -> None:
    first = dict(floating_state(randomize(ZOO["convnext"](), seed=3)))
    torch.manual_seed(99)
    again = dict(floating_state(randomize(ZOO["convnext"]().double().train(), seed=3)))
    other = dict(floating_state(randomize(ZOO["convnext"](), seed=4)))
    for name, value in first.items():
        torch.testing.assert_close(again[name].float(), value, rtol=1e-6, atol=0)
        assert not torch.equal(other[name], value)


def test_randomize_makes_a_layer_scale_matter() -> None:
    model = ZOO["convnext"]()
    scale = model.get_parameter("blocks.0.gamma")
    with torch.no_grad():
        scale.fill_(1e-6)
    randomize(model)
    assert scale.min() >= 0.5


def test_randomize_keeps_what_is_shared_shared() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    alone = randomize(nn.ModuleList([nn.Linear(4, 4)])).get_parameter("0.weight")
    model[1].weight = model[0].weight
    randomize(model)
    assert model.get_parameter("1.weight") is model.get_parameter("0.weight")
    assert torch.equal(model.get_parameter("0.weight"), alone)


def test_randomize_leaves_constant_buffers_alone() -> None:
    model = randomize(ZOO["channel_permutation"]())
    assert sorted(model.get_buffer("order").tolist()) == list(range(24))


@pytest.mark.parametrize("kind", [DenseNet, MobileNetV2, ResNet20])
def test_the_networks_of_the_benchmarks_can_be_pruned(kind: type[nn.Module]) -> None:
    model = randomize(kind(width=0.5)).eval()
    x = torch.randn(2, 3, 16, 16)
    assert model(x).shape == (2, 10)
    plan = plan_channels(DependencyGraph.from_model(model, x), 0.5)
    assert all(layer.outputs is not None for name, layer in plan.layers.items() if name != "head.2")
    assert verify(model, plan, x).max_relative_error < 1e-10
    with pytest.raises(ArgumentError, match="positive and finite"):
        kind(width=0.0)
    with pytest.raises(ArgumentTypeError, match="must be a number"):
        kind(width="0.5")


def test_the_resnet_is_that_of_the_paper() -> None:
    # He et al., 2015, table 6: 0.27 million parameters; the strided shortcuts have weights here.
    assert sum(p.numel() for p in ResNet20().parameters()) == 272_474
