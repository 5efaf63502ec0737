from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fxprune.shapes import MetaRunner, to_meta

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 17)),
    (nn.Conv2d(4, 6, (3, 5), stride=(1, 3), padding=(0, 2), groups=2), (2, 4, 11, 12)),
    (nn.Conv2d(4, 6, 4, padding="same", dilation=2, bias=False), (2, 4, 11, 12)),
    (nn.Conv2d(4, 6, 4, padding="valid"), (2, 4, 11, 12)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 11, 12)),
    (nn.Conv2d(4, 6, 3), (4, 11, 12)),
    (nn.Conv3d(4, 6, 3, stride=(1, 2, 3)), (1, 4, 5, 6, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    (nn.Linear(7, 5), (7,)),
    (nn.Linear(7, 5), (2, 3, 7)),
    (nn.BatchNorm1d(4), (3, 4)),
    (nn.BatchNorm2d(4), (3, 4, 5, 5)),
    (nn.InstanceNorm2d(4), (4, 5, 5)),
    (nn.GroupNorm(2, 4), (3, 4, 2, 2, 2)),
    (nn.LayerNorm((5, 6)), (2, 3, 5, 6)),
    (nn.PReLU(4), (2, 4, 3)),
    (nn.Softmax(1), (2, 4, 3)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 4, 8, 8)),
    (nn.MaxPool2d((2, 3), (3, 1), (1, 0), (1, 2)), (2, 4, 9, 8)),
    (nn.MaxPool2d(3), (4, 8, 8)),
    (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 4, 8, 7)),
    (nn.AvgPool2d((3, 2)), (2, 4, 8, 7)),
    (nn.MaxPool2d(2, return_indices=True), (2, 4, 8, 8)),
    (nn.AdaptiveAvgPool2d((3, None)), (2, 4, 8, 8)),
    (nn.Upsample(scale_factor=1.5), (2, 4, 8, 8)),
    (nn.PixelShuffle(2), (2, 4, 3, 3)),
    (nn.Flatten(1, 2), (2, 4, 3, 3)),
    (nn.Unflatten(1, (2, 2)), (2, 4, 3)),
    (nn.ReflectionPad2d((1, 2, 3, 0)), (2, 4, 5, 5)),
    (nn.Bilinear(3, 4, 5), ()),
]


def described(value: Any) -> Any:
    return tree_map(lambda v: (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v, value)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_layers_give_the_shapes_that_they_give(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = (torch.randn(shape),) if shape else (torch.randn(2, 3), torch.randn(2, 4))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    ours = MetaRunner(torch.device("cpu")).module(layer, to_meta(inputs), {})
    assert all(v.is_meta for v in (ours if isinstance(ours, tuple) else [ours]))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert described(ours) == described(layer(*inputs))


WRONG: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3), (2, 3, 8, 8)),
    (nn.Conv2d(4, 6, 3), (2, 4, 2, 8)),
    (nn.Conv2d(4, 6, 3), (2, 4)),
    (nn.Linear(7, 5), (2, 6)),
    (nn.BatchNorm2d(4), (2, 3, 8, 8)),
    (nn.GroupNorm(2, 4), (2, 6, 8, 8)),
    (nn.LayerNorm((5, 6)), (2, 6, 5)),
    (nn.MaxPool2d(9), (2, 4, 8, 8)),
    (nn.PixelShuffle(2), (2, 6, 8, 8)),
    (nn.BatchNorm1d(4), (2, 4, 8, 8)),
    (nn.BatchNorm2d(4), (2, 4, 8)),
    (nn.PReLU(5), (2, 4, 8, 8)),
    (nn.Softmax(4), (2, 4, 8, 8)),
]


@pytest.mark.parametrize(
    ("layer", "shape"),
    WRONG,
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "x".join(map(str, v)),
)
def test_a_layer_refuses_what_it_would_refuse(layer: nn.Module, shape: tuple[int, ...]) -> None:
    kinds = (RuntimeError, ValueError, IndexError)
    with pytest.raises(kinds):
        layer(torch.randn(shape))
    with pytest.raises(kinds):
        MetaRunner(torch.device("cpu")).module(layer, (torch.empty(shape, device="meta"),), {})


def test_a_layer_with_a_hook_is_run() -> None:
    layer = nn.Conv2d(3, 4, 1)
    layer.register_forward_hook(lambda module, args, out: out.flatten(1))
    assert MetaRunner(torch.device("cpu")).module(layer, to_meta((torch.randn(2, 3, 5, 5),)), {}).shape == (2, 100)


def test_a_layer_takes_keywords() -> None:
    x = torch.empty(2, 3, 5, 5, device="meta")
    assert MetaRunner(torch.device("cpu")).module(nn.Conv2d(3, 4, 1), (), {"input": x}).shape == (2, 4, 5, 5)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.cat, ([torch.zeros(2, 3), torch.zeros(2, 4)],), {"dim": 1}),
        (F.batch_norm, (torch.zeros(2, 3, 4), torch.zeros(3), torch.ones(3)), {}),
        (torch.zeros, ((2, 3),), {}),
        (torch.arange, (5,), {"device": torch.device("cpu")}),
        (torch.einsum, ("bc,dc->bd", torch.zeros(2, 3), torch.zeros(4, 3)), {}),
        (divmod, (7, 3), {}),
    ],
)
def test_functions_run_on_the_meta_device(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    ours = MetaRunner(torch.device("cpu")).call(function, to_meta(args), kwargs)
    assert described(ours) == described(function(*args, **kwargs))
    assert not isinstance(ours, Tensor) or ours.is_meta


_X = torch.zeros(2, 3, 4)
FORMULA_CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (F.linear, (_X, torch.zeros(5, 4)), {}),
    (F.linear, (_X, torch.zeros(5, 4), torch.zeros(5)), {}),
    (F.linear, (_X, torch.zeros(4)), {}),
    (torch.matmul, (_X, torch.zeros(2, 4, 5)), {}),
    (torch.matmul, (_X, torch.zeros(4, 5)), {}),
    (torch.matmul, (_X, torch.zeros(4)), {}),
    (torch.softmax, (_X, 1), {}),
    (torch.softmax, (_X, -1, torch.float64), {}),
    (F.softmax, (_X, -1, 3, None), {}),
    (F.softmax, (_X, -1), {"dtype": torch.float64}),
    (torch.roll, (_X, (1, -2), (1, 2)), {}),
    (torch.roll, (_X, 1, 0), {}),
    (torch.roll, (_X, 3), {}),
    (torch.clamp, (_X,), {"max": 4}),
    (torch.clamp, (_X, None, 1.5), {}),
    (torch.clamp, (_X.long(), 1.5), {}),
    (torch.clamp, (_X, torch.zeros(5, 1, 1, 1)), {}),
    (torch.masked_fill, (_X, torch.ones(3, 1, dtype=torch.bool), 1.0), {}),
    (torch.masked_fill, (_X, torch.ones(5, 1, 1, 1, dtype=torch.bool), 1.0), {}),
    (F.normalize, (_X, 2.0, -1, 1e-12, None), {}),
    (F.normalize, (_X,), {"dim": 2}),
    (F.layer_norm, (_X, (3, 4), torch.ones(3, 4), None, 1e-5), {}),
    (F.adaptive_avg_pool2d, (_X, (2, 2)), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), FORMULA_CALLS)
def test_a_formula_gives_what_the_call_gives(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    ours = MetaRunner(torch.device("cpu")).call(function, to_meta(args), kwargs)
    assert ours.is_meta
    assert described(ours) == described(function(*args, **kwargs))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.linear, (_X, torch.zeros(5, 3))),
        (F.linear, (_X, torch.zeros(5, 4), torch.zeros(4))),
        (torch.matmul, (_X, torch.zeros(2, 3, 5))),
        (torch.matmul, (_X, torch.zeros(3, 4, 5))),
        (torch.roll, (_X, (1, 2), (1,))),
        (torch.roll, (_X, 1, 3)),
        (torch.clamp, (_X,)),
        (torch.masked_fill, (_X, torch.ones(2, dtype=torch.bool), 1.0)),
        (F.normalize, (_X, 2.0, 3)),
        (F.layer_norm, (_X, (3,))),
        (F.layer_norm, (_X, (4,), torch.ones(3))),
    ],
)
def test_a_function_refuses_what_it_would_refuse(function: Callable[..., Any], args: Any) -> None:
    kinds = (RuntimeError, ValueError, IndexError)
    with pytest.raises(kinds):
        function(*args)
    with pytest.raises(kinds):
        MetaRunner(torch.device("cpu")).call(function, to_meta(args), {})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cpu", ()),
        ("to", (torch.device("cpu"),)),
        ("to", ("cpu", torch.float64)),
        ("to", (torch.float64,)),
        ("type", (torch.float64,)),
        ("view", (3, 2)),
        ("new_zeros", (4,)),
    ],
)
def test_methods_run_on_the_meta_device(name: str, args: tuple[Any, ...]) -> None:
    x = torch.zeros(2, 3)
    ours = MetaRunner(torch.device("cpu")).method(name, (to_meta(x), *args), {})
    assert described(ours) == described(getattr(x, name)(*args))
    assert ours.is_meta


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_a_tensor_believes_to_be_on_the_models_device(device: str) -> None:
    runner = MetaRunner(torch.device(device))
    x = torch.empty(2, 3, device="meta")
    assert runner.get(x, "device") == torch.device(device)
    assert runner.get(x, "is_cuda") is (device == "cuda")
    assert runner.get(x, "is_meta") is (device == "meta")
    assert runner.get(x, "shape") == (2, 3)


def test_to_meta_goes_into_nested_values() -> None:
    nested = {"a": [torch.zeros(2), 3], "b": (torch.zeros(3, dtype=torch.int64), None)}
    assert described(to_meta(nested)) == described(nested)
