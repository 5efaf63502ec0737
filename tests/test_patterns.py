"""Patterns: which weights go together, each against a loop over single weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture import trace
from fxprune.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from fxprune.patterns import NM, Block, Kernel, Layout, Unstructured, find_pattern, weight_layouts

LAYERS = {
    "linear": nn.Linear(8, 6),
    "convolution": nn.Conv2d(4, 6, (3, 2)),
    "grouped": nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": nn.Conv2d(6, 6, (2, 4), groups=6),
    "transposed": nn.ConvTranspose2d(4, 6, 3),
    "grouped transposed": nn.ConvTranspose1d(8, 6, 4, groups=2),
    "one dimension": nn.Conv1d(4, 3, 5),
    "three dimensions": nn.Conv3d(2, 3, (2, 1, 2)),
}


def layout_of(layer: nn.Module) -> Layout:
    return Layout(getattr(layer, "transposed", False), getattr(layer, "groups", 1))


def inputs_of_output(layer: nn.Module, output: int) -> list[tuple[int, ...]]:
    """The indices of the weights that an output channel reads by, in order of the inputs, then of the kernel."""
    weight, layout = layer.weight, layout_of(layer)
    kernel = [tuple(k) for k in itertools.product(*map(range, weight.shape[2:]))]
    if not layout.transposed:
        return [(output, i, *k) for i in range(weight.shape[1]) for k in kernel]
    block, column = divmod(output, weight.shape[1])
    rows = len(weight) // layout.groups
    return [(block * rows + i, column, *k) for i in range(rows) for k in kernel]


def outputs_of(layer: nn.Module) -> int:
    return layer.weight.shape[1] * layer.groups if layout_of(layer).transposed else len(layer.weight)  # type: ignore[operator]


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_of_the_matrix_is_what_an_output_channel_reads_by(name: str) -> None:
    layer = LAYERS[name]
    weight = torch.arange(layer.weight.numel(), dtype=torch.float64).reshape(layer.weight.shape)  # type: ignore[union-attr, arg-type]
    layout = layout_of(layer)
    matrix = layout.matrix(weight)
    expected = [[float(weight[index]) for index in inputs_of_output(layer, o)] for o in range(outputs_of(layer))]
    assert matrix.tolist() == expected
    assert torch.equal(layout.weight(matrix, weight), weight)


@pytest.mark.parametrize("name", ["linear", "convolution", "grouped", "one dimension"])
def test_the_matrix_is_what_torch_calls_flattened(name: str) -> None:
    weight = LAYERS[name].weight
    assert torch.equal(Layout().matrix(weight), weight.flatten(1))  # type: ignore[arg-type, operator]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 2), NM(0, 2), NM(2, 2)])
def test_n_of_m_are_the_best_of_every_m_neighbours(name: str, pattern: NM) -> None:
    layer = LAYERS[name]
    importance = torch.rand_like(layer.weight.detach())  # type: ignore[operator]
    if not pattern.fits(importance, layout_of(layer)):
        assert len(inputs_of_output(layer, 0)) % pattern.m
        return
    mask = pattern.mask(importance, layout_of(layer))
    for output in range(outputs_of(layer)):
        indices = inputs_of_output(layer, output)
        for start in range(0, len(indices), pattern.m):
            group = indices[start : start + pattern.m]
            best = sorted(group, key=lambda index: -float(importance[index]))[: pattern.n]
            assert [index for index in group if mask[index]] == sorted(best, key=group.index)


def test_of_equal_importances_exactly_n_stay() -> None:
    assert NM(2, 4).mask(torch.zeros(3, 8), Layout()).tolist() == [[True, True, False, False] * 2] * 3


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", [Block(2, 3), Block(4, 5), Block(1, 1), Block(100, 100), Kernel(), Unstructured()])
def test_cells_are_blocks_of_the_matrix(name: str, pattern: Block | Kernel | Unstructured) -> None:
    layer, layout = LAYERS[name], layout_of(LAYERS[name])
    importance = torch.rand_like(layer.weight.detach(), dtype=torch.float64)  # type: ignore[operator]
    scores, sizes = pattern.scores(importance, layout)
    kernel = importance[0, 0].numel()
    shapes = {Kernel: (1, kernel), Unstructured: (1, 1)}
    high, wide = (pattern.rows, pattern.columns) if isinstance(pattern, Block) else shapes[type(pattern)]
    members: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for output in range(outputs_of(layer)):
        for column, index in enumerate(inputs_of_output(layer, output)):
            members.setdefault((output // high, column // wide), []).append(index)
    assert len(members) == scores.numel() == sizes.numel()
    kept = torch.rand_like(scores) < 0.5
    mask = pattern.mask(kept, importance, layout)
    for cell, indices in members.items():
        values = [float(importance[index]) for index in indices]
        assert float(scores[cell]) == pytest.approx(sum(values) / len(values), rel=1e-12)
        assert int(sizes[cell]) == len(values)
        assert all(bool(mask[index]) is bool(kept[cell]) for index in indices)


def test_layouts_come_from_layers_and_from_functions() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
            self.plain = nn.Conv2d(6, 6, 1, groups=3)
            self.up = nn.Parameter(torch.randn(6, 2, 2, 2))
            self.across = nn.Parameter(torch.randn(5, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv_transpose2d(self.plain(self.layer(x)), self.up, groups=2)
            return F.conv2d(x, self.across)

    layouts = weight_layouts(trace(Functions(), torch.zeros(1, 4, 3, 3)))
    assert layouts == {
        "layer.weight": Layout(True, 2),
        "plain.weight": Layout(False, 3),
        "up": Layout(True, 2),
    }


def test_names_of_patterns() -> None:
    assert find_pattern("2:4") == NM(2, 4)
    assert find_pattern("unstructured") == Unstructured()
    assert find_pattern("kernel") == Kernel()
    assert find_pattern(Block(4, 8)) == Block(4, 8)
    assert NM(2, 4).sparsity == 0.5
    with pytest.raises(UnknownNameError, match="no pattern 'blocks'; known: 'unstructured', 'kernel', 'N:M'"):
        find_pattern("blocks")
    with pytest.raises(ArgumentTypeError, match="a name or a pattern, not float"):
        find_pattern(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NM(5, 4), ArgumentError, "m of NM must be at least 5, not 4"),
        (lambda: NM(-1, 4), ArgumentError, "n of NM must be at least 0"),
        (lambda: NM(0, 0), ArgumentError, "m of NM must be at least 1"),
        (lambda: NM(1.5, 4), ArgumentTypeError, "n of NM must be an integer, not 1.5"),  # type: ignore[arg-type]
        (lambda: Block(0, 4), ArgumentError, "rows of a Block must be at least 1"),
        (lambda: Block(1, True), ArgumentTypeError, "columns of a Block must be an integer, not True"),
        (lambda: find_pattern("4:2"), ArgumentError, "m of NM must be at least 4"),
    ],
)  # fmt: skip
def test_patterns_that_make_no_sense(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]
