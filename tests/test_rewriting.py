"""Cutting tensors, against plain loops; and rebuilding a model under its graph."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune import rewriting
from fxprune.capture import trace
from fxprune.errors import ArgumentError
from fxprune.models import ZOO, example_inputs, randomize
from fxprune.plan import TensorCut
from fxprune.rewriting import cut, graph_over, rebuild
from fxprune.vocabulary import Axis

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def along(*choices: tuple[int, list[int]], groups: int = 1) -> TensorCut:
    """Kept indices by dimension; ``groups`` is that of dimension 1 if there are several."""
    return TensorCut(tuple((Axis("t", d, groups if d == 1 else 1), np.array(i)) for d, i in choices))


def test_one_dimension() -> None:
    tensor = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(cut(tensor, along((0, [3, 1]))), torch.tensor([[9.0, 10, 11], [3, 4, 5]]))
    assert torch.equal(cut(tensor, along((1, [2]))), torch.tensor([[2.0], [5], [8], [11]]))


def test_vectors_of_one_layer_share_an_index() -> None:
    index, known = along((0, [3, 1])), {}  # type: ignore[var-annotated]
    for tensor in (torch.arange(4.0), nn.Parameter(torch.randn(4).double()), torch.arange(4)):
        result = cut(tensor, index, known)
        assert torch.equal(result, torch.stack([tensor.detach()[3], tensor.detach()[1]]))
        assert result.dtype is tensor.dtype
        assert not result.requires_grad
    assert len(known) == 1


def test_two_dimensions_in_either_order() -> None:
    tensor = torch.randn(5, 4, 3, 3)
    rows, columns = [4, 0, 2], [1, 3]
    expected = torch.stack([torch.stack([tensor[r, c] for c in columns]) for r in rows])
    assert torch.equal(cut(tensor, along((0, rows), (1, columns))), expected)
    assert torch.equal(cut(tensor, along((1, columns), (0, rows))), expected)


@pytest.mark.parametrize("with_rows", [True, False])
def test_blocks_gather_columns_of_their_own(with_rows: bool) -> None:
    groups, rows, columns = 3, 4, 5
    tensor = torch.randn(groups * rows, columns, 3, 3)
    kept_rows = [[3, 0], [1, 2], [0, 1]] if with_rows else [[0, 1, 2, 3]] * groups
    kept_columns = [[4, 1, 0], [0, 1, 2], [2, 3, 4]]
    expected = torch.stack(
        [torch.stack([tensor[g * rows + r, c] for c in kept_columns[g]]) for g in range(groups) for r in kept_rows[g]]
    )
    choices = [(1, [g * columns + c for g in range(groups) for c in kept_columns[g]])]
    if with_rows:
        choices.append((0, [g * rows + r for g in range(groups) for r in kept_rows[g]]))
    assert torch.equal(cut(tensor, along(*choices, groups=groups)), expected)


def test_outputs_of_a_grouped_transposed_convolution() -> None:
    """Dimension 1 holds the outputs of every block, and dimension 0 all inputs."""
    groups, inputs, outputs = 2, 3, 4
    tensor = torch.randn(groups * inputs, outputs, 2)
    kept = [[3, 1], [0, 2]]
    expected = torch.cat([tensor[g * inputs : (g + 1) * inputs][:, kept[g]] for g in range(groups)])
    choice = (1, [g * outputs + c for g in range(groups) for c in kept[g]])
    assert torch.equal(cut(tensor, along(choice, groups=groups)), expected)


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_memory_format_is_the_tensors(rank: int, groups: int) -> None:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[rank]
    tensor = torch.randn(6, 4, *[3] * (rank - 2))
    choice = along((1, [0, 3, 4, 6]), groups=2) if groups == 2 else along((1, [0, 3]))
    plain, last = cut(tensor, choice), cut(tensor.to(memory_format=layout), choice)
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=layout)
    assert not last.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_dtypes_are_kept_and_storage_is_new(dtype: torch.dtype) -> None:
    tensor = torch.ones(6, 4, dtype=dtype)
    for choice in (along((0, [0, 1, 2, 3, 4, 5])), along((1, [0])), along()):
        result = cut(tensor, choice)
        assert result.dtype == dtype
        assert result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
        assert result.untyped_storage().nbytes() == result.numel() * result.element_size()


def test_a_parameter_is_cut_without_history() -> None:
    parameter = nn.Parameter(torch.randn(4, 3))
    result = cut(parameter, along((0, [1, 2])))
    assert not result.requires_grad
    assert result.grad_fn is None


# Graphs over other models ---------------------------------------------------------------------------------------------


def test_a_graph_over_another_model_shares_its_layers_and_computes_with_them() -> None:
    model, other = (randomize(ZOO["residual"](), seed=i).eval() for i in (0, 1))
    inputs = example_inputs("residual")
    over = graph_over(trace(model, inputs), other)
    assert torch.equal(over(*inputs), other(*inputs))
    assert over.get_parameter("layer1.conv1.weight") is other.get_parameter("layer1.conv1.weight")
    assert not torch.equal(over(*inputs), model(*inputs))


def test_a_graph_over_a_model_has_its_mode() -> None:
    model = randomize(ZOO["dropout"]()).eval()
    gm = trace(model, example_inputs("dropout"))
    other = copy.deepcopy(model).train()
    next(iter(other.modules())).get_submodule("conv2.1").eval()
    over = graph_over(gm, other)
    assert over.training
    assert not over.get_submodule("conv2.1").training
    assert other.get_submodule("conv1.1").training


@pytest.mark.parametrize("name", sorted(ZOO))
def test_rebuilding_without_a_cut_is_a_copy(name: str) -> None:
    model = randomize(ZOO[name]()).eval()
    gm = trace(model, example_inputs(name))
    result, modules = rebuild(gm, model, {}, lambda graph: None)
    assert modules == dict(result.named_modules(remove_duplicate=False))
    assert result.code == gm.code
    assert result.graph is not gm.graph
    assert {k: v.dtype for k, v in result.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    for key, value in model.state_dict().items():
        new = result.state_dict()[key]
        assert torch.equal(value, new)
        assert value.stride() == new.stride()
        assert value.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
    parameters = dict(result.named_parameters())
    assert {k: type(p) for k, p in model.named_parameters()} == {k: type(p) for k, p in parameters.items()}


def test_rebuilding_cuts_a_shared_tensor_once_under_all_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Tied()
    gm = trace(model, torch.zeros(2, 4))
    choice = along((0, [0, 2]))
    result, _ = rebuild(gm, model, {"a.weight": choice, "b.weight": choice}, lambda graph: None)
    assert result.get_parameter("a.weight") is result.get_parameter("b.weight")
    assert torch.equal(result.get_parameter("a.weight"), model.a.weight[[0, 2]])
    assert model.a.weight.shape == (4, 4)


def test_layers_keep_their_own_attributes_and_class() -> None:
    class Marked(nn.Conv2d):
        """A layer with attributes of its own."""

    layer = Marked(3, 4, 1)
    layer.note = {"list": [1, 2]}  # type: ignore[assignment]
    layer.register_buffer("empty", None)
    model = nn.Sequential(layer, nn.ReLU())
    result, _ = rebuild(trace(model, IMAGE), model, {}, lambda graph: None)
    copied = result.get_submodule("0")
    assert type(copied) is Marked
    assert copied.note == {"list": [1, 2]}
    assert copied.note is not layer.note
    assert copied.empty is None
    assert torch.equal(copied(IMAGE), layer(IMAGE))


def test_missing_and_misshapen_layers_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    gm = trace(model, IMAGE)
    with pytest.raises(ArgumentError, match=r"Sequential has no '1'.*apply the plan to the model that it was made for"):
        graph_over(gm, nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ArgumentError, match=r"'0\.weight' is of shape \(5, 3, 1, 1\).*\(4, 3, 1, 1\).*make a new plan"):
        graph_over(gm, nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(4)))
    with pytest.raises(ArgumentError, match=r"'0\.bias' is absent"):
        graph_over(gm, nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    with pytest.raises(ArgumentError, match=r"'1\.running_mean' is absent"):
        graph_over(gm, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)))


def test_the_traced_graph_stays_with_its_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    gm = trace(model, IMAGE)
    graph_over(gm, model)
    assert gm.graph.owning_module is gm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(700, 300), (300, 700, 2), (40, 20, 300), (64, 40, 3, 3)])
def test_large_tensors_are_cut_as_small_ones(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go piece by piece, and run by run where neighbours stay together."""
    monkeypatch.setattr(rewriting, "_WHOLE", 1000)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    apart = [torch.randperm(size, generator=generator)[: size // 2] for size in shape]
    runs = (torch.randperm(shape[1] // 20, generator=generator)[:, None] * 20 + torch.arange(20)).flatten()
    for choices in ({0: apart[0]}, {1: apart[1]}, dict(enumerate(apart)), {0: apart[0], 1: runs}):
        expected = tensor
        for dim, index in choices.items():
            expected = expected[(slice(None),) * dim + (index,)]
        assert torch.equal(cut(tensor, along(*((d, i.tolist()) for d, i in choices.items()))), expected)


@pytest.mark.parametrize("shape", [(700, 300), (8, 4, 3, 3)])
@pytest.mark.parametrize("whole", [1000, 1_000_000])
def test_no_channel_beyond_the_last(shape: tuple[int, ...], whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "_WHOLE", whole)
    with pytest.raises(IndexError):
        cut(torch.zeros(shape), along((0, [0]), (1, [shape[1]])))
